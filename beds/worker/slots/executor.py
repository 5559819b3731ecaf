"""Executes the events of a slot, within the soft time limit."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject, Retry

from beds.errors import BedsError, CallTimeout
from beds.services.execution import Attempt, Ending, InOtherHands, Redeliver
from beds.wire.routes import Kind, Route
from beds.worker.backend import as_beds_error
from beds.worker.slots.received import Received


class SlotExecutor:
    """Executes one event at a time, in the process's main thread.

    Args:
        app: the Celery application, with its tasks and its `Execution`.
        hostname: the worker's name.
        soft_limit: seconds after which an event ends with TimeLimitExceeded; infinite for no limit.
    """

    def __init__(self, app: Any, hostname: str, soft_limit: float) -> None:
        self._app = app
        self._hostname = hostname
        self._soft_limit = soft_limit
        self._limit = math.inf
        self._thread = threading.get_ident()
        signal.signal(signal.SIGALRM, self._on_alarm)

    def execute(self, received: Received, route: Route, attempt: Attempt) -> Ending | None:
        """Execute an event. Returns its ending; None if it ends elsewhere, so that it gets no reply here.

        Raises:
            Redeliver: the outcome is open, so the event returns to its queue.
        """
        execution = self._app.execution
        if received.has_expired:
            late = CallTimeout("no worker began the event before it expired")
            return execution.refuse(attempt, late, late)  # type: ignore[no-any-return]
        try:
            task = self._app.tasks[route.task]
            with self._time_limited():
                if route.kind is Kind.PROBE:
                    return self._probed(task, received, attempt)
                return execution.run(attempt, task.act)  # type: ignore[no-any-return]
        except Redeliver:
            raise
        except Reject as rejected:
            if rejected.requeue:
                raise Redeliver("the task asks for it") from None
            return execution.refuse(attempt, rejected, as_beds_error(rejected))  # type: ignore[no-any-return]
        except (InOtherHands, Ignore, Retry):
            return None
        except Exception as error:  # noqa: BLE001 — also the soft limit, if it struck after the event
            return execution.refuse(attempt, error, as_beds_error(error))  # type: ignore[no-any-return]

    def _probed(self, task: Any, received: Received, attempt: Attempt) -> Ending | None:
        """A probe runs as a Celery task, since it checks that Celery's retry returns to its queue."""
        headers, arguments = received.headers, received.payload[1]
        task.push_request(
            **headers,
            args=(),
            kwargs=arguments,
            properties=received.properties,
            delivery_info=received.delivery_info,
            reply_to=received.properties.get("reply_to"),
            correlation_id=received.properties["correlation_id"],
            hostname=self._hostname,
            called_directly=False,
        )
        task.request.attempt = attempt  # not among the headers, which a retry would publish
        try:
            with contextlib.suppress(BedsError):  # the attempt has its ending
                task.run(**arguments)
        finally:
            task.pop_request()
        return attempt.ending

    @contextlib.contextmanager
    def _time_limited(self) -> Iterator[None]:
        self._limit = time.monotonic() + self._soft_limit
        try:
            yield
        finally:
            self._limit = math.inf

    def look_at_limit(self) -> None:
        """Interrupt the event in the main thread if its soft limit has passed. The keeper's thread calls it.

        A timer of the operating system would cost two system calls an event.
        """
        if time.monotonic() > self._limit:
            signal.pthread_kill(self._thread, signal.SIGALRM)

    def _on_alarm(self, *_: Any) -> None:
        if time.monotonic() > self._limit:
            self._limit = math.inf
            raise SoftTimeLimitExceeded

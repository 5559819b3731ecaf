"""The result backend: a worker stores a ticket's outcome and publishes the reply to the event's `reply_to`.

RabbitMQ confirms the reply before Celery acknowledges the event. Each thread has a separate connection for replies. If
only that one is lost, the event is not repeated. A pool of slots does not wait for the confirm: `slots/replies.py`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import Any

import amqp
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.exceptions import TimeLimitExceeded as HardTimeLimitExceeded
from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import TaskRevokedError

from beds.client.client import default_client
from beds.domain.event import RECORD_TASKS
from beds.domain.reply import reply_from_wire
from beds.domain.ticket import TicketState
from beds.errors import (
    BedsError,
    CallTimeout,
    InternalError,
    TicketRevoked,
    TimeLimitExceeded,
)
from beds.transport.frames import LOST
from beds.wire import codec
from beds.wire.reply import error_of, is_reply_address, reply_message
from beds.worker.task import attempt_of

logger = logging.getLogger(__name__)

REPLY_SECONDS = 2.0
"""Longest wait for the confirm of a reply."""


class ReplyBackend(BaseBackend):
    """In a worker: replies over AMQP, and stores outcomes of tickets. In a client: requests them through `calgon`."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self.worker_pid = 0
        """Process id of the parent of a pool of slots, whose event loop must not block; 0 for other pools."""
        self._local = threading.local()

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_options: Any
    ) -> Any:
        """Store a ticket's outcome, then publish a final state to `reply_to`; Celery acknowledges after this.

        Intermediate states are ignored, and an event without `reply_to` gets no reply.
        """
        if state not in states.READY_STATES or isinstance(result, HardTimeLimitExceeded):
            return result  # an event killed by its hard limit is redelivered, so its outcome is still open
        if getattr(request, "task", None) in RECORD_TASKS.values():
            return result  # telemetry tasks emit no telemetry, which would loop
        attempt = attempt_of(self.app, request)
        ending = attempt.ending
        if isinstance(result, BaseException) and (ending is None or not ending.concluded):
            ending = self.app.execution.refuse(attempt, result, as_beds_error(result))
        elif ending is None:  # a task that BEDS does not define
            ending = self.app.execution.accept(attempt, result)
        if reply_to := getattr(request, "reply_to", None):
            self.reply(reply_to, task_id, ending.reply)
        if ending.audit:
            # Waiting earlier would delay the reply; Celery acknowledges only after this.
            self.app.telemetry.confirm(ending.audit)
        return result

    def reply(self, reply_to: str, task_id: str, body: bytes) -> None:
        """Publish a reply to the caller's direct reply-to address, and wait for its confirm.

        Any other `reply_to` gets no reply: a client could use the worker's rights to fill a foreign queue. Celery's
        own clients name a queue of theirs; they poll the ticket instead.
        """
        if not is_reply_address(reply_to):
            return
        try:
            self._publish(reply_to, task_id, body)
        except Exception as failed:  # noqa: BLE001 — a hostile `reply_to` may raise any error
            # The effect stands and only the reply is lost, so the event must not be executed again.
            logger.error("the reply to %s could not be sent: %s", task_id, type(failed).__name__)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        """Fetch a ticket's status for AsyncResult, over AMQP. Raises UnknownTicket, TicketExpired.

        Celery's worker calls this, too, when it has lost a pool process. Its event loop must not wait for a reply.
        It gets PENDING, so the event is redelivered, and the ledger prevents a second write.
        """
        if os.getpid() == self.worker_pid:
            return {"task_id": task_id, "status": states.PENDING, "result": None}
        status = default_client().ticket(task_id).status()
        outcome = status.result or {}
        result = outcome.get("result")
        if status.state is TicketState.SUCCESS:
            result = reply_from_wire(codec.decode(result))
        return {
            "task_id": task_id,
            "status": str(status.state),
            "result": result,
            "traceback": None,
            "children": [],
            "date_done": status.ended_at.isoformat() if status.ended_at else None,
        }

    def exception_to_python(self, exc: Any) -> Any:
        return error_of(exc) or super().exception_to_python(exc)

    def _publish(self, reply_to: str, task_id: str, body: bytes) -> None:
        message = reply_message(task_id, body)
        for is_last in (False, False, True):
            try:
                self._channel().basic_publish(message, "", reply_to, confirm_timeout=REPLY_SECONDS)
                return
            except LOST as error:
                with contextlib.suppress(*LOST):
                    self._local.connection.collect()
                self._local.channel = None  # a second copy of a reply does no harm
                if is_last or isinstance(error, amqp.InternalError):  # RabbitMQ did not make the address
                    raise

    def _channel(self) -> Any:
        """The channel of this thread and process; a child never uses a channel that its parent opened."""
        mine = self._local
        if getattr(mine, "channel", None) is None or mine.pid != os.getpid():
            connection = self.app.connection_for_write(transport_options={"confirm_publish": True})
            connection.connect()
            mine.connection, mine.channel, mine.pid = connection, connection.default_channel, os.getpid()
        return mine.channel


def as_beds_error(error: BaseException) -> BedsError:
    """Convert any error to a BedsError. A foreign message may hold data, so only the type is kept."""
    if isinstance(error, BedsError):
        return error
    if isinstance(error, SoftTimeLimitExceeded):
        return TimeLimitExceeded("the operation ran longer than its pool allows")
    if isinstance(error, TaskRevokedError):
        if error.args[:1] == ("expired",):
            return CallTimeout("no worker began the event before it expired")
        if error.args[:1] == ("terminated",):
            return TicketRevoked("the event was terminated during execution; its record shows whether it was written")
        return TicketRevoked("the event was revoked before a worker began it")
    return InternalError(f"the worker failed with {type(error).__name__}")

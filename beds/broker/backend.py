"""The result backend: in a worker it keeps a ticket's outcome, and sends the reply to where the event asked for it.

Celery's own RPC backend waits for a blocking confirm of each reply, which is half of the time of a short task. A reply
is at-most-once by nature (its receiver may be gone), so it is published on a channel of its own without one.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import amqp
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.exceptions import TimeLimitExceeded as HardTimeLimitExceeded
from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import TaskRevokedError

from beds.broker.progress import STORE_PAUSE, Ended, ticket_of
from beds.broker.telemetry import header_of, leave_unacknowledged
from beds.client import default_client
from beds.domain.event import RECORD_TASKS
from beds.domain.reply import Page, Response, reply_from_wire
from beds.domain.ticket import TicketState, TicketStatus
from beds.domain.trace import OK
from beds.errors import (
    BedsError,
    BodyTooLarge,
    CallTimeout,
    InternalError,
    ResultTooLarge,
    StoreUnavailable,
    TicketRevoked,
    TimeLimitExceeded,
    from_wire,
)
from beds.transport import codec

logger = logging.getLogger(__name__)


KEEP_SECONDS = 300.0
"""How long an event waits, unacknowledged, for its ticket's outcome to be kept."""
STATUS_BYTES = 4096
"""What a status has beside the outcome, at most."""


class ReplyBackend(BaseBackend):
    """In a worker: answers over AMQP, and keeps the outcome of tickets. In a client: asks the queue `calgon`."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self.worker_pid = 0
        """Of the process whose loop serves a pool; its tasks run elsewhere."""
        self._local = threading.local()

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_options: Any
    ) -> Any:
        """Keep a ticket's outcome, then send a final state to `reply_to`; Celery acknowledges the event after this.

        Other states, and what nobody asked to be answered, go nowhere.
        """
        if state not in states.READY_STATES or isinstance(result, HardTimeLimitExceeded):
            return result  # after its hard limit an event is delivered again: this is not its end
        if getattr(request, "task", None) in RECORD_TASKS.values():
            return result  # to tell of what was written down would never end
        audit = None
        if isinstance(result, Ended):
            body = result.outcome
        else:
            ticket = ticket_of(request)
            settled = getattr(request, "settled", None)
            if settled is None:
                state, body, error = self._meta(task_id, result, state, request, is_ticket=ticket is not None)
                audit = self.app.telemetry.ended(request, error.code if error else OK, None if error else result)
                request.settled = state, body, audit, result
            else:
                # The soft time limit struck while the end was being told: it is the same end, and the rest is told now.
                state, body, audit, result = settled
            if ticket is not None:
                if audit:
                    # A ticket that has ended is not carried out again, so its audit has to be safe by then.
                    self.app.telemetry.confirm(audit)
                    audit = None
                self._keep(ticket["guid"], TicketState(state), body, result)
        if reply_to := getattr(request, "reply_to", None):
            self.reply(reply_to, task_id, body)
        if audit:
            # After the reply, which it would delay; before Celery acknowledges.
            self.app.telemetry.confirm(audit)
        return result

    def reply(self, reply_to: str, task_id: str, body: bytes) -> None:
        """Send a reply to where the event asked for it. Whether it arrives is the asker's care, who may ask again."""
        try:
            self._publish(reply_to, task_id, body)
        except Exception as failed:  # noqa: BLE001 — a name that cannot be sent to is as hostile as it may be
            # The effect stands, only its caller cannot be told: the event must not be carried out again for that.
            logger.error("the reply to %s could not be sent: %s", task_id, type(failed).__name__)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        """What AsyncResult asks: over AMQP, as every client does. Raises UnknownTicket, TicketExpired.

        Celery's own worker asks too, when it has lost a pool process. Its loop must not wait for an answer, and the
        ledger knows better: there the state is PENDING, and the event is delivered again.
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
        wire = exc.get("beds") if isinstance(exc, Mapping) else None
        return from_wire(codec.decode(wire)) if isinstance(wire, Mapping) else super().exception_to_python(exc)

    def _keep(self, guid: str, state: TicketState, body: bytes, result: Any) -> None:
        """Note a ticket's outcome, however long the ticket store is away: the event is not acknowledged before."""
        by = result.detail.get("cancelled_by", "") if isinstance(result, TicketRevoked) else ""
        deadline = time.monotonic() + KEEP_SECONDS
        while True:
            try:
                self.app.tickets.end(guid, state, body, by)
                return
            except StoreUnavailable as error:
                logger.warning("the outcome of ticket %s waits for its store: %s", guid, error.message)
                if time.monotonic() >= deadline:
                    leave_unacknowledged(f"the outcome of ticket {guid} cannot be kept")
            time.sleep(STORE_PAUSE)

    def _meta(
        self, task_id: str, result: Any, state: str, request: Any, *, is_ticket: bool
    ) -> tuple[str, bytes, BedsError | None]:
        """The state that the reply tells, which one that cannot be sent changes, its JSON text, and its error."""
        limit = self.app.settings.amqp.max_body_bytes - (STATUS_BYTES if is_ticket else 0)
        error: BedsError
        if isinstance(result, BaseException):
            error = as_beds_error(result)
            state = states.REVOKED if isinstance(error, TicketRevoked) else state
        else:
            try:
                body = _encode(task_id, state, success(result))
                # A status carries the outcome as data, with the codec's own marks written as such.
                codec.check_size(codec.dumps(json.loads(body)) if is_ticket else body, limit, "the result")
                return state, body, None
            except BodyTooLarge as large:
                error = ResultTooLarge(large.message, detail=large.detail)
            except (BedsError, ValueError) as failed:
                error = as_beds_error(failed)
            state = states.FAILURE
        return state, outcome(task_id, state, error, _event_id(request)), error

    def _publish(self, reply_to: str, task_id: str, body: bytes) -> None:
        message = amqp.Message(
            body, content_type="application/json", content_encoding="utf-8", delivery_mode=1, correlation_id=task_id
        )
        try:
            self._channel().basic_publish(message, "", reply_to)
        except (OSError, amqp.AMQPError, AttributeError):
            # The connection went while it was idle. A second copy of a reply does no harm.
            self._local.channel = None
            self._channel().basic_publish(message, "", reply_to)

    def _channel(self) -> Any:
        """A channel of this thread in this process; what a parent opened before the fork is not touched."""
        mine = self._local
        if getattr(mine, "channel", None) is None or mine.pid != os.getpid():
            connection = self.app.connection_for_write(transport_options={"confirm_publish": False})
            connection.connect()
            mine.connection, mine.channel, mine.pid = connection, connection.default_channel, os.getpid()
        return mine.channel


def success(result: Any) -> Any:
    """A task's return value as it goes into a reply."""
    return codec.encode(result.to_wire() if isinstance(result, (Response, Page, TicketStatus)) else result)


def failure(error: BaseException, event_id: str) -> Mapping[str, Any]:
    """An error as it goes into a reply: Celery's three keys, and `beds` with the typed error."""
    typed = as_beds_error(error)
    typed.event_id = typed.event_id or event_id
    return {
        "exc_type": type(typed).__name__,
        "exc_module": "beds.errors",
        "exc_message": [typed.message],
        "beds": codec.encode(typed.to_wire()),
    }


def as_beds_error(error: BaseException) -> BedsError:
    """Every error as one of BEDS; a foreign one's words may hold data, so only its type is told."""
    if isinstance(error, BedsError):
        return error
    if isinstance(error, SoftTimeLimitExceeded):
        return TimeLimitExceeded("the operation ran longer than its pool allows")
    if isinstance(error, TaskRevokedError):
        if error.args[:1] == ("expired",):
            return CallTimeout("no worker began the event before it expired")
        return TicketRevoked("the event was revoked before a worker began it")
    return InternalError(f"the worker failed with {type(error).__name__}")


def outcome(task_id: str, state: str, error: BaseException, event_id: str) -> bytes:
    """A reply that tells of an error."""
    return _encode(task_id, state, failure(error, event_id))


def _encode(task_id: str, state: str, result: Any) -> bytes:
    meta = {"task_id": task_id, "status": state, "result": result, "traceback": None, "children": []}
    text = json.dumps(meta, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")  # a lone surrogate, repeated from a hostile event, is no text


def _event_id(request: Any) -> str:
    found = header_of(request).get("event_id")
    return found if isinstance(found, str) else ""

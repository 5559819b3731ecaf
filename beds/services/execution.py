"""Executes one event, from its delivery to its outcome. Nothing here depends on Celery.

The worker makes a `Delivery` of a message and calls `Execution.run`. It publishes the reply of the `Ending` that is
returned, waits for the audit record's confirm, and acknowledges.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from beds.adapters.bound import BoundAdapter
from beds.adapters.store import is_harmless
from beds.domain.backoff import Backoff
from beds.domain.clock import SYSTEM_CLOCK, Clock
from beds.domain.identity import uuid7
from beds.domain.ticket import TicketState
from beds.domain.trace import OK, Trace, current_trace, tracing
from beds.errors import (
    BedsError,
    BodyTooLarge,
    InternalError,
    MalformedEvent,
    NotFound,
    ResultTooLarge,
    StoreUnavailable,
    TicketRevoked,
    TimeLimitExceeded,
)
from beds.services.tickets import TicketStore
from beds.templates.registry import TemplateRegistry
from beds.wire import codec
from beds.wire.header import EventHeader
from beds.wire.reply import encode_error, encode_reply
from beds.wire.routes import Route

logger = logging.getLogger("celery.beds.execution")

KEEP_SECONDS = 300.0
"""An event stays unacknowledged for this time while its ticket's outcome cannot be stored."""
TICKET_PATIENCE = 1.0
"""Seconds for which the store of an event with a ticket is tried before the event waits."""
CALL_WAIT_SECONDS = 60.0
"""For this time a write without a ticket, which is in doubt, waits for its store: its caller has long gone."""
STATUS_BYTES = 4096
"""The most that the fields of a status take, without the outcome."""

Act = Callable[[Trace, Mapping[str, Any]], Any]
"""Executes the event. Called with its trace and its decoded arguments; returns the result."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivered event, validated.

    Args:
        guid: of the message; also the id of its ticket and Celery task.
        task: the task's name.
        route: the task's row in the table of routes; None for a task that BEDS does not define.
        header: the header `beds`.
        user: the AMQP user whose event it is.
        queue: its routing key.
        worker: the worker's name.
        summary: template and operation, as monitors show them.
        redelivered: whether it was delivered before.
        in_doubt: whether an earlier delivery may have written.
        waiting_since: when it first waited for its store, in Unix seconds; 0 if it did not.
        arguments: the task's, as the codec writes them.
    """

    guid: str
    task: str
    route: Route | None
    header: EventHeader
    user: str
    queue: str = ""
    worker: str = ""
    summary: str = ""
    redelivered: bool = False
    in_doubt: bool = False
    waiting_since: float = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def ticket(self) -> dict[str, Any] | None:
        """The event's ticket, for the ticket store; None for an event without a ticket."""
        if not self.header.ticket:
            return None
        queue = {"queue": self.queue} if self.queue else {}
        return {"user": self.user, **self.header.acceptance(self.guid, self.summary), **queue}


@dataclass(slots=True)
class Ending:
    """How an event ended.

    Args:
        state: the final state, as its ticket and reply have it.
        reply: the bytes of its reply.
        value: the result; None after an error.
        error: why it failed.
        cause: the exception that was raised: `error` itself, or an unexpected one.
        audit: the published audit record. The worker waits for its confirm after the reply, to avoid a delay, and
            before the acknowledgement.
        concluded: whether it is recorded, and its ticket ended.
    """

    state: TicketState
    reply: bytes
    value: Any = field(default=None, repr=False)
    error: BedsError | None = None
    cause: BaseException | None = None
    audit: Any = None
    concluded: bool = False


@dataclass(slots=True)
class Attempt:
    """One delivery in progress, and its outcome.

    Args:
        delivery: the event.
        trace: its calls and times.
        ending: its outcome, once decided; it never changes afterwards.
    """

    delivery: Delivery
    trace: Trace = field(init=False)
    ending: Ending | None = None

    def __post_init__(self) -> None:
        delivery = self.delivery
        self.trace = Trace(
            delivery.header.lineage,
            user=delivery.user,
            redelivered=delivery.redelivered,
            summary=delivery.summary,
            actor=delivery.header.actor,
        )


class Redeliver(Exception):
    """The outcome is open: RabbitMQ must deliver the event again."""


class Postpone(Redeliver):
    """As `Redeliver`, because a store is away: after a pause, and it does not count as a delivery.

    `in_doubt` is true if this delivery may have written.
    """

    def __init__(self, message: str, *, in_doubt: bool = False) -> None:
        super().__init__(message)
        self.in_doubt = in_doubt


class Abandon(Redeliver):
    """The event has waited for its store as long as it may. It goes to the dead events."""


class InOtherHands(Exception):
    """Another worker executes a copy of the event and ends the ticket. This copy is acknowledged without a reply."""


class Detached(InOtherHands):
    """The event's work goes on in further events, which end its ticket. It is recorded, and acknowledged."""


class Recorder(Protocol):
    """Records lineage, audit and metrics; see `worker.telemetry`."""

    def ended(self, delivery: Delivery, trace: Trace, outcome: str, reply: Any) -> Any:
        """Record how an event ended; returns the published audit record of a write, else None."""
        ...

    def confirm(self, audit: Any) -> None:
        """Wait until RabbitMQ has confirmed an audit record."""
        ...


class Adapters(Protocol):
    """Makes adapters; see `AdapterFactory`."""

    registry: TemplateRegistry

    def adapter(self, template_name: str) -> BoundAdapter: ...


class Execution:
    """Executes events.

    Args:
        factory: where adapters come from.
        tickets: the ticket store.
        recorder: of lineage, audit and metrics.
        max_body_bytes: the largest reply.
        patience: called with a queue; returns the seconds to wait for the ticket store before an event is requeued.
        interrupts: the exception raised inside an event when its soft time limit strikes.
        longest_wait: seconds for which an event with a ticket waits for its store.
        give_up: called with the reason when an outcome can be neither stored nor undone. It does not return, and the
            event is redelivered.
        clock: what its deadlines and pauses go by.
    """

    def __init__(
        self,
        factory: Adapters,
        tickets: TicketStore,
        recorder: Recorder,
        *,
        max_body_bytes: int,
        patience: Callable[[str], float],
        interrupts: type[Exception],
        longest_wait: float,
        give_up: Callable[[str], NoReturn],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._factory = factory
        self._tickets = tickets
        self._recorder = recorder
        self._max_body_bytes = max_body_bytes
        self._patience = patience
        self._interrupts = interrupts
        self._longest_wait = longest_wait
        self._give_up = give_up
        self._clock = clock

    def run(self, attempt: Attempt, act: Act) -> Ending:
        """Claim the ticket, execute, record, and end the ticket.

        Args:
            attempt: the event.
            act: executes it.

        Raises:
            Redeliver: the store may have written, or the ticket store is away; the outcome is open.
            InOtherHands: another worker executes a copy of the event, or further events go on with it.
        """
        with tracing(attempt.trace):
            try:
                attempt.ending = self._decide(attempt.delivery, attempt.trace, act)
                return self._conclude(attempt, attempt.ending)
            except Detached:
                self._recorder.ended(attempt.delivery, attempt.trace, OK, None)
                raise
            except self._interrupts:
                return self._interrupted(attempt)

    def refuse(self, attempt: Attempt, cause: BaseException, error: BedsError) -> Ending:
        """End an event outside of `run`: it expired or was revoked before, its soft limit struck after, or its outcome
        could not be recorded there. An outcome that is decided is kept.

        Args:
            attempt: the event.
            cause: the exception that was raised.
            error: the same, converted to a BedsError.
        """
        try:
            if attempt.ending is None and isinstance(cause, self._interrupts):
                return self._interrupted(attempt)
            attempt.ending = attempt.ending or _failed(attempt.delivery, error, cause)
            return self._conclude(attempt, attempt.ending)
        except (Redeliver, BedsError) as doubt:
            self._give_up(f"the outcome of {attempt.delivery.guid} cannot be recorded: {doubt}")

    def accept(self, attempt: Attempt, value: Any) -> Ending:
        """End an event that was executed outside of `run`, with its result."""
        attempt.ending = self._answered(attempt.delivery, value)
        return self._conclude(attempt, attempt.ending)

    def _interrupted(self, attempt: Attempt) -> Ending:
        """Conclude after the soft limit struck; an outcome decided before is kept and recorded again."""
        attempt.ending = attempt.ending or self._out_of_time(attempt.delivery, attempt.trace)
        return self._conclude(attempt, attempt.ending)

    def _decide(self, delivery: Delivery, trace: Trace, act: Act) -> Ending:
        """Execute the event and return its outcome, not yet recorded."""
        try:
            body = decoded(delivery.arguments)
            if delivery.header.ticket and not delivery.header.called:
                # It will come back, so it must not occupy the pool while a store is away.
                trace.patience = 0.0 if delivery.waiting_since else TICKET_PATIENCE
            if delivery.route is not None and delivery.route.operation is not None:
                template = body.pop("template", None)
                trace.operation, trace.body = delivery.route.operation, body
                trace.template = template if isinstance(template, str) else ""
                body = {"template": template, **body}
            try:
                ended = self._claim(delivery, trace)
            except TicketRevoked as revoked:
                if not delivery.redelivered:
                    raise
                return self._settled(delivery, trace, revoked)  # an earlier delivery may have written
            if ended is not None:
                return ended
            return self._answered(delivery, act(trace, body))
        except self._interrupts:
            raise
        except StoreUnavailable as error:
            writes = trace.operation is not None and not trace.operation.is_read
            # That this attempt wrote nothing says nothing of the one before.
            wrote_nothing = not writes or (is_harmless(error) and not delivery.in_doubt)
            header = delivery.header
            if wrote_nothing and (header.called or not header.ticket or self._has_waited(delivery)):
                return _failed(delivery, error, error)
            # A write may have been committed. On redelivery the ledger shows whether it was; a reply now would guess.
            raise self._later(delivery, error, in_doubt=not wrote_nothing) from None
        except BedsError as error:
            return _failed(delivery, error, error)
        except (Redeliver, InOtherHands):
            raise
        except Exception as cause:  # noqa: BLE001 — the message may hold data, so only the type is kept
            return _failed(delivery, InternalError(f"the worker failed with {type(cause).__name__}"), cause)

    def _claim(self, delivery: Delivery, trace: Trace) -> Ending | None:
        """Mark the event's ticket as started. Returns its ending if it has ended, else None.

        Raises:
            TicketRevoked: the ticket was cancelled.
            InOtherHands: another worker has begun the event.
            Redeliver: the ticket store is away for longer than this worker may wait.
        """
        ticket = delivery.ticket
        if ticket is None:
            return None
        backoff = Backoff(self._clock.monotonic() + self._patience(delivery.queue), clock=self._clock)
        claim = str(uuid7())  # a reply may be lost with its connection; the retry then recognizes its own claim
        while True:
            try:
                found = self._tickets.start(ticket, delivery.worker, claim, again=delivery.redelivered)
                break
            except StoreUnavailable as error:
                if not backoff.wait():
                    raise self._later(delivery, error) from None
        if found is None:
            raise InOtherHands
        state = TicketState(found["state"])
        if state.is_final:
            return Ending(state, str(found.get("outcome", "")).encode(), value=EndedBefore())
        _stop_if_cancelled(found)
        trace.checkpoint = lambda done, total, unit: self._checkpoint(ticket, done, total, unit)
        return None

    def _checkpoint(self, ticket: Mapping[str, Any], done: int, total: int | None, unit: str) -> None:
        try:
            found = self._tickets.progress(ticket["user"], ticket["guid"], done, total, unit)
        except NotFound:  # another process ended it
            raise TicketRevoked("the ticket has ended", detail={"guid": ticket["guid"]}) from None
        _stop_if_cancelled(found)

    def _out_of_time(self, delivery: Delivery, trace: Trace) -> Ending:
        """The ending after the soft limit struck."""
        return self._settled(delivery, trace, TimeLimitExceeded("the operation ran longer than its pool allows"))

    def _settled(self, delivery: Delivery, trace: Trace, error: BedsError) -> Ending:
        """The ending of an event that may have written: the ledger's result if it has, else the error."""
        if trace.operation is not None and not trace.operation.is_read and trace.template in self._factory.registry:
            try:
                found = self._factory.adapter(trace.template).note_failure(trace, error)
            except StoreUnavailable as away:
                raise self._later(delivery, away, in_doubt=True) from None
            except BedsError as noted:
                return _failed(delivery, noted, noted)
            if found is not None:
                return self._answered(delivery, found)
        return _failed(delivery, error, error)

    def _later(self, delivery: Delivery, error: BedsError, *, in_doubt: bool = False) -> Redeliver:
        """The exception that redelivers an event whose store is away."""
        logger.warning("%s waits for its store: %s; it will be delivered again", delivery.guid, error.message)
        if self._has_waited(delivery):
            return Abandon(error.message)
        has_caller = delivery.header.called or not delivery.header.ticket
        # A caller waits, so the first repetition is at once.
        if has_caller and not delivery.redelivered:
            return Redeliver(error.message)
        return Postpone(error.message, in_doubt=in_doubt or delivery.in_doubt)

    def _has_waited(self, delivery: Delivery) -> bool:
        """True if the event has waited for as long as it may."""
        longest = self._longest_wait if delivery.header.ticket else CALL_WAIT_SECONDS
        return delivery.waiting_since > 0 and time.time() > delivery.waiting_since + longest

    def _answered(self, delivery: Delivery, value: Any) -> Ending:
        """The ending with a result, or with an error if the result cannot be sent."""
        is_ticket = delivery.header.ticket
        try:
            reply = encode_reply(delivery.guid, value)
            # A status carries the outcome as data, so the codec escapes the outcome's own type tags.
            sent = codec.dumps(json.loads(reply)) if is_ticket else reply
            codec.check_size(sent, self._max_body_bytes - (STATUS_BYTES if is_ticket else 0), "the result")
        except BodyTooLarge as large:
            error: BedsError = ResultTooLarge(large.message, detail=large.detail)
        except BedsError as failed:
            error = failed
        except ValueError as failed:
            error = InternalError(f"the worker failed with {type(failed).__name__}")
        else:
            return Ending(TicketState.SUCCESS, reply, value)
        return _failed(delivery, error, error)

    def _conclude(self, attempt: Attempt, ending: Ending) -> Ending:
        """Record the outcome, and end the ticket. Repeating it with the same ending has no further effect."""
        if ending.concluded or isinstance(ending.value, EndedBefore):
            return ending
        outcome = ending.error.code if ending.error else OK
        ending.audit = self._recorder.ended(
            attempt.delivery, attempt.trace, outcome, None if ending.error else ending.value
        )
        ticket = attempt.delivery.ticket
        if ticket is not None:
            if ending.audit:
                # An ended ticket is never executed again, so its audit record must be confirmed first.
                self._recorder.confirm(ending.audit)
                ending.audit = None
            self._store_outcome(ticket, ending)
        ending.concluded = True
        return ending

    def _store_outcome(self, ticket: Mapping[str, Any], ending: Ending) -> None:
        """Store a ticket's outcome; retry for `KEEP_SECONDS`. The event is not acknowledged before."""
        by = ending.error.detail.get("cancelled_by", "") if isinstance(ending.error, TicketRevoked) else ""
        backoff = Backoff(self._clock.monotonic() + KEEP_SECONDS, clock=self._clock)
        while True:
            try:
                retryable = ending.error is not None and ending.error.retryable
                self._tickets.end(ticket["user"], ticket["guid"], ending.state, ending.reply, by, retryable=retryable)
                return
            except BedsError as error:  # also what an operator has to mend: the outcome must not be lost meanwhile
                logger.warning("the outcome of ticket %s waits for its store: %s", ticket["guid"], error.message)
                if not backoff.wait():
                    self._give_up(f"the outcome of ticket {ticket['guid']} cannot be kept")


class EndedBefore:
    """The value of an event whose ticket had ended: the stored reply is sent again, without execution."""

    def __repr__(self) -> str:
        return "<ended before>"


def checkpoint(done: int, total: int | None = None, unit: str = "records") -> None:
    """Report the progress of the running operation. Long operations call it where they can stop without harm.

    Args:
        done: the units done.
        total: the units in all; None if unknown.
        unit: the unit's name.

    Raises:
        TicketRevoked: the ticket was cancelled; do not catch it.
    """
    trace = current_trace()
    if trace is not None and trace.checkpoint is not None:
        trace.checkpoint(done, total, unit)


def cancelled(guid: str, by: str) -> TicketRevoked:
    """The error that ends a cancelled ticket."""
    return TicketRevoked(f"cancelled by {by}", detail={"guid": guid, "cancelled_by": by})


def decoded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a message's arguments. Raises MalformedEvent."""
    body = codec.decode(dict(arguments))
    if not isinstance(body, dict):
        raise MalformedEvent("the arguments are a value, not names with values", detail={"field": "body"})
    return body


def _stop_if_cancelled(found: Mapping[str, Any]) -> None:
    if by := found.get("cancelled_by"):
        raise cancelled(found["guid"], by)


def _failed(delivery: Delivery, error: BedsError, cause: BaseException) -> Ending:
    state = TicketState.REVOKED if isinstance(error, TicketRevoked) else TicketState.FAILURE
    reply = encode_error(delivery.guid, str(state), error, delivery.header.event_id)
    return Ending(state, reply, error=error, cause=cause)

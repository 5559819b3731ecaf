"""The client's verbs as flows: which events each sends, when it retries, and how it ends.

Nothing here blocks: each flow yields its waits to a driver; see `steps.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from beds.client.call import Call, JobCall, as_calls, body_of, check_name, parse_operation
from beds.client.deadline import deadline_after
from beds.client.lineage import Node, read_tree
from beds.client.steps import Await, Flow, Pause, Send
from beds.config import Settings
from beds.domain.backoff import Backoff
from beds.domain.change import CHANGES, Changes
from beds.domain.description import Description
from beds.domain.event import DESCRIBE, OPERATOR_VERBS, Event
from beds.domain.job import Job
from beds.domain.lineage import Lineage, guid_of
from beds.domain.reply import Page, Reply, reply_from_wire
from beds.domain.ticket import TicketState, TicketStatus, submitted_at
from beds.domain.trace import spawn
from beds.errors import (
    BedsError,
    BrokerBlocked,
    BrokerUnavailable,
    CallTimeout,
    Overloaded,
    PermissionDenied,
    UnknownTicket,
    Unroutable,
    WrongType,
)
from beds.templates.registry import TemplateRegistry
from beds.templates.rules import check_arguments
from beds.transport.pending import Pending, Transport
from beds.wire.message import with_encoded_body
from beds.wire.reply import parse_reply, read_reply
from beds.wire.routes import JOB_QUEUES

TICKETS_AT_ONCE = 500
"""Tickets in one acceptance."""
ASK_AGAIN_SECONDS = 3.0
"""A request about a ticket is repeated after this time without a reply."""
WITHDRAW_SECONDS = 2.0
"""The cancellation of refused tickets is retried for this time."""
ACCEPTANCE_SECONDS = 2.0
"""The status of an unknown ticket is retried for this time if the ticket is younger than `NEW_SECONDS`."""
NEW_SECONDS = 60.0
FIRST_POLL, LONGEST_POLL = 0.05, 2.0
"""Seconds between two polls of a ticket; doubled each time."""
OWN_REPLY_SECONDS, LONGEST_OWN_WAIT = 1.0, 10.0
"""How long a submitter waits for the reply before it polls; doubled each time. A connection's loss can lose a reply."""

JOBS, REJECTS, PAGES, FILES = "msJobs", "msJobRejects", "msJobPages", "msFiles"
_JOB_FETCHES: Mapping[str, tuple[str, str, int]] = {
    JOBS: ("by_guid", "any_by_guid", 1),
    REJECTS: ("of_job", "by_guid", 500),
    PAGES: ("of_job", "by_guid", 1),
    FILES: ("of_job", "by_guid", 500),
}
"""The fetches of a user's own records and of anybody's, and the records of a page."""

Tell = Callable[[TicketStatus], None]
Begun = Callable[[str], None]


@dataclass(slots=True)
class Handle:
    """A ticket, and the submitter's in-flight request, whose reply makes most polls unnecessary.

    Args:
        event_id: `node.env.guid`, or the guid alone.
        pending: None in a process that did not submit it, after its connection was lost, and for a job.
        is_own: whether it was submitted here, so that its acceptance may still be on its way.
        actor: on whose behalf requests about it are made; empty for the application itself.
    """

    event_id: str
    pending: Pending | None = None
    is_own: bool = False
    actor: str = ""

    @property
    def guid(self) -> str:
        return guid_of(self.event_id)

    def not_ended(self) -> CallTimeout:
        """The error of a wait that reached its deadline."""
        return CallTimeout(
            f"ticket {self.guid} has not ended by the deadline",
            detail={"guid": self.guid},
            hint="it goes on; ask again later",
            event_id=self.event_id,
        )


class Flows:
    """The verbs, over one transport.

    Args:
        settings: of the node.
        templates: validate the calls.
        transport: carries the events.
        is_operator: whether requests about tickets go to the queue `operator`.
    """

    def __init__(
        self, settings: Settings, templates: TemplateRegistry, transport: Transport, *, is_operator: bool = False
    ) -> None:
        self.settings = settings
        self.templates = templates
        self.transport = transport
        self.is_operator = is_operator

    # --- events --------------------------------------------------------------------------------------------------

    def event(self, call: Call, *, ticket: bool, timeout: float) -> Event:
        """Validate a call against its template, and make an event of it."""
        if not isinstance(call, Call):
            raise WrongType(f"a call is a beds.Call, not {type(call).__name__}", detail={"field": "calls"})
        operation = parse_operation(call.operation)
        template = self.templates[call.template]
        body = body_of(template, operation, call)
        actor = check_name("actor", call.actor)
        expires_in = timeout if operation.is_read and not ticket else None
        if template.system and self.is_operator and operation.is_read:
            arguments = {"template": template.name, **body}
            made = Event.of_operator("fetch", arguments, self._lineage(), actor=actor, expires_in=expires_in)
        else:
            made = Event.of_operation(
                template.store,
                operation,
                template.name,
                body,
                self._lineage(),
                ticket=ticket,
                expires_in=expires_in,
                actor=actor,
            )
        return with_encoded_body(made, self.settings.amqp.max_body_bytes)

    def _question(self, verb: str, arguments: Mapping[str, Any], expires_in: float, actor: str) -> Event:
        if self.is_operator and verb in OPERATOR_VERBS:
            return Event.of_operator(verb, arguments, self._lineage(), expires_in=expires_in, actor=actor)
        return self._calgon(verb, arguments, expires_in, actor)

    def _calgon(
        self, verb: str, arguments: Mapping[str, Any], expires_in: float | None = None, actor: str = ""
    ) -> Event:
        return Event.of_calgon(verb, arguments, self._lineage(), expires_in=expires_in, actor=actor)

    def _lineage(self) -> Lineage:
        """A child of the event that this worker executes, or a root elsewhere."""
        return spawn(self.settings.node.name, self.settings.node.environment)

    # --- calls ---------------------------------------------------------------------------------------------------

    def call(self, call: Call, timeout: float, key: str | None = None) -> Flow[Reply]:
        return reply_from_wire(read_reply((yield from self.encoded_reply(call, timeout, key))))

    def encoded_reply(
        self, call: Call, timeout: float, key: str | None = None, begun: Begun | None = None
    ) -> Flow[Any]:
        """The parsed reply to a call, with its values as the codec encodes them.

        Args:
            call, timeout, key: of the call.
            begun: called with the event's id when it is published.
        """
        deadline = deadline_after(timeout)
        if key is not None:
            ticket = yield from self._submit_keyed(call, key, timeout, is_called=True)
            if begun:
                begun(ticket.event_id)
            return (yield from self.encoded_result(ticket, left(deadline)))
        pending = yield from self.send(self.event(call, ticket=False, timeout=timeout), deadline)
        if begun:
            begun(pending.event.lineage.event_id)
        return (yield from self.encoded_answer(pending, deadline))

    def call_many(self, calls: Iterable[Call], timeout: float, *, return_errors: bool) -> Flow[list[Any]]:
        deadline = deadline_after(timeout)
        events = [self.event(call, ticket=False, timeout=timeout) for call in as_calls(calls)]
        pendings: list[Pending] = []
        for event in events:
            pendings.append((yield from self.send(event, deadline)))
        outcomes: list[Reply | BedsError] = []
        for pending in pendings:
            try:
                outcomes.append(reply_from_wire((yield from self.answer(pending, deadline))))
            except BedsError as error:
                if not return_errors:
                    raise
                outcomes.append(error)
        return outcomes

    def send(self, event: Event, deadline: float) -> Flow[Pending]:
        """Publish an event; retry after a lost connection. A second copy of an event has no second effect."""
        backoff = Backoff(deadline)
        while True:
            try:
                pending: Pending = yield Send(event, deadline)
                return pending
            except BrokerUnavailable:
                if (pause := backoff.next_pause()) is None:
                    raise
            yield Pause(pause)

    def answer(self, pending: Pending, deadline: float) -> Flow[Any]:
        """The decoded reply to an event."""
        return read_reply((yield from self.encoded_answer(pending, deadline)))

    def encoded_answer(self, pending: Pending, deadline: float) -> Flow[Any]:
        """The parsed reply to an event. If the connection is lost, the event is sent again.

        Each copy gets a reply, and only one has an effect.
        """
        backoff = Backoff(deadline)
        while True:
            try:
                return parse_reply((yield from self._wait(pending.reply, pending, deadline, "no reply")))
            except BrokerUnavailable:
                if (pause := backoff.next_pause()) is None:
                    raise
            yield Pause(pause)
            pending = yield from self.send(pending.event, deadline)

    def _wait(self, future: Future[Any], pending: Pending, deadline: float, what: str) -> Flow[Any]:
        """The future's value. Raises the transport's error when there is none by the deadline."""
        try:
            return (yield Await(future, deadline))
        except TimeoutError:
            raise self.transport.why_late(pending, what) from None

    # --- submitting ----------------------------------------------------------------------------------------------

    def submit(self, call: Call, key: str | None, timeout: float) -> Flow[Handle]:
        if key is not None:
            return (yield from self._submit_keyed(call, key, timeout))
        (handle,) = yield from self.submit_many([call], timeout)
        return handle

    def submit_job(self, call: JobCall, key: str | None, timeout: float) -> Flow[Handle]:
        deadline = deadline_after(timeout)
        event = self._job_event(call)
        if key is not None:
            key = check_name("idempotency_key", key, empty=False)
            handle = yield from self._submit_event_keyed(event, key, call.digest, deadline, timeout)
        else:
            (handle,) = yield from self.submit_events([event], deadline)
        return replace(handle, pending=None)  # the event itself gets no reply: its ticket is polled

    def _job_event(self, call: JobCall) -> Event:
        """Validate a job's name and arguments, and make an event of it."""
        rule = self.templates.jobs[call.name]
        args = rule.arguments(self.templates[rule.job.source], check_arguments(dict(call.args)))
        given = {name: args[name] for name in call.args}
        body = {"args": given, "dry_run": call.dry_run, "restore": call.restore, "verify": call.verify}
        actor = check_name("actor", call.actor)
        made = Event.of_job(rule.kind, rule.name, body, self._lineage(), actor=actor)
        return with_encoded_body(made, self.settings.amqp.max_body_bytes)

    def submit_many(self, calls: Iterable[Call], timeout: float) -> Flow[list[Handle]]:
        deadline = deadline_after(timeout)
        events = [self.event(call, ticket=True, timeout=timeout) for call in as_calls(calls)]
        return (yield from self.submit_events(events, deadline))

    def submit_events(self, events: Sequence[Event], deadline: float) -> Flow[list[Handle]]:
        # The acceptance goes first, so that the ticket can be found before a worker begins the event.
        acceptances = [
            self._calgon("accept", {"tickets": [event.acceptance for event in some]}) for some in _portions(events)
        ]
        pendings = (yield from self._confirmed([*acceptances, *events], deadline))[len(acceptances) :]
        return [_own(pending) for pending in pendings]

    def _submit_keyed(self, call: Call, key: str, timeout: float, *, is_called: bool = False) -> Flow[Handle]:
        deadline = deadline_after(timeout)
        key = check_name("idempotency_key", key, empty=False)
        event = replace(self.event(call, ticket=True, timeout=timeout), is_called=is_called)
        return (yield from self._submit_event_keyed(event, key, call.digest, deadline, timeout))

    def _submit_event_keyed(self, event: Event, key: str, digest: str, deadline: float, timeout: float) -> Flow[Handle]:
        question = {"tickets": [event.acceptance], "idempotency_key": key, "digest": digest}
        known = TicketStatus.from_wire((yield from self.ask("accept", question, timeout)))
        if known.state is not TicketState.PENDING:
            return Handle(known.event_id, actor=event.actor)
        # Publish even if the ticket exists: its first submitter may have died before it published the event, and
        # workers execute a ticket once.
        if known.guid != event.lineage.guid:
            node, env, guid = known.event_id.split(".")
            first = Lineage(node, env, guid, "", known.event_id, 0, event.lineage.traceparent)
            event = replace(event, lineage=first)
        # A refused event is not withdrawn: the ticket may be another submitter's, and the next submit with the key
        # publishes the event again.
        pending = yield from self._confirm((yield from self.send(event, deadline)), deadline)
        return _own(pending)

    def _confirmed(self, events: Sequence[Event], deadline: float) -> Flow[list[Pending]]:
        """Publish all events, and wait for RabbitMQ's confirms."""
        pendings: list[Pending] = []
        for event in events:
            pendings.append((yield from self.send(event, deadline)))
        refused: list[tuple[Event, BedsError]] = []
        # Start at the end: an operation's error says more to the caller than its acceptance's error.
        for index, pending in reversed(list(enumerate(pendings))):
            try:
                pendings[index] = yield from self._confirm(pending, deadline)
            except (Overloaded, PermissionDenied, Unroutable) as error:
                refused.append((pending.event, error))
        if refused:
            raise (yield from self._withdraw_refused(refused, deadline))
        return pendings

    def _confirm(self, pending: Pending, deadline: float) -> Flow[Pending]:
        backoff = Backoff(deadline)
        while True:
            try:
                yield from self._wait(pending.confirmed, pending, deadline, "RabbitMQ did not confirm")
                return pending
            except BrokerUnavailable:
                if (pause := backoff.next_pause()) is None:
                    raise
            yield Pause(pause)
            pending = yield from self.send(pending.event, deadline)

    def _withdraw_refused(self, refused: Sequence[tuple[Event, BedsError]], deadline: float) -> Flow[BedsError]:
        """Cancel the tickets of events that RabbitMQ refused, because these events will never be executed."""
        _, error = refused[0]
        events = [event for event, _ in refused if event.ticket]
        by = "a full queue" if isinstance(error, Overloaded) else f"RabbitMQ ({error.code})"
        for some in _portions(events):
            tickets = [event.acceptance for event in some]
            yield from self._withdraw(self._calgon("accept", {"tickets": tickets, "cancelled_by": by}), deadline)
        error.detail["refused"] = [event.lineage.guid for event in events]
        return error

    def _withdraw(self, withdrawal: Event, deadline: float) -> Flow[None]:
        """Publish a withdrawal. Best effort for a short time, since the caller waits; otherwise the ticket expires."""
        soon = min(deadline, time.monotonic() + WITHDRAW_SECONDS)
        backoff = Backoff(soon)
        while True:
            try:
                pending = yield from self.send(withdrawal, soon)
                yield from self._wait(pending.confirmed, pending, soon, "RabbitMQ did not confirm")
                return
            except (Overloaded, BrokerUnavailable):
                if (pause := backoff.next_pause()) is None:
                    return
            except BedsError:
                return
            yield Pause(pause)

    # --- tickets -------------------------------------------------------------------------------------------------

    def ask(self, verb: str, arguments: Mapping[str, Any], timeout: float, actor: str = "") -> Flow[Any]:
        """Send a request about tickets. A lost connection can lose the reply, so it is repeated until the deadline."""
        deadline = deadline_after(timeout)
        backoff = Backoff(deadline)
        while True:
            attempt = min(deadline - time.monotonic(), ASK_AGAIN_SECONDS)
            try:
                pending = yield Send(self._question(verb, arguments, max(attempt, 0.1), actor), deadline)
                reply = yield from self._wait(pending.reply, pending, time.monotonic() + attempt, "no reply")
                return read_reply(parse_reply(reply))
            except (CallTimeout, BrokerUnavailable, BrokerBlocked):
                if (pause := backoff.next_pause()) is None:
                    raise
            yield Pause(pause)

    def status(self, guid: str, timeout: float, actor: str = "") -> Flow[TicketStatus]:
        deadline = deadline_after(timeout)
        # The acceptance may still wait in the queue or be processed by another slot, so a new ticket is retried.
        backoff = Backoff(min(deadline, time.monotonic() + ACCEPTANCE_SECONDS))
        while True:
            try:
                return TicketStatus.from_wire((yield from self.ask("status", {"guid": guid}, left(deadline), actor)))
            except UnknownTicket:
                pause = backoff.next_pause() if _is_new(guid) else None
                if pause is None:
                    raise
            yield Pause(pause)

    def cancel(self, guid: str, by: str, timeout: float, actor: str = "") -> Flow[TicketStatus]:
        if not isinstance(by, str):
            raise WrongType(f"by takes a name, not {type(by).__name__}", detail={"field": "by"})
        return TicketStatus.from_wire((yield from self.ask("cancel", {"guid": guid, "by": by}, timeout, actor)))

    def wait(self, ticket: Handle, timeout: float, tell: Tell | None = None) -> Flow[TicketStatus]:
        deadline = deadline_after(timeout)
        backoff = Backoff(deadline, first=FIRST_POLL, longest=LONGEST_POLL)
        while True:
            status = yield from self._poll(ticket, left(deadline))
            if status is not None:
                if tell:
                    tell(status)
                if status.ready:
                    return status
            if (pause := backoff.next_pause()) is None:
                raise ticket.not_ended()
            yield from self._pause(ticket, pause)

    def _pause(self, ticket: Handle, seconds: float) -> Flow[None]:
        """Wait some time, or until the reply to an event that was submitted here has come."""
        if ticket.pending is None or ticket.pending.reply.done():
            yield Pause(seconds)
            return
        with contextlib.suppress(TimeoutError, BedsError):  # the ticket's status says how it ended
            yield Await(ticket.pending.reply, time.monotonic() + seconds)

    def result(self, ticket: Handle, timeout: float) -> Flow[Reply]:
        return reply_from_wire(read_reply((yield from self.encoded_result(ticket, timeout))))

    def encoded_result(self, ticket: Handle, timeout: float) -> Flow[Any]:
        """The parsed reply to a ticket's event, with its values as the codec encodes them."""
        deadline = deadline_after(timeout)
        asked_every = OWN_REPLY_SECONDS
        while ticket.pending is not None:
            remaining = deadline - time.monotonic()
            try:
                reply = yield Await(ticket.pending.reply, time.monotonic() + min(asked_every, remaining))
                return parse_reply(reply)
            except TimeoutError:
                if remaining <= asked_every:
                    raise ticket.not_ended() from None
            except BrokerUnavailable:
                ticket.pending = None  # the reply is lost with the connection; the event is still executed
                break
            status = yield from self._poll(ticket, min(asked_every, remaining))
            if status is not None and status.ready:
                return status.result
            asked_every = min(asked_every * 2, LONGEST_OWN_WAIT)
        status = yield from self.wait(ticket, left(deadline))
        return status.result

    def _poll(self, ticket: Handle, timeout: float) -> Flow[TicketStatus | None]:
        """The status; None when it is temporarily not available."""
        try:
            return (yield from self.status(ticket.guid, timeout, ticket.actor))
        except UnknownTicket:
            if not ticket.is_own:
                raise
        except BedsError as error:
            if not error.retryable:
                raise
        return None

    # --- jobs --------------------------------------------------------------------------------------------------------

    def job_order(self, verb: str, job: Handle, timeout: float) -> Flow[dict[str, Any]]:
        """Pause or resume a job. Returns its report."""
        found: dict[str, Any] = yield from self.ask(verb, {"guid": job.guid}, timeout, job.actor)
        return found

    def job_report(self, ticket: Handle, timeout: float) -> Flow[dict[str, Any]]:
        deadline = deadline_after(timeout)
        page = yield from self._records_of_job(ticket.guid, JOBS, "", timeout)
        if page:
            job = Job.of(page[0])
            if ticket.actor and job.actor != ticket.actor:
                raise UnknownTicket(f"{job.guid} is no job of {ticket.actor}", detail={"guid": job.guid})
            return job.report()
        return unstarted_report((yield from self.status(ticket.guid, left(deadline), ticket.actor)))

    def job_records(self, ticket: Handle, template: str, cursor: str, timeout: float) -> Flow[Page]:
        """A page of what belongs to a job: the job itself, its rejects, its result's pages, its files.

        Raises UnknownTicket: there is nothing, since this user has no such job.
        """
        deadline = deadline_after(timeout)
        if ticket.actor:
            yield from self.job_report(ticket, timeout)
        page = yield from self._records_of_job(ticket.guid, template, cursor, left(deadline))
        if not page and not cursor:
            yield from self.job_report(ticket, left(deadline))
        return page

    def _records_of_job(self, guid: str, template: str, cursor: str, timeout: float) -> Flow[Page]:
        own, anybody, limit = _JOB_FETCHES[template]
        call = Call("fetch_records", template, {"guid": guid}, anybody if self.is_operator else own, limit, cursor)
        page = yield from self.call(call, timeout)
        assert isinstance(page, Page)
        return page

    def describe(self, name: str, timeout: float) -> Flow[Description]:
        return Description.from_wire((yield from self._ask_about(name, DESCRIBE, timeout)))

    def changes(self, name: str, after: str, limit: int, timeout: float, actor: str = "") -> Flow[Changes]:
        arguments = {"after": after, "limit": limit}
        return Changes.from_wire((yield from self._ask_about(name, CHANGES, timeout, arguments, actor)))

    def _ask_about(
        self, name: str, verb: str, timeout: float, arguments: Mapping[str, Any] | None = None, actor: str = ""
    ) -> Flow[Any]:
        """The reply to a question about a template."""
        deadline = deadline_after(timeout)
        template = self.templates[name]
        made = Event.of_question(
            template.store, verb, template.name, self._lineage(), arguments or {}, expires_in=timeout, actor=actor
        )
        pending = yield from self.send(with_encoded_body(made, self.settings.amqp.max_body_bytes), deadline)
        return (yield from self.answer(pending, deadline))

    def lineage(self, of: str, timeout: float, actor: str = "") -> Flow[Node]:
        deadline = deadline_after(timeout)

        def fetch(using: str, args: Mapping[str, Any], cursor: str) -> Flow[Page]:
            call = Call("fetch_records", "msLineage", args, using, 1000, cursor)
            page = yield from self.call(call, left(deadline))
            assert isinstance(page, Page)
            return page

        return (yield from read_tree(fetch, of, actor))


def unstarted_report(status: TicketStatus) -> dict[str, Any]:
    """The report of a job that msJobs does not have: it waits for a slot, or was refused."""
    if status.queue not in JOB_QUEUES:
        raise UnknownTicket(f"{status.guid} is no job of this user", detail={"guid": status.guid})
    state, why = "QUEUED", ""
    if status.ready:
        state = "FAILED"
        try:
            read_reply(status.result)
            state = "DONE"  # a dry run, or a verification
        except BedsError as error:
            why = f"{error.code}: {error.message}"
    times = {"made_at": status.accepted_at, "ended_at": status.ended_at}
    return {"job": status.summary.rpartition(".")[0], "guid": status.guid, "state": state, "why": why, **times}


def handle_of(guid: str, actor: str = "") -> Handle:
    """The ticket of a guid or an event id. Raises WrongType, TooLong."""
    return Handle(check_name("guid", guid), actor=check_name("actor", actor))


def _own(pending: Pending) -> Handle:
    """The ticket of an event that was submitted here."""
    event = pending.event
    return Handle(event.lineage.event_id, pending, is_own=True, actor=event.actor)


def left(deadline: float) -> float:
    """Seconds until a deadline; never too few for a reply."""
    return max(0.1, deadline - time.monotonic())


def _portions(events: Sequence[Event]) -> list[Sequence[Event]]:
    return [events[i : i + TICKETS_AT_ONCE] for i in range(0, len(events), TICKETS_AT_ONCE)]


def _is_new(guid: str) -> bool:
    made = submitted_at(guid)
    return made is not None and datetime.now(UTC) - made < timedelta(seconds=NEW_SECONDS)

"""The client: publishes events over AMQP and waits for replies. It never touches a database.

import beds
page = beds.call("fetch_records", "Flights", {"origin": "JFK"}, using="by_route", limit=100)
ticket = beds.submit("create_record", "Notices", {"airport": "JFK", "title": "Snow", "status": "open"})
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, overload

from beds.bound_template import BoundTemplate
from beds.config import Settings, load_settings
from beds.domain.event import Event
from beds.domain.lineage import Lineage
from beds.domain.reply import Page, Reply, reply_from_wire
from beds.domain.ticket import TicketState, TicketStatus
from beds.domain.trace import spawn
from beds.errors import (
    BedsError,
    BrokerBlocked,
    BrokerUnavailable,
    CallTimeout,
    Overloaded,
    PermissionDenied,
    Unroutable,
    WrongType,
)
from beds.services.lineage import Node, read_tree
from beds.templates.call import Call, as_calls, body_of, check_name, parse_operation
from beds.templates.registry import TemplateRegistry
from beds.tickets import DEFAULT_TIMEOUT, Ticket, deadline_after
from beds.transport.message import sealed
from beds.transport.requester import FIRST_DELAY, Pending, Requester

TICKETS_AT_ONCE = 500
"""Tickets in one acceptance."""
ASK_AGAIN_SECONDS = 3.0
"""After which a question about a ticket is repeated."""


class Client:
    """Publishes operations and takes their replies.

    Args:
        settings: the configuration; `load_settings()` when absent.

    It is safe to share between threads, survives a fork (each process gets a connection of its own), and reconnects.
    Every wait has a deadline.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()
        self.templates = TemplateRegistry.from_folder(self.settings.schema_path)
        self.requester = Requester(self.settings.amqp)

    def call(
        self,
        operation: str,
        template: str,
        data: Any = None,
        *,
        using: str = "",
        limit: int | None = None,
        cursor: str = "",
        actor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Reply:
        """Carry out one operation and wait for its reply.

        Args:
            operation: `create_record`, `create_records`, `fetch_records`, `update_record` or `delete_record`.
            template: the data domain.
            data: the record; the list of records; a fetch's arguments by name; or the key of the record to delete.
            using: which fetch of the template.
            limit: records of a page.
            cursor: `Page.cursor` of the page before.
            actor: on whose behalf, for the audit: a name of the application's own.
            timeout: seconds. A fetch that no worker has begun by then is dropped.

        Returns:
            A `Response` to a write, a `Page` to a fetch.

        Raises:
            InvalidPayload: and its kin; nothing was sent.
            CallTimeout: no reply in time. A write may still be carried out.
            BrokerUnavailable, BrokerBlocked: RabbitMQ cannot be reached or takes no messages.
            BedsError: what the worker answered.
        """
        deadline = deadline_after(timeout)
        call = Call(operation, template, data, using, limit, cursor, actor)
        event = self.event(call, ticket=False, timeout=timeout)
        return self._reply(self.send(event, deadline), deadline)

    def submit(
        self,
        operation: str,
        template: str,
        data: Any = None,
        *,
        using: str = "",
        limit: int | None = None,
        cursor: str = "",
        actor: str = "",
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Ticket:
        """Hand one operation over and return as soon as RabbitMQ has it safe. The arguments are those of `call`.

        Args:
            idempotency_key: a name of your own for this event. Submitted again with the same key and the same data,
                it gives the same ticket and has one effect.

        Raises:
            InvalidPayload: and its kin; nothing was sent.
            IdempotencyConflict: the key belongs to another event.
            BrokerUnavailable, BrokerBlocked: RabbitMQ did not confirm by the deadline; the event may or may not exist.
        """
        call = Call(operation, template, data, using, limit, cursor, actor)
        if idempotency_key is not None:
            return self._submit_keyed(call, check_name("idempotency_key", idempotency_key, empty=False), timeout)
        (ticket,) = self.submit_many([call], timeout=timeout)
        return ticket

    @overload
    def call_many(
        self, calls: Iterable[Call], *, timeout: float = ..., return_errors: Literal[False] = ...
    ) -> list[Reply]: ...
    @overload
    def call_many(
        self, calls: Iterable[Call], *, timeout: float = ..., return_errors: Literal[True]
    ) -> list[Reply | BedsError]: ...
    def call_many(
        self, calls: Iterable[Call], *, timeout: float = DEFAULT_TIMEOUT, return_errors: bool = False
    ) -> Sequence[Reply | BedsError]:
        """Carry out many operations at once and wait for all replies, in the order of the calls.

        Args:
            calls: what to do. All are checked before the first is sent.
            timeout: seconds for all of them together.
            return_errors: put an operation's error in its place instead of raising the first.
        """
        deadline = deadline_after(timeout)
        events = [self.event(call, ticket=False, timeout=timeout) for call in as_calls(calls)]
        pendings = [self.send(event, deadline) for event in events]
        outcomes: list[Reply | BedsError] = []
        for pending in pendings:
            try:
                outcomes.append(self._reply(pending, deadline))
            except BedsError as error:
                if not return_errors:
                    raise
                outcomes.append(error)
        return outcomes

    def submit_many(self, calls: Iterable[Call], *, timeout: float = DEFAULT_TIMEOUT) -> list[Ticket]:
        """Hand many operations over, with pipelined confirms, and return when RabbitMQ has all of them safe."""
        deadline = deadline_after(timeout)
        events = [self.event(call, ticket=True, timeout=timeout) for call in as_calls(calls)]
        # The acceptance goes first: whoever asks after a ticket later finds it, whether a worker has begun or not.
        acceptances = [
            self._calgon("accept", {"tickets": [event.acceptance for event in some]})
            for some in (events[i : i + TICKETS_AT_ONCE] for i in range(0, len(events), TICKETS_AT_ONCE))
        ]
        pendings = self._confirmed([*acceptances, *events], deadline)[len(acceptances) :]
        return [Ticket(pending.event.lineage.event_id, self, pending) for pending in pendings]

    def _submit_keyed(self, call: Call, key: str, timeout: float) -> Ticket:
        deadline = deadline_after(timeout)
        event = self.event(call, ticket=True, timeout=timeout)
        question = {"tickets": [event.acceptance], "idempotency_key": key, "digest": call.digest}
        known = TicketStatus.from_wire(self.ask("accept", question, timeout=timeout))
        if known.state is not TicketState.PENDING:
            return Ticket(known.event_id, self)
        # New, or its first submitter may have died before it was published: a worker carries one ticket out once.
        if known.guid != event.lineage.guid:
            node, env, guid = known.event_id.split(".")
            event = replace(event, lineage=Lineage(node, env, guid, "", known.event_id, 0))
        (pending,) = self._confirmed([event], deadline)
        return Ticket(known.event_id, self, pending)

    def ticket(self, guid: str) -> Ticket:
        """The ticket of a guid or an event id, whoever submitted it. It is looked up when it is asked something."""
        return Ticket(check_name("guid", guid), self)

    def lineage(self, of: str, *, timeout: float = DEFAULT_TIMEOUT) -> Node:
        """What the request that an event belongs to set off, as a tree from its root.

        Args:
            of: an event's id or guid, or a ticket's guid.
            timeout: seconds.

        Raises:
            NotFound: nothing is known of it.
        """
        deadline = deadline_after(timeout)

        def fetch(using: str, args: Mapping[str, Any], cursor: str) -> Page:
            left = max(0.1, deadline - time.monotonic())
            page = self.call("fetch_records", "msLineage", args, using=using, limit=1000, cursor=cursor, timeout=left)
            assert isinstance(page, Page)
            return page

        return read_tree(fetch, of)

    def ask(self, verb: str, arguments: Mapping[str, Any], *, timeout: float = DEFAULT_TIMEOUT) -> Any:
        """Ask CALGON something about tickets: `accept`, `status` or `cancel`. For `Ticket`, which says it in words.

        A reply can be lost with a connection, so the question is repeated until the deadline.
        """
        deadline = deadline_after(timeout)
        while True:
            remaining = deadline - time.monotonic()
            attempt = min(remaining, ASK_AGAIN_SECONDS)
            expires = datetime.now(UTC) + timedelta(seconds=max(attempt, 0.1))
            pending = self.requester.send(self._calgon(verb, arguments, expires), deadline)
            try:
                return self._wait(pending.reply, pending, time.monotonic() + attempt, "no reply")
            except (CallTimeout, BrokerUnavailable, BrokerBlocked):
                if time.monotonic() >= deadline:
                    raise

    def template(self, name: str) -> BoundTemplate:
        """A handle on one template. Raises UnknownTemplate."""
        return BoundTemplate(self, self.templates[name])

    def close(self) -> None:
        """End the connection. Calls still waiting raise ClientClosed."""
        self.requester.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _calgon(self, verb: str, arguments: Mapping[str, Any], expires: datetime | None = None) -> Event:
        return Event.of_calgon(verb, arguments, self._lineage(), expires=expires)

    def _lineage(self) -> Lineage:
        """Inside a worker a child of the event that it carries out, elsewhere a root."""
        return spawn(self.settings.node.name, self.settings.node.environment)

    def event(self, call: Call, *, ticket: bool, timeout: float) -> Event:
        """Check a call against its template and give it a lineage."""
        if not isinstance(call, Call):
            raise WrongType(f"a call is a beds.Call, not {type(call).__name__}", detail={"field": "calls"})
        operation = parse_operation(call.operation)
        template = self.templates[call.template]
        expires = datetime.now(UTC) + timedelta(seconds=timeout) if operation.is_read and not ticket else None
        made = Event.of_operation(
            template.store,
            operation,
            template.name,
            body_of(template, operation, call),
            self._lineage(),
            ticket=ticket,
            expires=expires,
            actor=check_name("actor", call.actor),
        )
        return sealed(made, self.settings.amqp.max_body_bytes)

    def send(self, event: Event, deadline: float) -> Pending:
        """Publish, and publish again what a lost connection took: a second copy of an event has no second effect.

        Args:
            event: what to send; see `event`.
            deadline: in monotonic seconds.
        """
        while True:
            try:
                return self.requester.send(event, deadline)
            except BrokerUnavailable:
                if time.monotonic() + FIRST_DELAY >= deadline:
                    raise
            time.sleep(FIRST_DELAY)

    def _reply(self, pending: Pending, deadline: float) -> Reply:
        return reply_from_wire(self.answer(pending, deadline))

    def answer(self, pending: Pending, deadline: float) -> Any:
        """What a worker answered to an event, as it came. Where its way was cut, the event is sent again: it has its
        effect once, and is answered each time.

        Args:
            pending: what `send` returned.
            deadline: in monotonic seconds.
        """
        while True:
            try:
                return self._wait(pending.reply, pending, deadline, "no reply")
            except BrokerUnavailable:
                if time.monotonic() >= deadline:
                    raise
            pending = self.send(pending.event, deadline)

    def _confirmed(self, events: Sequence[Event], deadline: float) -> list[Pending]:
        """Publish all events, and wait until RabbitMQ has them safe."""
        pendings = [self.send(event, deadline) for event in events]
        refused: list[tuple[Event, BedsError]] = []
        # From the end: what is wrong with an operation says more than what is wrong with its acceptance.
        for index, pending in reversed(list(enumerate(pendings))):
            while True:
                try:
                    self._wait(pending.confirmed, pending, deadline, "RabbitMQ did not confirm")
                    break
                except (Overloaded, PermissionDenied, Unroutable) as error:
                    refused.append((pending.event, error))
                    break
                except BrokerUnavailable:
                    if time.monotonic() >= deadline:
                        raise
                pending = pendings[index] = self.send(pending.event, deadline)
        if refused:
            raise self._gave_up(refused, deadline)
        return pendings

    def _gave_up(self, refused: Sequence[tuple[Event, BedsError]], deadline: float) -> BedsError:
        """End the tickets of events that RabbitMQ refused: they were accepted, and will never be carried out."""
        _, error = refused[0]
        guids = [event.lineage.guid for event, _ in refused if event.ticket]
        for guid in guids:
            by = "a full queue" if isinstance(error, Overloaded) else f"RabbitMQ ({error.code})"
            self.send(self._calgon("cancel", {"guid": guid, "by": by}), deadline)
        error.detail["refused"] = guids
        return error

    def _wait(self, future: Future[Any], pending: Pending, deadline: float, what: str) -> Any:
        """The future's value; an error that says why there was none by the deadline."""
        try:
            return future.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeout:
            raise self.requester.why_late(pending, what) from None


_default: Client | None = None
_default_lock = threading.Lock()


def default_client() -> Client:
    """The client behind `beds.call` and its kin: made at the first use, from beds.toml of the working folder."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Client()
        return _default

"""The client: publishes events over AMQP and waits for replies. It never touches a database.

import beds
page = beds.call("fetch_records", "Flights", {"origin": "JFK"}, using="by_route", limit=100)
ticket = beds.submit("create_record", "Notices", {"airport": "JFK", "title": "Snow", "status": "open"})
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, overload

from beds.config import Settings, load_settings
from beds.domain.event import Event, Operation
from beds.domain.lineage import Lineage
from beds.domain.reply import Page, Record, Reply, Response, reply_from_wire
from beds.errors import BedsError, BrokerBlocked, BrokerUnavailable, CallTimeout, OutOfRange
from beds.templates.call import Call, body_of, parse_operation
from beds.templates.registry import TemplateRegistry
from beds.templates.template import Template
from beds.transport.requester import Pending, Requester

DEFAULT_TIMEOUT = 10.0
"""Seconds a call waits for its reply, and a submit for its confirmation."""


class Ticket:
    """A submitted event. RabbitMQ has it: it will be carried out even if this process ends now.

    Attributes:
        guid: the Celery task id.
        event_id: `node.env.guid`.
    """

    def __init__(self, pending: Pending, requester: Requester) -> None:
        self._pending = pending
        self._requester = requester

    @property
    def guid(self) -> str:
        return self._pending.event.lineage.guid

    @property
    def event_id(self) -> str:
        return self._pending.event.lineage.event_id

    @property
    def ready(self) -> bool:
        """Whether the outcome is here."""
        return self._pending.reply.done()

    def result(self, timeout: float = DEFAULT_TIMEOUT) -> Reply:
        """The reply, waiting for it for up to `timeout` seconds.

        Raises:
            CallTimeout: it is not there yet; the event may still be carried out.
            BedsError: the operation failed.
        """
        return _reply_of(self._pending, time.monotonic() + timeout, self._requester)

    def __repr__(self) -> str:
        return f"<Ticket {self.guid}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ticket) and other.guid == self.guid

    def __hash__(self) -> int:
        return hash(self.guid)


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
        self._requester = Requester(self.settings.amqp)

    def call(
        self,
        operation: str,
        template: str,
        data: Any = None,
        *,
        using: str = "",
        limit: int | None = None,
        cursor: str = "",
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
            timeout: seconds. A fetch that no worker has begun by then is dropped.

        Returns:
            A `Response` to a write, a `Page` to a fetch.

        Raises:
            InvalidPayload: and its kin; nothing was sent.
            CallTimeout: no reply in time. A write may still be carried out.
            BrokerUnavailable, BrokerBlocked: RabbitMQ cannot be reached or takes no messages.
            BedsError: what the worker answered.
        """
        deadline = _deadline(timeout)
        event = self._event(Call(operation, template, data, using, limit, cursor), ticket=False, timeout=timeout)
        while True:
            pending = self._requester.send(event, deadline)
            try:
                return _reply_of(pending, deadline, self._requester)
            except BrokerUnavailable:
                # The reply's way was cut. Asking again does no harm; writing again might.
                if not event.operation.is_read or time.monotonic() >= deadline:
                    raise

    def submit(
        self,
        operation: str,
        template: str,
        data: Any = None,
        *,
        using: str = "",
        limit: int | None = None,
        cursor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Ticket:
        """Hand one operation over and return as soon as RabbitMQ has it safe. The arguments are those of `call`.

        Raises:
            InvalidPayload: and its kin; nothing was sent.
            BrokerUnavailable, BrokerBlocked: RabbitMQ did not confirm by the deadline; the event may or may not exist.
        """
        (ticket,) = self.submit_many([Call(operation, template, data, using, limit, cursor)], timeout=timeout)
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
        deadline = _deadline(timeout)
        pendings = self._send_all(calls, deadline, ticket=False, timeout=timeout)
        outcomes: list[Reply | BedsError] = []
        for pending in pendings:
            try:
                outcomes.append(_reply_of(pending, deadline, self._requester))
            except BedsError as error:
                if not return_errors:
                    raise
                outcomes.append(error)
        return outcomes

    def submit_many(self, calls: Iterable[Call], *, timeout: float = DEFAULT_TIMEOUT) -> list[Ticket]:
        """Hand many operations over, with pipelined confirms, and return when RabbitMQ has all of them safe."""
        deadline = _deadline(timeout)
        pendings = self._send_all(calls, deadline, ticket=True, timeout=timeout)
        for pending in pendings:
            _wait(pending.confirmed, pending, deadline, self._requester, "RabbitMQ did not confirm")
        return [Ticket(pending, self._requester) for pending in pendings]

    def template(self, name: str) -> BoundTemplate:
        """A handle on one template. Raises UnknownTemplate."""
        return BoundTemplate(self, self.templates[name])

    def close(self) -> None:
        """End the connection. Calls still waiting raise ClientClosed."""
        self._requester.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send_all(self, calls: Iterable[Call], deadline: float, *, ticket: bool, timeout: float) -> list[Pending]:
        events = [self._event(call, ticket=ticket, timeout=timeout) for call in calls]
        return [self._requester.send(event, deadline) for event in events]

    def _event(self, call: Call, *, ticket: bool, timeout: float) -> Event:
        """Check a call against its template and give it a lineage."""
        operation = parse_operation(call.operation)
        template = self.templates[call.template]
        expires = datetime.now(UTC) + timedelta(seconds=timeout) if operation.is_read and not ticket else None
        return Event(
            template.store,
            operation,
            template.name,
            body_of(template, operation, call),
            Lineage.root(self.settings.node.name, self.settings.node.environment),
            ticket=ticket,
            expires=expires,
        )


@dataclass(frozen=True, slots=True)
class BoundTemplate:
    """One template's operations as methods: `client.template("Notices").create_record({...})`."""

    client: Client
    definition: Template

    def create_record(self, payload: Mapping[str, Any], *, timeout: float = DEFAULT_TIMEOUT) -> Response:
        return self._write(Operation.CREATE, payload, timeout)

    def create_records(self, payloads: Sequence[Mapping[str, Any]], *, timeout: float = DEFAULT_TIMEOUT) -> Response:
        return self._write(Operation.CREATE_MANY, payloads, timeout)

    def update_record(self, payload: Mapping[str, Any], *, timeout: float = DEFAULT_TIMEOUT) -> Response:
        return self._write(Operation.UPDATE, payload, timeout)

    def delete_record(self, record_id: Any, *, timeout: float = DEFAULT_TIMEOUT) -> Response:
        return self._write(Operation.DELETE, record_id, timeout)

    def fetch_records(
        self,
        using: str = "",
        args: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        cursor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Page:
        reply = self.client.call(
            Operation.FETCH, self.definition.name, args, using=using, limit=limit, cursor=cursor, timeout=timeout
        )
        assert isinstance(reply, Page)
        return reply

    def fetch_all(
        self, using: str = "", args: Mapping[str, Any] | None = None, *, limit: int | None = None
    ) -> Iterator[Record]:
        """All records of a fetch, page after page; `limit` is the size of a page."""
        cursor = ""
        while True:
            page = self.fetch_records(using, args, limit=limit, cursor=cursor)
            yield from page
            cursor = page.cursor
            if not cursor:
                return

    def _write(self, operation: Operation, data: Any, timeout: float) -> Response:
        reply = self.client.call(operation, self.definition.name, data, timeout=timeout)
        assert isinstance(reply, Response)
        return reply


def _deadline(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= 86_400:
        raise OutOfRange("timeout takes seconds, more than 0 and at most a day", detail={"field": "timeout"})
    return time.monotonic() + timeout


def _reply_of(pending: Pending, deadline: float, requester: Requester) -> Reply:
    return reply_from_wire(_wait(pending.reply, pending, deadline, requester, "no reply"))


def _wait(future: Future[Any], pending: Pending, deadline: float, requester: Requester, what: str) -> Any:
    """The future's value; an error that says why there was none by the deadline."""
    try:
        return future.result(max(0.0, deadline - time.monotonic()))
    except FutureTimeout:
        event = pending.event
        detail = {"guid": event.lineage.guid, "queue": event.queue}
        if requester.blocked:
            raise BrokerBlocked(
                f"RabbitMQ takes no messages: {requester.blocked}", detail=detail, event_id=event.lineage.event_id
            ) from None
        if not pending.confirmed.done():
            raise BrokerUnavailable(
                "RabbitMQ did not confirm the event by the deadline", detail=detail, event_id=event.lineage.event_id
            ) from None
        raise CallTimeout(
            f"{what} to {event.summary} by the deadline",
            detail=detail,
            hint=f"is a worker consuming {event.queue}? "
            + ("" if event.operation.is_read else "The write may still be carried out."),
            event_id=event.lineage.event_id,
        ) from None


_default: Client | None = None
_default_lock = threading.Lock()


def default_client() -> Client:
    """The client behind `beds.call` and its kin: made at the first use, from beds.toml of the working folder."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Client()
        return _default

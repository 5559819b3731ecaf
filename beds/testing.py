"""For unit tests of code that uses BEDS: the real client over a transport in memory. No RabbitMQ and no database.

with memory(Path("schema")) as client:      # also the default client of `beds.call`, `beds.submit`, `beds.aio` …
    client.call("create_record", "Airlines", {"carrier": "ZZ", "name": "Zed"})
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beds.adapters.memory import MemoryAdapter, Stub
from beds.client.client import Client, replace_default_client
from beds.config import Settings
from beds.domain.event import CALGON, Event
from beds.domain.reply import Record, Reply
from beds.domain.ticket import TicketState, TicketStatus
from beds.domain.trace import OK, Trace, tracing
from beds.errors import (
    BedsError,
    CallTimeout,
    ClientClosed,
    IdempotencyConflict,
    InternalError,
    TransportError,
    UnknownTicket,
)
from beds.services.audit import audit_record
from beds.services.changes import ChangeLog, read_changes
from beds.services.dispatch import describe, execute
from beds.templates.registry import TemplateRegistry
from beds.transport.pending import Pending
from beds.wire import codec
from beds.wire.message import with_encoded_body
from beds.wire.reply import encode_error, encode_reply
from beds.wire.routes import ROUTES, Kind

USER = "memory"
"""The AMQP user of all events."""


def _documents(records: Mapping[Any, Record]) -> list[Record]:
    return [records[number] for number in sorted(records)]


CHANGES: Mapping[str, Stub] = {
    "changes_after": lambda records, args: [r for r in _documents(records) if r["number"] >= args["from"]],
    "changes_newest": lambda records, _: _documents(records)[-1:],
    "changes_end": lambda records, _: _documents(records)[-1:],
    "changes_with_entries": lambda records, args: [
        r for r in records.values() if any(entry["id"] in args["ids"] for entry in r["entries"])
    ],
}
"""The fetches of the log of changes, which do more than compare fields."""


class MemoryFactory:
    """Adapters over memory, one per template. Replaces `AdapterFactory`."""

    def __init__(self, registry: TemplateRegistry, stubs: Mapping[str, Stub] | None = None) -> None:
        self.registry = registry
        self._stubs = dict(stubs or {})
        self._adapters: dict[str, MemoryAdapter] = {}

    def adapter(self, template_name: str) -> MemoryAdapter:
        if template_name not in self._adapters:
            self._adapters[template_name] = MemoryAdapter(self.registry[template_name], self._stubs)
        return self._adapters[template_name]


class MemoryTransport:
    """A `Transport` that executes each event before `send` returns, one at a time, and keeps tickets.

    Events are encoded as on the way to RabbitMQ, so the same values are refused.

    Args:
        registry: the templates of the application.
        stubs: functions by object name, for named objects that do more than compare fields. Each is called with the
            template's records by key and the arguments, and returns records.
        max_body_bytes: the largest body allowed.
    """

    def __init__(
        self, registry: TemplateRegistry, stubs: Mapping[str, Stub] | None = None, max_body_bytes: int = 2**20
    ) -> None:
        self._factory = MemoryFactory(registry, {**CHANGES, **(stubs or {})})
        self._changes = ChangeLog(self._factory, ttl_days=1)
        self._max_body_bytes = max_body_bytes
        self._lock = threading.RLock()
        self._tickets: dict[str, TicketStatus] = {}
        self._actors: dict[str, str] = {}
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}
        self._failure: BedsError | None = None
        self._lost: dict[str, BedsError] = {}
        self._closed = False

    @property
    def is_ready(self) -> bool:
        return not self._closed

    def fail_next(self, error: BedsError) -> None:
        """Fail the next operation with this error instead of executing it, to test how the application reacts.

        A `TransportError` fails each attempt to publish it, until the deadline of the call.
        """
        self._failure = error

    def send(self, event: Event, deadline: float) -> Pending:
        if self._closed:
            raise ClientClosed("this client is closed")
        event = with_encoded_body(event, self._max_body_bytes)
        pending = Pending(event)
        _, arguments, _ = codec.loads(event.body)
        with self._lock:
            if isinstance(self._failure, TransportError) and event.queue != CALGON:
                self._lost[event.lineage.guid], self._failure = self._failure, None
            if lost := self._lost.get(event.lineage.guid):
                raise lost
            pending.answer(self._handle(event, arguments))
        return pending

    def send_now(self, event: Event) -> Pending | None:
        return None  # a stub may block

    def why_late(self, pending: Pending, what: str) -> BedsError:
        return CallTimeout(f"{what} to {pending.event.summary} by the deadline")

    def close(self) -> None:
        self._closed = True

    def _handle(self, event: Event, arguments: Any) -> bytes:
        guid, event_id = event.lineage.guid, event.lineage.event_id
        if event.ticket and (known := self._tickets.get(guid)) is not None and known.ready:
            return json.dumps(known.result).encode()  # a ticket is executed once, as by workers
        try:
            value = self._calgon(event, arguments) if event.queue == CALGON else self._execute(event, arguments)
            body, state = encode_reply(guid, value), TicketState.SUCCESS
        except BedsError as error:
            body, state = encode_error(guid, TicketState.FAILURE, error, event_id), TicketState.FAILURE
        except Exception as cause:  # noqa: BLE001 — a stub's; a worker answers the same
            internal = InternalError(f"the worker failed with {type(cause).__name__}")
            body, state = encode_error(guid, TicketState.FAILURE, internal, event_id), TicketState.FAILURE
        if event.ticket and guid not in self._tickets:
            self._accept(event.acceptance)  # it came without one
        if event.ticket and not self._tickets[guid].ready:
            outcome = json.loads(body)
            self._tickets[guid] = replace(
                self._tickets[guid], state=state, ended_at=datetime.now(UTC), result=outcome, worker=USER
            )
        return body

    def _execute(self, event: Event, arguments: Any) -> Reply | dict[str, Any]:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        route = ROUTES[event.task]
        assert route.queue.store is not None
        if route.kind is Kind.DESCRIPTION:
            return describe(self._factory, route.queue.store, arguments).to_wire()
        if route.kind is Kind.CHANGES:
            return read_changes(self._changes, self._factory, route.queue.store, arguments).to_wire()
        assert route.operation is not None
        body = {name: value for name, value in arguments.items() if name != "template"}
        trace = Trace(event.lineage, USER, operation=route.operation, template=arguments["template"], body=body)
        with tracing(trace):
            reply = execute(self._factory, route.queue.store, route.operation, arguments["template"], body, user=USER)
        if not route.operation.is_read:
            template = self._factory.registry[trace.template]
            record = audit_record(trace, route.operation, template, OK, reply, {"user": USER})
            self._changes.append([record | {"at": datetime.fromtimestamp(trace.at, UTC)}])
        return reply

    def _calgon(self, event: Event, arguments: Any) -> Any:
        if event.task != f"{CALGON}.accept":
            return self._known(arguments["guid"], event.actor)  # every ticket has ended: a cancel changes nothing
        (first, *_) = tickets = arguments["tickets"]
        key = arguments.get("idempotency_key")
        if key is not None:
            name = first.get("actor", ""), key
            guid, digest = self._keys.setdefault(name, (first["guid"], arguments["digest"]))
            if digest != arguments["digest"]:
                raise IdempotencyConflict(
                    "this idempotency key belongs to another event", detail={"field": "idempotency_key", "guid": guid}
                )
            if guid != first["guid"]:
                return self._tickets[guid]
        for ticket in tickets:
            self._accept(ticket)
        return self._tickets[first["guid"]] if key is not None else {"accepted": len(tickets)}

    def _accept(self, ticket: Mapping[str, Any]) -> None:
        status = TicketStatus(
            guid=ticket["guid"],
            event_id=ticket["event_id"],
            state=TicketState.PENDING,
            summary=ticket["summary"],
            accepted_at=datetime.now(UTC),
        )
        self._tickets.setdefault(status.guid, status)
        self._actors.setdefault(status.guid, ticket.get("actor", ""))

    def _known(self, guid: str, actor: str) -> TicketStatus:
        if guid not in self._tickets or (actor and self._actors[guid] != actor):
            raise UnknownTicket(f"ticket {guid} was never accepted", detail={"guid": guid})
        return self._tickets[guid]


class MemoryClient(Client):
    """The real client over a `MemoryTransport`: the same checks, errors, tickets and codec.

    Args:
        templates: the templates of the application, or the folder that holds them (`schema/`).
        stubs: as for `MemoryTransport`.
    """

    transport: MemoryTransport

    def __init__(self, templates: TemplateRegistry | Path, stubs: Mapping[str, Stub] | None = None) -> None:
        registry = TemplateRegistry.from_folder(templates) if isinstance(templates, Path) else templates
        settings = Settings()
        transport = MemoryTransport(registry, stubs, settings.amqp.max_body_bytes)
        super().__init__(settings, transport=transport, templates=registry)


@contextlib.contextmanager
def memory(templates: TemplateRegistry | Path, stubs: Mapping[str, Stub] | None = None) -> Iterator[MemoryClient]:
    """Make a `MemoryClient` the default client of `beds` and `beds.aio` in a `with` block, as in a fixture."""
    client = MemoryClient(templates, stubs)
    before = replace_default_client(client)
    try:
        yield client
    finally:
        replace_default_client(before)
        client.close()

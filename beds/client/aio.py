"""The client for asyncio: the same calls, awaited, with thousands in flight on one connection.

    page = await beds.aio.call("fetch_records", "Airports", {"faa": "JFK"}, using="by_faa")

`AsyncClient(client)` is the explicit form. Both clients share the flows of `flows.py`. After a cancelled wait, the
reply is dropped when it arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from beds.client.bound_template import next_cursor
from beds.client.call import Call, JobCall
from beds.client.client import Client, as_page, as_response, check_write, default_client
from beds.client.deadline import DEFAULT_TIMEOUT
from beds.client.flows import FILES, PAGES, REJECTS, Tell, handle_of
from beds.client.lineage import Node
from beds.client.loop import drive
from beds.client.tickets import TicketBase
from beds.domain.change import MAX_CHANGES, Changes
from beds.domain.description import Description
from beds.domain.event import Operation
from beds.domain.reply import Page, Record, Reply, Response
from beds.domain.ticket import TicketStatus
from beds.errors import BedsError
from beds.templates.template import Template
from beds.wire import codec


class AsyncClient:
    """A `Client` with awaitable methods, which `Client` documents. They never block the event loop.

    Any number of tasks and event loops may share one.

    Args:
        client: its connection is used; the default client when absent.
    """

    def __init__(self, client: Client | None = None) -> None:
        self._client = client or default_client()
        self._flows = self._client.flows

    async def call(
        self,
        operation: str,
        template: str,
        data: Any = None,
        *,
        using: str = "",
        limit: int | None = None,
        cursor: str = "",
        actor: str = "",
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Reply:
        """`Client.call`."""
        call = Call(operation, template, data, using, limit, cursor, actor, expected_version)
        return await drive(self._flows.call(call, timeout, idempotency_key), self._flows)

    async def fetch(
        self,
        template: str,
        using: str = "",
        args: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        cursor: str = "",
        actor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Page:
        """`Client.fetch`."""
        return as_page(await self.call(Operation.FETCH, template, args, using=using, limit=limit, cursor=cursor,
                                       actor=actor, timeout=timeout))  # fmt: skip

    async def write(
        self,
        operation: str,
        template: str,
        data: Any,
        *,
        actor: str = "",
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Response:
        """`Client.write`."""
        return as_response(await self.call(check_write(operation), template, data, actor=actor,
                                           expected_version=expected_version, idempotency_key=idempotency_key,
                                           timeout=timeout))  # fmt: skip

    async def submit(
        self,
        operation: str,
        template: str,
        data: Any = None,
        *,
        using: str = "",
        limit: int | None = None,
        cursor: str = "",
        actor: str = "",
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AsyncTicket:
        """`Client.submit`."""
        call = Call(operation, template, data, using, limit, cursor, actor, expected_version)
        return AsyncTicket(await drive(self._flows.submit(call, idempotency_key, timeout), self._flows), self._flows)

    async def submit_job(
        self,
        name: str,
        args: Mapping[str, Any] | None = None,
        /,
        *,
        dry_run: bool = False,
        restore: str = "",
        verify: str = "",
        actor: str = "",
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        **more: Any,
    ) -> AsyncJobTicket:
        """`Client.submit_job`."""
        call = JobCall(name, {**(args or {}), **more}, dry_run, restore, verify, actor)
        handle = await drive(self._flows.submit_job(call, idempotency_key, timeout), self._flows)
        return AsyncJobTicket(handle, self._flows)

    def job(self, guid: str, *, actor: str = "") -> AsyncJobTicket:
        """`Client.job`."""
        return AsyncJobTicket(handle_of(guid, actor), self._flows)

    async def call_many(
        self, calls: Iterable[Call], *, timeout: float = DEFAULT_TIMEOUT, return_errors: bool = False
    ) -> Sequence[Reply | BedsError]:
        """`Client.call_many`."""
        return await drive(self._flows.call_many(calls, timeout, return_errors=return_errors), self._flows)

    async def submit_many(self, calls: Iterable[Call], *, timeout: float = DEFAULT_TIMEOUT) -> list[AsyncTicket]:
        """`Client.submit_many`."""
        handles = await drive(self._flows.submit_many(calls, timeout), self._flows)
        return [AsyncTicket(handle, self._flows) for handle in handles]

    def ticket(self, guid: str | TicketBase, *, actor: str = "") -> AsyncTicket:
        """`Client.ticket`; also converts a ticket that the blocking client submitted."""
        handle = guid._handle if isinstance(guid, TicketBase) else handle_of(guid, actor)
        return AsyncTicket(handle, self._flows)

    def close(self) -> None:
        """`Client.close`: the connection is the client's, and ends for both."""
        self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await asyncio.to_thread(self.close)

    async def describe(self, template: str, *, timeout: float = DEFAULT_TIMEOUT) -> Description:
        """`Client.describe`."""
        return await drive(self._flows.describe(template, timeout), self._flows)

    async def changes(
        self, template: str, after: str = "", *, limit: int = MAX_CHANGES, timeout: float = DEFAULT_TIMEOUT
    ) -> Changes:
        """`Client.changes`."""
        return await drive(self._flows.changes(template, after, limit, timeout), self._flows)

    async def lineage(self, of: str, *, actor: str = "", timeout: float = DEFAULT_TIMEOUT) -> Node:
        """`Client.lineage`."""
        return await drive(self._flows.lineage(of, timeout, actor), self._flows)

    async def ask(self, verb: str, arguments: Mapping[str, Any], *, timeout: float = DEFAULT_TIMEOUT) -> Any:
        """`Client.ask`."""
        return await drive(self._flows.ask(verb, arguments, timeout), self._flows)

    def template(self, name: str) -> AsyncBoundTemplate:
        """`Client.template`."""
        return AsyncBoundTemplate(self, self._client.templates[name])


class AsyncTicket(TicketBase):
    """A `Ticket` with awaitable methods, which `Ticket` documents. A pickled one uses the default client."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return ticket, (self.event_id,)

    async def status(self, timeout: float = DEFAULT_TIMEOUT) -> TicketStatus:
        """`Ticket.status`."""
        return await drive(self._flows.status(self.guid, timeout, self._handle.actor), self._flows)

    async def result(self, timeout: float = DEFAULT_TIMEOUT) -> Reply:
        """`Ticket.result`."""
        return await drive(self._flows.result(self._handle, timeout), self._flows)

    async def wait(self, timeout: float = DEFAULT_TIMEOUT, tell: Tell | None = None) -> TicketStatus:
        """`Ticket.wait`."""
        return await drive(self._flows.wait(self._handle, timeout, tell), self._flows)

    async def cancel(self, timeout: float = DEFAULT_TIMEOUT, *, by: str = "") -> TicketStatus:
        """`Ticket.cancel`."""
        return await drive(self._cancel(by, timeout), self._flows)


class AsyncJobTicket(AsyncTicket):
    """A `JobTicket` with awaitable methods, which `JobTicket` documents."""

    __slots__ = ()

    async def pause(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """`JobTicket.pause`."""
        return await drive(self._flows.job_order("pause", self._handle, timeout), self._flows)

    async def resume(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """`JobTicket.resume`."""
        return await drive(self._flows.job_order("resume", self._handle, timeout), self._flows)

    async def report(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """`JobTicket.report`."""
        return await drive(self._flows.job_report(self._handle, timeout), self._flows)

    async def rejects(self, timeout: float = DEFAULT_TIMEOUT) -> AsyncIterator[Record]:
        """`JobTicket.rejects`."""
        async for record in self._records(REJECTS, timeout):
            yield record

    async def pages(self, timeout: float = DEFAULT_TIMEOUT) -> AsyncIterator[list[Record]]:
        """`JobTicket.pages`."""
        async for record in self._records(PAGES, timeout):
            yield codec.loads(record["records"])

    async def files(self, timeout: float = DEFAULT_TIMEOUT) -> AsyncIterator[Record]:
        """`JobTicket.files`."""
        async for record in self._records(FILES, timeout):
            yield record

    async def _records(self, template: str, timeout: float) -> AsyncIterator[Record]:
        cursor = ""
        while True:
            page = await drive(self._flows.job_records(self._handle, template, cursor, timeout), self._flows)
            for record in page:
                yield record
            if not (cursor := page.cursor):
                return


@dataclass(frozen=True, slots=True)
class AsyncBoundTemplate:
    """A `BoundTemplate` with awaitable methods, which `BoundTemplate` documents."""

    client: AsyncClient
    definition: Template

    async def create_record(
        self, payload: Mapping[str, Any], *, idempotency_key: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Response:
        """`BoundTemplate.create_record`."""
        return await self._write(Operation.CREATE, payload, idempotency_key, timeout)

    async def create_records(
        self,
        payloads: Sequence[Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Response:
        """`BoundTemplate.create_records`."""
        return await self._write(Operation.CREATE_MANY, payloads, idempotency_key, timeout)

    async def update_record(
        self,
        payload: Mapping[str, Any],
        *,
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Response:
        """`BoundTemplate.update_record`."""
        return await self._write(Operation.UPDATE, payload, idempotency_key, timeout, expected_version)

    async def delete_record(
        self,
        record_id: Any,
        *,
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Response:
        """`BoundTemplate.delete_record`."""
        return await self._write(Operation.DELETE, record_id, idempotency_key, timeout, expected_version)

    async def _write(
        self, operation: Operation, data: Any, key: str | None, timeout: float, expected_version: Any = None
    ) -> Response:
        return await self.client.write(operation, self.definition.name, data, expected_version=expected_version,
                                       idempotency_key=key, timeout=timeout)  # fmt: skip

    async def fetch_records(
        self,
        using: str = "",
        args: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        cursor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Page:
        """`BoundTemplate.fetch_records`."""
        return await self.client.fetch(self.definition.name, using, args, limit=limit, cursor=cursor, timeout=timeout)

    async def fetch_all(
        self, using: str = "", args: Mapping[str, Any] | None = None, *, limit: int | None = None
    ) -> AsyncIterator[Record]:
        """`BoundTemplate.fetch_all`."""
        cursor = ""
        while True:
            page = await self.fetch_records(using, args, limit=limit, cursor=cursor)
            for record in page:
                yield record
            if not (cursor := next_cursor(self.definition, using, cursor, page)):
                return


async def call(operation: str, template: str, data: Any = None, **options: Any) -> Reply:
    """`AsyncClient.call` over the default client."""
    return await AsyncClient().call(operation, template, data, **options)


async def fetch(template: str, using: str = "", args: Mapping[str, Any] | None = None, **options: Any) -> Page:
    """`AsyncClient.fetch` over the default client."""
    return await AsyncClient().fetch(template, using, args, **options)


async def write(operation: str, template: str, data: Any, **options: Any) -> Response:
    """`AsyncClient.write` over the default client."""
    return await AsyncClient().write(operation, template, data, **options)


async def submit(operation: str, template: str, data: Any = None, **options: Any) -> AsyncTicket:
    """`AsyncClient.submit` over the default client."""
    return await AsyncClient().submit(operation, template, data, **options)


async def submit_job(name: str, args: Mapping[str, Any] | None = None, /, **options: Any) -> AsyncJobTicket:
    """`AsyncClient.submit_job` over the default client."""
    return await AsyncClient().submit_job(name, args, **options)


def job(guid: str, **options: Any) -> AsyncJobTicket:
    """`AsyncClient.job` over the default client."""
    return AsyncClient().job(guid, **options)


async def call_many(calls: Iterable[Call], **options: Any) -> Sequence[Reply | BedsError]:
    """`AsyncClient.call_many` over the default client."""
    return await AsyncClient().call_many(calls, **options)


async def submit_many(calls: Iterable[Call], **options: Any) -> list[AsyncTicket]:
    """`AsyncClient.submit_many` over the default client."""
    return await AsyncClient().submit_many(calls, **options)


async def describe(template: str, **options: Any) -> Description:
    """`AsyncClient.describe` over the default client."""
    return await AsyncClient().describe(template, **options)


async def changes(template: str, after: str = "", **options: Any) -> Changes:
    """`AsyncClient.changes` over the default client."""
    return await AsyncClient().changes(template, after, **options)


async def lineage(of: str, **options: Any) -> Node:
    """`AsyncClient.lineage` over the default client."""
    return await AsyncClient().lineage(of, **options)


def ticket(guid: str | TicketBase, **options: Any) -> AsyncTicket:
    """`AsyncClient.ticket` over the default client."""
    return AsyncClient().ticket(guid, **options)


def template(name: str) -> AsyncBoundTemplate:
    """`AsyncClient.template` over the default client."""
    return AsyncClient().template(name)

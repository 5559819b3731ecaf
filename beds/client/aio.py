"""The client for asyncio: the same calls, awaited, with thousands in flight on one connection.

    page = await beds.aio.call("fetch_records", "Airports", {"faa": "JFK"}, using="by_faa")

`AsyncClient(client)` is the explicit form. Both clients share the flows of `flows.py`. After a cancelled wait, the
reply is dropped when it arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from beds.client.bound_template import next_cursor
from beds.client.call import Call, JobCall, check_name
from beds.client.client import Client, as_page, as_response, check_write, default_client
from beds.client.deadline import DEFAULT_TIMEOUT
from beds.client.flows import FILES, PAGES, REJECTS, Flows, Handle, Tell
from beds.client.lineage import Node
from beds.client.steps import Await, Flow, Pause, Returned, Send, Step, advance
from beds.client.tickets import TicketBase
from beds.domain.description import Description
from beds.domain.event import Operation
from beds.domain.reply import Page, Record, Reply, Response
from beds.domain.ticket import TicketStatus
from beds.errors import BedsError
from beds.templates.template import Template
from beds.transport.pending import Pending, Transport
from beds.wire import codec

T = TypeVar("T")


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
        return await _drive(self._flows.call(call, timeout, idempotency_key), self._flows)

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
        return AsyncTicket(await _drive(self._flows.submit(call, idempotency_key, timeout), self._flows), self._flows)

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
        handle = await _drive(self._flows.submit_job(call, idempotency_key, timeout), self._flows)
        return AsyncJobTicket(handle, self._flows)

    def job(self, guid: str) -> AsyncJobTicket:
        """`Client.job`."""
        return AsyncJobTicket(Handle(check_name("guid", guid)), self._flows)

    async def call_many(
        self, calls: Iterable[Call], *, timeout: float = DEFAULT_TIMEOUT, return_errors: bool = False
    ) -> Sequence[Reply | BedsError]:
        """`Client.call_many`."""
        return await _drive(self._flows.call_many(calls, timeout, return_errors=return_errors), self._flows)

    async def submit_many(self, calls: Iterable[Call], *, timeout: float = DEFAULT_TIMEOUT) -> list[AsyncTicket]:
        """`Client.submit_many`."""
        handles = await _drive(self._flows.submit_many(calls, timeout), self._flows)
        return [AsyncTicket(handle, self._flows) for handle in handles]

    def ticket(self, guid: str | TicketBase) -> AsyncTicket:
        """`Client.ticket`; also converts a ticket that the blocking client submitted."""
        handle = guid._handle if isinstance(guid, TicketBase) else Handle(check_name("guid", guid))
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
        return await _drive(self._flows.describe(template, timeout), self._flows)

    async def lineage(self, of: str, *, timeout: float = DEFAULT_TIMEOUT) -> Node:
        """`Client.lineage`."""
        return await _drive(self._flows.lineage(of, timeout), self._flows)

    async def ask(self, verb: str, arguments: Mapping[str, Any], *, timeout: float = DEFAULT_TIMEOUT) -> Any:
        """`Client.ask`."""
        return await _drive(self._flows.ask(verb, arguments, timeout), self._flows)

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
        return await _drive(self._flows.status(self.guid, timeout), self._flows)

    async def result(self, timeout: float = DEFAULT_TIMEOUT) -> Reply:
        """`Ticket.result`."""
        return await _drive(self._flows.result(self._handle, timeout), self._flows)

    async def wait(self, timeout: float = DEFAULT_TIMEOUT, tell: Tell | None = None) -> TicketStatus:
        """`Ticket.wait`."""
        return await _drive(self._flows.wait(self._handle, timeout, tell), self._flows)

    async def cancel(self, timeout: float = DEFAULT_TIMEOUT, *, by: str = "") -> TicketStatus:
        """`Ticket.cancel`."""
        return await _drive(self._cancel(by, timeout), self._flows)


class AsyncJobTicket(AsyncTicket):
    """A `JobTicket` with awaitable methods, which `JobTicket` documents."""

    __slots__ = ()

    async def pause(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """`JobTicket.pause`."""
        return await _drive(self._flows.job_order("pause", self.guid, timeout), self._flows)

    async def resume(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """`JobTicket.resume`."""
        return await _drive(self._flows.job_order("resume", self.guid, timeout), self._flows)

    async def report(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """`JobTicket.report`."""
        return await _drive(self._flows.job_report(self.guid, timeout), self._flows)

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
            page = await _drive(self._flows.job_records(self.guid, template, cursor, timeout), self._flows)
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


async def _drive(flow: Flow[T], flows: Flows) -> T:
    """Run a flow on this event loop."""
    given: Any = None
    failed: Exception | None = None
    while True:
        step = advance(flow, given, failed)
        if isinstance(step, Returned):
            return step.value
        given = failed = None
        try:
            given = await _awaited(step, flows.transport)
        except Exception as error:  # noqa: BLE001 — the flow handles it
            failed = error


async def _awaited(step: Step, transport: Transport) -> Any:
    match step:
        case Send(event, deadline):
            # In a thread, because `send` may block: on connecting, on a resource alarm, or on a full socket buffer.
            sending = _sender(transport).submit(transport.send, event, deadline)
            try:
                return await _value(sending, deadline)
            except TimeoutError:
                sending.cancel()
                raise transport.why_late(Pending(event), "RabbitMQ did not confirm") from None
            except BaseException:
                sending.cancel()  # the caller has gone: what is not sent yet must not be
                raise
        case Await(future, deadline):
            return await _value(future, deadline)
        case Pause(seconds):
            await asyncio.sleep(seconds)
            return None


async def _value(future: Future[T], deadline: float) -> T:
    """The future's value. A timeout does not cancel the future, because a caller may wait for it again."""
    if not future.done():
        done = _done(future)
        await asyncio.wait([done], timeout=max(0.0, deadline - time.monotonic()))
    return future.result(0)


_bridges: weakref.WeakKeyDictionary[Future[Any], asyncio.Future[None]] = weakref.WeakKeyDictionary()


def _done(future: Future[Any]) -> asyncio.Future[None]:
    """A future of this event loop that ends with `future`; one for all waits, so that repeated waits leave nothing."""
    loop = asyncio.get_running_loop()
    done = _bridges.get(future)
    if done is not None and done.get_loop() is loop:
        return done
    done = _bridges[future] = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def wake(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no task waits
            loop.call_soon_threadsafe(finish)

    future.add_done_callback(wake)
    return done


_senders: weakref.WeakKeyDictionary[Transport, tuple[int, ThreadPoolExecutor]] = weakref.WeakKeyDictionary()
_senders_lock = threading.Lock()
os.register_at_fork(before=_senders_lock.acquire, after_in_parent=_senders_lock.release,
                    after_in_child=_senders_lock.release)  # fmt: skip


def _sender(transport: Transport) -> ThreadPoolExecutor:
    """The one-thread executor of this process that publishes over a transport, in the order of the calls."""
    with _senders_lock:
        pid, found = _senders.get(transport, (0, None))
        if found is None or pid != os.getpid():
            found = ThreadPoolExecutor(max_workers=1, thread_name_prefix="beds-aio-send")
            _senders[transport] = os.getpid(), found
        return found


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


def job(guid: str) -> AsyncJobTicket:
    """`AsyncClient.job` over the default client."""
    return AsyncClient().job(guid)


async def call_many(calls: Iterable[Call], **options: Any) -> Sequence[Reply | BedsError]:
    """`AsyncClient.call_many` over the default client."""
    return await AsyncClient().call_many(calls, **options)


async def submit_many(calls: Iterable[Call], **options: Any) -> list[AsyncTicket]:
    """`AsyncClient.submit_many` over the default client."""
    return await AsyncClient().submit_many(calls, **options)


async def describe(template: str, **options: Any) -> Description:
    """`AsyncClient.describe` over the default client."""
    return await AsyncClient().describe(template, **options)


async def lineage(of: str, **options: Any) -> Node:
    """`AsyncClient.lineage` over the default client."""
    return await AsyncClient().lineage(of, **options)


def ticket(guid: str | TicketBase) -> AsyncTicket:
    """`AsyncClient.ticket` over the default client."""
    return AsyncClient().ticket(guid)


def template(name: str) -> AsyncBoundTemplate:
    """`AsyncClient.template` over the default client."""
    return AsyncClient().template(name)

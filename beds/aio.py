"""The client for asyncio: the same calls, awaited, thousands of them in flight on one connection.

    page = await beds.aio.call("fetch_records", "Airports", {"faa": "JFK"}, using="by_faa")

`AsyncClient(client)` is the explicit form. A cancelled wait leaves nothing behind: its reply is dropped when it comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from beds.client import Client, default_client
from beds.domain.event import Event
from beds.domain.reply import Reply, reply_from_wire
from beds.domain.ticket import TicketStatus
from beds.errors import BrokerUnavailable
from beds.templates.call import Call
from beds.tickets import DEFAULT_TIMEOUT, Ticket, deadline_after
from beds.transport.requester import Pending, read_reply

T = TypeVar("T")


class AsyncClient:
    """A `Client`, awaited. Any number of tasks and event loops may share one.

    Args:
        client: whose connection is used; the default client when absent.
    """

    def __init__(self, client: Client | None = None) -> None:
        self._client = client or default_client()

    async def call(
        self, operation: str, template: str, data: Any = None, *, timeout: float = DEFAULT_TIMEOUT, **options: Any
    ) -> Reply:
        """`Client.call`."""
        deadline = deadline_after(timeout)
        event = self._client.event(Call(operation, template, data, **options), ticket=False, timeout=timeout)
        while True:
            pending = await self._send(event, deadline)
            try:
                return reply_from_wire(await self._wait(pending.reply, pending, deadline))
            except BrokerUnavailable:
                if time.monotonic() >= deadline:
                    raise

    async def submit(self, operation: str, template: str, data: Any = None, **options: Any) -> Ticket:
        """`Client.submit`. The ticket's own methods block; `wait` and `result` of this class do not."""
        return await asyncio.to_thread(self._client.submit, operation, template, data, **options)

    async def status(self, ticket: Ticket | str, timeout: float = DEFAULT_TIMEOUT) -> TicketStatus:
        """`Ticket.status`."""
        return await asyncio.to_thread(self._ticket(ticket).status, timeout)

    async def cancel(self, ticket: Ticket | str, timeout: float = DEFAULT_TIMEOUT, *, by: str = "") -> TicketStatus:
        """`Ticket.cancel`."""
        return await asyncio.to_thread(self._ticket(ticket).cancel, timeout, by=by)

    async def wait(
        self,
        ticket: Ticket | str,
        timeout: float = DEFAULT_TIMEOUT,
        tell: Callable[[TicketStatus], None] | None = None,
    ) -> TicketStatus:
        """`Ticket.wait`."""
        found = self._ticket(ticket)
        deadline = deadline_after(timeout)
        pauses = found.pauses(deadline)
        while True:
            status = await self.status(found, max(0.1, deadline - time.monotonic()))
            if tell:
                tell(status)
            if status.ready:
                return status
            await asyncio.sleep(next(pauses))

    async def result(self, ticket: Ticket | str, timeout: float = DEFAULT_TIMEOUT) -> Reply:
        """`Ticket.result`."""
        return reply_from_wire(read_reply((await self.wait(ticket, timeout)).result))

    def _ticket(self, ticket: Ticket | str) -> Ticket:
        return ticket if isinstance(ticket, Ticket) else self._client.ticket(ticket)

    async def _send(self, event: Event, deadline: float) -> Pending:
        requester = self._client.requester
        if requester.is_ready:
            return requester.send(event, deadline)
        # Connecting, or waiting for an alarm to end, would stop the event loop.
        return await asyncio.to_thread(requester.send, event, deadline)

    async def _wait(self, future: Future[T], pending: Pending, deadline: float) -> T:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise self._client.requester.why_late(pending, "no reply") from None


async def call(operation: str, template: str, data: Any = None, **options: Any) -> Reply:
    """`AsyncClient.call` over the default client."""
    return await AsyncClient().call(operation, template, data, **options)


async def submit(operation: str, template: str, data: Any = None, **options: Any) -> Ticket:
    """`AsyncClient.submit` over the default client."""
    return await AsyncClient().submit(operation, template, data, **options)


async def result(ticket: Ticket | str, timeout: float = DEFAULT_TIMEOUT) -> Reply:
    """`AsyncClient.result` over the default client."""
    return await AsyncClient().result(ticket, timeout)

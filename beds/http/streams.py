"""Server-sent events, and those of a ticket until it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from beds.client.flows import Handle
from beds.domain.ticket import TicketStatus
from beds.errors import BedsError, TicketError
from beds.http.feeds import LONGEST_SECONDS
from beds.http.node import Node
from beds.http.problems import Problem
from beds.http.representations import ticket_json
from beds.http.requests import Asked
from beds.http.values import encode

EVENTS = "text/event-stream"
POLL_SECONDS = 0.25, 2.0
"""First and longest pause between two polls of a ticket; each change starts again at the first."""
BEAT_SECONDS = 15.0
"""A comment is sent after this time without an event, so that proxies keep the connection."""


async def statuses_of(node: Node, handle: Handle, status: TicketStatus) -> AsyncIterator[TicketStatus]:
    """Each status that differs from the one before, from `status` on, until the ticket has ended.

    The state is polled, so a reader that reconnects, on this node or another, misses no final state.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + LONGEST_SECONDS
    yield status
    first, longest = POLL_SECONDS
    pause = first
    while not status.ready and loop.time() < end:
        await asyncio.sleep(pause)
        try:
            found = await node.run(node.flows.status(handle.guid, node.http.timeout, handle.actor))
        except TicketError:
            return
        except BedsError as error:
            if not error.retryable:
                raise
            pause = longest  # RabbitMQ or the ticket store is away
            continue
        pause = min(pause * 1.5, longest)
        if version_of(found) != version_of(status):
            status, pause = found, first
            yield status


def version_of(status: TicketStatus) -> str:
    """Changes with the status; the id of its event in a stream."""
    progress = status.progress
    return (
        f"{status.state}-{progress.done if progress else ''}-{progress.note if progress else ''}-{status.cancelled_by}"
    )


async def events_of_ticket(
    node: Node, handle: Handle, status: TicketStatus, seen: str | None
) -> AsyncGenerator[tuple[str, str, Any], None]:
    """Name, id and data of each event of a ticket's stream.

    Args:
        node, handle: of the ticket.
        status: the current one.
        seen: the id of the last event that the reader has; that state is not sent again.
    """
    async for found in statuses_of(node, handle, status):
        version = version_of(found)
        if version != seen:
            yield ("ended" if found.ready else "status"), version, ticket_json(found)


class EventStream(StreamingResponse):
    """A response of server-sent events. It lasts long and works little, so it counts as no request at work."""

    def __init__(self, content: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        headers = {**headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        self._content = content
        self._ends = asyncio.Event()
        super().__init__(self._until_end(), headers=headers, media_type=EVENTS)

    def end(self) -> None:
        """End the stream: the node stops, and the client connects to another one."""
        self._ends.set()

    async def _until_end(self) -> AsyncGenerator[bytes, None]:
        ending = asyncio.ensure_future(self._ends.wait())
        upcoming = asyncio.ensure_future(anext(self._content, None))
        try:
            while True:
                await asyncio.wait([upcoming, ending], return_when=asyncio.FIRST_COMPLETED)
                if not upcoming.done() or (part := upcoming.result()) is None:
                    return
                yield part
                upcoming = asyncio.ensure_future(anext(self._content, None))
        finally:
            ending.cancel()
            upcoming.cancel()
            await asyncio.wait([upcoming])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._content):  # also if the client goes while something is sent
            if scope["method"] == "HEAD":
                await Response(None, headers=dict(self.headers))(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)


def sent_events(
    asked: Asked, events: AsyncGenerator[tuple[str, str, Any], None], verify: Callable[[], Awaitable[object]]
) -> EventStream:
    """The stream of these events: their names, ids and data.

    Args:
        asked, events: of the request.
        verify: called every `BEAT_SECONDS`; its Problem ends the stream.
    """
    return EventStream(_with_beats(events, verify), asked.headers)


async def _with_beats(
    events: AsyncGenerator[tuple[str, str, Any], None], verify: Callable[[], Awaitable[object]]
) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    upcoming = asyncio.ensure_future(anext(events, None))
    verified_at = loop.time()
    try:
        while True:
            done, _ = await asyncio.wait([upcoming], timeout=BEAT_SECONDS)
            if loop.time() >= verified_at + BEAT_SECONDS:
                try:
                    await verify()
                except Problem:
                    return
                verified_at = loop.time()
            if not done:
                yield b": beat\n\n"
                continue
            if (event := upcoming.result()) is None:
                return
            name, number, data = event
            yield f"event: {name}\nid: {number}\ndata: ".encode() + encode(data) + b"\n\n"
            upcoming = asyncio.ensure_future(anext(events, None))
    finally:
        upcoming.cancel()
        await asyncio.wait([upcoming])
        await events.aclose()

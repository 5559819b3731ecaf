"""`/v1/ws`: calls, tickets and subscriptions over one WebSocket connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from beds.client.flows import Handle
from beds.domain.change import FROM_NOW
from beds.domain.ticket import TicketStatus
from beds.errors import BedsError
from beds.http.access import Caller
from beds.http.changes import change_json, check_may_follow
from beds.http.node import Node
from beds.http.operations import call_of, status_of
from beds.http.problems import Problem, body_of, problem_of
from beds.http.representations import result_json, ticket_json
from beds.http.streams import statuses_of
from beds.http.values import encode, read_json
from beds.templates.json_schema import LARGEST

PROTOCOL = "beds"
TOKEN = "bearer."
"""A browser cannot send Authorization, so it names the token as a second protocol: `beds, bearer.TOKEN`."""
IN_FLIGHT = 64
"""Calls at work of one connection; further messages stay unread until one has ended."""
SUBSCRIPTIONS = 1000
UNREAD_BYTES = 4 * 1024 * 1024
"""Messages that may wait for a slow reader, before the connection is closed."""
ROOM_BYTES = UNREAD_BYTES // 2
"""Beyond this, changes wait in the log."""
DRAIN_SECONDS = 15.0
"""Time for calls at work to end when the node stops."""
CHECK_SECONDS = 60.0
"""Interval at which the token is verified again."""
ID_CHARACTERS = 100
UNAUTHORIZED, TRY_AGAIN, RESTART = 4401, 1013, 1012
_REFUSALS = {400: 4400, 401: UNAUTHORIZED, 403: 4403, 404: 4404}
"""Codes of closed connections that no repetition opens, by the status of the problem."""

logger = logging.getLogger("beds.http")


def authorization_of(websocket: WebSocket) -> str | None:
    """The header `Authorization`, or a token among the protocols."""
    if header := websocket.headers.get("authorization"):
        return header
    for protocol in websocket.scope.get("subprotocols", ()):
        if protocol.startswith(TOKEN):
            return f"Bearer {protocol.removeprefix(TOKEN)}"
    return None


class Conversation:
    """One connection of a known caller.

    Args:
        node, websocket, caller: of the connection.
        authorization: with which it was opened.
    """

    def __init__(self, node: Node, websocket: WebSocket, caller: Caller, authorization: str) -> None:
        self._node = node
        self._websocket = websocket
        self._caller = caller
        self._authorization = authorization
        self._room = asyncio.Semaphore(min(IN_FLIGHT, caller.limits.concurrency))
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: dict[str, asyncio.Task[None]] = {}
        self._unread: asyncio.Queue[bytes] = asyncio.Queue()
        self._unread_bytes = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._ends = asyncio.Event()
        self._code, self._reason = RESTART, "the node stops"

    async def run(self) -> None:
        """Serve the connection until it ends."""
        await self._websocket.accept(protocol_of(self._websocket))
        self._node.metrics.sockets.inc()
        parts = [asyncio.create_task(part()) for part in (self._read, self._write, self._verify)]
        parts.append(asyncio.create_task(self._wait_end()))
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._node.metrics.sockets.dec()
            tasks = [*parts, *self._tasks, *self._subscriptions.values()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if self._unread.qsize() and self._code == RESTART:
                with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError, TimeoutError):
                    async with asyncio.timeout(2):
                        while self._unread.qsize():
                            await self._websocket.send_text(self._unread.get_nowait().decode())
            if self._ends.is_set() and self._websocket.application_state is not WebSocketState.DISCONNECTED:
                with contextlib.suppress(RuntimeError, OSError, TimeoutError):
                    async with asyncio.timeout(2):
                        await self._websocket.close(self._code, self._reason)

    def end(self, code: int = RESTART, reason: str = "the node stops") -> None:
        """Close the connection. The code says whether to connect again, and where."""
        if not self._ends.is_set():
            self._code, self._reason = code, reason
            self._ends.set()

    async def _wait_end(self) -> None:
        """Wait for the end; at a restart, also for the calls at work, whose outcome their clients need."""
        await self._ends.wait()
        if self._code == RESTART and self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)

    async def _verify(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._node.sign_in.caller(self._authorization)
            except Problem:
                return self.end(UNAUTHORIZED, "the token has ended")

    async def _read(self) -> None:
        while True:
            await self._room.acquire()  # nothing is read meanwhile, so a client that floods is slowed
            if self._ends.is_set():
                await asyncio.Future()  # until this task is cancelled: new calls are for another node
            try:
                message = await self._websocket.receive()
            except (WebSocketDisconnect, RuntimeError):
                return
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            task = asyncio.create_task(self._handle(text if text is not None else message.get("bytes") or b""))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    async def _write(self) -> None:
        while True:
            data = await self._unread.get()
            try:
                await self._websocket.send_text(data.decode())
            except (WebSocketDisconnect, RuntimeError, OSError):
                return
            self._unread_bytes -= len(data)
            if self._unread_bytes < ROOM_BYTES:
                self._has_room.set()

    def _put(self, number: Any, status: int, body: Any, event: str = "") -> None:
        data = encode({"id": number, **({"event": event} if event else {}), "status": status, "body": body})
        self._unread_bytes += len(data)
        if self._unread_bytes >= ROOM_BYTES:
            self._has_room.clear()
        if self._unread_bytes > UNREAD_BYTES:
            self.end(TRY_AGAIN, "replies are read too slowly")
        else:
            self._unread.put_nowait(data)

    async def _handle(self, text: str | bytes) -> None:
        number: Any = None
        is_write = False
        try:
            message = read_json(text.encode(errors="replace") if isinstance(text, str) else text)
            if not isinstance(message, dict):
                raise Problem(422, "wrong_type", "A message is an object.")
            number = message.pop("id", None)
            if not _is_id(number):
                number = None
                raise Problem(422, "missing_field", "A message has an id, a number or a text.", field="id")
            operation = message.pop("op", "call")
            is_write = operation == "call" and message.get("operation") not in (None, *self._reads(message))
            async with self._node.limits.awaited(self._caller, self._node.http.timeout):
                await self._execute(number, operation, message)
        except Problem as refusal:
            self._put(number, refusal.status, body_of(refusal))
        except BedsError as error:
            problem, event_id = problem_of(error, is_write=is_write)
            self._put(number, problem.status, body_of(problem, event_id))
        except Exception:
            logger.exception("a message failed")  # and the connection goes on
            self._put(number, 500, body_of(Problem(500, "internal", "This is a fault of the service.")))

    def _reads(self, message: Mapping[str, Any]) -> tuple[str, ...]:
        name = message.get("template")
        known = isinstance(name, str) and name in self._node.templates
        return tuple(self._node.templates[str(name)].fetch) if known else ()

    async def _execute(self, number: str | int, operation: Any, message: dict[str, Any]) -> None:
        node, flows, timeout = self._node, self._node.flows, self._node.http.timeout
        match operation:
            case "call" | "submit":
                key = message.pop("idempotency_key", None)
                call = await call_of(node, self._caller, message)
                if operation == "submit":
                    ticket = await node.run(flows.submit(call, key, timeout))
                    return self._put(number, 202, {"ticket": ticket.guid, "event_id": ticket.event_id})
                return self._put(number, status_of(call), result_json(await node.reply(call, key)))
            case "subscribe" if "changes" in message:
                return await self._subscribe_to_changes(number, message)
            case "cancel" | "status" | "subscribe":
                guid = message.get("ticket")
                handle = node.handle(guid if isinstance(guid, str) else "", self._caller.actor)
                if operation == "cancel":
                    status = await node.run(flows.cancel(handle.guid, self._caller.actor, timeout, handle.actor))
                    return self._put(number, 200, ticket_json(status))
                status = await node.run(flows.status(handle.guid, timeout, handle.actor))
                if operation == "status":
                    return self._put(number, 200, ticket_json(status))
                return self._subscribe_to_ticket(number, handle, status)
            case "unsubscribe":
                found = self._subscriptions.pop(str(message.get("subscription")), None)
                if found:
                    found.cancel()
                return self._put(number, 200, {"unsubscribed": found is not None})
        known = "call, submit, status, subscribe, unsubscribe, cancel"
        raise Problem(422, "unknown_operation", f"op takes one of: {known}.", field="op")

    def _subscribe_to_ticket(self, number: str | int, handle: Handle, status: TicketStatus) -> None:
        """Send each change of a ticket under the message's id, from the current state on."""

        async def follow() -> None:
            last = status
            async for last in statuses_of(self._node, handle, status):
                self._put(number, 200, ticket_json(last), "ended" if last.ready else "status")
            if not last.ready:
                raise _subscription_ended()

        self._subscribe(number, {"subscribed": handle.guid}, follow)

    async def _subscribe_to_changes(self, number: str | int, message: dict[str, Any]) -> None:
        """Send each committed write of a template under the message's id, after a position or from now on."""
        name, after = message.pop("changes"), message.pop("after", FROM_NOW)
        if message:
            raise Problem(422, "unknown_field", "subscribe takes changes and after.", field=min(message))
        template = self._node.template(name if isinstance(name, str) else "")
        check_may_follow(self._caller, template)
        position = await self._node.feeds.position(template.name, after)

        async def follow() -> None:
            async with aclosing(self._node.feeds.follow(template.name, position)) as changes:
                async for change in changes:
                    await self._has_room.wait()  # a log may have more than a client reads at once
                    self._put(number, 200, change_json(change), "change")
            raise _subscription_ended()

        self._subscribe(number, {"subscribed": template.name, "position": position}, follow)

    def _subscribe(self, number: str | int, reply: Any, follow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Reply, and run `follow` until it ends or is unsubscribed. Raises Problem: there are too many."""
        name = str(number)
        if name in self._subscriptions or len(self._subscriptions) >= SUBSCRIPTIONS:
            raise Problem(409, "conflict", f"There are {SUBSCRIPTIONS} subscriptions, or one of this id.", field="id")
        counted = contextlib.ExitStack()
        counted.enter_context(self._node.limits.streaming(self._caller))
        self._put(number, 200, reply)

        async def run() -> None:
            with counted:
                try:
                    await follow()
                except BedsError as error:
                    problem, event_id = problem_of(error)
                    self._put(number, problem.status, body_of(problem, event_id), "ended")
                except Problem as end:
                    self._put(number, end.status, body_of(end), "ended")
                finally:
                    if self._subscriptions.get(name) is asyncio.current_task():
                        del self._subscriptions[name]

        self._subscriptions[name] = asyncio.create_task(run())


def _subscription_ended() -> Problem:
    return Problem(410, "subscription_ended", "The subscription has reached its longest time; subscribe again.")


def _is_id(value: Any) -> bool:
    """Whether a value identifies a message: a short text, or a number that JSON carries exactly."""
    if isinstance(value, str):
        return len(value) <= ID_CHARACTERS
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def protocol_of(websocket: WebSocket) -> str | None:
    """The protocol to accept. A browser that offers some opens no connection without one of them."""
    return PROTOCOL if PROTOCOL in websocket.scope.get("subprotocols", ()) else None


async def refuse(websocket: WebSocket, problem: Problem) -> None:
    """Close a connection that may not be opened, with a code that a browser can read."""
    await websocket.accept(protocol_of(websocket))
    await websocket.close(_REFUSALS.get(problem.status, TRY_AGAIN), problem.code)

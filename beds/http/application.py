"""The ASGI application: finds the caller, the room for its request and the part that answers it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from beds.client.client import Client
from beds.config import Settings, load_settings
from beds.config.local_key import with_local_key
from beds.domain.lineage import is_traceparent
from beds.domain.trace import trace_context
from beds.errors import BedsError
from beds.http import openapi, pages, ui
from beds.http.access import Caller
from beds.http.changes import on_changes
from beds.http.jobs import on_jobs
from beds.http.lineage import on_lineage
from beds.http.node import RESERVED, Node
from beds.http.operations import batch, on_record, on_template
from beds.http.operator import Operator
from beds.http.problems import MEDIA_TYPE, Problem, encode_problem, not_found, problem_of
from beds.http.requests import EVENT_ID, Asked, segments_of
from beds.http.streams import EventStream
from beds.http.tickets import on_ticket
from beds.http.websocket import Conversation, authorization_of, refuse
from beds.templates.roles import names_of

try:
    from beds.http.mcp_tools import McpTools
except ModuleNotFoundError as missing:  # the package `mcp` is an extra of its own
    if (missing.name or "").startswith("beds"):
        raise
    McpTools = None  # type: ignore[assignment,misc]

PREFIX = "/v1"
READS = frozenset({"GET", "HEAD"})
_EXPOSED = "Link, Location, Retry-After, Preference-Applied, RateLimit, RateLimit-Policy, Beds-Event-Id, ETag"
_ALLOWED = "Authorization, Content-Type, Idempotency-Key, Prefer, If-Match, If-None-Match, traceparent, Last-Event-ID"

logger = logging.getLogger("beds.http")


class BrokenResponse(Exception):
    """Raised when a response fails after it has begun: the server breaks it off, so it never looks complete."""


class Application:
    """HTTP and WebSocket over one client.

    Args:
        settings: beds.toml.
        client: publishes the events; one of its own when absent.
    """

    def __init__(self, settings: Settings, client: Client | None = None) -> None:
        self.node = Node(settings, client)
        has_operator = client is None and settings.amqp.operator_url is not None
        self._operator = Operator(settings) if has_operator else None
        self._tools = McpTools(self.node) if McpTools is not None else None
        self._conversations: set[Conversation] = set()
        self._streams: set[EventStream] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(WebSocket(scope, receive, send))
        else:
            await self._lifespan(receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with contextlib.AsyncExitStack() as running:
            self.node.start()
            running.push_async_callback(self._stop)
            if self._tools is not None:
                await running.enter_async_context(self._tools.running())
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _stop(self) -> None:
        await self.node.stop()
        if self._operator is not None:
            await asyncio.to_thread(self._operator.close)

    def drain(self) -> None:
        """Close all WebSocket connections and event streams, so that their clients connect to another node."""
        for conversation in list(self._conversations):
            conversation.end()
        for stream in list(self._streams):
            stream.end()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        started, begun = time.perf_counter(), False
        asked: Asked | None = None
        name = "other"

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.node.metrics.ended(name, message["status"], time.perf_counter() - started)
            await send(message)

        response: ASGIApp
        try:
            if request.method == "OPTIONS":
                response = self._preflight(request)
            elif (page := pages.find(request)) is not None:
                response, name = page, "page"
            elif (segments := segments_of(self._path(scope)))[:2] == ("", "ui"):
                name, person = "page", await self._signed_in(request)
                with self.node.limits.admitted(person) if person else nullcontext():
                    response = await self._page(request, segments[2:], person)
                if person and isinstance(response, EventStream):
                    with self._open(response, person):
                        await response(scope, receive, sending)
                    return
            else:
                caller = await self.node.sign_in.caller(_authorization(request))
                trace = request.headers.get("traceparent")
                with (
                    self.node.limits.admitted(caller) as headers,
                    trace_context(trace) if is_traceparent(trace) else nullcontext(),
                ):
                    known = {**headers, **self._cors(request)}
                    asked = Asked(request, caller, self.node.http, segments, lambda: self._verify(request), known)
                    name = self._name(segments, request.method)
                    if segments == ("", "mcp") and self._tools is not None:
                        asked.allow("POST")  # there are no sessions, so a stream of them would have no end
                        await self._tools.handle(caller, await asked.body(), scope, sending)
                        return
                    response = await self._answer(asked)
                    if request.method == "HEAD" or not isinstance(response, EventStream):
                        await response(scope, receive, sending)
                        return
                with self._open(response, caller):
                    await response(scope, receive, sending)
                return
        except Problem as refusal:
            if begun:
                raise
            response = self._problem(request, refusal, asked)
        except BedsError as error:
            if begun:
                raise BrokenResponse(f"{name}: {error}") from None
            problem, event_id = problem_of(error, is_write=request.method not in READS)
            if problem.status >= 500:
                logger.error("%s %s: %s", name, problem.status, error)
            response = self._problem(request, problem, asked, event_id)
        except Exception:
            if begun:
                raise  # the server breaks the response off
            logger.exception("a request failed")
            response = self._problem(request, Problem(500, "internal", "This is a fault of the service."), asked)
        await response(scope, receive, sending)

    @contextlib.contextmanager
    def _open(self, stream: EventStream, caller: Caller) -> Iterator[None]:
        """Count a stream while it lasts. Raises Problem: the caller has as many as it may."""
        with self.node.limits.streaming(caller), self.node.metrics.streams.track_inprogress():
            self._streams.add(stream)
            try:
                yield
            finally:
                self._streams.discard(stream)

    async def _page(self, request: Request, segments: tuple[str, ...], person: Caller | None) -> Response:
        """A page for people, whose key or token is in a cookie."""
        page = ui.Page(self.node, self._operator, request, person, lambda: self._signed_in(request))
        try:
            return await page.respond(segments)
        except Problem as problem:
            return page.problem(problem)
        except BedsError as error:
            if error.status >= 500:
                logger.error("page %s: %s", error.status, error)
            return page.problem(problem_of(error)[0])

    async def _verify(self, request: Request) -> Caller:
        return await self.node.sign_in.caller(_authorization(request))

    async def _signed_in(self, request: Request) -> Caller | None:
        """The caller of the cookie; None without one, or if it is accepted no more."""
        if token := request.cookies.get(ui.COOKIE):
            with contextlib.suppress(Problem):
                return await self.node.sign_in.caller(f"Bearer {token}")
        return None

    def _path(self, scope: Scope) -> bytes:
        """The raw path without the prefix under which the application is mounted."""
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        root: bytes = scope.get("root_path", "").rstrip("/").encode()
        return raw.removeprefix(root).partition(b"?")[0]

    def _name(self, segments: tuple[str, ...], method: str) -> str:
        """The name of a request in metrics: one of those that templates and BEDS define."""
        if len(segments) < 3:
            return "other"
        name, _, what = segments[2].partition(":")
        if name not in self.node.templates:
            return name if name in RESERVED else "other"
        known = what if what in self.node.templates[name].fetch or what == "batch" else ""
        return f"{name}:{known}" if known else f"{name} {method}" if method in _METHODS else "other"

    async def _answer(self, asked: Asked) -> Response:
        node = self.node
        match asked.segments:
            case ("", "openapi.json"):
                asked.allow("GET")
                return asked.reply(await self._openapi(asked.caller))
            case ("", "v1"):
                asked.allow("GET")
                return asked.reply(self._catalogue(asked.caller))
            case ("", "v1:batch"):
                return await batch(node, asked)
            case ("", "v1", "tickets", guid, *rest):
                return await on_ticket(node, asked, guid, tuple(rest))
            case ("", "v1", "jobs", *rest):
                return await on_jobs(node, asked, tuple(rest))
            case ("", "v1", "lineage", event):
                return await on_lineage(node, asked, event)
            case ("", "v1", "changes", name):
                return await on_changes(node, asked, node.template(name))
            case ("", "v1", target):
                name, _, what = target.partition(":")
                template = node.template(name)
                if not asked.caller.may_see(template):
                    raise not_found()
                return await on_template(node, asked, template, what)
            case ("", "v1", name, key):
                template = node.template(name)
                if not asked.caller.may_see(template):
                    raise not_found()
                return await on_record(node, asked, template, key)
        raise not_found()

    def _catalogue(self, caller: Caller) -> dict[str, Any]:
        templates = [template for template in self.node.templates.values() if caller.may_see(template)]
        return {
            "actor": caller.actor,
            "roles": sorted(caller.roles),
            "templates": [
                {
                    "name": template.name,
                    "description": template.template.description,
                    "key": list(template.keys),
                    "operations": [name for name in names_of(template) if caller.may(template, name)],
                    "changes": caller.may_follow(template),
                }
                for template in templates
            ],
            "jobs": [name for name in self.node.templates.jobs if caller.may_run(name)],
            "lineage": caller.sees_lineage,
        }

    async def _openapi(self, caller: Caller) -> dict[str, Any]:
        seen = {name: template for name, template in self.node.templates.items() if caller.may_see(template)}
        described = await asyncio.gather(*(self.node.signatures.describe(template) for template in seen.values()))
        known = {name: found for name, found in zip(seen, described, strict=True) if found is not None}
        return openapi.document(caller, seen, known)

    def _problem(self, request: Request, problem: Problem, asked: Asked | None, event_id: str = "") -> Response:
        headers = {**(asked.headers if asked else self._cors(request)), **problem.headers}
        event_id = event_id or headers.get(EVENT_ID, "")
        if event_id:
            headers[EVENT_ID] = event_id
        return Response(encode_problem(problem, event_id), problem.status, headers, media_type=MEDIA_TYPE)

    def _cors(self, request: Request) -> dict[str, str]:
        """Lets the pages of `cors_origins` read the response."""
        origin = request.headers.get("origin")
        found = {"Vary": "Origin, Accept", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        if origin in self.node.http.cors_origins:
            found |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED}
        return found

    def _preflight(self, request: Request) -> Response:
        headers = self._cors(request)
        if "Access-Control-Allow-Origin" in headers:
            headers |= {
                "Access-Control-Allow-Methods": ", ".join(sorted(_METHODS)),
                "Access-Control-Allow-Headers": _ALLOWED,
                "Access-Control-Max-Age": "600",
            }
        return Response(None, 204, headers)

    async def _websocket(self, websocket: WebSocket) -> None:
        try:
            if segments_of(self._path(websocket.scope)) != ("", "v1", "ws"):
                raise not_found()
            self._check_origin(websocket)
            authorization = authorization_of(websocket)
            caller = await self.node.sign_in.caller(authorization)
        except Problem as problem:
            await refuse(websocket, problem)
            return
        conversation = Conversation(self.node, websocket, caller, authorization or "")
        self._conversations.add(conversation)
        try:
            await conversation.run()
        finally:
            self._conversations.discard(conversation)

    def _check_origin(self, websocket: WebSocket) -> None:
        """Raises Problem: a page of a foreign origin opens the connection. Programs send no Origin."""
        origin = websocket.headers.get("origin")
        own = websocket.headers.get("host", "")
        if origin is not None and origin.partition("://")[2] != own and origin not in self.node.http.cors_origins:
            raise Problem(403, "forbidden", "Pages of this origin may not connect.")


def _authorization(request: Request) -> str | None:
    """The header `Authorization`. For a request that changes nothing the page's cookie will do: EventSource sends none.

    The cookie is `SameSite=Strict`, so no other site can send it.
    """
    if (header := request.headers.get("authorization")) is None and request.method in READS:
        token = request.cookies.get(ui.COOKIE)
        return f"Bearer {token}" if token else None
    return header


_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE"})
_default: Application | None = None
_default_lock = threading.Lock()


def default_app() -> Application:
    """The application of this process, with the settings of beds.toml."""
    global _default
    with _default_lock:
        if _default is None:
            settings = load_settings()
            _default = Application(settings.model_copy(update={"http": with_local_key(settings)}))
        return _default

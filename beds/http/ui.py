"""The page under `/ui/`: what happens now, tickets, lineage, and a form for each operation.

It is readable without script. `live.js` replaces the parts that have changed, which the server sends as HTML over one
event stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import jinja2
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from beds.config.http import OPS
from beds.domain.lineage import guid_of
from beds.errors import BedsError
from beds.http.access import Caller
from beds.http.drawing import drawn
from beds.http.feeds import LONGEST_SECONDS
from beds.http.forms import call_of_form, form_of
from beds.http.node import Node
from beds.http.operator import WINDOW_SECONDS, Operator
from beds.http.pages import HEADERS
from beds.http.problems import Problem, forbidden, not_found, problem_of
from beds.http.representations import result_json, ticket_json
from beds.http.requests import read_body
from beds.http.streams import EventStream
from beds.http.values import encode
from beds.templates.roles import WRITES, names_of
from beds.templates.template import Template
from beds.wire.routes import DEAD, LATER, QUEUES

COOKIE = "beds_session"
LIVE_SECONDS = 2.0
"""Interval at which a page's parts are compared with what was sent."""
FORM_BYTES = 1024 * 1024
SIGN_IN_BYTES = 20_000
_DEAD_ACTIONS = frozenset({"replay", "discard"})
_JOB_ACTIONS = frozenset({"pause", "resume", "cancel"})
Parts = Callable[[], Awaitable[dict[str, str]]]


def _time(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else ""


def _number(value: Any, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {"time": _time, "number": _number, "guid": lambda text: guid_of(str(text)), "quote": quote}


class Page:
    """One request for the page.

    Args:
        node: of the application.
        operator: the operator's side; None where beds.toml names no operator.
        request: as it came.
        caller: who has signed in; None before.
        still_signed_in: called while a page goes on; None ends it.
    """

    def __init__(
        self,
        node: Node,
        operator: Operator | None,
        request: Request,
        caller: Caller | None,
        still_signed_in: Callable[[], Awaitable[Caller | None]],
    ) -> None:
        self.node = node
        self.operator = operator
        self.request = request
        self.caller = caller
        self.still_signed_in = still_signed_in
        self.root = str(request.scope.get("root_path", "")).rstrip("/")

    @property
    def _me(self) -> Caller:
        assert self.caller is not None
        return self.caller

    @property
    def _ops(self) -> Operator | None:
        """The operator's side, for callers with the role `ops`."""
        return self.operator if OPS in self._me.roles else None

    def _need_ops(self) -> Operator:
        if (found := self._ops) is None:
            raise forbidden(f"do this: it takes the role {OPS}, and [amqp] operator_url on this node")
        return found

    async def respond(self, segments: tuple[str, ...]) -> Response:
        """The response to a request under `/ui`; `segments` are those behind it."""
        method = "GET" if self.request.method == "HEAD" else self.request.method
        if method == "POST":
            self._check_origin()
        elif method != "GET":
            raise Problem(405, "method_not_allowed", "This address takes GET and POST.", headers={"Allow": "GET, POST"})
        if segments == ("sign-in",) and method == "POST":
            return await self._sign_in()
        if segments == ("sign-in",):
            return self._html("sign_in.html", problem="", title="Sign in")
        if self.caller is None:
            return self._redirect("/ui/sign-in")
        if method == "POST":
            return await self._order(segments)
        match segments:
            case () | ("",):
                return await self._live_page("live.html", self._live_parts, title="Live", ops=self._ops is not None)
            case ("queues", name) if name in (*QUEUES, LATER, DEAD):
                return await self._live_page(
                    "queue.html", lambda: self._queue_parts(name), title=name, window=WINDOW_SECONDS
                )
            case ("tickets",):
                guid = self.request.query_params.get("guid", "").strip()
                return self._redirect(f"/ui/tickets/{quote(guid_of(guid), safe='')}" if guid else "/ui/")
            case ("tickets", guid):
                return await self._live_page("ticket.html", lambda: self._ticket_parts(guid), title="Ticket", guid=guid)
            case ("lineage",):
                event = self.request.query_params.get("event", "").strip()
                return self._redirect(f"/ui/lineage/{quote(event, safe='')}" if event else "/ui/")
            case ("lineage", event):
                return await self._lineage(event)
            case ("templates",):
                return self._html("templates.html", title="Templates", templates=self._templates())
            case ("templates", name):
                return await self._template(name)
        raise not_found()

    # --- signing in ----------------------------------------------------------------------------------------------

    async def _sign_in(self) -> Response:
        token = (await self._form()).get("token", "")
        try:
            await self.node.sign_in.caller(f"Bearer {token}")
        except Problem as problem:
            return self._html("sign_in.html", problem.status, problem=problem.detail, title="Sign in")
        response = self._redirect("/ui/")
        secure = self.request.url.scheme == "https"
        response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure, path="/")
        return response

    def _check_origin(self) -> None:
        """Raises Problem: the form is on a page of a foreign origin."""
        origin, host = self.request.headers.get("origin", ""), self.request.headers.get("host", "")
        if origin.partition("://")[2] != host:
            raise Problem(403, "forbidden", "This form belongs to another page.")

    async def _form(self) -> dict[str, str]:
        limit = FORM_BYTES if self.caller else SIGN_IN_BYTES
        body = await read_body(self.request, limit, self.node.http.body_timeout)
        try:
            text = body.decode()
            return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=1000))
        except (UnicodeDecodeError, ValueError):
            raise Problem(400, "unreadable", "The form cannot be read.") from None

    # --- orders --------------------------------------------------------------------------------------------------

    async def _order(self, segments: tuple[str, ...]) -> Response:
        form = await self._form()
        action = form.get("action", "")
        match segments:
            case ("sign-out",):
                response = self._redirect("/ui/")
                response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
                return response
            case ("dead", dead_id) if action in _DEAD_ACTIONS:
                done = await self._need_ops().dead_order(action, dead_id, self._me.actor)
                if failed := done.get("failed"):
                    raise Problem(409, "conflict", "; ".join(map(str, failed.values())))
                return self._redirect("/ui/")
            case ("jobs", guid) if action in _JOB_ACTIONS:
                await self._need_ops().job_order(action, guid, self._me.actor)
                return self._redirect(f"/ui/tickets/{quote(guid, safe='')}")
            case ("tickets", guid) if action == "cancel":
                if self._ops is not None:
                    await self._ops.cancel(guid, self._me.actor)
                else:
                    flows, actor = self.node.flows, self._me.actor
                    await self.node.run(flows.cancel(guid, actor, self.node.http.timeout, actor))
                return self._redirect(f"/ui/tickets/{quote(guid, safe='')}")
            case ("templates", name, what):
                return await self._execute(name, what, form)
        raise not_found()

    # --- pages that go on ----------------------------------------------------------------------------------------

    async def _live_page(self, file: str, parts: Parts, **values: Any) -> Response:
        """A page whose parts are sent again when they change, to a request with `?stream`."""
        if "stream" in self.request.query_params:
            return EventStream(self._changed_parts(parts), HEADERS)
        return self._html(file, parts=await parts(), stream=f"{self.request.url.path}?stream", **values)

    async def _changed_parts(self, parts: Parts) -> AsyncGenerator[bytes, None]:
        sent: dict[str, str] = {}
        end = asyncio.get_running_loop().time() + LONGEST_SECONDS
        while asyncio.get_running_loop().time() < end:
            if await self.still_signed_in() is None:
                return
            try:
                current = await parts()
            except (BedsError, Problem) as error:
                current = {"problem": self._fragment("problem.html", problem=_words(error))}
            else:
                current = {"problem": "", **current}
            if changed := {name: html for name, html in current.items() if sent.get(name) != html}:
                sent |= changed
                yield b"event: parts\ndata: " + encode(changed) + b"\n\n"
            else:
                yield b": beat\n\n"
            await asyncio.sleep(LIVE_SECONDS)

    async def _live_parts(self) -> dict[str, str]:
        if self._ops is None:
            return {}
        overview = await self._ops.overview()
        parts = {name: self._fragment(f"_{name}.html", **overview) for name in ("queues", "jobs", "dead", "logs")}
        return parts | {"problem": self._fragment("problem.html", problem=overview["problem"])}

    async def _queue_parts(self, name: str) -> dict[str, str]:
        overview = await self._need_ops().overview()
        operations = await self._need_ops().operations(name)
        dead = [each for each in overview["dead"] if each["queue"] == name]  # of the latest
        return {
            "queues": self._fragment(
                "_queues.html", queues={n: row for n, row in overview["queues"].items() if n == name}
            ),
            "operations": self._fragment("_operations.html", operations=operations),
            "dead": self._fragment("_dead.html", dead=dead),
            "problem": self._fragment("problem.html", problem=overview["problem"]),
        }

    async def _ticket_parts(self, guid: str) -> dict[str, str]:
        handle = self.node.handle(guid, self._me.actor)
        if self._ops is not None:
            status = await self._ops.status(handle.guid)
        else:
            status = await self.node.run(self.node.flows.status(handle.guid, self.node.http.timeout, handle.actor))
        report = None
        if status.queue.startswith("job."):
            report = await (
                self._ops.job_report(handle.guid)
                if self._ops is not None
                else self.node.run(self.node.flows.job_report(handle, self.node.http.timeout))
            )
        return {"ticket": self._fragment("_ticket.html", status=status, shown=ticket_json(status), report=report)}

    # --- lineage -------------------------------------------------------------------------------------------------

    async def _lineage(self, event: str) -> Response:
        if not 0 < len(event) <= 120:
            raise not_found()
        if self._ops is not None:
            tree = await self._ops.lineage(event)
        elif self._me.sees_lineage:
            tree = await self.node.run(self.node.flows.lineage(event, self.node.http.timeout, self._me.actor))
        else:
            raise forbidden("see lineage")
        return self._html("lineage.html", title="Lineage", event=guid_of(event), tree=drawn(tree, guid_of(event)))

    # --- templates -----------------------------------------------------------------------------------------------

    def _templates(self) -> list[Template]:
        return [template for template in self.node.templates.values() if self._me.may_see(template)]

    async def _template(self, name: str, **result: Any) -> Response:
        template = self.node.template(name)
        if not self._me.may_see(template):
            raise not_found()
        allowed = [what for what in names_of(template) if self._me.may(template, what)]
        forms = [await form_of(self.node, self._me, template, what) for what in allowed]
        shown = {"result": None, "chosen": "", "problem": "", "event_id": "", "given": {}} | result
        status = 200 if not shown["problem"] else 422
        return self._html("template.html", status, title=name, template=template, forms=forms, **shown)

    async def _execute(self, name: str, what: str, form: Mapping[str, str]) -> Response:
        template = self.node.template(name)
        try:
            call = await call_of_form(self.node, self._me, template, what, form)
            event_ids: list[str] = []
            result = result_json(await self.node.reply(call, begun=event_ids.append))
        except BedsError as error:
            problem, event_id = problem_of(error, is_write=what in WRITES)
            return await self._template(name, chosen=what, problem=_words(problem), event_id=event_id, given=form)
        except Problem as problem:
            if problem.status == 404:
                raise
            return await self._template(name, chosen=what, problem=_words(problem), given=form)
        return await self._template(name, chosen=what, result=result, event_id=event_ids[-1], given=form)

    # --- responses -----------------------------------------------------------------------------------------------

    def problem(self, problem: Problem) -> Response:
        """An error as a page."""
        response = self._html("error.html", problem.status, title="Not possible", problem=_words(problem))
        response.headers.update(problem.headers)
        return response

    def _fragment(self, file: str, **values: Any) -> str:
        return _environment.get_template(file).render(ops=self._ops is not None, root=self.root, **values)

    def _html(self, file: str, status: int = 200, **values: Any) -> Response:
        actor = self.caller.actor if self.caller else ""
        text = _environment.get_template(file).render(actor=actor, root=self.root, **{"stream": "", **values})
        headers = {**HEADERS, "Cache-Control": "no-store"}
        headers["Content-Security-Policy"] = headers["Content-Security-Policy"].replace(
            "form-action 'none'", "form-action 'self'"
        )
        return Response(text, status, headers, media_type="text/html")

    def _redirect(self, address: str) -> RedirectResponse:
        return RedirectResponse(self.root + address, 303, HEADERS)


def _words(error: BedsError | Problem) -> str:
    if isinstance(error, BedsError):
        error = problem_of(error)[0]
    return f"{error.field}: {error.detail}" if error.field else error.detail

"""`/mcp`: five tools for language models, with the caller's own rights. Needs the package `mcp`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import msgspec
from mcp.server import Server, ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, TextContent, Tool, ToolAnnotations
from starlette.types import Message, Scope, Send

from beds.domain.event import Operation
from beds.errors import BedsError
from beds.http.access import Caller
from beds.http.node import Node
from beds.http.operations import call_of
from beds.http.problems import Problem, body_of, not_found, problem_of
from beds.http.representations import result_json, ticket_json
from beds.templates.roles import WRITES, names_of

CALLER = "beds.caller"
"""The caller's place in the scope of a request."""
_TEXT: dict[str, Any] = {"type": "string"}
_OBJECT: dict[str, Any] = {"type": "object"}

logger = logging.getLogger("beds.http")


def _tool(name: str, description: str, required: tuple[str, ...], *, reads: bool, **properties: Any) -> Tool:
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    annotations = ToolAnnotations(read_only_hint=reads, destructive_hint=not reads, open_world_hint=False)
    return Tool(name=name, description=description, input_schema=schema, annotations=annotations)


TOOLS = [
    _tool("list", "The data domains that you may use, with their operations and fetches.", (), reads=True),
    _tool(
        "describe",
        "The fields of a data domain, and the arguments of each of its fetches.",
        ("template",),
        reads=True,
        template=_TEXT,
    ),
    _tool(
        "fetch",
        "Fetch records. `fetch` names one of the template's fetches. A page has `cursor` if more records follow.",
        ("template", "fetch"),
        reads=True,
        template=_TEXT,
        fetch=_TEXT,
        args=_OBJECT,
        limit={"type": "integer", "minimum": 1},
        cursor=_TEXT,
    ),
    _tool(
        "write",
        "Create, update or delete. `record` for create and update, `records` for create_many, `key` for delete. "
        "Give an idempotency_key of your own, and repeat the call with it if the outcome is unknown. "
        "expected_version is the version that the record must have, where the template has versions.",
        ("template", "operation", "idempotency_key"),
        reads=False,
        template=_TEXT,
        operation={"enum": list(WRITES)},
        record=_OBJECT,
        records={"type": "array", "items": _OBJECT},
        key={},
        expected_version={},
        idempotency_key={"type": "string", "minLength": 1, "maxLength": 200},
    ),
    _tool("ticket", "The state of a submitted operation or job.", ("ticket",), reads=True, ticket=_TEXT),
]


class McpTools:
    """The tools over one node. Requests are independent of each other: there are no sessions."""

    def __init__(self, node: Node) -> None:
        self._node = node
        server: Server[Any] = Server(
            "beds", version=version("beds"), on_list_tools=self._list_tools, on_call_tool=self._call_tool
        )
        self._manager = StreamableHTTPSessionManager(server, stateless=True, json_response=True)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """To be entered before the first request."""
        async with self._manager.run():
            yield

    async def handle(self, caller: Caller, body: bytes, scope: Scope, send: Send) -> None:
        """Serve a request of this caller, whose body has been read."""
        left = [body]

        async def receive() -> Message:
            if left:
                return {"type": "http.request", "body": left.pop(), "more_body": False}
            return await asyncio.Future()  # the client stays until the response has ended

        await self._manager.handle_request({**scope, CALLER: caller}, receive, send)

    async def _list_tools(self, _context: ServerRequestContext[Any, Any], _params: Any) -> ListToolsResult:
        return ListToolsResult(tools=TOOLS)

    async def _call_tool(
        self, context: ServerRequestContext[Any, Any], params: CallToolRequestParams
    ) -> CallToolResult:
        assert context.request is not None
        caller: Caller = context.request.scope[CALLER]
        given = dict(params.arguments or {})
        try:
            return _result(await self._execute(caller, params.name, given))
        except Problem as problem:
            return _result(body_of(problem), is_error=True)
        except BedsError as error:
            found, event_id = problem_of(error, is_write=params.name == "write")
            return _result(body_of(found, event_id), is_error=True)

    async def _execute(self, caller: Caller, tool: str, given: dict[str, Any]) -> Any:
        node = self._node
        match tool:
            case "list":
                seen = [template for template in node.templates.values() if caller.may_see(template)]
                return {
                    "templates": [
                        {
                            "name": template.name,
                            "description": template.template.description,
                            "operations": [w for w in WRITES if w in names_of(template) and caller.may(template, w)],
                            "fetches": [name for name in template.fetch if caller.may(template, name)],
                        }
                        for template in seen
                    ]
                }
            case "describe":
                return await self._describe(caller, str(given.get("template")))
            case "fetch":
                using = given.pop("fetch", None)
                return await self._call(caller, {**given, "operation": using}, None)
            case "write":
                key = given.pop("idempotency_key", None)
                if given.get("operation") not in WRITES or not isinstance(key, str):
                    raise Problem(422, "missing_field", "write takes an operation and an idempotency_key.")
                return await self._call(caller, given, key)
            case "ticket":
                handle = node.handle(str(given.get("ticket") or ""), caller.actor)
                return ticket_json(await node.run(node.flows.status(handle.guid, node.http.timeout, handle.actor)))
        raise Problem(404, "unknown_operation", "There is no such tool.")

    async def _call(self, caller: Caller, given: dict[str, Any], key: str | None) -> Any:
        call = await call_of(self._node, caller, given)
        if key is None and call.operation != Operation.FETCH:
            raise Problem(422, "unknown_fetch", "fetch takes the name of a fetch.", field="fetch")
        return result_json(await self._node.reply(call, key))

    async def _describe(self, caller: Caller, name: str) -> dict[str, Any]:
        template = self._node.template(name)
        if not caller.may_see(template):
            raise not_found()
        described = await self._node.signatures.describe(template)
        fetches = {}
        for using in template.fetch:
            if caller.may(template, using):
                known = described.operations.get(f"fetch.{using}") if described else None
                arguments = known.args if known else ()
                fetches[using] = {
                    "description": known.description if known else "",
                    "args": {a.name: {"types": list(a.types), "required": a.required} for a in arguments},
                    "pages": bool(template.fetch[using].cursor),
                }
        return {
            "template": name,
            "key": list(template.keys),
            "version": template.version,
            "fields": {
                field: {"type": spec.type, "required": spec.required, "description": spec.description}
                for field, spec in template.fields.items()
            },
            "fetches": fetches,
        }


def _result(value: Any, *, is_error: bool = False) -> CallToolResult:
    text = msgspec.json.encode(value).decode()
    return CallToolResult(content=[TextContent(text=text)], structured_content=value, is_error=is_error)

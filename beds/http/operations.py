"""The operations of the templates: fetches, single records, creates, and many calls in one request."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote, urlencode

from starlette.responses import Response, StreamingResponse

from beds.client.bound_template import next_cursor
from beds.client.call import Call
from beds.domain.event import Operation
from beds.domain.reply import Page
from beds.errors import BedsError, CallTimeout, InvalidPayload, MalformedEvent, UnknownField
from beds.http.access import Caller
from beds.http.node import Node
from beds.http.problems import Problem, body_of, not_found, problem_of
from beds.http.representations import page_json, page_of, result_json, write_json
from beds.http.requests import CSV, EVENT_ID, JSON, NDJSON, Asked
from beds.http.values import (
    csv_writer,
    encode,
    from_json,
    from_text,
    plain_record,
    read_records,
    record_from_json,
)
from beds.templates.roles import WRITES
from beds.templates.template import EXPECTED_VERSION, Template
from beds.wire.reply import encoded_result

CALLS_AT_ONCE = 100
"""Calls in one `/v1:batch`."""
PAGING = frozenset({"limit", "cursor", "using"})
_NUMBER = re.compile(r"[0-9]{1,9}")


async def on_template(node: Node, asked: Asked, template: Template, what: str) -> Response:
    """`/v1/{T}`, `/v1/{T}:{fetch}` and `/v1/{T}:batch`."""
    if what == "batch":
        asked.allow("POST")
        return await _create_many(node, asked, template)
    if what:
        if what not in template.fetch:
            asked.caller.check(template, what)  # a write by its name, or nothing
            raise not_found()
        asked.allow("GET")
        return await _fetch(node, asked, template, what)
    if asked.method == "POST":
        return await _create(node, asked, template)
    asked.allow("GET", "POST")
    using = asked.query.get("using", "")
    if not using and len(template.fetch) == 1:
        (using,) = template.fetch
    if not using:
        raise Problem(400, "unknown_fetch", f"Name a fetch: /v1/{template.name}:FETCH.", field="using")
    if using not in template.fetch:
        raise not_found()
    return await _fetch(node, asked, template, using)


async def on_record(node: Node, asked: Asked, template: Template, key: str) -> Response:
    """`/v1/{T}/{key}`: one record."""
    if asked.method == "GET":
        return await _item(node, asked, template, key)
    asked.allow("GET", "PATCH", "DELETE")
    if asked.method == "PATCH":
        asked.caller.check(template, "update")
        given = record_from_json(await asked.json(), template.fields)
        if not isinstance(given, dict):
            raise Problem(422, "wrong_type", "The body takes an object with the fields to change.")
        parts = key_of(template, key)
        for name in given.keys() & parts.keys():
            if given[name] != parts[name]:
                raise Problem(422, "invalid_payload", f"The key {name} is that of the address.", field=name)
        changes = with_bound({**given, **parts}, asked.caller.bound(template, "update"))
        version = expected_version(asked, template)
        call = Call(Operation.UPDATE, template.name, changes, expected_version=version)
        return await _write(node, asked, call)
    asked.caller.check(template, "delete")
    parts = key_of(template, key)
    for name, value in asked.caller.bound(template, "delete").items():
        if parts[name] != value:
            raise not_found()
    data = parts if len(template.keys) > 1 else parts[template.keys[0]]
    version = expected_version(asked, template)
    return await _write(node, asked, Call(Operation.DELETE, template.name, data, expected_version=version))


def etag_of(template: Template, record: Mapping[str, Any]) -> dict[str, str]:
    """The header `ETag` of a record in plain JSON: its version. Empty where it has none."""
    version = record.get(template.version) if template.version else None
    return {} if version is None else {"ETag": f'"{quote(str(version), safe="")}"'}


def expected_version(asked: Asked, template: Template) -> Any:
    """The version that `If-Match` names; None for `*`, or for a template without versions.

    Raises:
        Problem: 428 if the template has versions and the header is missing; 412 if it can match no record.
    """
    header = asked.request.headers.get("if-match")
    spec = template.expected_version
    if header is None:
        if spec is not None:
            raise Problem(428, "precondition_required", "Send If-Match with the ETag of the record, or *.",
                          field="If-Match")  # fmt: skip
        return None
    header = header.strip()
    if header == "*":
        return None
    failed = Problem(412, "precondition_failed", "The record has no such version; fetch it again.", field="If-Match")
    if spec is None or not (len(header) > 2 and header[0] == header[-1] == '"' and "," not in header):
        raise failed
    try:
        return spec.check("If-Match", from_text("If-Match", unquote(header[1:-1]), (spec.type,)), nullable=False)
    except BedsError:
        raise failed from None


def key_of(template: Template, text: str) -> dict[str, Any]:
    """The parts of a record's key in an address; those of a composite key have commas between them.

    Raises:
        Problem (404): no record can have this key.
    """
    texts = [text]
    if len(template.keys) > 1:
        # As `id_text` writes them: a comma or percent sign in a part is percent-encoded once more.
        texts = [part.replace("%2C", ",").replace("%25", "%") for part in text.split(",")]
    if len(texts) != len(template.keys):
        raise not_found()
    found = {}
    for name, part in zip(template.keys, texts, strict=True):
        spec = template.fields[name]
        try:
            found[name] = spec.check(name, from_text(name, part, (spec.type,)), nullable=False)
        except BedsError:
            raise not_found() from None
    return found


def address_of(template: Template, record_id: str) -> str:
    """The address of a record, by its id in a reply."""
    return f"/v1/{template.name}/{quote(record_id, safe=',')}"


async def _fetch(node: Node, asked: Asked, template: Template, using: str) -> Response:
    asked.caller.check(template, using)
    call = await _fetch_call(node, asked, template, using)
    kind = asked.accepts(JSON, NDJSON, CSV)
    if asked.preferences.respond_async:
        return await submit(node, asked, call)
    if kind == JSON:
        page = await _page(node, asked, call)
        return asked.reply(page_json(page), headers=_next_link(asked, page["cursor"]))
    first = await _page(node, asked, call)
    pages = _pages(node, asked, template, call, first)
    return StreamingResponse(_lines(pages) if kind == NDJSON else _table(pages), headers=asked.headers, media_type=kind)


async def _fetch_call(node: Node, asked: Asked, template: Template, using: str) -> Call:
    query = asked.query
    texts = {name: text for name, text in query.items() if name not in PAGING or name in template.fetch[using].args}
    types = await node.signatures.types_of(template, using, texts)
    args: dict[str, Any] = {}
    for name, text in texts.items():
        known = types.get(name)
        args[name] = from_text(name, text, known.types if known else (), sensitive=bool(known and known.sensitive))
    limit = query.get("limit")
    if limit is not None and not _NUMBER.fullmatch(limit):
        raise Problem(422, "wrong_type", "limit takes a number of records.", field="limit")
    args = with_bound(args, asked.caller.bound(template, using))
    cursor, size = query.get("cursor", ""), int(limit) if limit else None
    return Call(Operation.FETCH, template.name, args, using, size, cursor, asked.caller.actor)


def with_bound(given: Mapping[str, Any], bound: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's values and those that its role fills. Raises Problem: the caller gives one of these itself."""
    for name in given.keys() & bound.keys():
        if given[name] != bound[name]:
            raise Problem(403, "forbidden", f"You may not choose {name}.", field=name)
    return {**given, **bound}


async def _page(node: Node, asked: Asked, call: Call) -> dict[str, Any]:
    """One page, with its values as the codec encodes them."""
    return page_of(await reply_to(node, asked, call))


async def reply_to(node: Node, asked: Asked, call: Call) -> Any:
    """The worker's reply to a call, as the codec encodes it. Raises the error that it carries."""

    def begun(event_id: str) -> None:
        asked.headers[EVENT_ID] = event_id

    return await node.reply(call, asked.idempotency_key, begun)


def _next_link(asked: Asked, cursor: str) -> dict[str, str]:
    if not cursor:
        return {}
    query = urlencode({**asked.query, "cursor": cursor})
    return {"Link": f'<{asked.request.url.path}?{query}>; rel="next"'}


async def _pages(
    node: Node, asked: Asked, template: Template, call: Call, page: dict[str, Any]
) -> AsyncIterator[list[dict[str, Any]]]:
    """The records of a fetch, page after page. An error breaks the response off, so that it never looks complete."""
    cursor = call.cursor
    while True:
        yield [plain_record(record) for record in page["records"]]
        reached = Page((), str(page.get("cursor") or ""))
        if not (following := next_cursor(template, call.using, cursor, reached)):
            return
        cursor = following
        page = await _page(node, asked, replace(call, cursor=cursor))


async def _lines(pages: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
    async for records in pages:
        yield b"".join(encode(record) + b"\n" for record in records)


async def _table(pages: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
    write = csv_writer()
    async for records in pages:
        yield write(records)


async def _item(node: Node, asked: Asked, template: Template, key: str) -> Response:
    using = template.item_fetch
    if not using:
        raise not_found()
    asked.caller.check(template, using)
    args = with_bound(key_of(template, key), asked.caller.bound(template, using))
    page = await _page(node, asked, Call(Operation.FETCH, template.name, args, using, actor=asked.caller.actor))
    if len(page["records"]) != 1:
        raise not_found()
    record = plain_record(page["records"][0])
    etag = etag_of(template, record)
    seen = [each.strip().removeprefix("W/") for each in asked.request.headers.get("if-none-match", "").split(",")]
    if etag and (etag["ETag"] in seen or "*" in seen):
        return asked.reply_empty(304, etag)
    return asked.reply(record, headers=etag)


async def _create(node: Node, asked: Asked, template: Template) -> Response:
    asked.caller.check(template, "create")
    given = record_from_json(await asked.json(), template.fields)
    if not isinstance(given, dict):
        raise Problem(422, "wrong_type", "The body takes an object with named fields.")
    given = with_bound(given, asked.caller.bound(template, "create"))
    return await _write(node, asked, Call(Operation.CREATE, template.name, given))


async def _create_many(node: Node, asked: Asked, template: Template) -> Response:
    asked.caller.check(template, "create_many")
    kinds = (JSON, NDJSON, "application/jsonl", CSV)
    if asked.media_type not in kinds:
        raise Problem(415, "unsupported_media_type", f"Send {', '.join(kinds)}.", headers={"Accept": ", ".join(kinds)})
    placed = read_records(await asked.body(), asked.media_type, template.fields)
    records, places = [record for _, record in placed], [place for place, _ in placed]
    if bound := asked.caller.bound(template, "create_many"):
        records = [with_bound(record, bound) if isinstance(record, dict) else record for record in records]
    try:
        return await _write(node, asked, Call(Operation.CREATE_MANY, template.name, records))
    except InvalidPayload as error:
        _name_place(error, places)
        raise


def _name_place(error: InvalidPayload, places: Sequence[str]) -> None:
    """Name the line or the record of a bulk create that an error is about, as its sender knows it."""
    where = re.search(r"payloads\[(\d+)\]", f"{error.message} {error.detail.get('where', '')}")
    if where is None or int(where[1]) >= len(places):
        return
    place, rest = places[int(where[1])], error.message.replace(where[0], "").lstrip(": ")
    error.message = f"{place}: {rest}"


async def _write(node: Node, asked: Asked, call: Call) -> Response:
    call = replace(call, actor=asked.caller.actor)
    if asked.preferences.respond_async:
        return await submit(node, asked, call)
    return write_reply(node, asked, call, await reply_to(node, asked, call))


def status_of(call: Call) -> int:
    """The status of a call that succeeded."""
    return 201 if call.operation == Operation.CREATE else 200


def write_reply(node: Node, asked: Asked, call: Call, wire: Any) -> Response:
    """The response to a write, from the worker's reply."""
    if not (isinstance(wire, dict) and wire.get("kind") == "response"):
        raise MalformedEvent("the worker's reply to a write is none")
    template = node.templates[call.template]
    if call.operation == Operation.DELETE:
        return asked.reply_empty(204)
    body = write_json(wire)
    headers, status = etag_of(template, body["record"]), 200
    if call.operation == Operation.CREATE:
        status = 201
        if template.item_fetch and body["record_id"] and not template.has_sensitive_key:
            headers["Location"] = asked.root + address_of(template, body["record_id"])
    if asked.preferences.minimal:
        headers["Preference-Applied"] = "return=minimal"
        return asked.reply_empty(204 if status == 200 else status, headers)
    return asked.reply(body, status, headers)


async def submit(node: Node, asked: Asked, call: Call) -> Response:
    """202 with the address of a ticket; the result itself if it is there within `Prefer: wait`."""
    ticket = await node.run(node.flows.submit(call, asked.idempotency_key, node.http.timeout))
    asked.headers[EVENT_ID] = ticket.event_id
    wait = asked.preferences.wait
    if wait:
        try:
            wire = encoded_result(await node.run(node.flows.encoded_result(ticket, wait)))
        except CallTimeout:
            pass
        else:
            if call.operation == Operation.FETCH:
                return asked.reply(page_json(page_of(wire)))
            return write_reply(node, asked, call, wire)
    headers = {"Location": f"{asked.root}/v1/tickets/{ticket.guid}", **asked.preferences.applied}
    return asked.reply({"ticket": ticket.guid, "event_id": ticket.event_id}, 202, headers)


async def batch(node: Node, asked: Asked) -> Response:
    """`POST /v1:batch`: several calls, each of which succeeds or fails by itself."""
    asked.allow("POST")
    if "idempotency-key" in asked.request.headers:
        raise Problem(422, "unknown_field", "Give each call an idempotency_key of its own.", field="Idempotency-Key")
    given = await asked.json()
    if not isinstance(given, list) or not 0 < len(given) <= CALLS_AT_ONCE:
        raise Problem(422, "wrong_type", f"The body takes a list of 1 to {CALLS_AT_ONCE} calls.")
    node.limits.charge(asked.caller, len(given) - 1)  # the request itself is counted already
    outcomes: list[Any] = [None] * len(given)
    calls: list[tuple[int, Call, str | None]] = []
    for index, each in enumerate(given):
        try:
            key = each.pop("idempotency_key", None) if isinstance(each, dict) else None
            calls.append((index, await call_of(node, asked.caller, each), key))
        except Problem as problem:
            outcomes[index] = {"status": problem.status, "body": body_of(problem)}
        except BedsError as error:
            outcomes[index] = _failed(error, is_write=False)
    replies = await asyncio.gather(*(_outcome(node, call, key) for _, call, key in calls))
    for (index, _, _), reply in zip(calls, replies, strict=True):
        outcomes[index] = reply
    return asked.reply(outcomes, 200)


async def _outcome(node: Node, call: Call, key: str | None) -> dict[str, Any]:
    """Status and body of one call."""
    try:
        return {"status": status_of(call), "body": result_json(await node.reply(call, key))}
    except BedsError as error:
        return _failed(error, is_write=call.operation != Operation.FETCH)


def _failed(error: BedsError, *, is_write: bool) -> dict[str, Any]:
    problem, event_id = problem_of(error, is_write=is_write)
    return {"status": problem.status, "body": body_of(problem, event_id)}


async def call_of(node: Node, caller: Caller, given: Any) -> Call:
    """A call in JSON, as `/v1:batch`, WebSocket and MCP have it.

    It is `{"template", "operation", …}` with `record` (create, update), `records` (create_many), `key` (delete), or
    `args`, `limit` and `cursor` of a fetch, which `operation` names.

    Raises:
        Problem: it has another form, or the caller may not do it.
        BedsError: a value does not fit.
    """
    if not isinstance(given, dict):
        raise Problem(422, "wrong_type", "A call is an object.")
    name, what = given.get("template"), given.get("operation")
    if not isinstance(name, str) or not isinstance(what, str):
        raise Problem(422, "missing_field", "A call takes template and operation, as text.")
    template = node.template(name)
    if what not in WRITES and what not in template.fetch:
        if not caller.may_see(template):
            raise not_found()
        raise Problem(404, "unknown_operation", f"{name} has no such operation or fetch.", field="operation")
    caller.check(template, what)
    bound = caller.bound(template, what)
    if what in template.fetch:
        _only(given, "args", "limit", "cursor")
        args = given.get("args", {})
        if not isinstance(args, dict):
            raise Problem(422, "wrong_type", "args takes an object.", field="args")
        types = await node.signatures.types_of(template, what, args)
        read = {arg: _argument(template, what, arg, value, types) for arg, value in args.items()}
        limit, cursor = given.get("limit"), given.get("cursor", "")
        return Call(Operation.FETCH, name, with_bound(read, bound), what, limit, cursor, caller.actor)
    operation = WRITES[what]
    if operation is Operation.DELETE:
        _only(given, "key", EXPECTED_VERSION)
        key = given.get("key")
        read_key = record_from_json(key, template.fields) if isinstance(key, dict) else _key_value(template, key)
        parts = template.key_values(template.check_record_id(read_key))
        if any(parts[field] != value for field, value in bound.items()):
            raise not_found()
        version = _version(template, given)
        return Call(operation, name, read_key, actor=caller.actor, expected_version=version)
    if operation is Operation.CREATE_MANY:
        _only(given, "records")
        records = given.get("records")
        if not isinstance(records, list):
            raise Problem(422, "wrong_type", "records takes a list.", field="records")
        rows = [record_from_json(row, template.fields, f"records[{i}]") for i, row in enumerate(records)]
        rows = [with_bound(row, bound) if isinstance(row, dict) else row for row in rows]
        return Call(operation, name, rows, actor=caller.actor)
    _only(given, "record", *([EXPECTED_VERSION] if operation is Operation.UPDATE else []))
    record = record_from_json(given.get("record"), template.fields)
    data = with_bound(record, bound) if isinstance(record, dict) else record
    return Call(operation, name, data, actor=caller.actor, expected_version=_version(template, given))


def _version(template: Template, given: Mapping[str, Any]) -> Any:
    return from_json(EXPECTED_VERSION, given.get(EXPECTED_VERSION), template.expected_version)


def _key_value(template: Template, key: Any) -> Any:
    if len(template.keys) == 1:
        value = key[0] if isinstance(key, list) and len(key) == 1 else key
        return from_json(template.keys[0], value, template.fields[template.keys[0]])
    if isinstance(key, list) and len(key) == len(template.keys):
        return [from_json(name, part, template.fields[name]) for name, part in zip(template.keys, key, strict=True)]
    return key


def _argument(template: Template, using: str, name: str, value: Any, types: Mapping[str, Any]) -> Any:
    spec = template.fetch[using].args.get(name) or template.fields.get(name)
    if spec is None and isinstance(value, str) and (known := types.get(name)) is not None:
        return from_text(name, value, known.types, sensitive=known.sensitive)
    return from_json(name, value, spec)


def _only(given: Mapping[str, Any], *names: str) -> None:
    known = {"template", "operation", *names}
    if surplus := given.keys() - known:
        name = min(map(str, surplus))
        raise UnknownField(f"this call does not take {name[:40]}", detail={"field": name[:40]})

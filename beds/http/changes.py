"""The committed writes of a template over HTTP: as pages, as server-sent events, and for WebSockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response

from beds.domain.change import FROM_NOW, MAX_CHANGES, Change, check_limit
from beds.errors import OutOfRange
from beds.http.access import Caller
from beds.http.node import Node
from beds.http.problems import forbidden, not_found
from beds.http.representations import instant
from beds.http.requests import JSON, Asked
from beds.http.streams import EVENTS, sent_events
from beds.templates.template import Template


async def on_changes(node: Node, asked: Asked, template: Template) -> Response:
    """`/v1/changes/{T}`: a page of JSON, or a stream of events that goes on."""
    asked.allow("GET")
    check_may_follow(asked.caller, template)
    after = asked.query.get("after", "")
    if asked.accepts(JSON, EVENTS) == JSON:
        found = await node.feeds.read(template.name, after, _limit(asked.query.get("limit")), asked.caller.actor)
        changes = [change_json(change) for change in found.changes]
        return asked.reply({"changes": changes, "position": found.position, "complete": found.complete})
    after = asked.request.headers.get("last-event-id") or after or FROM_NOW
    position = await node.feeds.position(template.name, after)

    async def events() -> AsyncGenerator[tuple[str, str, Any], None]:
        # The position first: a reader whose connection breaks before the first change then misses none.
        yield "position", position, {"position": position}
        async with aclosing(node.feeds.follow(template.name, position)) as changes:
            async for change in changes:
                yield "change", change.position, change_json(change)

    return sent_events(asked, events(), asked.verify)


def check_may_follow(caller: Caller, template: Template) -> None:
    """Raises Problem: the caller may not read the changes of a template, or not even know that it exists."""
    if not caller.may_follow(template):
        if not caller.may_see(template):
            raise not_found()
        template.require_changes()
        raise forbidden(f"read the changes of {template.name}")


def change_json(change: Change) -> dict[str, Any]:
    """A change in plain JSON."""
    return {
        "position": change.position,
        "template": change.template,
        "operation": change.operation,
        "key": change.record_id or None,
        "affected": change.affected,
        "event_id": change.event_id,
        "at": instant(change.at),
    }


def _limit(text: str | None) -> int:
    if text is None:
        return MAX_CHANGES
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise OutOfRange(f"limit takes 1 to {MAX_CHANGES}", detail={"field": "limit"})
    return check_limit(int(text))

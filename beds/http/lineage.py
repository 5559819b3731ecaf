"""Lineage over HTTP: the tree of what an event set off."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from beds.client.lineage import Node as LineageNode
from beds.domain.lineage import guid_of
from beds.http.node import Node
from beds.http.problems import forbidden, not_found
from beds.http.representations import instant
from beds.http.requests import Asked


async def on_lineage(node: Node, asked: Asked, event: str) -> Response:
    """`/v1/lineage/{id}`: the tree that an event belongs to."""
    asked.allow("GET")
    if not asked.caller.sees_lineage:
        raise forbidden("see lineage")
    if not 0 < len(event) <= 120:
        raise not_found()
    tree = await node.run(node.flows.lineage(event, node.http.timeout, asked.caller.actor))
    return asked.reply({"event": guid_of(event), "tree": _tree(tree)})


def _tree(root: LineageNode) -> dict[str, Any]:
    """A lineage tree in plain JSON, without the names of workers and AMQP users."""
    found: dict[str, Any] = {}
    left: list[tuple[LineageNode, list[dict[str, Any]]]] = [(root, [])]
    top = left[0][1]
    while left:
        node, siblings = left.pop()
        children: list[dict[str, Any]] = []
        record = node.record
        siblings.append(
            {
                "event_id": node.event_id,
                "kind": node.kind,
                "name": node.name,
                "outcome": node.outcome or None,
                "at": instant(record.get("at")),
                "duration_ms": record.get("duration_ms"),
                "rows": record.get("rows"),
                "children": children,
            }
        )
        left += [(child, children) for child in reversed(node.children)]
    (found,) = top
    return found

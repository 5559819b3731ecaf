"""A lineage tree as the page draws it: each node with a bar on a time axis."""

from __future__ import annotations

from typing import Any

from beds.client.lineage import Node as LineageNode
from beds.domain.lineage import guid_of
from beds.domain.trace import OK

AXIS = 1000
"""Units of the time axis."""


def drawn(root: LineageNode, of: str) -> dict[str, Any]:
    """A tree for the template: each node with its bar on a time axis of 1,000 units, and whether it stands open."""
    starts = [node.record["at"].timestamp() for node in root.walk() if node.record.get("at")]
    first = min(starts, default=0.0)
    last = max(
        (node.record["at"].timestamp() + float(node.record.get("duration_ms") or 0) / 1000)
        for node in root.walk()
        if node.record.get("at")
    ) if starts else 1.0  # fmt: skip
    scale = AXIS / max(last - first, 0.001)

    def draw(node: LineageNode) -> dict[str, Any]:
        children = [draw(child) for child in node.children]
        at, took = node.record.get("at"), float(node.record.get("duration_ms") or 0)
        is_failed = node.outcome not in ("", OK, "repeated")
        is_chosen = guid_of(node.event_id) == of
        return {
            "id": guid_of(node.event_id),
            "kind": node.kind,
            "name": node.name or "(no record yet)",
            "outcome": node.outcome,
            "failed": is_failed,
            "chosen": is_chosen,
            "took": took if node.record.get("duration_ms") is not None else None,
            "left": round((at.timestamp() - first) * scale, 1) if at else 0,
            "width": max(round(took / 1000 * scale, 1), 4),
            "children": children,
            "open": is_failed
            or is_chosen
            or node.depth < 2
            or any(c["open"] for c in children if c["failed"] or c["chosen"]),
        }

    return draw(root)

"""Reads the lineage tree of one request: its events, database calls, log lines and audit records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from beds.client.steps import Flow
from beds.domain.lineage import guid_of
from beds.domain.reply import Page, Record
from beds.errors import NotFound

Fetch = Callable[[str, Mapping[str, Any], str], Flow[Page]]
"""Called with a fetch's name, its arguments and the previous page's cursor; returns a page of msLineage."""
MAX_RECORDS = 50_000
"""Records of one tree; no further pages are read beyond it."""
MAX_LEVELS = 64
"""Levels of a tree; all deeper nodes become children of the last level."""


@dataclass(slots=True)
class Node:
    """One node of a lineage tree.

    Args:
        event_id, parent_id, depth: its place.
        kind: `event`, `call` (of the database), `log` or `audit`; `unknown` for a parent without a record. Such an
            event still runs, belongs to the client, or its record has not arrived.
        record: its record in msLineage.
        children: in order of time.
    """

    event_id: str
    parent_id: str
    depth: int
    kind: str
    record: Record = field(repr=False)
    children: list[Node] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        return str(self.record.get("name", ""))

    @property
    def outcome(self) -> str:
        return str(self.record.get("outcome", ""))

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        left = [self]
        while left:
            node = left.pop()
            yield node
            left += reversed(node.children)

    def __str__(self) -> str:
        """The tree, a line for each node."""
        return "\n".join(self._lines(0))

    def _lines(self, level: int) -> Iterator[str]:
        took = self.record.get("duration_ms")
        words = (self.kind, self.name or "?", self.outcome, f"{took} ms" if took is not None else "", self.event_id)
        yield "  " * level + "  ".join(word for word in words if word)
        for child in self.children:
            yield from child._lines(level + 1)

    def to_wire(self) -> dict[str, Any]:
        return {**self.record, "kind": self.kind, "children": [child.to_wire() for child in self.children]}


def read_tree(fetch: Fetch, of: str, actor: str = "") -> Flow[Node]:
    """The tree that an event belongs to, from its root.

    Args:
        fetch: reads msLineage.
        of: any event's id, guid, or ticket.
        actor: on whose behalf the tree's root or this event must have been made; anybody's when empty.

    Raises:
        NotFound: msLineage has no record of it, or it is another actor's.
    """
    found = yield from fetch("by_guid", {"guid": guid_of(of)}, "")
    root_id = found[0]["root_id"] if found else of
    records: list[Record] = []
    cursor = ""
    while len(records) < MAX_RECORDS:
        page = yield from fetch("by_root", {"root_id": root_id}, cursor)
        records += page.records
        cursor = page.cursor
        if not cursor:
            break
    if actor and not any(
        record.get("actor") == actor and (record["event_id"] == root_id or record.get("guid") == guid_of(of))
        for record in records
    ):
        records = []
    if not records:
        raise NotFound(
            f"nothing is known of {of}",
            detail={"event_id": of},
            hint="a record takes a moment; does an admin worker run, and is [logging] lineage on?",
        )
    return build(records, root_id)


def build(records: list[Record], root_id: str) -> Node:
    """The records of one root as a tree. A parent without a record becomes an `unknown` node."""
    nodes = {
        record["event_id"]: Node(
            record["event_id"],
            record.get("parent_id", ""),
            int(record.get("depth", 0)),
            str(record.get("kind", "event")),
            record,
        )
        for record in records
    }
    root = nodes.setdefault(root_id, _unknown(root_id, "", 0))
    for node in list(nodes.values()):
        if node is root:
            continue
        parent = nodes.get(node.parent_id)
        if parent is None:
            parent = nodes[node.parent_id] = _unknown(node.parent_id, root_id, max(1, node.depth - 1))
            root.children.append(parent)
        parent.children.append(node)
    _flatten(root)
    return root


def _flatten(root: Node) -> None:
    """Limit the depth to `MAX_LEVELS`, because a client's log records may name any parents."""
    above, level = [root], 0
    while above:
        level += 1
        if level == MAX_LEVELS:
            for node in above:
                node.children = [below for child in node.children for below in _detached(child)]
            return
        above = [child for node in above for child in node.children]


def _detached(node: Node) -> list[Node]:
    found = list(node.walk())
    for each in found:
        each.children = []
    return found


def _unknown(event_id: str, parent_id: str, depth: int) -> Node:
    return Node(event_id, parent_id, depth, "unknown", {"event_id": event_id, "parent_id": parent_id, "depth": depth})

"""What one request set off, read back as a tree: events, database calls, log lines and audit records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from beds.domain.lineage import guid_of
from beds.domain.reply import Page, Record
from beds.errors import NotFound

Fetch = Callable[[str, Mapping[str, Any], str], Page]
"""Asks one fetch of msLineage: its name, its arguments, the cursor of the page before."""
MAX_RECORDS = 50_000
"""Of one tree. A request that set off more is read by its parts."""


@dataclass(slots=True)
class Node:
    """One thing that happened, and what it set off.

    Args:
        event_id, parent_id, depth: its place.
        kind: `event`, `call` (of the database), `log`, `audit`; `unknown` for a parent of which nothing was told: it
            still runs, its record is still on its way, or it lives with the client.
        record: all that is known of it.
        children: what it set off, in the order of time.
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
        yield self
        for child in self.children:
            yield from child.walk()

    def to_wire(self) -> dict[str, Any]:
        return {**self.record, "kind": self.kind, "children": [child.to_wire() for child in self.children]}


def read_tree(fetch: Fetch, of: str) -> Node:
    """The tree that an event belongs to, from its root.

    Args:
        fetch: asks msLineage.
        of: any event's id, guid, or ticket.

    Raises:
        NotFound: nothing is known of it.
    """
    found = fetch("by_guid", {"guid": guid_of(of)}, "")
    root_id = found[0]["root_id"] if found else of
    records: list[Record] = []
    cursor = ""
    while len(records) < MAX_RECORDS:
        page = fetch("by_root", {"root_id": root_id}, cursor)
        records += page.records
        cursor = page.cursor
        if not cursor:
            break
    if not records:
        raise NotFound(
            f"nothing is known of {of}",
            detail={"event_id": of},
            hint="a record takes a moment; does an admin worker run, and is [logging] lineage on?",
        )
    return build(records, root_id)


def build(records: list[Record], root_id: str) -> Node:
    """The records of one root as a tree. A parent that has no record of its own is made up as `unknown`."""
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
    return root


def _unknown(event_id: str, parent_id: str, depth: int) -> Node:
    return Node(event_id, parent_id, depth, "unknown", {"event_id": event_id, "parent_id": parent_id, "depth": depth})

"""The lineage of an event: its id, its parent, its root and its depth (DESIGN section 10)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from beds.domain.identity import uuid7

MAX_DEPTH = 10_000
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
MAX_CHARACTERS = 120
"""Length of an event id: a node's name has at most 32 characters, an environment's 16, a guid 36."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The place of one event in the tree of events that a request caused.

    Args:
        node, env: where the event was made, from `[node]` of beds.toml.
        guid: UUIDv7; also the Celery task id and the ticket.
        parent_id: event id of the parent, empty for a root.
        root_id: event id of the root; a root has its own.
        depth: 0 for a root, one more for each level.
        traceparent: the W3C trace context of the request, as it came with it; empty if it had none.
    """

    node: str
    env: str
    guid: str
    parent_id: str
    root_id: str
    depth: int
    traceparent: str = ""

    @property
    def event_id(self) -> str:
        return f"{self.node}.{self.env}.{self.guid}"

    @classmethod
    def root(cls, node: str, env: str, traceparent: str = "") -> Lineage:
        guid = str(uuid7())
        return cls(node, env, guid, "", f"{node}.{env}.{guid}", 0, traceparent)

    def child(self, node: str, env: str) -> Lineage:
        """The lineage of an event that this event causes on `node`."""
        return Lineage(node, env, str(uuid7()), self.event_id, self.root_id, self.depth + 1, self.traceparent)

    def to_header(self) -> dict[str, Any]:
        return {
            "event_id": self.event_id,
            "parent_id": self.parent_id,
            "root_id": self.root_id,
            "depth": self.depth,
            "node": self.node,
            "env": self.env,
            **({"traceparent": self.traceparent} if self.traceparent else {}),
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any], guid: str) -> Lineage:
        """Read the `beds` header of a message; fields that a foreign client left out get the values of a root."""
        node, env = _name(header, "node", 32), _name(header, "env", 16)
        depth = header.get("depth", 0)
        own_id = f"{node}.{env}.{guid}"
        return cls(
            node,
            env,
            guid,
            _text(header, "parent_id", ""),
            _text(header, "root_id", own_id),
            depth if isinstance(depth, int) and not isinstance(depth, bool) and 0 <= depth <= MAX_DEPTH else 0,
            trace if is_traceparent(trace := header.get("traceparent")) else "",
        )


def is_traceparent(value: object) -> TypeGuard[str]:
    """Whether `value` is a W3C trace context of version 00: https://www.w3.org/TR/trace-context/#traceparent-header"""
    return isinstance(value, str) and _TRACEPARENT.fullmatch(value) is not None


def guid_of(event_id: str) -> str:
    """The guid at the end of an event id; a bare guid is returned as it is."""
    return event_id.rsplit(".", 1)[-1]


def is_event_id(event_id: object, guid: str) -> bool:
    """Whether `event_id` has the form `node.env.guid`, with this guid."""
    parts = event_id.split(".") if isinstance(event_id, str) and len(event_id) <= MAX_CHARACTERS else []
    return len(parts) == 3 and all(parts) and parts[2] == guid


def _name(header: Mapping[str, Any], key: str, characters: int) -> str:
    value = header.get(key)
    return value if isinstance(value, str) and _NAME.fullmatch(value) and len(value) <= characters else "unknown"


def _text(header: Mapping[str, Any], key: str, default: str) -> str:
    value = header.get(key)
    return value if isinstance(value, str) and 0 < len(value) <= MAX_CHARACTERS else default

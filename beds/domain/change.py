"""Committed writes of a template, in the order in which the log of changes has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from beds.errors import InvalidCursor, MalformedEvent, OutOfRange

CHANGES = "changes"
"""The verb of a read queue that returns a template's changes, and the name under which a role allows it."""
FROM_NOW = "$"
"""The position at the log's end: only what is written later follows it."""
MAX_CHANGES = 1000
"""Changes of one reply."""
_POSITION = re.compile(r"([0-9]{1,15})-([0-9]{1,6})")

Position = tuple[int, int]
"""The number of a document of the log, and how many of its changes are before the position."""


def parse_position(text: Any) -> Position | None:
    """The position that a text names; None for an empty one. Raises InvalidCursor."""
    if text == "":
        return None
    found = _POSITION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidCursor(
            "after: it is no position in a log of changes",
            detail={"field": "after"},
            hint="pass the position of an earlier change, or `$` for what is written from now on",
        )
    return int(found[1]), int(found[2])


def check_limit(limit: Any) -> int:
    """Raises OutOfRange."""
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_CHANGES:
        raise OutOfRange(f"limit takes 1 to {MAX_CHANGES}", detail={"field": "limit"})
    return limit


def position_text(position: Position) -> str:
    return f"{position[0]}-{position[1]}"


@dataclass(frozen=True, slots=True)
class Change:
    """One committed write. It has no values: a reader fetches the record, if it may.

    Args:
        position: after which the next change follows.
        template: the data domain.
        operation: `create_record`, `create_records`, `update_record` or `delete_record`.
        record_id: the record's key as text; empty for a bulk create, `•••` where the template calls it sensitive.
        affected: the number of records.
        event_id: of the write, whose lineage says more.
        at: when the write began.
    """

    position: str
    template: str
    operation: str
    record_id: str
    affected: int
    event_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Changes:
    """Some changes of a template, oldest first.

    Args:
        changes: at most as many as asked for.
        position: pass it as `after`, to read on.
        complete: whether the log had no more when it was read.
    """

    changes: tuple[Change, ...]
    position: str
    complete: bool

    def to_wire(self) -> dict[str, Any]:
        changes = [{name: getattr(change, name) for name in Change.__slots__} for change in self.changes]
        return {"changes": changes, "position": self.position, "complete": self.complete}

    @classmethod
    def from_wire(cls, wire: Any) -> Changes:
        """The inverse of `to_wire`. Raises MalformedEvent."""
        try:
            changes: list[Mapping[str, Any]] = wire["changes"]
            return cls(tuple(Change(**change) for change in changes), wire["position"], wire["complete"])
        except (KeyError, TypeError):
            raise MalformedEvent(
                "the worker's changes have a form this version does not know", hint="update the older side"
            ) from None

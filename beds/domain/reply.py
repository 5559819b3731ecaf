"""What an operation answers: a `Response` to a write, a `Page` to a fetch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, overload

from beds.errors import MalformedEvent

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a write.

    Args:
        record_id: the record's key as text; empty for a bulk create.
        affected: how many records the named object changed.
        record: what the object returned, or an empty mapping.
    """

    record_id: str = field(repr=False)
    affected: int
    record: Record = field(default_factory=dict, repr=False)

    def to_wire(self) -> dict[str, Any]:
        return {"kind": "response", "record_id": self.record_id, "affected": self.affected, "record": self.record}


@dataclass(frozen=True, slots=True)
class Page:
    """The answer to a fetch: records, and the cursor of the next page (empty at the end).

    It behaves as a sequence of its records.
    """

    records: tuple[Record, ...] = field(default=(), repr=False)
    cursor: str = ""

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        return self.records[index]

    def __repr__(self) -> str:
        return f"<Page of {len(self.records)} records{', more follow' if self.cursor else ''}>"

    def to_wire(self) -> dict[str, Any]:
        return {"kind": "page", "records": list(self.records), "cursor": self.cursor}


Reply = Response | Page


def reply_from_wire(wire: Any) -> Reply:
    """The reply that `to_wire` described.

    Raises:
        MalformedEvent: the worker answered in a form this version does not know.
    """
    if isinstance(wire, Mapping):
        if wire.get("kind") == "response":
            return Response(
                str(wire.get("record_id", "")), int(wire.get("affected", 0)), dict(wire.get("record") or {})
            )
        if wire.get("kind") == "page":
            return Page(tuple(wire.get("records") or ()), str(wire.get("cursor", "")))
    raise MalformedEvent("the worker's reply has a form this version does not know", hint="update the older side")

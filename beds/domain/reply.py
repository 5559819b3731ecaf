"""The replies: a `Response` to a write, a `Page` to a fetch."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, overload

from beds.errors import MalformedEvent

Record = dict[str, Any]

SHOWN_RECORDS = 10
"""Records of a page in its `repr`."""
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 3, 20, 60, 60


@dataclass(frozen=True, slots=True)
class Response:
    """The reply to a write.

    Args:
        record_id: the record's key as text; empty for a bulk create.
        affected: the number of records that the named object changed.
        record: the record that the object returned, or an empty mapping.
    """

    record_id: str
    affected: int
    record: Record = field(default_factory=dict)

    def __repr__(self) -> str:
        record = f" {_REPR.repr(self.record)}" if self.record else ""
        return f"<Response {_REPR.repr(self.record_id)}: {self.affected} affected{record}>"

    def to_wire(self) -> dict[str, Any]:
        return {"kind": "response", "record_id": self.record_id, "affected": self.affected, "record": self.record}


@dataclass(frozen=True, slots=True)
class Page:
    """The reply to a fetch. A page behaves as a sequence of its records.

    Args:
        records: of this page.
        cursor: of the next page; empty at the end.
        is_cut: whether the fetch has no cursor, and its object returned as many records as it may: there may be more.
    """

    records: tuple[Record, ...] = field(default=(), repr=False)
    cursor: str = ""
    is_cut: bool = False

    @property
    def complete(self) -> bool:
        """True if these are the last records: no page follows, and the limit has cut none off."""
        return not self.cursor and not self.is_cut

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
        shown = "".join(f"\n  {_REPR.repr(record)}" for record in self.records[:SHOWN_RECORDS])
        rest = len(self.records) - SHOWN_RECORDS
        more = ", more follow" if self.cursor else ", more may exist" if self.is_cut else ""
        return (
            f"<Page of {len(self.records)} records{more}{shown}" + (f"\n  … and {rest} more" if rest > 0 else "") + ">"
        )

    def to_wire(self) -> dict[str, Any]:
        return {"kind": "page", "records": list(self.records), "cursor": self.cursor, "complete": self.complete}


Reply = Response | Page


def reply_from_wire(wire: Any) -> Reply:
    """The inverse of `to_wire`.

    Raises:
        MalformedEvent: the worker's reply has a form that is unknown in this version.
    """
    match wire:
        case {"kind": "response"}:
            affected, record = wire.get("affected", 0), wire.get("record") or {}
            if type(affected) is int and isinstance(record, Mapping):
                return Response(str(wire.get("record_id", "")), affected, dict(record))
        case {"kind": "page"}:
            records = wire.get("records") or []
            if isinstance(records, (list, tuple)) and all(isinstance(record, Mapping) for record in records):
                cursor = str(wire.get("cursor", ""))
                # A worker of an older version does not say whether its page is complete.
                return Page(tuple(records), cursor, not cursor and wire.get("complete") is not True)
    raise MalformedEvent("the worker's reply has a form this version does not know", hint="update the older side")

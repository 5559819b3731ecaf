"""Cursors: the last record of a page, and the fetch it belongs to."""

from __future__ import annotations

import hashlib
from typing import Any

from beds.core.namaste import Query
from beds.domain.reply import Record
from beds.errors import InvalidCursor, SchemaMismatch
from beds.templates.binding import Binding
from beds.wire import codec


def next_cursor(binding: Binding, query: Query, rows: list[Record]) -> str:
    last = rows[-1]
    missing = [name for name in binding.fetch.cursor if name not in last]
    if missing:
        raise SchemaMismatch(
            f"object {binding.target.name} returns no column {missing[0]}, which the template names in its cursor",
            detail={"object": binding.target.name, "template": binding.template.name},
        )
    empty = [name for name in binding.fetch.cursor if last[name] is None]
    if empty:
        raise SchemaMismatch(
            f"object {binding.target.name} returned a null in {empty[0]}, by which it pages: no page can begin there",
            detail={"object": binding.target.name, "template": binding.template.name},
            hint="page by a column that is never null",
        )
    return codec.pack_cursor([*_asked(binding, query), [last[n] for n in binding.fetch.cursor]])


def check_advance(binding: Binding, query: Query, rows: list[Record]) -> None:
    """Refuse a page that begins with the cursor's own record, since paging would never end.

    Raises:
        SchemaMismatch: the object returned that record again, as a comparison with a FLOAT does.
    """
    after = read_cursor(binding, query)
    if after and rows and all(rows[0].get(name) == value for name, value in after.items()):
        raise SchemaMismatch(
            f"object {binding.target.name} returned again the record that the page begins after",
            detail={"object": binding.target.name, "template": binding.template.name},
            hint="compare with > in the order of the cursor's fields, in columns that keep their values exactly",
        )


def _asked(binding: Binding, query: Query) -> tuple[str, str, str]:
    """The fetch that a cursor belongs to: template, object, and a digest of the arguments."""
    text = codec.dumps(sorted(query.args.items()))
    return binding.template.name, binding.target.name, hashlib.sha256(text).hexdigest()[:16]


def read_cursor(binding: Binding, query: Query) -> dict[str, Any]:
    if not query.cursor:
        return {}
    template, target, args = _asked(binding, query)
    names = binding.fetch.cursor
    match codec.unpack_cursor(query.cursor):
        case [*asked, [*values]] if asked == [template, target, args] and len(values) == len(names):
            for name, value in zip(names, values, strict=True):
                if value is None:
                    raise InvalidCursor("this cursor names no record", detail={"field": "cursor"})
                binding.template.fields[name].check(name, value)
            return dict(zip(names, values, strict=True))
    raise InvalidCursor("this cursor belongs to another fetch, or to other arguments", detail={"field": "cursor"})

"""Cursors: where a page of a fetch ended, and what it belonged to."""

from __future__ import annotations

import hashlib
from typing import Any

from beds.core.namaste import Query
from beds.domain.reply import Record
from beds.errors import InvalidCursor, SchemaMismatch
from beds.templates.binding import Binding
from beds.transport import codec


def next_cursor(binding: Binding, query: Query, rows: list[Record]) -> str:
    last = rows[-1]
    missing = [name for name in binding.fetch.cursor if name not in last]
    if missing:
        raise SchemaMismatch(
            f"object {binding.target.name} returns no column {missing[0]}, which the template names in its cursor",
            detail={"object": binding.target.name, "template": binding.template.name},
        )
    return codec.pack_cursor([*_asked(binding, query), [last[n] for n in binding.fetch.cursor]])


def _asked(binding: Binding, query: Query) -> tuple[str, str, str]:
    """What a cursor belongs to: the template, the object, and the arguments in a few characters."""
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
                binding.template.fields[name].check(name, value)
            return dict(zip(names, values, strict=True))
    raise InvalidCursor("this cursor belongs to another fetch, or to other arguments", detail={"field": "cursor"})

"""Converts the columns of a result set to values of BEDS.

It reads the server's text instead of the driver's conversion. mysqlclient turns an invalid date into null, and a BIT
into bytes that are always true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from MySQLdb.constants import FIELD_TYPE, FLAG

from beds.adapters.conform import Misfit, conform, store_error
from beds.adapters.mariadb.types import SqlType
from beds.templates.fields import FieldSpec

Read = Callable[[Any], Any]

CONVERTERS: dict[int, Callable[[Any], Any]] = {
    **dict.fromkeys((FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG,
                     FIELD_TYPE.YEAR), int),
    FIELD_TYPE.FLOAT: float,
    FIELD_TYPE.DOUBLE: float,
    FIELD_TYPE.DECIMAL: Decimal,
    FIELD_TYPE.NEWDECIMAL: Decimal,
}  # fmt: skip
"""mysqlclient's conversion of numbers. Other types stay text or bytes."""
_TIME = re.compile(r"(-?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?")
_SAME: dict[str, type] = {"string": str, "integer": int, "number": float, "decimal": Decimal, "bytes": bytes}
"""The Python type of a field type. A value that has it already needs no conversion."""


@dataclass(frozen=True, slots=True)
class Column:
    """The reading of one column.

    Args:
        read: converts a value that is not null.
        unchanged: the Python types of values that need no conversion; null's among them.
    """

    read: Read
    unchanged: frozenset[type] = frozenset()

    def values(self, raw: Sequence[Any]) -> Sequence[Any]:
        if self.unchanged.issuperset(map(type, raw)):
            return raw  # saves a call for each value
        return [None if value is None else self.read(value) for value in raw]


def reader(name: str, type_code: int, length: int, spec: FieldSpec | None, flags: int = 0) -> Column:
    """How a column's values become values of its field's type.

    Args:
        name: the column's.
        type_code: mysqlclient's `FIELD_TYPE`.
        length: the column's, as the driver describes it; bits of a BIT.
        spec: the field or argument of that name. None if the template has none: then the column's own type counts.
        flags: the column's. A BIT that an expression returns has the binary flag, and its value is digits.

    Raises (from the column's `read`):
        StoreError: a stored value does not fit the field; names the column.
    """
    natural = _natural(type_code, flags, spec)
    wanted = spec.type if spec else ("time" if type_code == FIELD_TYPE.TIME else _unspecified(type_code, length))
    same = _SAME.get(wanted) if natural is None else None

    def read(value: Any) -> Any:
        if type(value) is same:
            return value
        try:
            found = natural(value) if natural else value
            return conform(wanted, found) if wanted else found
        except Misfit as misfit:
            raise store_error(name, str(misfit)) from None

    return Column(read, frozenset({same, type(None)}) if same else frozenset())


def read_rows(names: Sequence[str], columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows of a result set as records."""
    if not rows:
        return []
    read = [column.values(raw) for column, raw in zip(columns, zip(*rows, strict=True), strict=True)]
    return [dict(zip(names, values, strict=True)) for values in zip(*read, strict=True)]


def out_reader(name: str, declared: SqlType, spec: FieldSpec | None) -> Read:
    """`reader` for an OUT parameter. Its value comes from a user variable, which loses most types."""
    kind = _OUT_TYPES.get(declared.name, FIELD_TYPE.VAR_STRING)
    flags = FLAG.SET if declared.name == "set" else 0
    inner = reader(name, kind, declared.numbers[0] if declared.numbers else 1, spec, flags).read

    def read(value: Any) -> Any:
        if declared.name == "float":
            value = float(f"{float(value):.6g}")  # a user variable holds a FLOAT as a DOUBLE, with added digits
        elif declared.name == "bit" and isinstance(value, int):
            value = value.to_bytes(8)
        elif kind in (FIELD_TYPE.DATE, FIELD_TYPE.DATETIME, FIELD_TYPE.TIME) and isinstance(value, str):
            value = value.encode()
        return inner(value)

    return read


_OUT_TYPES = {
    "date": FIELD_TYPE.DATE,
    "datetime": FIELD_TYPE.DATETIME,
    "timestamp": FIELD_TYPE.DATETIME,
    "time": FIELD_TYPE.TIME,
    "bit": FIELD_TYPE.BIT,
    "float": FIELD_TYPE.FLOAT,
    "double": FIELD_TYPE.DOUBLE,
    "decimal": FIELD_TYPE.NEWDECIMAL,
    **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "bigint", "year"), FIELD_TYPE.LONGLONG),
}


def _natural(type_code: int, flags: int, spec: FieldSpec | None) -> Read | None:
    """The conversion from the driver's value to the column's own type; None if none is needed."""
    match type_code:
        case FIELD_TYPE.BIT:
            return _digits if flags & FLAG.BINARY else _bit
        case FIELD_TYPE.DATE:
            return _date
        case FIELD_TYPE.DATETIME | FIELD_TYPE.TIMESTAMP:
            return _datetime
        case FIELD_TYPE.TIME:
            return _duration
        case FIELD_TYPE.VAR_STRING | FIELD_TYPE.STRING:
            return _members if flags & FLAG.SET and spec is not None and spec.type == "array" else None
    return None


def _unspecified(type_code: int, length: int) -> str:
    """The field type of a column that no field describes; empty if its values need no check."""
    if type_code == FIELD_TYPE.BIT:
        return "boolean" if length == 1 else "integer"
    if type_code in (FIELD_TYPE.FLOAT, FIELD_TYPE.DOUBLE):
        return "number"
    return ""


def _bit(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _digits(raw: bytes | str) -> int:
    """Read a BIT that an expression returned, such as MAX or IF."""
    try:
        return int(raw)
    except ValueError:
        raise Misfit("holds a BIT that cannot be read; return it as a number, with + 0") from None


def _date(raw: bytes | str) -> date:
    text = _text(raw)
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Misfit(f"holds the date {_shown(text)}, which is none; return NULLIF(…, 0), or text") from None


def _datetime(raw: bytes | str) -> datetime:
    text = _text(raw)
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)  # the session's time zone is UTC
    except ValueError:
        raise Misfit(f"holds the time {_shown(text)}, which is none; return NULLIF(…, 0), or text") from None


def _shown(text: str) -> str:
    """Describe a zero or partial date. The stored value stays out of the message, since it may be personal data."""
    return "0000-00-00" if text.startswith("0000-00-00") else "with a month or day of zero"


def _duration(raw: bytes | str) -> timedelta:
    found = _TIME.fullmatch(_text(raw))
    if not found:
        raise Misfit("holds a TIME that cannot be read")
    sign, hours, minutes, seconds, fraction = found.groups()
    value = timedelta(
        hours=int(hours),
        minutes=int(minutes),
        seconds=int(seconds),
        microseconds=int((fraction or "").ljust(6, "0")),
    )
    return -value if sign else value


def _members(value: Any) -> Any:
    """The members of a SET, for a field of type array."""
    return (value.split(",") if value else []) if isinstance(value, str) else value


def _text(raw: bytes | str) -> str:
    return raw.decode("ascii", "replace") if isinstance(raw, bytes) else raw

"""A column as a template's field, as a procedure's parameter, and as a column of JSON_TABLE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from beds.adapters.mariadb.types import SqlType
from beds.schema_tools.draft.catalogue import Column
from beds.schema_tools.draft.naming import field_name

_INTEGERS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
_GEOMETRY = frozenset({"geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon",
                       "geometrycollection"})  # fmt: skip
_LONGEST_VARCHAR = 16_000
_PREFERRED = ("decimal", "integer", "number", "array", "string", "bytes", "uuid", "datetime", "date", "duration")
"""Field types: the first that a column carries is drafted."""
_NOT_ALL = frozenset({("longtext", "array")})
"""Types that carry a field's values, but whose own values are not all such values."""
NO_ORDER = frozenset({"float", "double", "tinytext", "text", "mediumtext", "longtext", "tinyblob", "blob", "mediumblob",
                      "longblob", "vector", *_GEOMETRY})  # fmt: skip
"""Types by which no page is ordered: they round, or are too long."""
_BY_NUMBER = frozenset({"enum", "set", "bit"})
"""Types that MariaDB orders by a number, and compares as text."""
UNSHOWN = "?"
"""What information_schema shows for a character beyond its own character set, utf8mb3."""
MOMENTS = frozenset({"datetime", "timestamp", "date"})


@dataclass(frozen=True, slots=True)
class Field:
    """A column and its field.

    Args:
        column: of the table.
        name: of the field.
        type: of the field.
        limits: the other keys of the field's table in the template.
        remarks: for the template's reader.
    """

    column: Column
    name: str
    type: str
    limits: dict[str, Any]
    remarks: tuple[str, ...] = ()

    @property
    def parameter(self) -> str:
        """The type of a parameter that takes the column's values."""
        return parameter_type(self.column)

    @property
    def is_ordered(self) -> bool:
        """Whether pages can be ordered by it."""
        is_null = self.column.sampled == "zero"  # no page begins after a null
        return self.column.type.name not in NO_ORDER and not self.column.is_json and not is_null

    def in_order(self, expression: str) -> str:
        """A value of the column as MariaDB orders it."""
        return f"{expression} | 0" if self.column.type.name in _BY_NUMBER else expression

    def in_json(self, read: str) -> tuple[str, str]:
        """The type in which JSON_TABLE reads the value, and the column's value, made of the name `read`."""
        return _in_json(self.column, read)


def field_of(column: Column) -> Field | None:
    """The field for a column; None if BEDS has no type for it."""
    kind = field_type(column)
    if not kind or any(UNSHOWN in member for member in column.type.members):
        return None
    limits = limits_of(column.type, kind)
    remarks = []
    if column.type.name == "set":
        remarks.append(f"members: {', '.join(column.type.members)}")
    if column.sampled == "text":
        remarks.append("JSON of several kinds, as text")
    if column.sampled == "zero":
        remarks.append("0000-00-00 is returned as null")
    if column.sets_itself:
        remarks.append("set by MariaDB at each update")
    return Field(column, field_name(column.name), kind, limits, tuple(remarks))


def field_type(column: Column) -> str:
    """The field type for a column; empty if BEDS has none."""
    if column.is_json:
        return "string" if column.sampled == "text" else column.sampled or "object"
    if column.type.name == "time":
        return "time" if column.sampled == "day" else "duration"
    if column.type.name == "tinyint" and column.type.numbers == (1,) and not column.type.unsigned:
        return "boolean" if column.sampled == "flag" else "integer"
    return type_of(column.type)


def type_of(declared: SqlType) -> str:
    """The field type that carries each value of a declared type; empty if BEDS has none."""
    if declared.name == "bit":
        return "boolean" if declared.numbers in ((), (1,)) else "integer"
    return next((kind for kind in _PREFERRED if kind in declared.carries and (declared.name, kind) not in _NOT_ALL), "")


def limits_of(declared: SqlType, kind: str) -> dict[str, Any]:
    """The limits that the declared type sets, as keys of a field."""
    name = declared.name
    if name in _INTEGERS and kind == "integer":
        bits = _INTEGERS[name]
        if declared.unsigned:
            return {"min": 0} if bits == 64 else {"min": 0, "max": 2**bits - 1}
        return {} if bits == 64 else {"min": -(2 ** (bits - 1)), "max": 2 ** (bits - 1) - 1}
    if name == "bit" and kind == "integer":
        return {"min": 0, "max": 2 ** declared.numbers[0] - 1}
    if name == "year":
        return {"min": 0, "max": 2155}
    if name == "decimal":
        digits, scale = (*declared.numbers, 10, 0)[:2] if len(declared.numbers) != 1 else (declared.numbers[0], 0)
        return {"digits": digits, "scale": scale} | ({"min": 0} if declared.unsigned else {})
    if name in ("float", "double") and declared.unsigned:
        return {"min": 0}
    if name in ("char", "varchar", "binary", "varbinary"):
        return {"max_length": declared.max_length} if declared.max_length else {}
    if name == "enum":
        return {"values": list(declared.members)}
    return {}


def parameter_type(column: Column) -> str:
    """The type of a parameter that takes a column's values."""
    if column.is_json:
        return "JSON"
    declared = column.type.declared
    if column.type.name in _INTEGERS and column.type.numbers != (1,):
        declared = f"{column.type.name}{' unsigned' if column.type.unsigned else ''}"
    upper = declared if column.type.members else declared.upper()
    if column.collation:
        return f"{upper} CHARACTER SET {column.charset} COLLATE {column.collation}"
    return upper


def _in_json(column: Column, read: str) -> tuple[str, str]:
    declared = column.type
    size = declared.numbers[0] if declared.numbers else 1
    if column.is_json and column.sampled != "text":
        return "JSON", read
    match declared.name:
        case "bit":
            return ("INT" if size < 32 else "BIGINT UNSIGNED"), read
        case "year":
            return "INT", read
        case "enum":
            return f"VARCHAR({max(1, *map(len, declared.members))})", read
        case "set":
            return f"VARCHAR({max(1, len(','.join(declared.members)))})", read
        case "uuid":
            return "CHAR(36)", read
        case "inet4":
            return "VARCHAR(15)", read
        case "inet6":
            return "VARCHAR(45)", read
        case "binary" | "varbinary" if size <= _LONGEST_VARCHAR:
            return f"VARCHAR({max(4, 4 * -(-size // 3))})", f"FROM_BASE64({read})"
        case "timestamp":
            return f"DATETIME({declared.numbers[0]})" if declared.numbers else "DATETIME", read
    if "bytes" in declared.carries:
        return "LONGTEXT", f"FROM_BASE64({read})"
    if declared.name in _INTEGERS and declared.numbers != (1,):
        return f"{declared.name}{' unsigned' if declared.unsigned else ''}".upper(), read
    return declared.declared.upper(), read

"""Reading the signatures of procedures, functions and views from information_schema."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from beds.templates.named_object import NamedObject, ObjectKind, Param

ROUTINES = """
SELECT r.ROUTINE_NAME AS name, r.ROUTINE_TYPE AS kind, r.ROUTINE_COMMENT AS description
  FROM information_schema.ROUTINES r
 WHERE r.ROUTINE_SCHEMA = %(database)s AND r.ROUTINE_NAME IN %(names)s"""
PARAMETERS = """
SELECT SPECIFIC_NAME AS object, PARAMETER_NAME AS name, PARAMETER_MODE AS mode, DATA_TYPE AS type,
       DTD_IDENTIFIER AS declared, CHARACTER_MAXIMUM_LENGTH AS max_length, NUMERIC_PRECISION AS digits,
       NUMERIC_SCALE AS scale, DATETIME_PRECISION AS fraction
  FROM information_schema.PARAMETERS
 WHERE SPECIFIC_SCHEMA = %(database)s AND SPECIFIC_NAME IN %(names)s AND ORDINAL_POSITION > 0
 ORDER BY SPECIFIC_NAME, ORDINAL_POSITION"""
VIEWS = """
SELECT TABLE_NAME AS name FROM information_schema.VIEWS
 WHERE TABLE_SCHEMA = %(database)s AND TABLE_NAME IN %(names)s"""

PREFIX = "p_"
"""Parameters carry it, so that they differ from the columns they are compared with."""

_INTEGERS = {"tinyint": 2**7, "smallint": 2**15, "mediumint": 2**23, "int": 2**31, "bigint": 2**63, "year": 2156}
_TYPES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(_INTEGERS, frozenset({"integer"})),
    "tinyint": frozenset({"integer", "boolean"}),
    "bit": frozenset({"boolean"}),
    "decimal": frozenset({"decimal", "integer"}),
    "float": frozenset({"number"}),
    "double": frozenset({"number"}),
    "char": frozenset({"string", "uuid", "object_id"}),
    "varchar": frozenset({"string", "uuid", "object_id"}),
    "tinytext": frozenset({"string"}),
    "text": frozenset({"string"}),
    "mediumtext": frozenset({"string"}),
    "longtext": frozenset({"string", "object", "array"}),  # JSON is an alias of LONGTEXT
    "enum": frozenset({"string"}),
    "uuid": frozenset({"uuid"}),
    "binary": frozenset({"bytes", "uuid"}),
    "varbinary": frozenset({"bytes", "uuid"}),
    "tinyblob": frozenset({"bytes"}),
    "blob": frozenset({"bytes"}),
    "mediumblob": frozenset({"bytes"}),
    "longblob": frozenset({"bytes"}),
    "datetime": frozenset({"datetime"}),
    "timestamp": frozenset({"datetime"}),
    "date": frozenset({"date"}),
    "time": frozenset({"time"}),
}
_COUNTED = frozenset({"char", "varchar", "binary", "varbinary", "tinytext", "text", "tinyblob", "blob"})
VIEW_LIMIT = Param("limit", frozenset({"integer"}), "rows")


def build(
    routines: Iterable[Mapping[str, Any]], parameters: Iterable[Mapping[str, Any]], views: Iterable[Mapping[str, Any]]
) -> dict[str, NamedObject]:
    """The rows of the three queries above as named objects, by name."""
    params: dict[str, list[Param]] = defaultdict(list)
    for row in parameters:
        params[row["object"]].append(_param(row))
    found = {
        row["name"]: NamedObject(
            row["name"], ObjectKind(row["kind"].lower()), tuple(params[row["name"]]), description=row["description"]
        )
        for row in routines
    }
    return found | {row["name"]: NamedObject(row["name"], ObjectKind.VIEW, (VIEW_LIMIT,)) for row in views}


def _param(row: Mapping[str, Any]) -> Param:
    sql_type = str(row["type"]).lower()
    declared = str(row["declared"]).lower()
    bound = _INTEGERS.get(sql_type)
    if bound and "unsigned" in declared:
        bound *= 2
    return Param(
        name=row["name"].removeprefix(PREFIX),
        types=_TYPES.get(sql_type, frozenset()),
        declared=declared,
        mode="in" if row["mode"] in ("IN", None) else "out",
        max_length=int(row["max_length"]) if sql_type in _COUNTED and row["max_length"] else None,
        digits=int(row["digits"]) if sql_type == "decimal" else None,
        scale=int(row["scale"]) if sql_type == "decimal" else None,
        fraction=int(row["fraction"] or 0) if sql_type in ("datetime", "timestamp") else None,
        max=bound - 1 if bound else None,
    )

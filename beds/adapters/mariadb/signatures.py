"""Reads the signatures of procedures, functions and views from information_schema and from a routine's text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from beds.adapters.mariadb import definition
from beds.adapters.mariadb.types import SqlType
from beds.templates.binding import bounded_field
from beds.templates.named_object import NamedObject, ObjectKind, Param

ROUTINES = """
SELECT r.ROUTINE_NAME AS name, r.ROUTINE_TYPE AS kind, r.ROUTINE_COMMENT AS description
  FROM information_schema.ROUTINES r
 WHERE r.ROUTINE_SCHEMA = %(database)s AND r.ROUTINE_NAME IN %(names)s"""
PARAMETERS = """
SELECT SPECIFIC_NAME AS object, PARAMETER_NAME AS name, PARAMETER_MODE AS mode, DTD_IDENTIFIER AS declared,
       COLLATION_NAME AS collation
  FROM information_schema.PARAMETERS
 WHERE SPECIFIC_SCHEMA = %(database)s AND SPECIFIC_NAME IN %(names)s AND ORDINAL_POSITION > 0
 ORDER BY SPECIFIC_NAME, ORDINAL_POSITION"""
VIEWS = """
SELECT v.TABLE_NAME AS name, c.COLUMN_NAME AS result
  FROM information_schema.VIEWS v JOIN information_schema.COLUMNS c USING (TABLE_SCHEMA, TABLE_NAME)
 WHERE v.TABLE_SCHEMA = %(database)s AND v.TABLE_NAME IN %(names)s ORDER BY v.TABLE_NAME, c.ORDINAL_POSITION"""

PREFIX = "p_"
"""Prefix of parameters, so that their names differ from the columns they are compared with."""
VIEW_LIMIT = Param("limit", frozenset({"integer"}), "rows", whole=True)
_MODES: Mapping[Any, Any] = {"OUT": "out", "INOUT": "inout"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table that a routine writes to or reads from."""

    table: str
    place: int
    name: str
    type: SqlType
    collation: str


@dataclass(frozen=True, slots=True)
class Source:
    """A routine's text, the SQL mode stored with it, and the columns of the tables that it names."""

    sql_mode: str
    text: str
    columns: tuple[Column, ...] = ()

    @property
    def code(self) -> str:
        return definition.code_of(self.text, self.sql_mode)

    def targets(self) -> dict[str, list[Column]]:
        """The columns that each parameter or column of JSON_TABLE goes into unchanged, by its lower-case name."""
        found: dict[str, list[Column]] = defaultdict(list)
        for flow in definition.flows(self.code):
            for column in self.columns:
                if column.table == flow.table and flow.column in ("*", column.name.lower(), column.place):
                    found[column.name.lower() if flow.source == "*" else flow.source].append(column)
        return found


def build(
    routines: Iterable[Mapping[str, Any]],
    sources: Mapping[str, Source],
    parameters: Iterable[Mapping[str, Any]],
    views: Iterable[Mapping[str, Any]],
) -> dict[str, NamedObject]:
    """Named objects by name.

    Args:
        routines, parameters, views: the rows of the three queries above.
        sources: the source of each routine.
    """
    params: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in parameters:
        params[row["object"]].append(row)
    found = {}
    for row in routines:
        source = sources[row["name"]]
        targets = source.targets()
        columns, complete = _bulk_columns(source, targets)
        declared = params[row["name"]]
        found[row["name"]] = NamedObject(
            row["name"],
            ObjectKind(row["kind"].lower()),
            tuple(_param(each, source, targets.get(each["name"].lower(), [])) for each in declared),
            columns=columns,
            reads_all=not complete,
            fields_of={
                column.name.lower(): name.removeprefix(PREFIX) for name, behind in targets.items() for column in behind
            },
            several=source.code.count(";") > 2,
            may_write=definition.may_write(source.code),
            stamp=definition.stamp(source.sql_mode, source.text),
            strict=definition.is_strict(source.sql_mode),
            description=row["description"],
        )
    results: dict[str, list[str]] = defaultdict(list)
    for row in views:
        results[row["name"]].append(row["result"])
    return found | {
        name: NamedObject(name, ObjectKind.VIEW, (VIEW_LIMIT,), results=tuple(of)) for name, of in results.items()
    }


def _param(row: Mapping[str, Any], source: Source, behind: list[Column]) -> Param:
    declared = SqlType.parse(str(row["declared"]))
    name = row["name"].removeprefix(PREFIX)
    own = str(row["collation"] or "")
    checks = [declared.check, *(column.type.check for column in behind)]
    if declared.name == "float" and any(column.type.name != "float" for column in behind):
        checks.append(declared.check_single)
    return Param(
        name=name,
        types=declared.carries,
        declared=declared.declared.lower() if not declared.members else declared.declared,
        mode=_MODES.get(row["mode"], "in"),
        max_length=declared.max_length,
        checks=tuple(checks),
        cannot_page=_why_no_page(name, declared, own, source.columns),
        ignores=_ignored(next((c.collation for c in behind if c.collation), own)),
    )


def _why_no_page(name: str, declared: SqlType, collation: str, columns: Iterable[Column]) -> str:
    """The reason why no page can begin after this parameter's value; empty if one can."""
    if not name.startswith(("after_", "until_")):
        return ""
    if declared.name == "float":
        return f"is {declared.declared}, which rounds: no page can begin after such a value"
    for column in columns:
        if column.name.lower() != bounded_field(name).lower():
            continue
        if column.type.name == "float":
            where = f"{column.table}.{column.name}"
            return f"is compared with {where}, a FLOAT, which rounds: no page can begin after such a value"
        if column.collation and collation and _ignored(column.collation) != _ignored(collation):
            return (
                f"has the collation {collation}, by which it compares, and {column.table}.{column.name} is ordered by "
                f"{column.collation}: declare the parameter with COLLATE {column.collation}"
            )
    return ""


def _bulk_columns(source: Source, targets: Mapping[str, list[Column]]) -> tuple[dict[str, Param], bool]:
    """The types of a bulk's fields, and whether JSON_TABLE reads no other field.

    JSON_TABLE reads each field in one type, and its column may have another. A value must fit both.
    """
    found = {}
    read, complete = definition.json_columns(source.text)
    for name, text in read.items():
        if not text:
            found[name] = Param(name, frozenset(), "in parts")
            continue
        declared = SqlType.parse(text)
        types = [declared, *(column.type for column in targets.get(name.lower(), []))]
        found[name] = Param(
            name,
            declared.carries,
            declared.declared,
            checks=tuple(t.check for t in types),
            keeps=tuple(t.keeps_all for t in types),
        )
    return found, complete


def _ignored(collation: str) -> frozenset[str]:
    """The differences that a collation ignores: https://mariadb.com/kb/en/supported-character-sets-and-collations/"""
    if not collation or collation == "binary":
        return frozenset()
    found = set() if "nopad" in collation else {"spaces"}
    return frozenset(found if collation.endswith("_bin") else found | {"case"})

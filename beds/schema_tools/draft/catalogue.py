"""What MariaDB's information_schema says of tables, views and routines."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import MySQLdb

from beds.adapters.mariadb.types import SqlType

SAMPLE_ROWS = 1000
"""Rows that are read of a table to tell a TIME of the day from a duration, and what a JSON column holds."""
_DAY = 24
_ZERO = "0000-00-00"
_JSON_CHECK = re.compile(r"json_valid\(`([^`]+)`\)", re.IGNORECASE)
_ON_UPDATE = re.compile(r"\bon update\b", re.IGNORECASE)

_TABLES = """
SELECT TABLE_NAME AS name, TABLE_TYPE AS kind, ENGINE AS engine, TABLE_COMMENT AS comment
  FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() ORDER BY TABLE_NAME"""
_COLUMNS = """
SELECT TABLE_NAME AS owner, COLUMN_NAME AS name, COLUMN_TYPE AS declared, DATA_TYPE AS data_type,
       IS_NULLABLE = 'YES' AS nullable, COLUMN_DEFAULT AS fallback, EXTRA AS extra, IS_GENERATED = 'ALWAYS' AS made,
       COLUMN_COMMENT AS comment, CHARACTER_SET_NAME AS charset, COLLATION_NAME AS collation
  FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() ORDER BY TABLE_NAME, ORDINAL_POSITION"""
_INDEXES = """
SELECT TABLE_NAME AS owner, INDEX_NAME AS name, COLUMN_NAME AS part, NON_UNIQUE = 0 AS is_unique, INDEX_TYPE AS kind,
       SUB_PART IS NOT NULL AS is_prefix
  FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = DATABASE() ORDER BY TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX"""
_FOREIGN_KEYS = """
SELECT TABLE_NAME AS owner, CONSTRAINT_NAME AS name, COLUMN_NAME AS part, REFERENCED_TABLE_NAME AS target,
       REFERENCED_COLUMN_NAME AS target_part
  FROM information_schema.KEY_COLUMN_USAGE
 WHERE TABLE_SCHEMA = DATABASE() AND REFERENCED_TABLE_NAME IS NOT NULL
 ORDER BY TABLE_NAME, CONSTRAINT_NAME, ORDINAL_POSITION"""
_DEPENDENTS = """
SELECT REFERENCED_TABLE_NAME AS owner, TABLE_NAME AS name, DELETE_RULE AS rule
  FROM information_schema.REFERENTIAL_CONSTRAINTS
 WHERE UNIQUE_CONSTRAINT_SCHEMA = DATABASE() AND DELETE_RULE IN ('CASCADE', 'SET NULL', 'SET DEFAULT')
 ORDER BY TABLE_NAME"""
_CHECKS = """
SELECT TABLE_NAME AS owner, CHECK_CLAUSE AS clause
  FROM information_schema.CHECK_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = DATABASE() ORDER BY TABLE_NAME, CONSTRAINT_NAME"""
_TRIGGERS = """
SELECT EVENT_OBJECT_TABLE AS owner, EVENT_MANIPULATION AS event
  FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE()"""
_VIEWS = """
SELECT TABLE_NAME AS name, SECURITY_TYPE AS security, VIEW_DEFINITION AS text
  FROM information_schema.VIEWS WHERE TABLE_SCHEMA = DATABASE()"""
_ROUTINES = """
SELECT ROUTINE_NAME AS name, ROUTINE_TYPE AS kind, ROUTINE_DEFINITION AS body, SQL_MODE AS sql_mode,
       SQL_DATA_ACCESS AS access,
       SECURITY_TYPE AS security, ROUTINE_COMMENT AS comment
  FROM information_schema.ROUTINES
 WHERE ROUTINE_SCHEMA = DATABASE() AND ROUTINE_TYPE IN ('PROCEDURE', 'FUNCTION') ORDER BY ROUTINE_NAME"""
_PARAMETERS = """
SELECT CONCAT(ROUTINE_TYPE, ' ', SPECIFIC_NAME) AS owner, PARAMETER_NAME AS name, PARAMETER_MODE AS mode,
       DTD_IDENTIFIER AS declared
  FROM information_schema.PARAMETERS
 WHERE SPECIFIC_SCHEMA = DATABASE() AND ORDINAL_POSITION > 0 ORDER BY SPECIFIC_NAME, ORDINAL_POSITION"""


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Args:
        name: as the DBA wrote it.
        type: its declared type.
        nullable: whether it takes a null.
        default: the default's expression as MariaDB writes it; empty if there is none.
        is_auto: AUTO_INCREMENT.
        is_generated: whether it is computed, so that no write names it.
        sets_itself: ON UPDATE CURRENT_TIMESTAMP.
        is_json: whether its text is checked to be JSON.
        comment: the DBA's.
        charset, collation: empty unless they differ from the database's.
        sampled: what a sample of its values holds: `object`, `array` or `text` (JSON of several kinds); `day` (times of
            the day); `flag` (0 and 1); `zero` (0000-00-00 among its dates); or empty.
    """

    name: str
    type: SqlType
    nullable: bool
    default: str = ""
    is_auto: bool = False
    is_generated: bool = False
    sets_itself: bool = False
    is_json: bool = False
    comment: str = ""
    charset: str = ""
    collation: str = ""
    sampled: str = ""

    @property
    def needs_value(self) -> bool:
        """Whether an insert fails without it."""
        return not (self.nullable or self.default or self.is_auto or self.is_generated)


@dataclass(frozen=True, slots=True)
class Index:
    """An index; `kind` is BTREE, HASH, RTREE, FULLTEXT or SPATIAL."""

    name: str
    columns: tuple[str, ...]
    is_unique: bool
    kind: str = "BTREE"
    has_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table or a view, without its rows. `problem` is what MariaDB says when a view cannot be read."""

    name: str
    kind: str
    columns: tuple[Column, ...]
    comment: str = ""
    indexes: tuple[Index, ...] = ()
    references: Mapping[str, str] = field(default_factory=dict)
    """For a column of a foreign key: `table.column`."""
    checks: tuple[str, ...] = ()
    engine: str = ""
    dependents: tuple[str, ...] = ()
    """The tables whose records change when one of this table is deleted: ON DELETE CASCADE or SET NULL."""
    triggers: frozenset[str] = frozenset()
    """INSERT, UPDATE, DELETE: the statements that fire a trigger."""
    security: str = ""
    problem: str = ""
    text: str = ""
    """A view's query."""

    @property
    def is_view(self) -> bool:
        return self.kind == "VIEW"

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the primary key, or of the first unique index without nulls; empty if there is neither."""
        usable = [
            index
            for index in self.indexes
            if index.is_unique and not index.has_prefix and not any(self.column(n).nullable for n in index.columns)
        ]
        usable.sort(key=lambda index: (index.name != "PRIMARY", len(index.columns), index.name))
        return usable[0].columns if usable else ()


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    mode: str
    type: SqlType


@dataclass(frozen=True, slots=True)
class Routine:
    """A procedure or function.

    Args:
        name, kind, sql_mode, security, comment: as MariaDB has them.
        body: empty if the DBA's account may not read it.
        access: what the DBA declared, such as MODIFIES SQL DATA.
        parameters: in their order.
    """

    name: str
    kind: str
    body: str
    sql_mode: str
    security: str
    comment: str
    access: str
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All tables, views and routines of a database, each sorted by name."""

    tables: tuple[Table, ...]
    routines: tuple[Routine, ...]
    reserved_words: frozenset[str]


def read_catalogue(cursor: Any, wanted: Iterable[str] | None = None) -> Catalogue:
    """Read the catalogue of the connected database, and a sample of some columns.

    Args:
        cursor: of the DBA, with rows as dictionaries.
        wanted: the tables of which samples are read; all when absent.
    """
    rows = {name: _rows(cursor, query) for name, query in _QUERIES.items()}
    wanted = None if wanted is None else set(wanted)
    views = {row["name"]: row for row in rows["views"]}
    charset, collation = _rows(cursor, "SELECT @@character_set_database AS a, @@collation_database AS b")[0].values()
    columns, indexes = _by_owner(rows["columns"]), _by_owner(rows["indexes"])
    keys, checks, triggers = (_by_owner(rows[each]) for each in ("foreign_keys", "checks", "triggers"))
    dependents = _by_owner(rows["dependents"])
    tables = []
    for row in rows["tables"]:
        name = row["name"]
        if row["kind"] not in ("BASE TABLE", "SYSTEM VERSIONED", "VIEW"):
            continue  # a sequence
        clauses = [str(check["clause"]) for check in checks[name]]
        json_columns = {match[1] for clause in clauses if (match := _JSON_CHECK.fullmatch(clause.strip()))}
        found = [_column(each, json_columns, (charset, collation)) for each in columns[name]]
        problem = ""
        if name in views:
            problem = _problem_of_view(cursor, name)
        elif wanted is None or name in wanted:
            found = [_sampled(cursor, name, column) for column in found]
        tables.append(
            Table(
                name,
                row["kind"],
                tuple(found),
                "" if row["comment"] == "VIEW" else row["comment"],
                _indexes(indexes[name]),
                {each["part"]: f"{each['target']}.{each['target_part']}" for each in keys[name]},
                tuple(clause for clause in clauses if not _JSON_CHECK.fullmatch(clause.strip())),
                str(row["engine"] or ""),
                tuple(dict.fromkeys(each["name"] for each in dependents[name])),
                frozenset(each["event"] for each in triggers[name]),
                views[name]["security"] if name in views else "",
                problem,
                str(views[name]["text"] or "") if name in views else "",
            )
        )
    parameters = _by_owner(rows["parameters"])
    routines = tuple(
        Routine(
            row["name"],
            row["kind"].lower(),
            str(row["body"] or ""),
            str(row["sql_mode"] or ""),
            row["security"],
            row["comment"],
            row["access"],
            tuple(
                Parameter(each["name"], (each["mode"] or "IN").lower(), SqlType.parse(str(each["declared"])))
                for each in parameters[f"{row['kind']} {row['name']}"]
            ),
        )
        for row in rows["routines"]
    )
    words = frozenset(row["word"].upper() for row in rows["words"])
    return Catalogue(tuple(tables), routines, words)


_QUERIES = {
    "tables": _TABLES,
    "columns": _COLUMNS,
    "indexes": _INDEXES,
    "foreign_keys": _FOREIGN_KEYS,
    "checks": _CHECKS,
    "triggers": _TRIGGERS,
    "dependents": _DEPENDENTS,
    "views": _VIEWS,
    "routines": _ROUTINES,
    "parameters": _PARAMETERS,
    "words": "SELECT WORD AS word FROM information_schema.KEYWORDS",
}


def _rows(cursor: Any, query: str) -> list[dict[str, Any]]:
    cursor.execute(query)
    return list(cursor.fetchall())


def _by_owner(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["owner"]].append(row)
    return found


def _column(row: Mapping[str, Any], json_columns: set[str], usual: tuple[str, str]) -> Column:
    default = row["fallback"]
    differs = row["collation"] is not None and (row["charset"], row["collation"]) != usual
    return Column(
        row["name"],
        SqlType.parse(str(row["declared"])),
        bool(row["nullable"]),
        "" if default is None or default == "NULL" else str(default),
        "auto_increment" in row["extra"].lower(),
        bool(row["made"]),
        bool(_ON_UPDATE.search(row["extra"])),
        row["name"] in json_columns,
        row["comment"],
        row["charset"] if differs else "",
        row["collation"] if differs else "",
    )


def _indexes(rows: Sequence[Mapping[str, Any]]) -> tuple[Index, ...]:
    parts: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        parts[row["name"]].append(row)
    return tuple(
        Index(
            name,
            tuple(each["part"] for each in of),
            bool(of[0]["is_unique"]),
            of[0]["kind"],
            any(each["is_prefix"] for each in of),
        )
        for name, of in parts.items()
    )


def _sampled(cursor: Any, table: str, column: Column) -> Column:
    """The column with what a sample of its values holds."""
    name = quoted(column.name)
    sample = f"(SELECT {name} AS v FROM {quoted(table)} WHERE {name} IS NOT NULL LIMIT {SAMPLE_ROWS}) AS sample"
    if column.is_json:
        kinds = {row["kind"] for row in _rows(cursor, f"SELECT DISTINCT JSON_TYPE(v) AS kind FROM {sample}")}
        alone = {frozenset({"OBJECT"}): "object", frozenset({"ARRAY"}): "array", frozenset(): ""}
        return replace(column, sampled=alone.get(frozenset(kinds), "text"))
    if column.type.name in ("date", "datetime", "timestamp"):
        has_zero = _ZERO in column.default or _rows(cursor, f"SELECT 1 FROM {sample} WHERE v = 0 LIMIT 1")
        return replace(column, sampled="zero" if has_zero else "")
    if column.type.name == "time":
        (row,) = _rows(cursor, f"SELECT COUNT(*) = SUM(v >= 0 AND HOUR(v) < {_DAY}) AS holds FROM {sample}")
        return replace(column, sampled="day" if row["holds"] in (None, 1) else "")
    if column.type.name == "tinyint" and column.type.numbers == (1,):
        (row,) = _rows(cursor, f"SELECT COUNT(*) = SUM(v IN (0, 1)) AS holds FROM {sample}")
        return replace(column, sampled="flag" if row["holds"] in (None, 1) else "")
    return column


def _problem_of_view(cursor: Any, name: str) -> str:
    try:
        _rows(cursor, f"SELECT * FROM {quoted(name)} LIMIT 0")
    except MySQLdb.Error as error:
        return str(error.args[-1])
    return ""


def quoted(name: str) -> str:
    """A name in backticks."""
    return "`" + name.replace("`", "``") + "`"

"""Translates mysqlclient's errors to errors of BEDS; the only place that does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import MySQLdb

from beds.adapters.mariadb.signatures import PREFIX
from beds.adapters.store import harmless
from beds.errors import (
    BedsError,
    BodyTooLarge,
    BusinessRule,
    DuplicateKey,
    ForeignKeyViolation,
    InvalidPayload,
    MissingField,
    OutOfRange,
    SchemaMismatch,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    TimeLimitExceeded,
    TooLong,
    UnknownField,
    WrongType,
)
from beds.templates.fields import FieldSpec


def column_in(message: str) -> str:
    """The column or parameter that a message names: "column 'name' at row 1", "column ``.``.`p_name` at row 0".

    The last match counts, since a value before it may contain any text.
    """
    found = re.findall(r"column ([`'\w.]+)", message, re.IGNORECASE)
    return found[-1].replace("`", "").replace("'", "").rsplit(".", 1)[-1].removeprefix(PREFIX) if found else ""


def _key_in(message: str) -> str:
    """The index that a message names at its end. The value before it may contain any text."""
    _, found, key = message.rpartition(" for key '")
    return key.removesuffix("'").rsplit(".", 1)[-1] if found else ""


def _duplicate(message: str) -> BedsError:
    key = _key_in(message)
    name = "" if key == "PRIMARY" else key
    return DuplicateKey(f"a record with this {name or 'key'} exists", detail={"field": name})


def _foreign_key(message: str) -> BedsError:
    found = re.search(r"`([^`]+)`, CONSTRAINT .*FOREIGN KEY \((`[^)]+`)\) REFERENCES `(?:[^`]+`\.`)?([^`]+)`", message)
    if not found:
        return ForeignKeyViolation("a foreign key does not hold")
    child, columns, parent = found.groups()
    fields = [column.strip("` ") for column in columns.split(",")]
    named = ", ".join(fields)
    detail: dict[str, Any] = {"field": named, "fields": fields, "refers_to": parent}
    if "Cannot add" in message:
        plural = ("s", "") if len(fields) > 1 else ("", "s")
        return ForeignKeyViolation(
            f"field{plural[0]} {named} refer{plural[1]} to {parent}, which has no such record", detail=detail
        )
    return ForeignKeyViolation(
        f"records of {child} still refer to this one of {parent}, by their field{'s'[: len(fields) - 1]} {named}",
        detail=detail | {"referred_by": child},
    )


def _field_error(cls: type[InvalidPayload], problem: str) -> Callable[[str], BedsError]:
    def make(message: str) -> BedsError:
        name = column_in(message)
        return cls(f"field {name or '?'} {problem}", detail={"field": name})

    return make


def _mismatch(message: str) -> BedsError:
    return SchemaMismatch(f"MariaDB: {message}")


def _denied(_message: str) -> BedsError:
    return StoreDenied("the broker's MariaDB user may not do this")


def _lost(_message: str) -> BedsError:
    return StoreUnavailable("the connection to MariaDB broke")


def _not_done(problem: str) -> Callable[[str], BedsError]:
    return lambda _message: harmless(StoreUnavailable(problem))


# Codes: https://mariadb.com/kb/en/mariadb-error-code-reference/ (1000 and up: server, 2000 and up: client)
_FUNCTION_RANGES = range(3045, 3052)
"""Domain, length, argument, range, overflow and underflow errors of a function, such as one of geometry."""
_BY_CODE: Mapping[int, Callable[[str], BedsError]] = {
    **dict.fromkeys(
        _FUNCTION_RANGES, lambda _message: OutOfRange("a value is out of range for a function of the object")
    ),
    1020: _not_done("another transaction changed the record"),
    1021: _not_done("MariaDB has no disk space left"),
    1030: lambda m: (
        harmless(StoreUnavailable("MariaDB has no disk space left"))
        if "28" in m
        else StoreError("MariaDB's storage engine failed")
    ),
    1040: _not_done("MariaDB has no connection to spare"),
    1044: _denied,
    1045: lambda m: StoreDenied(
        "MariaDB refuses the user or password", hint="check [databases.rel], or [schema.dba.rel] for `beds schema`"
    ),
    1048: _field_error(MissingField, "may not be null"),
    1053: _lost,
    1054: _mismatch,
    1062: _duplicate,
    1114: _not_done("a table of MariaDB is full"),
    1142: _denied,
    1143: _denied,
    1146: _mismatch,
    1153: lambda m: BodyTooLarge("the call is larger than MariaDB's max_allowed_packet"),
    1203: _not_done("MariaDB has no connection to spare"),
    1205: _not_done("a lock was not granted in time"),
    1213: _not_done("the transaction was the victim of a deadlock"),
    1226: _not_done("the broker's user has used up a resource limit of MariaDB"),
    1227: _denied,
    1210: _mismatch,
    1264: _field_error(OutOfRange, "is out of the column's range"),
    1265: _field_error(OutOfRange, "would be cut by the column's type"),
    1267: _mismatch,  # collations that do not mix
    1290: lambda m: (
        harmless(StoreUnavailable("MariaDB is read-only"))
        if "read" in m and "only" in m
        else StoreError("MariaDB runs with an option that forbids the statement")
    ),
    1292: _field_error(WrongType, "has a value that its column's type cannot hold"),
    1305: _mismatch,
    1318: _mismatch,
    1356: _mismatch,
    1364: _field_error(MissingField, "has no default value and was not given"),
    1366: _field_error(WrongType, "has a value that its column's type cannot hold"),
    1370: _denied,
    1406: _field_error(TooLong, "is longer than its column"),
    1451: _foreign_key,
    1452: _foreign_key,
    1416: lambda m: WrongType("a value is no geometry", detail={"field": column_in(m)}),
    1792: _not_done("MariaDB is read-only"),
    1836: _not_done("MariaDB is read-only"),
    1526: lambda m: OutOfRange("a value belongs to no partition of its table", detail={"field": column_in(m)}),
    1690: lambda m: OutOfRange("a number that the object computes is out of range", detail={"field": column_in(m)}),
    1906: lambda m: UnknownField(
        f"field {_computed_in(m)} is computed by its table", detail={"field": _computed_in(m)}, hint="leave it out"
    ),
    1927: _lost,
    1969: lambda m: TimeLimitExceeded("the statement ran longer than MariaDB was told to allow"),
    2002: _not_done("MariaDB cannot be reached"),
    2003: _not_done("MariaDB cannot be reached"),
    2005: _not_done("MariaDB's host is unknown"),
    2006: _lost,
    2013: _lost,
    2026: _not_done("MariaDB refuses the TLS connection"),
    2055: _lost,
    4025: lambda m: OutOfRange(
        f"a value breaks the rule {_constraint_in(m)} of its table", detail={"field": _constraint_in(m)}
    ),
    4040: lambda m: InvalidPayload(
        "JSON is nested deeper than the 32 levels that MariaDB follows", detail={"field": ""}
    ),
    4038: _field_error(InvalidPayload, "holds text that is not JSON"),
}
SIGNALS = frozenset({1643, 1644})
"""Codes of an unhandled SIGNAL: of a "not found" condition, and of an error."""
READ_ONLY = frozenset({1290, 1792, 1836})
"""Codes of a server that is or became a replica. It keeps the connection open."""
_USER_CONDITION = "45"
"""SQLSTATE class of SIGNAL in a procedure. The DBA chooses the other characters."""


def _computed_in(message: str) -> str:
    found = re.search(r"generated column '([^']+)'", message)
    return found[1] if found else ""


def _constraint_in(message: str) -> str:
    found = re.search(r"CONSTRAINT `(?:[\w.]+`?\.`?)*(\w+)` failed", message)
    return found[1] if found else ""


@contextmanager
def translated() -> Iterator[None]:
    """Translate each driver error raised inside to an error of BEDS."""
    try:
        yield
    except MySQLdb.Error as error:
        raise translate(error) from None


def is_client_side(error: MySQLdb.Error) -> bool:
    """True if the connection is lost or its state unknown.

    A CR_… code (2000 to 2999), a killed or closed connection, or an error of the driver itself, which has no code. When
    the soft limit has interrupted a call, the driver says that another thread uses the connection.
    """
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    if not code and isinstance(error, MySQLdb.ProgrammingError):
        return True
    return 2000 <= code < 3000 or code == 1927 or isinstance(error, MySQLdb.InterfaceError)


def ends_connection(error: MySQLdb.Error) -> bool:
    """True if the server refuses writes. A new connection may reach another server."""
    return bool(error.args) and error.args[0] in READ_ONLY


def refused_by_warning(code: int, message: str, spec_of: Callable[[str], FieldSpec | None]) -> BedsError | None:
    """The error for a warning that MariaDB changed a value; None for any other warning.

    Args:
        code, message: a row of SHOW WARNINGS.
        spec_of: called with the column's name; returns its field in the template, or None.
    """
    if code not in _CHANGED:
        return None
    name = column_in(message)
    spec = spec_of(name)
    if code == _TRUNCATED and spec is not None and spec.type in ("string", "bytes"):
        found: BedsError = TooLong(f"field {name} is longer than its column", detail={"field": name})
    else:
        found = _BY_CODE[code](message)
    found.detail.setdefault("store_code", code)
    return found


_TRUNCATED = 1265
_CHANGED = frozenset({1048, 1264, _TRUNCATED, 1292, 1366, 1406, 1906})
"""Codes that are errors in strict mode. Otherwise MariaDB changes the value and adds a warning or note."""


def translate(error: MySQLdb.Error, sqlstate: str = "") -> BedsError:
    """The error of BEDS for a driver's error.

    Args:
        error: what mysqlclient raised.
        sqlstate: the connection's SQLSTATE, which the driver's exceptions do not carry.
    """
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    message = str(error.args[1]) if len(error.args) > 1 else ""
    if code in SIGNALS or sqlstate.startswith(_USER_CONDITION):
        # The DBA wrote this message for the caller.
        found: BedsError = BusinessRule(message, detail={"sqlstate": sqlstate})
    elif make := _BY_CODE.get(code):
        found = make(message)
    elif is_client_side(error):
        found = _lost(message)
    else:
        found = StoreError(f"MariaDB error {code}")
    found.detail.setdefault("store_code", code)
    return found

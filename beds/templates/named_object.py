"""A named object of the DBA, with the signature that the database declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class ObjectKind(StrEnum):
    PROCEDURE = "procedure"
    FUNCTION = "function"
    VIEW = "view"
    INSERT = "insert"
    INSERT_MANY = "insert_many"
    FIND = "find"
    AGGREGATE = "aggregate"
    UPDATE = "update"
    DELETE = "delete"
    FIND_AND_MODIFY = "find_and_modify"


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of a named object.

    Args:
        name: without the `p_` prefix of MariaDB parameters.
        types: the field types that it accepts.
        declared: the type as the store declares it, for messages.
        mode: `in`; `out` or `inout` for a procedure's OUT and INOUT parameters.
        optional: whether the object has a default for it.
        default: that default.
        max_length: characters or bytes.
        checks: called with the field's name and a value that is not null. Each raises InvalidPayload with the field's
            name if the store would change the value.
        keeps: for each check, a function that says whether many values of one Python type all pass; see `keeps_all`.
        whole: whether BEDS fills it (with a whole record or a limit), even if a field has the same name.
        cannot_page: why no page can begin after its value; empty if one can.
        ignores: differences that the store ignores when it compares texts: `case`, `spaces` at the end.
    """

    name: str
    types: frozenset[str]
    declared: str
    mode: Literal["in", "out", "inout"] = "in"
    optional: bool = False
    default: Any = None
    max_length: int | None = None
    checks: tuple[Callable[[str, Any], None], ...] = ()
    keeps: tuple[Callable[[type, Sequence[Any]], bool], ...] = ()
    whole: bool = False
    cannot_page: str = ""
    ignores: frozenset[str] = frozenset()

    @property
    def takes_value(self) -> bool:
        return self.mode != "out"

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that the store would cut, pad, round or convert. `name` is the field's."""
        for check in self.checks:
            check(name, value)

    def keeps_all(self, values: Sequence[Any]) -> bool:
        """True if `check` accepts each of many values, nulls aside. False leaves that open: then `check` has to decide.

        It saves the calls for whole columns of a bulk write.
        """
        given = [value for value in values if value is not None]
        kinds = set(map(type, given))
        if len(kinds) != 1 or len(self.keeps) != len(self.checks):
            return not kinds
        (kind,) = kinds
        return all(keep(kind, given) for keep in self.keeps)


@dataclass(frozen=True, slots=True)
class NamedObject:
    """A stored procedure, function or view, or a stored command.

    Args:
        name: the name that the DBA chose.
        kind: determines how it is called.
        params: in the order of the declaration.
        command: a stored command's body (MongoDB only).
        shape: the collection's declared BSON types (MongoDB only); see `schema_tools.rec`.
        columns: the columns that a bulk object reads of a record, by field (MariaDB only).
        results: the columns of a view (MariaDB only).
        reads_all: whether a bulk object may read more than `columns`.
        fields_of: the field that goes into a column, by the column's name, for messages.
        several: whether a routine has several statements; only the last one's warnings are available then.
        may_write: whether a routine may change data, also one that a fetch calls (MariaDB only).
        stamp: changes with the object's definition, so that an outdated binding is detected; empty where a binding
            cannot become outdated.
        strict: whether it refuses values that do not fit; a routine made without MariaDB's strict mode cuts them.
    """

    name: str
    kind: ObjectKind
    params: tuple[Param, ...] = ()
    command: Mapping[str, Any] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Param] = field(default_factory=dict)
    results: tuple[str, ...] = ()
    reads_all: bool = True
    fields_of: Mapping[str, str] = field(default_factory=dict)
    several: bool = False
    may_write: bool = False
    stamp: str = ""
    strict: bool = True
    description: str = ""

    def param(self, name: str) -> Param | None:
        return next((p for p in self.params if p.name == name), None)

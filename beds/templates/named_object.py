"""A named object of the DBA, as its signature stands in the database."""

from __future__ import annotations

from collections.abc import Mapping
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
        types: the field types it can take.
        declared: the type in the store's own words, for messages.
        mode: `in`, or `out` for a procedure's OUT parameter.
        optional: the object has a value of its own when none is given.
        default: that value.
        max_length: characters or bytes.
        digits, scale: of a decimal.
        fraction: digits of a second that a datetime keeps.
        max: the largest number.
        rules: further rules in the store's own form, which the adapter checks.
    """

    name: str
    types: frozenset[str]
    declared: str
    mode: Literal["in", "out"] = "in"
    optional: bool = False
    default: Any = None
    max_length: int | None = None
    digits: int | None = None
    scale: int | None = None
    fraction: int | None = None
    max: float | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NamedObject:
    """A stored procedure, function or view, or a stored command.

    Args:
        name: as the DBA named it.
        kind: how it is called.
        params: in the order of the declaration.
        command: a stored command's body (MongoDB only).
    """

    name: str
    kind: ObjectKind
    params: tuple[Param, ...] = ()
    command: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""

    def param(self, name: str) -> Param | None:
        return next((p for p in self.params if p.name == name), None)

"""What the workers know of a template's operations: the DBA's objects, and what each fetch takes.

A fetch's arguments may stand only in its object's signature. A client learns them with `Client.describe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from beds.errors import MalformedEvent


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a fetch.

    Args:
        name: of the argument.
        types: the field types that it takes.
        declared: the type as the store declares it.
        required: whether a fetch without it is refused.
        sensitive: whether its values appear in no log.
        description: from the template.
    """

    name: str
    types: tuple[str, ...]
    declared: str
    required: bool
    sensitive: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True)
class OperationDescription:
    """One operation of a template.

    Args:
        operation: `create_record`, …, `fetch_records`.
        object: the name of the DBA's object.
        kind: of the object: `procedure`, `view`, `find`, …
        description: the object's comment.
        args: of a fetch; the other operations take the template's fields.
        pages: whether a fetch has a cursor.
        limit, max_limit: of a fetch, in records; 0 for other operations.
        results: the columns or fields that a fetch returns, where the database declares them: those of a view, and of
            a stored command without a projection.
        problem: why the operation cannot be called, such as an object that is missing; empty if it can.
    """

    operation: str
    object: str
    kind: str = ""
    description: str = ""
    args: tuple[Argument, ...] = ()
    pages: bool = False
    limit: int = 0
    max_limit: int = 0
    results: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Description:
    """A template's operations, by the name of their table: `create`, `update`, `fetch.by_route`, …

    Args:
        template: the template's name.
        hash: changes when any of it changes.
        operations: by the name of their table.
    """

    template: str
    hash: str
    operations: Mapping[str, OperationDescription]

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: Any) -> Description:
        """The inverse of `to_wire`. Raises MalformedEvent."""
        try:
            operations = {
                name: OperationDescription(
                    **{
                        **found,
                        "args": tuple(Argument(**{**a, "types": tuple(a["types"])}) for a in found["args"]),
                        "results": tuple(found.get("results", ())),
                    }
                )
                for name, found in wire["operations"].items()
            }
            return cls(wire["template"], wire["hash"], operations)
        except (KeyError, TypeError, AttributeError):
            raise MalformedEvent(
                "the worker's description has a form this version does not know", hint="update the older side"
            ) from None

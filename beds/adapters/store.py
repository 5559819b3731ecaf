"""What an adapter asks of a session with its database: describe objects, call one, and remember what was called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from beds.domain.reply import Record
from beds.errors import BedsError, OutOfRange, StoreUnavailable, TooLong
from beds.templates.binding import Binding
from beds.templates.fields import check_decimal
from beds.templates.named_object import NamedObject, Param


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a named object gave back: its rows, OUT parameters among them, and how many records it changed."""

    rows: list[Record] = field(default_factory=list)
    affected: int = 0


@dataclass(frozen=True, slots=True)
class Once:
    """What makes a write happen once: its event's guid, noted with the answer in the write's own transaction.

    Args:
        guid: the event's.
        ttl: seconds the note is kept.
        answer: the answer, as text, to what the object gave back. An error that it raises undoes the write.
    """

    guid: str
    ttl: int
    answer: Callable[[Outcome], str]


@dataclass(frozen=True, slots=True)
class Health:
    """What a database says of itself before a node serves.

    Args:
        clock: its time.
        transactions: whether it has them.
        surplus: rights of this user that a broker does not need, in the database's words.
    """

    clock: datetime
    transactions: bool
    surplus: tuple[str, ...]


class AlreadyDone(Exception):
    """The event was carried out before; the transaction that found out was rolled back."""


class ObjectStore(Protocol):
    """A session with one database: it describes named objects and calls them. Used by one thread at a time."""

    def describe(self, names: Iterable[str]) -> dict[str, NamedObject]:
        """The signatures of those objects that exist and that this user may call."""
        ...

    def execute(self, binding: Binding, values: Mapping[str, Any], once: Once | None = None) -> Outcome:
        """Call the bound object with a value for each of its input parameters.

        Raises:
            AlreadyDone: `once` is noted already; nothing was changed.
        """
        ...

    def recall(self, guid: str) -> str | None:
        """The answer noted for an event; None for one that was never carried out."""
        ...

    def note(self, guid: str, ttl: int, answer: str) -> None:
        """Note the answer of an event that changed nothing. Raises AlreadyDone."""
        ...

    def examine(self) -> Health:
        """What the database says of itself and of this user's rights."""
        ...

    def close(self) -> None: ...


def harmless(error: StoreUnavailable) -> StoreUnavailable:
    """Mark an error after which nothing was written, so that even a write may be tried again."""
    error.detail["nothing_written"] = True
    return error


def is_harmless(error: BedsError) -> bool:
    return bool(error.detail.get("nothing_written"))


def check_param(param: Param, value: Any) -> None:
    """Refuse a value that the parameter's type would cut, round or reject.

    Raises:
        TooLong, OutOfRange: names the field.
    """
    detail = {"field": param.name, "declared": param.declared}
    if isinstance(value, (str, bytes)) and param.max_length is not None and len(value) > param.max_length:
        raise TooLong(
            f"field {param.name} has {len(value)} characters, the store takes {param.max_length}",
            detail=detail | {"max_length": param.max_length},
        )
    if isinstance(value, datetime) and param.fraction is not None and value.microsecond % 10 ** (6 - param.fraction):
        raise OutOfRange(
            f"field {param.name} has a finer time than the {param.fraction} digits of a second the store keeps",
            detail=detail,
            hint='cut it yourself, or set precision = "millisecond" for the field in the template',
        )
    if isinstance(value, Decimal):
        check_decimal(param.name, value, param.digits, param.scale)
    if isinstance(value, (int, float)) and param.max is not None and not -param.max - 1 <= value <= param.max:
        raise OutOfRange(
            f"field {param.name} is beyond what {param.declared} holds", detail=detail | {"max": param.max}
        )

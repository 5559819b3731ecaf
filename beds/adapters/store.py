"""The interface of a database session: describe named objects, call one, and keep the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from beds.domain.event import Operation
from beds.domain.member import Lag, Member
from beds.domain.reply import Record
from beds.errors import BedsError, ResultTooLarge, StoreUnavailable
from beds.templates.binding import Binding
from beds.templates.named_object import NamedObject


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a named object: its rows, with OUT parameters, and the number of records it changed.

    `reported` is true if the object itself returned that number, in an OUT parameter `affected`.
    """

    rows: list[Record] = field(default_factory=list)
    affected: int = 0
    reported: bool = False


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """A ledger entry, inserted in the write's own transaction so that the write takes effect once.

    Args:
        guid: the ledger key; see `LedgerEntry`.
        ttl: seconds the record is kept.
        answer: called with the object's outcome; returns the reply as text. Its error rolls the write back.
    """

    guid: str
    ttl: int
    answer: Callable[[Outcome], str]


Position = Mapping[str, tuple[int, str]]
"""The number of the last write in each stream of a server, with the server that wrote it. Empty if it is not known."""


@dataclass(frozen=True, slots=True)
class Health:
    """A database's state, checked before a node serves.

    Args:
        clock: its time.
        transactions: whether it supports them.
        read_only: whether it refuses writes, as a replica does.
        surplus: rights of this user that a broker does not need, in the database's words.
        members: all servers that hold the data, as far as this user sees them.
        lag: of the replica that reads go to.
    """

    clock: datetime
    transactions: bool
    surplus: tuple[str, ...]
    read_only: bool = False
    members: tuple[Member, ...] = ()
    lag: Lag | None = None


Verify = Callable[[Outcome], object]
"""Called with an object's outcome before the commit. Its error rolls the write back."""
CallObject = Callable[[Binding, Mapping[str, Any]], Outcome]
"""Calls a bound object within a transaction."""
Work = Callable[[CallObject], Outcome]
"""The calls of one transaction; an error rolls them back."""


class AlreadyDone(Exception):
    """The ledger has an entry for the write already. The new transaction was rolled back."""


class DefinitionChanged(Exception):
    """The object changed after the binding was made. The transaction was rolled back."""


class ObjectStore(Protocol):
    """A session with one database: it describes named objects and calls them. Used by one thread at a time."""

    def describe(self, names: Iterable[str]) -> dict[str, NamedObject]:
        """The signatures of the named objects that exist and that this user may call."""
        ...

    def execute(
        self,
        binding: Binding,
        values: Mapping[str, Any],
        once: IdempotencyRecord | None = None,
        verify: Verify | None = None,
    ) -> Outcome:
        """Call the bound object with a value for each of its input parameters. Without `once`, `verify` is called
        before the commit.

        Raises:
            AlreadyDone: the ledger has `once` already; nothing was changed.
            DefinitionChanged: the object was replaced since it was described; nothing was changed.
            ResultTooLarge: the object returned more records than the fetch allows.
        """
        ...

    def transact(self, work: Work, once: IdempotencyRecord) -> None:
        """Call several objects in one transaction, and note `once` in it.

        Args:
            work: called with the function that calls a bound object; returns the outcome for `once.answer`.
            once: the idempotency record.

        Raises:
            AlreadyDone, DefinitionChanged: as `execute`.
        """
        ...

    def has_changed(self, target: NamedObject) -> bool:
        """True if the object's definition changed since it was described."""
        ...

    def recall(self, guid: str) -> str | None:
        """The reply stored under a ledger key; None if there is none."""
        ...

    def note(self, guid: str, ttl: int, answer: str) -> None:
        """Store the reply of a write that changed nothing. Raises AlreadyDone."""
        ...

    def examine(self) -> Health:
        """Read the database's state and this user's rights."""
        ...

    def takes_writes(self) -> bool:
        """False if the connected server is read-only. Raises StoreUnavailable."""
        ...

    def position(self) -> Position:
        """The position of the primary, with all writes that were committed before."""
        ...

    def close(self) -> None: ...


class CallsObjects(Protocol):
    """The part of an `ObjectStore` that calls an object."""

    def execute(
        self,
        binding: Binding,
        values: Mapping[str, Any],
        once: IdempotencyRecord | None = None,
        verify: Verify | None = None,
    ) -> Outcome:
        """See `ObjectStore.execute`."""
        ...


def harmless(error: StoreUnavailable) -> StoreUnavailable:
    """Mark an error after which nothing was written, so that even a write may be retried."""
    error.detail["nothing_written"] = True
    return error


def is_harmless(error: BedsError) -> bool:
    return bool(error.detail.get("nothing_written"))


MAX_WRITTEN_RECORDS = 1000
"""Records that a write may return."""


RESULT_BYTES = 32 * 2**20
"""Limit of text and bytes in the result of one call, to bound a slot's memory."""


class ResultLimit:
    """The records and bytes that one call may still return, over all its result sets.

    Args:
        binding: of the call. The limit of a fetch is its template's `max_limit`, of a write `MAX_WRITTEN_RECORDS`.
    """

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._most = binding.fetch.max_limit if binding.operation is Operation.FETCH else MAX_WRITTEN_RECORDS
        self._records = self._most
        self._bytes = RESULT_BYTES

    def take(self, record: Any) -> int:
        """Count one record, and return its size. Raises ResultTooLarge: the limit is exceeded."""
        size = _size(record)
        self._records -= 1
        self._bytes -= size
        if self._records < 0 or self._bytes < 0:
            raise self._too_large()
        return size

    def _too_large(self) -> ResultTooLarge:
        name = self._binding.target.name
        if self._records < 0:
            what = f"the {self._most:,} records"
            hint = (
                "give the object a parameter `limit`, and a cursor for what follows; or raise max_limit in the template"
            )
        else:
            what = f"the {RESULT_BYTES // 2**20} MiB of text and bytes"
            hint = "ask for fewer records at once, or let the object leave out large columns"
        return ResultTooLarge(
            f"object {name} returned more than {what} that are allowed at once",
            detail={"object": name, "template": self._binding.template.name, "max_limit": self._most},
            hint=hint,
        )


def _size(value: Any) -> int:
    """The characters of text and bytes in a value. Other values count as 0."""
    kind = type(value)
    if kind is str or kind is bytes:
        return len(value)
    total = 0
    for inner in value.values() if kind is dict else value if kind is list or kind is tuple else ():
        kind_inside = type(inner)
        if kind_inside is str or kind_inside is bytes:
            total += len(inner)
        elif kind_inside is dict or kind_inside is list or kind_inside is tuple:
            total += _size(inner)
    return total

"""NamasteCore: the interface that every adapter implements; the code above uses only this interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from beds.domain.reply import Page, Record, Response

Payload = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """One use of a template's fetch.

    Args:
        using: the name of the fetch in the template.
        args: its arguments, by name.
        limit: records of a page, at most the fetch's `max_limit`.
        cursor: `Page.cursor` of the previous page; empty for the first page.
    """

    using: str
    args: Mapping[str, Any] = field(default_factory=dict)
    limit: int = 100
    cursor: str = ""


def all_records(adapter: NamasteCore, query: Query) -> Iterator[Record]:
    """The records of a fetch from its first page on; each page has at most `query.limit`."""
    while True:
        page = adapter.fetch_records(query)
        yield from page
        if not page.cursor:
            return
        query = replace(query, cursor=page.cursor)


class NamasteCore(ABC):
    """The unified CRUD interface of one template.

    Every method calls exactly one object of the DBA and raises a subclass of `BedsError`, never a driver's error.
    The caller has validated the data against the template.
    """

    @abstractmethod
    def create_record(self, payload: Payload) -> Response:
        """Create one record. Raises DuplicateKey, ForeignKeyViolation, BusinessRule, InvalidPayload."""

    @abstractmethod
    def create_records(self, payloads: Sequence[Payload]) -> Response:
        """Create many records by one call of the bulk object: all of them, or none and an error.

        Returns:
            A Response without a record id; `affected` counts the records.
        """

    @abstractmethod
    def fetch_records(self, query: Query) -> Page:
        """Fetch one page. Its cursor is empty when there are no more records."""

    @abstractmethod
    def update_record(self, payload: Payload, expected_version: Any = None) -> Response:
        """Change the given fields of the record whose key is in the payload.

        Args:
            payload: the key, and the fields to change.
            expected_version: the version that the record must have; None for any.

        Raises:
            NotFound: there is no such record.
            PreconditionFailed: there is none with the expected version; nothing was changed.
            UnknownField: the object does not compare versions.
        """

    @abstractmethod
    def delete_record(self, record_id: Any, expected_version: Any = None) -> Response:
        """Delete a record by its key. `expected_version` and the errors are those of `update_record`."""

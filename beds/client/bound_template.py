"""One template's operations as methods, for code that works with one data domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from beds.client.deadline import DEFAULT_TIMEOUT
from beds.domain.event import Operation
from beds.domain.reply import Page, Record, Response
from beds.errors import SchemaMismatch
from beds.templates.template import Template


class Caller(Protocol):
    """Executes a bound template's operations: a client."""

    def fetch(
        self,
        template: str,
        using: str = "",
        args: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        cursor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Page: ...
    def write(
        self,
        operation: str,
        template: str,
        data: Any,
        *,
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Response: ...


@dataclass(frozen=True, slots=True)
class BoundTemplate:
    """One template's operations as methods: `client.template("Notices").create_record({...})`."""

    client: Caller
    definition: Template

    def create_record(
        self, payload: Mapping[str, Any], *, idempotency_key: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Response:
        """Create one record. The keyword arguments and errors are those of `Client.call`, here and below."""
        return self._write(Operation.CREATE, payload, idempotency_key, timeout)

    def create_records(
        self,
        payloads: Sequence[Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Response:
        """Create all of the records, or none."""
        return self._write(Operation.CREATE_MANY, payloads, idempotency_key, timeout)

    def update_record(
        self,
        payload: Mapping[str, Any],
        *,
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Response:
        """Change the given fields of the record whose key is in the payload."""
        return self._write(Operation.UPDATE, payload, idempotency_key, timeout, expected_version)

    def delete_record(
        self,
        record_id: Any,
        *,
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Response:
        """Delete the record with this key."""
        return self._write(Operation.DELETE, record_id, idempotency_key, timeout, expected_version)

    def _write(
        self, operation: Operation, data: Any, key: str | None, timeout: float, expected_version: Any = None
    ) -> Response:
        return self.client.write(operation, self.definition.name, data, expected_version=expected_version,
                                 idempotency_key=key, timeout=timeout)  # fmt: skip

    def fetch_records(
        self,
        using: str = "",
        args: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        cursor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Page:
        """One page of a fetch of the template."""
        return self.client.fetch(self.definition.name, using, args, limit=limit, cursor=cursor, timeout=timeout)

    def fetch_all(
        self, using: str = "", args: Mapping[str, Any] | None = None, *, limit: int | None = None
    ) -> Iterator[Record]:
        """All records of a fetch, page after page; `limit` is the size of a page."""
        cursor = ""
        while True:
            page = self.fetch_records(using, args, limit=limit, cursor=cursor)
            yield from page
            if not (cursor := next_cursor(self.definition, using, cursor, page)):
                return


def next_cursor(template: Template, using: str, cursor: str, page: Page) -> str:
    """The cursor of the next page; empty at the end. Raises SchemaMismatch: the cursor does not advance."""
    if page.cursor and page.cursor == cursor:
        raise SchemaMismatch(
            f"the cursor of {template.name}.{using} does not advance",
            detail={"template": template.name, "using": using},
            hint="the object of this fetch returns the same records again; the DBA can mend it",
        )
    return page.cursor

"""One template's operations as methods, for code that works with one data domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beds.domain.event import Operation
from beds.domain.reply import Page, Record, Response
from beds.templates.template import Template
from beds.tickets import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from beds.client import Client


@dataclass(frozen=True, slots=True)
class BoundTemplate:
    """One template's operations as methods: `client.template("Notices").create_record({...})`."""

    client: Client
    definition: Template

    def create_record(self, payload: Mapping[str, Any], *, timeout: float = DEFAULT_TIMEOUT) -> Response:
        return self._write(Operation.CREATE, payload, timeout)

    def create_records(self, payloads: Sequence[Mapping[str, Any]], *, timeout: float = DEFAULT_TIMEOUT) -> Response:
        return self._write(Operation.CREATE_MANY, payloads, timeout)

    def update_record(self, payload: Mapping[str, Any], *, timeout: float = DEFAULT_TIMEOUT) -> Response:
        return self._write(Operation.UPDATE, payload, timeout)

    def delete_record(self, record_id: Any, *, timeout: float = DEFAULT_TIMEOUT) -> Response:
        return self._write(Operation.DELETE, record_id, timeout)

    def fetch_records(
        self,
        using: str = "",
        args: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        cursor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Page:
        reply = self.client.call(
            Operation.FETCH, self.definition.name, args, using=using, limit=limit, cursor=cursor, timeout=timeout
        )
        assert isinstance(reply, Page)
        return reply

    def fetch_all(
        self, using: str = "", args: Mapping[str, Any] | None = None, *, limit: int | None = None
    ) -> Iterator[Record]:
        """All records of a fetch, page after page; `limit` is the size of a page."""
        cursor = ""
        while True:
            page = self.fetch_records(using, args, limit=limit, cursor=cursor)
            yield from page
            cursor = page.cursor
            if not cursor:
                return

    def _write(self, operation: Operation, data: Any, timeout: float) -> Response:
        reply = self.client.call(operation, self.definition.name, data, timeout=timeout)
        assert isinstance(reply, Response)
        return reply

"""Aggregates: calls a DBA's object once for each value of an argument, and makes pages of what it returns."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from beds.adapters.bulk import BulkAdapter
from beds.core.namaste import Query, all_records
from beds.domain.job import Job, Tally
from beds.domain.reply import Record
from beds.errors import BedsError, ResultTooLarge, SchemaMismatch
from beds.services.jobs.mapping import masked
from beds.services.jobs.store import JobStore, Reject
from beds.services.jobs.work import Chunk, Cut
from beds.templates.rules import JobRule, Merge
from beds.wire import codec

PAGE_RECORDS = 500
PAGES_OF_A_PART = 1000
MOST_OF_A_PART = 32 * 2**20
"""Characters of one part's pages, which are stored in one transaction."""
MOST_MERGED = 200_000
"""Records of a merged result, which one process holds."""


class Aggregate:
    """The work of an aggregation.

    Args:
        source: where the object is.
        rule: names the object, its parts and how they are merged.
        args: its arguments.
        store: where the pages go.
        page_bytes: the largest page, so that a client can fetch it.
    """

    unit = "parts"

    def __init__(
        self, source: BulkAdapter, rule: JobRule, args: Mapping[str, Any], store: JobStore, page_bytes: int
    ) -> None:
        self._source, self._rule, self._args = source, rule, args
        self._store, self._page_bytes = store, page_bytes

    def check(self) -> None:
        self._source.check_tables([f"fetch.{self._rule.job.read}"])

    def estimate(self) -> int | None:
        return len(self._rule.part_values)

    def cut(self, job: Job, size: int) -> Cut:
        at = int(job.head or 0)
        if at >= len(self._rule.part_values):
            return Cut(None, True)
        return Cut(str(at + 1), at + 1 == len(self._rule.part_values))

    def process(self, chunk: Chunk) -> Tally:
        part = int(chunk.lane.until or 0) - 1
        rows = list(self._rows(part))
        pages = list(self._pages(rows))
        if len(pages) > PAGES_OF_A_PART or sum(map(len, pages)) > MOST_OF_A_PART:
            raise ResultTooLarge(
                f"part {part} of {self._rule.name} has more than {MOST_OF_A_PART // 2**20} MiB",
                hint="make smaller parts of it",
            )
        self._store.write_pages(chunk.job, part * PAGES_OF_A_PART, pages, part=self._rule.merge is not None)
        return Tally(read=1, moved=len(rows), chunks=1)

    def undo(self, chunk: Chunk) -> Tally:
        return Tally(chunks=1)  # its pages stay, and expire

    def finish(self, job: Job) -> str:
        merge = self._rule.merge
        if merge is None:
            return ""
        try:
            rows = merged(merge, (row for page in self._store.parts(job) for row in page))
        except BedsError as error:
            return error.message
        first = len(self._rule.part_values) * PAGES_OF_A_PART
        for number, page in enumerate(self._pages(rows)):
            self._store.write_pages(job, first + number, [page], part=False)
        return ""

    def verify(self, job: Job) -> tuple[int, list[str]]:
        return 0, []

    def preview(self, size: int) -> tuple[int, list[Any], list[Reject]]:
        rows = list(self._rows(0))
        return 1, masked(self._source.template, rows), []

    def _rows(self, part: int) -> Iterator[Record]:
        """What the object returns for one part, page by page."""
        args = dict(self._args)
        if self._rule.parts:
            args[self._rule.part_name] = self._rule.part_values[part]
        limit = self._source.template.fetch_spec(self._rule.job.read).max_limit
        return all_records(self._source, Query(self._rule.job.read, args, limit))

    def _pages(self, rows: Iterable[Record]) -> Iterator[str]:
        """The records as JSON texts that fit a reply."""
        page: list[Any] = []
        size = 0
        for row in rows:
            encoded = codec.encode(row)
            length = len(codec.dumps_plain(encoded))
            if page and (len(page) >= PAGE_RECORDS or size + length > self._page_bytes):
                yield codec.dumps_plain(page).decode()
                page, size = [], 0
            page.append(encoded)
            size += length + 1
        if page:
            yield codec.dumps_plain(page).decode()


_FOLDS: Mapping[str, Callable[[Any, Any], Any]] = {"sum": operator.add, "min": min, "max": max}


def merged(merge: Merge, rows: Iterable[Record]) -> list[Record]:
    """The records of all parts as one for each value of `merge.by`, in their order.

    Raises:
        SchemaMismatch: a record lacks a field of the rule.
        ResultTooLarge: there are more than `MOST_MERGED`.
    """
    folds = [(name, how) for how in _FOLDS for name in getattr(merge, how)]
    found: dict[tuple[Any, ...], Record] = {}
    for row in rows:
        try:
            key = tuple(row[name] for name in merge.by)
            values = {name: row[name] for name, _ in folds}
        except KeyError as missing:
            raise SchemaMismatch(f"the aggregation returns no field {missing}, by which [merge] goes") from None
        before = found.get(key)
        if before is None:
            if len(found) >= MOST_MERGED:
                raise ResultTooLarge(f"the merged result has more than {MOST_MERGED:,} records")
            found[key] = {**dict(zip(merge.by, key, strict=True)), **values}
            continue
        for name, how in folds:
            if values[name] is not None:
                before[name] = values[name] if before[name] is None else _FOLDS[how](before[name], values[name])
    return [
        found[key]
        for key in sorted(found, key=lambda key: tuple((part is None, str(type(part)), part) for part in key))
    ]

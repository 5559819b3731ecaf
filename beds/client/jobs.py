"""The client's ticket of a job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from beds.client.deadline import DEFAULT_TIMEOUT
from beds.client.flows import FILES, PAGES, REJECTS
from beds.client.tickets import Ticket
from beds.domain.reply import Record
from beds.wire import codec


class JobTicket(Ticket):
    """A started job. It is in the state PROGRESS until the job has ended; its `report` outlives the ticket."""

    __slots__ = ()

    def pause(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """Let the chunks at work finish, and rest. Returns the report. Raises JobNotResumable."""
        return self._run(self._flows.job_order("pause", self._handle, timeout))

    def resume(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """Let a paused or stalled job go on. Returns the report. Raises JobNotResumable."""
        return self._run(self._flows.job_order("resume", self._handle, timeout))

    def report(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """What became of the job's records so far.

        Returns:
            `state`, `why`, `total`, and counts: `read`, `moved`, `there` (of the moved, those that the target had
            already), `changed` and `deleted` by others meanwhile, `rejected`, `in_doubt`, `chunks`.

        Raises:
            UnknownTicket: this user has no such job.
        """
        return self._run(self._flows.job_report(self._handle, timeout))

    def rejects(self, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Record]:
        """The records that were not moved: `key`, `field`, `code`, `why`. `timeout` is for each page.

        Raises UnknownTicket, as `pages` and `files`: this user has no such job.
        """
        yield from self._records(REJECTS, timeout)

    def pages(self, timeout: float = DEFAULT_TIMEOUT) -> Iterator[list[Record]]:
        """The result of an aggregation, page by page. `timeout` is for each page."""
        for record in self._records(PAGES, timeout):
            yield codec.loads(record["records"])

    def files(self, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Record]:
        """The files that a warehouse job wrote: `id` (the path), `rows`, `bytes`, `sha256`, `state`."""
        yield from self._records(FILES, timeout)

    def _records(self, template: str, timeout: float) -> Iterator[Record]:
        cursor = ""
        while True:
            page = self._run(self._flows.job_records(self._handle, template, cursor, timeout))
            yield from page
            if not (cursor := page.cursor):
                return

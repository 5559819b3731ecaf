"""The client's ticket of a job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from beds.client.call import Call
from beds.client.deadline import DEFAULT_TIMEOUT, deadline_after
from beds.client.tickets import Ticket
from beds.domain.event import Operation
from beds.domain.job import Job
from beds.domain.reply import Page, Record
from beds.errors import UnknownTicket
from beds.wire import codec

PAGE = 500


class JobTicket(Ticket):
    """A started job. It is in the state PROGRESS until the job has ended; its `report` outlives the ticket."""

    __slots__ = ()

    def pause(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """Let the chunks at work finish, and rest. Returns the report. Raises JobNotResumable."""
        return self._ask("pause", timeout)

    def resume(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """Let a paused or stalled job go on. Returns the report. Raises JobNotResumable."""
        return self._ask("resume", timeout)

    def report(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """What became of the job's records so far.

        Returns:
            `state`, `why`, `total`, and counts: `read`, `moved`, `there` (of the moved, those that the target had
            already), `changed` and `deleted` by others meanwhile, `rejected`, `in_doubt`, `chunks`.

        Raises:
            UnknownTicket: this user has no such job.
        """
        found = list(self._records("msJobs", "by_guid", "any_by_guid", timeout))
        if not found:
            raise UnknownTicket(f"{self.guid} is no job of this user", detail={"guid": self.guid})
        return Job.of(found[0]).report()

    def rejects(self, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Record]:
        """The records that were not moved: `key`, `field`, `code`, `why`. `timeout` is for each page."""
        yield from self._records("msJobRejects", "of_job", "by_guid", timeout)

    def pages(self, timeout: float = DEFAULT_TIMEOUT) -> Iterator[list[Record]]:
        """The result of an aggregation, page by page. `timeout` is for each page."""
        for record in self._records("msJobPages", "of_job", "by_guid", timeout, limit=1):
            yield codec.loads(record["records"])

    def files(self, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Record]:
        """The files that a warehouse job wrote: `id` (the path), `rows`, `bytes`, `sha256`, `state`."""
        yield from self._records("msFiles", "of_job", "by_guid", timeout)

    def _ask(self, verb: str, timeout: float) -> dict[str, Any]:
        found: dict[str, Any] = self._run(self._flows.ask(verb, {"guid": self.guid}, timeout))
        return found

    def _records(self, template: str, own: str, anybody: str, timeout: float, limit: int = PAGE) -> Iterator[Record]:
        cursor = ""
        using = anybody if self._flows.is_operator else own
        paged = bool(self._flows.templates[template].fetch_spec(using).cursor)
        while True:
            deadline = deadline_after(timeout)
            call = Call(Operation.FETCH, template, {"guid": self.guid}, using, limit if paged else None, cursor)
            page = self._run(self._flows.call(call, max(0.1, deadline - time.monotonic())))
            assert isinstance(page, Page)
            yield from page
            if not page.cursor:
                return
            cursor = page.cursor

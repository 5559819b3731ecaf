"""The interface of a job's work: how its range is cut into chunks, and what is done with one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from beds.adapters.ledger import step_key
from beds.domain.job import Job, Lane, Tally
from beds.domain.reply import Record
from beds.services.jobs.store import Reject


@dataclass(frozen=True, slots=True)
class Cut:
    """The next range of a job.

    Args:
        until: its end, as the codec writes key values; None if there is nothing left.
        is_last: whether nothing follows.
        records: the range's records, which were read to find its end.
    """

    until: str | None
    is_last: bool
    records: list[Record] = field(default_factory=list, repr=False)


@dataclass(slots=True)
class Chunk:
    """One chunk at work.

    Args:
        job, lane: of the chunk; the lane has its range.
        store_rejects: stores what is not moved; called before the records of the chunk are removed.
        records: its records, if they were read when it was cut.
        repeated: whether the chunk may have been begun before, so that the ledger is asked first.
        is_old: whether it was begun longer ago than the ledger remembers.
    """

    job: Job
    lane: Lane
    store_rejects: Callable[[Sequence[Reject]], None] = field(repr=False)
    records: list[Record] | None = field(default=None, repr=False)
    repeated: bool = False
    is_old: bool = False
    rejects: list[Reject] = field(default_factory=list)
    slowest: float = 0.0
    """Seconds of its slowest store call."""

    def step(self, name: str) -> str:
        """The ledger key of one of its steps."""
        return step_key(self.job.user, self.job.guid, f"{self.lane.lane}.{self.lane.n} {name}")


class Work(Protocol):
    """The work of a job."""

    unit: str
    """What its progress counts."""

    def check(self) -> None:
        """Check that every object it needs exists. Raises TemplateError, SchemaError, ConfigurationError."""
        ...

    def estimate(self) -> int | None:
        """About how many records there are."""
        ...

    def cut(self, job: Job, size: int) -> Cut:
        """The next range after the job's head, with at most `size` records."""
        ...

    def process(self, chunk: Chunk) -> Tally:
        """Do the work of a chunk. A chunk that was done before is not done again."""
        ...

    def undo(self, chunk: Chunk) -> Tally:
        """Take back what an unfinished chunk has done, so that its records are in the source alone."""
        ...

    def finish(self, job: Job) -> str:
        """Verify the whole job, and make its result readable. Returns what is wrong, or empty."""
        ...

    def verify(self, job: Job) -> tuple[int, list[str]]:
        """Compare what an ended job wrote once more. Returns how much was looked at, and what is wrong."""
        ...

    def preview(self, size: int) -> tuple[int, list[Any], list[Reject]]:
        """For a dry run: records looked at, a sample as the target would get it, and what would be refused."""
        ...

"""A job: long work on many records, done in short chunks. One document of msJobs, and a row of chunk events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from beds.domain.reply import Record
from beds.domain.ticket import Progress


class JobKind(StrEnum):
    """The kind of a job. Its queue and its first task are `job.<kind>`."""

    AGGREGATE = "aggregate"
    MIGRATE = "migrate"
    WAREHOUSE = "warehouse"

    @property
    def queue(self) -> str:
        return f"job.{self}"


class JobState(StrEnum):
    """See docs/reference/jobs.md for the transitions."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STALLED = "STALLED"
    VERIFYING = "VERIFYING"
    CANCELLING = "CANCELLING"
    DONE = "DONE"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return self in (JobState.DONE, JobState.CANCELLED)

    @property
    def rests(self) -> bool:
        """True if its chunks wait until the job is resumed."""
        return self in (JobState.PAUSED, JobState.STALLED)


VERIFIER = -1
"""The number of the lane that verifies a job after its last chunk."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of chunks: exactly one of them is in the queue or in a slot at a time.

    Args:
        lane: its number.
        n: the number of its current chunk; 0 before the first.
        after, until: the current chunk's range, as the codec writes key values; None for no bound.
        folded: whether the current chunk is counted.
        ended: whether the lane has no further chunk.
        size: records of its next chunk.
        began: when the current chunk was first begun.
        due: when the sweep publishes its event again, unless the lane goes on before.
    """

    lane: int
    n: int = 0
    after: str | None = None
    until: str | None = None
    folded: bool = True
    ended: bool = False
    size: int = 0
    began: datetime | None = None
    due: datetime | None = None

    def to_document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Lane:
        """A lane as msJobs has it; a newer version may have stored more."""
        return cls(**{name: document[name] for name in cls.__slots__ if name in document})

    @property
    def next_event(self) -> int:
        """The number of the chunk whose event is, or should be, on its way."""
        return self.n + 1 if self.folded else self.n


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of a job's records.

    Args:
        read: records read from the source.
        moved: records that are in the target now and were taken out of the source (or kept there, if the rule says so).
        there: records of `moved` that the target had already, equal.
        changed: records that another client changed meanwhile; they stay in the source.
        deleted: records that another client deleted meanwhile; their copies were removed.
        rejected: records that the target refused; they stay in the source.
        in_doubt: records whose right copy cannot be determined any more; both copies stay.
        chunks: chunks that are done.
    """

    read: int = 0
    moved: int = 0
    there: int = 0
    changed: int = 0
    deleted: int = 0
    rejected: int = 0
    in_doubt: int = 0
    chunks: int = 0

    def plus(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def to_document(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Tally:
        return cls(**{name: int(document.get(name, 0)) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Job:
    """A job as msJobs has it.

    Args:
        user, guid: its key: the AMQP user that started it, and the guid of its event and ticket.
        version: counts the changes; a change is made only to the version it was decided on.
        rule: its rule's name.
        kind: what it does.
        state: its state.
        settings: the rule at the job's start, as JSON; a client does not get it, nor lanes and head.
        args: the range's arguments, fixed when the job started, as the codec writes them.
        event_id, root_id, depth: its event's lineage, of which the chunks are children.
        lanes: its rows of chunks.
        head: the end of the last range that was cut; None before the first.
        exhausted: whether the range has no records beyond `head`.
        tally: what became of the records.
        total: about how many records there are; None if unknown.
        why: why it is stalled, or was cancelled.
        excused: the rejects that it had when it was resumed; `max_rejects` counts from there.
        restore, restored_user: the guid and the user of the job whose records it brings back; empty for another job.
        baseline_ms: p99 of the store's reads before it started.
        actor: on whose behalf it was started.
        due_at: when it was due; None for a job that a client started.
        made_at, changed_at, ended_at: times in UTC.
        worked: seconds of work, over all lanes.
    """

    user: str
    guid: str
    version: int
    rule: str
    kind: JobKind
    state: JobState
    settings: str = ""
    args: str = "{}"
    event_id: str = ""
    root_id: str = ""
    depth: int = 0
    lanes: tuple[Lane, ...] = ()
    head: str | None = None
    exhausted: bool = False
    tally: Tally = field(default_factory=Tally)
    total: int | None = None
    why: str = ""
    excused: int = 0
    restore: str = ""
    restored_user: str = ""
    actor: str = ""
    baseline_ms: float | None = None
    due_at: datetime | None = None
    made_at: datetime | None = None
    changed_at: datetime | None = None
    ended_at: datetime | None = None
    worked: float = 0.0

    @classmethod
    def of(cls, record: Record) -> Job:
        known = {name: record[name] for name in cls.__slots__ if record.get(name) is not None}
        known["kind"], known["state"] = JobKind(known["kind"]), JobState(known["state"])
        fields = Lane.__slots__  # a newer version may have stored more
        known["lanes"] = tuple(
            Lane(**{name: lane[name] for name in fields if name in lane}) for lane in known.get("lanes", ())
        )
        known["tally"] = Tally.of(known["tally"])
        return cls(**known)

    def to_document(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.__slots__}
        found["kind"], found["state"] = str(self.kind), str(self.state)
        found["lanes"] = [lane.to_document() for lane in self.lanes]
        found["tally"] = self.tally.to_document()
        return {name: value for name, value in found.items() if value is not None}

    def lane(self, number: int) -> Lane | None:
        return next((lane for lane in self.lanes if lane.lane == number), None)

    def with_lane(self, lane: Lane) -> Job:
        """The job with a lane replaced, or added."""
        others = [other for other in self.lanes if other.lane != lane.lane]
        return replace(self, lanes=tuple(sorted((*others, lane), key=lambda each: each.lane)))

    def progress(self, unit: str = "records") -> Progress:
        """Its progress, for its ticket."""
        rate = self.tally.read / self.worked if self.worked > 0 else None
        remaining = (self.total or 0) - self.tally.read
        left = remaining / rate if rate and remaining > 0 else None
        note = "" if self.state is JobState.RUNNING else f"{self.state}{': ' if self.why else ''}{self.why}"
        return Progress(
            self.tally.read, self.total, unit, round(rate, 1) if rate else None, round(left, 1) if left else None, note
        )

    def report(self) -> dict[str, Any]:
        """What became of its records, as its ticket and the command line show it."""
        return {
            "job": self.rule,
            "guid": self.guid,
            "kind": str(self.kind),
            "restores": self.restore,
            "args": self.args if self.args != "{}" else "",
            "state": str(self.state),
            "why": self.why,
            "total": self.total,
            **self.tally.to_document(),
            "seconds": round(self.worked, 1),
            "made_at": self.made_at,
            "ended_at": self.ended_at,
        }

    def covers(self, moment: datetime) -> bool:
        """True if it was running at a moment."""
        has_begun = self.made_at is not None and self.made_at <= moment
        return has_begun and (self.ended_at is None or self.ended_at >= moment)

    @property
    def is_over(self) -> bool:
        """Whether all lanes that move records have ended."""
        return all(lane.ended for lane in self.lanes if lane.lane != VERIFIER)

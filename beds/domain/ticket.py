"""The status of a ticket (CALGON): its state, its progress, its times and, at the end, its outcome."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from beds.errors import MalformedEvent


class TicketState(StrEnum):
    """Celery's names of states where Celery has one. PENDING means accepted, and waiting in its queue."""

    PENDING = "PENDING"
    STARTED = "STARTED"
    PROGRESS = "PROGRESS"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    REVOKED = "REVOKED"

    @property
    def is_final(self) -> bool:
        return self in (TicketState.SUCCESS, TicketState.FAILURE, TicketState.REVOKED)


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a long operation: `done` of `total` (None if unknown) in `unit`.

    A job also has `rate` (units a second), `seconds_left`, and a `note` about a state in which it does not go on.
    """

    done: int
    total: int | None = None
    unit: str = "records"
    rate: float | None = None
    seconds_left: float | None = None
    note: str = ""

    def to_wire(self) -> dict[str, Any]:
        found: dict[str, Any] = {"done": self.done, "total": self.total, "unit": self.unit}
        more = {"rate": self.rate, "seconds_left": self.seconds_left, "note": self.note}
        return found | {name: value for name, value in more.items() if value}


@dataclass(frozen=True, slots=True)
class TicketStatus:
    """A ticket at one moment.

    Args:
        guid, event_id: the ticket's.
        state: the current state.
        summary: template and operation.
        progress: the progress, if the operation reports it.
        accepted_at, started_at, ended_at: in UTC; None until then.
        cancelled_by: who cancelled it, or empty.
        worker: the worker that began it, or empty.
        queue: the queue of its event.
        result: the reply as on the wire, in a final state; `Ticket.result` converts it to a reply or an error.
    """

    guid: str
    event_id: str
    state: TicketState
    summary: str = ""
    progress: Progress | None = None
    accepted_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    cancelled_by: str = ""
    worker: str = ""
    queue: str = ""
    result: Any = field(default=None, repr=False)

    @property
    def ready(self) -> bool:
        return self.state.is_final

    def to_wire(self) -> dict[str, Any]:
        found: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        found["state"] = str(self.state)
        if self.progress:
            found["progress"] = self.progress.to_wire()
        return found

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> TicketStatus:
        """Raises MalformedEvent."""
        try:
            known = {name: wire[name] for name in cls.__slots__ if wire.get(name) is not None}
            known["state"] = TicketState(known["state"])
            if "progress" in known:
                known["progress"] = Progress(**known["progress"])
            return cls(**known)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise MalformedEvent(
                "the ticket's status has a form this version does not know", hint="update the older side"
            ) from None


def submitted_at(guid: str) -> datetime | None:
    """The time in a ticket's UUIDv7; None for a guid of another form, which BEDS never makes."""
    try:
        parsed = uuid.UUID(guid)
    except (ValueError, AttributeError, TypeError):
        return None
    if parsed.version != 7 or str(parsed) != guid:
        return None
    try:
        return datetime.fromtimestamp((parsed.int >> 80) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None  # a year beyond 9999

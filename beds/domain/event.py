"""One operation on a template, as it crosses RabbitMQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from beds.domain.lineage import Lineage


class Operation(StrEnum):
    """The verbs of NamasteCore."""

    CREATE = "create_record"
    CREATE_MANY = "create_records"
    FETCH = "fetch_records"
    UPDATE = "update_record"
    DELETE = "delete_record"

    @property
    def is_read(self) -> bool:
        return self is Operation.FETCH


class Store(StrEnum):
    """The two kinds of database: documents (MongoDB) and tables (MariaDB)."""

    REC = "rec"
    REL = "rel"


def queue_for(store: Store, operation: Operation) -> str:
    """The queue, and the routing key, of an operation: `rec.write`, `rel.read`, …"""
    return f"{store}.{'read' if operation.is_read else 'write'}"


def task_for(store: Store, operation: Operation) -> str:
    """The Celery task that carries out an operation: `rec.create_record`, …"""
    return f"{store}.{operation}"


CALGON = "calgon"
"""The queue of questions about tickets; its tasks are `calgon.accept`, `calgon.status` and `calgon.cancel`."""
CALGON_VERBS = ("accept", "status", "cancel")


@dataclass(frozen=True, slots=True)
class Event:
    """One message: an operation on a template, or a question about tickets.

    Args:
        task: the Celery task that carries it out.
        queue: where it goes; also its routing key.
        arguments: the task's arguments, by name.
        summary: what a monitor may show: names, never values.
        lineage: where the event comes from.
        is_read: it changes nothing, so it may be sent again, and dropped when nobody waits.
        ticket: whether the outcome is kept for polling.
        expires: when nobody waits any more; a worker drops it after that.
        submitted_at: when the client made the event.
    """

    task: str
    queue: str
    arguments: Mapping[str, Any] = field(repr=False)
    summary: str
    lineage: Lineage
    is_read: bool = False
    ticket: bool = False
    expires: datetime | None = None
    submitted_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def may_be_repeated(self) -> bool:
        """Whether a second copy does no harm: it changes nothing, or its ticket lets one copy be carried out."""
        return self.is_read or self.ticket

    @classmethod
    def of_operation(
        cls, store: Store, operation: Operation, template: str, body: Mapping[str, Any], lineage: Lineage, **more: Any
    ) -> Event:
        """An operation on a template; `body` has the verb's arguments: `payload`, `payloads`, `record_id`, or `using`,
        `args`, `limit`, `cursor`."""
        using = body.get("using")
        return cls(
            task_for(store, operation),
            queue_for(store, operation),
            {"template": template, **body},
            f"{template}.{operation}" + (f" using {using}" if isinstance(using, str) else ""),
            lineage,
            is_read=operation.is_read,
            **more,
        )

    @classmethod
    def of_calgon(cls, verb: str, arguments: Mapping[str, Any], lineage: Lineage, **more: Any) -> Event:
        """A question about tickets. All of them may be repeated."""
        return cls(f"{CALGON}.{verb}", CALGON, arguments, f"{CALGON}.{verb}", lineage, is_read=True, **more)

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


@dataclass(frozen=True, slots=True)
class Event:
    """An operation with its data and its lineage.

    Args:
        store: which kind of database the template lives in; decides the queue.
        operation: the verb.
        template: the template's name.
        body: the verb's arguments, by name: `payload`, `payloads`, `record_id`, or `using`, `args`, `limit`, `cursor`.
        lineage: where the event comes from.
        ticket: whether the outcome is kept for polling.
        expires: when nobody waits any more (reads only); a worker drops it after that.
        submitted_at: when the client made the event.
    """

    store: Store
    operation: Operation
    template: str
    body: Mapping[str, Any] = field(repr=False)
    lineage: Lineage
    ticket: bool = False
    expires: datetime | None = None
    submitted_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def queue(self) -> str:
        return queue_for(self.store, self.operation)

    @property
    def task(self) -> str:
        return task_for(self.store, self.operation)

    @property
    def summary(self) -> str:
        """What a monitor may show: names, never values."""
        using = self.body.get("using")
        return f"{self.template}.{self.operation}" + (f" using {using}" if isinstance(using, str) else "")

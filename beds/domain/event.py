"""One operation on a template, as it crosses RabbitMQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
"""The queue of questions about tickets; its tasks are `calgon.accept`, `calgon.status`, `calgon.cancel`, and
for dead events `calgon.replay` and `calgon.discard`."""
CALGON_VERBS = ("accept", "status", "cancel", "replay", "discard")


PROBE = "probe"


def probe_for(queue: str) -> str:
    """The Celery task that answers the doctor from a queue's pool: `rec.read.probe`, …"""
    return f"{queue}.{PROBE}"


class RecordKind(StrEnum):
    """What goes to the exchange beds.logs, many in one message."""

    LOG = "log"
    LINEAGE = "lineage"
    AUDIT = "audit"
    METRIC = "metric"


RECORD_TASKS: Mapping[RecordKind, str] = {
    RecordKind.LOG: "admin.write_logs",
    RecordKind.LINEAGE: "admin.write_logs",
    RecordKind.AUDIT: "admin.write_audit",
    RecordKind.METRIC: "admin.write_metrics",
}
"""The Celery task that writes records of a kind."""


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
        actor: on whose behalf the application acts, in its own words.
        exchange: where it is published.
        body: the arguments as they go over the wire, once they were judged; see `transport.message.sealed`.
        is_plain: the arguments are JSON as they stand, and nobody waits for a reply: records for the admin worker.
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
    actor: str = ""
    exchange: str = "beds.events"
    is_plain: bool = False
    body: bytes = field(default=b"", repr=False)
    submitted_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def acceptance(self) -> dict[str, Any]:
        """What the ticket store hears of the event before it is carried out."""
        lineage = self.lineage
        return {
            "guid": lineage.guid,
            "event_id": lineage.event_id,
            "root_id": lineage.root_id,
            "parent_id": lineage.parent_id,
            "summary": self.summary[:300],
            "queue": self.queue,
        }

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
    def of_records(
        cls, kind: RecordKind, level: str, common: Mapping[str, Any], records: Sequence[Any], lineage: Lineage
    ) -> Event:
        """Records for the admin worker. They carry ids, so a second copy does no harm.

        Args:
            kind: what they are.
            level: the highest level among log records, for whoever binds a queue to `log.error`.
            common: what all of them have in common.
            records: plain JSON objects.
            lineage: of the message; each record has one of its own.
        """
        key = f"{kind}.{level}" if kind is RecordKind.LOG else str(kind)
        arguments = {"kind": str(kind), "common": common, "records": records}
        task = RECORD_TASKS[kind]
        return cls(task, key, arguments, task, lineage, is_read=True, exchange="beds.logs", is_plain=True)

    @classmethod
    def of_calgon(cls, verb: str, arguments: Mapping[str, Any], lineage: Lineage, **more: Any) -> Event:
        """A question about tickets. All of them may be repeated."""
        return cls(f"{CALGON}.{verb}", CALGON, arguments, f"{CALGON}.{verb}", lineage, is_read=True, **more)

    @classmethod
    def of_probe(cls, queue: str, lineage: Lineage, *, retry: bool) -> Event:
        """A question to a queue's pool whether it answers; with `retry` only after the task has tried again once."""
        task = probe_for(queue)
        return cls(task, queue, {"retry": retry}, task, lineage, is_read=True)

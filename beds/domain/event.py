"""The event: one operation or request that is published to RabbitMQ."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any

from beds.domain.job import Job, JobKind
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


@cache
def queue_for(store: Store, operation: Operation) -> str:
    """The queue, and the routing key, of an operation: `rec.write`, `rel.read`, …"""
    return f"{store}.{'read' if operation.is_read else 'write'}"


@cache
def task_for(store: Store, operation: Operation) -> str:
    """The Celery task that executes an operation: `rec.create_record`, …"""
    return f"{store}.{operation}"


CALGON = "calgon"
"""The queue of requests about one's own tickets; its tasks are `calgon.accept`, `calgon.status`, …"""
CALGON_VERBS = ("accept", "status", "cancel", "pause", "resume")
OPERATOR = "operator"
"""The queue of an operator's requests, about the tickets and records of all users."""
OPERATOR_VERBS = ("fetch", "status", "cancel", "replay", "discard", "pause", "resume", "members")


CHUNK, TICK = "chunk", "tick"
"""The verbs of a job queue beside the job's start: one chunk, and the look for what is due."""
CHUNK_TASKS = frozenset(f"{kind.queue}.{CHUNK}" for kind in JobKind)
DESCRIBE = "describe"
"""The verb of a read queue that returns the signatures of a template's objects."""
PROBE = "probe"


def probe_for(queue: str) -> str:
    """The Celery task with which the doctor probes a queue's pool: `rec.read.probe`, …"""
    return f"{queue}.{PROBE}"


class RecordKind(StrEnum):
    """Kinds of records on the exchange beds.logs; one message holds many records of a kind."""

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
    """One message: an operation on a template, a request about tickets, records, or a probe.

    Args:
        task: the Celery task that executes it.
        queue: its queue and routing key; for records the routing key only.
        arguments: the task's arguments, by name.
        summary: shown by monitors; holds names, never values.
        lineage: the event's lineage.
        repeatable: whether publishing it again has no second effect; a late reply then needs no warning.
        ticket: whether the outcome is kept for polling.
        is_called: whether its caller waits for the outcome of the ticket, and so wants an error rather than a delay.
        expires_in: seconds after which RabbitMQ drops the event if no worker has received it. RabbitMQ's clock counts,
            because a client's clock may be wrong.
        actor: on whose behalf the application acts; a name of its own choice.
        for_user: the user whose event it is, if a worker publishes it for another.
        exchange: where it is published.
        body: the encoded arguments, empty until they are checked; see `wire.message.with_encoded_body`.
        is_plain: the arguments are plain JSON and no reply is wanted, as for records.
        submitted_at: when the client made the event.
    """

    task: str
    queue: str
    arguments: Mapping[str, Any] = field(repr=False)
    summary: str
    lineage: Lineage
    repeatable: bool = False
    ticket: bool = False
    is_called: bool = False
    expires_in: float | None = None
    actor: str = ""
    for_user: str = ""
    exchange: str = "beds.events"
    is_plain: bool = False
    body: bytes = field(default=b"", repr=False)
    submitted_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def is_transient(self) -> bool:
        """True if RabbitMQ may forget the event: its caller waits, and repeats it after a lost connection."""
        return self.repeatable and self.expires_in is not None and not self.ticket

    @property
    def acceptance(self) -> dict[str, Any]:
        """The event's ticket, sent to the ticket store before the event."""
        lineage = self.lineage
        return {
            "guid": lineage.guid,
            "event_id": lineage.event_id,
            "root_id": lineage.root_id,
            "parent_id": lineage.parent_id,
            "summary": self.summary[:300],
            "queue": self.queue,
            **({"actor": self.actor} if self.actor else {}),
        }

    @classmethod
    def of_operation(
        cls, store: Store, operation: Operation, template: str, body: Mapping[str, Any], lineage: Lineage, **more: Any
    ) -> Event:
        """An operation on a template.

        `body` has the verb's arguments: `payload`, `payloads`, `record_id`, `expected_version`, or `using`, `args`,
        `limit`, `cursor`.
        """
        using = body.get("using")
        return cls(
            task_for(store, operation),
            queue_for(store, operation),
            {"template": template, **body},
            f"{template}.{operation}" + (f" using {using}" if isinstance(using, str) else ""),
            lineage,
            repeatable=operation.is_read,
            **more,
        )

    @classmethod
    def of_records(
        cls, kind: RecordKind, level: str, common: Mapping[str, Any], records: Sequence[Any], lineage: Lineage
    ) -> Event:
        """Records for the admin worker. They carry ids, so a second copy does no harm.

        Args:
            kind: the kind of the records.
            level: the level of log records, for the routing key, so that a queue may be bound to `log.error`.
            common: the fields that all records share.
            records: plain JSON objects.
            lineage: of the message; each record has its own.
        """
        key = f"{kind}.{level}" if kind is RecordKind.LOG else str(kind)
        arguments = {"kind": str(kind), "common": common, "records": records}
        task = RECORD_TASKS[kind]
        return cls(task, key, arguments, task, lineage, repeatable=True, exchange="beds.logs", is_plain=True)

    @classmethod
    def of_calgon(cls, verb: str, arguments: Mapping[str, Any], lineage: Lineage, **more: Any) -> Event:
        """A request about tickets; repeating it does no harm."""
        return cls(f"{CALGON}.{verb}", CALGON, arguments, f"{CALGON}.{verb}", lineage, repeatable=True, **more)

    @classmethod
    def of_operator(cls, verb: str, arguments: Mapping[str, Any], lineage: Lineage, **more: Any) -> Event:
        """An operator's request; repeating it does no harm."""
        return cls(f"{OPERATOR}.{verb}", OPERATOR, arguments, f"{OPERATOR}.{verb}", lineage, repeatable=True, **more)

    @classmethod
    def of_job(cls, kind: JobKind, rule: str, arguments: Mapping[str, Any], lineage: Lineage, **more: Any) -> Event:
        """The start of a job. `arguments` has `args`, `dry_run` and `restore`, where given."""
        body = {"rule": rule, **arguments}
        return cls(kind.queue, kind.queue, body, f"{rule}.{kind}", lineage, ticket=True, **more)

    @classmethod
    def of_chunk(cls, job: Job, lane: int, n: int, node: str, env: str, *, again: bool) -> Event:
        """One chunk of a job. Copies of the same chunk have the same guid.

        Args:
            job: the job.
            lane, n: of the chunk.
            node, env: where the event is made.
            again: whether its slot may have ended before it was done.
        """
        guid = str(uuid.uuid5(uuid.UUID(job.guid), f"{job.user} {lane} {n}"))
        lineage = Lineage(node, env, guid, job.event_id, job.root_id, job.depth + 1)
        task = f"{job.kind.queue}.{CHUNK}"
        body = {"job": job.guid, "lane": lane, "n": n} | ({"again": True} if again else {})
        summary = f"{job.rule}.{CHUNK} {lane}.{n}"
        queue = job.kind.queue
        return cls(task, queue, body, summary, lineage, True, actor=job.actor, for_user=job.user, is_plain=True)

    @classmethod
    def of_tick(cls, kind: JobKind, lineage: Lineage, seconds: float) -> Event:
        """The look for what is due. It expires when the next one comes."""
        task = f"{kind.queue}.{TICK}"
        return cls(task, kind.queue, {}, task, lineage, True, expires_in=seconds, is_plain=True)

    @classmethod
    def of_question(
        cls, store: Store, verb: str, template: str, lineage: Lineage, arguments: Mapping[str, Any], **more: Any
    ) -> Event:
        """A question about a template: what its objects take (`describe`), or what was written (`changes`)."""
        queue = queue_for(store, Operation.FETCH)
        given, summary = {"template": template, **arguments}, f"{template}.{verb}"
        return cls(f"{queue}.{verb}", queue, given, summary, lineage, repeatable=True, **more)

    @classmethod
    def of_probe(cls, queue: str, lineage: Lineage, *, retry: bool) -> Event:
        """A probe of a queue's pool; with `retry`, the task replies only after one retry."""
        task = probe_for(queue)
        return cls(task, queue, {"retry": retry}, task, lineage, repeatable=True)

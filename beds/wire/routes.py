"""The table of routes: each task's queue, consumer and kind.

Celery's configuration, the validation of deliveries, rights, the start-up checks and the doctor all read this table.
No code parses the name of a task or a queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from beds.config import Settings
from beds.config.sections import Broker, Services
from beds.domain.change import CHANGES
from beds.domain.event import (
    CALGON,
    CALGON_VERBS,
    CHUNK,
    DESCRIBE,
    OPERATOR,
    OPERATOR_VERBS,
    PROBE,
    RECORD_TASKS,
    TICK,
    Operation,
    RecordKind,
    Store,
    probe_for,
    queue_for,
    task_for,
)
from beds.domain.job import JobKind

EVENTS = "beds.events"
LOGS = "beds.logs"
DEAD = "beds.dead"
"""The dead-letter exchange, and its one queue, which is consumed as raw messages."""
LATER = "beds.later"
"""The exchange and the queue of events that wait for their store, and then return to the queue they came from."""
LEVELS = ("debug", "info", "warning", "error", "critical")
"""Levels of log records in routing keys."""


START = "start"
"""The verb of a job's first event."""


class Kind(StrEnum):
    """The kind of a route's task."""

    OPERATION = "operation"
    TICKETS = "tickets"
    ORDER = "order"
    JOB = "job"
    RECORDS = "records"
    DESCRIPTION = "description"
    CHANGES = "changes"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class QueueRoute:
    """One queue of events or records.

    Args:
        name: of the queue.
        exchange: the exchange it is bound to.
        keys: the routing keys of its bindings; a message with any other key is rejected.
        service: the part of `[services]` that consumes it.
        pool: the pool of `[brokers]` that sizes its consumer.
        store: the store that its consumer needs; None if the job determines it.
        writes: whether its events change data.
    """

    name: str
    exchange: str
    keys: tuple[str, ...]
    service: str
    pool: str
    store: Store | None = None
    writes: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One task.

    Args:
        task: its Celery name.
        verb: what it does, in one word.
        queue: its queue.
        kind: its kind.
        operation: the NamasteCore operation that it executes, or None.
    """

    task: str
    verb: str
    queue: QueueRoute
    kind: Kind
    operation: Operation | None = None


def _event_queue(name: str, service: str, store: Store | None, *, pool: str = "", writes: bool = False) -> QueueRoute:
    return QueueRoute(name, EVENTS, (name,), service, pool or name, store, writes)


_CRUD = {
    queue_for(store, operation): _event_queue(
        queue_for(store, operation), str(store), store, writes=not operation.is_read
    )
    for store in Store
    for operation in (Operation.FETCH, Operation.CREATE)
}
_JOBS = {kind.queue: _event_queue(kind.queue, "jobs", None) for kind in JobKind}
_TICKETS = {
    CALGON: _event_queue(CALGON, "calgon", Store.REC),
    OPERATOR: _event_queue(OPERATOR, "calgon", Store.REC, pool=CALGON),
}
_RECORDS = {
    name: QueueRoute(name, LOGS, keys, "admin", "admin", Store.REC)
    for name, keys in {
        "beds.logs": (*(f"{RecordKind.LOG}.{level}" for level in LEVELS), str(RecordKind.LINEAGE)),
        "beds.audit": (str(RecordKind.AUDIT),),
        "beds.metrics": (str(RecordKind.METRIC),),
    }.items()
}
QUEUE_ROUTES: Mapping[str, QueueRoute] = {**_CRUD, **_JOBS, **_TICKETS, **_RECORDS}
"""All queues that a worker may consume, by name."""

CRUD_QUEUES = tuple(_CRUD)
EVENT_QUEUES = tuple(name for name, queue in QUEUE_ROUTES.items() if queue.exchange == EVENTS)
"""Each is bound to beds.events by its own name."""
JOB_QUEUES = tuple(_JOBS)
LOG_QUEUES = tuple(_RECORDS)
QUEUES = tuple(QUEUE_ROUTES)

RECORD_QUEUES: Mapping[RecordKind, QueueRoute] = {
    RecordKind.LOG: _RECORDS["beds.logs"],
    RecordKind.LINEAGE: _RECORDS["beds.logs"],
    RecordKind.AUDIT: _RECORDS["beds.audit"],
    RecordKind.METRIC: _RECORDS["beds.metrics"],
}
"""The queue for records of a kind."""

ROUTES: Mapping[str, Route] = {
    route.task: route
    for route in (
        *(
            Route(task_for(store, op), str(op), _CRUD[queue_for(store, op)], Kind.OPERATION, op)
            for store in Store
            for op in Operation
        ),
        *(
            Route(queue.name if verb == START else f"{queue.name}.{verb}", verb, queue, Kind.JOB)
            for queue in _JOBS.values()
            for verb in (START, CHUNK, TICK)
        ),
        *(Route(f"{CALGON}.{verb}", verb, _TICKETS[CALGON], Kind.TICKETS) for verb in CALGON_VERBS),
        *(Route(f"{OPERATOR}.{verb}", verb, _TICKETS[OPERATOR], Kind.ORDER) for verb in OPERATOR_VERBS),
        *(Route(task, "write", RECORD_QUEUES[kind], Kind.RECORDS) for kind, task in RECORD_TASKS.items()),
        *(
            Route(f"{queue.name}.{verb}", verb, queue, kind)
            for verb, kind in ((DESCRIBE, Kind.DESCRIPTION), (CHANGES, Kind.CHANGES))
            for queue in _CRUD.values()
            if not queue.writes
        ),
        *(Route(probe_for(name), PROBE, QUEUE_ROUTES[name], Kind.PROBE) for name in EVENT_QUEUES),
    )
}
"""All tasks that a message may name, by name."""


def exchange_of(key: str) -> str:
    """The exchange that a routing key belongs to; empty for an unknown key."""
    return next((queue.exchange for queue in QUEUE_ROUTES.values() if key in queue.keys), "")


def local_pools(services: Services) -> list[tuple[str, ...]]:
    """The pools that a node runs, each as its queues: one for each store queue, one each for jobs, tickets, records."""
    found: list[tuple[str, ...]] = [
        (queue.name,) for queue in _CRUD.values() if getattr(services, queue.service).is_local
    ]
    if services.jobs.is_local:
        found.append(tuple(_JOBS))
    if (services.calgon or services.rec).is_local:
        found.append(tuple(_TICKETS))
    if services.admin.is_local:
        found.append(tuple(_RECORDS))
    return found


def brokers_of(queues: Iterable[str], settings: Settings) -> list[Broker]:
    """The pool settings of the queues that one worker serves: one for each pool among them."""
    return [settings.broker(name) for name in dict.fromkeys(QUEUE_ROUTES[queue].pool for queue in queues)]


def node_queue(name: str) -> str:
    """The exclusive queue that a running node holds, so that no other node can use its name."""
    return f"beds.node.{name}"

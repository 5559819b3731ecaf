"""The load of the system: the queues with their rates and latencies, and the jobs that run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from kombu import Connection

from beds.client.client import Client
from beds.domain.event import OPERATOR
from beds.domain.histogram import BOUNDS_MS, RECORDS_MOVED, percentile
from beds.domain.job import Job
from beds.domain.member import Members
from beds.domain.trace import OK
from beds.errors import BedsError
from beds.transport.topology import Depth, depths
from beds.wire.routes import DEAD, EVENT_QUEUES, LATER, LOG_QUEUES

PERCENTS = (50, 95, 99)


@dataclass
class Row:
    """The figures of one queue over the window; only the depth unless `is_measured`."""

    depth: Depth | None
    is_measured: bool = False
    count: int = 0
    errors: int = 0
    busy_ms: float = 0.0
    records: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_MS) + 1))

    def to_wire(self, window: float) -> dict[str, Any]:
        measured = {
            "per_second": round(self.count / window, 2),
            "errors": self.errors,
            **{f"p{p}_ms": percentile(self.buckets, p) for p in PERCENTS},
            "busy": round(self.busy_ms / 1000 / window, 3),
            "records_per_second": round(self.records / window, 1),
        }
        return {
            "waiting": self.depth.messages if self.depth else None,
            "consumers": self.depth.consumers if self.depth else 0,
            **(measured if self.is_measured else dict.fromkeys(measured)),
        }


def queue_rates(client: Client, connection: Connection, window: float, timeout: float) -> dict[str, dict[str, Any]]:
    """The figures of each queue.

    Args:
        client: reads the rates; without an operator's rights only waiting events are known.
        connection: of any user, for the depths.
        window: seconds to look back.
        timeout: seconds for the request.

    Raises:
        BrokerUnavailable: RabbitMQ cannot be reached.
    """
    rows = _rows(client, connection, window, timeout)
    return {name: row.to_wire(window) for name, row in rows.items()}


def _rows(client: Client, connection: Connection, window: float, timeout: float) -> dict[str, Row]:
    found = depths((*EVENT_QUEUES, *LOG_QUEUES, LATER, DEAD), connection)
    rows: dict[str, Row] = defaultdict(lambda: Row(None), {name: Row(depth) for name, depth in found.items()})
    since = datetime.now(UTC) - timedelta(seconds=window)
    if not client.is_operator or not (asked := found[OPERATOR]) or not asked.consumers:
        return dict(rows)  # only an operator may read the rates
    for row in rows.values():
        row.is_measured = True
    for record in client.fetch("msMetrics", "recent", {"since": since}, timeout=timeout):
        row = rows[record["meta"]["queue"]]
        row.is_measured = True
        if record["meta"]["operation"] == RECORDS_MOVED:
            row.records += record["count"]
            continue
        row.count += record["count"]
        row.errors += record["count"] if record["meta"]["outcome"] != OK else 0
        row.busy_ms += record["total_ms"]
        row.buckets = [have + more for have, more in zip(row.buckets, record["buckets"], strict=True)]
    return dict(rows)


def operation_rates(client: Client, queue: str, window: float, timeout: float) -> list[dict[str, Any]]:
    """The executed events of a queue, by template, operation and outcome; the most frequent first.

    Args:
        client: an operator's.
        queue: its name.
        window: seconds to look back.
        timeout: seconds for the request.
    """
    since = datetime.now(UTC) - timedelta(seconds=window)
    found = []
    for record in client.fetch("msMetrics", "recent", {"since": since}, timeout=timeout):
        meta = record["meta"]
        if meta["queue"] == queue and meta["operation"] != RECORDS_MOVED:
            row = Row(None, True, record["count"], busy_ms=record["total_ms"], buckets=record["buckets"])
            named = {name: meta[name] for name in ("template", "operation", "outcome")}
            found.append({**named, "count": row.count, **row.to_wire(window)})
    return sorted(found, key=lambda each: -each["count"])


def members(client: Client, timeout: float) -> list[Members]:
    """The members of each cluster, as a worker of the queue `operator` sees them; none without an operator's rights."""
    if not client.is_operator:
        return []
    try:
        return [Members.from_wire(each) for each in client.ask("members", {}, timeout=timeout)]
    except BedsError:
        return []  # the queues show that no worker answers


def running_jobs(client: Client, timeout: float) -> list[dict[str, Any]]:
    """The jobs that have not ended; those of all users for an operator, whose requests a worker answers."""
    if not client.is_operator:
        return []
    try:
        page = client.fetch("msJobs", "unended", {}, limit=100, timeout=timeout)
    except BedsError:
        return []  # the queues above show that no worker answers
    found = [Job.of(record) for record in page]
    moment = datetime.now(UTC)
    return [
        {
            "guid": job.guid,
            "job": job.rule,
            "state": str(job.state),
            "done": job.tally.read,
            "total": job.total,
            "records_per_second": job.progress().rate,
            "lanes": sum(not lane.ended and not lane.folded for lane in job.lanes),
            "lag_seconds": round((moment - job.changed_at).total_seconds(), 1) if job.changed_at else None,
        }
        for job in found
    ]

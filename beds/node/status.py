"""What runs on a node, as its supervisor notes it and its workers tell."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import amqp
import kombu.exceptions
import psutil
from celery import Celery

from beds.config import Settings
from beds.node.pool import slots_of
from beds.node.supervisor import SETTLED, state_file
from beds.transport.connection import connect_to, tls_options

ANSWER_SECONDS = 2.0
STALE_SECONDS = 15.0
"""Age of a state file whose supervisor has stopped: it writes one every few seconds."""
KEYS = ("pool", "worker", "state", "pid", "slots", "restarts")


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Args:
    pool: its queues, or `flower`.
    state: `ready`, `starting`, `waiting`, `refused`.
    pid: of its parent process.
    slots: how many there should be.
    slot_pids: the processes of those there are; none where the slots are threads.
    restarts: since the node started.
    done: events carried out since the worker's start; None when it did not answer.
    """

    pool: str
    state: str
    pid: int | None
    slots: int
    slot_pids: tuple[int, ...]
    restarts: int
    done: int | None


def pools(settings: Settings) -> list[PoolStatus]:
    """The pools of the node that runs here; empty when none does."""
    noted = _noted(settings) or []
    done = _done(settings, [entry["worker"] for entry in noted if entry["worker"]])
    return [
        PoolStatus(
            entry["pool"],
            entry["state"],
            entry["pid"],
            entry["slots"],
            tuple(slots_of(entry["pid"])) if entry["pid"] and entry["slots"] else (),
            entry["restarts"],
            done.get(entry["worker"]),
        )
        for entry in noted
    ]


def is_serving(settings: Settings) -> bool:
    """Whether every pool is ready, or has said why it never will be."""
    noted = _noted(settings)
    return noted is not None and all(entry["state"] in SETTLED for entry in noted)


def is_refused(settings: Settings) -> bool:
    """Whether there are pools, and none of them can work."""
    noted = _noted(settings)
    return bool(noted) and all(entry["state"] == "refused" for entry in noted or [])


def is_ready(settings: Settings) -> bool:
    """Whether a supervisor is at work, and every pool serves; for health checks."""
    noted = _noted(settings)
    return noted is not None and all(entry["state"] == "ready" and _lives(entry["pid"]) for entry in noted)


def _lives(pid: Any) -> bool:
    return isinstance(pid, int) and psutil.pid_exists(pid)


def _noted(settings: Settings) -> list[dict[str, Any]] | None:
    """The state file's pools; None where there is none, or one that its supervisor no longer writes."""
    file = state_file(settings)
    try:
        if time.time() - file.stat().st_mtime > STALE_SECONDS:
            return None
        pools: list[dict[str, Any]] = json.loads(file.read_text())["pools"]
        return [{name: entry[name] for name in KEYS} for entry in pools]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _done(settings: Settings, workers: list[str]) -> dict[str, int]:
    """Events carried out by each worker that answers over RabbitMQ."""
    url = settings.amqp.broker_url
    app = Celery("beds-status", broker=url, set_as_current=False)
    app.conf.broker_use_ssl = tls_options(settings.amqp, url)
    try:
        with connect_to(settings.amqp, url, patience=ANSWER_SECONDS) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0, timeout=ANSWER_SECONDS)
            found = app.control.inspect(workers, timeout=ANSWER_SECONDS, connection=connection).stats() or {}
    except (kombu.exceptions.OperationalError, OSError, amqp.AMQPError):
        return {}
    return {name: sum(stats["total"].values()) for name, stats in found.items()}

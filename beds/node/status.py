"""A node's pools, from its supervisor's state file and its workers' replies."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import Any

import amqp
import kombu.exceptions
import psutil
from celery import Celery

from beds.config import Settings
from beds.config.hosts import each_host
from beds.domain.event import Store
from beds.errors import BedsError
from beds.node.pool import slots_of
from beds.node.supervisor import SETTLED, state_file
from beds.services.factory import AdapterFactory
from beds.templates.registry import TemplateRegistry
from beds.transport.connection import connect_to, tls_options

ANSWER_SECONDS = 2.0
STALE_SECONDS = 15.0
"""A supervisor writes its state file every few seconds, so an older file means that it has stopped."""
KEYS = ("pool", "worker", "state", "pid", "slots", "restarts")


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Args:
    pool: its queues, or `flower`.
    state: `ready`, `starting`, `waiting`, `refused`.
    pid: of its parent process.
    slots: the configured number.
    slot_pids: of the running slots; empty if the slots are threads.
    restarts: since the node started.
    done: events executed since the worker's start; None if it did not reply.
    """

    pool: str
    state: str
    pid: int | None
    slots: int
    slot_pids: tuple[int, ...]
    restarts: int
    done: int | None


def pools(settings: Settings, *, counted: bool = True) -> list[PoolStatus]:
    """The pools of the node that runs here; empty when none does.

    Args:
        settings: of the node.
        counted: whether to ask each worker for the events it has executed, which takes seconds.
    """
    noted = _noted(settings) or []
    done = _done(settings, [entry["worker"] for entry in noted if entry["worker"]]) if counted else {}
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
    """True if every pool is ready or refuses to start."""
    noted = _noted(settings)
    return noted is not None and all(entry["state"] in SETTLED for entry in noted)


def refused(settings: Settings) -> list[str]:
    """The pools that refuse to start; their worker's log says why."""
    return [entry["pool"] for entry in _noted(settings) or [] if entry["state"] == "refused"]


def is_refused(settings: Settings) -> bool:
    """True if there are pools, and all refuse to start."""
    return 0 < len(refused(settings)) == len(_noted(settings) or [])


def is_ready(settings: Settings) -> bool:
    """True if the supervisor runs and every pool is ready; for health checks."""
    noted = _noted(settings)
    return noted is not None and all(entry["state"] == "ready" and _lives(entry["pid"]) for entry in noted)


def stores_without_writes(settings: Settings) -> list[str]:
    """Why the stores of this node's services take no writes, for those that do not."""
    found = []
    with contextlib.closing(
        AdapterFactory(settings, TemplateRegistry.from_folder(settings.schema_path, strict=False), ANSWER_SECONDS)
    ) as factory:
        for store in Store:
            service = getattr(settings.services, store)
            if not service.is_local:
                continue
            try:
                if not factory.takes_writes(store):
                    found.append(f"the server of {store} takes no writes")
            except BedsError as error:
                found.append(f"{store}: {error.message}")
    return found


def _lives(pid: Any) -> bool:
    return isinstance(pid, int) and psutil.pid_exists(pid)


def _noted(settings: Settings) -> list[dict[str, Any]] | None:
    """The pools in the state file; None if there is no file, or its supervisor no longer writes it."""
    file = state_file(settings)
    try:
        if time.time() - file.stat().st_mtime > STALE_SECONDS:
            return None
        pools: list[dict[str, Any]] = json.loads(file.read_text())["pools"]
        return [{name: entry[name] for name in KEYS} for entry in pools]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _done(settings: Settings, workers: list[str]) -> dict[str, int]:
    """Events executed by each worker that replies over RabbitMQ."""
    url = settings.amqp.broker_url
    app = Celery("beds-status", broker=each_host(url)[0], set_as_current=False)
    app.conf.broker_use_ssl = tls_options(settings.amqp, url)
    try:
        with connect_to(settings.amqp, url, patience=ANSWER_SECONDS) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0, timeout=ANSWER_SECONDS)
            found = app.control.inspect(workers, timeout=ANSWER_SECONDS, connection=connection).stats() or {}
    except (kombu.exceptions.OperationalError, OSError, amqp.AMQPError):
        return {}
    return {name: sum(stats["total"].values()) for name, stats in found.items()}

"""What runs on a node, as its supervisor notes it and its workers tell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import kombu.exceptions

from beds.broker.app import app
from beds.config import Settings
from beds.node.pool import slots_of
from beds.node.supervisor import state_file

ANSWER_SECONDS = 2.0


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
    done = _done([entry["worker"] for entry in noted if entry["worker"]])
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
    return noted is not None and all(entry["state"] in ("ready", "refused") for entry in noted)


def _noted(settings: Settings) -> list[dict[str, Any]] | None:
    """The state file's pools; None where there is none."""
    try:
        pools: list[dict[str, Any]] = json.loads(state_file(settings).read_text())["pools"]
    except (OSError, ValueError, KeyError):
        return None
    return pools


def _done(workers: list[str]) -> dict[str, int]:
    """Events carried out by each worker that answers over RabbitMQ."""
    try:
        with app.connection_for_write(transport_options={"max_retries": 1}) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0, timeout=ANSWER_SECONDS)
            found = app.control.inspect(workers, timeout=ANSWER_SECONDS, connection=connection).stats() or {}
    except (kombu.exceptions.OperationalError, OSError):
        return {}
    return {name: sum(stats["total"].values()) for name, stats in found.items()}

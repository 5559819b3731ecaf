"""Celery's remote-control commands for a pool of slots; other pools keep Celery's own.

Celery's extension point: https://docs.celeryq.dev/en/stable/userguide/workers.html#writing-your-own-remote-control-commands
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker.control import Panel

from beds.worker.slots.board import Work
from beds.worker.slots.pool import SlotPool

Command = Callable[..., Any]
_CANCEL = "a slot's event is cancelled through its ticket: `beds ticket cancel GUID`"


def install() -> None:
    """Register the commands in place of Celery's. Harmless to repeat."""
    for name, command in _COMMANDS.items():
        known: Command = Panel.data[name]
        if getattr(known, "for_slots", None) is None:
            Panel.data[name] = _for_slots(command, known)


def _for_slots(command: Command, otherwise: Command) -> Command:
    def choose(state: Any, *arguments: Any, **options: Any) -> Any:
        pool = state.consumer.controller.pool
        if isinstance(pool, SlotPool):
            return command(state, pool, *arguments, **options)
        return otherwise(state, *arguments, **options)

    choose.for_slots = True  # type: ignore[attr-defined]
    return choose


def _active(state: Any, pool: SlotPool, **_: Any) -> list[dict[str, Any]]:
    return [_info(state, view.active, pid) for _, pid, view in pool.running() if view.active]


def _reserved(state: Any, pool: SlotPool, **_: Any) -> list[dict[str, Any]]:
    return [_info(state, work, pid) for _, pid, view in pool.running() for work in view.waiting]


def _query_task(state: Any, pool: SlotPool, ids: Any, **_: Any) -> dict[str, Any]:
    wanted = set(maybe_list(ids) or ())
    found = {"reserved": _reserved(state, pool), "active": _active(state, pool)}
    return {info["id"]: (word, info) for word, infos in found.items() for info in infos if info["id"] in wanted}


def _stats(state: Any, pool: SlotPool, **_: Any) -> dict[str, Any]:
    return {**state.consumer.controller.stats(), "total": dict(pool.totals())}


def _refuse_revoke(_state: Any, _pool: SlotPool, *_: Any, **__: Any) -> dict[str, str]:
    return {"error": _CANCEL}


def _refuse_queue(_state: Any, _pool: SlotPool, *_: Any, **__: Any) -> dict[str, str]:
    return {"error": "a pool's queues are those of -Q; start another worker for another queue"}


def _refuse_limit(_state: Any, _pool: SlotPool, *_: Any, **__: Any) -> dict[str, str]:
    return {"error": "a pool's limits are those of [brokers] in beds.toml"}


def _info(state: Any, work: Work, pid: int) -> dict[str, Any]:
    """An event as Celery shows a request."""
    return {
        "id": work.guid,
        "name": work.task,
        "args": [],
        "kwargs": work.summary,
        "type": work.task,
        "hostname": state.hostname,
        "time_start": time.time() - (time.monotonic() - work.began) if work.began else None,
        "acknowledged": False,
        "delivery_info": {"exchange": "", "routing_key": work.queue, "priority": None, "redelivered": None},
        "worker_pid": pid,
    }


_COMMANDS: dict[str, Command] = {
    "active": _active,
    "dump_active": _active,
    "reserved": _reserved,
    "dump_reserved": _reserved,
    "query_task": _query_task,
    "stats": _stats,
    "revoke": _refuse_revoke,
    "revoke_by_stamped_headers": _refuse_revoke,
    "terminate": _refuse_revoke,
    "add_consumer": _refuse_queue,
    "cancel_consumer": _refuse_queue,
    "rate_limit": _refuse_limit,
    "time_limit": _refuse_limit,
    "autoscale": _refuse_limit,
}

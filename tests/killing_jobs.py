"""Kills a slot at one point of a job, once: a worker of the fault tests loads it with `-I tests.killing_jobs`.

KILL_AT names the point, and KILL_FLAG a file that is there once it has happened. With KILL_ALWAYS it happens while the
file `poison` is there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beds.adapters.bulk import BulkAdapter
from beds.services.jobs.cold import Files
from beds.services.jobs.jobs import Jobs
from beds.services.jobs.loading import Loader
from beds.services.jobs.store import JobStore

POINTS: dict[str, tuple[type, str]] = {
    "made": (JobStore, "create"),
    "cut": (Jobs, "_claim"),
    "loaded": (BulkAdapter, "load"),
    "read back": (Loader, "read_back"),
    "removed": (BulkAdapter, "remove_unchanged"),
    "folded": (Jobs, "_fold"),
    "published": (Jobs, "_go_on"),
    "lane ended": (Jobs, "_end_lane"),
    "ticket ended": (Jobs, "_end_ticket"),
    "file written": (Files, "write"),
    "file listed": (Files, "list"),
}
AFTER = 2
"""How often the point is passed in a process before it is killed there; points of a job's ends are passed once."""


def _killing(after: Callable[..., Any], point: str) -> Callable[..., Any]:
    flag, poison = Path(os.environ["KILL_FLAG"]), os.environ.get("KILL_ALWAYS")
    wanted = 1 if poison or point in ("made", "lane ended", "ticket ended") else AFTER
    passed = 0

    def method(*args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        found = after(*args, **kwargs)
        passed += 1
        if poison:
            if passed >= wanted and Path(poison).exists():
                os.kill(os.getpid(), signal.SIGKILL)
        elif passed >= wanted and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return method


if point := os.environ.get("KILL_AT"):
    owner, name = POINTS[point]
    setattr(owner, name, _killing(getattr(owner, name), point))

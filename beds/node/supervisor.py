"""One Celery worker for each local queue, started again when it dies, drained together on SIGTERM."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from beds.broker.app import EX_CONFIG
from beds.broker.worker import READY_FILE
from beds.config import Settings
from beds.errors import ConfigurationError
from beds.transport.topology import local_pools

RESTART_SECONDS = 2.0
PR_SET_PDEATHSIG = 1
"""Of <linux/prctl.h>."""
DRAIN_SECONDS = 60.0
"""What a worker gets to finish what runs, before it is killed."""


def run(settings: Settings, tell: Callable[[str], None]) -> int:
    """Run the node until SIGTERM or SIGINT. Returns the exit code.

    Args:
        settings: which services are local.
        tell: hears of starts and deaths.

    Raises:
        ConfigurationError: the node has nothing to run, or runs already.
    """
    pools = pools_of(settings)
    with _only_one(settings):
        return _supervise(pools, settings, tell)


def pools_of(settings: Settings) -> list[str]:
    """The workers of this node, each by its queues as `-Q` takes them. Raises ConfigurationError: there are none."""
    pools = [",".join(queues) for queues in local_pools(settings.services)]
    if not pools:
        raise ConfigurationError(
            "this node has no local service with a worker", hint="set is_local in [services] of beds.toml"
        )
    return pools


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold this node's lock. Two supervisors of one node double its pools, and after a change of templates answer by
    turns as the old and the new one."""
    file = lock_file(settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise already_runs(settings) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def lock_file(settings: Settings) -> Path:
    """Held by the supervisor of this node, with its pid in it."""
    return settings.root / ".beds" / "run" / f"{settings.node.name}.lock"


def already_runs(settings: Settings) -> ConfigurationError:
    """Why a second supervisor of this node is refused."""
    pid = file.read_text().strip() if (file := lock_file(settings)).exists() else "?"
    return ConfigurationError(
        f"the workers of node {settings.node.name} run already (pid {pid})",
        hint=f"in the background: `beds node restart`; in a terminal: Ctrl-C there, or kill {pid}; "
        "for more slots, raise instances in [brokers]",
    )


def _supervise(pools: list[str], settings: Settings, tell: Callable[[str], None]) -> int:
    stop: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    workers = {queues: _start(queues, settings) for queues in pools}
    tell(f"node {settings.node.name}: {', '.join(pools)}")
    while not stop:
        time.sleep(0.5)
        for queues, worker in workers.items():
            code = worker.poll()
            if code is None or stop:
                continue
            if code == EX_CONFIG:
                tell(f"worker of {queues} refuses to start (see above); ending the node")
                stop.append(EX_CONFIG)
                break
            tell(f"worker of {queues} ended with {code}; starting it again in {RESTART_SECONDS:.0f} s")
            time.sleep(RESTART_SECONDS)
            workers[queues] = _start(queues, settings)
    _drain(list(workers.values()))
    return EX_CONFIG if stop[0] == EX_CONFIG else 0


def _start(queues: str, settings: Settings) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "celery", "-A", "beds", "worker", "-Q", queues, "-l", settings.logging.level]
    # A session of its own: Ctrl-C at the terminal reaches the supervisor alone, which drains in order.
    env = {**os.environ, READY_FILE: str(ready_file(settings, queues))}
    return subprocess.Popen(command, cwd=settings.root, env=env, start_new_session=True, preexec_fn=_die_with_parent)


def ready_file(settings: Settings, queues: str) -> Path:
    """It exists once the worker of `queues` consumes."""
    return settings.root / ".beds" / "run" / f"{settings.node.name}.{queues}.ready"


def _die_with_parent() -> None:
    """In the new process: ask Linux for a SIGTERM when the supervisor is gone, however it went."""
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _drain(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + DRAIN_SECONDS
    for worker in workers:
        try:
            worker.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()

"""One Celery worker for each local queue, started again when it dies, drained together on SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

from beds.broker.worker import EX_CONFIG
from beds.config import Settings
from beds.errors import ConfigurationError
from beds.transport.topology import CRUD_QUEUES

RESTART_SECONDS = 2.0
DRAIN_SECONDS = 60.0
"""What a worker gets to finish what runs, before it is killed."""


def local_queues(settings: Settings) -> list[str]:
    """The queues whose service is local to this node."""
    return [queue for queue in CRUD_QUEUES if getattr(settings.services, queue.split(".")[0]).is_local]


def run(settings: Settings, tell: Callable[[str], None]) -> int:
    """Run the node until SIGTERM or SIGINT. Returns the exit code.

    Args:
        settings: which services are local.
        tell: hears of starts and deaths.

    Raises:
        ConfigurationError: the node has nothing to run.
    """
    queues = local_queues(settings)
    if not queues:
        raise ConfigurationError("this node has no local service with a worker", hint="set is_local in [services]")
    stop: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    workers = {queue: _start(queue, settings) for queue in queues}
    tell(f"node {settings.node.name}: {', '.join(queues)}")
    while not stop:
        time.sleep(0.5)
        for queue, worker in workers.items():
            code = worker.poll()
            if code is None or stop:
                continue
            if code == EX_CONFIG:
                tell(f"worker of {queue} refuses to start (see above); ending the node")
                stop.append(EX_CONFIG)
                break
            tell(f"worker of {queue} ended with {code}; starting it again in {RESTART_SECONDS:.0f} s")
            time.sleep(RESTART_SECONDS)
            workers[queue] = _start(queue, settings)
    _drain(list(workers.values()))
    return EX_CONFIG if stop[0] == EX_CONFIG else 0


def _start(queue: str, settings: Settings) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "celery", "-A", "beds", "worker", "-Q", queue, "-l", settings.logging.level]
    # A session of its own: Ctrl-C at the terminal reaches the supervisor alone, which drains in order.
    return subprocess.Popen(command, cwd=settings.root, start_new_session=True)


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

"""One process that a node keeps running: a Celery worker with its slots, the app server, or Flower."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from beds.config import Settings
from beds.config.http import host_and_port
from beds.config.settings import CONFIG_VARIABLE
from beds.node.systemd import VARIABLES
from beds.wire.routes import brokers_of, local_pools
from beds.worker.process import READY_FILE, unique_name

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""First and longest delay before an ended process is restarted, in seconds. It doubles until a process lasts."""
LASTING_SECONDS = 60.0
"""A process that ran this long has lasted, so the delay starts again at the first."""
REFUSED_SECONDS = 30.0
"""Delay before a process that refused to start is started again, since the cause may be repaired by then."""
ASK_SECONDS = 1.0
"""Time for which the result of a probe of a port counts."""
FLOWER, HTTP = "flower", "http"
CELERY = (sys.executable, "-m", "celery", "-A", "beds")


class Pool(ABC):
    """A process that is restarted whenever it ends.

    Args:
        name: its queues, as `-Q` takes them, or `http`, or `flower`.
        settings: of the node.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.restarts = 0
        self.refused = False
        """True if the last process exited with EX_CONFIG: it cannot work with this configuration."""
        self.worker_name = ""
        """Its name in Celery. It is new at each start, since the control queue of the old name may still exist."""
        self.process: subprocess.Popen[bytes] | None = None
        self._settings = settings
        self._ready_file = ready_file(settings, name)
        self._delay = FIRST_DELAY
        self._since = 0.0
        self._next_start = 0.0

    @property
    @abstractmethod
    def slots(self) -> int:
        """The number of events that it executes at once, from beds.toml."""

    @abstractmethod
    def _serves(self) -> bool:
        """True if the running process is ready to work."""

    @abstractmethod
    def _command(self) -> Sequence[str]: ...

    def _env(self) -> Mapping[str, str]:
        """Environment variables in addition to the node's own."""
        return {}

    @property
    def state(self) -> str:
        """`ready`, `starting`, `waiting` for its next start, or `refused`."""
        if self.process is None:
            return "refused" if self.refused else "waiting"
        return "ready" if self.is_ready else "starting"

    @property
    def is_ready(self) -> bool:
        if self.process is None:
            return False
        return self._serves()

    def is_due(self) -> bool:
        return self.process is None and time.monotonic() >= self._next_start

    def start(self) -> None:
        """Start the process now."""
        self.refused = False
        self._ready_file.unlink(missing_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        env = {**inherited, CONFIG_VARIABLE: str(self._settings.file), READY_FILE: str(self._ready_file), **self._env()}
        command = [sys.executable, "-m", "beds.node.child", str(os.getpid()), *self._command()]
        # In a session of its own: Ctrl-C at the terminal reaches only the supervisor, which then drains all pools.
        self.process = subprocess.Popen(command, cwd=self._settings.root, env=env, start_new_session=True)
        self._since = time.monotonic()

    def ended(self) -> int | None:
        """The exit code if the process ended since the last call, else None. Schedules the next start."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        self._ready_file.unlink(missing_ok=True)
        self.restarts += 1
        if time.monotonic() - self._since >= LASTING_SECONDS:
            self._delay = FIRST_DELAY
        self._next_start = time.monotonic() + self._delay
        self._delay = min(self._delay * 2, LONGEST_DELAY)
        return code

    def refuse(self) -> None:
        """Mark the pool as refused: its process cannot work with this configuration."""
        self.refused = True
        self._next_start = time.monotonic() + REFUSED_SECONDS

    @property
    def next_start_in(self) -> float:
        """Seconds until the next start."""
        return max(0.0, self._next_start - time.monotonic())

    def to_wire(self) -> dict[str, Any]:
        """The pool's entry in the state file."""
        return {
            "pool": self.name,
            "worker": self.worker_name,
            "state": self.state,
            "pid": self.process.pid if self.process else None,
            "slots": self.slots,
            "restarts": self.restarts,
        }


class WorkerPool(Pool):
    """A Celery worker with its slots. The worker creates its ready file when it consumes."""

    @property
    def slots(self) -> int:
        return sum(broker.instances for broker in brokers_of(self.name.split(","), self._settings))

    def _serves(self) -> bool:
        return self._ready_file.exists()

    def _command(self) -> Sequence[str]:
        settings = self._settings
        self.worker_name = unique_name(settings.node.name, self.name.split(","))
        return [*CELERY, "worker", "-Q", self.name, "-n", self.worker_name, "-l", settings.logging.level]


class PortPool(Pool):
    """A process that executes no events, and is ready as soon as its port is open."""

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__(name, settings)
        self._answered = False
        self._ask_again = 0.0

    @property
    @abstractmethod
    def address(self) -> tuple[str, int]:
        """Where it listens."""

    @property
    def slots(self) -> int:
        return 0

    def start(self) -> None:
        self._answered, self._ask_again = False, 0.0
        super().start()

    def _serves(self) -> bool:
        """True if its port is open. Called several times a second, so a probe's result counts for `ASK_SECONDS`."""
        if time.monotonic() < self._ask_again:
            return self._answered
        host, port = self.address
        try:
            socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, port), timeout=0.5).close()
            self._answered = True
        except OSError:
            self._answered = False
        self._ask_again = time.monotonic() + ASK_SECONDS
        return self._answered


class HttpPool(PortPool):
    """The app server: HTTP and WebSocket for clients outside."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(HTTP, settings)

    @property
    def address(self) -> tuple[str, int]:
        return host_and_port(self._settings.http.listen)

    def _command(self) -> Sequence[str]:
        return [sys.executable, "-m", "beds.http"]


class FlowerPool(PortPool):
    """Flower, the monitor."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(FLOWER, settings)

    @property
    def address(self) -> tuple[str, int]:
        return self._settings.flower.address, self._settings.flower.port

    def _command(self) -> Sequence[str]:
        flower = self._settings.flower
        return [*CELERY, FLOWER, f"--address={flower.address}", f"--port={flower.port}"]

    def _env(self) -> Mapping[str, str]:
        """Its secrets are in the environment, since other users can read a command line."""
        return self._settings.flower.environment


def pools_of(settings: Settings) -> list[Pool]:
    """The pools that this node keeps running."""
    pools: list[Pool] = [WorkerPool(",".join(queues), settings) for queues in local_pools(settings.services)]
    if settings.services.app_server.is_local:
        pools.append(HttpPool(settings))
    if settings.services.flower.is_local and settings.flower.basic_auth.get_secret_value():
        pools.append(FlowerPool(settings))  # only with a password: else any web page could shut a pool down through it
    return pools


def ready_file(settings: Settings, name: str) -> Path:
    """The file that exists while the worker of these queues consumes."""
    return settings.root / ".beds" / "run" / f"{settings.node.name}.{name}.ready"


def slots_of(pid: int) -> list[int]:
    """The pids of a worker's slots."""
    try:
        return sorted(child.pid for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return []

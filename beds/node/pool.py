"""One process that a node keeps running: a Celery worker with its slots, or Flower."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from beds.broker.process import READY_FILE, unique_name
from beds.config import Settings
from beds.config.settings import CONFIG_VARIABLE
from beds.node.systemd import VARIABLES
from beds.transport.topology import brokers_of, local_pools

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds before a process that ended is started again; doubled while it does not last."""
LASTING_SECONDS = 60.0
"""One that ran this long has lasted."""
REFUSED_SECONDS = 30.0
"""Before one that refused to start is asked again: somebody may have mended what was wrong."""
ASK_SECONDS = 1.0
"""How long Flower's last answer counts."""
FLOWER = "flower"
CELERY = (sys.executable, "-m", "celery", "-A", "beds")


class Pool:
    """A process, started again whenever it ends.

    Args:
        name: its queues, as `-Q` takes them, or `flower`.
        settings: of the node.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.restarts = 0
        self.refused = False
        """Whether it said at its last end that it cannot work."""
        self.worker_name = ""
        """As Celery knows it; a new one at each start, since the old one's control queue may not be gone yet."""
        self.process: subprocess.Popen[bytes] | None = None
        self._settings = settings
        self._ready_file = ready_file(settings, name)
        self._delay = FIRST_DELAY
        self._since = 0.0
        self._next_start = 0.0
        self._answered = False
        self._ask_again = 0.0

    @property
    def slots(self) -> int:
        """How many events it carries out at once, by beds.toml."""
        if self.name == FLOWER:
            return 0
        return sum(broker.instances for broker in brokers_of(self.name.split(","), self._settings))

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
        return self._flower_answers() if self.name == FLOWER else self._ready_file.exists()

    def _flower_answers(self) -> bool:
        """Whether Flower's port is open; asked now and then, though this is looked at several times a second."""
        if time.monotonic() < self._ask_again:
            return self._answered
        address = self._settings.flower.address
        host = "127.0.0.1" if address == "0.0.0.0" else address
        try:
            socket.create_connection((host, self._settings.flower.port), timeout=0.5).close()
            self._answered = True
        except OSError:
            self._answered = False
        self._ask_again = time.monotonic() + ASK_SECONDS
        return self._answered

    def is_due(self) -> bool:
        return self.process is None and time.monotonic() >= self._next_start

    def start(self) -> None:
        """Start it now."""
        self.refused = self._answered = False
        self._ask_again = 0.0
        self._ready_file.unlink(missing_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        env = {**inherited, CONFIG_VARIABLE: str(self._settings.file), READY_FILE: str(self._ready_file), **self._env()}
        command = [sys.executable, "-m", "beds.node.child", str(os.getpid()), *self._command()]
        # A session of its own: Ctrl-C at the terminal reaches the supervisor alone, which drains in order.
        self.process = subprocess.Popen(command, cwd=self._settings.root, env=env, start_new_session=True)
        self._since = time.monotonic()

    def ended(self) -> int | None:
        """Its exit code when it has ended since the last look; it is then due again after a while."""
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
        """Note that it cannot work as things are."""
        self.refused = True
        self._next_start = time.monotonic() + REFUSED_SECONDS

    @property
    def next_start_in(self) -> float:
        """Seconds."""
        return max(0.0, self._next_start - time.monotonic())

    def to_wire(self) -> dict[str, Any]:
        """For the state file."""
        return {
            "pool": self.name,
            "worker": self.worker_name,
            "state": self.state,
            "pid": self.process.pid if self.process else None,
            "slots": self.slots,
            "restarts": self.restarts,
        }

    def _command(self) -> Sequence[str]:
        settings = self._settings
        if self.name == FLOWER:
            return [*CELERY, FLOWER, f"--address={settings.flower.address}", f"--port={settings.flower.port}"]
        self.worker_name = unique_name(settings.node.name, self.name.split(","))
        return [*CELERY, "worker", "-Q", self.name, "-n", self.worker_name, "-l", settings.logging.level]

    def _env(self) -> Mapping[str, str]:
        """Flower's secrets go through its environment, which no other user can see, as they can a command line."""
        if self.name != FLOWER:
            return {}
        flower = self._settings.flower
        secret = {"FLOWER_BASIC_AUTH": flower.basic_auth, "FLOWER_BROKER_API": flower.broker_api}
        found = {name: value.get_secret_value() for name, value in secret.items() if value.get_secret_value()}
        # Without a password Flower's own pages would find its API closed; it listens on loopback only, then.
        return found if "FLOWER_BASIC_AUTH" in found else {**found, "FLOWER_UNAUTHENTICATED_API": "1"}


def pools_of(settings: Settings) -> list[Pool]:
    """What this node keeps running."""
    names = [",".join(queues) for queues in local_pools(settings.services)]
    if settings.services.flower.is_local:
        names.append(FLOWER)
    return [Pool(name, settings) for name in names]


def ready_file(settings: Settings, name: str) -> Path:
    """It exists while the worker of these queues consumes."""
    return settings.root / ".beds" / "run" / f"{settings.node.name}.{name}.ready"


def slots_of(pid: int) -> list[int]:
    """The pids of a prefork worker's slots."""
    try:
        return sorted(child.pid for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return []

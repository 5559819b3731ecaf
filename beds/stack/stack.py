"""The three servers together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from beds.errors import StackError
from beds.stack.mariadb import MariaDB
from beds.stack.mongodb import MongoDB
from beds.stack.plan import Plan, load_plan
from beds.stack.process import Daemon
from beds.stack.rabbitmq import RabbitMQ
from beds.stack.server import Server

NEEDED_BYTES = 1_500_000_000
"""Free disk that a new stack and the sample data need, with room to spare."""
NODE = "node"
"""The daemon that runs the workers, when `beds demo` started one."""


@dataclass(frozen=True)
class ServerStatus:
    name: str
    pid: int | None
    ports: tuple[int, ...]
    ready: bool


class Stack:
    """RabbitMQ, MariaDB and MongoDB under one folder.

    Args:
        folder: usually `.beds` beside beds.toml.
        base: first port, for a new stack.
    """

    def __init__(self, folder: Path, base: int | None = None) -> None:
        self.folder = folder.resolve()
        self.plan: Plan = load_plan(self.folder, base)
        self.rabbitmq = RabbitMQ(self.plan)
        self.mariadb = MariaDB(self.plan)
        self.mongodb = MongoDB(self.plan)
        self.servers: tuple[Server, ...] = (self.rabbitmq, self.mariadb, self.mongodb)
        self.node = Daemon(NODE, self.folder / "run")

    def up(self, tell: Callable[[str], None]) -> None:
        """Start what does not run. `tell` hears a line for each server.

        Raises:
            StackError: names what is in the way; what came up stays up.
        """
        free = shutil.disk_usage(_existing(self.folder)).free
        if free < NEEDED_BYTES:
            raise StackError(
                f"{free / 1e9:.1f} GB are free on {self.folder}'s disk, the stack needs {NEEDED_BYTES / 1e9:.1f} GB",
                hint="free some space, or put the project on another disk",
            )
        with self._alone():
            self.plan.save()
            for server in self.servers:
                started = server.up()
                ports = ", ".join(str(port) for port in server.ports.values())
                tell(f"{server.name:9} {'started' if started else 'was running'} on {ports}")

    def down(self, *, wipe: bool = False) -> list[str]:
        """Stop everything, workers first; with `wipe`, delete all data as well. Returns what was stopped."""
        if not self.folder.is_dir():
            return []
        with self._alone():
            stopped = [NODE] if self.node.stop() else []
            stopped += [server.name for server in self.servers if server.down()]
        if wipe:
            shutil.rmtree(self.folder)
        return stopped

    def status(self) -> list[ServerStatus]:
        found = []
        for server in self.servers:
            process = server.daemon.process()
            ready = process is not None and server.is_ready()
            found.append(
                ServerStatus(server.name, process.pid if process else None, tuple(server.ports.values()), ready)
            )
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                raise StackError("another `beds stack` is at work here", hint="wait until it is done") from None
            yield


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())

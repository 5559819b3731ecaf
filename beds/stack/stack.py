"""The three servers together."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

import psutil

from beds.errors import StackError
from beds.node.daemon import STOP_SECONDS, lock_holder, node_daemons
from beds.stack.mariadb import MariaDB
from beds.stack.mongodb import MongoDB
from beds.stack.plan import Plan, lacks_users, load_plan
from beds.stack.rabbitmq import RabbitMQ
from beds.stack.server import Server

NEEDED_BYTES = 1_500_000_000
"""Free disk space for a new stack and the sample data, with a margin."""
SERVERS: tuple[type[Server], ...] = (RabbitMQ, MariaDB, MongoDB)


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
        self.servers: tuple[Server, ...] = tuple(kind(self.plan) for kind in SERVERS)

    def server(self, name: str) -> Server:
        """The server of that name."""
        return next(server for server in self.servers if server.name == name)

    @property
    def rabbitmq(self) -> RabbitMQ:
        return next(server for server in self.servers if isinstance(server, RabbitMQ))

    def up(self, report: Callable[[str], None]) -> None:
        """Start the servers that do not run. `report` is called with a line for each server.

        Raises:
            StackError: names the obstacle. Servers that were started keep running.
        """
        if any(character.isspace() for character in str(self.folder)):
            raise StackError(
                f"the path {self.folder} has a space, and mariadb-install-db would take it for two",
                hint="put the project into a folder without one",
            )
        free = shutil.disk_usage(_existing(self.folder)).free
        if free < NEEDED_BYTES:
            raise StackError(
                f"{free / 1e9:.1f} GB are free on {self.folder}'s disk, the stack needs {NEEDED_BYTES / 1e9:.1f} GB",
                hint="free some space, or put the project on another disk",
            )
        with _alone(self.folder):
            for server in self.servers:
                server.clear_the_way()
            is_new, is_older = not (self.folder / "stack.json").exists(), lacks_users(self.folder)
            self.plan.save()
            for server in self.servers:
                started = server.up()
                ports = ", ".join(str(port) for port in server.ports.values())
                report(f"{server.name:9} {'started' if started else 'was running'} on {ports}")
            if is_older and not is_new:
                self.rabbitmq.define_users()
            if is_new:
                report(f"flower    user beds, password {self.plan.passwords['flower']} (kept in {self.plan.env_file})")

    @staticmethod
    def down(folder: Path, *, wipe: bool = False) -> list[str]:
        """Stop everything, workers first; with `wipe`, delete all data as well. Returns the names of what it stopped.

        It does not read the plan, since pid files identify the running processes.
        """
        folder = folder.resolve()
        if not folder.is_dir():
            return []
        nowhere = Plan(folder)
        with _alone(folder):
            nodes = [daemon.stop() for daemon in node_daemons(folder)]
            stopped = ["workers"] if _stop_terminals(folder / "run") or any(nodes) else []
            stopped += [server.name for kind in SERVERS if (server := kind(nowhere)).down()]
        if wipe:
            shutil.rmtree(folder)
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


def _stop_terminals(folder: Path) -> bool:
    """Drain every `beds node run` in a terminal before its servers stop. False if there is none."""
    pids = [pid for file in folder.glob("*.lock") if (pid := lock_holder(file))]
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.terminate()
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(STOP_SECONDS)
    return bool(pids)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the stack's lock, so that one `up` or `down` runs at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise StackError("another `beds stack` is at work here", hint="wait until it is done") from None
        yield


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())

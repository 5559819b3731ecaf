"""The three servers together."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

import psutil

from beds.errors import StackError
from beds.node.daemon import STOP_SECONDS, lock_holder, node_daemons
from beds.stack.mariadb import MariaDB
from beds.stack.members import MariaDBReplica, MongoDBMember, RabbitMQMember, assign_roles, promote
from beds.stack.mongodb import MongoDB
from beds.stack.plan import MEMBERS, Plan, lacks_users, load_plan
from beds.stack.rabbitmq import RabbitMQ
from beds.stack.server import Server

NEEDED_BYTES = 1_500_000_000
"""Free disk space for a new stack and the sample data, with a margin."""


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
        cluster: whether each server gets further members. A stack that has them keeps them.
    """

    def __init__(self, folder: Path, base: int | None = None, *, cluster: bool = False) -> None:
        self.folder = folder.resolve()
        found = load_plan(self.folder, base)
        self.plan: Plan = replace(found, is_cluster=found.is_cluster or cluster)
        self.rabbitmq, self.mariadb, self.mongodb = RabbitMQ(self.plan), MariaDB(self.plan), MongoDB(self.plan)
        self.members: tuple[Server, ...] = tuple(self._members()) if self.plan.is_cluster else ()
        self.servers: tuple[Server, ...] = (self.rabbitmq, self.mariadb, self.mongodb, *self.members)

    def _members(self) -> Iterator[Server]:
        for number in range(2, MEMBERS + 1):
            plan = self.plan.member(number)
            yield RabbitMQMember(plan, self.rabbitmq)
            yield MongoDBMember(plan, self.mongodb)
        yield MariaDBReplica(self.plan.member(2), self.mariadb)

    @property
    def mariadbs(self) -> list[MariaDB]:
        """The primary of MariaDB and its replica, in no order."""
        return [server for server in self.servers if isinstance(server, MariaDB)]

    def server(self, name: str, number: int = 1) -> Server:
        """The server of that name, or a further member of its cluster."""
        return next(each for each in self.servers if each.name == name and each.plan.number == number)

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
        needed = NEEDED_BYTES * (2 if self.members else 1)
        if free < needed:
            raise StackError(
                f"{free / 1e9:.1f} GB are free on {self.folder}'s disk, the stack needs {needed / 1e9:.1f} GB",
                hint="free some space, or put the project on another disk",
            )
        with _alone(self.folder):
            for server in self.servers:
                server.clear_the_way()
            is_new, is_older = not (self.folder / "stack.json").exists(), lacks_users(self.folder)
            self.plan.save()
            # The nodes of a RabbitMQ cluster wait for each other, and so does a majority of MongoDB's members.
            self.rabbitmq.start_epmd()
            members = [member for member in self.members if member.is_made]
            with ThreadPoolExecutor(len(self.servers)) as starting:
                futures = [(each, starting.submit(each.up)) for each in members]
                for server in (self.rabbitmq, self.mariadb, self.mongodb):
                    _report(report, server, server.up())
                for server, future in futures:
                    _report(report, server, future.result())
            for server in self.members:
                if server not in members:
                    _report(report, server, server.up())
            if self.members:
                report(f"{assign_roles(self.mariadbs).label:10} takes the writes of MariaDB")
            if len(members) < len(self.members):
                self.rabbitmq.queues_tool("rebalance", "quorum")
                report(f"{'rabbitmq':10} has spread the leaders of its queues")
            if is_older and not is_new:
                self.rabbitmq.define_users()
            if is_new:
                report(f"flower    user beds, password {self.plan.passwords['flower']} (kept in {self.plan.env_file})")

    def sql_shell(self, role: str) -> tuple[list[str], dict[str, str]]:
        """The command and environment of MariaDB's shell, on the server that takes writes.

        Args:
            role: `dba`, `worker` or `root`.
        """
        server = next((each for each in self.mariadbs if each.is_noted_primary), self.mariadb)
        return server.shell(role)

    def mongo_shell(self, role: str) -> tuple[list[str], dict[str, str]]:
        """The same for mongosh."""
        return self.mongodb.shell(role)

    def promote(self) -> MariaDB:
        """Make the replica of MariaDB the primary. Returns the new primary. Raises StackError."""
        with _alone(self.folder):
            return promote(self.mariadbs)

    @staticmethod
    def down(folder: Path, *, wipe: bool = False, report: Callable[[str], None] = lambda _: None) -> list[str]:
        """Stop everything, workers first; with `wipe`, delete all data as well. Returns the names of what it stopped.

        `report` is called with each of them, when it has stopped.

        It does not read the plan, since pid files identify the running processes.
        """
        folder = folder.resolve()
        if not folder.is_dir():
            return []
        with _alone(folder):
            nodes = [daemon.stop() for daemon in node_daemons(folder)]
            stopped = ["workers"] if _stop_terminals(folder / "run") or any(nodes) else []
            for each in stopped:
                report(each)
            servers = list(_all_servers(Plan(folder, is_cluster=True)))
            with ThreadPoolExecutor(len(servers)) as stopping:  # a last node of RabbitMQ would wait for a majority
                futures = {stopping.submit(each.down): each.label for each in servers}
                for future in as_completed(futures):
                    if future.exception() is None and future.result():
                        stopped.append(futures[future])
                        report(futures[future])
            for future in futures:
                future.result()  # the first error
            RabbitMQ(Plan(folder)).epmd.stop()  # all nodes of a cluster use it
        if wipe:
            shutil.rmtree(folder)
        return stopped

    def status(self) -> list[ServerStatus]:
        found = []
        for server in self.servers:
            process = server.daemon.process()
            ready = process is not None and server.is_ready()
            found.append(
                ServerStatus(server.label, process.pid if process else None, tuple(server.ports.values()), ready)
            )
        return found


def _report(report: Callable[[str], None], server: Server, started: bool) -> None:
    ports = ", ".join(str(port) for port in server.ports.values())
    report(f"{server.label:10} {'started' if started else 'was running'} on {ports}")


def _all_servers(plan: Plan) -> Iterator[Server]:
    """Every server that a stack may have, further members first."""
    first = RabbitMQ(plan)
    for number in range(MEMBERS, 1, -1):
        member = plan.member(number)
        yield from (RabbitMQMember(member, first), MariaDB(member), MongoDB(member))
    yield from (first, MariaDB(plan), MongoDB(plan))


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

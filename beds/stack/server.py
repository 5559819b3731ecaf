"""The common part of the three servers: a data directory, ports, a background process."""

from __future__ import annotations

import contextlib
import shutil
import sys
from abc import ABC, abstractmethod
from pathlib import Path

import psutil

from beds.errors import StackError
from beds.node.daemon import Daemon, port_is_free
from beds.stack.plan import Plan, free_base

START_SECONDS = 90.0


class Server(ABC):
    """One server of the stack."""

    name: str
    package: str
    more: tuple[str, ...] = ()
    """Further arguments, or lines of the configuration file; for tests."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = plan.folder / self.name
        self.daemon = Daemon(self.name, plan.folder / "run")

    @property
    def label(self) -> str:
        """Its name, with its number if it is a further member of a cluster."""
        return self.name if self.plan.number == 1 else f"{self.name}-{self.plan.number}"

    @property
    def is_made(self) -> bool:
        """True if its data directory is complete."""
        return self._made.exists()

    @property
    @abstractmethod
    def ports(self) -> dict[str, int]: ...

    @property
    def _made(self) -> Path:
        """The marker file, written last when the data directory is complete."""
        return self.folder / ".made"

    def up(self) -> bool:
        """Start the server; create its data directory first if there is none. False if the server ran already.

        Raises:
            StackError: the program is missing, a port is taken, or it did not come up.
        """
        if self.daemon.process():
            self.daemon.wait_until(self.is_ready, START_SECONDS)
            return False
        self.clear_the_way()
        if not self._made.exists():
            # An interrupted first start left these files, so they are incomplete.
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self.make()
            self._start()
            self.provision()
            self._made.touch()
        else:
            self._start()
        return True

    def clear_the_way(self) -> None:
        """Stop the remains of a killed server, and check that the ports are free. Does nothing if the server runs.

        Raises:
            StackError: a port is taken.
        """
        if self.daemon.process():
            return
        self.daemon.stop()
        for what, port in self.ports.items():
            if not port_is_free(port):
                raise StackError(
                    f"port {port} ({what}) is taken by {_owner_of(port)}",
                    detail={"port": port},
                    hint="this stack's data names its ports: stop that program, or start anew with `beds stack down "
                    f"--wipe` and `beds stack up --port-base {free_base()}`"
                    if self._made.exists()
                    else f"give this stack other ports: `{sys.argv[0]} stack up --port-base {free_base()}` (or `up`, "
                    "with the same option), then go on",
                )

    def _start(self) -> None:
        self.start()
        self.daemon.wait_until(self.is_ready, START_SECONDS)

    def down(self) -> bool:
        return self.daemon.stop()

    @abstractmethod
    def make(self) -> None:
        """Create the data directory."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def is_ready(self) -> bool: ...

    @abstractmethod
    def provision(self) -> None:
        """Create users and databases in the new, running server."""

    def program(self, *candidates: str | None) -> str:
        for candidate in candidates:
            found = candidate and (
                shutil.which(candidate) or shutil.which(Path(candidate).name, path="/usr/sbin:/sbin")
            )
            if found:
                return found
        raise StackError(
            f"{self.name} is not installed",
            hint=f"install {self.package}, which `make setup` does in a clone of BEDS, or use docker/compose.yaml",
        )


def _owner_of(port: int) -> str:
    """The process that listens on a port, if this user may see it."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and getattr(connection.laddr, "port", 0) == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another program"

"""Background processes: started detached, identified by pid and start time, stopped with a deadline."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from beds.errors import StackError

STOP_SECONDS = 30.0
LOG_TAIL_LINES = 12


def lock_holder(file: Path) -> int | None:
    """The pid in a lock file that a process holds (0 if it has none); None if no process holds it."""
    try:
        with file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = file.read_text().strip()
        return int(text) if text.isdigit() else 0
    except OSError:
        return None
    return None


@dataclass(frozen=True)
class Daemon:
    """A process that outlives the command that started it.

    Args:
        name: for messages.
        folder: where its pid file and log lie.
        patience: seconds it gets to end before it is killed.
    """

    name: str
    folder: Path
    patience: float = STOP_SECONDS

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    def process(self) -> psutil.Process | None:
        """The running process, or None. A pid that now belongs to something else does not count."""
        noted = self._noted()
        if noted is None:
            return None
        try:
            process = psutil.Process(noted[0])
            same = abs(process.create_time() - noted[1]) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None

    def family(self) -> list[psutil.Process]:
        """The process, its descendants, and the rest of its session if it was killed alone.

        RabbitMQ's start script waits for its Erlang VM; a SIGKILL of the script leaves the VM serving.
        """
        noted, leader = self._noted(), self.process()
        found = {p.pid: p for p in ([leader, *leader.children(recursive=True)] if leader else [])}
        if noted is None:
            return []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                ours = os.getsid(process.pid) == noted[0] and process.create_time() >= noted[1] - 1.0
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = process
        return list(found.values())

    def _noted(self) -> tuple[int, float] | None:
        """Pid and start time from the pid file; None if it cannot be read."""
        try:
            noted = json.loads(self._pid_file.read_text())
            pid, started = int(noted["pid"]), float(noted["started"])
            return (pid, started) if 0 < pid < 2**31 else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def start(
        self, command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Start it in a session of its own, with its output in the log.

        Raises:
            StackError: the program is missing or cannot be run.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self.log.open("ab") as log:
                child = subprocess.Popen(
                    [str(part) for part in command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {})},
                    cwd=cwd,
                    start_new_session=True,
                )
            started = psutil.Process(child.pid).create_time()
            child.returncode = 0  # it outlives this process, so Popen must not warn of a running child
        except (OSError, psutil.NoSuchProcess) as error:
            raise StackError(f"{self.name} cannot be started: {error}", hint=f"see {self.log}") from None
        self._pid_file.write_text(json.dumps({"pid": child.pid, "started": started}))

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready()`, as long as the process runs.

        Raises:
            StackError: it ended or took too long; shows the end of its log.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process() is None:
                raise StackError(
                    f"{self.name} ended while it was starting:\n{self.tail()}", hint=f"the whole log: {self.log}"
                )
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.name} is not ready after {seconds:.0f} s:\n{self.tail()}", hint=f"the whole log: {self.log}"
                )
            time.sleep(0.1)

    def stop(self, how: int = signal.SIGTERM) -> bool:
        """Stop it and all its children; kill what remains after `patience`. False when it did not run."""
        family, leader = self.family(), self.process()
        for process in [leader] if leader else family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        _, alive = psutil.wait_procs(family, timeout=self.patience)
        for survivor in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                survivor.kill()
        psutil.wait_procs(alive, timeout=5)
        self._pid_file.unlink(missing_ok=True)
        return bool(family)

    def tail(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(lines[-LOG_TAIL_LINES:])


def port_is_free(port: int) -> bool:
    """True if no process listens on the loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """True if the loopback port accepts a connection."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


DRAIN_SECONDS = 70.0
"""Time for a node to drain its workers, which takes 60 seconds at most."""


def node_daemon(folder: Path, name: str) -> Daemon:
    """The background process that runs a node's workers, as `beds node start` and `beds demo` start it.

    Args:
        folder: `.beds` beside the node's configuration file.
        name: the node's.
    """
    return Daemon(f"node.{name}", folder / "run", DRAIN_SECONDS)


def node_daemons(folder: Path) -> list[Daemon]:
    """The nodes' background processes that have a pid file, running or not."""
    return [Daemon(file.stem, file.parent, DRAIN_SECONDS) for file in sorted((folder / "run").glob("node.*.pid"))]

"""Checks a node, starts its pools, restarts those that end, and drains all of them on SIGTERM."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil

from beds.config import Settings
from beds.errors import ConfigurationError
from beds.node.checks import startup_checks
from beds.node.name_hold import NameHold
from beds.node.pool import Pool, pools_of
from beds.node.systemd import notify, watchdog_seconds
from beds.transport.log_handler import LogHandler
from beds.wire.routes import local_pools
from beds.worker.process import EX_CONFIG

TURN_SECONDS = 0.2
"""Interval of the supervisor's loop."""
DRAIN_SECONDS = 60.0
"""Time for a worker to finish running events before it is killed."""
HOLD_SECONDS = 10.0
"""Timeout for RabbitMQ's reply whether the node's name is free."""
STATE_SECONDS = 3.0
"""Interval at which an unchanged state file is rewritten. Its age then shows whether the supervisor runs."""
TROUBLE_SECONDS = 2.0
"""Delay before the supervisor tries again after an OSError."""
SETTLED = ("ready", "refused")
"""Pool states that need no further waiting at start-up."""
REFUSES = "refuses to start (its own output says why)"
logger = logging.getLogger("beds.node")

Report = Callable[[str], None]


def run(settings: Settings, report: Report) -> int:
    """Check the node, and run it until SIGTERM or SIGINT. Returns the exit code.

    Args:
        settings: which services are local.
        report: called with a line for each failed check, start and exit.

    Raises:
        ConfigurationError: the node has nothing to run, or runs already.
    """
    if not any(service and service.is_local for _, service in settings.services):
        raise ConfigurationError("this node has no local service", hint="set is_local in [services] of beds.toml")
    with _only_one(settings):
        return Supervisor(settings, report).run()


class Supervisor:
    """The loop that keeps the pools running. One per process, in its main thread."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._report = report
        self._pools = pools_of(settings)
        self._stop: list[int] = []
        self._is_ready_sent = False
        self._written: list[dict[str, object]] | None = None
        self._next_writing = 0.0

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        state_file(self._settings).unlink(missing_ok=True)  # left by a killed supervisor
        if not self._may_start():
            return EX_CONFIG
        handler = LogHandler(self._settings)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        hold = NameHold(self._settings) if local_pools(self._settings.services) else None
        try:
            if hold and self._is_taken(hold):
                return EX_CONFIG
            names = ", ".join(pool.name for pool in self._pools) or "clients only, no worker"
            self._say(logging.INFO, f"node {self._settings.node.name}: {names}")
            return self._supervise()
        finally:
            notify("STOPPING=1")
            self._drain()
            if hold:
                hold.close()
            handler.shipper.close(2.0)
            logger.removeHandler(handler)
            state_file(self._settings).unlink(missing_ok=True)

    def _may_start(self) -> bool:
        """Run the start-up checks. False if one failed in production."""
        failures = []
        for check in startup_checks(self._settings):
            if self._stop:
                return True  # a signal arrived: the loop ends at once
            if check.failed:
                failures.append(check)
                self._report(f"check failed: {check}")
        if not (failures and self._settings.node.is_production):
            return True
        name = self._settings.node.name
        self._report(f"node {name} does not start: in production every check must pass (`beds node check`)")
        return False

    def _is_taken(self, hold: NameHold) -> bool:
        """Take the node's name. True if another node has it and this one must end, as in production."""
        hold.start()
        hold.wait_tried(HOLD_SECONDS)
        if hold.is_taken:
            self._report(f"another node is named {self._settings.node.name}: give each a name of its own in [node]")
        return hold.is_taken and self._settings.node.is_production

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop.append(number)

    def _supervise(self) -> int:
        beat = watchdog_seconds()
        next_beat = 0.0
        while not self._stop:
            try:
                if self._update():
                    return EX_CONFIG
            except OSError as error:  # a full disk, too many processes: it may pass
                self._say(logging.ERROR, f"the node cannot be looked after: {error}; trying again")
                time.sleep(TROUBLE_SECONDS)
            if not self._is_ready_sent and all(pool.state in SETTLED for pool in self._pools):
                self._is_ready_sent = True
                notify("READY=1")
            if beat is not None and time.monotonic() >= next_beat:
                notify("WATCHDOG=1")
                next_beat = time.monotonic() + beat
            if os.getpid() == 1:
                self._reap_orphans()
            time.sleep(TURN_SECONDS)
        return 0

    def _update(self) -> bool:
        """Handle ended pools, start due ones, and write the state file. True if the node must end."""
        for pool in self._pools:
            if (code := pool.ended()) is not None and self._handle_exit(pool, code):
                return True
            if pool.is_due():
                pool.start()
        state = [pool.to_wire() for pool in self._pools]
        if state != self._written or time.monotonic() >= self._next_writing:
            _write_state(self._settings, state)
            self._written = state
            self._next_writing = time.monotonic() + STATE_SECONDS
        return False

    def _handle_exit(self, pool: Pool, code: int) -> bool:
        """Report the exit of a pool's process and its next start. True if the node must end instead."""
        if code == EX_CONFIG:
            if self._settings.node.is_production:
                self._say(logging.CRITICAL, f"pool {pool.name} {REFUSES}; ending the node")
                return True
            pool.refuse()
        how = f"by signal {-code}" if code < 0 else f"with {code}"
        why = REFUSES if code == EX_CONFIG else f"ended {how}"
        self._say(logging.ERROR, f"pool {pool.name} {why}; starting it again in {pool.next_start_in:.1f} s")
        return False

    def _drain(self) -> None:
        """Let all pools finish running events. A second signal kills them at once; RabbitMQ redelivers the events."""
        running = [pool.process for pool in self._pools if pool.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + DRAIN_SECONDS
        asked = len(self._stop)
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline or len(self._stop) > asked:
                for process in running:
                    process.kill()
            time.sleep(TURN_SECONDS / 2)

    def _reap_orphans(self) -> None:
        """Reap orphans, which become children of a container's first process."""
        mine = {pool.process.pid for pool in self._pools if pool.process}
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                if child.pid not in mine and child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)

    def _say(self, level: int, words: str) -> None:
        self._report(words)
        logger.log(level, words)


def state_file(settings: Settings) -> Path:
    """The file with the pools' states, for `beds node status`. It exists while the supervisor runs."""
    return settings.root / ".beds" / "run" / f"{settings.node.name}.json"


def lock_file(settings: Settings) -> Path:
    """The lock file that this node's supervisor holds; it contains the pid."""
    return settings.root / ".beds" / "run" / f"{settings.node.name}.lock"


def already_runs(settings: Settings) -> ConfigurationError:
    """The error for a second supervisor of this node."""
    pid = file.read_text().strip() if (file := lock_file(settings)).exists() else "?"
    return ConfigurationError(
        f"the workers of node {settings.node.name} run already (pid {pid})",
        hint=f"in the background: `beds node restart`; in a terminal: Ctrl-C there, or kill {pid}; "
        "for more slots, raise instances in [brokers]",
    )


def _write_state(settings: Settings, pools: list[dict[str, object]]) -> None:
    file = state_file(settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"node": settings.node.name, "pid": os.getpid(), "pools": pools}))
    new.replace(file)  # atomic: a reader sees the old state or the new one


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold this node's lock.

    Two supervisors would double the node's pools. After a change of templates, replies would come from old and new
    pools by turns.
    """
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

"""Keeps a node's pools running: checked first, started, started again when one dies, drained together on SIGTERM."""

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

from beds.broker.app import EX_CONFIG
from beds.config import Settings
from beds.errors import ConfigurationError
from beds.node.checks import initial_program_load
from beds.node.name_hold import NameHold
from beds.node.pool import Pool, pools_of
from beds.node.systemd import notify, watchdog_seconds
from beds.transport.log_handler import LogHandler
from beds.transport.topology import local_pools

TURN_SECONDS = 0.2
"""How often the supervisor looks around."""
DRAIN_SECONDS = 60.0
"""What a worker gets to finish what runs, before it is killed."""
logger = logging.getLogger("beds.node")

Tell = Callable[[str], None]


def run(settings: Settings, tell: Tell) -> int:
    """Check the node, and run it until SIGTERM or SIGINT. Returns the exit code.

    Args:
        settings: which services are local.
        tell: hears of failed checks, starts and deaths.

    Raises:
        ConfigurationError: the node has nothing to run, or runs already.
    """
    if not any(service and service.is_local for _, service in settings.services):
        raise ConfigurationError("this node has no local service", hint="set is_local in [services] of beds.toml")
    with _only_one(settings):
        failures = [check for check in initial_program_load(settings) if check.failed]
        for check in failures:
            tell(f"check failed: {check}")
        if failures and settings.node.is_production:
            tell(f"node {settings.node.name} does not start: in production every check must pass (`beds node check`)")
            return EX_CONFIG
        return Supervisor(settings, tell).run()


class Supervisor:
    """The loop that keeps the pools running. One per process, in its main thread."""

    def __init__(self, settings: Settings, tell: Tell) -> None:
        self._settings = settings
        self._tell = tell
        self._pools = pools_of(settings)
        self._stop: list[int] = []
        self._told_ready = False
        self._written: list[dict[str, object]] | None = None

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        hold = NameHold(self._settings) if local_pools(self._settings.services) else None
        handler = LogHandler(self._settings)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        if hold:
            hold.start()
        names = ", ".join(pool.name for pool in self._pools) or "clients only, no worker"
        self._say(logging.INFO, f"node {self._settings.node.name}: {names}")
        try:
            code = self._supervise()
            notify("STOPPING=1")
            self._drain()
        finally:
            if hold:
                hold.close()
            handler.shipper.close(2.0)
            logger.removeHandler(handler)
            state_file(self._settings).unlink(missing_ok=True)
        return code

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop.append(number)

    def _supervise(self) -> int:
        beat = watchdog_seconds()
        next_beat = 0.0
        while not self._stop:
            if self._look():
                return EX_CONFIG
            if not self._told_ready and all(pool.is_ready for pool in self._pools):
                self._told_ready = True
                notify("READY=1")
            if beat is not None and time.monotonic() >= next_beat:
                notify("WATCHDOG=1")
                next_beat = time.monotonic() + beat
            if os.getpid() == 1:
                self._reap_orphans()
            time.sleep(TURN_SECONDS)
        return 0

    def _look(self) -> bool:
        """Start what is due, and see who has ended. True when the node must end."""
        for pool in self._pools:
            if (code := pool.ended()) is not None and self._mourn(pool, code):
                return True
            if pool.is_due():
                pool.start()
        state = [pool.to_wire() for pool in self._pools]
        if state != self._written:
            _write_state(self._settings, state)
            self._written = state
        return False

    def _mourn(self, pool: Pool, code: int) -> bool:
        """Say that a pool's process ended, and when it is started again. True when the node must end instead."""
        if code == EX_CONFIG:
            if self._settings.node.is_production:
                self._say(logging.CRITICAL, f"pool {pool.name} refuses to start (see above); ending the node")
                return True
            pool.refuse()
        how = f"by signal {-code}" if code < 0 else f"with {code}"
        why = "refuses to start (see above)" if code == EX_CONFIG else f"ended {how}"
        self._say(logging.ERROR, f"pool {pool.name} {why}; starting it again in {pool.next_start_in:.1f} s")
        return False

    def _drain(self) -> None:
        """Let all pools finish what runs. A second signal kills them at once; the events come back."""
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
        """As the first process of a container: whatever lost its parent ends up here."""
        mine = {pool.process.pid for pool in self._pools if pool.process}
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                if child.pid not in mine and child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)

    def _say(self, level: int, words: str) -> None:
        self._tell(words)
        logger.log(level, words)


def state_file(settings: Settings) -> Path:
    """What runs here, for `beds node status`; there while the supervisor is."""
    return settings.root / ".beds" / "run" / f"{settings.node.name}.json"


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


def _write_state(settings: Settings, pools: list[dict[str, object]]) -> None:
    file = state_file(settings)
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"node": settings.node.name, "pid": os.getpid(), "pools": pools}))
    new.replace(file)  # whoever reads sees the old state or the new one


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

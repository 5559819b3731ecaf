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

from beds.broker.process import EX_CONFIG
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
HOLD_SECONDS = 10.0
"""What RabbitMQ gets to say whether the node's name is free."""
STATE_SECONDS = 3.0
"""How often the state file is written when nothing changes, so that who has stopped is told from who is well."""
TROUBLE_SECONDS = 2.0
"""Between two attempts of a supervisor that the machine refuses something."""
SETTLED = ("ready", "refused")
"""States of a pool in which there is nothing to wait for."""
REFUSES = "refuses to start (its own output says why)"
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
        self._next_writing = 0.0

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        state_file(self._settings).unlink(missing_ok=True)  # of one that was killed
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
        """Look at everything first. In production all of it must be well."""
        failures = []
        for check in initial_program_load(self._settings):
            if self._stop:
                return True  # the loop ends before it begins
            if check.failed:
                failures.append(check)
                self._tell(f"check failed: {check}")
        if not (failures and self._settings.node.is_production):
            return True
        name = self._settings.node.name
        self._tell(f"node {name} does not start: in production every check must pass (`beds node check`)")
        return False

    def _is_taken(self, hold: NameHold) -> bool:
        """Take the node's name. True when another node has it, and this one must end for that."""
        hold.start()
        hold.wait_tried(HOLD_SECONDS)
        if hold.is_taken:
            self._tell(f"another node is named {self._settings.node.name}: give each a name of its own in [node]")
        return hold.is_taken and self._settings.node.is_production

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop.append(number)

    def _supervise(self) -> int:
        beat = watchdog_seconds()
        next_beat = 0.0
        while not self._stop:
            try:
                if self._look():
                    return EX_CONFIG
            except OSError as error:  # a full disk, too many processes: it may pass
                self._say(logging.ERROR, f"the node cannot be looked after: {error}; trying again")
                time.sleep(TROUBLE_SECONDS)
            if not self._told_ready and all(pool.state in SETTLED for pool in self._pools):
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
        if state != self._written or time.monotonic() >= self._next_writing:
            _write_state(self._settings, state)
            self._written = state
            self._next_writing = time.monotonic() + STATE_SECONDS
        return False

    def _mourn(self, pool: Pool, code: int) -> bool:
        """Say that a pool's process ended, and when it is started again. True when the node must end instead."""
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
    file.parent.mkdir(parents=True, exist_ok=True)
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

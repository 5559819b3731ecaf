"""The parent of a pool of slots, as a Celery pool: it forks, replaces and limits them. No event passes through it.

Celery's extension point: https://docs.celeryq.dev/en/stable/userguide/concurrency/index.html#custom
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from typing import Any

import kombu
from celery.concurrency.base import BasePool
from celery.platforms import set_pdeathsig
from celery.worker import state as worker_state

from beds.config import Settings
from beds.wire.routes import JOB_QUEUES, QUEUE_ROUTES, ROUTES
from beds.worker.slots.board import Board, Page, SlotState, View
from beds.worker.slots.slot import Slot, SlotSettings

logger = logging.getLogger("celery.beds.slots")

MOST_SLOTS = 512
JOB_NICENESS = 10
"""Added to the niceness of slots that only work on jobs, so that other slots of the machine go first."""
WATCH_SECONDS = 0.25
"""Interval at which the parent looks at the hard limits."""
READY_SECONDS = 15.0
"""How long the start of a pool waits until all of its slots consume."""
START_SECONDS = 10.0
"""How long a slot may take from the fork to its first sign of life: a lock that another thread of the parent held at
the fork is never released in the child."""
MARGIN_SECONDS = 5.0
"""Time that a slot has beyond its hard limit to give a sign of life, and to end."""
LASTING_SECONDS = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Pauses before a slot is replaced that died within `LASTING_SECONDS`; they double."""
_FORK = multiprocessing.get_context("fork")


class DeclaredOnly(kombu.Consumer):
    """The parent's consumer: Celery declares and lists its queues, and the slots consume them."""

    def consume(self, no_ack: bool | None = None) -> None:
        """Do nothing."""


@dataclass
class _Place:
    """One slot's place in the pool, which outlives its process."""

    number: int
    page: Page
    process: BaseProcess | None = None
    not_before: float = 0.0
    pause: float = FIRST_PAUSE
    since: float = 0.0
    is_killed: bool = False
    leaves: bool = False
    """Whether the pool shrinks by this slot."""


class SlotPool(BasePool):
    """A pool whose processes consume for themselves.

    Args:
        limit: the number of slots.
        options: Celery's; `timeout` and `soft_timeout` are the limits in seconds, `initargs` the app and the worker's
            name.
    """

    def __init__(self, limit: int, **options: Any) -> None:
        super().__init__(limit, **options)
        app, hostname = options["initargs"]
        self._hard_limit = float(options["timeout"] or math.inf)
        self._settings = SlotSettings(
            hostname,
            app.prefetch,
            {task: position for position, task in enumerate(ROUTES)},
            float(options["soft_timeout"] or math.inf),
            options["maxtasksperchild"],
            options["max_memory_per_child"],
        )
        self._board = Board(max(limit, MOST_SLOTS))
        self._groups = _groups(app.prefetch, app.settings, limit)
        self._places = [self._place(number) for number in range(limit)]
        self._lock = threading.RLock()
        self._stopping = self._is_over = False
        self._watcher: threading.Thread | None = None
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # --- What Celery calls -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the slots, and wait until they consume. Called once the parent has declared all that they need."""
        gc.collect()
        gc.freeze()  # so that a collection in a slot does not copy the pages it shares with its parent
        self._watcher = threading.Thread(target=self._watch, name="beds-slots", daemon=True)
        self._watcher.start()
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and not self._stopping:
            consuming = sum(view.state is SlotState.CONSUMING for _, _, view in self.running())
            if consuming >= len(self._places):
                return
            time.sleep(0.02)

    def on_close(self) -> None:
        """Let the slots finish their events. Celery calls `on_stop` next, which waits for them."""
        self._stop(signal.SIGTERM)

    def on_stop(self) -> None:
        self._stop(signal.SIGTERM)
        self._join(min(self._hard_limit, 86_400.0) + MARGIN_SECONDS)

    def on_terminate(self) -> None:
        self._stop(signal.SIGTERM)
        self._join(float(self.app.conf.worker_soft_shutdown_timeout or 0))

    def on_apply(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("slots consume for themselves")

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        raise NotImplementedError("cancel the event's ticket instead")

    def grow(self, n: int = 1) -> None:
        """Add slots."""
        with self._lock:
            taken = {place.number for place in self._places}
            free = [number for number in range(MOST_SLOTS) if number not in taken]
            self._places += [self._place(number) for number in free[:n]]
        self._look()

    def shrink(self, n: int = 1) -> None:
        """Remove slots, once they have finished their events; one stays."""
        with self._lock:
            staying = [place for place in self._places if not place.leaves]
            for place in staying[max(1, len(staying) - n) :]:
                place.leaves = True
                self._signal(place, signal.SIGTERM)

    @property
    def num_processes(self) -> int:
        return sum(not place.leaves for place in self._places)

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "max-concurrency": self.num_processes,
            "processes": [pid for _, pid, _ in self.running()],
            "max-tasks-per-child": self._settings.max_events or "N/A",
            "timeouts": (self._settings.soft_limit, 0 if math.isinf(self._hard_limit) else self._hard_limit),
            "prefetch-per-slot": dict(self._settings.queues),
        }

    # --- What its control commands read ------------------------------------------------------------------------------

    def running(self) -> Iterator[tuple[int, int, View]]:
        """Number, pid and page of each slot that has a process."""
        for place in list(self._places):
            process = place.process
            if process is not None and process.pid is not None:
                yield place.number, process.pid, place.page.read()

    def totals(self) -> Counter[str]:
        """Events ended since the pool's start, by task."""
        found: Counter[str] = Counter()
        for place in list(self._places):
            counts = place.page.read().counts
            found.update({task: counts[at] for task, at in self._settings.positions.items() if counts[at]})
        return found

    # --- The watcher's thread ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Start, replace and limit the slots, whatever RabbitMQ and the main thread do."""
        while not self._is_over:
            try:
                with self._lock:
                    for place in list(self._places):
                        self._watch_one(place)
                sentinels = [place.process.sentinel for place in self._places if place.process is not None]
                multiprocessing.connection.wait([*sentinels, self._woken], WATCH_SECONDS)
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 64)
            except Exception:  # the pool must go on replacing its slots
                logger.exception("the slots cannot be watched")
                time.sleep(WATCH_SECONDS)

    def _watch_one(self, place: _Place) -> None:
        process = place.process
        if process is not None and process.exitcode is None:
            if self._stopping or place.leaves:
                self._signal(place, signal.SIGTERM)  # again: one that came right after the fork had no effect
            self._limit(place, process)
            return
        if process is not None:
            place.process = None
            self._bury(place, process)
        if place.leaves:
            self._places.remove(place)
        elif not self._stopping and time.monotonic() >= place.not_before:
            self._fork(place)

    def _bury(self, place: _Place, process: BaseProcess) -> None:
        """Note how a process ended. One that did not last is replaced after a pause."""
        process.join()
        code, view = process.exitcode, place.page.read()
        if code == 0:
            place.pause = FIRST_PAUSE
            return
        how = f"by signal {-code}" if code and code < 0 else f"with exit code {code}"
        if view.active:
            self._board.suspect(view.active.guid)
        what = f" while it executed {view.active.task}[{view.active.guid}]" if view.active else ""
        logger.error("slot %d died %s%s; it is replaced", place.number, how, what)
        if time.monotonic() - place.since > LASTING_SECONDS:
            place.pause = FIRST_PAUSE
        else:
            place.not_before = time.monotonic() + place.pause
            place.pause = min(place.pause * 2, LONGEST_PAUSE)

    def _limit(self, place: _Place, process: BaseProcess) -> None:
        """Kill a slot whose event has passed the hard limit, and one that does not begin or gives no sign of life."""
        if place.is_killed:
            return
        view = place.page.read()
        silent = time.monotonic() - view.alive_at
        running = time.monotonic() - view.active.began if view.active else 0.0
        if running > self._hard_limit and view.active is not None:
            why = f"{view.active.task}[{view.active.guid}] has run for {running:.0f} s, the hard limit"
        elif view.state is SlotState.STARTING and silent > START_SECONDS:
            why = f"it has not begun in {silent:.0f} s"
        elif silent > min(self._hard_limit, 3600.0) + MARGIN_SECONDS:
            why = f"it has given no sign of life for {silent:.0f} s"
        else:
            return
        logger.error("slot %d is killed: %s", place.number, why)
        place.is_killed = True
        process.kill()

    def _fork(self, place: _Place) -> None:
        place.page.reset()
        place.is_killed, place.since = False, time.monotonic()
        process = _FORK.Process(target=_main, args=(self, place, os.getpid()), daemon=True)
        try:
            process.start()
        except OSError as error:
            logger.error("slot %d cannot be started: %s", place.number, error)
            place.not_before = time.monotonic() + LONGEST_PAUSE
        else:
            place.process = process

    # --- The end -----------------------------------------------------------------------------------------------------

    def _stop(self, how: int) -> None:
        if self._stopping:
            return
        self._stopping = True
        with self._lock:
            for place in self._places:
                self._signal(place, how)

    def _join(self, seconds: float) -> None:
        """Wait until all slots have ended, and kill the rest after `seconds`."""
        deadline = time.monotonic() + seconds
        is_hurried = False
        while any(place.process is not None for place in self._places) and time.monotonic() < deadline:
            if worker_state.should_terminate is not None and not is_hurried:  # SIGQUIT
                is_hurried = True
                deadline = min(deadline, time.monotonic() + float(self.app.conf.worker_soft_shutdown_timeout or 0))
            time.sleep(0.02)
        with self._lock:
            for place in self._places:
                self._signal(place, signal.SIGKILL)
        deadline = time.monotonic() + MARGIN_SECONDS
        while any(place.process is not None for place in self._places) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._is_over = True

    @staticmethod
    def _signal(place: _Place, how: int) -> None:
        process = place.process
        if process is not None and process.pid is not None and process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, how)

    def run_slot(self, number: int, page: Page) -> None:
        """In the slot's process: handle events until the end."""
        queues = self._groups[number % len(self._groups)]
        settings = replace(self._settings, queues={queue: self._settings.queues[queue] for queue in queues})
        if set(queues) <= set(JOB_QUEUES):
            os.nice(JOB_NICENESS)
        Slot(self.app, settings, page, self._board.deaths).run()

    def _place(self, number: int) -> _Place:
        return _Place(number, self._board.page(number))

    def _look(self) -> None:
        """Let the watcher look now."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"w")


def _groups(queues: Iterable[str], settings: Settings, slots: int) -> list[tuple[str, ...]]:
    """The queues of each slot of a pool, by its number.

    Each slot consumes the queues of one entry of `[brokers]`, with as many slots as that says, where there are enough.
    A slot that consumed all queues would hold an event of one behind a long event of another, beside idle slots.
    """
    found: dict[str, list[str]] = {}
    for queue in queues:
        found.setdefault(QUEUE_ROUTES[queue].pool, []).append(queue)
    if slots < len(found):
        return [tuple(queues)]
    by_slot = [tuple(group) for name, group in found.items() for _ in range(settings.broker(name).instances)]
    return by_slot if len(by_slot) == slots else [tuple(group) for group in found.values()]


def _main(pool: SlotPool, place: _Place, parent: int) -> None:
    """A slot's process, from the fork to its end."""
    set_pdeathsig("SIGKILL")
    if os.getppid() != parent:
        return  # it ended before
    pool.app.clock.mutex = threading.Lock()  # another thread of the parent may have held it at the fork
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the slot has its own handler
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    try:
        pool.run_slot(place.number, place.page)
    except Exception:
        logger.exception("slot %d ends", place.number)
        raise SystemExit(1) from None

"""How a job makes room: it rests after its chunks, backs off while readers wait, and keeps to its window."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from beds.adapters.bulk import BulkAdapter
from beds.domain.event import Operation, queue_for
from beds.domain.job import Job, JobKind
from beds.errors import BedsError
from beds.templates.registry import TemplateRegistry
from beds.templates.rules import JobRule

LOOK_SECONDS = 5.0
"""Interval at which a process looks how busy the stores are."""
SLOWER = 1.5
"""Reads that take so many times as long as before the start count as pressed."""
PRESSED_RESTS = 4.0
LONGEST_PRESSED_REST = 2.0
"""A chunk under full pressure rests so many times its own work, and so many seconds at most."""


class Throttle:
    """Says how long a slot rests after a chunk.

    Args:
        registry: the templates.
        waiting: called with queues; how many events wait there.
        read_ms: called with a queue; p99 of its events in the last half minute, None if nothing is known.
        adapter: makes the adapter of a template.
    """

    def __init__(
        self,
        registry: TemplateRegistry,
        waiting: Callable[[Iterable[str]], int],
        read_ms: Callable[[str], float | None],
        adapter: Callable[[str], BulkAdapter],
    ) -> None:
        self._registry = registry
        self._waiting, self._read_ms, self._adapter = waiting, read_ms, adapter
        self._looked_at = float("-inf")
        self._pressure = 0.0

    def baseline(self, rule: JobRule) -> float | None:
        """p99 of reads before the job; the slower store's."""
        return max((ms for queue in self._queues(rule) if (ms := self._read_ms(queue)) is not None), default=None)

    def rest(self, job: Job, rule: JobRule, worked: float) -> float:
        """Seconds to rest after a chunk.

        Args:
            job, rule: of the chunk.
            worked: seconds that it took.
        """
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._pressure = self._look(job, rule)
        return worked * rule.run.nice + self._pressure * min(LONGEST_PRESSED_REST, PRESSED_RESTS * worked)

    def opens(self, rule: JobRule, moment: datetime) -> datetime | None:
        """When the rule's window opens; None while it is open, and for a rule without one."""
        if rule.schedule is None or rule.schedule.window is None:
            return None
        first, last = (at(moment, text) for text in rule.schedule.window.split("-"))
        is_open = first <= moment < last if first <= last else moment >= first or moment < last
        if is_open:
            return None
        return first if moment < first else first + timedelta(days=1)

    def _look(self, job: Job, rule: JobRule) -> float:
        """The load of the stores: 0 for idle, 1 for fully busy."""
        queues = self._queues(rule)
        try:
            if self._waiting(queues) > 0:
                return 1.0
            if job.baseline_ms is not None:
                current = max((ms for queue in queues if (ms := self._read_ms(queue)) is not None), default=0.0)
                if current > SLOWER * job.baseline_ms:
                    return 1.0
            return max((self._load_of(name) for name in self._templates(rule)), default=0.0)
        except BedsError:
            return 0.0  # nothing is known, which must not stop the job

    def _load_of(self, name: str) -> float:
        """What the template's `[job_load]` says, between 0 and 1."""
        if self._registry[name].job_load is None:
            return 0.0
        values = [value for row in self._adapter(name).read_once("job_load", {}) for value in row.values()]
        return min(1.0, max(0.0, float(values[0]))) if values and values[0] is not None else 0.0

    def _queues(self, rule: JobRule) -> list[str]:
        stores = dict.fromkeys(self._registry[name].store for name in self._templates(rule))
        return [queue_for(store, Operation.FETCH) for store in stores]

    @staticmethod
    def _templates(rule: JobRule) -> list[str]:
        names = [rule.job.source, *([rule.job.to] if rule.job.to else [])]
        return names if rule.kind is not JobKind.AGGREGATE else names[:1]


def at(moment: datetime, text: str) -> datetime:
    """The time `HH:MM` (UTC) of a moment's day."""
    hours, minutes = text.split(":")
    return moment.astimezone(UTC).replace(hour=int(hours), minute=int(minutes), second=0, microsecond=0)

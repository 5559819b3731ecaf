"""Counters and latency histograms: collected in each process, sent as differences, read as percentiles."""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from beds.domain.lineage import Lineage

BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000)
"""Upper bounds of the histogram's buckets, in milliseconds; one more bucket holds longer times."""

RECORDS_MOVED = "records"
"""The operation under which the records of jobs are counted; its template is the rule."""

Key = tuple[str, str, str, str]
"""Queue, operation, template and outcome."""


class Meter:
    """Counts the events that one process has executed since the last `drain`. Safe over threads and forks.

    Args:
        node, env: for the records' ids.
    """

    def __init__(self, node: str, env: str) -> None:
        self._node = node
        self._env = env
        self._entries: dict[Key, list[Any]] = {}
        self._reset()

    def count(self, key: Key, seconds: float, number: int = 1) -> None:
        """Count one event, or a number of records."""
        if self._pid != os.getpid():
            self._reset()  # the parent sends its own counts
        milliseconds = seconds * 1000
        with self._lock:
            entry = self._entries.setdefault(key, [0, 0.0, [0] * (len(BOUNDS_MS) + 1)])
            entry[0] += number
            entry[1] += milliseconds
            entry[2][bisect.bisect_left(BOUNDS_MS, milliseconds)] += number

    def drain(self) -> list[dict[str, Any]]:
        """Take the counts since the last call, as records of msMetrics; empty when there were no events."""
        if self._pid != os.getpid():
            self._reset()  # the parent sends its own counts
        with self._lock:
            entries, self._entries = self._entries, {}
        at = time.time()
        return [
            {
                "event_id": Lineage.root(self._node, self._env).event_id,
                "at": at,
                "meta": {"queue": queue, "operation": operation, "template": template, "outcome": outcome},
                "count": count,
                "total_ms": round(total, 3),
                "buckets": buckets,
            }
            for (queue, operation, template, outcome), (count, total, buckets) in entries.items()
        ]

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._entries = {}


def percentile(buckets: Sequence[int], percent: float) -> float | None:
    """Milliseconds below which `percent` % of the events lie, interpolated within a bucket; None without events."""
    wanted = sum(buckets) * percent / 100
    if not wanted:
        return None
    below = 0
    for index, count in enumerate(buckets):
        if count and below + count >= wanted:
            low = BOUNDS_MS[index - 1] if index else 0
            high = BOUNDS_MS[index] if index < len(BOUNDS_MS) else BOUNDS_MS[-1] * 2
            return low + (high - low) * (wanted - below) / count
        below += count
    return None

"""Counters and latency histograms, collected in each process and sent as differences."""

from __future__ import annotations

import bisect
import os
import threading
import time
from typing import Any

from beds.domain.histogram import BOUNDS_MS
from beds.domain.lineage import Lineage

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

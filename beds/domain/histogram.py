"""Histograms of latencies: their buckets, and percentiles read from them."""

from __future__ import annotations

from collections.abc import Sequence

BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000)
"""Upper bounds of the histogram's buckets, in milliseconds; one more bucket holds longer times."""

RECORDS_MOVED = "records"
"""The operation under which the records of jobs are counted; its template is the rule."""


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

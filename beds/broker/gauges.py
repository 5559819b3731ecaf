"""The Prometheus endpoint of the admin worker: counters and histograms of all nodes, as its records tell them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import HistogramMetricFamily

from beds.errors import ConfigurationError
from beds.services.metrics import BOUNDS_MS

LABELS = ("queue", "operation", "template", "outcome")
REMEMBERED = 20_000
"""Ids of records, so that one that is delivered twice counts once."""


class Gauges:
    """Adds up what the admin worker writes, from its own start on; Prometheus knows how to read a counter that starts
    anew. All of `beds.metrics` must come to one process for that, so the admin worker's pool is threads or solo."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, ...], tuple[list[int], float]] = {}
        self._seen: dict[str, None] = {}

    def take(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add the records of one message."""
        with self._lock:
            for record in records:
                if record["event_id"] in self._seen:
                    continue
                self._seen[record["event_id"]] = None
                if len(self._seen) > REMEMBERED:
                    del self._seen[next(iter(self._seen))]
                labels = tuple(str(record["meta"].get(name, "")) for name in LABELS)
                buckets, seconds = self._totals.get(labels, ([0] * (len(BOUNDS_MS) + 1), 0.0))
                added = [int(have) + int(more) for have, more in zip(buckets, record["buckets"], strict=True)]
                self._totals[labels] = (added, seconds + float(record["total_ms"]) / 1000)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What Prometheus asks for."""
        family = HistogramMetricFamily(
            "beds_events_seconds", "Events carried out, and how long each took.", labels=LABELS
        )
        with self._lock:
            for labels, (buckets, seconds) in self._totals.items():
                below, pairs = 0, []
                for bound, count in zip([*BOUNDS_MS, None], buckets, strict=True):
                    below += count
                    pairs.append(("+Inf" if bound is None else str(bound / 1000), below))
                family.add_metric(labels, pairs, seconds)
        yield family

    def serve(self, address: str) -> None:
        """Open the endpoint at `host:port`. Raises ConfigurationError: the port is taken."""
        host, _, port = address.rpartition(":")
        REGISTRY.register(self)
        try:
            start_http_server(int(port), host)
        except OSError as error:
            raise ConfigurationError(
                f"[metrics] prometheus = {address!r} cannot be served: {error.strerror}", hint="choose another port"
            ) from None

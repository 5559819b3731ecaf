"""The Prometheus endpoint of the admin worker: counters and histograms of all nodes, summed from metric records."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from beds.domain.histogram import BOUNDS_MS, RECORDS_MOVED
from beds.errors import ConfigurationError

LABELS = ("queue", "operation", "template", "outcome")
CONNECTIONS, REQUEST_SECONDS = 8, 10
"""Concurrent connections, and the timeout of one."""
REMEMBERED = 20_000
"""Number of record ids kept, so that a redelivered record counts once."""


class _ScrapeHandler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a line for each scrape would be noise."""


class _LimitedServer(ThreadingMixIn, WSGIServer):
    """Serves a few connections at once and closes any more, so that they cannot fill the admin worker's memory."""

    daemon_threads = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class PrometheusCollector:
    """Sums the metric records that the admin worker writes, from the worker's start on.

    Prometheus handles a counter that restarts at zero. One process must consume all of `beds.metrics`, so the admin
    worker's pool is threads or solo.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, ...], tuple[list[int], float]] = {}
        self._records: dict[tuple[str, str], int] = {}
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
                meta = record["meta"]
                if meta.get("operation") == RECORDS_MOVED:
                    of = (str(meta.get("queue", "")), str(meta.get("template", "")))
                    self._records[of] = self._records.get(of, 0) + int(record["count"])
                    continue
                labels = tuple(str(record["meta"].get(name, "")) for name in LABELS)
                buckets, seconds = self._totals.get(labels, ([0] * (len(BOUNDS_MS) + 1), 0.0))
                added = [int(have) + int(more) for have, more in zip(buckets, record["buckets"], strict=True)]
                self._totals[labels] = (added, seconds + float(record["total_ms"]) / 1000)

    def collect(self) -> Iterator[HistogramMetricFamily | CounterMetricFamily]:
        """Called by the Prometheus client for each scrape."""
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
        moved = CounterMetricFamily("beds_job_records", "Records that jobs have read.", labels=("queue", "job"))
        with self._lock:
            for of, count in self._records.items():
                moved.add_metric(of, count)
        yield moved

    def serve(self, address: str) -> None:
        """Open the endpoint at `host:port`. Raises ConfigurationError: the port is taken."""
        host, _, port = address.rpartition(":")
        REGISTRY.register(self)
        try:
            server = make_server(host, int(port), make_wsgi_app(), _LimitedServer, _ScrapeHandler)
            threading.Thread(target=server.serve_forever, name="beds-prometheus", daemon=True).start()
        except OSError as error:
            raise ConfigurationError(
                f"[metrics] prometheus = {address!r} cannot be served: {error.strerror}", hint="choose another port"
            ) from None

"""The members of each cluster as Prometheus gauges of the admin worker."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily

from beds.config import Settings
from beds.domain.member import Members
from beds.services.factory import AdapterFactory
from beds.services.members import LOOK_SECONDS, all_members
from beds.templates.registry import TemplateRegistry

EVERY_SECONDS = 15.0
"""Between two looks."""

logger = logging.getLogger("celery.beds.admin")


class MembersCollector:
    """Looks at the members regularly, in a thread of its own, so that a scrape never waits for a server.

    Args:
        settings, registry: the addresses.
    """

    def __init__(self, settings: Settings, registry: TemplateRegistry) -> None:
        self._settings = settings
        self._factory = AdapterFactory(settings, registry, LOOK_SECONDS)
        self._found: list[Members] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="beds-members", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _work(self) -> None:
        while True:
            try:
                self._found = list(all_members(self._settings, self._factory))
            except Exception:  # the gauges would stay as they are for ever
                logger.exception("the members cannot be looked at")
                self._found = []
            if self._stop.wait(EVERY_SECONDS):
                self._factory.close()
                return

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the Prometheus client for each scrape."""
        each = ("server", "member")
        up = GaugeMetricFamily("beds_member_up", "1 if the member answers.", labels=each)
        writes = GaugeMetricFamily("beds_member_takes_writes", "1 if the member is a primary.", labels=each)
        cut_off = GaugeMetricFamily("beds_member_cut_off", "1 if the RabbitMQ node is partitioned.", labels=each)
        leads = GaugeMetricFamily("beds_member_leads", "Quorum queues that the RabbitMQ node leads.", labels=each)
        server_up = GaugeMetricFamily("beds_server_up", "1 if the admin worker reaches the server.", labels=("server",))
        short = GaugeMetricFamily("beds_queues_short", "Quorum queues that lack a member.", labels=("server",))
        lag = GaugeMetricFamily(
            "beds_replica_lag_seconds",
            "Lag of a replica for reads; infinite beyond 3 s.",
            labels=("server",),
        )
        for found in self._found:
            is_up = not found.members or len(found.away) < len(found.members)
            server_up.add_metric((found.server,), is_up and not found.problem)
            for member in found.members:
                of = (found.server, member.address)
                up.add_metric(of, member.is_up)
                if member.leads is None:
                    writes.add_metric(of, member.takes_writes)
                else:
                    leads.add_metric(of, member.leads)
                    cut_off.add_metric(of, member.is_cut_off)
            if any(member.leads is not None for member in found.members):
                short.add_metric((found.server,), len(found.short_queues))
            if found.lag is not None:
                lag.add_metric((found.server,), math.inf if found.lag.seconds is None else found.lag.seconds)
        yield from (server_up, up, writes, cut_off, leads, short, lag)

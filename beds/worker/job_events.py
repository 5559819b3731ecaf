"""Publishes the events of jobs from a worker, with confirms, and the tick of a pool of jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence

from beds.config import Settings
from beds.domain.event import Event
from beds.domain.job import JobKind
from beds.domain.lineage import Lineage
from beds.errors import BrokerUnavailable
from beds.transport.connection import connect_to
from beds.transport.requester import Requester
from beds.transport.topology import depths

logger = logging.getLogger("celery.beds.jobs")

CONFIRM_SECONDS = 15.0
LOOK_SECONDS = 2.0
TICK_SECONDS = 60.0
"""Interval at which each pool of jobs looks for silent lanes and due rules."""


class JobEvents:
    """Publishes over a connection of its own, opened at the first use in each process.

    Args:
        settings: of the node.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.amqp
        self._requester = Requester(settings.amqp, settings.amqp.broker_url)

    def publish(self, events: Sequence[Event]) -> None:
        deadline = time.monotonic() + CONFIRM_SECONDS
        for event in events:
            self._publish(event, deadline)

    def waiting(self, queues: Iterable[str]) -> int:
        settings = self._settings
        with connect_to(settings, settings.broker_url, patience=LOOK_SECONDS) as connection:
            return sum(depth.messages for depth in depths(queues, connection).values() if depth)

    def _publish(self, event: Event, deadline: float) -> None:
        """Publish one event; a connection that was lost is opened again."""
        while True:
            try:
                pending = self._requester.send(event, deadline)
                pending.confirmed.result(max(0.1, deadline - time.monotonic()))
                return
            except TimeoutError:
                raise BrokerUnavailable("RabbitMQ did not confirm the event of a job") from None
            except BrokerUnavailable:
                if time.monotonic() + 0.2 >= deadline:
                    raise
                time.sleep(0.2)


class JobClock:
    """Publishes a tick each minute. A slot of any node handles it.

    Args:
        settings: of the node.
        events: publishes.
        kind: of the jobs whose queue gets the ticks.
    """

    def __init__(self, settings: Settings, events: JobEvents, kind: JobKind, seconds: float = TICK_SECONDS) -> None:
        self._node = settings.node
        self._events, self._kind, self._seconds = events, kind, seconds
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="beds-job-clock", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                lineage = Lineage.root(self._node.name, self._node.environment)
                self._events.publish([Event.of_tick(self._kind, lineage, self._seconds)])
            except Exception:  # the next tick finds what this one would have found
                logger.exception("the tick of %s could not be published", self._kind.queue)
            self._ended.wait(self._seconds)

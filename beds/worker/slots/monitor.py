"""A slot's task events for Flower and `celery events`, buffered and published together.

The events of a task: https://docs.celeryq.dev/en/stable/userguide/monitoring.html#event-reference
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from typing import Any

import amqp
from celery.events.event import get_exchange
from celery.utils.time import utcoffset

MAX_EVENTS = 2000
"""Task events kept while they cannot be published; of more, the oldest are lost."""


class Monitor:
    """The task events of one slot.

    Args:
        app: the Celery application, for its clock and its exchange.
        hostname: the worker's name, so that all slots of a pool are one worker.
    """

    def __init__(self, app: Any, hostname: str) -> None:
        self._exchange = get_exchange(app.connection_for_write(), app.conf.event_exchange)
        self._clock = app.clock
        self._common = {"hostname": hostname, "utcoffset": utcoffset(), "pid": os.getpid()}
        self._headers = {"hostname": hostname}
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self.is_enabled = bool(app.conf.worker_send_task_events)

    def add(self, kind: str, guid: str, **fields: Any) -> None:
        """Buffer one event, such as `task-started`."""
        if self.is_enabled:
            clock = self._clock.forward()
            now = time.time()
            self._events.append(
                {"type": kind, "uuid": guid, "timestamp": now, "clock": clock, **self._common, **fields}
            )

    def take(self) -> tuple[amqp.Message, str, str] | None:
        """The buffered events as a message, its exchange and key; None when there are none."""
        found = []
        with contextlib.suppress(IndexError):  # two threads may take
            while True:
                found.append(self._events.popleft())
        if not found:
            return None
        message = amqp.Message(
            json.dumps(found, default=str),
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=1,
            application_headers=self._headers,
        )
        return message, self._exchange.name, "task.multi"

    def declare(self, channel: Any) -> None:
        """Declare the exchange: publishing to a missing one would close the channel."""
        self._exchange(channel).declare()

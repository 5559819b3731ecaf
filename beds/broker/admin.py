"""The admin worker's tasks: they write what comes through the exchange beds.logs, many records at once."""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from celery import Task
from celery.exceptions import Reject
from celery.worker import state as worker_state
from kombu.utils.url import parse_url

from beds.broker.app import app
from beds.broker.gauges import Gauges
from beds.domain.event import RECORD_TASKS, RecordKind
from beds.errors import BedsError, MalformedEvent, StoreUnavailable

logger = logging.getLogger("celery.beds.admin")

GAUGES = Gauges()
LONGEST_PAUSE = 5.0
"""Seconds between two attempts while MongoDB is away."""


class RecordTask(Task):
    """Writes one message's records, however long MongoDB is away: what is not written is not acknowledged."""

    abstract = True
    typing = False
    throws = (BedsError,)
    ignore_result = True

    def run(self, *args: Any, **kwargs: Any) -> None:
        pause = 0.1
        while True:
            try:
                self._write(kwargs)
                return
            except StoreUnavailable as error:
                if worker_state.should_stop is not None or worker_state.should_terminate is not None:
                    raise Reject(error, requeue=True) from None
                logger.warning("records wait for MongoDB: %s", error.message)
            except BedsError as error:
                # Not a record of this contract: it lies in beds.dead, and the log says why.
                logger.error("records turned away: %s", error.message)
                raise Reject(error, requeue=False) from None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE)

    def _write(self, body: dict[str, Any]) -> None:
        kind = next((k for k, task in RECORD_TASKS.items() if task == self.name and str(k) == body.get("kind")), None)
        if kind is None:
            raise MalformedEvent(f"kind: {self.name} does not write it", detail={"field": "kind"})
        if kind is not RecordKind.LOG:
            self._check_sender()
        written = self.app.records.write(kind, body.get("common"), body.get("records"))
        if kind is RecordKind.METRIC:
            GAUGES.take(written)

    def _check_sender(self) -> None:
        """Only workers tell who did what: an application could tell anything. Raises MalformedEvent."""
        sender = (self.request.properties or {}).get("user_id")
        own = parse_url(self.app.settings.amqp.broker_url)["userid"] or "guest"
        if sender != own:
            raise MalformedEvent(f"{self.name} is taken from the workers' AMQP user only", detail={"field": "user_id"})


def _make(name: str) -> Task:
    return type(name, (RecordTask,), {"name": name, "__module__": __name__})()


TASKS = [app.register_task(_make(name)) for name in sorted(set(RECORD_TASKS.values()))]

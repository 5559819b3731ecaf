"""The admin worker's tasks: each message of the exchange beds.logs carries many records, written together."""

from __future__ import annotations

import logging
import math
from typing import Any

from celery import Task
from celery.exceptions import Reject
from celery.worker import state as worker_state

from beds.domain.backoff import Backoff
from beds.domain.event import RECORD_TASKS, RecordKind
from beds.errors import BedsError, MalformedEvent, StoreUnavailable
from beds.worker.app import app
from beds.worker.prometheus import PrometheusCollector
from beds.worker.task import header_of

logger = logging.getLogger("celery.beds.admin")

PROMETHEUS = PrometheusCollector()
LONGEST_PAUSE = 5.0
"""Seconds between two attempts while MongoDB is away."""


class RecordTask(Task):
    """Writes the records of one message. While MongoDB is away it retries, and the message stays unacknowledged."""

    abstract = True
    typing = False
    throws = (BedsError,)
    ignore_result = True

    def run(self, *args: Any, **kwargs: Any) -> None:
        backoff = Backoff(math.inf, first=0.1, longest=LONGEST_PAUSE)
        while True:
            try:
                self._write(kwargs)
                return
            except StoreUnavailable as error:
                if worker_state.should_stop is not None or worker_state.should_terminate is not None:
                    raise Reject(error, requeue=True) from None
                logger.warning("records wait for MongoDB: %s", error.message)
            except BedsError as error:
                # A record breaks the contract. The message goes to beds.dead; the log has the reason.
                logger.error("records rejected: %s", error.message)
                raise Reject(error, requeue=False) from None
            backoff.wait()

    def _write(self, body: dict[str, Any]) -> None:
        kind = next((k for k, task in RECORD_TASKS.items() if task == self.name and str(k) == body.get("kind")), None)
        if kind is None:
            raise MalformedEvent(f"kind: {self.name} does not write it", detail={"field": "kind"})
        workers = self.app.settings.amqp.workers
        user = header_of(self.request).sender(self.request.properties, workers)
        if kind is not RecordKind.LOG and user != workers:
            # An application could forge lineage, audit and metrics, so these come from the workers' user only.
            raise MalformedEvent(f"{self.name} is taken from the workers' AMQP user only", detail={"field": "user_id"})
        common, records = body.get("common"), body.get("records")
        if user != workers and isinstance(common, dict) and isinstance(records, list):
            records = [{**record, "user": user} if isinstance(record, dict) else record for record in records]
        written, bad = self.app.records.write(kind, common, records)
        if kind is RecordKind.AUDIT:
            self.app.changes.append(written)
        if kind is RecordKind.METRIC:
            PROMETHEUS.take(written)
        if bad:
            raise bad


def _make(name: str) -> Task:
    return type(name, (RecordTask,), {"name": name, "__module__": __name__})()


TASKS = [app.register_task(_make(name)) for name in sorted(set(RECORD_TASKS.values()))]

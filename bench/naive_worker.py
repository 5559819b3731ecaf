"""The naive way to log over Celery: one task, and one insert, for each record."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.signals import worker_process_init
from kombu import Exchange, Queue
from pymongo import MongoClient

from beds.config import load_settings

QUEUE = "bench.naive"
_settings = load_settings()

app = Celery("naive", broker=_settings.amqp.broker_url)
app.conf.update(
    task_queues=[Queue(QUEUE, Exchange(QUEUE), QUEUE, queue_arguments={"x-queue-type": "quorum"})],
    task_default_queue=QUEUE,
    task_default_exchange=QUEUE,
    task_default_routing_key=QUEUE,
    task_acks_late=True,
    task_ignore_result=True,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)
_database: Any = None


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _connect(**_: Any) -> None:
    global _database
    dba = _settings.schema_.dba.rec
    assert dba is not None
    _database = MongoClient[dict[str, Any]](dba.uri.get_secret_value())[dba.database]


@app.task(name="naive.write")  # type: ignore[untyped-decorator]
def write(record: dict[str, Any]) -> None:
    _database.bench_naive.insert_one(record)

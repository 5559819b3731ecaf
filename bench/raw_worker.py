"""The peer: an ordinary Celery application, as its documentation shows one, that calls the same named object.

It has the rpc result backend, a queue of the same type, and the same pool; no lineage, no validation, no typed errors.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from beds.config import load_settings
from beds.core.namaste import Query
from beds.services.factory import AdapterFactory
from beds.templates.registry import TemplateRegistry

QUEUE = "bench.raw"
_settings = load_settings()

app = Celery("raw", broker=_settings.amqp.broker_url, backend="rpc://")
app.conf.update(
    task_queues=[Queue(QUEUE, Exchange(QUEUE), QUEUE, queue_arguments={"x-queue-type": "quorum"})],
    task_default_queue=QUEUE,
    task_default_exchange=QUEUE,
    task_default_routing_key=QUEUE,
    task_acks_late=True,
    worker_send_task_events=True,
    broker_connection_retry_on_startup=True,
)
_factory = AdapterFactory(_settings, TemplateRegistry.from_folder(_settings.schema_path))


@app.task(name="raw.fetch")  # type: ignore[untyped-decorator]
def fetch(template: str, using: str, args: dict[str, Any]) -> dict[str, Any]:
    return _factory.adapter(template).fetch_records(Query(using, args, 100, "")).to_wire()

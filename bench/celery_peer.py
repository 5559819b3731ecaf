"""The peer: an ordinary Celery application, as in Celery's documentation, whose tasks call the objects themselves.

It has the rpc result backend, a quorum queue, late acknowledgement and task events. Each operation has two tasks. The
plain one performs the operation and no more. In a task `with_duties`, a write also has the duties that BEDS has: an
entry in the ledger in the write's transaction, and an audit record that RabbitMQ has confirmed before the task returns.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from typing import Any

import amqp
from celery import Celery
from kombu import Exchange, Queue

from beds.config import load_settings
from bench.amqp_peer import QUORUM, connect
from bench.objects import OPERATIONS, Data, Objects, is_read

PLAIN, WITH_DUTIES, AUDIT = "bench.celery", "bench.duties", "bench.audit"
"""Queues: of the plain tasks, of those with duties, and of the audit records."""
_settings = load_settings()
_objects = Objects.of_brokers(_settings)

app = Celery("peer", broker=_settings.amqp.broker_url, backend="rpc://")
app.conf.update(
    task_queues=[Queue(name, Exchange(name), name, queue_arguments=QUORUM) for name in (PLAIN, WITH_DUTIES)],
    task_routes={"plain.*": {"queue": PLAIN}, "with_duties.*": {"queue": WITH_DUTIES}},
    task_acks_late=True,
    worker_send_task_events=True,
    broker_connection_retry_on_startup=True,
)


@cache
def audit_channel() -> Any:
    """This process's channel for audit records; a publish on it returns when RabbitMQ has confirmed the message."""
    channel = connect(_settings.amqp.broker_url, confirm_publish=True).channel()
    channel.queue_declare(AUDIT, durable=True, auto_delete=False, arguments=QUORUM)
    return channel


def _plain(operation: str) -> Any:
    @app.task(name=f"plain.{operation}")  # type: ignore[untyped-decorator]
    def task(data: Data) -> Data:
        return _objects.perform(operation, data)

    return task


def _with_duties(operation: str) -> Any:
    if is_read(operation):

        @app.task(name=f"with_duties.{operation}")  # type: ignore[untyped-decorator]
        def read(data: Data) -> Data:
            return _objects.perform(operation, data)

        return read

    @app.task(name=f"with_duties.{operation}", bind=True)  # type: ignore[untyped-decorator]
    def write(self: Any, data: Data) -> Data:
        answer = _objects.perform_once(operation, data, self.request.id)
        record = {
            "event_id": self.request.id,
            "parent_id": self.request.parent_id,
            "root_id": self.request.root_id,
            "at": datetime.now(UTC).isoformat(),
            "operation": operation,
            "record_id": data.get("tailnum") or data["id"],
            "fields": list(data),
            "values": data,
            "affected": 1,
            "outcome": "ok",
            "worker": self.request.hostname,
            "redelivered": bool((self.request.delivery_info or {}).get("redelivered")),
        }
        message = amqp.Message(json.dumps(record), content_type="application/json", delivery_mode=2)
        audit_channel().basic_publish(message, routing_key=AUDIT)
        return answer

    return write


plain = {operation: _plain(operation) for operation in OPERATIONS}
with_duties = {operation: _with_duties(operation) for operation in OPERATIONS}

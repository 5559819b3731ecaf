"""An event that waits for its store, as the message that returns to its queue."""

from __future__ import annotations

import time

import amqp

from beds.services.dead import RABBITMQS
from beds.services.execution import Delivery
from beds.wire.header import HEADER, waiting_for
from beds.worker.slots.received import Received

_KEPT = ("content_type", "content_encoding", "correlation_id", "reply_to", "priority", "message_id")


def postponed(received: Received, delivery: Delivery, workers: str) -> amqp.Message:
    """The message of an event, published again for its sender.

    RabbitMQ's own headers are left out: it would count the deaths of all rounds, and a client may have forged them.

    Args:
        received: the message, as it came.
        delivery: the same, validated.
        workers: the workers' AMQP user, which publishes it.
    """
    headers = {name: value for name, value in received.headers.items() if not str(name).startswith(RABBITMQS)}
    since = delivery.waiting_since or time.time()
    headers["expires"] = None  # a worker has begun it, so it must not end as one that nobody began
    headers[HEADER] = waiting_for(headers.get(HEADER), delivery.user, since)
    kept = {name: value for name in _KEPT if (value := received.properties.get(name)) is not None}
    return amqp.Message(received.body, application_headers=headers, delivery_mode=2, user_id=workers, **kept)

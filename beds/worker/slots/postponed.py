"""An event that waits for its store, as the message that returns to its queue."""

from __future__ import annotations

import time

import amqp

from beds.services.dead import REPLAYED
from beds.services.execution import Delivery
from beds.wire.header import HEADER, waiting_for
from beds.worker.slots.received import Received
from beds.worker.validation import HEADERS

_KEPT = ("content_type", "content_encoding", "correlation_id", "reply_to", "priority", "message_id")


def postponed(received: Received, delivery: Delivery, workers: str, *, in_doubt: bool) -> amqp.Message:
    """The message of an event, published again for its sender.

    Headers of RabbitMQ and of others are left out. RabbitMQ would count the deaths of all rounds, and a client may have
    forged them. With some more bytes the largest header no longer fits a frame.

    Args:
        received: the message, as it came.
        delivery: the same, validated.
        workers: the workers' AMQP user, which publishes it.
        in_doubt: whether this or an earlier delivery may have written.
    """
    headers = {name: value for name, value in received.headers.items() if name in HEADERS or name == REPLAYED}
    since = delivery.waiting_since or time.time()
    headers["expires"] = None  # a worker has begun it, so it expires no more
    headers[HEADER] = waiting_for(headers.get(HEADER), delivery.user, since, in_doubt=in_doubt)
    kept = {name: value for name in _KEPT if (value := received.properties.get(name)) is not None}
    return amqp.Message(received.body, application_headers=headers, delivery_mode=2, user_id=workers, **kept)

"""The practical limit: py-amqp and the drivers alone. A consumer sends a reply and an acknowledgement per message."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import amqp

from beds.config import load_settings
from bench.objects import Data, Objects
from bench.side import DEADLINE

QUEUE = "bench.amqp"
PREFETCH = 4
"""Messages prefetched by one consumer, as by one slot of the Celery workers."""
QUORUM = {"x-queue-type": "quorum"}


def connect(url: str, **options: Any) -> amqp.Connection:
    """An open connection without heartbeats, since a process that measures another side would miss them."""
    parts = urlsplit(url)
    connection = amqp.Connection(
        f"{parts.hostname}:{parts.port}",
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        virtual_host=unquote(parts.path[1:]),
        heartbeat=0,
        **options,
    )
    connection.connect()
    return connection


class Requester:
    """Sends requests to the queue, and receives the replies by RabbitMQ's direct reply-to."""

    REPLIES = "amq.rabbitmq.reply-to"

    def __init__(self, url: str) -> None:
        self._connection = connect(url)
        self._channel = self._connection.channel()
        self._channel.queue_declare(QUEUE, durable=True, auto_delete=False, arguments=QUORUM)
        self._channel.basic_consume(self.REPLIES, no_ack=True, callback=self._take)
        self._replies: dict[str, Data] = {}

    def one(self, operation: str, data: Data) -> Data:
        (answer,) = self.many(operation, [data])
        return answer

    def many(self, operation: str, batch: Sequence[Data]) -> list[Data]:
        guids = [self._publish(operation, data) for data in batch]
        while len(self._replies) < len(guids):
            self._connection.drain_events(timeout=DEADLINE)
        replies, self._replies = self._replies, {}
        return [replies[guid] for guid in guids]

    def close(self) -> None:
        self._connection.close()

    def _publish(self, operation: str, data: Data) -> str:
        guid = str(uuid4())
        body = json.dumps({"operation": operation, "data": data})
        message = amqp.Message(body, correlation_id=guid, reply_to=self.REPLIES, delivery_mode=2)
        self._channel.basic_publish(message, routing_key=QUEUE)
        return guid

    def _take(self, message: Any) -> None:
        self._replies[message.properties["correlation_id"]] = json.loads(message.body)


def main() -> None:
    settings = load_settings()
    objects = Objects.of_brokers(settings)
    connection = connect(settings.amqp.broker_url)
    channel = connection.channel()
    channel.queue_declare(QUEUE, durable=True, auto_delete=False, arguments=QUORUM)
    channel.basic_qos(0, PREFETCH, False)

    def on_message(message: Any) -> None:
        request = json.loads(message.body)
        answer = objects.perform(request["operation"], request["data"])
        reply = amqp.Message(json.dumps(answer), correlation_id=message.properties["correlation_id"])
        channel.basic_publish(reply, routing_key=message.properties["reply_to"])
        channel.basic_ack(message.delivery_tag)

    channel.basic_consume(QUEUE, callback=on_message)
    while True:
        connection.drain_events()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        main()

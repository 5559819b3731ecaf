"""The fast peer, py-amqp and pymongo alone: one insert_many and one acknowledgement for each message of records."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import amqp
from pymongo import MongoClient

from beds.config import load_settings
from bench.logs import BARE_QUEUE


def main() -> None:
    settings = load_settings()
    dba = settings.schema_.dba.rec
    assert dba is not None
    collection = MongoClient[dict[str, Any]](dba.uri.get_secret_value())[dba.database].bench_bare
    user, _, place = settings.amqp.broker_url.removeprefix("amqp://").rpartition("@")
    name, _, password = user.partition(":")
    with amqp.Connection(place.split("/")[0], name, password, virtual_host=place.split("/")[1]) as connection:
        channel = connection.channel()
        channel.queue_declare(BARE_QUEUE, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        channel.basic_qos(0, 8, False)

        def on_message(message: Any) -> None:
            collection.insert_many(json.loads(message.body), ordered=False)
            channel.basic_ack(message.delivery_tag)

        channel.basic_consume(BARE_QUEUE, callback=on_message)
        while True:
            connection.drain_events()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

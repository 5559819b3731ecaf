"""Measures how fast dead events reach msDead, compared with a bare consumer that takes one at a time.

Both sides run by turns on the same servers. BEDS's side is the dead-letter consumer in the admin worker. The peer is
py-amqp with pymongo: one `insert_one` and one acknowledgement a message, as BEDS did before it worked in batches.

    python -m bench.dead [--rounds 3] [--messages 5000] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import amqp
from kombu import Connection
from pymongo import MongoClient
from pymongo.collection import Collection

from beds.config import Settings
from beds.transport.topology import Topology, declare
from beds.wire.routes import DEAD
from bench.side import DEADLINE, own_vhost, ready_stack, wait_until, worker

PREFETCH = 64


def publish(settings: Settings, count: int) -> None:
    """Publish messages that are no events to beds.dead."""
    with Connection(settings.amqp.broker_url, transport_options={"confirm_publish": False}) as connection:
        channel = connection.default_channel
        for _ in range(count):
            guid = str(uuid.uuid4())
            channel.basic_publish(
                amqp.Message("{}", delivery_mode=2, correlation_id=guid, application_headers={"id": guid}),
                DEAD,
                "rel.write",
            )
        wait_until(lambda: channel.queue_declare(DEAD, passive=True).message_count >= count)


def by_beds(settings: Settings, stored: Collection[dict[str, Any]], count: int) -> float:
    """Messages per second while a worker empties a full queue, from its first documents to the last one."""
    before = stored.estimated_document_count()
    publish(settings, count)
    with worker("beds", "beds.logs,beds.audit,beds.metrics", env={"BEDS_METRICS__PROMETHEUS": ""}):
        wait_until(lambda: stored.estimated_document_count() > before)
        first, begun = stored.estimated_document_count(), time.perf_counter()
        wait_until(lambda: stored.estimated_document_count() - before >= count)
        return (count - (first - before)) / (time.perf_counter() - begun)


def one_by_one(settings: Settings, stored: Collection[dict[str, Any]], count: int) -> float:
    """Messages per second while a bare consumer empties a full queue."""
    publish(settings, count)
    taken = 0
    with Connection(settings.amqp.broker_url) as connection:
        channel = connection.default_channel
        channel.basic_qos(0, PREFETCH, False)

        def take(message: Any) -> None:
            nonlocal taken
            stored.insert_one({"body": message.body, "headers": str(message.headers)})
            channel.basic_ack(message.delivery_tag)
            taken += 1

        channel.basic_consume(DEAD, callback=take)
        begun = time.perf_counter()
        while taken < count:
            connection.drain_events(timeout=DEADLINE)
        return count / (time.perf_counter() - begun)


def compare(rounds: int, messages: int, report: Callable[[str], None]) -> dict[str, Any]:
    stack, settings = ready_stack(report)
    assert settings.schema_.dba.rec is not None
    mongo: MongoClient[dict[str, Any]] = MongoClient(settings.schema_.dba.rec.uri.get_secret_value())
    database = mongo[settings.schema_.dba.rec.database]
    rates: dict[str, list[float]] = {"beds": [], "one by one": []}
    with own_vhost(settings, stack) as own:
        with Connection(own.amqp.broker_url) as connection:
            declare(Topology.from_settings(own.amqp), connection)
        for number in range(rounds):
            rates["beds"].append(by_beds(own, database.msDead, messages))
            rates["one by one"].append(one_by_one(own, database.bench_dead, messages))
            report(f"round {number + 1} of {rounds}")
    database.drop_collection("bench_dead")
    return {
        "messages": messages,
        "rounds": rounds,
        "messages_per_second": {side: {"median": statistics.median(of), "runs": of} for side, of in rates.items()},
        "ratio": statistics.median(b / o for b, o in zip(*rates.values(), strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=5000, help="of each side, in each round")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args()
    found = compare(options.rounds, options.messages, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for side, figures in found["messages_per_second"].items():
        print(f"{side:12}{figures['median']:>10,.0f} messages/s")
    print(f"ratio: {found['ratio']:.2f}")


if __name__ == "__main__":
    main()

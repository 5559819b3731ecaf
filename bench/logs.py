"""Measures how fast log records reach msLogs, and the cost of logging and lineage for an operation.

Three sides run by turns on the same servers, measured in records per second. They are BEDS's handler in several
processes, one Celery task for each record (naive), and a bare py-amqp consumer of batches (the fastest in Python). Then
follows the round trip of one operation with lineage and logs, and without.

    python -m bench.logs [--rounds 3] [--records 40000] [--processes 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import amqp
from pymongo import MongoClient

from beds.client.client import Client
from beds.config import Settings
from beds.stack.stack import Stack
from beds.transport.log_handler import LogHandler
from bench.side import DEADLINE, own_vhost, ready_stack, wait_until, wait_until_answered, worker

NAIVE_QUEUE, BARE_QUEUE = "bench.naive", "bench.bare"
BATCH = 100
"""Records in a message of the bare consumer; BEDS's default is of the same order."""
MESSAGE = "request %d from %s took %d ms"


def _produce(ready: Any, produce: Callable[..., None], *arguments: Any) -> None:
    ready.wait(DEADLINE)  # the start of Python is not measured
    produce(*arguments)


def _produce_beds(settings: Settings, count: int, run: str) -> None:
    handler = LogHandler(settings)
    logger = logging.getLogger("bench")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    for n in range(count):
        logger.info(MESSAGE, n, run, n % 100)
    assert handler.shipper.flush(DEADLINE)
    handler.shipper.close()


def _produce_naive(settings: Settings, count: int, run: str) -> None:
    from bench.naive_worker import write

    for n in range(count):
        write.apply_async((record(n, run),), ignore_result=True)


def _produce_bare(settings: Settings, count: int, run: str) -> None:
    url = settings.amqp.broker_url.removeprefix("amqp://")
    user, _, place = url.rpartition("@")
    name, _, password = user.partition(":")
    with amqp.Connection(place.split("/")[0], name, password, virtual_host=place.split("/")[1]) as connection:
        channel = connection.channel()
        channel.confirm_select()
        for start in range(0, count, BATCH):
            body = json.dumps([record(n, run) for n in range(start, min(count, start + BATCH))])
            channel.basic_publish_confirm(amqp.Message(body, delivery_mode=2), "", BARE_QUEUE)


def record(n: int, run: str) -> dict[str, Any]:
    """The record that the peers send for one log call, with the same fields as BEDS's."""
    return {
        "_id": str(uuid.uuid4()), "at": time.time(), "level": "INFO", "levelno": 20, "logger": "bench",
        "message": MESSAGE % (n, run, n % 100), "host": "bench", "pid": os.getpid(), "seq": n,
        "node": "ms", "env": "bench", "parent_id": "", "root_id": "", "depth": 0,
    }  # fmt: skip


def rate(
    produce: Callable[..., None], count: int, processes: int, settings: Settings, stored: Callable[[], int]
) -> float:
    """Records per second from the first log call to the last record in MongoDB."""
    before = stored()
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes + 1)
    started = [
        context.Process(target=_produce, args=(ready, produce, settings, count // processes, uuid.uuid4().hex))
        for _ in range(processes)
    ]
    for process in started:
        process.start()
    ready.wait(DEADLINE)
    begun = time.perf_counter()
    wait_until(lambda: stored() - before >= count // processes * processes)
    seconds = time.perf_counter() - begun
    for process in started:
        process.join(DEADLINE)
    return count / seconds


def round_trip(client: Client, calls: int) -> float:
    """Median milliseconds."""
    taken = []
    for _ in range(calls):
        begun = time.perf_counter()
        client.call("fetch_records", "Airlines", {"carrier": "UA"}, using="by_carrier", timeout=DEADLINE)
        taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken)


def held(settings: Settings, stack: Stack, calls: int = 20_000) -> dict[str, float]:
    """Microseconds that a log call blocks its thread while RabbitMQ accepts no messages."""
    handler = LogHandler(settings)
    logger = logging.getLogger("bench.held")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.info("connect")
    handler.shipper.flush(DEADLINE)
    stack.rabbitmq.control("set_vm_memory_high_watermark", "0")
    try:
        logger.info("fills the socket")
        time.sleep(1)
        taken = []
        for n in range(calls):
            begun = time.perf_counter_ns()
            logger.info(MESSAGE, n, "held", 1)
            taken.append((time.perf_counter_ns() - begun) / 1000)
            if n % 100 == 0:
                time.sleep(0.01)  # stands for the application's other work
    finally:
        stack.rabbitmq.control("set_vm_memory_high_watermark", "absolute", "2GB")
    handler.shipper.close(DEADLINE)
    taken.sort()
    at = {name: taken[min(calls - 1, int(calls * q))] for name, q in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))}
    return {**at, "max": taken[-1], "over_1_ms": float(sum(t > 1000 for t in taken)), "calls": float(calls)}


def compare(rounds: int, records: int, processes: int, report: Callable[[str], None]) -> dict[str, Any]:
    stack, settings = ready_stack(report)
    assert settings.schema_.dba.rec is not None
    mongo: MongoClient[dict[str, Any]] = MongoClient(settings.schema_.dba.rec.uri.get_secret_value())
    database = mongo[settings.schema_.dba.rec.database]
    naive_count = max(400, records // 40)
    sides: dict[str, tuple[Callable[..., None], int, str]] = {
        "beds": (_produce_beds, records, "msLogs"),
        "bare": (_produce_bare, records, "bench_bare"),
        "naive": (_produce_naive, naive_count, "bench_naive"),
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    trips: dict[str, list[float]] = {"with": [], "without": []}
    with own_vhost(settings, stack) as own:
        quiet = {"BEDS_METRICS__PROMETHEUS": ""}
        with (
            worker("beds", "beds.logs,beds.audit,beds.metrics", env=quiet),
            worker("bench.naive_worker", NAIVE_QUEUE, "-c", "2"),
        ):
            consumer = subprocess.Popen([sys.executable, "-m", "bench.bare_consumer"])
            try:
                for produce, _, name in sides.values():  # warm up each side, and check that it runs
                    rate(produce, 40, processes, own, lambda name=name: database[name].estimated_document_count())  # type: ignore[misc]
                for number in range(rounds):
                    for side, (produce, count, name) in sides.items():
                        stored = lambda name=name: database[name].estimated_document_count()  # noqa: E731
                        rates[side].append(rate(produce, count, processes, own, stored))
                    report(f"round {number + 1} of {rounds}")
            finally:
                consumer.terminate()
                consumer.wait(10)
            blocked = held(own, stack)
            with Client(own) as client:
                for number in range(rounds * 2):
                    which = ("with", "without")[number % 2]
                    off = {} if which == "with" else {"BEDS_LOGGING__LINEAGE": "false", "BEDS_LOGGING__LEVEL": "ERROR"}
                    with worker("beds", "rel.read", "-c", "2", env=off):
                        wait_until_answered(
                            lambda: client.call(
                                "fetch_records", "Airlines", {"carrier": "UA"}, using="by_carrier", timeout=5
                            )
                        )
                        round_trip(client, 100)
                        trips[which].append(round_trip(client, 500))
                    report(f"round trip {which}: {trips[which][-1]:.2f} ms")
    database.drop_collection("bench_bare")
    database.drop_collection("bench_naive")
    median = {side: statistics.median(of) for side, of in rates.items()}
    return {
        "records": records, "processes": processes, "rounds": rounds,
        "records_per_second": {
            side: {"median": median[side], "min": min(of), "max": max(of)} for side, of in rates.items()
        },
        "round_trip_ms": {which: {"median": statistics.median(of), "runs": of} for which, of in trips.items()},
        "held_while_blocked_us": blocked,
        "ratios": {
            "logs_vs_naive": statistics.median(b / n for b, n in zip(rates["beds"], rates["naive"], strict=True)),
            "logs_vs_bare": statistics.median(b / n for b, n in zip(rates["beds"], rates["bare"], strict=True)),
            "round_trip_cost": statistics.median(
                w / o for w, o in zip(trips["with"], trips["without"], strict=True)
            ),
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=40_000, help="of BEDS and of the bare consumer; naive: a 40th")
    parser.add_argument("--processes", type=int, default=2, help="that log at once")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args()
    found = compare(options.rounds, options.records, options.processes, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"\n{found['records']:,} records from {found['processes']} processes; records per second, median (min–max)\n")
    for side, figures in found["records_per_second"].items():
        print(f"{side:8}{figures['median']:>12,.0f} ({figures['min']:,.0f}–{figures['max']:,.0f})")
    blocked = found["held_while_blocked_us"]
    print(f"\na log call while RabbitMQ is blocked: p50 {blocked['p50']:.0f} µs, p99 {blocked['p99']:.0f} µs, "
          f"p99.9 {blocked['p999']:.0f} µs, longest {blocked['max']:.0f} µs, {blocked['over_1_ms']:.0f} of "
          f"{blocked['calls']:,.0f} over 1 ms")  # fmt: skip
    print("\n" + "\n".join(f"{name}: {value:.2f}" for name, value in found["ratios"].items()))


if __name__ == "__main__":
    main()

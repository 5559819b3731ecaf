"""Measures the cost of the ledger for a write: the same operation with its ledger entry, and without.

Each adapter calls its object in this process, so that only the database is measured. Runs alternate: with an entry, and
without one (as for a template with `idempotent = true`). Then the write runs through RabbitMQ and a worker.

    python -m bench.ledger [--rounds 5] [--writes 400] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from beds.client.client import Client
from beds.config import Settings
from beds.domain.identity import uuid7
from beds.domain.lineage import Lineage
from beds.domain.trace import Trace, tracing
from beds.services.factory import AdapterFactory
from beds.templates.registry import TemplateRegistry
from bench.side import DEADLINE, own_vhost, ready_stack, wait_until_answered, worker

WRITES: Mapping[str, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "mariadb": lambda key: ("Airlines", {"carrier": "ZZ", "name": key}),
    "mongodb": lambda key: ("Notices", {"airport": "JFK", "title": key, "status": "open"}),
}
"""By store: a template, and a record to create in it."""


def in_process(factory: AdapterFactory, store: str, writes: int, *, noted: bool) -> float:
    """Median milliseconds of one create, called as a worker calls it."""
    taken = []
    for _ in range(writes):
        name, payload = WRITES[store](str(uuid7()))
        template = factory.registry[name]
        adapter = factory.adapter(name)
        trace = tracing(Trace(Lineage.root("bench", "ledger"))) if noted else contextlib.nullcontext()
        checked = template.check_create(payload)
        begun = time.perf_counter()
        with trace:
            adapter.create_record(checked)
        taken.append((time.perf_counter() - begun) * 1000)
        adapter.delete_record(checked[template.keys[0]])
    return statistics.median(taken)


def through_rabbitmq(client: Client, store: str, writes: int) -> float:
    """Median milliseconds of one create, as a client sees it."""
    taken = []
    for _ in range(writes):
        name, payload = WRITES[store](str(uuid7()))
        begun = time.perf_counter()
        created = client.call("create_record", name, payload, timeout=DEADLINE)
        taken.append((time.perf_counter() - begun) * 1000)
        key = payload.get(client.templates[name].keys[0]) or UUID(created.record_id)  # type: ignore[union-attr]
        client.call("delete_record", name, key, timeout=DEADLINE)
    return statistics.median(taken)


def compare(rounds: int, writes: int, report: Callable[[str], None]) -> dict[str, Any]:
    stack, settings = ready_stack(report)
    registry = TemplateRegistry.from_folder(settings.schema_path)
    found: dict[str, dict[str, list[float]]] = {store: {"with": [], "without": []} for store in WRITES}
    with contextlib.closing(AdapterFactory(settings, registry)) as factory:
        for store in WRITES:
            in_process(factory, store, 20, noted=True)
        for number in range(rounds):
            for store, of in found.items():
                for which in ("with", "without") if number % 2 else ("without", "with"):
                    of[which].append(in_process(factory, store, writes, noted=which == "with"))
            report(f"round {number + 1} of {rounds}")
    trips = _trips(stack, settings, writes)
    return {
        "writes": writes, "rounds": rounds,
        "in_process_ms": {
            store: {which: statistics.median(of) for which, of in sides.items()} for store, sides in found.items()
        },
        "round_trip_ms": trips,
        "ratios": {
            f"ledger_cost_{store}": statistics.median(
                w / o for w, o in zip(sides["with"], sides["without"], strict=True)
            )
            for store, sides in found.items()
        },
    }  # fmt: skip


def _trips(stack: Any, settings: Settings, writes: int) -> dict[str, float]:
    """Milliseconds of a whole write by store, to show the ledger's share in it."""
    with (
        own_vhost(settings, stack) as own,
        worker("beds", "rel.write,rec.write,rel.read", "-c", "2"),
        worker("beds", "beds.logs,beds.audit,beds.metrics", env={"BEDS_METRICS__PROMETHEUS": ""}),
        Client(own) as client,
    ):
        wait_until_answered(
            lambda: client.call("fetch_records", "Airlines", {"carrier": "UA"}, using="by_carrier", timeout=5)
        )
        return {store: through_rabbitmq(client, store, min(writes, 200)) for store in WRITES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--writes", type=int, default=400)
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args()
    found = compare(options.rounds, options.writes, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for store, ms in found["in_process_ms"].items():
        print(f"{store:8} with the ledger {ms['with']:.2f} ms, without {ms['without']:.2f} ms "
              f"({found['ratios'][f'ledger_cost_{store}']:.2f} ×); a whole write over RabbitMQ "
              f"{found['round_trip_ms'][store]:.2f} ms")  # fmt: skip


if __name__ == "__main__":
    main()

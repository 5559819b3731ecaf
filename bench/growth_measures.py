"""The measurements of bench.growth: the costs of one event, and the rates of one to three BEDS nodes."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import psutil

from beds.client.call import Call
from beds.client.client import Client
from beds.stack.stack import Stack
from bench.amqp_peer import PREFETCH
from bench.growth_broker import Broker
from bench.growth_model import Costs, System, predict
from bench.objects import Samples
from bench.operations import Groups, cpu_seconds
from bench.scaling import READ
from bench.side import DEADLINE, ROOT, wait_until, wait_until_answered, worker

QUEUES = {
    "fetch-rel": "rel.read",
    "create-rel": "rel.write",
    "fetch-rec": "rec.read",
    "create-rec": "rec.write",
    "wait-rel": "rel.read",
}
"""The queue of each operation whose cost is measured. `wait-rel` is the read of the check, here without a wait."""
RECORDS = "beds.logs,beds.audit,beds.metrics"
WAITS = {0.0: 2.0, 0.02: 3.0, 0.25: 7.0}
"""Seconds of a wait in the database, and about how long to measure with it."""
NODES = (1, 2, 3)
SLOTS = 2
SETTLE_SECONDS = 2.0
"""Wait after the calls of a cost, until the records of their events are stored."""
IDLE_SECONDS = 6.0

Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Args:
        rounds: of all measurements, by turns.
        events: for each cost, in each round.
        is_quick: whether shorter measurements of rates are enough.
    """

    rounds: int
    events: int
    is_quick: bool


@dataclass(frozen=True)
class Window:
    """One measurement of a cost.

    Args:
        cpu: seconds per event, by group.
        serial: of these, those of one process in each RabbitMQ node.
        wire: bytes per event.
        rate: events a second.
    """

    cpu: dict[str, float]
    serial: dict[str, float]
    wire: float
    rate: float


@dataclass(frozen=True)
class Rate:
    """One measurement of a rate, and how many cores other programs used meanwhile."""

    per_second: float
    others: float


# --- Costs -----------------------------------------------------------------------------------------------------------


def measure_costs(brokers: Sequence[Broker], samples: Samples, plan: Plan, report: Report) -> dict[str, dict[int, Any]]:
    """By operation and size of RabbitMQ: the costs of one event. One slot executes, so its rate is that of one slot."""
    stack = Stack(ROOT / ".beds")
    databases = {name: stack.server(name).daemon.family() for name in ("mariadb", "mongodb")}
    windows: dict[str, dict[int, list[Window]]] = {name: {b.size: [] for b in brokers} for name in QUEUES}
    with contextlib.ExitStack() as running:
        sides: dict[int, tuple[Client, Groups]] = {}
        for broker in brokers:
            node = running.enter_context(_node(broker, ",".join(sorted(set(QUEUES.values()))), 1, 0))
            admin = running.enter_context(_records(broker))
            client = running.enter_context(Client(broker.settings))
            wait_until_answered(partial(client.call_many, [READ], timeout=5))
            for name in QUEUES:
                client.call_many(_calls(name, samples, 40), timeout=DEADLINE)
            sides[broker.size] = (
                client,
                {
                    "client": [psutil.Process()],
                    "node": _family(node),
                    "records": _family(admin),
                    **broker.cpu_groups(),
                    **databases,
                },
            )
        time.sleep(SETTLE_SECONDS)
        idle = {}
        for size, (_, groups) in sides.items():
            before = cpu_seconds(groups)
            time.sleep(IDLE_SECONDS)
            idle[size] = {name: (used - before[name]) / IDLE_SECONDS for name, used in cpu_seconds(groups).items()}
        for number in range(plan.rounds):
            for name, found in windows.items():
                for broker in reversed(brokers) if number % 2 else brokers:
                    client, groups = sides[broker.size]
                    calls = _calls(name, samples, plan.events)
                    found[broker.size].append(_window(broker, client, calls, groups, idle[broker.size], QUEUES[name]))
                    samples.clear_created()
            report(f"costs: round {number + 1} of {plan.rounds}")
    return {name: {size: _costs(of) for size, of in found.items()} for name, found in windows.items()}


def _window(
    broker: Broker, client: Client, calls: Sequence[Call], groups: Groups, idle: Mapping[str, float], queue: str
) -> Window:
    worked = broker.work(queue)
    before, begun = cpu_seconds(groups), time.perf_counter()
    client.call_many(calls, timeout=DEADLINE)
    seconds = time.perf_counter() - begun
    time.sleep(SETTLE_SECONDS)
    after, all_seconds = cpu_seconds(groups), time.perf_counter() - begun
    work = [now.since(then) for now, then in zip(broker.work(queue), worked, strict=True)]
    cpu = {name: max(0.0, used - before[name] - idle[name] * all_seconds) / len(calls) for name, used in after.items()}
    serial = {name: each.serial * cpu[name] for name, each in zip(broker.cpu_groups(), work, strict=True)}
    return Window(cpu, serial, sum(each.octets for each in work) / len(calls), len(calls) / seconds)


def _costs(of: Sequence[Window]) -> Costs:
    cpu = {name: statistics.median(window.cpu[name] for window in of) for name in of[0].cpu}
    return Costs(
        client=cpu["client"],
        node=cpu["node"],
        rabbitmq=sum(used for name, used in cpu.items() if name.startswith("rabbitmq")),
        records=cpu["records"],
        database=cpu["mariadb"] + cpu["mongodb"],
        leader=max(statistics.median(window.serial[name] for window in of) for name in of[0].serial),
        # The fastest round: other programs make a slot slower, never faster.
        service=1 / max(window.rate for window in of),
        wire=statistics.median(window.wire for window in of),
    )


def _calls(operation: str, samples: Samples, count: int) -> list[Call]:
    if operation == "wait-rel":
        return [_waiting(0)] * count
    return [_call(operation, data) for data in samples.several(operation, count)]


def _waiting(seconds: float) -> Call:
    return Call("fetch_records", "BenchObjects", {"seconds": seconds}, using="wait")


def _call(operation: str, data: dict[str, Any]) -> Call:
    match operation:
        case "fetch-rel":
            return Call("fetch_records", "Planes", data, "by_tailnum")
        case "create-rel":
            return Call("create_record", "Planes", data)
        case "fetch-rec":
            return Call("fetch_records", "Notices", {"id": UUID(data["id"])}, "by_id")
    opened = datetime.fromisoformat(data["opened"])
    return Call("create_record", "Notices", {**data, "id": UUID(data["id"]), "opened": opened})


# --- The check -------------------------------------------------------------------------------------------------------


Rates = dict[tuple[int, int, float], list[Rate]]
"""By the sizes of RabbitMQ and of BEDS, and the wait: a rate for each round."""


def measure_rates(brokers: Sequence[Broker], costs: Mapping[int, Costs], plan: Plan, report: Report) -> Rates:
    found: Rates = {(broker.size, nodes, wait): [] for wait in WAITS for nodes in NODES for broker in brokers}
    mariadb = Stack(ROOT / ".beds").server("mariadb").daemon.family()
    with contextlib.ExitStack() as admins:
        for broker in brokers:
            admins.enter_context(_records(broker))
        for number in range(plan.rounds):
            for nodes in NODES:
                for broker in reversed(brokers) if (number + nodes) % 2 else brokers:
                    with _serving(broker, nodes) as (client, workers):
                        groups = {"all": [psutil.Process(), *workers, *mariadb]} | broker.cpu_groups()
                        for wait, seconds in WAITS.items():
                            rate = predict(costs[broker.size], shared_system(broker.size, nodes, wait)).rate
                            goal = rate * seconds / (3 if plan.is_quick else 1)
                            # A multiple of the slots, so that all have work until the end.
                            count = max(2, round(goal / nodes / SLOTS)) * nodes * SLOTS
                            found[broker.size, nodes, wait].append(_rate(client, _waiting(wait), count, groups))
            report(f"check: round {number + 1} of {plan.rounds}")
    return found


@contextmanager
def _serving(broker: Broker, nodes: int) -> Iterator[tuple[Client, list[psutil.Process]]]:
    """BEDS nodes that serve reads from MariaDB, and a client; all slots have executed some."""
    with contextlib.ExitStack() as running:
        parents = [running.enter_context(_node(broker, "rel.read", SLOTS, number)) for number in range(nodes)]
        client = running.enter_context(Client(broker.settings))
        wait_until_answered(lambda: client.call_many([READ], timeout=5))
        wait_until(lambda: broker.consumers("rel.read") == nodes * SLOTS)
        client.call_many([_waiting(0)] * 60 * nodes, timeout=DEADLINE)
        yield client, [process for parent in parents for process in _family(parent)]


def _rate(client: Client, call: Call, count: int, groups: Groups) -> Rate:
    ours, machine = sum(cpu_seconds(groups).values()), _machine_seconds()
    begun = time.perf_counter()
    client.call_many([call] * count, timeout=DEADLINE)
    seconds = time.perf_counter() - begun
    ours, machine = sum(cpu_seconds(groups).values()) - ours, _machine_seconds() - machine
    return Rate(count / seconds, max(0.0, machine - ours) / seconds)


def _machine_seconds() -> float:
    """CPU seconds that the machine's cores were busy, or taken away by its host."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def shared_system(rabbitmq: int, nodes: int, wait: float, others: float = 0.0) -> System:
    cores = (psutil.cpu_count() or 1) - others
    return System(nodes=nodes, slots=SLOTS, wait=wait, cores=cores, clients=1, rabbitmq=rabbitmq, is_shared=True)


# --- Processes -------------------------------------------------------------------------------------------------------


def _node(broker: Broker, queues: str, slots: int, number: int) -> contextlib.AbstractContextManager[psutil.Process]:
    name = f"growth{broker.size}{number}"
    options = ("-c", str(slots), "--prefetch-multiplier", str(PREFETCH), "-n", f"{name}@%h")
    return worker("beds", queues, *options, env={**broker.env, "BEDS_NODE__NAME": name})


def _records(broker: Broker) -> contextlib.AbstractContextManager[psutil.Process]:
    """The worker that stores audit and log records."""
    name = f"records{broker.size}"
    env = {**broker.env, "BEDS_NODE__NAME": name, "BEDS_METRICS__PROMETHEUS": ""}
    return worker("beds", RECORDS, "-n", f"{name}@%h", env=env)


def _family(parent: psutil.Process) -> list[psutil.Process]:
    return [parent, *parent.children(recursive=True)]

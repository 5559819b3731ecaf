"""Predicts how BEDS grows from the cost of one event, and checks the prediction against one to three BEDS nodes.

    costs    CPU time of each part, and bytes, for one event; with one RabbitMQ node, and with three
    check    measured and predicted rates of 1, 2 and 3 BEDS nodes, with waits of 0, 20 and 250 ms in MariaDB
    growth   predicted rates of 1 to 100 BEDS nodes on machines of their own, the first limit, and the remedy

Both RabbitMQ systems run at the same time and are used by turns; rates are medians over the rounds. The check takes the
cores that other programs use meanwhile off those of the machine. All quorum queues; reads wait in `SLEEP()`.

    python -m bench.growth                              about ten minutes
    python -m bench.growth --quick                      one round, fewer events: about three minutes
    python -m bench.growth --cores 16 --node-slots 64   the growth of larger machines
    python -m bench.growth --json > growth.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import quote
from uuid import UUID

import psutil
from pydantic import SecretStr

from beds.client.call import Call
from beds.client.client import Client
from beds.config import Settings
from beds.stack.plan import VHOST as CLUSTER_VHOST
from beds.stack.rabbitmq import RabbitMQ
from beds.stack.stack import Stack
from bench.amqp_peer import PREFETCH, connect
from bench.growth_model import Costs, Part, System, needed, predict
from bench.objects import Objects, Samples
from bench.operations import Groups, cpu_seconds
from bench.rabbitmq_cluster import Member, running_cluster
from bench.scaling import READ, ready_site
from bench.side import DEADLINE, ROOT, VHOST, wait_until, wait_until_answered, worker

QUEUES = {
    "fetch-rel": "rel.read",
    "create-rel": "rel.write",
    "fetch-rec": "rec.read",
    "create-rec": "rec.write",
    "wait-rel": "rel.read",
}
"""The queue of each operation whose cost is measured. `wait-rel` is the read of the check, here without a wait."""
RECORDS = "beds.logs,beds.audit,beds.metrics"
NAMES = {
    "fetch-rel": "read, MariaDB",
    "create-rel": "write, MariaDB",
    "fetch-rec": "read, MongoDB",
    "create-rec": "write, MongoDB",
    "wait-rel": "SLEEP(0), MariaDB",
}
WAITS = {0.0: 3.0, 0.02: 4.0, 0.25: 8.0}
"""Seconds of a wait in the database, and about how long to measure with it."""
NODES = (1, 2, 3)
SLOTS = 2
SIZES = (1, 3, 10, 30, 100)
SETTLE_SECONDS = 2.6
"""Wait after the calls of a cost, for the records of the events and for RabbitMQ's statistics, renewed every 2 s."""
IDLE_SECONDS = 6.0
REMEDIES = {
    Part.SLOTS: "more slots, until the cores or the database's connections are used up",
    Part.NODES: "more BEDS nodes",
    Part.CLIENTS: "more client processes",
    Part.RABBITMQ: "classic queues for reads; then a vhost on another RabbitMQ cluster for some of the templates",
    Part.LEADER: "classic queues for reads; then another vhost for some of the templates, so that two queues share",
    Part.RECORDS: "more admin nodes, without Prometheus; a stream for the logs",
    Part.DATABASE: "rel: replicas or Galera behind a proxy; rec: sharded collections",
    Part.NETWORK: "smaller bodies; then another RabbitMQ cluster",
    Part.MACHINE: "another machine",
}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure, and the machines of the growth table."""

    rounds: int
    events: int
    is_quick: bool
    cores: int
    node_slots: int
    wait: float


@dataclass(frozen=True)
class Broker:
    """One RabbitMQ system.

    Args:
        settings: of a client.
        members: its nodes.
        vhost: the one of BEDS.
        env: of a worker.
    """

    settings: Settings
    members: Sequence[RabbitMQ]
    vhost: str
    env: Mapping[str, str]

    @property
    def size(self) -> int:
        return len(self.members)

    def cpu_groups(self) -> dict[str, Sequence[psutil.Process]]:
        return {f"rabbitmq{n}": member.daemon.family() for n, member in enumerate(self.members)}

    def consumers(self, queue: str) -> int:
        member = self.members[0]
        url = f"{member.plan.amqp_url('worker').rpartition('/')[0]}/{self.vhost}"
        with contextlib.closing(connect(url)) as connection:
            return int(connection.channel().queue_declare(queue, passive=True).consumer_count)

    def octets(self) -> int:
        """Bytes to and from all clients, and between the members, as RabbitMQ counts them."""
        found = self.members[0].management("connections")
        total = sum(each.get("recv_oct", 0) + each.get("send_oct", 0) for each in found if each["vhost"] == self.vhost)
        for node in self.members[0].management("nodes"):
            for link in node.get("cluster_links", []):  # each link is in the list of both of its ends
                total += link["stats"]["send_bytes"] + link["stats"]["recv_bytes"]
        return int(total)

    def work_of(self, queue: str) -> list[tuple[int, int]]:
        """Erlang's measure of work on each member: in all, and in the busier of the queue's process and the log."""
        program = (
            "R = fun(P) -> case whereis(P) of undefined -> 0; Pid -> element(2, process_info(Pid, reductions)) end end,"
            f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{self.vhost}">>, queue, <<"{queue}">>)),'
            "{Name, _} = amqqueue:get_pid(Q), {All, _} = erlang:statistics(reductions),"
            "{All, R(Name), R(ra_log_wal)}."
        )
        found = [[int(each) for each in re.findall(r"\d+", m.control("eval", program))] for m in self.members]
        return [(every, max(leader, log)) for every, leader, log in found]


@dataclass(frozen=True)
class Window:
    """One measurement of a cost: CPU seconds and bytes per event, and events a second."""

    cpu: dict[str, float]
    wire: float
    rate: float
    leader: float | None


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
                    # The first round counts the work of processes, which takes a second for each member.
                    queue = None if number else QUEUES[name]
                    found[broker.size].append(_window(broker, client, calls, groups, idle[broker.size], queue))
                    samples.clear_created()
            report(f"costs: round {number + 1} of {plan.rounds}")
    return {name: {size: _costs(of) for size, of in found.items()} for name, found in windows.items()}


def _window(
    broker: Broker, client: Client, calls: Sequence[Call], groups: Groups, idle: Mapping[str, float], queue: str | None
) -> Window:
    worked = broker.work_of(queue) if queue else []
    octets = broker.octets()
    before, begun = cpu_seconds(groups), time.perf_counter()
    client.call_many(calls, timeout=DEADLINE)
    seconds = time.perf_counter() - begun
    time.sleep(SETTLE_SECONDS)
    after, all_seconds = cpu_seconds(groups), time.perf_counter() - begun
    wire = (broker.octets() - octets) / len(calls)
    cpu = {name: max(0.0, used - before[name] - idle[name] * all_seconds) / len(calls) for name, used in after.items()}
    leader = None
    if queue:
        work = zip(worked, broker.work_of(queue), strict=True)
        shares = [(own - own_before) / (every - every_before) for (every_before, own_before), (every, own) in work]
        leader = max(share * cpu[f"rabbitmq{n}"] for n, share in enumerate(shares))
    return Window(cpu, wire, len(calls) / seconds, leader)


def _costs(of: Sequence[Window]) -> Costs:
    # The means of CPU time: the kernel counts it in steps of 10 ms.
    cpu = {name: statistics.mean(window.cpu[name] for window in of) for name in of[0].cpu}
    return Costs(
        client=cpu["client"],
        node=cpu["node"],
        rabbitmq=sum(used for name, used in cpu.items() if name.startswith("rabbitmq")),
        records=cpu["records"],
        database=cpu["mariadb"] + cpu["mongodb"],
        leader=max(window.leader for window in of if window.leader is not None),
        service=1 / statistics.median(window.rate for window in of),
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
                            rate = predict(costs[broker.size], _shared(broker.size, nodes, wait)).rate
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


def _shared(rabbitmq: int, nodes: int, wait: float, others: float = 0.0) -> System:
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


def _of_cluster(settings: Settings, members: Sequence[Member]) -> Broker:
    ports = ",127.0.0.1:".join(str(member.plan.amqp_port) for member in members)
    passwords = members[0].plan.passwords
    app, own = (
        f"amqp://beds_{user}:{quote(passwords[f'amqp_{user}'])}@127.0.0.1:{ports}/{CLUSTER_VHOST}"
        for user in ("app", "worker")
    )
    amqp = settings.amqp.model_copy(update={"url": SecretStr(app), "worker_url": SecretStr(own)})
    env = {"BEDS_AMQP__URL": app, "BEDS_AMQP__WORKER_URL": own}
    return Broker(settings.model_copy(update={"amqp": amqp}), members, CLUSTER_VHOST, env)


# --- The result ------------------------------------------------------------------------------------------------------


def run(plan: Plan, report: Report) -> dict[str, Any]:
    with ready_site(report, is_quick=plan.is_quick) as site, contextlib.ExitStack() as until_the_end:
        stack = Stack(ROOT / ".beds")
        report("three more RabbitMQ nodes start")
        members = until_the_end.enter_context(running_cluster(stack))
        brokers = [
            Broker(site.settings, [stack.rabbitmq], VHOST, {}),
            _of_cluster(site.settings, members),
        ]
        own = until_the_end.enter_context(contextlib.closing(Objects.of_brokers(site.settings)))
        samples = Samples(own, site.dba)
        until_the_end.callback(samples.clear)
        samples.seed()
        costs = measure_costs(brokers, samples, plan, report)
        rates = measure_rates(brokers, costs["wait-rel"], plan, report)
    return {
        "plan": asdict(plan),
        "cores": psutil.cpu_count(),
        "costs": {name: {size: asdict(each) for size, each in of.items()} for name, of in costs.items()},
        "check": list(_checked(rates, costs["wait-rel"])),
        "growth": list(grown({name: of[3] for name, of in costs.items()}, plan)),
    }


def _checked(rates: Rates, costs: Mapping[int, Costs]) -> Iterator[dict[str, Any]]:
    """Measured and predicted rates; the prediction has the cores that others left."""
    for (size, nodes, wait), of in rates.items():
        others = statistics.median(rate.others for rate in of)
        prediction = predict(costs[size], _shared(size, nodes, wait, others))
        measured = statistics.median(rate.per_second for rate in of)
        single = rates[1, nodes, wait]
        yield {
            "rabbitmq": size,
            "nodes": nodes,
            "wait_ms": wait * 1000,
            "measured": measured,
            "lowest": min(rate.per_second for rate in of),
            "highest": max(rate.per_second for rate in of),
            "others": others,
            "predicted": prediction.rate,
            "limit": prediction.part.value,
            "ratio": measured / prediction.rate,
            "to_single": statistics.median(a.per_second / b.per_second for a, b in zip(of, single, strict=True)),
        }


def grown(costs: Mapping[str, Costs], plan: Plan) -> Iterator[dict[str, Any]]:
    """Rates of systems whose parts have machines of their own, with three RabbitMQ machines and one database."""
    for name in ("fetch-rel", "create-rel", "fetch-rec", "create-rec"):
        for wait in (0.0, plan.wait):
            for nodes in SIZES:
                system = System(
                    nodes=nodes,
                    slots=plan.node_slots,
                    wait=wait,
                    cores=plan.cores,
                    clients=nodes * plan.cores,
                    rabbitmq=3,
                )
                prediction = predict(costs[name], system)
                yield {
                    "operation": name,
                    "wait_ms": wait * 1000,
                    "nodes": nodes,
                    "slots": nodes * plan.node_slots,
                    "per_second": prediction.rate,
                    "limit": prediction.part.value,
                    "remedy": REMEDIES[prediction.part],
                    "needed": {part.value: count for part, count in needed(costs[name], system).items()},
                }


def print_tables(found: Mapping[str, Any]) -> None:
    plan = found["plan"]
    print(f"\nCosts of one event: {plan['rounds']} rounds of {plan['events']} events; {found['cores']} cores")
    parts = ("client", "node", "rabbitmq", "records", "database")
    print(f"{'':18}{'RabbitMQ':>9}" + "".join(f"{part:>10}" for part in (*parts, "sum"))
          + f"{'leader':>9}{'in a slot':>11}{'bytes':>8}")  # fmt: skip
    print(f"{'':18}{'nodes':>9}{'CPU ms':>10}{'':50}{'CPU ms':>9}{'ms':>11}")
    for name, of in found["costs"].items():
        for size, each in of.items():
            cpu = [each[part] for part in parts]
            print(f"{NAMES[name]:18}{size:>9}" + "".join(f"{used * 1000:>10.2f}" for used in (*cpu, sum(cpu)))
                  + f"{each['leader'] * 1000:>9.3f}{each['service'] * 1000:>11.2f}{each['wire']:>8,.0f}")  # fmt: skip

    print(f"\nReads a second: BEDS nodes with {SLOTS} slots each; medians, lowest and highest of the rounds")
    print(f"{'wait':>7}{'BEDS':>6}{'RabbitMQ':>10}{'measured':>10}{'':>17}{'predicted':>11}{'ratio':>7}"
          f"{'÷ single':>10}{'others':>8}  limit")  # fmt: skip
    for each in found["check"]:
        spread = f"({each['lowest']:,.0f}–{each['highest']:,.0f})"
        print(f"{each['wait_ms']:>4.0f} ms{each['nodes']:>6}{each['rabbitmq']:>10}{each['measured']:>10,.0f}"
              f"{spread:>17}{each['predicted']:>11,.0f}{each['ratio']:>7.2f}{each['to_single']:>10.2f}"
              f"{each['others']:>8.2f}  {each['limit']}")  # fmt: skip

    print(f"\nGrowth on machines of {plan['cores']} cores, {plan['node_slots']} slots for the queue on each BEDS node, "
          "three RabbitMQ machines, one database")  # fmt: skip
    print(
        f"{'':16}{'wait':>7}{'nodes':>7}{'slots':>7}{'events/s':>10}  {'first limit':24}until the nodes are the limit"
    )
    for each in found["growth"]:
        more = "; ".join(f"{count} × {part}" for part, count in each["needed"].items())
        print(f"{NAMES[each['operation']]:16}{each['wait_ms']:>4.0f} ms{each['nodes']:>7}{each['slots']:>7,}"
              f"{each['per_second']:>10,.0f}  {each['limit']:24}{more}")  # fmt: skip
    print("\nRemedies")
    met = {each["limit"] for each in found["growth"]}
    for part, remedy in REMEDIES.items():
        if part.value in met:
            print(f"  {part.value:24}{remedy}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="5, or 1 with --quick")
    parser.add_argument("--events", type=int, help="for each cost: 600, or 200 with --quick")
    parser.add_argument("--cores", type=int, default=8, help="of each machine in the growth table")
    parser.add_argument("--node-slots", type=int, default=16, help="of each BEDS node in the growth table")
    parser.add_argument("--wait", type=float, default=20, help="milliseconds in the database, in the growth table")
    parser.add_argument("--quick", action="store_true", help="one round, fewer events")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args()
    plan = Plan(
        rounds=options.rounds or (1 if options.quick else 5),
        events=options.events or (200 if options.quick else 600),
        is_quick=options.quick,
        cores=options.cores,
        node_slots=options.node_slots,
        wait=options.wait / 1000,
    )
    found = run(plan, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print_tables(found)


if __name__ == "__main__":
    main()

"""Predicts how BEDS grows from the cost of one event, and checks the prediction against one to three BEDS nodes.

    costs    CPU time of each part, and bytes, for one event; with one RabbitMQ node, and with three
    check    measured and predicted rates of 1, 2 and 3 BEDS nodes, with waits of 0, 20 and 250 ms in MariaDB
    growth   predicted rates of 1 to 100 BEDS nodes on machines of their own, the first limit, and the remedy

Both RabbitMQ systems run at the same time and are used by turns; rates are medians over the rounds. The check takes the
cores that other programs use meanwhile off those of the machine. All quorum queues; reads wait in `SLEEP()`.

    python -m bench.growth                              about fifteen minutes on two cores
    python -m bench.growth --quick                      one round, fewer events: about four minutes
    python -m bench.growth --cores 16 --node-slots 64   the growth of larger machines
    python -m bench.growth --json > growth.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from beds.stack.stack import Stack
from bench.growth_broker import Broker, of_cluster
from bench.growth_measures import SLOTS, Plan, Rates, Report, measure_costs, measure_rates, shared_system
from bench.growth_model import Costs, Part, System, needed, predict
from bench.objects import Objects, Samples
from bench.rabbitmq_cluster import running_cluster
from bench.scaling import ready_site
from bench.side import ROOT, VHOST

NAMES = {
    "fetch-rel": "read, MariaDB",
    "create-rel": "write, MariaDB",
    "fetch-rec": "read, MongoDB",
    "create-rec": "write, MongoDB",
    "wait-rel": "SLEEP(0), MariaDB",
}
SIZES = (1, 3, 10, 30, 100)
REMEDIES = {
    Part.SLOTS: "more BEDS nodes, or more slots while cores and connections of the database are left",
    Part.NODES: "more BEDS nodes",
    Part.CLIENTS: "more client processes",
    Part.RABBITMQ: "classic queues for reads; then a second system with its own RabbitMQ for some of the templates",
    Part.LEADER: "classic queues for reads; then a second system in another vhost for some of the templates",
    Part.RECORDS: "more admin nodes; fewer and larger messages of records",
    Part.DATABASE: "a larger machine; then Galera or replicas behind a proxy, sharded collections, or a second system",
    Part.NETWORK: "smaller bodies and pages; then a second RabbitMQ cluster",
    Part.MACHINE: "another machine",
}
"""What to do when a part is the limit."""
NEEDED = {
    Part.CLIENTS: "× the client processes",
    Part.RABBITMQ: "RabbitMQ clusters",
    Part.LEADER: "queues",
    Part.RECORDS: "admin nodes",
    Part.DATABASE: "databases",
    Part.NETWORK: "RabbitMQ clusters for the network",
}
"""What more than one of a part is called."""


@dataclass(frozen=True)
class Machines:
    """The machines of the growth table.

    Args:
        cores: of each machine.
        slots: of each BEDS node, for the queue.
        wait: seconds in the database.
    """

    cores: int
    slots: int
    wait: float


def run(plan: Plan, machines: Machines, report: Report) -> dict[str, Any]:
    with ready_site(report, is_quick=plan.is_quick) as site, contextlib.ExitStack() as until_the_end:
        stack = Stack(ROOT / ".beds")
        report("three more RabbitMQ nodes start")
        members = until_the_end.enter_context(running_cluster(stack))
        brokers = [
            Broker(site.settings, [stack.rabbitmq], VHOST, {}),
            of_cluster(site.settings, members),
        ]
        own = until_the_end.enter_context(contextlib.closing(Objects.of_brokers(site.settings)))
        samples = Samples(own, site.dba)
        until_the_end.callback(samples.clear)
        samples.seed()
        costs = measure_costs(brokers, samples, plan, report)
        rates = measure_rates(brokers, costs["wait-rel"], plan, report)
    return {
        "plan": asdict(plan),
        "machines": asdict(machines),
        "cores": psutil.cpu_count(),
        "costs": {name: {size: asdict(each) for size, each in of.items()} for name, of in costs.items()},
        "check": list(_checked(rates, costs["wait-rel"])),
        "growth": list(grown({name: of[3] for name, of in costs.items()}, machines)),
    }


def _checked(rates: Rates, costs: Mapping[int, Costs]) -> Iterator[dict[str, Any]]:
    """Measured and predicted rates; the prediction has the cores that others left."""
    for (size, nodes, wait), of in rates.items():
        others = statistics.median(rate.others for rate in of)
        prediction = predict(costs[size], shared_system(size, nodes, wait, others))
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


def grown(costs: Mapping[str, Costs], machines: Machines) -> Iterator[dict[str, Any]]:
    """Rates of systems whose parts have machines of their own, with three RabbitMQ machines and one database."""
    for name in ("fetch-rel", "create-rel", "fetch-rec", "create-rec"):
        for wait in (0.0, machines.wait):
            for nodes in SIZES:
                system = System(
                    nodes=nodes,
                    slots=machines.slots,
                    wait=wait,
                    cores=machines.cores,
                    clients=nodes * machines.cores,
                    rabbitmq=3,
                )
                prediction = predict(costs[name], system)
                yield {
                    "operation": name,
                    "wait_ms": wait * 1000,
                    "nodes": nodes,
                    "slots": nodes * machines.slots,
                    "per_second": prediction.rate,
                    "limit": prediction.part.value,
                    "remedy": REMEDIES[prediction.part],
                    "needed": {part.value: count for part, count in needed(costs[name], system).items()},
                }


def print_tables(found: Mapping[str, Any]) -> None:
    plan, machines = found["plan"], found["machines"]
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

    print(f"\nGrowth on machines of {machines['cores']} cores; {machines['slots']} slots for the queue on each BEDS "
          "node; three RabbitMQ machines, one database, one admin node")  # fmt: skip
    print(f"{'':16}{'wait':>7}{'nodes':>7}{'slots':>8}{'events/s':>10}  {'first limit':23}needed to use all nodes")
    for each in found["growth"]:
        more = ", ".join(f"{count} {NEEDED[Part(part)]}" for part, count in each["needed"].items())
        print(f"{NAMES[each['operation']]:16}{each['wait_ms']:>4.0f} ms{each['nodes']:>7}{each['slots']:>8,}"
              f"{each['per_second']:>10,.0f}  {each['limit']:23}{more}")  # fmt: skip
    print("\nRemedies")
    met = {each["limit"] for each in found["growth"]}
    for part, remedy in REMEDIES.items():
        if part.value in met:
            print(f"  {part.value:23}{remedy}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--events", type=int, help="for each cost: 600, or 200 with --quick")
    parser.add_argument("--cores", type=int, default=8, help="of each machine in the growth table")
    parser.add_argument("--node-slots", type=int, default=16, help="of each BEDS node in the growth table")
    parser.add_argument("--wait", type=float, default=20, help="milliseconds in the database, in the growth table")
    parser.add_argument("--quick", action="store_true", help="one round, fewer events")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args()
    plan = Plan(
        rounds=options.rounds or (1 if options.quick else 3),
        events=options.events or (200 if options.quick else 600),
        is_quick=options.quick,
    )
    machines = Machines(options.cores, options.node_slots, options.wait / 1000)
    found = run(plan, machines, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print_tables(found)


if __name__ == "__main__":
    main()

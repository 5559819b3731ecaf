"""Compares BEDS with its peers: round trips, pipelined rates and CPU time of fetches, creates and updates.

Each operation runs in MariaDB (`rel`) and in MongoDB (`rec`).

All sides call the same named objects on the same servers, and have as many processes that execute: `beds`; `celery`, an
ordinary Celery application; `celery-duties`, whose writes enter a ledger and are audited, as those of BEDS;
`faststream`; `amqp`, py-amqp alone, which is the practical limit; and `driver`, the drivers in the measuring process,
which is the floor. Sides run by turns, and the ratios are medians over the pairs, so that a noisy machine disturbs all
alike. A pair is one run of each side.

    make bench-quick                      or, with the environment active:
    python -m bench.operations [--pairs 5] [--calls 300] [--slots 2] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from beds.stack.stack import Stack
from bench.objects import OPERATIONS, Objects, Samples
from bench.side import own_vhost, ready_stack
from bench.sides import SIDES, Bench, Side, check_side, lacking

PIPELINED = 4
"""Pipelined calls for each round trip."""
WARM_UP = 20
"""Calls of each operation before the first pair."""
SETTLE_SECONDS = 0.6
"""Wait after the pipelined calls. Its CPU time counts, since BEDS and Celery send some records only then."""
QUICK_PAIRS, QUICK_CALLS = 3, 30
GROUPS = ("client", "workers", "rabbitmq", "mariadb", "mongodb")

Groups = Mapping[str, Sequence[psutil.Process]]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One run of one operation on one side: the round trips and CPU time per pipelined call in milliseconds."""

    round_trips: list[float]
    per_second: float
    cpu: dict[str, float]

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.round_trips, n=100, method="inclusive")[percent - 1]


def cpu_seconds(groups: Groups) -> dict[str, float]:
    """The CPU time that each group of processes has used, with their children."""
    return {name: sum(map(_cpu_of, processes)) for name, processes in groups.items()}


def _cpu_of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def groups_of(side: Side, servers: Groups) -> Groups:
    family = [process for parent in side.workers for process in (parent, *parent.children(recursive=True))]
    return {"client": [psutil.Process()], "workers": family, **servers}


def measure(side: Side, operation: str, samples: Samples, calls: int, servers: Groups) -> Run:
    """Round trips one after the other, then many calls at once."""
    round_trips = []
    for data in samples.several(operation, calls):
        begun = time.perf_counter()
        side.one(operation, data)
        round_trips.append((time.perf_counter() - begun) * 1000)
    batch = samples.several(operation, calls * PIPELINED)
    groups = groups_of(side, servers)
    gc.collect()
    before = cpu_seconds(groups)
    begun = time.perf_counter()
    side.many(operation, batch)
    seconds = time.perf_counter() - begun
    time.sleep(SETTLE_SECONDS)
    after = cpu_seconds(groups)
    cpu = {name: (after[name] - before[name]) * 1000 / len(batch) for name in GROUPS}
    samples.clear_created()
    return Run(round_trips, len(batch) / seconds, cpu)


Runs = dict[str, dict[str, list[Run]]]
"""By operation and side: a run for each pair."""


@dataclass(frozen=True)
class Plan:
    pairs: int
    calls: int
    slots: int
    operations: Sequence[str]
    sides: Sequence[str]


def compare(plan: Plan, report: Report) -> dict[str, Any]:
    """Run all sides `pairs` times, by turns, and return all figures."""
    stack, settings = ready_stack(report)
    with own_vhost(settings, stack) as own, contextlib.ExitStack() as until_the_end:
        brokers = until_the_end.enter_context(contextlib.closing(Objects.of_brokers(settings)))
        dba = until_the_end.enter_context(contextlib.closing(Objects.of_dba(settings)))
        samples = Samples(brokers, dba)
        until_the_end.callback(samples.clear)
        samples.seed()
        bench = Bench(own, plan.slots, brokers, dba)
        sides = {name: until_the_end.enter_context(SIDES[name](bench)) for name in plan.sides}
        for name, side in sides.items():
            check_side(side, samples, plan.operations)
            report(f"{name}: every operation has its effect")
        servers = _servers(stack)
        for operation in plan.operations:
            for side in sides.values():
                side.many(operation, samples.several(operation, WARM_UP))
        runs: Runs = {operation: {name: [] for name in sides} for operation in plan.operations}
        for number in range(plan.pairs):
            for operation, found in runs.items():
                for name in reversed(sides) if number % 2 else sides:
                    found[name].append(measure(sides[name], operation, samples, plan.calls, servers))
            report(f"pair {number + 1} of {plan.pairs}")
    return summary(runs, plan)


def _servers(stack: Stack) -> Groups:
    return {server.name: server.daemon.family() for server in stack.servers}


def summary(runs: Runs, plan: Plan) -> dict[str, Any]:
    return {
        "pairs": plan.pairs,
        "calls": plan.calls,
        "pipelined": plan.calls * PIPELINED,
        "slots": plan.slots,
        "cores": psutil.cpu_count(),
        "operations": {
            operation: {
                "sides": {name: _figures(of) for name, of in found.items()},
                "ratios": {
                    name: _ratios(found["beds"], of) for name, of in found.items() if name != "beds" and "beds" in found
                },
            }
            for operation, found in runs.items()
        },
    }


def _figures(of: Sequence[Run]) -> dict[str, Any]:
    def spread(values: Sequence[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    # The means over all pairs: the kernel counts CPU time in steps of 10 ms.
    cpu = {name: statistics.mean(run.cpu[name] for run in of) for name in GROUPS}
    return {
        "p50_ms": spread([run.percentile(50) for run in of]),
        "p99_ms": spread([run.percentile(99) for run in of]),
        "per_second": spread([run.per_second for run in of]),
        "cpu_ms": {**cpu, "total": sum(cpu.values())},
    }


def _ratios(beds: Sequence[Run], peer: Sequence[Run]) -> dict[str, float]:
    """BEDS ÷ the peer: medians over the pairs."""
    pairs = list(zip(beds, peer, strict=True))
    return {
        "round_trip": statistics.median(b.percentile(50) / p.percentile(50) for b, p in pairs),
        "throughput": statistics.median(b.per_second / p.per_second for b, p in pairs),
    }


def print_table(found: dict[str, Any]) -> None:
    print(f"\n{found['pairs']} pairs of {found['calls']} round trips and {found['pipelined']} pipelined calls; "
          f"{found['slots']} slots each; {found['cores']} cores; medians over the pairs")  # fmt: skip
    for operation, of in found["operations"].items():
        print(f"\n{operation:14}{'round trip, ms':>14}{'pipelined':>15}{'CPU ms per pipelined call':>56}"
              f"{'BEDS ÷ peer':>17}")  # fmt: skip
        print(f"{'':14}{'p50':>7}{'p99':>7}{'calls/s':>15}" + "".join(f"{name:>9}" for name in (*GROUPS, "total"))
              + f"{'p50':>11}{'calls/s':>9}")  # fmt: skip
        for name, figures in of["sides"].items():
            print(_line(name, figures, of["ratios"].get(name)))


def _line(name: str, figures: dict[str, Any], ratios: Mapping[str, float] | None) -> str:
    cpu = "".join(f"{figures['cpu_ms'][group]:>9.2f}" for group in (*GROUPS, "total"))
    line = (f"{name:14}{figures['p50_ms']['median']:>7.2f}{figures['p99_ms']['median']:>7.1f}"
            f"{figures['per_second']['median']:>15,.0f}{cpu}")  # fmt: skip
    return line + (f"{ratios['round_trip']:>11.2f}{ratios['throughput']:>9.2f}" if ratios else "")


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of names with commas between them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return list(dict.fromkeys(names))

    return parse


def plan_of(arguments: Sequence[str] | None, report: Report) -> tuple[Plan, bool]:
    """The plan of a command line, and whether to print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--calls", type=int, help="round trips in each run; four times as many pipelined")
    parser.add_argument("--slots", type=int, default=2, help="processes of each side that execute operations")
    parser.add_argument("--operations", type=_names(OPERATIONS), default=list(OPERATIONS), help=",".join(OPERATIONS))
    parser.add_argument("--sides", type=_names(list(SIDES)), default=list(SIDES), help=",".join(SIDES))
    parser.add_argument("--quick", action="store_true", help="fewer pairs and calls: about three minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args(arguments)
    left_out = {side: why for side in options.sides if (why := lacking(side))}
    for side, why in left_out.items():
        report(f"{side}: {why}")
    plan = Plan(
        pairs=options.pairs or (QUICK_PAIRS if options.quick else 5),
        calls=options.calls or (QUICK_CALLS if options.quick else 300),
        slots=options.slots,
        operations=options.operations,
        sides=[side for side in options.sides if side not in left_out],
    )
    return plan, options.json


def main() -> None:
    def report(line: str) -> None:
        print(line, file=sys.stderr)

    plan, as_json = plan_of(None, report)
    found = compare(plan, report)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_table(found)


if __name__ == "__main__":
    main()

"""Measures the app-server node: a fetch by key and a create over HTTP, beside its peers, and under overload.

The sides, by turns in one run, each from 1, 16, 64 and 256 connections in a closed loop: `node`, the app server in
front of RabbitMQ and BEDS's workers; `aio`, `beds.aio.call` in the measuring process with as many calls in flight, on
the same workers; `direct`, a hand-written service over FastAPI, asyncmy and pymongo that calls the same stored objects
without a broker; `eve`, python-eve, which has documents alone; and `stub`, the app server over a transport that replies
at once, which is what one core of it can carry. Ratios are medians over the pairs; a pair is one run of each side.

Then ten times the node's best rate is offered in an open loop, by a caller that the node limits (503) and by one whose
role does (429): what it still carries, how fast it refuses, its memory and its connections. Last, its memory over many
requests.

The peers run in environments of their own: `pip install 'beds[bench]'` there. A peer that is missing is left out.

    python -m bench.http [--pairs 5] [--seconds 3] [--direct PYTHON] [--eve PYTHON] [--long 20000] [--quick] [--json]
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
import uvloop

from bench.http_load import Tally, closed_loop, open_loop, percentile
from bench.http_sides import (
    CREATE_REC,
    FETCH_REC,
    FETCH_REL,
    HOST,
    NEEDED,
    SIDES,
    Bench,
    Side,
    lacking,
    seeded_airports,
    workers,
)
from bench.objects import CREATED, Objects, Samples
from bench.operations import Groups, cpu_seconds
from bench.side import own_vhost, ready_stack, wait_until

OPERATIONS = (FETCH_REL, FETCH_REC, CREATE_REC)
CONNECTIONS = (1, 16, 64, 256)
GROUPS = ("client", "server", "workers", "rabbitmq", "mariadb", "mongodb")
SETTLE_SECONDS = 0.3
OVERLOAD = 10
"""How many times its best rate the node is offered."""
OVERLOAD_CONNECTIONS = 1500
REFUSING = {"all": "the node's max_in_flight", "few": "the role's concurrency"}
LONG_CONNECTIONS = 64
LONG_STEPS = 10
MIB = 2**20

Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    pairs: int
    seconds: float
    slots: int
    processes: int
    operations: Sequence[str]
    connections: Sequence[int]
    sides: Sequence[str]
    overload_seconds: float
    long: int
    pythons: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """One run: requests a second, times in milliseconds, and CPU milliseconds per request."""

    per_second: float
    p50: float
    p99: float
    cpu: dict[str, float]


Runs = dict[tuple[str, int], dict[str, list[Run]]]
"""By operation and connections, and by side: a run for each pair."""


@dataclass(frozen=True)
class Stage:
    """The sides, started, and what is needed to measure them."""

    sides: dict[str, Side]
    servers: Groups
    worker: psutil.Process
    dba: Objects
    samples: Samples

    def measure(self, name: str, operation: str, connections: int, seconds: float) -> Run:
        side = self.sides[name]
        family = (self.worker, *self.worker.children(recursive=True))
        groups = {"client": [psutil.Process()], "server": side.server, "workers": family, **self.servers}
        gc.collect()
        before = cpu_seconds(groups)
        tally = side.run(operation, connections, seconds)
        time.sleep(SETTLE_SECONDS)
        after = cpu_seconds(groups)
        tally.check(f"{name}, {operation} from {connections} connections")
        if operation == CREATE_REC and name != "stub":
            self._check_created(name, tally)
        cpu = {group: (after[group] - before[group]) * 1000 / tally.all_requests for group in GROUPS}
        return Run(tally.per_second, percentile(tally.good, 50), percentile(tally.good, 99), cpu)

    def _check_created(self, name: str, tally: Tally) -> None:
        """Raises AssertionError: not every create that succeeded has left its document."""
        found = self.dba.rec.notices.count_documents({"airport": CREATED + "Z"})
        self.samples.clear_created()
        if found != tally.all_requests:
            raise AssertionError(f"{name}: {tally.all_requests} creates left {found} documents")


def compare(plan: Plan, report: Report) -> dict[str, Any]:
    """Run all sides `pairs` times by turns, then the overload and the long run; return all figures."""
    stack, settings = ready_stack(report)
    with own_vhost(settings, stack) as own, contextlib.ExitStack() as until_the_end:
        brokers = until_the_end.enter_context(contextlib.closing(Objects.of_brokers(settings)))
        dba = until_the_end.enter_context(contextlib.closing(Objects.of_dba(settings)))
        samples = Samples(brokers, dba)
        airports = seeded_airports(dba)
        until_the_end.callback(samples.clear)
        samples.seed()
        bench = Bench(own, plan.slots, plan.processes, plan.pythons, samples, airports)
        worker = until_the_end.enter_context(workers(bench))
        sides = {name: until_the_end.enter_context(SIDES[name](bench)) for name in plan.sides}
        report(f"started: {', '.join(sides)}")
        servers = {server.name: server.daemon.family() for server in stack.servers}
        stage = Stage(sides, servers, worker, dba, samples)
        runs = _by_turns(stage, plan, report)
        found = summary(runs, plan)
        if "node" in sides:
            if plan.overload_seconds:
                found["overload"] = _overload(sides["node"], plan, report)
            if plan.long:
                found["long"] = _long(sides["node"], plan.long, report)
        return found


def _by_turns(stage: Stage, plan: Plan, report: Report) -> Runs:
    runs: Runs = {(operation, n): {} for operation in plan.operations for n in plan.connections}
    for name, side in stage.sides.items():
        for operation in (each for each in plan.operations if each in side.operations):
            stage.measure(name, operation, 4, 0.3)
    for number in range(plan.pairs):
        for (operation, connections), found in runs.items():
            for name in reversed(stage.sides) if number % 2 else stage.sides:
                if operation in stage.sides[name].operations:
                    run = stage.measure(name, operation, connections, plan.seconds)
                    found.setdefault(name, []).append(run)
        report(f"pair {number + 1} of {plan.pairs}")
    return runs


def _overload(node: Side, plan: Plan, report: Report) -> list[dict[str, Any]]:
    """Ten times the load that the node can carry, for each way of refusing."""
    found = []
    process = node.server[0]
    address = (HOST, node.port)
    for role, limit in REFUSING.items():
        make = node.make(FETCH_REL, role)
        best = uvloop.run(closed_loop(address, make, 48, plan.seconds))
        best.check("the best rate")
        before = process.memory_info().rss
        offered = best.per_second * OVERLOAD
        tally = uvloop.run(open_loop(address, make, offered, plan.overload_seconds, OVERLOAD_CONNECTIONS))
        memory = process.memory_info().rss
        begun = time.perf_counter()
        wait_until(lambda: not _connections(process, node.port))
        after = uvloop.run(closed_loop(address, make, 48, plan.seconds))
        after.check("after the overload")
        found.append({
            "limit": limit,
            "best_per_second": best.per_second,
            "offered_per_second": offered,
            "sent": tally.all_requests,
            "goodput": tally.good_in_time / tally.seconds / best.per_second,
            "good_p50_ms": percentile(tally.good, 50),
            "refused": {str(s): n for s, n in tally.statuses.items() if s in (429, 503)},
            "other": {str(s): n for s, n in tally.statuses.items() if s not in (200, 429, 503)},
            "refused_p50_ms": percentile(tally.refused, 50),
            "refused_p99_ms": percentile(tally.refused, 99),
            "broken": tally.broken,
            "held_back": tally.held_back,
            "connections": tally.connections,
            "drained_seconds": time.perf_counter() - begun,
            "rss_before_mib": before / MIB,
            "rss_after_mib": memory / MIB,
            "afterwards": after.per_second / best.per_second,
        })  # fmt: skip
        report(f"overload: {limit}")
    return found


def _connections(process: psutil.Process, port: int) -> int:
    return sum(c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED for c in process.net_connections("tcp"))


def _long(node: Side, requests: int, report: Report) -> dict[str, Any]:
    """The node's memory while many fetches pass."""
    process = node.server[0]
    make = node.make(FETCH_REL, "all")
    rss = [process.memory_info().rss / MIB]
    for step in range(LONG_STEPS):
        uvloop.run(closed_loop((HOST, node.port), make, LONG_CONNECTIONS, requests=requests // LONG_STEPS))
        rss.append(process.memory_info().rss / MIB)
        report(f"memory: {(step + 1) * requests // LONG_STEPS:,} requests, {rss[-1]:.1f} MiB")
    half = len(rss) // 2
    return {
        "requests": requests,
        "rss_mib": rss,
        "growth_mib": rss[-1] - rss[0],
        "second_half_bytes_per_request": (rss[-1] - rss[half]) * MIB / (requests / LONG_STEPS * (LONG_STEPS - half)),
    }


def summary(runs: Runs, plan: Plan) -> dict[str, Any]:
    return {
        "pairs": plan.pairs,
        "seconds": plan.seconds,
        "slots": plan.slots,
        "processes": plan.processes,
        "cores": psutil.cpu_count(),
        "runs": [
            {
                "operation": operation,
                "connections": connections,
                "sides": {name: _figures(of) for name, of in found.items()},
                "ratios": {name: _ratios(found["node"], of) for name, of in found.items()
                           if name != "node" and "node" in found},
            }
            for (operation, connections), found in runs.items()
        ],
    }  # fmt: skip


def _figures(of: Sequence[Run]) -> dict[str, Any]:
    def spread(values: Sequence[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    # The means over all pairs: the kernel counts CPU time in steps of 10 ms.
    cpu = {group: statistics.mean(run.cpu[group] for run in of) for group in GROUPS}
    return {
        "per_second": spread([run.per_second for run in of]),
        "p50_ms": spread([run.p50 for run in of]),
        "p99_ms": spread([run.p99 for run in of]),
        "cpu_ms": {**cpu, "total": sum(cpu.values())},
        "per_core_second": 1000 / cpu["server"] if cpu["server"] else None,
    }


def _ratios(node: Sequence[Run], peer: Sequence[Run]) -> dict[str, float]:
    """The node ÷ the peer, and by how many milliseconds it is slower: medians over the pairs."""
    pairs = list(zip(node, peer, strict=True))
    return {
        "throughput": statistics.median(n.per_second / p.per_second for n, p in pairs),
        "slower_ms": statistics.median(n.p50 - p.p50 for n, p in pairs),
    }


def print_tables(found: dict[str, Any]) -> None:
    print(f"\n{found['pairs']} pairs of {found['seconds']:g} s; {found['slots']} slots of BEDS, {found['processes']} "
          f"processes of each peer; {found['cores']} cores; medians over the pairs")  # fmt: skip
    for of in found["runs"]:
        _print_run(of)
    for each in found.get("overload", ()):
        _print_overload(each)
    if long := found.get("long"):
        first, *_, last = long["rss_mib"]
        print(f"\nmemory over {long['requests']:,} fetches from {LONG_CONNECTIONS} connections: {first:.1f} → "
              f"{last:.1f} MiB; {long['second_half_bytes_per_request']:.0f} bytes each in the second half")  # fmt: skip


def _print_run(of: dict[str, Any]) -> None:
    title = f"{of['operation']} × {of['connections']}"
    print(f"\n{title:18}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms per request':>60}{'of a':>10}"
          f"{'node ÷':>9}{'node −':>9}")  # fmt: skip
    print(f"{'':48}" + "".join(f"{name:>9}" for name in (*GROUPS, "total")) + f"{'core':>7}{'peer':>9}{'peer ms':>9}")
    for name, figures in of["sides"].items():
        ratios = of["ratios"].get(name)
        cpu = "".join(f"{figures['cpu_ms'][group]:>9.3f}" for group in (*GROUPS, "total"))
        core = f"{figures['per_core_second']:>7,.0f}" if figures["per_core_second"] else f"{'':7}"
        print(f"{name:18}{figures['per_second']['median']:>12,.0f}{figures['p50_ms']['median']:>9.2f}"
              f"{figures['p99_ms']['median']:>9.1f}{cpu}{core}"
              + (f"{ratios['throughput']:>9.2f}{ratios['slower_ms']:>+9.2f}" if ratios else ""))  # fmt: skip


def _print_overload(of: dict[str, Any]) -> None:
    print(f"\noverload, refused by {of['limit']}: {of['offered_per_second']:,.0f} requests/s offered, "
          f"{of['sent']:,} sent from {of['connections']:,} connections\n"
          f"  goodput {of['goodput']:.2f} of the best ({of['best_per_second']:,.0f}/s), p50 {of['good_p50_ms']:.0f} "
          f"ms; afterwards {of['afterwards']:.2f}\n"
          f"  refusals {of['refused']}, p50 {of['refused_p50_ms']:.1f} ms, p99 {of['refused_p99_ms']:.1f} ms; other "
          f"responses {of['other'] or 'none'}; {of['broken']} broken; {of['held_back']:,} not sent\n"
          f"  memory {of['rss_before_mib']:.1f} → {of['rss_after_mib']:.1f} MiB; all connections closed after "
          f"{of['drained_seconds']:.1f} s")  # fmt: skip


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
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--slots", type=int, default=2, help="processes that execute BEDS's operations")
    parser.add_argument("--processes", type=int, default=1, help="of each peer; the node has one")
    parser.add_argument("--operations", type=_names(OPERATIONS), default=list(OPERATIONS), help=",".join(OPERATIONS))
    parser.add_argument("--connections", type=lambda text: [int(n) for n in text.split(",")], default=list(CONNECTIONS))
    parser.add_argument("--sides", type=_names(list(SIDES)), default=list(SIDES), help=",".join(SIDES))
    parser.add_argument("--direct", default=sys.executable, help="the Python that has FastAPI and asyncmy")
    parser.add_argument("--eve", default=sys.executable, help="the Python that has Eve and gunicorn")
    parser.add_argument("--overload", type=float, help="seconds of each overload; 0 for none")
    parser.add_argument("--long", type=int, help="requests of the long run, in full 500000; 0 for none")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: about five minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args(arguments)
    pythons = {"direct": options.direct, "eve": options.eve}
    left_out = {side: why for side in options.sides if side in NEEDED and (why := lacking(side, pythons[side]))}
    for side, why in left_out.items():
        report(f"{side}: {why}")
    quick = options.quick
    plan = Plan(
        pairs=options.pairs or (2 if quick else 5),
        seconds=options.seconds or (1.0 if quick else 3.0),
        slots=options.slots,
        processes=options.processes,
        operations=options.operations,
        connections=options.connections,
        sides=[side for side in options.sides if side not in left_out],
        overload_seconds=options.overload if options.overload is not None else 3.0 if quick else 10.0,
        long=options.long if options.long is not None else 5_000 if quick else 20_000,
        pythons=pythons,
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
        print_tables(found)


if __name__ == "__main__":
    main()

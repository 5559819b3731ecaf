"""How BEDS compares with raw Celery: round trip and pipelined throughput of one named-object call.

Both sides run in the same minute on the same servers: one worker each with the same number of prefork slots, quorum
queues, late acknowledgement and task events, and the same procedure on MariaDB behind them. Runs alternate, and the
ratios are medians over the pairs, so that a noisy machine disturbs both sides alike.

    make bench                            or, with the environment active:
    python -m bench.rpc [--pairs 5] [--calls 500] [--slots 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import beds
from beds.client import Client
from beds.errors import DuplicateKey
from bench.side import DEADLINE, own_vhost, ready_stack, wait_until_answered, worker

CALL = ("Airlines", "by_carrier", {"carrier": "UA"})


@dataclass(frozen=True)
class Run:
    """One run of one side: each round trip in milliseconds, and pipelined operations per second."""

    round_trips: list[float]
    throughput: float

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.round_trips, n=100)[percent - 1]


def measure(one: Callable[[], Any], many: Callable[[int], Any], calls: int) -> Run:
    round_trips = []
    for _ in range(calls):
        begun = time.perf_counter()
        one()
        round_trips.append((time.perf_counter() - begun) * 1000)
    begun = time.perf_counter()
    many(calls * 4)
    return Run(round_trips, calls * 4 / (time.perf_counter() - begun))


def beds_side(client: Client) -> tuple[Callable[[], Any], Callable[[int], Any]]:
    template, using, args = CALL
    question = beds.Call("fetch_records", template, args, using)
    return (
        lambda: client.call("fetch_records", template, args, using=using),
        lambda count: client.call_many([question] * count, timeout=DEADLINE),
    )


def raw_side() -> tuple[Callable[[], Any], Callable[[int], Any]]:
    from bench.raw_worker import fetch

    def many(count: int) -> None:
        for result in [fetch.apply_async(CALL) for _ in range(count)]:
            result.get(timeout=DEADLINE)

    return lambda: fetch.apply_async(CALL).get(timeout=DEADLINE), many


def compare(pairs: int, calls: int, slots: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run both sides `pairs` times, by turns, and return all figures."""
    stack, settings = ready_stack(tell)
    size = ("-c", str(slots), "--prefetch-multiplier", "4")
    with (
        own_vhost(settings, stack) as own,
        worker("beds", "rel.read,rel.write", *size),
        worker("bench.raw_worker", "bench.raw", *size),
        Client(own) as client,
    ):
        sides = {"beds": beds_side(client), "celery": raw_side()}
        try:
            wait_until_answered(sides["beds"][0])
            client.call("create_record", "Airlines", {"carrier": "UA", "name": "United Air Lines Inc."})
        except DuplicateKey:
            pass  # the sample data are loaded
        wait_until_answered(sides["celery"][0])
        for one, many in sides.values():  # warm both
            measure(one, many, 20)
        runs: dict[str, list[Run]] = {"beds": [], "celery": []}
        for number in range(pairs):
            order = ("beds", "celery") if number % 2 else ("celery", "beds")
            for side in order:
                runs[side].append(measure(*sides[side], calls))
            tell(f"pair {number + 1} of {pairs}")
    return summary(runs, calls, slots)


def summary(runs: dict[str, list[Run]], calls: int, slots: int) -> dict[str, Any]:
    def figures(of: list[float]) -> dict[str, float]:
        return {"median": statistics.median(of), "min": min(of), "max": max(of)}

    def ratio(key: Callable[[Run], float]) -> float:
        return statistics.median(key(b) / key(c) for b, c in zip(runs["beds"], runs["celery"], strict=True))

    return {
        "calls": calls,
        "slots": slots,
        "pairs": len(runs["beds"]),
        **{
            side: {
                "p50_ms": figures([run.percentile(50) for run in of]),
                "p99_ms": figures([run.percentile(99) for run in of]),
                "per_second": figures([run.throughput for run in of]),
            }
            for side, of in runs.items()
        },
        "ratios": {
            "round_trip_vs_celery": ratio(lambda run: run.percentile(50)),
            "throughput_vs_celery": ratio(lambda run: run.throughput),
        },
    }


def print_table(found: dict[str, Any]) -> None:
    print(f"\n{found['pairs']} pairs of {found['calls']} round trips and {found['calls'] * 4} pipelined calls; "
          f"{found['slots']} slots each; median (min–max)\n")  # fmt: skip
    print(f"{'':8}{'p50 ms':>22}{'p99 ms':>24}{'operations/s':>24}")
    for side in ("beds", "celery"):
        cells = [
            f"{f['median']:.{digits}f} ({f['min']:.{digits}f}–{f['max']:.{digits}f})"
            for f, digits in (
                (found[side]["p50_ms"], 2), (found[side]["p99_ms"], 1), (found[side]["per_second"], 0),
            )
        ]  # fmt: skip
        print(f"{side:8}{cells[0]:>22}{cells[1]:>24}{cells[2]:>24}")
    ratios = found["ratios"]
    print(f"\nround trip {ratios['round_trip_vs_celery']:.2f} × raw Celery, "
          f"throughput {ratios['throughput_vs_celery']:.2f} × raw Celery")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=500, help="round trips in each run; four times as many pipelined")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args()
    found = compare(options.pairs, options.calls, options.slots, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print_table(found)


if __name__ == "__main__":
    main()

"""Measures the memory of a node, and its throughput by the number of slots and workers.

For pools of growing size, by turns: events per second of one short read (pipelined), and the unshared memory (USS) of
the worker's parent and of each slot. Then the same slots run in two workers instead of one.

    python -m bench.scaling [--calls 2000] [--rounds 2] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from beds.client.call import Call
from beds.client.client import Client
from bench.side import DEADLINE, own_vhost, ready_stack, wait_until_answered, worker

READ = Call("fetch_records", "Airlines", {"carrier": "UA"}, using="by_carrier")
LAYOUTS: tuple[tuple[int, ...], ...] = ((1,), (2,), (4,), (8,), (2, 2), (4, 4))
"""Slots of each worker that serves the queue."""
MB = 1_000_000


def memory() -> tuple[float, float]:
    """Unshared memory of a worker's parent, and of one slot, in MB: medians over all that run."""
    parents = [p for p in psutil.Process().children() if "worker" in " ".join(p.cmdline())]
    slots = [child for parent in parents for child in parent.children()]
    return (
        statistics.median(p.memory_full_info().uss for p in parents) / MB,
        statistics.median(p.memory_full_info().uss for p in slots) / MB,
    )


def measure(client: Client, layout: tuple[int, ...], calls: int) -> dict[str, float]:
    with contextlib.ExitStack() as stack:
        for slots in layout:
            stack.enter_context(worker("beds", "rel.read", "-c", str(slots), "--prefetch-multiplier", "4"))
        wait_until_answered(lambda: client.call_many([READ], timeout=5))
        time.sleep(2)  # the second worker may still be starting
        client.call_many([READ] * (calls // 4), timeout=DEADLINE)
        begun = time.perf_counter()
        client.call_many([READ] * calls, timeout=DEADLINE)
        seconds = time.perf_counter() - begun
        parent, slot = memory()
    return {"per_second": calls / seconds, "parent_mb": parent, "slot_mb": slot}


def compare(calls: int, rounds: int, report: Callable[[str], None]) -> dict[str, Any]:
    stack, settings = ready_stack(report)
    found: dict[tuple[int, ...], list[dict[str, float]]] = {layout: [] for layout in LAYOUTS}
    with own_vhost(settings, stack) as own, Client(own) as client:
        for number in range(rounds):
            for layout in LAYOUTS:
                found[layout].append(measure(client, layout, calls))
            report(f"round {number + 1} of {rounds}")
    medians = {
        "+".join(map(str, layout)): {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}
        for layout, runs in found.items()
    }
    rate = {slots: figures["per_second"] for slots, figures in medians.items()}
    ratios = {"two_slots_vs_one": rate["2"] / rate["1"], "two_workers_vs_one": rate["2+2"] / rate["4"]}
    return {"calls": calls, "cores": psutil.cpu_count(), "layouts": medians, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args()
    found = compare(options.calls, options.rounds, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"\n{found['cores']} cores\n\nslots   events/s   parent MB   slot MB")
    for slots, of in found["layouts"].items():
        print(f"{slots:8}{of['per_second']:>8,.0f}{of['parent_mb']:>12.0f}{of['slot_mb']:>10.0f}")
    print("\n" + "\n".join(f"{name}: {value:.2f}" for name, value in found["ratios"].items()))


if __name__ == "__main__":
    main()

"""Measures how BEDS grows: with slots, callers, the size of a body, stored tickets, templates, and events served.

Each series varies one quantity:

    slots      pipelined rate of a short read, and of one that waits 20 ms in MariaDB; memory of a worker
    callers    rate and p50 of reads by that many processes at once
    body       p50 of a read that sends and receives a text of that size
    tickets    p50 of submit-and-wait, and of the newest page of a user with that many stored tickets
    templates  start of a worker and of a client, memory of a slot, p50 of a read
    events     memory of a slot and of the client after that many reads

    python -m bench.scaling [--series slots,body] [--quick] [--json] [--plot docs/explanation/scaling.svg]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from MySQLdb import Error as MariaDBError

from beds.client.call import Call
from beds.client.client import Client
from beds.config import Settings
from beds.domain.identity import uuid7
from bench.objects import Objects
from bench.side import DEADLINE, ROOT, own_vhost, ready_stack, wait_until_answered, worker

READ = Call("fetch_records", "Airlines", {"carrier": "UA"}, using="by_carrier")
WAIT_SECONDS = 0.02
PREFETCH = "4"
MB = 1_000_000
MAX_BODY_BYTES = 4 * 1024 * 1024
KEPT = "bench: a stored ticket"
"""The summary by which stored tickets are found and deleted."""
OBJECTS = {
    "bench_wait": "CREATE OR REPLACE PROCEDURE bench_wait(IN p_seconds DOUBLE) SELECT SLEEP(p_seconds) AS slept",
    "bench_echo": "CREATE OR REPLACE PROCEDURE bench_echo(IN p_body LONGTEXT) SELECT p_body AS body",
}
TEMPLATE = """
[template]
name = "BenchObjects"
store = "rel"
key = "body"

[fetch.wait]
object = "bench_wait"
args.seconds = { type = "number" }
[fetch.echo]
object = "bench_echo"

[fields.body]
type = "string"
[fields.slept]
type = "integer"
"""

Point = dict[str, float]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Site:
    """Where the series run.

    Args:
        settings: of a client in the benchmark's vhost, with the templates in `schema`.
        dba: the drivers with the DBA's rights.
        schema: a copy of the project's schema, with the templates of the benchmark.
        is_quick: whether fewer events are enough.
    """

    settings: Settings
    dba: Objects
    schema: Path
    is_quick: bool

    def count(self, events: int) -> int:
        return max(20, events // 8) if self.is_quick else events


# --- The series ------------------------------------------------------------------------------------------------------


def by_slots(site: Site) -> Iterator[Point]:
    wait = Call("fetch_records", "BenchObjects", {"seconds": WAIT_SECONDS}, using="wait")
    for slots in (1, 2, 4, 8):
        with _read_workers(slots), Client(site.settings) as client:
            _wait_until_served(client)
            rate = _rate(client, READ, site.count(4000))
            waiting = _rate(client, wait, site.count(80 * slots))
            parent, slot = _memory()
            yield {
                "slots": slots,
                "per_second": rate,
                "waiting_per_second": waiting,
                "parent_mb": parent,
                "slot_mb": slot,
            }


def by_callers(site: Site) -> Iterator[Point]:
    with _read_workers(2):
        with Client(site.settings) as client:
            _wait_until_served(client)
        for callers in (1, 4, 16, 64):
            seconds = 2.0 if site.is_quick else 6.0
            context = multiprocessing.get_context("fork")
            start, answers = context.Barrier(callers), context.Queue()
            processes = [
                context.Process(target=_call_for, args=(site.settings, start, answers, seconds)) for _ in range(callers)
            ]
            for process in processes:
                process.start()
            try:
                times = [each for _ in processes for each in answers.get(timeout=DEADLINE)]
            finally:
                for process in processes:
                    process.terminate()
                    process.join(DEADLINE)
            yield {"callers": callers, "per_second": len(times) / seconds, "p50_ms": statistics.median(times)}


def _call_for(settings: Settings, start: Any, answers: Any, seconds: float) -> None:
    with Client(settings) as client:
        _wait_until_served(client)
        start.wait(DEADLINE)
        until = time.monotonic() + seconds
        times = []
        while time.monotonic() < until:
            times.append(_seconds(lambda: client.call_many([READ], timeout=DEADLINE)) * 1000)
        answers.put(times)


def by_body(site: Site) -> Iterator[Point]:
    with _read_workers(2), Client(site.settings) as client:
        _wait_until_served(client)
        for size in (100, 1_000, 10_000, 100_000, 1_000_000):
            calls = [Call("fetch_records", "BenchObjects", {"body": "x" * size}, using="echo")]
            yield {"bytes": size, "p50_ms": _p50(partial(client.call_many, calls, timeout=DEADLINE), site.count(240))}


def by_tickets(site: Site) -> Iterator[Point]:
    stored = site.dba.rec.msTickets
    kept = 0
    with _workers("rel.read,rec.read,calgon,operator", 4), Client(site.settings) as client:
        _wait_until_served(client)
        ticket = client.submit(READ.operation, READ.template, READ.data, using=READ.using)
        ticket.wait(DEADLINE)
        sample = stored.find_one({"_id.guid": ticket.guid})
        assert sample is not None
        try:
            for count in (1_000, 10_000, 100_000, 1_000_000):
                while kept < count:
                    rows = min(20_000, count - kept)
                    stored.insert_many([_kept(sample) for _ in range(rows)], ordered=False)
                    kept += rows
                submit = _p50(
                    lambda: client.submit(READ.operation, READ.template, READ.data, using=READ.using).wait(DEADLINE),
                    site.count(200),
                )
                page = partial(client.fetch, "msTickets", "by_state", {"state": "SUCCESS"}, limit=20, timeout=DEADLINE)
                listed = _p50(page, site.count(200))
                yield {"tickets": count, "submit_ms": submit, "list_ms": listed}
        finally:
            stored.delete_many({"summary": KEPT})


def _kept(sample: dict[str, Any]) -> dict[str, Any]:
    expires_at = datetime.now(UTC) + timedelta(hours=2)
    return {**sample, "_id": {**sample["_id"], "guid": str(uuid7())}, "summary": KEPT, "expires_at": expires_at}


def by_templates(site: Site) -> Iterator[Point]:
    folder = site.schema / "templates"
    sample = (folder / "airlines.toml").read_text()
    known = len(list(folder.glob("*.toml")))
    for count in (10, 100, 1000):
        for number in range(known, count):
            text = sample.replace('name = "Airlines"', f'name = "Airlines{number}"')
            (folder / f"airlines_{number}.toml").write_text(text)
        known = max(known, count)
        begun = time.monotonic()
        with _read_workers(2):
            with Client(site.settings) as client:
                _wait_until_served(client)
                started = time.monotonic() - begun
                p50 = _p50(lambda: client.call_many([READ], timeout=DEADLINE), site.count(400))
            loaded = _seconds(lambda: Client(site.settings).close())
            _, slot = _memory()
            yield {"templates": count, "worker_s": started, "client_s": loaded, "p50_ms": p50, "slot_mb": slot}


def by_events(site: Site) -> Iterator[Point]:
    with _read_workers(2), Client(site.settings) as client:
        _wait_until_served(client)
        rounds = 2 if site.is_quick else 20
        step = rounds * 1000
        for number in range(11):
            for _ in range(rounds if number else 0):
                client.call_many([READ] * 1000, timeout=DEADLINE)
            own = psutil.Process().memory_full_info().uss / MB
            yield {"events": number * step, "slot_mb": _memory()[1], "client_mb": own}


SERIES: dict[str, Callable[[Site], Iterator[Point]]] = {
    "slots": by_slots,
    "callers": by_callers,
    "body": by_body,
    "tickets": by_tickets,
    "events": by_events,
    "templates": by_templates,  # the last one, since it adds templates
}


# --- Measuring -------------------------------------------------------------------------------------------------------


def _read_workers(slots: int) -> contextlib.AbstractContextManager[psutil.Process]:
    return _workers("rel.read", slots)


def _workers(queues: str, slots: int) -> contextlib.AbstractContextManager[psutil.Process]:
    return worker("beds", queues, "-c", str(slots), "--prefetch-multiplier", PREFETCH)


def _wait_until_served(client: Client) -> None:
    wait_until_answered(lambda: client.call_many([READ], timeout=5))


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _p50(call: Callable[[], Any], count: int) -> float:
    """The median duration of a call in milliseconds, after a few that do not count."""
    for _ in range(5):
        call()
    return statistics.median(_seconds(call) for _ in range(count)) * 1000


def _rate(client: Client, call: Call, count: int) -> float:
    """Pipelined calls per second, after some that do not count."""
    client.call_many([call] * (count // 4), timeout=DEADLINE)
    return count / _seconds(lambda: client.call_many([call] * count, timeout=DEADLINE))


def _memory() -> tuple[float, float]:
    """Unshared memory of a worker's parent, and of one slot, in MB: medians over all that run."""
    parents = [p for p in psutil.Process().children() if "worker" in p.cmdline()]
    slots = [child for parent in parents for child in parent.children()]
    return (
        statistics.median(p.memory_full_info().uss for p in parents) / MB,
        statistics.median(p.memory_full_info().uss for p in slots) / MB,
    )


# --- The site --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ready_site(report: Report, *, is_quick: bool) -> Iterator[Site]:
    """The local stack, with the objects of the benchmark while it runs."""
    stack, settings = ready_stack(report)
    with (
        contextlib.closing(Objects.of_dba(settings)) as dba,
        own_vhost(settings, stack) as own,
        _objects(dba, settings),
        tempfile.TemporaryDirectory() as folder,
    ):
        schema = Path(folder) / "schema"
        shutil.copytree(ROOT / "schema", schema)
        (schema / "templates" / "bench_objects.toml").write_text(TEMPLATE)
        os.environ |= {"BEDS_SCHEMA__PATH": str(schema), "BEDS_AMQP__MAX_BODY_BYTES": str(MAX_BODY_BYTES)}
        changed = {
            "amqp": own.amqp.model_copy(update={"max_body_bytes": MAX_BODY_BYTES}),
            "schema_": own.schema_.model_copy(update={"path": schema}),
        }
        yield Site(own.model_copy(update=changed), dba, schema, is_quick)


@contextlib.contextmanager
def _objects(dba: Objects, settings: Settings) -> Iterator[None]:
    assert settings.databases.rel is not None
    user, host = settings.databases.rel.user, settings.schema_.broker_host
    with dba.rel.cursor() as cursor:
        for name, text in OBJECTS.items():
            cursor.execute(text)
            cursor.execute(f"GRANT EXECUTE ON PROCEDURE `{name}` TO %s@%s", [user, host])
    try:
        yield
    finally:
        with dba.rel.cursor() as cursor, contextlib.suppress(MariaDBError):
            for name in OBJECTS:
                cursor.execute(f"DROP PROCEDURE {name}")


def measure(names: Sequence[str], report: Report, *, is_quick: bool) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    with ready_site(report, is_quick=is_quick) as site:
        for name, series in SERIES.items():
            if name in names:
                found[name] = []
                for point in series(site):
                    found[name].append(point)
                    report(f"{name}: {_shown(point)}")
    return found


def _shown(point: Point) -> str:
    return ", ".join(f"{name} {value:,.0f}" if value >= 100 else f"{name} {value:.2g}" for name, value in point.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", default=",".join(SERIES), help="which, with commas between them")
    parser.add_argument("--quick", action="store_true", help="an eighth of the events")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    parser.add_argument("--plot", type=Path, help="draw the series into this SVG file; takes beds[bench]")
    options = parser.parse_args()
    names = options.series.split(",")
    if unknown := [name for name in names if name not in SERIES]:
        parser.error(f"unknown series: {', '.join(unknown)}; known: {', '.join(SERIES)}")
    draw = importlib.import_module("bench.plots").draw if options.plot else None  # fails early without matplotlib
    found = measure(names, lambda line: print(line, file=sys.stderr), is_quick=options.quick)
    if draw is not None:
        draw(found, options.plot)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, points in found.items():
            print(f"\n{name}")
            for point in points:
                print("  " + _shown(point))


if __name__ == "__main__":
    main()

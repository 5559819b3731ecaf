"""Compares jobs over the sample's flights with loops over the bare drivers, with pt-archiver, and with dlt.

A migration, MariaDB to MongoDB. Sides, by turns, each over all flights, which go back before the next side begins:

    loop         pymongo and mysqlclient alone: read 1,000 rows by key, insert_many, delete
    duties       the same loop with the duties of a job: transactions, ledger entries, copies read back and compared,
                 rows locked and compared before they are deleted
    beds, beds2  a job with one lane and one slot, and with two

An archive, MariaDB to MariaDB: pt-archiver (Debian: percona-toolkit) in bulk and row by row, and a job with one slot.
Files: dlt's load of the flights into Parquet, and a job with one slot.

    python -m bench.jobs [--pairs 2] [--sides loop,duties,beds,beds2] [--json]
    python -m bench.jobs --archive [--pairs 2] [--json]
    python -m bench.jobs --reads [--pairs 2] [--json]         p99 of reads without a migration, and beside one
    python -m bench.jobs --files --dlt PYTHON [--pairs 2] [--json]     PYTHON has dlt[parquet,filesystem] and sqlalchemy

It needs the sample data: `make demo` first. MariaDB's and MongoDB's times are included in all sides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import MySQLdb
import MySQLdb.cursors
from bson import Int64
from pymongo import MongoClient

from beds.client.client import Client
from beds.config import Settings
from bench import job_peers
from bench.side import ROOT, own_vhost, ready_stack, wait_until_answered, worker

CHUNK = 1000
COLUMNS = (
    "id, time_hour, carrier, flight, origin, dest, tailnum, sched_dep_time, dep_time, dep_delay, sched_arr_time, "
    "arr_time, arr_delay, air_time, distance"
)
SIDES = ("loop", "duties", "beds", "beds2")
DEADLINE = 900.0


class Loop:
    """The bare drivers, as the DBA."""

    def __init__(self, settings: Settings) -> None:
        rel, rec = settings.schema_.dba.rel, settings.schema_.dba.rec
        assert rel is not None
        assert rec is not None
        self._sql = MySQLdb.connect(
            host=rel.host, port=rel.port, user=rel.user, passwd=rel.password.get_secret_value(), db=rel.database,
            charset="utf8mb4", autocommit=False,
        )  # fmt: skip
        self._client: MongoClient[dict[str, Any]] = MongoClient(rec.uri.get_secret_value(), tz_aware=True)
        self._mongo = self._client[rec.database]

    def close(self) -> None:
        self._sql.close()
        self._client.close()

    def back(self) -> None:
        """Bring the flights back, as fast as the servers allow."""
        names = COLUMNS.replace(" ", "").split(",")
        cursor = self._sql.cursor()
        while documents := list(self._mongo.flight_documents.find().sort("_id", 1).limit(5000)):
            rows = [
                [d["_id"], d["scheduled"].replace(tzinfo=None), *(d.get(name) for name in names[2:])] for d in documents
            ]
            cursor.executemany(f"INSERT INTO flights ({COLUMNS}) VALUES ({', '.join(['%s'] * len(names))})", rows)
            self._sql.commit()
            self._mongo.flight_documents.delete_many({"_id": {"$in": [d["_id"] for d in documents]}})

    def move(self, *, duties: bool) -> int:
        cursor = self._sql.cursor(MySQLdb.cursors.DictCursor)
        after = moved = 0
        while True:
            cursor.execute(f"SELECT {COLUMNS} FROM flights WHERE id > %s ORDER BY id LIMIT {CHUNK}", [after])
            rows = cursor.fetchall()
            self._sql.commit()
            if not rows:
                return moved
            documents = [_document(row) for row in rows]
            keys = [row["id"] for row in rows]
            if duties:
                self._load_noted(documents)
                self._compare(documents)
                self._remove_noted(cursor, rows, keys)
            else:
                self._mongo.flight_documents.insert_many(documents)
                cursor.execute(f"DELETE FROM flights WHERE id IN ({','.join(map(str, keys))})")
                self._sql.commit()
            after, moved = keys[-1], moved + len(keys)

    def _load_noted(self, documents: list[dict[str, Any]]) -> None:
        entry = {
            "_id": str(uuid.uuid4()),
            "answer": json.dumps([[d["_id"]] for d in documents]),
            "expires_at": datetime.now(UTC) + timedelta(hours=1),
        }
        with self._client.start_session() as session, session.start_transaction():
            self._mongo.flight_documents.insert_many(documents, session=session)
            self._mongo.msLedger.insert_one(entry, session=session)

    def _compare(self, documents: list[dict[str, Any]]) -> None:
        wanted = {d["_id"]: d for d in documents}
        for found in self._mongo.flight_documents.find({"_id": {"$in": list(wanted)}}):
            found["scheduled"] = found["scheduled"].replace(tzinfo=None)
            assert found == wanted.pop(found["_id"])
        assert not wanted

    def _remove_noted(self, cursor: Any, rows: Any, keys: list[int]) -> None:
        listed = ",".join(map(str, keys))
        cursor.execute(f"SELECT {COLUMNS} FROM flights WHERE id IN ({listed}) ORDER BY id FOR UPDATE")
        assert list(cursor.fetchall()) == list(rows)
        cursor.execute(f"DELETE FROM flights WHERE id IN ({listed})")
        cursor.execute(
            "INSERT INTO beds_ledger (guid, answer, expires_at) VALUES (%s, %s, UTC_TIMESTAMP() + INTERVAL 1 HOUR)",
            [str(uuid.uuid4()), json.dumps(keys)],
        )
        self._sql.commit()


def _document(row: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in row.items() if name not in ("id", "time_hour")}
    return {"_id": Int64(row["id"]), "scheduled": row["time_hour"], **found, "source": "rel"}


Run = Callable[[], int]
"""One run of a side; returns the records moved."""


class Bench:
    """Workers of everything but jobs, the client, and the stack's settings with the schema of bench/schema."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._left = contextlib.ExitStack()

    def __enter__(self) -> Bench:
        schema = ROOT / ".beds" / "bench-schema"
        shutil.rmtree(schema, ignore_errors=True)
        shutil.copytree(ROOT / "schema", schema)
        shutil.copytree(ROOT / "bench" / "schema", schema, dirs_exist_ok=True)
        os.environ["BEDS_SCHEMA__PATH"] = str(schema)
        stack, self.settings = ready_stack(self._report)
        own = self._left.enter_context(own_vhost(self.settings, stack))
        self._left.enter_context(worker("beds", "rel.read,rel.write,rec.read,rec.write,calgon,operator", "-c", "6"))
        records = "beds.logs,beds.audit,beds.metrics"
        self._left.enter_context(worker("beds", records, env={"BEDS_METRICS__PROMETHEUS": ""}))
        self.client = self._left.enter_context(Client(own))
        ask = {"faa": "JFK"}
        wait_until_answered(lambda: self.client.call("fetch_records", "Airports", ask, using="by_faa", timeout=5))
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def job(self, rule: str, slots: int) -> Run:
        """A side that runs a job with a pool of so many slots."""

        def run() -> int:
            reply = self.client.submit_job(rule).result(DEADLINE)
            return int(reply.record["moved"])  # type: ignore[union-attr]

        self._slots[run] = slots
        return run

    _slots: ClassVar[dict[Run, int]] = {}

    def compare(self, pairs: int, sides: Mapping[str, Run], after: Callable[[str], object]) -> dict[str, list[float]]:
        """Records a second of each side, by turns. `after` is called with a side's name once it has run."""
        found: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(pairs):
            for side in list(sides) if number % 2 else list(sides)[::-1]:
                run = sides[side]
                with self._pool(self._slots.get(run, 0)):
                    begun = time.perf_counter()
                    moved = run()
                    rate = moved / (time.perf_counter() - begun)
                found[side].append(rate)
                self._report(f"pair {number + 1} of {pairs}: {side} {moved:,} records, {rate:,.0f}/s")
                after(side)
        return found

    @contextlib.contextmanager
    def _pool(self, slots: int) -> Iterator[None]:
        if not slots:
            yield
            return
        queues = "job.migrate,job.warehouse"
        names = ("MIGRATE", "WAREHOUSE")
        env = {f"BEDS_BROKERS__JOB_{name}__INSTANCES": str(slots) for name in names}
        env |= {f"BEDS_BROKERS__JOB_{name}__TIME_LIMIT": "120" for name in names}
        with worker("beds", queues, env=env):
            time.sleep(3)
            yield


def migration(bench: Bench, pairs: int, names: Sequence[str]) -> dict[str, Any]:
    with contextlib.closing(Loop(bench.settings)) as loop:
        loop.back()
        sides: dict[str, Run] = {
            "loop": lambda: loop.move(duties=False),
            "duties": lambda: loop.move(duties=True),
            "beds": bench.job("flights_to_documents", 1),
            "beds2": bench.job("flights_to_documents", 2),
        }
        return _figures(bench.compare(pairs, {n: sides[n] for n in names}, lambda _: loop.back()), ("loop", "duties"))


def archive(bench: Bench, pairs: int) -> dict[str, Any]:
    def peer(*, bulk: bool) -> int:
        job_peers.pt_archiver(bench.settings, bulk=bulk)
        cursor = job_peers.sql(bench.settings).cursor()
        cursor.execute("SELECT COUNT(*) FROM flights_cool")
        return int(cursor.fetchone()[0])

    sides: dict[str, Run] = {
        "pt-bulk": lambda: peer(bulk=True),
        "pt-rows": lambda: peer(bulk=False),
        "beds": bench.job("flights_cool", 1),
    }
    return _figures(bench.compare(pairs, sides, lambda _: job_peers.bring_back(bench.settings)), ("pt-bulk", "pt-rows"))


def files(bench: Bench, pairs: int, python: str) -> dict[str, Any]:
    def peer() -> int:
        job_peers.dlt(bench.settings, python)
        cursor = job_peers.sql(bench.settings).cursor()
        cursor.execute("SELECT COUNT(*) FROM flights")
        return int(cursor.fetchone()[0])

    def back(side: str) -> None:
        if side == "beds":
            with bench._pool(2):
                guid = next(
                    j["guid"] for j in bench.client.fetch("msJobs", "of_user", {}) if j["rule"] == "flights_cold"
                )
                bench.client.submit_job("flights_cold", restore=guid).result(DEADLINE)

    sides: dict[str, Run] = {"dlt": peer, "beds": bench.job("flights_cold", 1)}
    return _figures(bench.compare(pairs, sides, back), ("dlt",))


READS_A_SECOND = 50


def reads(bench: Bench, pairs: int) -> dict[str, Any]:
    """p99 of reads in milliseconds, without a migration and beside one, by turns."""
    found: dict[str, list[float]] = {"alone": [], "beside": []}
    with contextlib.closing(Loop(bench.settings)) as loop:
        loop.back()
        for number in range(pairs):
            until = time.perf_counter() + 20
            found["alone"].append(_p99(bench.client, lambda end=until: time.perf_counter() < end))  # type: ignore[misc]
            with bench._pool(2):
                ticket = bench.client.submit_job("flights_to_documents")
                found["beside"].append(_p99(bench.client, lambda of=ticket: not of.ready))  # type: ignore[misc]
            bench._report(f"pair {number + 1} of {pairs}: {found['alone'][-1]:.1f} ms, {found['beside'][-1]:.1f} ms")
            loop.back()
    ratio = statistics.median(b / a for a, b in zip(found["alone"], found["beside"], strict=True))
    return {"p99_ms": {side: statistics.median(of) for side, of in found.items()}, "ratios": {"beside / alone": ratio}}


def _p99(client: Client, goes_on: Callable[[], bool]) -> float:
    taken: list[float] = []
    looked = 0.0
    while True:
        if time.perf_counter() - looked > 0.5:
            looked = time.perf_counter()
            if not goes_on():
                return statistics.quantiles(taken, n=100, method="inclusive")[98]
        begun = time.perf_counter()
        client.call("fetch_records", "Airports", {"faa": "JFK"}, using="by_faa", timeout=DEADLINE)
        taken.append((time.perf_counter() - begun) * 1000)
        time.sleep(max(0.0, 1 / READS_A_SECOND - (time.perf_counter() - begun)))


def _figures(found: Mapping[str, list[float]], peers: Sequence[str]) -> dict[str, Any]:
    ratios = {
        f"{side} / {peer}": statistics.median(a / b for a, b in zip(found[side], found[peer], strict=True))
        for side in found if side.startswith("beds")
        for peer in peers if peer in found
    }  # fmt: skip
    return {"records_per_second": {side: statistics.median(of) for side, of in found.items()}, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    parser.add_argument("--archive", action="store_true", help="compare with pt-archiver")
    parser.add_argument("--files", action="store_true", help="compare with dlt")
    parser.add_argument("--reads", action="store_true", help="measure reads beside a migration")
    parser.add_argument("--dlt", default=sys.executable, help="the Python that has dlt")
    options = parser.parse_args()
    with Bench(lambda line: print(line, file=sys.stderr)) as bench:
        if options.archive:
            found = archive(bench, options.pairs)
        elif options.reads:
            found = reads(bench, options.pairs)
        elif options.files:
            found = files(bench, options.pairs, options.dlt)
        else:
            found = migration(bench, options.pairs, options.sides.split(","))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for side, rate in found.get("records_per_second", {}).items():
        print(f"{side:8} {rate:9,.0f} records/s")
    for side, ms in found.get("p99_ms", {}).items():
        print(f"{side:8} p99 {ms:7.1f} ms")
    for name, ratio in found["ratios"].items():
        print(f"{name:18} {ratio:.2f}")


if __name__ == "__main__":
    main()

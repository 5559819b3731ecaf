"""Compares a migration of the sample's flights, MariaDB to MongoDB, with loops over the bare drivers.

Sides, by turns, each over all flights, which go back before the next side begins:

    loop         pymongo and mysqlclient alone: read 1,000 rows by key, insert_many, delete
    duties       the same loop with the duties of a job: transactions, ledger entries, copies read back and compared,
                 rows locked and compared before they are deleted
    beds, beds2  a job with one lane and one slot, and with two

    python -m bench.jobs [--pairs 2] [--sides loop,duties,beds,beds2] [--json]

It needs the sample data: `make demo` first. MariaDB's and MongoDB's times are included in all sides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import MySQLdb
import MySQLdb.cursors
from pymongo import MongoClient

from beds.client.client import Client
from beds.config import Settings
from bench.side import own_vhost, ready_stack, worker

CHUNK = 1000
COLUMNS = (
    "id, time_hour, carrier, flight, origin, dest, tailnum, sched_dep_time, dep_time, dep_delay, sched_arr_time, arr_time, "
    "arr_delay, air_time, distance"
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

    def count(self) -> int:
        cursor = self._sql.cursor()
        cursor.execute("SELECT COUNT(*) FROM flights")
        self._sql.commit()
        return int(cursor.fetchone()[0])

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
    return {"_id": row["id"], "scheduled": row["time_hour"], **found, "source": "rel"}


@contextlib.contextmanager
def _job_worker(settings: Settings, slots: int) -> Iterator[None]:
    env = {"BEDS_BROKERS__JOB_MIGRATE__INSTANCES": str(slots)}
    with worker("beds", "job.migrate", "-c", str(slots), env=env):
        yield


def _job(client: Client, lanes: int) -> int:
    """Run the migration, with one lane or with the two of its rule."""
    rule = "flights_to_documents" if lanes > 1 else "flights_in_one_lane"
    reply = client.submit_job(rule).result(DEADLINE)
    return int(reply.record["moved"])  # type: ignore[union-attr]


def compare(pairs: int, sides: list[str], report: Callable[[str], None]) -> dict[str, Any]:
    stack, settings = ready_stack(report)
    found: dict[str, list[float]] = {side: [] for side in sides}
    loop = Loop(settings)
    with contextlib.ExitStack() as left, contextlib.closing(loop):
        own = left.enter_context(own_vhost(settings, stack))
        left.enter_context(worker("beds", "rel.read,rel.write,rec.read,rec.write,calgon,operator", "-c", "6"))
        left.enter_context(worker("beds", "beds.logs,beds.audit,beds.metrics", env={"BEDS_METRICS__PROMETHEUS": ""}))
        client = left.enter_context(Client(own, operator=True))
        loop.back()
        flights = loop.count()
        for number in range(pairs):
            for side in sides if number % 2 else sides[::-1]:
                with _job_worker(own, 2 if side == "beds2" else 1) if side.startswith("beds") else contextlib.nullcontext():
                    if side.startswith("beds"):
                        time.sleep(3)
                    begun = time.perf_counter()
                    match side:
                        case "loop" | "duties":
                            moved = loop.move(duties=side == "duties")
                        case _:
                            moved = _job(client, 2 if side == "beds2" else 1)
                    rate = moved / (time.perf_counter() - begun)
                assert moved == flights, (side, moved)
                found[side].append(rate)
                report(f"pair {number + 1} of {pairs}: {side} {rate:,.0f} records/s")
                loop.back()
    rates = {side: statistics.median(of) for side, of in found.items()}
    ratios = {
        f"{side} / {peer}": statistics.median(a / b for a, b in zip(found[side], found[peer], strict=True))
        for side in sides if side.startswith("beds")
        for peer in ("loop", "duties") if peer in found
    }  # fmt: skip
    return {"flights": flights, "pairs": pairs, "records_per_second": rates, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args()
    found = compare(options.pairs, options.sides.split(","), lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for side, rate in found["records_per_second"].items():
        print(f"{side:8} {rate:9,.0f} records/s")
    for name, ratio in found["ratios"].items():
        print(f"{name:18} {ratio:.2f}")


if __name__ == "__main__":
    main()

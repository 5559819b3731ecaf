"""The records of the job tests, written and read without BEDS."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import MySQLdb
from bson.binary import Binary
from bson.decimal128 import Decimal128

from beds.adapters.mariadb.session import connect
from beds.config import Settings
from beds.domain.reply import Record

COLLECTIONS = {"JobDocs": "job_docs", "JobCool": "job_cool"}
FIRST = datetime(2024, 11, 1, tzinfo=UTC)


class Places:
    """The collections and the table of the job tests."""

    def __init__(self, database: Any, sql: Any) -> None:
        self._database, self._sql = database, sql

    @classmethod
    @contextmanager
    def opened(cls, settings: Settings, database: Any) -> Iterator[Places]:
        dba = settings.schema_.dba.rel
        assert dba is not None
        connection = connect(dba, 60)
        try:
            connection.autocommit(True)
            yield cls(database, connection)
        finally:
            connection.close()

    def clear(self) -> None:
        for collection in (*COLLECTIONS.values(), "msJobs", "msFiles"):
            self._database[collection].delete_many({})
        self._execute("DELETE FROM job_rows")

    def fill(self, template: str, number: int) -> dict[int, Record]:
        """Store records 1 to `number`. Returns them by key."""
        model = {key: record_of(key) for key in range(1, number + 1)}
        if template in COLLECTIONS:
            self._database[COLLECTIONS[template]].insert_many([_document(record) for record in model.values()])
        else:
            cursor = self._sql.cursor()
            cursor.executemany(
                "INSERT INTO job_rows (id, amount, price, at, mark, note, `unique`) VALUES (%s,%s,%s,%s,%s,%s,%s)",
                [
                    (r["id"], r["amount"], r["price"], r["at"].replace(tzinfo=None), str(r["mark"]), r["note"], None)
                    for r in model.values()
                ],
            )
        return model

    def records(self, template: str) -> dict[int, Record]:
        """The stored records by key, without nulls."""
        if template in COLLECTIONS:
            return {d["_id"]: _plain(d) for d in self._database[COLLECTIONS[template]].find()}
        cursor = self._sql.cursor(MySQLdb.cursors.DictCursor)
        cursor.execute("SELECT * FROM job_rows")
        return {row["id"]: _plain(row) for row in cursor.fetchall()}

    def in_files(self, folder: Path) -> dict[int, Record]:
        """The records of all files that the manifest lists."""
        manifest = json.loads((folder / "manifest.json").read_text())
        files = [str(folder / file["path"]) for file in manifest["files"]]
        if not files:
            return {}
        rows = duckdb.sql(f"SELECT * EXCLUDE (_missing) FROM read_parquet({files}, hive_partitioning = false)")
        names = rows.columns
        found = [dict(zip(names, row, strict=True)) for row in rows.fetchall()]
        assert len(found) == len({row["id"] for row in found}), "a record stands in two files"
        return {row["id"]: _plain(row) for row in found}

    def take(self, keys: Iterable[int], unique: Iterable[str] = ()) -> None:
        """Store other records under some keys of the table, and others with some values that must be unique."""
        cursor = self._sql.cursor()
        for key in keys:
            cursor.execute("INSERT INTO job_rows (id, amount) VALUES (%s, -1)", [key])
        for place, text in enumerate(unique):
            cursor.execute("INSERT INTO job_rows (id, amount, `unique`) VALUES (%s, -1, %s)", [1_000_000 + place, text])

    def untake(self, keys: Iterable[int]) -> None:
        for key in keys:
            self._sql.cursor().execute("DELETE FROM job_rows WHERE id = %s AND amount = -1", [key])

    def is_still(self, template: str, seconds: float = 1.0) -> bool:
        """Whether the number of records stays the same."""
        before = len(self.records(template))
        time.sleep(seconds)
        return len(self.records(template)) == before

    def writes(self) -> tuple[int, ...]:
        """What both servers counted of writes to the collections and tables of jobs."""
        sizes = [self._database.command("collStats", name)["count"] for name in (*COLLECTIONS.values(), "msJobs")]
        of_jobs = [self._database.command("collStats", name) for name in (*COLLECTIONS.values(), "msJobs", "msLedger")]
        calls = [f"{kind} calls" for kind in ("insert", "update", "remove")]
        counts = [each["wiredTiger"]["cursor"][call] for each in of_jobs for call in calls]
        cursor = self._sql.cursor()
        cursor.execute(
            "SHOW GLOBAL STATUS WHERE Variable_name IN ('Com_insert', 'Com_insert_select', 'Com_update', 'Com_delete',"
            " 'Com_delete_multi')"
        )
        return (*sizes, *counts, *(int(row["Value"]) for row in cursor.fetchall()))

    def forget_ledger(self) -> None:
        self._database["msLedger"].delete_many({})
        self._execute("DELETE FROM beds_ledger")

    def _execute(self, statement: str) -> None:
        self._sql.cursor().execute(statement)


def record_of(key: int) -> Record:
    return {
        "id": key,
        "amount": key * 7,
        "price": Decimal(key) / 4 if key % 4 else Decimal(key),
        "at": FIRST + timedelta(hours=key, milliseconds=key),
        "mark": UUID(int=key),
        "note": f"record {key} – ä",
    }


def _document(record: Record) -> dict[str, Any]:
    mark, price = Binary.from_uuid(record["mark"]), Decimal128(record["price"])
    return {"_id": record["id"], **{k: v for k, v in record.items() if k != "id"}, "mark": mark, "price": price}


def _plain(found: Any) -> Record:
    record: Record = {}
    for name, value in found.items():
        if value is None:
            continue
        if name == "at" and isinstance(value, bytes):
            value = datetime.fromisoformat(value.decode())
        if isinstance(value, Decimal128):
            value = value.to_decimal()
        elif isinstance(value, datetime):
            value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        elif name == "mark":
            value = _uuid(value)
        record["id" if name == "_id" else name] = value
    return record


def _uuid(value: Any) -> UUID:
    if isinstance(value, UUID):
        return value
    if isinstance(value, bytes) and len(value) == 16:
        return UUID(bytes=value)
    return UUID(value.decode() if isinstance(value, bytes) else value)

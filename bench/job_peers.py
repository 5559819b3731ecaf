"""The peers of bench/jobs.py: pt-archiver (Debian: percona-toolkit) and dlt, and the tables as the DBA sees them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import MySQLdb

from beds.config import Settings
from beds.config.sections import RelDatabase

ROWS_ONE_BY_ONE = 40_000
"""Flights that pt-archiver moves one by one; all of them would take minutes."""
_DLT = """
import os, dlt, sqlalchemy
engine = sqlalchemy.create_engine(os.environ["FROM"])
@dlt.resource(name="flights")
def flights():
    with engine.connect().execution_options(stream_results=True) as connection:
        rows = connection.execute(sqlalchemy.text("SELECT * FROM flights ORDER BY id")).mappings()
        for part in rows.partitions(5000):
            yield [dict(row) for row in part]
pipeline = dlt.pipeline("bench", pipelines_dir=os.environ["WORK"], dataset_name="bench",
                        destination=dlt.destinations.filesystem(bucket_url="file://" + os.environ["WORK"] + "/out"))
pipeline.run(flights(), loader_file_format="parquet", write_disposition="replace")
"""


def dba(settings: Settings) -> RelDatabase:
    found = settings.schema_.dba.rel
    assert found is not None
    return found


def sql(settings: Settings) -> Any:
    """A connection to MariaDB as the DBA."""
    rel = dba(settings)
    return MySQLdb.connect(
        host=rel.host, port=rel.port, user=rel.user, passwd=rel.password.get_secret_value(), db=rel.database,
        charset="utf8mb4", autocommit=True,
    )  # fmt: skip


@contextmanager
def _password_file(rel: RelDatabase) -> Iterator[Path]:
    """The password where no command line shows it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "my.cnf"
        file.touch(mode=0o600)
        file.write_text(f"[client]\npassword={rel.password.get_secret_value()}\n")
        yield file


def pt_archiver(settings: Settings, *, bulk: bool) -> None:
    """Move flights to flights_cool: all in bulk, or the first `ROWS_ONE_BY_ONE` one by one."""
    rel = dba(settings)
    how = ["--bulk-insert", "--bulk-delete", "--commit-each"] if bulk else ["--txn-size", "1000"]
    where = "1=1" if bulk else f"id <= {ROWS_ONE_BY_ONE}"
    with _password_file(rel) as file:
        place = f"h={rel.host},P={rel.port},u={rel.user},D={rel.database},F={file},L=1"
        subprocess.run(
            ["pt-archiver", "--source", f"{place},t=flights", "--dest", f"{place},t=flights_cool", "--where", where,
             "--limit", "1000", "--no-check-charset", "--no-version-check", "--no-safe-auto-increment", *how],
            check=True, capture_output=True, text=True,
        )  # fmt: skip


def dlt(settings: Settings, python: str) -> None:
    """Write all flights to Parquet with dlt, in the environment of `python`."""
    rel = dba(settings)
    work = tempfile.mkdtemp()
    try:
        url = f"mysql+pymysql://{rel.user}:{rel.password.get_secret_value()}@{rel.host}:{rel.port}/{rel.database}"
        env = {**os.environ, "FROM": url, "WORK": work, "RUNTIME__DLTHUB_TELEMETRY": "false"}
        subprocess.run([python, "-c", _DLT], env=env, check=True, capture_output=True, text=True)
        assert list(Path(work).rglob("*.parquet"))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def bring_back(settings: Settings) -> None:
    """Move flights_cool back to flights."""
    cursor = sql(settings).cursor()
    cursor.execute("INSERT INTO flights SELECT * FROM flights_cool")
    cursor.execute("TRUNCATE flights_cool")

"""The DBA replaces, extends and drops procedures under load: no value reaches a wrong column, and service recovers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from typing import Any

import pytest

from beds.adapters.mariadb.session import connect
from beds.client.client import Client
from beds.config import Settings
from beds.errors import BedsError
from tests.conftest import wait_for

UPDATES = [
    "CREATE OR REPLACE PROCEDURE pairs_update(IN p_b INT, IN p_a INT, IN p_id INT) "
    "UPDATE pairs SET a = p_a, b = p_b WHERE id = p_id",
    "CREATE OR REPLACE PROCEDURE pairs_update(IN p_new VARCHAR(9), IN p_a INT, IN p_id INT, IN p_b INT, IN p_more INT) "
    "UPDATE pairs SET a = p_a, b = p_b WHERE id = p_id",
    "CREATE OR REPLACE PROCEDURE pairs_update(IN p_id INT, IN p_a INT, IN p_b INT) "
    "UPDATE pairs SET a = p_a, b = p_b WHERE id = p_id",
]
ECHOES = [
    "CREATE OR REPLACE PROCEDURE pairs_echo(IN p_b INT, IN p_a INT) SELECT p_a AS a, p_b AS b",
    "CREATE OR REPLACE PROCEDURE pairs_echo(IN p_later INT, IN p_a INT, IN p_b INT) SELECT p_a AS a, p_b AS b",
    "CREATE OR REPLACE PROCEDURE pairs_echo(IN p_a INT, IN p_b INT) SELECT p_a AS a, p_b AS b",
]
ROUNDS = 8
THREADS = 4
TYPED = {"schema_mismatch", "store_denied", "store_unavailable"}


@pytest.mark.timeout(240)
def test_procedures_are_swapped_extended_and_dropped_under_load(client: Client, settings: Settings) -> None:
    dba = settings.schema_.dba.rel
    assert dba is not None
    outcomes: Counter[str] = Counter()
    astray: list[Any] = []
    stop = threading.Event()

    def load(thread: int) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            try:
                page = client.call("fetch_records", "Pairs", {"a": n, "b": n + 1}, using="echo", timeout=60)
                astray.extend(r for r in page if (r["a"], r["b"]) != (n, n + 1))  # type: ignore[union-attr]
                outcomes["read"] += 1
                client.call("update_record", "Pairs", {"id": thread, "a": n, "b": n + 1}, timeout=60)
                outcomes["written"] += 1
            except BedsError as error:
                outcomes[error.code] += 1

    with contextlib.closing(connect(dba, 30)) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM pairs")
        connection.commit()
        for thread in range(THREADS):
            client.call("create_record", "Pairs", {"id": thread, "a": 0, "b": 1}, timeout=30)
        threads = [threading.Thread(target=load, args=(n,)) for n in range(THREADS)]
        for each in threads:
            each.start()
        for round_ in range(ROUNDS):
            before = outcomes["written"]
            wait_for(lambda before=before: outcomes["written"] >= before + 10, 60, "writes between two changes")
            if round_ == ROUNDS // 2:
                for name in ("pairs_update", "pairs_echo"):
                    cursor.execute(f"DROP PROCEDURE {name}")
                time.sleep(0.3)
            for statement in (UPDATES[round_ % 3], ECHOES[round_ % 3]):
                cursor.execute(statement)
            if round_ == ROUNDS // 2:
                for name in ("pairs_update", "pairs_echo"):
                    cursor.execute(f"GRANT EXECUTE ON PROCEDURE beds.{name} TO beds_broker@'127.0.0.1'")
        done = outcomes["written"]
        wait_for(lambda: outcomes["written"] >= done + 50, 60, "writes after the last change")
        stop.set()
        for each in threads:
            each.join(90)
        connection.commit()
        cursor.execute("SELECT id, a, b FROM pairs")
        rows = cursor.fetchall()
    assert len(rows) == THREADS
    assert all(row["b"] == row["a"] + 1 for row in rows)
    assert not astray
    assert set(outcomes) <= TYPED | {"read", "written"}, outcomes
    assert outcomes["schema_mismatch"] + outcomes["store_denied"] > 0  # while they were dropped

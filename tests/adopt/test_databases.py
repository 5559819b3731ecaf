"""The databases of the other tests in this folder are there, with what makes them hard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import MySQLdb
import pytest

from beds.adapters.mariadb.session import connect
from beds.config.sections import RelDatabase
from tests.adopt import tpcc as rows_of_tpcc

SAKILA = {
    "actor": 200, "address": 603, "category": 16, "city": 600, "country": 109, "customer": 599, "film": 1000,
    "film_actor": 5462, "film_category": 1000, "film_text": 1000, "inventory": 4581, "language": 6, "payment": 16049,
    "rental": 16044, "staff": 2, "store": 2,
}  # fmt: skip
LEGACY = {"Kunden": 4, "order": 3, "order lines": 3, "prices": 2, "import$log": 6, "Archiv_1998": 3}
"""Three rows of the log are a trigger's."""


@contextmanager
def cursor_in(database: RelDatabase) -> Iterator[Any]:
    with contextlib.closing(connect(database, 30)) as connection, connection.cursor() as cursor:
        yield cursor


def rows(cursor: Any, statement: str, values: Sequence[object] | None = None) -> list[dict[str, Any]]:
    cursor.execute(statement, values)
    return list(cursor.fetchall())


def result_sets(cursor: Any, statement: str) -> list[list[dict[str, Any]]]:
    """Those of a call; its last set has no columns."""
    cursor.execute(statement)
    found = [list(cursor.fetchall())]
    while cursor.nextset():
        if cursor.description:
            found.append(list(cursor.fetchall()))
    return found


def counts(cursor: Any) -> dict[str, int]:
    tables = rows(
        cursor,
        "SELECT TABLE_NAME AS name FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() "
        "AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED')",
    )
    return {row["name"]: rows(cursor, f"SELECT COUNT(*) AS n FROM `{row['name']}`")[0]["n"] for row in tables}


def objects(cursor: Any) -> dict[str, list[str]]:
    """The names of the views, triggers and routines."""
    cursor.execute(
        "SELECT 'VIEW' AS kind, TABLE_NAME AS name FROM information_schema.VIEWS WHERE TABLE_SCHEMA = DATABASE() "
        "UNION ALL SELECT 'TRIGGER', TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE() "
        "UNION ALL SELECT ROUTINE_TYPE, ROUTINE_NAME FROM information_schema.ROUTINES "
        "WHERE ROUTINE_SCHEMA = DATABASE() ORDER BY 1, 2"
    )
    found: dict[str, list[str]] = {}
    for row in cursor.fetchall():
        found.setdefault(row["kind"], []).append(row["name"])
    return found


def test_sakila_is_whole(sakila: RelDatabase) -> None:
    with cursor_in(sakila) as cursor:
        assert counts(cursor) == SAKILA
        found = objects(cursor)
        assert found["PROCEDURE"] == ["film_in_stock", "film_not_in_stock", "rewards_report"]
        assert found["FUNCTION"] == ["get_customer_balance", "inventory_held_by_customer", "inventory_in_stock"]
        assert len(found["VIEW"]) == 7
        assert len(found["TRIGGER"]) == 6
        for view in found["VIEW"]:
            assert rows(cursor, f"SELECT * FROM `{view}` LIMIT 1"), view
        (picture,) = rows(cursor, "SELECT HEX(LEFT(picture, 4)) AS png FROM staff WHERE picture IS NOT NULL")
        assert picture["png"] == "89504E47"


def test_sakila_has_an_out_parameter_beside_rows(sakila: RelDatabase) -> None:
    with cursor_in(sakila) as cursor:
        (found,) = result_sets(cursor, "CALL film_in_stock(1, 1, @stock)")
        assert rows(cursor, "SELECT @stock AS n")[0]["n"] == len(found) == 4


def test_tpcc_has_all_rows_and_money_that_adds_up(tpcc: RelDatabase) -> None:
    with cursor_in(tpcc) as cursor:
        assert counts(cursor) == {table: len(records) for table, records in rows_of_tpcc.tables()}
        # Two of the specification's conditions of consistency (3.3.2.1, 3.3.2.4).
        assert not rows(
            cursor,
            "SELECT w_id FROM warehouse JOIN district ON d_w_id = w_id GROUP BY w_id, w_ytd HAVING w_ytd <> SUM(d_ytd)",
        )
        assert not rows(
            cursor,
            "SELECT o_id FROM orders LEFT JOIN order_line ON (ol_w_id, ol_d_id, ol_o_id) = (o_w_id, o_d_id, o_id) "
            "GROUP BY o_w_id, o_d_id, o_id, o_ol_cnt HAVING o_ol_cnt <> COUNT(ol_number)",
        )


def test_the_rows_of_tpcc_are_the_same_each_time() -> None:
    assert list(rows_of_tpcc.tables()) == list(rows_of_tpcc.tables())


def test_legacy_is_whole(legacy: RelDatabase) -> None:
    with cursor_in(legacy) as cursor:
        assert counts(cursor) == LEGACY
        assert objects(cursor) == {
            "FUNCTION": ["next_invoice", "vat_of"],
            "PROCEDURE": [
                "add_line", "add_order", "check_credit", "close_old_orders", "customer_file", "do_nothing", "find_any",
                "get_customer", "QuickOrder", "rename_customer", "yearly report $",
            ],
            "TRIGGER": ["log_new_order"],
            "VIEW": ["open orders", "turnover"],
        }  # fmt: skip
        history = rows(cursor, "SELECT price FROM prices FOR SYSTEM_TIME ALL WHERE sku = 'A-1' ORDER BY price")
        assert [row["price"] for row in history] == [Decimal("9.9900"), Decimal("12.5000")]


def test_procedures_of_legacy_call_each_other(legacy: RelDatabase) -> None:
    with cursor_in(legacy) as cursor:
        (lines,) = result_sets(cursor, "CALL QuickOrder(1, 'A-1', @order_key, @total)")
        (given,) = rows(cursor, "SELECT @order_key AS order_key, @total AS total")
        assert lines[0]["order key"] == given["order_key"]
        assert given["total"] == Decimal("12.5000")
        cursor.connection.rollback()


def test_a_procedure_of_legacy_returns_several_result_sets(legacy: RelDatabase) -> None:
    with cursor_in(legacy) as cursor:
        customer, orders, recruited = result_sets(cursor, "CALL customer_file(1)")
        assert customer[0]["label"] == "Ada Lund <ada@example.org>"
        assert [row["key"] for row in orders] == [1]
        assert [row["recruited"] for row in recruited] == [2, 3]


def test_procedures_of_legacy_signal_and_run_dynamic_sql(legacy: RelDatabase) -> None:
    with cursor_in(legacy) as cursor:
        with pytest.raises(MySQLdb.Error) as caught:
            cursor.execute("CALL add_order(3, 1, NULL, NULL, @order_key)")
        assert caught.value.args == (30001, "no such customer, or blocked")
        with pytest.raises(MySQLdb.Error) as caught:
            cursor.execute("CALL add_line(1, 'none', 1, @total)")
        assert caught.value.args == (1644, "no price for this article")
        with pytest.raises(MySQLdb.Error) as caught:
            cursor.execute("CALL check_credit(1)")
        assert caught.value.args[0] == 2027
        (found,) = result_sets(cursor, "CALL find_any('order lines', 'SKU', 'B-2')")
        assert [row["order key"] for row in found] == [2]

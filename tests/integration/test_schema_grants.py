"""The workers' grants depend on the body of each procedure, and follow its changes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import MySQLdb
import pytest

from beds.adapters.mariadb.session import connect
from beds.config import Settings
from beds.schema_tools.rel import RelSchema
from beds.templates.registry import SYSTEM

PLAIN = "CREATE OR REPLACE PROCEDURE zz_plain() SELECT 1 AS one;"
COMMITS = "CREATE OR REPLACE PROCEDURE zz_plain() BEGIN SELECT 1 AS one; COMMIT; END;"
HIDDEN = """
CREATE OR REPLACE PROCEDURE zz_dynamic() EXECUTE IMMEDIATE 'COMMIT';
CREATE OR REPLACE PROCEDURE zz_prepared() BEGIN PREPARE s FROM 'COMMIT'; EXECUTE s; END;
CREATE OR REPLACE PROCEDURE zz_caller() CALL zz_dynamic();
CREATE OR REPLACE PROCEDURE zz_callers_caller() BEGIN IF FALSE THEN CALL `zz_caller`; END IF; END;
CREATE OR REPLACE PROCEDURE zz_beds() CALL beds_definition('PROCEDURE', 'zz_beds', TRUE);
"""


@pytest.fixture
def folder(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project / "schema" / "rel", tmp_path / "rel"))


@pytest.fixture
def worker(settings: Settings) -> Iterator[Any]:
    """A connection as the workers' user."""
    assert settings.databases.rel is not None
    with contextlib.closing(connect(settings.databases.rel, 10)) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.fixture(autouse=True)
def tidy(settings: Settings) -> Iterator[None]:
    yield
    dba = settings.schema_.dba.rel
    assert dba is not None
    with contextlib.closing(connect(dba, 10)) as connection, connection.cursor() as cursor:
        for name in ("plain", "dynamic", "prepared", "caller", "callers_caller", "beds", "loose"):
            cursor.execute(f"DROP PROCEDURE IF EXISTS zz_{name}")
        cursor.execute("DELETE FROM beds_schema_history WHERE file LIKE 'R__zz%'")
        connection.commit()


def apply(settings: Settings, folder: Path, text: str) -> tuple[RelSchema, list[str]]:
    (folder / "R__zz.sql").write_text(text)
    assert settings.schema_.dba.rel is not None
    schema = RelSchema(folder, SYSTEM / "rel", settings.schema_.dba.rel, settings.databases.rel, "127.0.0.1")
    done = []
    for change in schema.changes():
        change.apply()
        done.append(str(change))
    return schema, done


def may_call(cursor: Any, name: str) -> bool:
    try:
        cursor.execute(f"CALL {name}()")
        cursor.fetchall()
        while cursor.nextset():
            pass
    except MySQLdb.Error as error:
        assert error.args[0] == 1370  # EXECUTE denied
        return False
    return True


def test_a_procedure_that_gains_a_commit_loses_its_grant(settings: Settings, folder: Path, worker: Any) -> None:
    apply(settings, folder, PLAIN)
    assert may_call(worker, "zz_plain")
    schema, _ = apply(settings, folder, COMMITS)
    assert not may_call(worker, "zz_plain")
    assert schema.procedures_that_commit() == ["zz_plain"]
    apply(settings, folder, PLAIN)
    assert may_call(worker, "zz_plain")


def test_a_change_past_the_files_is_seen_and_revoked(settings: Settings, folder: Path, worker: Any) -> None:
    apply(settings, folder, PLAIN)
    dba = settings.schema_.dba.rel
    assert dba is not None
    with contextlib.closing(connect(dba, 10)) as connection, connection.cursor() as cursor:
        cursor.execute(COMMITS)  # which keeps the grant
    assert may_call(worker, "zz_plain")
    _, done = apply(settings, folder, PLAIN)
    assert any("revoke" in line and "zz_plain" in line for line in done)
    assert not may_call(worker, "zz_plain")


def test_what_could_commit_by_others_or_by_dynamic_sql_is_not_granted(
    settings: Settings, folder: Path, worker: Any
) -> None:
    schema, _ = apply(settings, folder, PLAIN + HIDDEN)
    hidden = ["zz_beds", "zz_caller", "zz_callers_caller", "zz_dynamic", "zz_prepared"]
    assert schema.procedures_that_commit() == hidden
    assert [name for name in [*hidden, "zz_plain"] if may_call(worker, name)] == ["zz_plain"]


def test_a_procedure_made_without_strict_mode_is_named(settings: Settings, folder: Path) -> None:
    loose = "SET sql_mode = '';\nCREATE OR REPLACE PROCEDURE zz_loose() SELECT 1;\nSET sql_mode = 'STRICT_ALL_TABLES';"
    schema, _ = apply(settings, folder, loose)
    assert schema.not_strict() == ["zz_loose"]


def test_a_file_with_a_byte_order_mark_is_applied(settings: Settings, folder: Path, worker: Any) -> None:
    apply(settings, folder, "\ufeff" + PLAIN)
    assert may_call(worker, "zz_plain")

"""The DBA's files: names, order, and statements that a procedure must not contain."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from beds.config.sections import RecDatabase
from beds.errors import SchemaError
from beds.schema_tools.rec import RecSchema
from beds.schema_tools.rel import _read_folder, ends_transaction
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "body",
    [
        "BEGIN INSERT INTO a VALUES (1); COMMIT; END",
        "BEGIN ROLLBACK; END",
        "START TRANSACTION",
        "begin start   transaction; end",
        "TRUNCATE TABLE a",
        "TRUNCATE a",
        "ALTER TABLE a ADD b INT",
        "CREATE TABLE a (b INT)",
        "CREATE OR REPLACE VIEW a AS SELECT 1",
        "DROP TABLE a",
        "DROP INDEX i ON a",
        "SET autocommit = 1",
        "SET @@session.autocommit = 1",
        "set SESSION AutoCommit = on",
        "SET @a = 1, autocommit = 0",
        "LOCK TABLES a WRITE",
        "UNLOCK TABLE",
        "FLUSH TABLES",
        "flush privileges",
        "RENAME TABLE a TO b",
        "ANALYZE TABLE a",
        "START  /* now */  TRANSACTION",
        "GRANT SELECT ON a TO b",
        "BEGIN /* fine */ COMMIT /* not */; END",
    ],
)
def test_what_ends_the_transaction_is_seen(body: str) -> None:
    assert ends_transaction(body)


@pytest.mark.parametrize(
    "body",
    [
        "INSERT INTO a VALUES ('COMMIT')",
        "BEGIN -- COMMIT\n SELECT 1; END",
        "BEGIN # ROLLBACK\n SELECT 1; END",
        "/* DROP TABLE a */ SELECT 1",
        "SELECT `commit` FROM a",
        "BEGIN ROLLBACK TO here; END",
        "CREATE TEMPORARY TABLE a (b INT)",
        "DROP TEMPORARY TABLE a",
        "UPDATE a SET b = 'it''s; DROP TABLE a'",
        "SELECT committed FROM drops",
    ],
)
def test_what_only_looks_like_it_is_not(body: str) -> None:
    assert not ends_transaction(body)


def test_files_are_ordered_by_version_then_repeatable(tmp_path: Path) -> None:
    for name in ("R__b.sql", "V10__c.sql", "V0002__b.sql", "R__a.sql", "V1__a.sql"):
        (tmp_path / name).write_text("SELECT 1")
    assert list(_read_folder(tmp_path)) == ["V1__a.sql", "V0002__b.sql", "V10__c.sql", "R__a.sql", "R__b.sql"]


@pytest.mark.parametrize("name", ["tables.sql", "V__x.sql", "v1__x.sql", "V1_x.sql", "R_x.sql"])
def test_a_name_of_neither_form_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(SchemaError, match="no name of a schema file"):
        _read_folder(tmp_path)


def test_two_files_of_one_version_are_refused(tmp_path: Path) -> None:
    for name in ("V1__a.sql", "V001__b.sql"):
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(SchemaError, match="same version"):
        _read_folder(tmp_path)


def test_delimiter_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "R__a.sql").write_text("DELIMITER //\nSELECT 1 //\n")
    with pytest.raises(SchemaError, match="leave it out"):
        _read_folder(tmp_path)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "R__a.sql").write_bytes(b"\xff\xfe")
    with pytest.raises(SchemaError, match=r"schema/rel/R__a\.sql cannot be read"):
        _read_folder(tmp_path)
    (tmp_path / "R__a.sql").unlink()
    (tmp_path / "V1__a.sql").mkdir()
    with pytest.raises(SchemaError, match="cannot be read"):
        _read_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("collection.json", b'{"validator": 5}'),
        ("collection.json", b'{"indexes": 5}'),
        ("collection.json", b'{"indexes": [5]}'),
        ("collection.json", b'{"indexes": [{"key": 5}]}'),
        ("collection.json", b'{"indexes": [{"key": {"a": 1}, "name": 5}]}'),
        ("a.json", b"\xff"),
        ("a.json", b"[" * 100_000),
        ("a.json", b'{"name": "a", "kind": "find", "command": {"find": "a"}, "params": {"x": {"bsonType": 5}}}'),
        ("a.json", b'{"name": "a", "kind": "find", "command": {"find": "a"}, "params": 5}'),
        ("a.json", b'{"name": "a", "kind": "aggregate", "command": {"aggregate": "a", "pipeline": 5}}'),
        ("a.json", b'{"name": 5}'),
    ],
)
def test_a_document_schema_of_the_wrong_shape_is_told_by_file(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / name).write_bytes(text)
    with pytest.raises(SchemaError, match=f"things/{name}"):
        RecSchema([tmp_path], RecDatabase(uri=SecretStr("mongodb://127.0.0.1:1/")))


def test_the_sample_schema_reads() -> None:
    assert "V0001__tables.sql" in _read_folder(ROOT / "schema" / "rel")

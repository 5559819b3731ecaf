"""The parts of `beds schema draft` that need no server."""

from __future__ import annotations

import io
import re
import tomllib

import pytest

from beds.adapters.mariadb.types import SqlType
from beds.errors import StackError
from beds.schema_tools.draft.catalogue import Column, Index, Parameter, Routine, Table
from beds.schema_tools.draft.naming import field_name, stem, template_name
from beds.schema_tools.draft.routines import Routines
from beds.schema_tools.draft.tables import draft_table
from beds.schema_tools.draft.template import CannotDraft
from beds.schema_tools.rel import ends_transaction
from beds.stack.dump import _adapted

STRICT = "STRICT_TRANS_TABLES"


def routine(body: str, name: str = "p", kind: str = "procedure", access: str = "CONTAINS SQL") -> Routine:
    return Routine(
        name, kind, body, STRICT, "DEFINER", "", access, (Parameter("in_id", "in", SqlType.parse("int(11)")),)
    )


@pytest.mark.parametrize(
    ("body", "names", "is_certain"),
    [
        ("SELECT * FROM a", ["a"], True),
        ("BEGIN SELECT * FROM a; SELECT * FROM `b c`; END", ["set_1", "set_2"], True),
        ("BEGIN SELECT * FROM a; SELECT * FROM b; END", ["a", "b"], True),
        ("BEGIN SELECT 1 FROM a; SELECT 2 FROM a; END", ["set_1", "set_2"], True),
        ("BEGIN SELECT x INTO @x FROM a; SELECT * FROM b; END", ["b"], True),
        ("BEGIN INSERT INTO a SELECT * FROM b; END", [], True),
        ("BEGIN DECLARE c CURSOR FOR SELECT * FROM a; OPEN c; CLOSE c; SELECT * FROM b; END", ["b"], True),
        ("BEGIN IF in_id > 1 THEN SELECT * FROM a; ELSE SELECT * FROM b; END IF; END", ["set_1"], False),
        ("BEGIN IF x THEN SELECT 1 FROM a; SELECT 2 FROM b; ELSEIF y THEN SELECT 3; END IF; SELECT 4 FROM c; END",
         ["set_1", "set_2", "set_3"], False),
        ("BEGIN CASE x WHEN 1 THEN SELECT 1 FROM a; WHEN 2 THEN SELECT 2 FROM b; ELSE SELECT 3; END CASE; END",
         ["set_1"], False),
        ("BEGIN IF x THEN SET @a = 1; END IF; SELECT * FROM a; END", ["a"], True),
        ("again: LOOP SELECT 1 FROM a; LEAVE again; END LOOP again", ["set_1"], False),
        ("BEGIN WHILE x DO SELECT 1 FROM a; END WHILE; END", ["set_1"], False),
        ("BEGIN REPEAT SET @a = 1; UNTIL @a END REPEAT; SELECT * FROM a; END", ["a"], True),
        ("done: BEGIN -- SELECT 1;\n SELECT 'SELECT 2; SELECT 3' AS t FROM a; END", ["a"], True),
        ("BEGIN DECLARE EXIT HANDLER FOR NOT FOUND SET @a = 1; SELECT * FROM a; END", ["a"], True),
        ("BEGIN SELECT * FROM a WHERE id IN (SELECT id INTO_ FROM b); END", ["a"], True),
        ("BEGIN DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN SELECT 'failed'; END; SELECT * FROM a; END",
         ["set_1", "set_2"], False),
        ("BEGIN DECLARE CONTINUE HANDLER FOR NOT FOUND SET @x = (SELECT 1); SELECT * FROM a; END", ["a"], True),
        ("BEGIN DECLARE EXIT HANDLER FOR 1062, SQLWARNING INSERT INTO l SELECT 1; SELECT * FROM a; END", ["a"], True),
        ("p: BEGIN IF x THEN LEAVE p; END IF; SELECT * FROM a; SELECT * FROM b; END", ["set_1", "set_2"], False),
        ("SELECT EXTRACT(YEAR FROM placed) AS y FROM orders", ["orders"], True),
        ("BEGIN CALL other(1); SELECT * FROM b; END", ["shown", "b"], True),
        ("BEGIN CALL unknown(1); SELECT * FROM b; END", ["set_1"], False),
    ],
)  # fmt: skip
def test_the_result_sets_of_a_procedure(body: str, names: list[str], is_certain: bool) -> None:
    main = routine(body)
    found = Routines([main, routine("SELECT * FROM shown", "other")]).result_sets(main)
    assert found.is_certain is is_certain
    assert found.names() == names


@pytest.mark.parametrize(
    ("body", "access", "writes"),
    [
        ("SELECT * FROM a", "READS SQL DATA", False),
        ("BEGIN DECLARE EXIT HANDLER FOR NOT FOUND RETURN NULL; SELECT * FROM a; END", "CONTAINS SQL", False),
        ("UPDATE a SET x = 1", "CONTAINS SQL", True),
        ("SELECT NEXTVAL(s)", "MODIFIES SQL DATA", True),
        ("SELECT REPLACE(a, ' ', ''), TRUNCATE(b, 2), INSERT(c, 1, 1, 'x') FROM `update` FOR UPDATE", "NO SQL", False),
        ("SELECT NEXTVAL(s)", "CONTAINS SQL", True),
        ("CALL writer(1)", "CONTAINS SQL", True),
        ("CALL reader(1)", "CONTAINS SQL", False),
        ("CALL elsewhere(1)", "CONTAINS SQL", True),
    ],
)
def test_whether_a_procedure_writes(body: str, access: str, writes: bool) -> None:
    main = routine(body, access=access)
    others = [routine("DELETE FROM a", "writer"), routine("SELECT 1", "reader")]
    assert Routines([main, *others]).may_write(main) is writes


def test_procedures_that_call_each_other_end() -> None:
    one, two = routine("CALL two(1)", "one"), routine("CALL one(1)", "two")
    routines = Routines([one, two])
    assert not routines.may_write(one)
    assert not routines.result_sets(one).is_certain


def test_names() -> None:
    assert [field_name(name) for name in ("film_id", "unit price", "Größe", "1st", "Pos.", "名")] == [
        "film_id", "unit_price", "Groe", "f_1st", "Pos", field_name("名"),
    ]  # fmt: skip
    assert field_name("名").startswith("f_")
    assert len(field_name("x" * 64)) == 54
    assert field_name("x" * 64) != field_name("x" * 63 + "y")
    assert [template_name(name) for name in ("film_actor", "order lines", "Kunden", "xFy")] == [
        "FilmActor", "OrderLines", "Kunden", "XFy",
    ]  # fmt: skip
    assert [stem(name) for name in ("OrderLine", "order lines", "A")] == ["order_line", "order_lines", "a"]


def column(name: str, declared: str, **more: object) -> Column:
    return Column(name, SqlType.parse(declared), bool(more.pop("nullable", False)), **more)  # type: ignore[arg-type]


def test_the_key_is_the_primary_one_or_a_unique_one_without_nulls() -> None:
    columns = (column("a", "int(11)"), column("b", "int(11)", nullable=True), column("c", "int(11)"))
    only_null = Table("t", "BASE TABLE", columns, indexes=(Index("u", ("b",), True),))
    assert only_null.key == ()
    with pytest.raises(CannotDraft, match="no primary key"):
        draft_table(only_null, "T", "", frozenset(), jobs=False)
    both = Table("t", "BASE TABLE", columns, indexes=(Index("u", ("c",), True), Index("PRIMARY", ("a", "c"), True)))
    assert both.key == ("a", "c")
    assert Table("t", "BASE TABLE", columns, indexes=(Index("u", ("c",), True),)).key == ("c",)


def test_a_comment_cannot_leave_its_place() -> None:
    evil = "x\"\"\"\n[create]\nobject = 'y' */ -- ' \\"
    table = Table(
        "t", "BASE TABLE",
        (column("id", "int(11)", comment=evil), column("kind", "enum('a','it''s')", default="'it''s'")),
        comment=evil, indexes=(Index("PRIMARY", ("id",), True),), checks=(evil,),
    )  # fmt: skip
    drafted = draft_table(table, "T", "", frozenset(), jobs=True)
    template = tomllib.loads(drafted.template.text())
    assert template["fields"]["id"]["description"] == " ".join(evil.split())
    assert template["create"]["object"] == "t_create"
    assert template["fields"]["kind"]["values"] == ["a", "it's"]
    assert evil.split()[0] not in drafted.sql


def test_a_column_that_a_parameter_would_hide_is_qualified() -> None:
    table = Table(
        "t", "BASE TABLE", (column("id", "int(11)"), column("p_id", "int(11)", nullable=True)),
        indexes=(Index("PRIMARY", ("id",), True),),
    )  # fmt: skip
    assert "WHERE t.id = p_id" in draft_table(table, "T", "", frozenset(), jobs=False).sql


def test_the_parts_of_a_dump_that_belong_to_its_own_server_are_left_out() -> None:
    dump = (
        b"CREATE DATABASE shop;\nUSE `shop`;\nSET @@GLOBAL.GTID_PURGED='x';\n"
        b"CREATE DEFINER=`a`@`%` VIEW shop.v AS SELECT `shop`.`t`.`a` FROM shop.t;\n"
        b"INSERT INTO t VALUES ('it''s; \\' shop.t;\nUSE shop;\n', 1);\nDROP DATABASE shop;\n"
    )
    assert b"".join(_adapted(io.BytesIO(dump))) == (
        b"\n\n\nCREATE  VIEW v AS SELECT `t`.`a` FROM t;\n"
        b"INSERT INTO t VALUES ('it''s; \\' shop.t;\nUSE shop;\n', 1);\n\n"
    )


def test_a_dump_keeps_what_only_looks_like_its_databases_name() -> None:
    dump = (
        b"USE `customer`;\nCREATE TABLE `customer` (\n mail VARCHAR(99) DEFAULT 'https://customer.example/');\n"
        b"CREATE PROCEDURE p() DELETE FROM customer WHERE customer.id = 1;\n"
        b"CREATE PROCEDURE q()\n SELECT * FROM u\nUSE INDEX (ix) WHERE a = 1;\n"
        b"  INSERT INTO t VALUES ('x\nUSE a;\n');\n/*!40000 INSERT INTO t VALUES ('\nUSE b;\n') */;\n"
    )
    assert b"".join(_adapted(io.BytesIO(dump))) == b"\n" + dump.partition(b"\n")[2]
    text = b"USE `shop`;\nCREATE VIEW v AS SELECT 'shop.x', \"shop.y\" FROM shop.t;\n"
    assert b"'shop.x', \"shop.y\" FROM t" in b"".join(_adapted(io.BytesIO(text)))


def test_a_dump_of_several_databases_is_refused() -> None:
    with pytest.raises(StackError, match="a and b"):
        list(_adapted(io.BytesIO(b"USE a;\nUSE `b`;\n")))


@pytest.mark.parametrize(
    "word", ["granted", "renamed_by", "revoked_at", "alternative", "truncated", "flushed", "`alter`"]
)
def test_a_name_that_begins_like_a_statement_ends_no_transaction(word: str) -> None:
    assert not ends_transaction(f"SELECT {word} FROM t WHERE {word} = 1")


@pytest.mark.parametrize(
    "text", ["TRUNCATE `t`", "ALTER TABLE t ADD x INT", "GRANT SELECT ON t TO u", "CREATE TABLE `t` (a INT)"]
)
def test_a_statement_that_ends_the_transaction(text: str) -> None:
    assert ends_transaction(f"BEGIN {text}; END")


def test_a_key_named_like_a_parameter_of_pages() -> None:
    columns = (column("limit", "int(11)"), column("keys", "int(11)"), column("after_keys", "int(11)"))
    indexes = (
        Index("PRIMARY", ("limit", "keys"), True),
        Index("k", ("keys",), False),
        Index("a", ("after_keys",), False),
    )
    drafted = draft_table(Table("t", "BASE TABLE", columns, indexes=indexes), "T", "", frozenset(), jobs=True)
    for text in drafted.sql.split("CREATE OR REPLACE PROCEDURE ")[1:]:
        parameters = re.findall(r"\b(p_\w+) [a-zA-Z]", text.partition("COMMENT")[0])
        assert len(parameters) == len(set(parameters)), text
    assert "PROCEDURE t_by_keys(IN p_keys JSON)" in drafted.sql


def test_a_gtid_set_of_a_dump_may_take_several_lines() -> None:
    dump = b"SET @@GLOBAL.GTID_PURGED=/*!80000 '+'*/ '3E11:1-5,\n4E11:1-10';\nCREATE TABLE t (a INT);\n"
    assert b"".join(_adapted(io.BytesIO(dump))) == b"\nCREATE TABLE t (a INT);\n"


def test_an_insert_of_a_procedure_is_no_row_of_a_dump() -> None:
    dump = (
        b"USE shop;\nDELIMITER ;;\nCREATE PROCEDURE p()\nBEGIN\n"
        b"INSERT INTO shop.log VALUES (1); -- don't\nEND ;;\nDELIMITER ;\n"
    )
    assert b"INSERT INTO log VALUES" in b"".join(_adapted(io.BytesIO(dump)))

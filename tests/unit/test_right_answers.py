"""Details of correct answers: exact limits, datetimes, numbers as text, named errors, labels, definitions."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import MySQLdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from MySQLdb.constants import FIELD_TYPE
from pymongo.errors import ConnectionFailure, OperationFailure

from beds.adapters.mariadb import definition
from beds.adapters.mariadb.columns import read_rows, reader
from beds.adapters.mariadb.errors import refused_by_warning
from beds.adapters.mariadb.errors import translate as from_mariadb
from beds.adapters.mariadb.types import SqlType
from beds.adapters.mariadb.values import bulk_to_json
from beds.adapters.mongo.errors import translate as from_mongo
from beds.adapters.mongo.values import document_to_bson, documents_to_bson
from beds.adapters.store import is_harmless
from beds.cli.values import convert as _convert
from beds.client.call import Call
from beds.config.sections import Amqp
from beds.domain.event import Event, Operation, Store
from beds.domain.lineage import Lineage
from beds.domain.record_id import id_text
from beds.errors import (
    BrokerUnavailable,
    BusinessRule,
    DuplicateKey,
    ForeignKeyViolation,
    InvalidPayload,
    MalformedEvent,
    OutOfRange,
    Overloaded,
    StoreError,
    StoreUnavailable,
    TemplateError,
    TooLong,
    WrongType,
)
from beds.templates.fields import FieldSpec
from beds.templates.named_object import Param
from beds.templates.template import load_template
from beds.transport.amqp_connection import _ClockWatch
from beds.transport.confirms import UNCONFIRMED_SECONDS, ConfirmWatch
from beds.transport.pending import Pending
from beds.transport.requester import _InFlight
from beds.wire import codec
from beds.wire.message import to_message, with_encoded_body

# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["decimal", "number"])
def test_limits_are_what_the_developer_wrote(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(
        '[template]\nname = "T"\nstore = "rel"\nkey = "id"\n[fields.id]\ntype = "integer"\n'
        f'[fields.price]\ntype = "{kind}"\nmin = 0.1\nmax = 99.99\n'
    )
    price = load_template(file).fields["price"]
    value = Decimal if kind == "decimal" else float
    for fits in ("0.1", "99.99", "0.3"):
        assert price.check("price", value(fits)) == value(fits)
    for beyond in ("0.09", "99.991"):
        with pytest.raises(OutOfRange):
            price.check("price", value(beyond))
    for nothing in (value("nan"), value("inf"), value("-inf")):
        with pytest.raises(OutOfRange):
            price.check("price", nothing)


def test_integers_up_to_the_largest_unsigned_one_are_carried() -> None:
    spec = FieldSpec(type="integer")
    assert spec.check("n", 2**64 - 1) == 2**64 - 1
    for beyond in (2**64, -(2**63) - 1):
        with pytest.raises(OutOfRange):
            spec.check("n", beyond)


@pytest.mark.parametrize(
    "value", [timedelta(0), timedelta(hours=-838, microseconds=1), timedelta(seconds=3600.5), timedelta(days=400)]
)
def test_a_duration_crosses_the_wire(value: timedelta) -> None:
    assert codec.loads(codec.dumps(value)) == value


@pytest.mark.parametrize("text", ["PT1.S", "P1D", "PT", "1", "PT1_0S", "PT99999999999999999S"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(MalformedEvent):
        codec.decode({"$duration": text})


@pytest.mark.parametrize(
    ("kind", "text"),
    [("integer", "1_0"), ("integer", " 1"), ("number", "1_0.0"), ("decimal", "1_0"), ("decimal", " 1 ")],
)
def test_a_number_on_the_command_line_is_one(kind: str, text: str) -> None:
    with pytest.raises(WrongType):
        _convert("n", text, FieldSpec(type=kind))


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "NaN"])
@pytest.mark.parametrize("kind", ["number", "decimal"])
def test_nan_on_the_command_line_is_refused(kind: str, text: str) -> None:
    spec = FieldSpec(type=kind)
    with pytest.raises(InvalidPayload):
        spec.check("n", _convert("n", text, spec))


def test_a_sensitive_value_stands_in_no_message_of_the_command_line() -> None:
    with pytest.raises(WrongType) as caught:
        _convert("ssn", "12345X", FieldSpec(type="integer", sensitive=True))
    assert "12345X" not in str(caught.value)


def test_the_same_instant_in_another_zone_is_the_same_event() -> None:
    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    there = noon.astimezone(timezone(timedelta(hours=2)))
    calls = [Call("create_record", "T", {"at": at, "list": [at]}) for at in (noon, there)]
    assert calls[0].digest == calls[1].digest
    assert calls[0].digest != Call("create_record", "T", {"at": noon + timedelta(1), "list": [noon]}).digest


def test_record_ids_are_readable_and_never_shared() -> None:
    assert id_text(["a,b"]) == "a,b"
    assert id_text([b"\x00\xff"]) == "AP8="
    assert id_text([True, date(2024, 1, 1), UUID(int=1)]) == f"true,2024-01-01,{UUID(int=1)}"
    assert len({id_text(parts) for parts in (["a,b", "c"], ["a", "b,c"], ["a%2Cb", "c"])}) == 3


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_bytes(b'\xef\xbb\xbf[template]\nname = "T"\nstore = "rel"\nkey = "id"\n[fields.id]\ntype = "integer"\n')
    assert load_template(file).name == "T"


@pytest.mark.parametrize(
    ("key", "words"),
    [('["id", "id"]', "several different"), ('["id", "nope"]', "'nope' is not one of the fields"), ("[]", "one field"),
     ('["id", "part"]', "fields.part: a part of a composite key is required")],
)  # fmt: skip
def test_a_wrong_key_is_told(tmp_path: Path, key: str, words: str) -> None:
    file = tmp_path / "t.toml"
    file.write_text(
        f'[template]\nname = "T"\nstore = "rel"\nkey = {key}\n[fields.id]\ntype = "integer"\nrequired = true\n'
        '[fields.part]\ntype = "integer"\n'
    )
    with pytest.raises(TemplateError, match=words):
        load_template(file)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_index_of_any_name_is_named() -> None:
    message = "Duplicate entry 'for key 'x'' for key 'uq-nick'"
    error = from_mariadb(MySQLdb.IntegrityError(1062, message))
    assert isinstance(error, DuplicateKey)
    assert error.detail["field"] == "uq-nick"


def test_all_fields_of_a_foreign_key_are_named() -> None:
    message = (
        "Cannot add or update a child row: a foreign key constraint fails (`b`.`order-notes`, CONSTRAINT `c` "
        "FOREIGN KEY (`order_id`, `line no`) REFERENCES `b`.`lines` (`order_id`, `line_no`))"
    )
    error = from_mariadb(MySQLdb.IntegrityError(1452, message))
    assert isinstance(error, ForeignKeyViolation)
    assert error.detail["fields"] == ["order_id", "line no"]


def test_a_signal_of_not_found_is_a_rule() -> None:
    assert isinstance(from_mariadb(MySQLdb.OperationalError(1643, "no more seats"), "02000"), BusinessRule)


@pytest.mark.parametrize("code", [1290, 1792, 1836])
def test_a_replica_wrote_nothing(code: int) -> None:
    error = from_mariadb(MySQLdb.OperationalError(code, "running with the --read-only option"))
    assert isinstance(error, StoreUnavailable)
    assert is_harmless(error)


def test_a_warning_of_a_changed_value_is_an_error_and_another_is_not() -> None:
    text, number = FieldSpec(type="string"), FieldSpec(type="decimal")
    assert type(refused_by_warning(1265, "Data truncated for column 'word' at row 1", lambda _: text)) is TooLong
    assert type(refused_by_warning(1265, "Data truncated for column 'n' at row 1", lambda _: number)) is OutOfRange
    assert refused_by_warning(1051, "Unknown table", lambda _: None) is None


@pytest.mark.parametrize("code", [24, 112, 246, 251, 91, 189])
def test_a_transient_label_says_try_again_whatever_the_code(code: int) -> None:
    failure = OperationFailure("x", code, {"errorLabels": ["TransientTransactionError"]})
    error = from_mongo(failure)
    assert isinstance(error, StoreUnavailable)
    assert is_harmless(error)


def test_a_commit_in_doubt_may_have_written() -> None:
    failure = ConnectionFailure("x", error_labels=["UnknownTransactionCommitResult"])
    error = from_mongo(failure)
    assert isinstance(error, StoreUnavailable)
    assert not is_harmless(error)


# --- RabbitMQ and clocks ---------------------------------------------------------------------------------------------


class _NoLink:
    def __init__(self, *_: object, **__: object) -> None:
        self.given_up = False
        self.free_since = 0.0

    def give_up(self, _why: object) -> None:
        self.given_up = True


@pytest.mark.parametrize(("limit", "error"), [(0, BrokerUnavailable), (10, Overloaded)])
def test_a_nack_means_full_only_where_a_queue_has_a_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int, error: type[Exception]
) -> None:
    monkeypatch.setattr("beds.transport.requester.AmqpConnection", _NoLink)
    in_flight = _InFlight(Amqp(url="amqp://x", max_queue_length=limit), 1, ConfirmWatch())
    pending = Pending(Event.of_operation(Store.REL, Operation.CREATE, "T", {}, Lineage.root("n", "e")))
    in_flight.await_answer(1, pending)
    in_flight._on_confirm(1, multiple=False, accepted=False)
    assert isinstance(pending.confirmed.exception(), error)
    # On the same channel RabbitMQ would keep refusing.
    assert in_flight.connection.given_up is (limit == 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_blocked", [False, True])
def test_a_connection_without_a_confirm_for_long_is_given_up_unless_it_is_blocked(
    monkeypatch: pytest.MonkeyPatch, is_blocked: bool
) -> None:
    monkeypatch.setattr("beds.transport.requester.AmqpConnection", _NoLink)
    in_flight = _InFlight(Amqp(url="amqp://x"), 1, ConfirmWatch())
    in_flight.connection.free_since = math.inf if is_blocked else 0.0
    pending = Pending(Event.of_operation(Store.REL, Operation.CREATE, "T", {}, Lineage.root("n", "e")))
    in_flight.await_answer(1, pending)
    in_flight._check_confirms()
    assert not in_flight.connection.given_up  # type: ignore[attr-defined]
    pending.at = time.monotonic() - UNCONFIRMED_SECONDS - 1
    in_flight._check_confirms()
    assert in_flight.connection.given_up is not is_blocked  # type: ignore[attr-defined]


def test_a_queue_that_is_only_slow_gets_more_patience_until_it_confirms() -> None:
    watch, now = ConfirmWatch(), time.monotonic()
    late = now - UNCONFIRMED_SECONDS - 1
    assert not watch.is_overdue("rel.write", now, 0.0)
    assert not watch.is_overdue("rel.write", late, free_since=now)
    assert watch.is_overdue("rel.write", late, 0.0)
    assert not watch.is_overdue("rel.write", late, 0.0), "the second connection has the same patience"
    assert watch.is_overdue("rec.write", late, 0.0), "another queue"
    watch.confirmed("rel.write")
    assert not watch.is_overdue("rel.write", late, 0.0), "one of its messages was confirmed just now"


def test_expiry_is_counted_by_rabbitmq_and_not_by_the_clients_clock() -> None:
    event = Event.of_operation(Store.REL, Operation.FETCH, "T", {}, Lineage.root("n", "e"), expires_in=2.5)
    message = to_message(with_encoded_body(event, 10_000), "somebody")
    assert message.properties["expiration"] == "2500"
    assert message.properties["application_headers"].get("expires") is None


@pytest.mark.parametrize(("ahead", "word"), [(15, "behind"), (-15, "ahead")])
def test_a_wrong_clock_is_named_once_in_a_while(ahead: int, word: str, caplog: pytest.LogCaptureFixture) -> None:
    watch = _ClockWatch()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            watch.compare(int(time.time()) + ahead)
            watch.compare(int(time.time()))
            watch.compare("nonsense")
    assert len(caplog.records) == 1
    assert word in caplog.records[0].getMessage()


# --- definitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("INSERT INTO a (b) VALUES (p_b)", ["a"]),
        ("INSERT IGNORE `a` SET b = p_b", ["a"]),
        ("REPLACE INTO db.a VALUES (1)", ["a"]),
        ("BEGIN UPDATE a SET b = 1; INSERT INTO c SELECT 'UPDATE d'; END", ["a", "c"]),
        ("SELECT x FROM t FOR UPDATE", []),
        ("-- INSERT INTO a\nSELECT 1", []),
    ],
)
def test_the_tables_that_a_routine_writes_to(text: str, tables: list[str]) -> None:
    assert definition.target_tables(definition.code_of(text)) == tables


@pytest.mark.parametrize(
    ("text", "flows"),
    [
        ("INSERT INTO a (b, c) VALUES (p_b, 1)", {("p_b", "a", "b")}),
        ("INSERT INTO a VALUES (1, p_b)", {("p_b", "a", 1)}),
        ("INSERT INTO a (b) VALUES ('x'), (p_b)", {("p_b", "a", "b")}),
        ("INSERT INTO a SET `At` = p_b, c = 1", {("p_b", "a", "at")}),
        ("INSERT INTO a (c) VALUES (1) ON DUPLICATE KEY UPDATE b = p_b", {("p_b", "a", "b")}),
        ("UPDATE a SET b = p_b WHERE c = p_c", {("p_b", "a", "b")}),
        ("UPDATE a SET a.b = COALESCE(p_b, b)", {("p_b", "a", "b"), ("b", "a", "b")}),
        ("UPDATE a SET b = IF(p_c IS NULL, b, P_B)", {("p_b", "a", "b"), ("b", "a", "b")}),
        ("INSERT INTO a (x) SELECT p_b AS x", {("p_b", "a", "x")}),
        (
            "INSERT INTO a (x) SELECT r.p_b FROM JSON_TABLE(p, '$[*]' COLUMNS (p_b INT PATH '$.b')) r",
            {("p_b", "a", "x")},
        ),
        ("INSERT INTO a (x) VALUES (FROM_BASE64(p_b))", {("p_b", "a", "x")}),
        ("BEGIN INSERT INTO a (v) VALUES (p_b); INSERT INTO m (v) VALUES (1); END", {("p_b", "a", "v")}),
        ("INSERT INTO a VALUES (ROUND(p_b, 2))", set()),
        ("INSERT INTO a (x) VALUES (p_b + 1)", set()),
        ("INSERT INTO a (x) VALUES (CONCAT(p_b, 'y'))", set()),
        ("INSERT INTO a (x) VALUES ('p_b')", set()),
    ],
)
def test_only_what_goes_into_a_column_as_it_is_counts(text: str, flows: set[tuple[str, str, str | int]]) -> None:
    code = definition.code_of(f"CREATE PROCEDURE x(IN p_b INT, IN p_c INT)\n{text}")
    assert {(flow.source, flow.table, flow.column) for flow in definition.flows(code)} == flows


def test_a_routine_is_read_in_the_mode_that_it_was_made_in() -> None:
    quoted = definition.code_of('INSERT INTO "a" ("At") VALUES (p_b)', "ANSI_QUOTES,STRICT_ALL_TABLES")
    assert [(f.source, f.column) for f in definition.flows(quoted)] == [("p_b", "at")]
    raw = definition.code_of("BEGIN SET @s = '\\'; INSERT INTO a (b) VALUES (p_b); END", "NO_BACKSLASH_ESCAPES")
    assert [(f.source, f.column) for f in definition.flows(raw)] == [("p_b", "b")]


def test_the_columns_of_json_table_are_read() -> None:
    text = (
        "SELECT * FROM JSON_TABLE(p_records, '$[*]' COLUMNS (id INT PATH '$.id' ERROR ON ERROR, `price` DECIMAL(10, 2) "
        "PATH '$.price', name VARCHAR(20) CHARACTER SET utf8mb4 PATH \"$.full_name\", -- note\n"
        " n BIGINT UNSIGNED PATH '$.n', d DOUBLE PRECISION PATH '$.d', part INT PATH '$.inner.part', "
        "NESTED PATH '$.lines[*]' COLUMNS (id VARCHAR(2) PATH '$.id'))) r"
    )
    assert definition.json_columns(text) == (
        {
            "id": "INT", "price": "DECIMAL(10, 2)", "full_name": "VARCHAR(20)", "n": "BIGINT UNSIGNED",
            "d": "DOUBLE PRECISION", "inner": "", "lines": "",
        },
        True,
    )  # fmt: skip
    assert definition.json_columns("INSERT INTO a SELECT JSON_VALUE(p_records, '$[0].x')") == ({}, False)


def test_declared_types_are_read() -> None:
    assert SqlType.parse("enum('a','it''s','c,d')").members == ("a", "it's", "c,d")
    assert SqlType.parse("decimal(10,2) unsigned").numbers == (10, 2)
    assert SqlType.parse("int(10) unsigned zerofill").unsigned
    vector = SqlType.parse("vector(3)")
    vector.check("v", bytes(12))
    with pytest.raises(OutOfRange):
        vector.check("v", bytes(8))
    assert SqlType.parse("enum('a" + chr(92) * 2 + "b')").members == ("a" + chr(92) + "b",)
    assert SqlType.parse("xmltype").carries == frozenset()


@pytest.mark.parametrize(
    ("body", "writes"),
    [
        ("SELECT a FROM t WHERE id = p_id", False),
        ("BEGIN SELECT a FROM t; SELECT b FROM u; END", False),
        ("SELECT 'DELETE' AS word /* INSERT */ FROM t", False),
        ("BEGIN INSERT INTO seen VALUES (p_id); SELECT a FROM t; END", True),
        ("BEGIN CALL another(p_id); END", True),
        ("EXECUTE IMMEDIATE p_text", True),
        ("DELETE FROM t WHERE id = p_id", True),
    ],
)
def test_a_routine_that_may_write_is_told_by_its_text(body: str, writes: bool) -> None:
    assert definition.may_write(definition.code_of(body)) is writes


COLUMNS = ["tinyint", "smallint unsigned", "bigint", "bigint unsigned", "year", "bit(3)", "decimal(4,2)", "float",
           "char(3)", "varchar(3)", "tinytext", "longtext", "enum('a')", "set('a','b')", "datetime", "datetime(3)",
           "timestamp(6)", "time", "uuid", "binary(3)"]  # fmt: skip
OF_ONE_TYPE = st.one_of(
    st.lists(st.integers(-(2**65), 2**65)), st.lists(st.integers(-130, 300)), st.lists(st.text(max_size=5)),
    st.lists(st.sampled_from(["", "a", "ab ", "x" * 64, "é" * 255])), st.lists(st.floats()), st.lists(st.booleans()),
    st.lists(st.datetimes(timezones=st.just(UTC))), st.lists(st.just(datetime(2026, 1, 1, 0, 0, 0, 5000, tzinfo=UTC))),
    st.lists(st.one_of(st.none(), st.integers(0, 9), st.text(max_size=1))),
)  # fmt: skip


@given(column=st.sampled_from(COLUMNS), values=OF_ONE_TYPE)
def test_a_column_of_a_bulk_is_kept_only_if_each_value_is(column: str, values: list[object]) -> None:
    declared = SqlType.parse(column)
    param = Param("field", declared.carries, column, checks=(declared.check,), keeps=(declared.keeps_all,))
    if param.keeps_all(values):
        for value in values:
            if value is not None:
                param.check("field", value)


FIELDS = {
    name: FieldSpec.model_validate({"type": kind})
    for name, kind in {
        "id": "integer",
        "text": "string",
        "at": "datetime",
        "n": "number",
        "d": "decimal",
        "i": "integer",
    }.items()
}
SHAPE = {"properties": {"_id": {"bsonType": "long"}, "i": {"bsonType": "int"}, "n": {"bsonType": "double"}}}
OF_A_BULK = st.lists(
    st.fixed_dictionaries(
        {"id": st.integers(-(2**33), 2**33)},
        optional={
            "text": st.one_of(st.none(), st.text(max_size=3)),
            "at": st.datetimes(timezones=st.just(UTC)).map(lambda at: at.replace(microsecond=at.microsecond // 7 * 7)),
            "n": st.one_of(st.none(), st.integers(-5, 2**60), st.floats(allow_nan=False, allow_infinity=False)),
            "i": st.one_of(st.none(), st.integers(-5, 5), st.integers(-(2**40), 2**70)),
            "d": st.decimals(allow_nan=False, allow_infinity=False, places=2),
        },
    ),
    max_size=4,
)  # fmt: skip


@given(records=OF_A_BULK)
def test_the_documents_of_a_bulk_are_those_of_each_record(records: list[dict[str, object]]) -> None:
    def told(convert: Callable[[], object]) -> object:
        try:
            return convert()
        except InvalidPayload as error:
            return type(error)

    alone = told(
        lambda: [
            document_to_bson(FIELDS, record, ("id",), SHAPE, f"payloads[{i}].") for i, record in enumerate(records)
        ]
    )
    together = told(lambda: documents_to_bson(FIELDS, records, ("id",), SHAPE))
    assert together == alone
    if isinstance(together, list) and isinstance(alone, list):
        assert [list(map(type, d.values())) for d in together] == [list(map(type, d.values())) for d in alone]


def test_a_bulk_as_json_keeps_what_json_has_and_writes_the_rest_as_text() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    records: list[dict[str, Any]] = [
        {"id": 1, "at": at, "d": Decimal("1E+2"), "tags": ["a", "b"], "list": [1], "text": "ä"},
        {"id": 2, "at": None, "raw": b"\x00"},
    ]
    columns = {
        "tags": Param("tags", frozenset({"string"}), "varchar(9)"),
        "list": Param("list", frozenset({"array"}), ""),
    }
    assert json.loads(bulk_to_json(records, columns)) == [
        {"id": 1, "at": "2026-01-02 00:00:00.000000", "d": "100", "tags": "a,b", "list": [1], "text": "ä"},
        {"id": 2, "at": None, "raw": "AA=="},
    ]


def test_a_column_is_read_alike_whether_its_values_need_conversion_or_not() -> None:
    whole = reader("n", FIELD_TYPE.LONGLONG, 20, FIELDS["id"])
    assert whole.values([1, None, 2]) == [1, None, 2]
    assert whole.values([1, Decimal(2), None]) == [1, 2, None]
    with pytest.raises(StoreError, match="column n"):
        whole.values([1, "x"])
    rows = read_rows(
        ["n", "at"],
        [whole, reader("at", FIELD_TYPE.DATETIME, 19, FIELDS["at"])],
        [(1, b"2026-01-02 00:00:00"), (2, None)],
    )
    assert rows == [{"n": 1, "at": datetime(2026, 1, 2, tzinfo=UTC)}, {"n": 2, "at": None}]
    assert read_rows(["n"], [whole], []) == []

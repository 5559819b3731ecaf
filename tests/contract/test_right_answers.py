"""Correct answers: effects, parameters, pages, result sets, keys, and stored values that cannot be encoded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from unittest.mock import Mock

import bson
import MySQLdb
import pytest
from pydantic import SecretStr
from pymongo.database import Database

from beds.adapters.mariadb import session
from beds.adapters.mariadb.session import connect
from beds.adapters.mariadb.signatures import Source
from beds.adapters.mongo.session import outcome_of
from beds.config import Settings, load_settings
from beds.domain.event import Operation, task_for
from beds.domain.identity import uuid7
from beds.domain.lineage import Lineage
from beds.domain.reply import Page, Response
from beds.domain.trace import OK, Trace, tracing
from beds.errors import (
    BedsError,
    BusinessRule,
    DuplicateKey,
    ForeignKeyViolation,
    InvalidCursor,
    NotFound,
    OutOfRange,
    ResultTooLarge,
    SchemaMismatch,
    StoreError,
    StoreUnavailable,
    UnknownField,
    WrongType,
)
from beds.services.dispatch import Factory, execute
from beds.services.execution import Attempt, Delivery, Execution
from beds.services.factory import AdapterFactory
from beds.services.tickets import TicketStore
from beds.templates.binding import Binding, bind
from beds.templates.named_object import NamedObject, ObjectKind
from beds.templates.registry import TemplateRegistry
from beds.templates.template import Template
from beds.testing import MemoryFactory
from beds.wire import codec
from beds.wire.header import EventHeader
from beds.wire.routes import ROUTES

Do = Callable[..., Any]
_order = iter(range(int(uuid7().int >> 88) % 10**8, 2**31))


@pytest.fixture(scope="module")
def loaded(project: Any, stack: Any) -> Settings:
    return load_settings(project / "beds.toml")


@pytest.fixture
def factory(loaded: Settings) -> Iterator[AdapterFactory]:
    found = AdapterFactory(loaded, TemplateRegistry.from_folder(loaded.schema_path))
    yield found
    found.close()


@pytest.fixture
def do(factory: AdapterFactory) -> Do:
    return doing(factory)


@pytest.fixture(params=["memory", "mariadb", "mongo"])
def lines(request: pytest.FixtureRequest) -> tuple[Do, str]:
    """A store, and its template with the key (order_id, line_no)."""
    template = "LinesDocs" if request.param == "mongo" else "OrderLines"
    if request.param == "memory":
        project = request.getfixturevalue("project")
        return doing(MemoryFactory(TemplateRegistry.from_folder(project / "schema"))), template
    return request.getfixturevalue("do"), template


@pytest.fixture
def dba(loaded: Settings) -> Iterator[Callable[..., None]]:
    """Runs SQL as the DBA."""
    login = loaded.schema_.dba.rel
    assert login is not None
    with contextlib.closing(connect(login, 30)) as connection:

        def run(sql: str, *arguments: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute(sql, arguments or None)
                connection.commit()

        yield run


def doing(factory: Factory) -> Do:
    def do(template: str, operation: Operation, **body: Any) -> Any:
        return execute(factory, factory.registry[template].store, operation, template, body)

    return do


def fetch(do: Do, template: str, using: str, **args: Any) -> Page:
    page: Page = do(template, Operation.FETCH, using=using, args=args)
    return page


# --- effects ---------------------------------------------------------------------------------------------------------


def test_an_affected_of_zero_counts(do: Do) -> None:
    with pytest.raises(NotFound):
        do("OrderLines", Operation.UPDATE, payload={"order_id": next(_order), "line_no": 1, "what": "x"})


def test_a_duplicate_names_its_index(do: Do) -> None:
    order, nick = next(_order), str(uuid7())[-18:]
    do("OrderLines", Operation.CREATE, payload={"order_id": order, "line_no": 1, "nick": nick})
    with pytest.raises(DuplicateKey) as caught:
        do("OrderLines", Operation.CREATE, payload={"order_id": order, "line_no": 2, "nick": nick})
    assert caught.value.detail["field"] == "nick-once"
    with pytest.raises(DuplicateKey) as caught:
        do("OrderLines", Operation.CREATE, payload={"order_id": order, "line_no": 1})
    assert caught.value.detail["field"] == "order_id, line_no"


def test_a_composite_foreign_key_names_its_fields(do: Do) -> None:
    order = next(_order)
    with pytest.raises(ForeignKeyViolation) as caught:
        do("LineNotes", Operation.CREATE, payload={"id": order, "order_id": order, "line_no": 1})
    assert caught.value.detail["fields"] == ["order_id", "line_no"]
    do("OrderLines", Operation.CREATE, payload={"order_id": order, "line_no": 1})
    do("LineNotes", Operation.CREATE, payload={"id": order, "order_id": order, "line_no": 1})
    with pytest.raises(ForeignKeyViolation) as caught:
        do("OrderLines", Operation.DELETE, record_id=[order, 1])
    assert caught.value.detail["fields"] == ["order_id", "line_no"]
    assert caught.value.detail["referred_by"] == "line_notes"


def test_a_signal_of_not_found_keeps_the_dbas_words(do: Do) -> None:
    with pytest.raises(BusinessRule, match="a note has a number"):
        do("LineNotes", Operation.CREATE, payload={"id": -1, "order_id": 1, "line_no": 1})


def test_the_record_id_is_the_stored_spelling(do: Do) -> None:
    code = f"Key{next(_order)}"
    do("Spellings", Operation.CREATE, payload={"code": code, "name": "a"})
    for spelling in (code + " ", code.upper(), code.lower()):
        changed: Response = do("Spellings", Operation.UPDATE, payload={"code": spelling, "name": "b"})
        assert changed.record_id == code
    assert do("Spellings", Operation.DELETE, record_id=code.lower() + " ").record_id == code


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_composite_key_names_one_record(lines: tuple[Do, str]) -> None:
    do, template = lines
    order = next(_order)
    for line in (1, 2, 3):
        made: Response = do(
            template, Operation.CREATE, payload={"order_id": order, "line_no": line, "what": f"w{line}"}
        )
        assert made.record_id == f"{order},{line}"
    with pytest.raises(DuplicateKey):
        do(template, Operation.CREATE, payload={"order_id": order, "line_no": 2})
    changed = do(template, Operation.UPDATE, payload={"order_id": order, "line_no": 2, "what": "new"})
    assert changed.record_id == f"{order},2"
    assert do(template, Operation.DELETE, record_id={"line_no": 1, "order_id": order}).affected == 1
    assert do(template, Operation.DELETE, record_id=[order, 3]).record_id == f"{order},3"
    with pytest.raises(NotFound):
        do(template, Operation.DELETE, record_id=(order, 3))
    page = fetch(do, template, "of", order_id=order)
    assert [(r["order_id"], r["line_no"], r["what"]) for r in page] == [(order, 2, "new")]
    for wrong in (order, [order], {"order_id": order}, {"order_id": order, "line_no": 1, "x": 1}, None):
        with pytest.raises(WrongType):
            do(template, Operation.DELETE, record_id=wrong)


def test_a_composite_key_pages(lines: tuple[Do, str]) -> None:
    do, template = lines
    order = next(_order)
    numbers = [1, 2, 3, 2**40, 2**62]
    for number in numbers:
        do(template, Operation.CREATE, payload={"order_id": order, "line_no": number})
    seen: list[int] = []
    cursor = ""
    while True:
        page: Page = do(template, Operation.FETCH, using="of", args={"order_id": order}, limit=2, cursor=cursor)
        seen += [record["line_no"] for record in page]
        if not (cursor := page.cursor):
            break
    assert seen == numbers


def test_an_unsigned_key_goes_to_its_end(do: Do) -> None:
    order = next(_order)
    for line in (2**64 - 2, 2**64 - 1):
        do("OrderLines", Operation.CREATE, payload={"order_id": order, "line_no": line})
    first: Page = do("OrderLines", Operation.FETCH, using="of", args={"order_id": order}, limit=1)
    last: Page = do("OrderLines", Operation.FETCH, using="of", args={"order_id": order}, limit=1, cursor=first.cursor)
    assert last[0]["line_no"] == 2**64 - 1
    assert do("OrderLines", Operation.DELETE, record_id=[order, 2**64 - 1]).affected == 1


def test_a_key_of_bytes_has_a_readable_id(do: Do) -> None:
    key = uuid7().bytes[-8:]
    made: Response = do("RawKeys", Operation.CREATE, payload={"id": key})
    assert not made.record_id.startswith("b'")
    assert do("RawKeys", Operation.DELETE, record_id=key).record_id == made.record_id


# --- parameters ------------------------------------------------------------------------------------------------------


def test_an_inout_parameter_begins_anew_each_time(do: Do) -> None:
    assert [fetch(do, "LineNotes", "sums", id=4)[0]["counter"] for _ in range(4)] == [1, 1, 1, 1]


def test_an_out_parameter_of_a_sum_is_of_its_own_type(do: Do) -> None:
    assert fetch(do, "LineNotes", "sums", id=4)[0]["lines"] == 8


SWAPPED = "CREATE OR REPLACE PROCEDURE order_lines_update(IN p_what VARCHAR(20), {more}IN p_line_no BIGINT UNSIGNED, \
IN p_order_id INT, OUT p_affected INT) BEGIN UPDATE order_lines SET what = p_what WHERE order_id = p_order_id AND \
line_no = p_line_no; SET p_affected = ROW_COUNT(); END"


def test_values_go_by_name_when_the_dba_reorders_or_adds_parameters(do: Do, dba: Callable[..., None]) -> None:
    order = next(_order)
    do("OrderLines", Operation.CREATE, payload={"order_id": order, "line_no": 1})
    for n, more in enumerate(("", "IN p_later VARCHAR(9), ", "IN p_nick2 INT, ", "")):
        dba(SWAPPED.format(more=more))
        do("OrderLines", Operation.UPDATE, payload={"order_id": order, "line_no": 1, "what": f"w{n}"})
        assert fetch(do, "OrderLines", "of", order_id=order)[0]["what"] == f"w{n}"


@pytest.mark.parametrize("place", ["before", "after"])
def test_values_go_by_name_when_the_dba_replaces_the_object_while_its_signature_is_read(
    do: Do, dba: Callable[..., None], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    order = next(_order)
    do("OrderLines", Operation.CREATE, payload={"order_id": order, "line_no": 1})
    dba(longer := SWAPPED.format(more="IN p_unused INT, "))  # so that the signature is read again
    read, first, last = session._source, "IN p_line_no BIGINT UNSIGNED, ", "IN p_order_id INT, "
    replacements = [longer.replace(first, "").replace(last, last + first)]

    def replaced_meanwhile(cursor: Any, kind: str, name: str) -> Source:
        found = read(cursor, kind, name) if place == "after" else None
        if name == "order_lines_update" and replacements:
            dba(replacements.pop())
        return found or read(cursor, kind, name)

    monkeypatch.setattr(session, "_source", replaced_meanwhile)
    do("OrderLines", Operation.UPDATE, payload={"order_id": order, "line_no": 1, "what": "by name"})
    assert not replacements
    assert fetch(do, "OrderLines", "of", order_id=order)[0]["what"] == "by name"


def test_an_object_that_was_dropped_is_told_and_works_again_when_it_is_back(do: Do, dba: Callable[..., None]) -> None:
    order = next(_order)
    do("OrderLines", Operation.CREATE, payload={"order_id": order, "line_no": 1})
    with contextlib.suppress(MySQLdb.Error):
        dba("DROP PROCEDURE order_lines_update")
    with pytest.raises(BedsError) as caught:
        do("OrderLines", Operation.UPDATE, payload={"order_id": order, "line_no": 1, "what": "x"})
    assert caught.value.code in ("schema_mismatch", "store_denied")
    dba(SWAPPED.format(more=""))
    dba("GRANT EXECUTE ON PROCEDURE beds.order_lines_update TO beds_broker@'127.0.0.1'")
    assert do("OrderLines", Operation.UPDATE, payload={"order_id": order, "line_no": 1, "what": "x"}).affected == 1


# --- result sets -----------------------------------------------------------------------------------------------------


def test_result_sets_that_are_named_come_by_name(do: Do) -> None:
    order = next(_order)
    for line in (1, 2):
        do("OrderLines", Operation.CREATE, payload={"order_id": order, "line_no": line, "what": "w"})
    (record,) = fetch(do, "OrderLines", "head", order_id=order)
    assert record["head"] == [{"order_id": order}]
    assert [line["line_no"] for line in record["lines"]] == [1, 2]
    assert fetch(do, "OrderLines", "head", order_id=0)[0]["lines"] == []


def test_result_sets_that_nobody_named_are_no_silence(do: Do) -> None:
    with pytest.raises(SchemaMismatch, match="more result sets"):
        fetch(do, "OrderLines", "unnamed", order_id=1)


def test_two_columns_of_one_name_are_no_silence(do: Do) -> None:
    with pytest.raises(SchemaMismatch, match="two columns named id"):
        fetch(do, "Odd", "twins")


def test_an_object_that_returns_millions_fills_no_memory(do: Do) -> None:
    with pytest.raises(ResultTooLarge) as caught:
        fetch(do, "Odd", "flood", rows=3_000_000)
    assert caught.value.detail["max_limit"] == 1000
    assert len(fetch(do, "Odd", "flood", rows=1000)) == 1000


def test_a_page_of_large_records_fills_no_memory(do: Do, database: Database[Any]) -> None:
    """Ten records are few, and 40 MiB are not."""
    text = "x" * (4 * 2**20)
    number = uuid7().int >> 70
    for _ in range(10):
        database["kinds"].insert_one({"_id": str(uuid7()), "lng": bson.Int64(number), "text": text})
    for template, using, args in (("KindsDocs", "by_long", {"lng": number}), ("Odd", "heavy", {"rows": 10})):
        with pytest.raises(ResultTooLarge) as caught:
            fetch(do, template, using, **args)
        assert "32 MiB" in caught.value.message
    assert len(fetch(do, "Odd", "heavy", rows=2)) == 2


def test_a_stored_command_that_ignores_its_limit_is_told(do: Do, database: Database[Any]) -> None:
    database["kinds"].insert_many([{"_id": str(uuid7())} for _ in range(21)])
    with pytest.raises(ResultTooLarge):
        fetch(do, "KindsDocs", "all")


# --- what goes wrong beside a write -----------------------------------------------------------------------------------


def test_10_a_ledger_that_cannot_be_purged_fails_no_write(
    do: Do,
    dba: Callable[..., None],
    loaded: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The write before it is committed."""
    monkeypatch.setattr("beds.adapters.mariadb.session.PURGE_SECONDS", 0.0)
    assert loaded.databases.rel is not None
    account = f"`{loaded.databases.rel.user}`@`{loaded.schema_.broker_host}`"
    key = str(uuid7())
    dba(f"REVOKE EXECUTE ON PROCEDURE beds_ledger_purge FROM {account}")
    try:
        with tracing(Trace(Lineage.root("ms", "development"), "beds_app", body={"payload": {"id": key}})):
            assert do("SampleRows", Operation.CREATE, payload={"id": key}) == Response(key, 1)
    finally:
        dba(f"GRANT EXECUTE ON PROCEDURE beds_ledger_purge TO {account}")
    assert "the ledger could not be purged" in caplog.text
    assert [record["id"] for record in fetch(do, "SampleRows", "by_id", id=key)] == [key]


@pytest.mark.parametrize("template", ["SampleRows", "SampleDocs"])
def test_one_event_may_write_twice_and_each_write_has_its_effect_once(do: Do, template: str) -> None:
    """The ledger's key is the event and the number of the write in it."""
    keys = [str(uuid7()), str(uuid7())]
    lineage = Lineage.root("ms", "development")
    for _ in range(2):  # delivered, and delivered again
        with tracing(Trace(lineage, "beds_app")):
            made = [do(template, Operation.CREATE, payload={"id": key}) for key in keys]
        assert made == [Response(key, 1) for key in keys]
    assert [len(fetch(do, template, "by_id", id=key)) for key in keys] == [1, 1]


def test_10_a_commit_that_no_majority_has_confirmed_is_not_said_to_stand(loaded: Settings) -> None:
    """The replica set has one member, and the URI requires two."""
    assert loaded.databases.rec is not None
    uri = loaded.databases.rec.uri.get_secret_value()
    rec = loaded.databases.rec.model_copy(update={"uri": SecretStr(f"{uri}&w=2&wtimeoutMS=100")})
    databases = loaded.databases.model_copy(update={"rec": rec})
    asking = loaded.model_copy(update={"databases": databases})
    factory = AdapterFactory(asking, TemplateRegistry.from_folder(loaded.schema_path))
    try:
        with pytest.raises(StoreUnavailable) as caught:
            doing(factory)("KindsDocs", Operation.CREATE, payload={"id": str(uuid7())})
    finally:
        factory.close()
    assert not caught.value.detail.get("nothing_written")


def test_10_a_write_in_doubt_is_not_said_to_stand(factory: AdapterFactory) -> None:
    """MongoDB's answer outside a transaction when the majority write concern is not reached in time."""
    template = factory.registry["msTickets"]
    accept = NamedObject("tickets_accept", ObjectKind.INSERT)
    create = Binding(template, Operation.CREATE, template.object_for(Operation.CREATE), accept)
    with pytest.raises(StoreUnavailable) as caught:
        outcome_of(create, {"n": 1, "ok": 1, "writeConcernError": {"code": 64, "errmsg": "waiting for replication"}})
    assert caught.value.detail == {"store_code": 64}


class TimeUp(Exception):
    """The soft time limit strikes."""


@pytest.mark.parametrize("template", ["SampleRows", "SampleDocs", "memory"])
def test_10_time_up_after_the_commit(request: pytest.FixtureRequest, project: Any, template: str) -> None:
    """The write stands in the database, so this is what its caller and its audit are told."""
    made: Any = MemoryFactory(TemplateRegistry.from_folder(project / "schema"))
    if template != "memory":
        made = request.getfixturevalue("factory")
    name = "SampleRows" if template == "memory" else template
    store, key, recorder = made.registry[name].store, str(uuid7()), Mock()
    recorder.ended.return_value = None
    execution = Execution(
        made, TicketStore(made, 3600), recorder, max_body_bytes=2**20, patience=lambda _: 1.0, interrupts=TimeUp,
        longest_wait=60, give_up=pytest.fail,
    )  # fmt: skip
    lineage = Lineage.root("ms", "development")
    arguments = codec.encode({"template": name, "payload": {"id": key}})
    route = ROUTES[task_for(store, Operation.CREATE)]
    delivery = Delivery(
        lineage.guid, route.task, route, EventHeader(lineage, lineage.event_id), "beds_app", arguments=arguments
    )
    written = []

    def act(_trace: Trace, body: Any) -> None:
        rest = {field: value for field, value in body.items() if field != "template"}
        written.append(execute(made, store, Operation.CREATE, name, rest))
        raise TimeUp

    ending = execution.run(Attempt(delivery), act)
    assert ending.error is None
    assert [ending.value] == written
    assert ending.value.record_id == key
    recorder.ended.assert_called_once()
    assert recorder.ended.call_args.args[2] == OK


# --- pages -----------------------------------------------------------------------------------------------------------


def test_a_cursor_of_other_arguments_or_of_nothing_is_refused(do: Do) -> None:
    order = next(_order)
    for line in (1, 2):
        do("OrderLines", Operation.CREATE, payload={"order_id": order, "line_no": line})
    page: Page = do("OrderLines", Operation.FETCH, using="of", args={"order_id": order}, limit=1)
    with pytest.raises(InvalidCursor):
        do("OrderLines", Operation.FETCH, using="of", args={"order_id": order + 1}, limit=1, cursor=page.cursor)


def test_a_fetch_that_writes_through_a_function_writes_once_a_call(do: Do, dba: Callable[..., None]) -> None:
    """Its text does not say that it writes, so its first call ends a read-only transaction, and is repeated."""
    key = str(uuid7())
    do("SampleRows", Operation.CREATE, payload={"id": key})
    for expected in (1, 2):
        assert fetch(do, "SampleRows", "touched", id=key)[0]["whole"] == expected
    head = "CREATE OR REPLACE PROCEDURE samples_touched(IN p_id VARCHAR(40)) SELECT samples_touch(p_id) AS whole"
    dba(f"{head}, 1 AS flag")
    try:
        assert fetch(do, "SampleRows", "touched", id=key)[0]["whole"] == 3, "the outdated call was rolled back"
    finally:
        dba(head)


# --- stored values that cannot travel --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "sql"),
    [
        ("da", "'0000-00-00'"),
        ("da", "'2024-00-05'"),
        ("dt", "'0000-00-00 00:00:00'"),
        ("js", "'{\"a\":'"),
        ("js", "'[1]'"),
        ("js", "'{\"a\": 1e999}'"),
        ("js", "'{\"a\": 123456789012345678901234567890}'"),
        ("js", "'{\"a\": NaN}'"),
        ("js", "'{\"a\": 0.1000000000000000055}'"),
        ("js", '\'{"a": 1, "a": 2}\''),
        ("uu", "'no uuid'"),
        ("tm", "'-10:00:00'"),
        ("tm", "'100:00:00'"),
        ("whole", "1.500"),
        ("whole", "99999999999999999999999"),
    ],
)
def test_a_stored_value_that_cannot_travel_names_its_column(
    do: Do, dba: Callable[..., None], column: str, sql: str
) -> None:
    key = str(uuid7())
    dba("SET sql_mode = ''")
    dba(f"INSERT INTO odd (id, {column}) VALUES (%s, {sql})", key)
    with pytest.raises(StoreError) as caught:
        fetch(do, "Odd", "by_id", id=key)
    assert caught.value.code == "store_error"
    assert caught.value.detail["field"] == column
    assert f"column {column}" in caught.value.message


def test_stored_text_that_is_no_utf8_names_its_column(do: Do) -> None:
    with pytest.raises(StoreError) as caught:
        fetch(do, "Odd", "not_utf8")
    assert caught.value.detail["field"] == "txt"
    assert fetch(do, "Odd", "flood", rows=1)[0]["id"] == "1"  # the connection stays usable, and reads text again


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("dbl", float("nan")),
        ("dbl", float("inf")),
        ("dec", bson.Decimal128("NaN")),
        ("dec", bson.Decimal128("Infinity")),
        ("raw", bson.Binary(b"x", 5)),
        ("raw", bson.Binary(b"x", 128)),
        ("obj", {"a": bson.Timestamp(1, 1)}),
        ("obj", {"a": bson.Regex("x")}),
        ("obj", {"a": bson.MinKey()}),
        ("obj", {"a": [bson.MaxKey()]}),
        ("obj", {"a": bson.Code("x")}),
        ("moment", bson.DatetimeMS(2**60)),
        ("text", 5),
        ("lng", "5"),
        ("lng", 5.5),
        ("flag", 2),
        ("oid", "no object id"),
        ("uu", b"short"),
    ],
)
def test_a_stored_bson_value_that_cannot_travel_names_its_column(
    do: Do, database: Database[Any], column: str, value: Any
) -> None:
    key = str(uuid7())
    database.command("insert", "kinds", documents=[{"_id": key, column: value}], bypassDocumentValidation=True)
    with pytest.raises(StoreError) as caught:
        fetch(do, "KindsDocs", "by_id", id=key)
    assert caught.value.code == "store_error"
    assert str(caught.value.detail["field"]).split(".")[0] == column


def test_numbers_take_the_type_of_their_field_where_nothing_is_lost(do: Do, database: Database[Any]) -> None:
    key = str(uuid7())
    stored = {"_id": key, "lng": 5.0, "dbl": 7, "dec": 3, "flag": True, "obj": {"$ref": "a", "$id": 1}}
    database.command("insert", "kinds", documents=[stored], bypassDocumentValidation=True)
    (record,) = fetch(do, "KindsDocs", "by_id", id=key)
    assert {name: type(record[name]).__name__ for name in ("lng", "dbl", "dec")} == {
        "lng": "int", "dbl": "float", "dec": "Decimal",
    }  # fmt: skip
    assert record["obj"] == {"$ref": "a", "$id": 1}


def test_an_update_and_a_filter_send_the_declared_number(do: Do, database: Database[Any]) -> None:
    key, number = str(uuid7()), next(_order)
    do("KindsDocs", Operation.CREATE, payload={"id": key})
    do("KindsDocs", Operation.UPDATE, payload={"id": key, "lng": number, "dec": 5, "obj": {"n": 5}})
    raw = database["kinds"].find_one({"_id": key})
    assert raw is not None
    assert (type(raw["lng"]), type(raw["dec"]), type(raw["obj"]["n"])) == (bson.Int64, bson.Decimal128, bson.Int64)
    assert [record["id"] for record in fetch(do, "KindsDocs", "by_long", lng=number)] == [key]


def test_a_generated_column_is_read_and_never_written(do: Do) -> None:
    key = str(uuid7())
    do("Kinds", Operation.CREATE, payload={"id": key, "whole": 21})
    assert fetch(do, "Kinds", "by_id", id=key)[0]["doubled"] == 42
    with pytest.raises(UnknownField):
        do("Kinds", Operation.CREATE, payload={"id": str(uuid7()), "doubled": 1})


class Timestamp(datetime):
    """As pandas has it."""

    nanosecond = 7


def test_nanoseconds_are_refused(do: Do) -> None:
    with pytest.raises(OutOfRange, match="nanoseconds"):
        do("KindsDocs", Operation.CREATE, payload={"id": "x", "moment": Timestamp(2024, 1, 1, tzinfo=UTC)})


# --- as found in practice ---------------------------------------------------------------------------------------------


def test_a_column_of_the_same_name_in_another_table_means_nothing(do: Do) -> None:
    name = str(uuid7())
    do("Settings", Operation.CREATE, payload={"name": name, "value": "TOPSECRET", "n": 2.0, "b": 12})
    (record,) = fetch(do, "Settings", "by_name", name=name)
    assert (record["value"], record["n"]) == ("TOPSECRET", 2.0)


def test_a_bit_of_an_expression_is_its_number(do: Do) -> None:
    for bits in (0, 5, 12, 49, 99, 2**16 - 1):
        name = str(uuid7())
        do("Settings", Operation.CREATE, payload={"name": name, "b": bits})
        assert fetch(do, "Settings", "by_name", name=name)[0]["b"] == bits  # MAX(b)


@pytest.mark.parametrize(
    "bad", [{"at": datetime(2024, 1, 1, 0, 0, 0, 999_999, tzinfo=UTC)}, {"n": 1.5}], ids=["through IF", "into INT"]
)
def test_what_an_alias_or_an_if_hides_is_found(do: Do, bad: dict[str, Any]) -> None:
    name = str(uuid7())
    with pytest.raises(OutOfRange):
        do("Settings", Operation.CREATE, payload={"name": name, **bad})
    assert not len(fetch(do, "Settings", "by_name", name=name))


def test_a_create_that_added_nothing_says_so(do: Do) -> None:
    payload = {"name": str(uuid7()), "n": 1}
    assert do("SettingsOnce", Operation.CREATE, payload=payload).affected == 1
    assert do("SettingsOnce", Operation.CREATE, payload=payload).affected == 0


def test_a_bulk_counts_what_it_added_and_drops_no_field(do: Do) -> None:
    name = str(uuid7())
    payloads = [{"name": name, "n": 1.0}, {"name": name, "n": 2.0}]
    assert do("Settings", Operation.CREATE_MANY, payloads=payloads).affected == 1
    with pytest.raises(UnknownField) as caught:
        do("Settings", Operation.CREATE_MANY, payloads=[{"name": str(uuid7()), "value": "precious"}])
    assert caught.value.detail["field"] == "value"
    with pytest.raises(OutOfRange):
        do("Settings", Operation.CREATE_MANY, payloads=[{"name": str(uuid7()), "n": 1.5}])


def test_a_count_or_a_message_is_no_record(do: Do) -> None:
    with pytest.raises(NotFound):
        do("Settings", Operation.UPDATE, payload={"name": "nobody", "n": 1.0})
    with pytest.raises(NotFound):
        do("Settings", Operation.DELETE, record_id="nobody")


def test_an_out_parameter_is_no_record_of_an_empty_page(do: Do) -> None:
    for _ in range(2):
        do("SettingsOnce", Operation.CREATE, payload={"name": str(uuid7())})
    pages, cursor = 0, ""
    while True:
        page: Page = do("Settings", Operation.FETCH, using="counted", limit=1, cursor=cursor)
        assert all(record["name"] for record in page)
        pages += 1
        if not (cursor := page.cursor):
            break
    assert pages > 1


@pytest.mark.parametrize(
    ("target", "key", "cursor", "words"),
    [
        ("scores_page", "id", ["score", "id"], "FLOAT"),
        ("ci_names_page", "name", ["name"], "COLLATE utf8mb4_general_ci"),
    ],
)
def test_what_cannot_page_is_refused_with_the_reason(
    factory: AdapterFactory, target: str, key: str, cursor: list[str], words: str
) -> None:
    types = {"id": "integer", "score": "number", "name": "string"}
    template = Template.model_validate(
        {
            "template": {"name": "T", "store": "rel", "key": key},
            "fields": {name: {"type": types[name], "required": True} for name in cursor},
            "fetch": {"page": {"object": target, "cursor": cursor}},
        }
    )
    session = factory.adapter("Settings")._store
    with pytest.raises(SchemaMismatch, match=words):
        bind(template, "fetch.page", session.describe([target])[target])


def test_an_update_leaves_alone_what_it_is_not_given(do: Do) -> None:
    key = str(uuid7())
    do("KindsDocs", Operation.CREATE, payload={"id": key, "text": "before", "lng": 1})
    do("KindsSet", Operation.UPDATE, payload={"id": key, "lng": 2})
    do("KindsSet", Operation.UPDATE, payload={"id": key, "text": "after"})
    (record,) = fetch(do, "KindsDocs", "by_id", id=key)
    assert (record["text"], record["lng"]) == ("after", 2)
    do("KindsSet", Operation.UPDATE, payload={"id": key, "lng": None})
    assert fetch(do, "KindsDocs", "by_id", id=key)[0]["lng"] is None

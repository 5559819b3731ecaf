"""`beds schema draft` on databases that nobody wrote for BEDS: what it drafts is applied and called without an edit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from MySQLdb.cursors import DictCursor

from beds.adapters.mariadb.session import connect
from beds.config import Settings
from beds.config.sections import RelDatabase
from beds.domain.event import Operation
from beds.domain.identity import uuid7
from beds.domain.reply import Page, Response
from beds.errors import BedsError, NotFound, SchemaError, StoreError, WrongType
from beds.schema_tools import apply as tools
from beds.schema_tools.draft import drafting
from beds.schema_tools.draft.catalogue import quoted
from beds.services.dispatch import execute
from beds.services.factory import AdapterFactory
from beds.stack.stack import Stack
from beds.templates.fields import fits
from beds.templates.registry import TemplateRegistry
from beds.templates.template import Template
from tests.contract.test_types import MARIADB, same

Record = dict[str, Any]


@dataclass
class Adopted:
    """A database with what was drafted for it, applied."""

    settings: Settings
    draft: drafting.Draft
    factory: AdapterFactory
    dba: Any
    seconds: float
    called: list[str] = field(default_factory=list)
    """The objects that were called."""

    def template(self, name: str) -> Template:
        return self.factory.registry[name]

    def call(self, template: Template, operation: Operation, **body: Any) -> Page | Response:
        self.called.append(template.object_for(operation, body.get("using", "")).object)
        return execute(self.factory, template.store, operation, template.name, body)

    def write(self, template: Template, operation: Operation, **body: Any) -> Response:
        found = self.call(template, operation, **body)
        assert isinstance(found, Response)
        return found

    def page(self, template: Template, using: str, args: Record, cursor: str = "") -> Page:
        found = self.call(template, Operation.FETCH, using=using, args=args, limit=50, cursor=cursor)
        assert isinstance(found, Page)
        return found

    def all_of(self, template: Template, using: str, args: Record, most: int = 10**9) -> list[Record]:
        """The records of all pages."""
        page = self.page(template, using, args) if template.fetch[using].cursor else self._single(template, using, args)
        records = list(page)
        while page.cursor and len(records) < most:
            page = self.page(template, using, args, page.cursor)
            records += page
        return records

    def _single(self, template: Template, using: str, args: Record) -> Page:
        found = self.call(template, Operation.FETCH, using=using, args=args)
        assert isinstance(found, Page)
        return found

    def sql(self, statement: str, *values: Any) -> list[Record]:
        with self.dba.cursor(DictCursor) as cursor:
            cursor.execute(statement, values or None)  # without values, a % stands for itself
            found = list(cursor.fetchall())
            while cursor.nextset():
                pass
        self.dba.commit()
        return found


@contextlib.contextmanager
def adopted(login: RelDatabase, settings: Settings, folder: Path) -> Iterator[Adopted]:
    """Draft everything in a database, and apply it. Fails if something of it does not fit."""
    rel = settings.databases.rel
    assert rel is not None
    (folder / "schema" / "templates").mkdir(parents=True)
    own = settings.model_copy(
        update={
            "schema_": settings.schema_.model_copy(
                update={
                    "path": folder / "schema",
                    "dba": settings.schema_.dba.model_copy(update={"rel": login, "rec": None}),
                }
            ),
            "databases": settings.databases.model_copy(
                update={"rel": rel.model_copy(update={"database": login.database})}
            ),
        }
    )
    began = time.monotonic()
    draft = drafting.draft(own, drafting.Choice(jobs=True))
    draft.write(own.schema_path)
    seconds = time.monotonic() - began
    with tools.changes(own) as changes:
        for change in changes:
            change.apply()
    assert tools.problems(own) == []
    factory = AdapterFactory(own, TemplateRegistry.from_folder(own.schema_path))
    with contextlib.closing(factory), contextlib.closing(connect(login, 60, multi_statements=True)) as dba:
        found = Adopted(own, draft, factory, dba, seconds)
        try:
            yield found
        finally:
            for each in draft.drafted:
                for name in _objects(each):
                    found.sql(f"DROP PROCEDURE IF EXISTS {name}")
            found.sql("DELETE FROM beds_schema_history WHERE file NOT LIKE 'beds/%'")


@pytest.fixture
def unchecked(stack: Stack) -> Iterator[None]:
    """New sessions check no foreign keys, so that any record can be removed and put back."""
    stack.mariadb.ask("SET GLOBAL foreign_key_checks = 0")
    yield
    stack.mariadb.ask("SET GLOBAL foreign_key_checks = 1")


OVERWRITTEN = {
    "Rental": {"rental_date"}, "Payment": {"payment_date"}, "Customer": {"create_date"},
}  # fmt: skip
"""Fields of Sakila that a trigger sets at each insert, whatever the insert says."""


def exercise(adopted: Adopted, each: drafting.Drafted, set_by_trigger: frozenset[str] | set[str] = frozenset()) -> None:
    """Call each operation of a table's template on its rows."""
    template, table = adopted.template(each.template), each.source.removeprefix("table ")
    (count,) = adopted.sql(f"SELECT COUNT(*) AS n FROM {quoted(table)}")
    records = adopted.all_of(template, "all", {}, most=300)
    if count["n"] <= 300:
        assert len(records) == count["n"]
    assert len({template.id_of(record) for record in records}) == len(records)
    assert adopted.all_of(template, "count", {}) == [{"records": count["n"]}]
    if not records:
        return
    for name, spec in template.fetch.items():
        if name not in ("all", "count", "range"):
            _fetch_by(adopted, template, name, spec.args, records)
    try:
        ranged = adopted.all_of(template, "range", {}, most=100)
    except StoreError as error:
        assert "0000-00-00" in error.message, "jobs read columns as they are stored"
        ranged = []
    for stored, shown in zip(ranged, records, strict=False):  # without what MariaDB computes
        assert stored.items() <= shown.items()
        assert stored.keys() == template.fields.keys()
    _write(adopted, template, records[-1], set_by_trigger)
    if ranged:
        _jobs(adopted, template, ranged[0], set_by_trigger)


def _fetch_by(adopted: Adopted, template: Template, name: str, args: Any, records: list[Record]) -> None:
    """Fetch by the values of a record that has them, and find it again."""
    if args:  # from a time, before another
        column = next(iter(args)).removeprefix("from_")
        moments = sorted(record[column] for record in records if record.get(column) is not None)
        since, before = moments[0], moments[-1]
        found = adopted.all_of(template, name, {f"from_{column}": since, f"before_{column}": before}, most=100)
        assert all(since <= record[column] < before for record in found)
        if since < before:
            assert found
        assert adopted.page(template, name, {})
        return
    params = [p for p in _parameters(adopted, template, name) if not p.startswith("after_") and p != "limit"]
    record = next((r for r in records if all(r.get(param) is not None for param in params)), None)
    if record is None:  # a column that is null everywhere
        assert adopted.all_of(template, name, {param: ANY[template.fields[param].type] for param in params}) == []
        return
    wanted = {param: record[param] for param in params}
    found = adopted.all_of(template, name, wanted)
    assert record in found, (name, wanted)
    assert len({template.id_of(each) for each in found}) == len(found)


ANY = {"integer": 1, "string": "x"}
"""A value of a type, that no record has."""


def _parameters(adopted: Adopted, template: Template, using: str) -> list[str]:
    described = adopted.factory.adapter(template.name).describe()
    return [argument.name for argument in described.operations[f"fetch.{using}"].args]


def _write(adopted: Adopted, template: Template, record: Record, set_by_trigger: frozenset[str] | set[str]) -> None:
    """Remove a record, add it as it was, alone and in bulk, and change its fields one by one and to null."""
    key = {name: record[name] for name in template.keys}
    record_id = key if len(key) > 1 else next(iter(key.values()))
    payload = {name: value for name, value in record.items() if name in template.fields}

    def stored() -> Record:
        (found,) = adopted.all_of(template, template.item_fetch, key)
        return found

    def same(found: Record, wanted: Record) -> bool:
        return all(found[name] == value for name, value in wanted.items() if name not in set_by_trigger)

    remove = {"record_id": record_id}
    assert adopted.write(template, Operation.DELETE, **remove).affected == 1
    with pytest.raises(NotFound):
        adopted.write(template, Operation.DELETE, **remove)
    assert adopted.write(template, Operation.CREATE, payload=payload).affected == 1
    assert same(stored(), record)
    adopted.write(template, Operation.DELETE, **remove)
    assert adopted.write(template, Operation.CREATE_MANY, payloads=[payload]).affected == 1
    assert same(stored(), record)
    if template.update is None:
        return
    taken = [name for name in payload if name not in key]
    changed = 0
    for name in taken:
        change = {**key, name: _other(template, name, record[name])}
        try:
            answer = adopted.write(template, Operation.UPDATE, payload=change)
        except BedsError as error:
            # A rule of the DBA's, or a column that MariaDB sets itself.
            assert error.code in (
                "unknown_field",
                "out_of_range",
                "duplicate_key",
                "constraint_violated",
                "store_error",
                "rejected",
            ), error
            continue
        assert answer.affected == 1
        assert stored()[name] == change[name], name
        changed += 1
        if not template.fields[name].required:
            with contextlib.suppress(BedsError):  # a column with a default may still take no null
                adopted.write(template, Operation.UPDATE, payload={**key, name: None})
                assert stored()[name] is None
        adopted.write(template, Operation.UPDATE, payload={**key, name: record[name]})
        assert stored()[name] == record[name]
    assert changed
    adopted.write(template, Operation.DELETE, **remove)
    with pytest.raises(NotFound):
        adopted.write(template, Operation.UPDATE, payload={**key, taken[0]: record[taken[0]]})
    adopted.write(template, Operation.CREATE, payload=payload)


def _other(template: Template, name: str, value: Any) -> Any:
    """Another value of a field's type, within its limits."""
    spec = template.fields[name]
    if spec.values:
        return next((each for each in spec.values if each != value), value)
    match value:
        case bool():
            return not value
        case int() | Decimal() | float():
            return value - 1 if value > (spec.min or 0) else value + 1
        case str():
            return f"{value[1:]}x" if len(value) > 1 else "x"
        case bytes():
            return bytes(len(value))
        case datetime() | date():
            return value - timedelta(days=1)
        case timedelta():
            return timedelta(seconds=1)
    return value


def _jobs(adopted: Adopted, template: Template, record: Record, set_by_trigger: frozenset[str] | set[str]) -> None:
    """What only jobs call: read some records by their keys, remove them if they are unchanged, and load them again."""
    adapter, key = adopted.factory.adapter(template.name), template.key_of(record)
    (stored,) = adapter.read_by_keys([record]).values()
    assert stored == record
    assert template.by_keys is not None
    adopted.called.append(template.by_keys.object)
    if template.remove_many is None:
        return  # a delete would change other tables
    assert adapter.remove_unchanged({key: record}, [], str(uuid7()), {})["removed"] == 1
    assert adapter.read_by_keys([record]) == {}
    adapter.load([{name: value for name, value in record.items() if name in template.fields}], str(uuid7()))
    (stored,) = adapter.read_by_keys([record]).values()
    assert {n: v for n, v in stored.items() if n not in set_by_trigger} == {
        n: v for n, v in record.items() if n not in set_by_trigger
    }
    adopted.called.append(template.remove_many.object)


def summary(name: str, found: Adopted) -> str:
    objects = sum(each.objects for each in found.draft.drafted)
    return (
        f"{name}: {len(found.draft.drafted)} templates, {objects} objects drafted in {found.seconds:.1f} s; "
        f"{len(set(found.called))} objects called {len(found.called)} times; refused: {found.draft.refused}"
    )


@pytest.mark.timeout(300)
def test_sakila(sakila: RelDatabase, settings: Settings, tmp_path: Path, unchecked: None) -> None:
    with adopted(sakila, settings, tmp_path) as found:
        assert {source: reason.partition(":")[0] for source, reason in found.draft.refused.items()} == {
            "view actor_info": "it runs with its caller's rights (SQL SECURITY INVOKER), and the brokers have none",
            "procedure rewards_report": "it commits, or runs DDL or dynamic SQL, or calls one that does",
        }
        tables = [each for each in found.draft.drafted if each.source.startswith("table ")]
        assert len(tables) == 16
        for each in tables:
            exercise(found, each, OVERWRITTEN.get(each.template, set()))
        views = [each for each in found.draft.drafted if each.source.startswith("view ")]
        assert len(views) == 6
        for each in views:
            assert len(found.all_of(found.template(each.template), "all", {})) > 0
        rows = found.all_of(found.template("FilmInStock"), "call", {"film_id": 1, "store_id": 1})
        assert rows[0]["film_count"] == 4
        assert len(rows) == 4
        balance = found.all_of(
            found.template("GetCustomerBalance"),
            "call",
            {"customer_id": 1, "effective_date": datetime(2006, 2, 14, tzinfo=UTC)},
        )
        assert isinstance(balance[0]["get_customer_balance"], Decimal)
        drafted = {name for each in tables for name in _objects(each)}
        assert drafted <= set(found.called) | {name for name in drafted if name.endswith("_load")}
        print(summary("Sakila", found))


def _objects(each: drafting.Drafted) -> set[str]:
    sql = "".join(text for name, text in each.files.items() if name.endswith(".sql"))
    return {line.split()[4].partition("(")[0] for line in sql.splitlines() if line.startswith("CREATE OR REPLACE")}


@pytest.mark.timeout(300)
def test_composite_keys_everywhere(tpcc: RelDatabase, settings: Settings, tmp_path: Path, unchecked: None) -> None:
    with adopted(tpcc, settings, tmp_path) as found:
        assert list(found.draft.refused) == ["table history"]
        assert "no primary key" in found.draft.refused["table history"]
        for each in found.draft.drafted:
            exercise(found, each)
        lines = found.template("OrderLine")
        assert lines.keys == ("ol_w_id", "ol_d_id", "ol_o_id", "ol_number")
        (count,) = found.sql("SELECT COUNT(*) AS n FROM order_line WHERE ol_w_id = 1")
        assert len(found.all_of(lines, "by_ol_w_id", {"ol_w_id": 1})) == count["n"]
        print(summary("TPC-C", found))


@pytest.mark.timeout(300)
def test_a_database_as_found_in_practice(
    legacy: RelDatabase, settings: Settings, tmp_path: Path, unchecked: None
) -> None:
    with adopted(legacy, settings, tmp_path) as found:
        assert set(found.draft.refused) == {
            "table import$log", "view open orders", "procedure close_old_orders", "procedure find_any",
            "procedure rename_customer", "procedure yearly report $", "function next_invoice",
        }  # fmt: skip
        for each in found.draft.drafted:
            if each.source.startswith("table "):
                exercise(found, each)
        print(summary("legacy", found))


@pytest.mark.timeout(120)
def test_procedures_are_bound_as_they_are(legacy: RelDatabase, settings: Settings, tmp_path: Path) -> None:
    """OUT and INOUT parameters, several result sets, and errors that a procedure signals."""
    with adopted(legacy, settings, tmp_path) as found:
        (filed,) = found.all_of(found.template("CustomerFile"), "call", {"pCustomer": 1})
        assert {name: len(records) for name, records in filed.items()} == {"set_1": 1, "set_2": 1, "set_3": 2}
        add = found.template("AddOrder")
        created = found.write(add, Operation.CREATE, payload={
            "in_customer": 1, "in_group": 7, "limit": 3, "document": '{"gift": true}',
        })  # fmt: skip
        (order,) = found.sql("SELECT * FROM `order` WHERE `group` = 7")
        assert created.record == {"new_key": order["key"]}
        assert created.record_id == str(order["key"])
        with pytest.raises(BedsError, match="no such customer, or blocked"):
            found.write(add, Operation.CREATE, payload={
                "in_customer": 3, "in_group": 8, "limit": 3, "document": "{}",
            })  # fmt: skip
        assert found.sql("SELECT * FROM `order` WHERE `group` = 8") == []
        line = {"order_key": order["key"], "sku_": "A-1", "how_many": 3, "running_total": Decimal("0.5000")}
        added = found.write(found.template("AddLine"), Operation.CREATE, payload=line)
        assert added.record["running_total"] == Decimal("38.0000")
        with pytest.raises(BedsError, match="no price for this article"):
            found.write(found.template("AddLine"), Operation.CREATE, payload={**line, "sku_": "none"})
        quick = found.write(found.template("QuickOrder"), Operation.CREATE, payload={"pCustomer": 2, "sku_": "B-2"})
        assert quick.record["total"] == Decimal("0.0001")
        assert quick.record["SKU"] == "B-2"
        (vat,) = found.all_of(found.template("VatOf"), "call", {"amount": Decimal("100")})
        assert vat == {"vat_of": Decimal("19.0000")}


def test_a_draft_overwrites_nothing(legacy: RelDatabase, settings: Settings, tmp_path: Path) -> None:
    with adopted(legacy, settings, tmp_path) as found:
        again = drafting.draft(found.settings, drafting.Choice())
        assert again.drafted == []
        assert set(again.present) == {each.source for each in found.draft.drafted}
        with pytest.raises(SchemaError, match="cannot be written"):
            found.draft.write(found.settings.schema_path)
        elsewhere = drafting.draft(found.settings, drafting.Choice(rel=["prices"], jobs=True, again=True))
        assert (
            elsewhere.drafted[0].files
            == found.draft.drafted[[each.source for each in found.draft.drafted].index("table prices")].files
        ), "drafted anew, to compare"
        with pytest.raises(SchemaError, match="did you mean 'Kunden'"):
            drafting.draft(found.settings, drafting.Choice(rel=["Kunde"]))


def test_a_name_that_the_database_has_is_refused(legacy: RelDatabase, settings: Settings, tmp_path: Path) -> None:
    with adopted(legacy, settings, tmp_path) as found:
        other = found.settings.model_copy(
            update={"schema_": found.settings.schema_.model_copy(update={"path": tmp_path / "other"})}
        )
        clash = drafting.draft(other, drafting.Choice(rel=["prices"]))
        assert "prices_all is taken already; give another prefix" in clash.refused["table prices"]
        prefixed = drafting.draft(other, drafting.Choice(rel=["prices"], prefix="api_"))
        assert "CREATE OR REPLACE PROCEDURE api_prices_all" in prefixed.drafted[0].files["rel/R__prices.sql"]


def test_what_changed_since_the_draft(legacy: RelDatabase, settings: Settings, tmp_path: Path) -> None:
    with adopted(legacy, settings, tmp_path) as found:
        assert drafting.drift(found.settings) == []
        found.sql("ALTER TABLE `order lines` ADD COLUMN since DATE NULL, MODIFY qty BIGINT NOT NULL")
        found.sql("CREATE INDEX by_since ON `order lines` (since)")
        found.sql("CREATE OR REPLACE PROCEDURE do_nothing(IN more INT) BEGIN END")
        found.sql("DROP VIEW turnover")
        try:
            said = [str(each) for each in drafting.drift(found.settings)]
            assert "view turnover: is gone" in said
            assert "table order lines: qty was mediumint(9) not null, and is bigint(20) not null" in said
            assert "table order lines: since is new: date" in said
            assert "table order lines: index by_since is new: btree (since)" in said
            assert "procedure do_nothing: parameters was (), and is (in more int(11))" in said
            assert drafting.accept(found.settings) > 0
            assert drafting.drift(found.settings) == []
        finally:
            found.sql("ALTER TABLE `order lines` DROP COLUMN since, MODIFY qty MEDIUMINT NOT NULL")
            found.sql(
                "CREATE VIEW turnover AS SELECT customer, COUNT(*) AS orders, SUM(net) AS net FROM `order` GROUP BY 1"
            )
            found.sql("CREATE OR REPLACE PROCEDURE do_nothing() BEGIN END")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
def test_every_type_comes_back_as_it_was(kinds: RelDatabase, settings: Settings, tmp_path: Path, bulk: bool) -> None:
    """The values of the contract's tests, where the drafted field has their type."""
    with adopted(kinds, settings, tmp_path) as found:
        template, tried = found.template("Kinds"), 0
        for column, (values, refused) in MARIADB.items():
            for value in values:
                if not fits(template.fields[column].type, value):
                    continue
                tried += 1
                payload = {"id": str(uuid7()), column: value}
                if bulk:
                    found.write(template, Operation.CREATE_MANY, payloads=[payload])
                else:
                    found.write(template, Operation.CREATE, payload=payload)
                (record,) = found.all_of(template, "by_id", {"id": payload["id"]})
                assert same(record[column], value), (column, value, record[column])
                found.write(template, Operation.UPDATE, payload={"id": payload["id"], column: None})
                (record,) = found.all_of(template, "by_id", {"id": payload["id"]})
                assert record[column] is None
                found.write(template, Operation.UPDATE, payload=payload)
                (record,) = found.all_of(template, "by_id", {"id": payload["id"]})
                assert same(record[column], value), (column, value, record[column])
            for value, error in refused:
                if fits(template.fields[column].type, value) and error is not WrongType:
                    operation = Operation.CREATE_MANY if bulk else Operation.CREATE
                    payload = {"id": str(uuid7()), column: value}
                    body = {"payloads": [payload]} if bulk else {"payload": payload}
                    with pytest.raises(error):
                        found.write(template, operation, **body)
        assert tried > 80


@pytest.mark.timeout(120)
def test_what_broke_earlier_drafts(hostile: RelDatabase, settings: Settings, tmp_path: Path, unchecked: None) -> None:
    with adopted(hostile, settings, tmp_path) as found:
        assert found.draft.refused.keys() == {
            "table written", "table film", "function fr", "function fw", "view vw",
        }  # fmt: skip
        assert "film_count is taken already" in found.draft.refused["table film"]
        for each in found.draft.drafted:
            if each.source.startswith("table "):
                exercise(found, each)
        defaults = found.template("Defaults")
        for operation, body in (
            (Operation.CREATE, {"payload": {"id": 0, "a": 7}}),
            (Operation.CREATE_MANY, {"payloads": [{"a": 7, "d": "given"}]}),
        ):
            answer = found.write(defaults, operation, **body)
            (row,) = found.sql("SELECT * FROM defaults ORDER BY id DESC LIMIT 1")
            assert row["c"] == "x`y"
            if operation is Operation.CREATE:
                assert (row["b"], row["d"], answer.record["id"]) == (8, "ok 😀", row["id"])
        with pytest.raises(BedsError):  # NOT NULL, and a default that information_schema cannot show
            found.write(defaults, Operation.CREATE_MANY, payloads=[{"a": 7}])
        (drafted,) = [each for each in found.draft.drafted if each.template == "Defaults"]
        assert [remark for remark in drafted.remarks if "is left out, not its default" in remark] == list(
            drafted.remarks
        )
        assert found.template("Callsf").create is not None, "it writes, through a function that calls another"

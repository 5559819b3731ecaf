"""`beds schema draft` on collections that exist already."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from bson import Binary, Decimal128, Int64
from pymongo import MongoClient

import beds
from beds.config import Settings
from beds.domain.event import Operation
from beds.domain.reply import Page, Response
from beds.errors import NotFound
from beds.schema_tools import apply as tools
from beds.schema_tools.draft import drafting
from beds.services.dispatch import execute
from beds.services.factory import AdapterFactory
from beds.stack.stack import Stack
from beds.templates.registry import TemplateRegistry

DATABASE = "adopt_collections"
NOON = datetime(2024, 5, 6, 12, 0, tzinfo=UTC)


def fill(database: Any) -> None:
    """Collections as an application leaves them behind."""
    database.create_collection(
        "customers",
        validator={"$jsonSchema": {
            "bsonType": "object",
            "required": ["name", "kind"],
            "properties": {
                "name": {"bsonType": "string", "maxLength": 80, "description": "as on the invoice"},
                "kind": {"enum": ["person", "company"]},
                "credit": {"bsonType": ["decimal", "null"]},
            },
        }},
    )  # fmt: skip
    database.customers.create_index("name", unique=True)
    database.customers.create_index([("kind", 1), ("name", 1)])
    database.customers.create_index("since", name="by_since", sparse=True)
    database.customers.create_index([("notes", "text")])
    database.customers.insert_many(
        {
            "name": f"customer {number}",
            "kind": "person" if number % 3 else "company",
            "credit": Decimal128("12.50") if number % 2 else None,
            "since": NOON + timedelta(days=number),
            "visits": number,
            "spent": Int64(2**40 + number),
            "score": number / 7,
            "active": bool(number % 2),
            "token": Binary.from_uuid(UUID(int=number)),
            "photo": Binary(bytes([number])),
            "address": {"street": "Main Street", "no": number},
            "tags": ["a", number],
            "mixed": number if number % 2 else str(number),
            "with space": 1,
            "notes": "some text",
        }
        for number in range(120)
    )
    database.orders.insert_many({"_id": number, "customer": "customer 1", "id": str(number)} for number in range(5))
    database.orders.create_index("customer")
    database.by_key.insert_many({"_id": {"a": number, "b": "x"}, "n": 1} for number in range(3))
    database.empty.create_index("at")
    database.create_collection("companies", viewOn="customers", pipeline=[{"$match": {"kind": "company"}}])


@pytest.fixture(scope="module")
def adopted(stack: Stack, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The settings of a project over that database, what was drafted, and its adapters."""
    passwords, plan = stack.plan.passwords, stack.plan
    rec, dba = settings.databases.rec, settings.schema_.dba.rec
    assert rec is not None
    assert dba is not None
    with MongoClient[dict[str, Any]](plan.mongo_uri("root", "admin")) as root:
        root.drop_database(DATABASE)
        database = root[DATABASE]
        for user, roles in (("dba", [{"role": "dbOwner", "db": DATABASE}]), ("broker", [])):
            with contextlib.suppress(Exception):
                database.command("dropUser", f"beds_{user}")
            database.command("createUser", f"beds_{user}", pwd=passwords[f"rec_{user}"], roles=roles)
        fill(database)
    folder = tmp_path_factory.mktemp("collections")
    (folder / "templates").mkdir()
    logins = {
        name: login.model_copy(update={
            "uri": type(login.uri)(plan.mongo_uri(user, DATABASE)), "database": DATABASE,
        }) for name, user, login in (("rec", "broker", rec), ("dba", "dba", dba))
    }  # fmt: skip
    own = settings.model_copy(
        update={
            "schema_": settings.schema_.model_copy(
                update={
                    "path": folder,
                    "dba": settings.schema_.dba.model_copy(update={"rel": None, "rec": logins["dba"]}),
                }
            ),
            "databases": settings.databases.model_copy(update={"rec": logins["rec"]}),
        }
    )
    draft = drafting.draft(own, drafting.Choice(jobs=True))
    draft.write(folder)
    with tools.changes(own) as changes:
        for change in changes:
            change.apply()
    with MongoClient[dict[str, Any]](plan.mongo_uri("root", "admin")) as root:
        root[DATABASE].command("grantRolesToUser", "beds_broker", roles=["beds_broker"])
    assert tools.problems(own) == []
    factory = AdapterFactory(own, TemplateRegistry.from_folder(folder))
    yield own, draft, factory
    factory.close()


def page(factory: AdapterFactory, template: str, using: str, args: dict[str, Any], **more: Any) -> Page:
    found = execute(
        factory, factory.registry[template].store, Operation.FETCH, template, {"using": using, "args": args, **more}
    )
    assert isinstance(found, Page)
    return found


def every(factory: AdapterFactory, template: str, using: str, args: dict[str, Any]) -> list[dict[str, Any]]:
    found = page(factory, template, using, args, limit=50)
    records = list(found)
    while found.cursor:
        found = page(factory, template, using, args, limit=50, cursor=found.cursor)
        records += found
    return records


def write(factory: AdapterFactory, template: str, operation: Operation, **body: Any) -> Response:
    found = execute(factory, factory.registry[template].store, operation, template, body)
    assert isinstance(found, Response)
    return found


def test_what_is_drafted_and_what_is_not(adopted: Any) -> None:
    _, draft, factory = adopted
    assert draft.refused == {"collection by_key": "its _id is object; a template's key has one simple type"}
    assert {each.template for each in draft.drafted} == {"Customers", "Orders", "Empty", "Companies"}
    (customers,) = [each for each in draft.drafted if each.template == "Customers"]
    assert any("mixed" in remark and "int, string" in remark for remark in customers.remarks)
    assert any("with space" in remark for remark in customers.remarks)
    fields = factory.registry["Customers"].fields
    assert {name: spec.type for name, spec in fields.items()} == {
        "id": "object_id", "name": "string", "kind": "string", "credit": "decimal", "since": "datetime",
        "visits": "integer", "spent": "integer", "score": "number", "active": "boolean", "token": "uuid",
        "photo": "bytes", "address": "object", "tags": "array", "notes": "string",
    }  # fmt: skip
    assert fields["name"].required
    assert fields["name"].max_length == 80
    assert fields["kind"].values == ("person", "company")
    assert factory.registry["Orders"].keys == ("orders_id",), "the documents have a field id of their own"


def test_every_operation_is_called(adopted: Any) -> None:
    _, _, factory = adopted
    records = every(factory, "Customers", "all", {})
    assert len(records) == 120
    assert page(factory, "Customers", "count", {})[0] == {"records": 120}
    record = records[7]
    assert every(factory, "Customers", "by_id", {"id": record["id"]}) == [record]
    assert every(factory, "Customers", "by_name", {"name": record["name"]}) == [record]
    assert len(every(factory, "Customers", "by_kind", {"kind": "company"})) == 40
    in_may = every(factory, "Customers", "by_since", {"from_since": NOON, "before_since": NOON + timedelta(days=10)})
    assert len(in_may) == 10
    assert len(every(factory, "Customers", "by_since", {})) == 120
    assert len(every(factory, "Customers", "range", {})) == 120
    assert len(every(factory, "Companies", "all", {})) == 40
    assert len(every(factory, "Orders", "by_customer", {"customer": "customer 1"})) == 5
    payload = {name: value for name, value in record.items() if name not in ("mixed", "with space")}
    write(factory, "Customers", Operation.DELETE, record_id=record["id"])
    with pytest.raises(NotFound):
        write(factory, "Customers", Operation.DELETE, record_id=record["id"])
    write(factory, "Customers", Operation.CREATE, payload=payload)
    assert every(factory, "Customers", "by_id", {"id": record["id"]}) == [payload]
    change = {"id": record["id"], "credit": Decimal("99.90"), "tags": []}
    write(factory, "Customers", Operation.UPDATE, payload=change)
    (changed,) = every(factory, "Customers", "by_id", {"id": record["id"]})
    assert changed == payload | change
    new = [{"name": f"new {number}", "kind": "person", "id": beds.ObjectId.generate()} for number in range(3)]
    assert write(factory, "Customers", Operation.CREATE_MANY, payloads=new).affected == 3
    adapter = factory.adapter("Customers")
    assert len(adapter.read_by_keys(new)) == 3


def test_what_changed_since_the_draft(adopted: Any, stack: Stack) -> None:
    own, _, _ = adopted
    assert drafting.drift(own) == []
    with MongoClient[dict[str, Any]](stack.plan.mongo_uri("root", "admin")) as root:
        root[DATABASE].orders.create_index("id", name="lost_and_found")
        root[DATABASE].empty.drop()
    said = [str(each) for each in drafting.drift(own)]
    assert "collection empty: is gone" in said
    assert any(line.startswith("collection orders: index lost_and_found is new") for line in said)
    drafting.accept(own)
    assert drafting.drift(own) == []


def test_a_draft_of_one_collection(adopted: Any, tmp_path: Path) -> None:
    own, _, _ = adopted
    elsewhere = own.model_copy(update={"schema_": own.schema_.model_copy(update={"path": tmp_path})})
    found = drafting.draft(elsewhere, drafting.Choice(rec=["orders"], prefix="v1_"))
    assert [each.template for each in found.drafted] == ["Orders"]
    assert "rec/orders/v1_orders_all.json" in found.drafted[0].files

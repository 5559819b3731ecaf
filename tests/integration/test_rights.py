"""Least privilege: what the brokers' and the client's users are refused."""

from __future__ import annotations

from typing import Any

import amqp
import kombu
import MySQLdb
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from beds.adapters.mariadb.session import connect
from beds.config import Settings


@pytest.fixture
def broker_cursor(settings: Settings) -> Any:
    assert settings.databases.rel
    connection = connect(settings.databases.rel, 5)
    yield connection.cursor()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM samples",
        "SELECT carrier FROM airlines",
        "INSERT INTO airlines VALUES ('ZZ', 'x')",
        "UPDATE airlines SET name = 'x'",
        "DELETE FROM airlines",
        "CREATE TABLE mine (a INT)",
        "ALTER TABLE airlines ADD b INT",
        "DROP TABLE airlines",
        "TRUNCATE TABLE airlines",
        "CREATE PROCEDURE mine() SELECT 1",
        "DROP PROCEDURE airlines_create",
        "CREATE VIEW mine AS SELECT 1",
        "GRANT EXECUTE ON PROCEDURE airlines_create TO beds_broker@'127.0.0.1'",
        "SELECT * FROM mysql.user",
        "SELECT * FROM beds_schema_history",
        "SHOW CREATE TABLE airlines",
        "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE airlines",
        "SELECT LOAD_FILE('/etc/passwd') INTO OUTFILE '/tmp/x'",
    ],
)
def test_the_brokers_mariadb_user_is_refused(broker_cursor: Any, statement: str) -> None:
    with pytest.raises(MySQLdb.Error) as caught:
        broker_cursor.execute(statement)
    # access denied in its forms; 1146: it cannot even see the table; 4166: local infile is off
    assert caught.value.args[0] in (1044, 1045, 1142, 1143, 1227, 1290, 1370, 1410, 1146, 4166, 1148), caught.value


def test_one_query_cannot_hold_two_statements(broker_cursor: Any) -> None:
    with pytest.raises(MySQLdb.ProgrammingError):
        broker_cursor.execute("SELECT 1; SELECT 2")


def test_the_brokers_mariadb_user_may_call_what_it_was_granted(broker_cursor: Any) -> None:
    broker_cursor.execute("CALL airlines_by_carrier('ZZ')")
    broker_cursor.fetchall()


@pytest.fixture
def broker_database(settings: Settings) -> Any:
    assert settings.databases.rec
    with MongoClient[dict[str, Any]](settings.databases.rec.uri.get_secret_value()) as client:
        yield client[settings.databases.rec.database]


@pytest.mark.parametrize(
    "act",
    [
        lambda d: d.create_collection("mine"),
        lambda d: d["mine"].insert_one({}),
        lambda d: d["beds_objects"].insert_one({}),
        lambda d: d["beds_objects"].update_one({"_id": "docs_by_id"}, {"$set": {"kind": "delete"}}),
        lambda d: d["beds_objects"].delete_many({}),
        lambda d: d["beds_objects"].drop(),
        lambda d: d["samples"].drop(),
        lambda d: d["samples"].create_index("x"),
        lambda d: d.command("collMod", "samples", validator={}),
        lambda d: d["beds_schema_history"].find_one(),
        lambda d: d["notices_open"].insert_one({}),
        lambda d: d.command("createUser", "mine", pwd="x", roles=[]),
        lambda d: d.client["admin"]["system.users"].find_one(),
        lambda d: d.client["other"]["x"].insert_one({}),
    ],
)
def test_the_brokers_mongodb_user_is_refused(broker_database: Any, act: Any) -> None:
    with pytest.raises(OperationFailure) as caught:
        act(broker_database)
    assert caught.value.code == 13


def test_the_brokers_mongodb_user_may_use_its_collections(broker_database: Any) -> None:
    broker_database["samples"].insert_one({"_id": "rights"})
    broker_database["samples"].delete_one({"_id": "rights"})
    assert broker_database["beds_objects"].find_one({"_id": "docs_by_id"})
    list(broker_database["notices_open"].find())


@pytest.mark.parametrize(
    "act",
    [
        lambda c: c.queue_declare("mine"),
        lambda c: c.exchange_declare("mine", "topic"),
        lambda c: c.queue_delete("rec.read"),
        lambda c: c.queue_purge("rec.read"),
        lambda c: c.basic_get("rec.read"),
        lambda c: c.basic_publish_confirm(amqp.Message("x"), "beds.logs", "audit"),
        lambda c: c.basic_publish_confirm(amqp.Message("x"), "", "rec.read"),
    ],
)
def test_the_clients_amqp_user_is_refused(settings: Settings, workers: None, act: Any) -> None:
    options = {"confirm_publish": True}
    with (
        kombu.Connection(settings.amqp.client_url, transport_options=options) as connection,
        pytest.raises(amqp.AccessRefused),
    ):
        act(connection.default_channel)

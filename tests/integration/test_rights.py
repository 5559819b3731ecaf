"""Least privilege: the operations that the workers' and the client's users must not do."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import amqp
import kombu
import MySQLdb
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from beds.adapters.mariadb.session import connect
from beds.client.client import Client
from beds.config import Settings
from beds.domain.event import Event
from beds.domain.lineage import Lineage
from beds.domain.ticket import TicketState
from beds.errors import PermissionDenied
from beds.node.check import Verdict
from beds.node.doctor import examine
from beds.stack.stack import Stack
from beds.transport.rights import definitions, users_of
from beds.transport.topology import Depth, depths
from beds.wire.message import to_message, with_encoded_body
from beds.wire.reply import REPLY_TO
from beds.wire.routes import LOG_QUEUES, QUEUES
from tests.conftest import ADMIN_QUEUES, ALL_QUEUES, OwnVhost, running_worker, wait_for, wait_until_served


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
    # forms of access denied; 1146: the table is invisible; 4166: local infile is off
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


@pytest.mark.timeout(120)
def test_a_client_of_a_few_keys_and_what_the_doctor_says_to_it(
    project: Path, stack: Stack, own_vhost: OwnVhost, settings: Settings
) -> None:
    """A client of `beds amqp definitions --key …`: other keys are refused, and the client stays usable."""
    wanted = definitions("own", users_of(settings.amqp, ["rec.read", "rel.read", "calgon"]))
    file = project / "narrow.json"
    file.write_text(json.dumps({"topic_permissions": wanted["topic_permissions"]}))
    stack.rabbitmq.control("import_definitions", str(file))
    env = {**own_vhost.env, "BEDS_METRICS__PROMETHEUS": ""}
    with (
        running_worker(project, ALL_QUEUES, env=env),
        running_worker(project, ADMIN_QUEUES, env=env),
        Client(own_vhost.settings) as client,
    ):
        wait_until_served(client)
        with pytest.raises(PermissionDenied) as caught:
            client.submit("create_record", "SampleRows", {"id": "narrow"})
        (guid,) = caught.value.detail["refused"]
        # Its ticket was accepted; it ends, although its event was never published.
        assert client.ticket(guid).wait(20).state is TicketState.REVOKED
        wait_for(lambda: all(d and d.consumers for d in _depths(own_vhost).values()), 30, "the admin worker")
        checks = {check.name: check for check in examine(own_vhost.settings, 15)}
    assert not [check for check in checks.values() if check.failed]
    assert checks["pool rec.write"].verdict is Verdict.SKIPPED
    assert "after a retry" in checks["pool rel.read"].found


def _depths(vhost: OwnVhost) -> dict[str, Depth | None]:
    with kombu.Connection(vhost.settings.amqp.client_url) as connection:
        return depths(LOG_QUEUES, connection)


@pytest.mark.timeout(60)
def test_a_task_that_is_tried_again_is_counted_under_its_own_queue(client: Client, database: Any) -> None:
    """Celery's delayed delivery writes 28 digits before the routing key."""
    event = Event.of_probe("rel.read", Lineage.root("probe", "test"), retry=True)
    answer = client.answer(client.send(event, time.monotonic() + 10), time.monotonic() + 20)
    assert answer["retries"] == 1
    wait_for(
        lambda: database.msMetrics.find_one({"meta.operation": "probe", "meta.queue": "rel.read"}), 30, "its metrics"
    )
    assert set(database.msMetrics.distinct("meta.queue")) <= set(QUEUES)


@pytest.mark.timeout(90)
def test_a_copy_for_another_queue_is_turned_away(project: Path, own_vhost: OwnVhost) -> None:
    """RabbitMQ also delivers to the keys of the header BCC, but checks permissions on the routing key only."""
    url = own_vhost.settings.amqp.client_url
    replies: list[dict[str, Any]] = []
    with running_worker(project, "rec.write", env=own_vhost.env), kombu.Connection(url) as connection:
        wait_for(lambda: (d := depths(["rec.write"], connection)["rec.write"]) and d.consumers, 60, "the worker")
        channel = connection.default_channel
        channel.basic_consume(REPLY_TO, no_ack=True, callback=lambda m: replies.append(json.loads(m.body)))
        event = with_encoded_body(Event.of_probe("rec.read", Lineage.root("probe", "test"), retry=False), 1 << 20)
        message = to_message(event, "beds_app")
        message.properties["application_headers"]["BCC"] = ["rec.write"]
        channel.basic_publish(message, event.exchange, event.queue)
        connection.drain_events(timeout=30)
    assert [reply["result"]["beds"]["code"] for reply in replies] == ["malformed_event"]

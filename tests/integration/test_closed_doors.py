"""Undecodable replies, leaked sockets, and interrupted writes: the client and the workers recover."""

from __future__ import annotations

import shutil
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import amqp
import kombu
import MySQLdb
import pytest
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from beds.client.client import Client
from beds.config import Settings
from beds.domain.identity import uuid7
from beds.domain.reply import Page, Response
from beds.errors import BedsError, PermissionDenied
from beds.node.amqp_checks import client_checks
from beds.schema_tools.rec import BROKER_ROLE, RecSchema
from beds.stack.plan import DATABASE
from beds.stack.stack import Stack
from beds.templates.registry import SYSTEM
from beds.transport.topology import Topology, declare
from beds.wire.reply import encode_reply
from tests.conftest import ADMIN_QUEUES, OwnVhost, running_worker, wait_for, wait_until_served

DEPTH = 100_000


@pytest.fixture
def dba_cursor(stack: Stack) -> Iterator[Any]:
    connection = MySQLdb.connect(
        host="127.0.0.1", port=stack.plan.mariadb_port, user="beds_dba", passwd=stack.plan.passwords["rel_dba"],
        db=DATABASE,
    )  # fmt: skip
    with closing(connection), connection.cursor() as cursor:
        yield cursor


def test_8_no_reply_ends_a_client(own_vhost: OwnVhost) -> None:
    """A defective worker sends an undecodable reply; the next call gets its answer."""
    settings = own_vhost.settings
    replies = ["[" * DEPTH + "]" * DEPTH, "{", "[]", "null", '"x"', "\x00", '{"status": 7, "result": []}', ""]
    with kombu.Connection(settings.amqp.broker_url) as connection:
        declare(Topology.from_settings(settings.amqp), connection)
        channel = connection.default_channel

        def answer(message: Any) -> None:
            body = replies.pop(0) if replies else ""
            told = amqp.Message(body, correlation_id=message.properties["correlation_id"])
            channel.basic_publish(told, "", message.properties["reply_to"])
            channel.basic_ack(message.delivery_tag)

        channel.basic_consume("rec.read", callback=answer)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection.drain_events(timeout=0.2)
                except TimeoutError:
                    continue

        mad = threading.Thread(target=serve)
        mad.start()
        try:
            with Client(settings) as client:
                while replies:
                    asked = len(replies)
                    with pytest.raises(BedsError):
                        client.call("fetch_records", "SampleDocs", {"id": "x"}, using="by_id", timeout=3)
                    assert len(replies) < asked, "the client sends no more"
        finally:
            stop.set()
            mad.join(30)


def test_8_a_reply_that_cannot_be_read_costs_nobody_else_an_answer(own_vhost: OwnVhost) -> None:
    """Two calls are in flight; the first gets what no client can read, the second its own answer, on the same link."""
    settings = own_vhost.settings
    with kombu.Connection(settings.amqp.broker_url) as connection:
        declare(Topology.from_settings(settings.amqp), connection)
        channel = connection.default_channel
        asked: list[Any] = []
        channel.basic_consume("rec.read", callback=asked.append)

        def reply(message: Any, body: bytes | str) -> None:
            told = amqp.Message(body, correlation_id=message.properties["correlation_id"])
            channel.basic_publish(told, "", message.properties["reply_to"])
            channel.basic_ack(message.delivery_tag)

        def drain(number: int) -> None:
            while len(asked) < number:
                connection.drain_events(timeout=30)

        with Client(settings) as client, ThreadPoolExecutor(2) as callers:
            calls = []
            for number in (1, 2):
                calls.append(callers.submit(client.fetch, "SampleDocs", "by_id", {"id": "x"}, timeout=60))
                drain(number)
            transport: Any = client.transport
            before = transport._in_flight
            reply(asked[0], "[" * DEPTH + "]" * DEPTH)
            with pytest.raises(BedsError):
                calls[0].result(60)
            reply(asked[1], encode_reply(asked[1].properties["correlation_id"], Page(({"id": "x"},))))
            assert calls[1].result(60).records == ({"id": "x"},)
            assert transport._in_flight is before
            assert client.transport.is_ready
            assert len(asked) == 2, "it was asked again"


SOFT_LIMIT = 20


@pytest.mark.timeout(240)
def test_10_a_committed_write_is_never_answered_with_an_error(
    project: Path, own_vhost: OwnVhost, stack: Stack, settings: Settings, dba_cursor: Any
) -> None:
    """RabbitMQ raises an alarm during a write, and clears it after the soft time limit."""
    limits = {
        "BEDS_BROKERS__REL_WRITE__SOFT_TIME_LIMIT": str(SOFT_LIMIT), "BEDS_BROKERS__REL_WRITE__TIME_LIMIT": "100",
    }  # fmt: skip
    dba = settings.schema_.dba.rec
    assert dba is not None
    key = str(uuid7())
    answers: list[Any] = []
    with (
        running_worker(project, "rel.write", env=own_vhost.env | limits),
        running_worker(project, "rel.read,rec.read", env=own_vhost.env),
        running_worker(project, ADMIN_QUEUES, env=own_vhost.env),
        Client(own_vhost.settings) as client,
        MongoClient[dict[str, Any]](dba.uri.get_secret_value()) as mongo,
    ):
        wait_until_served(client)
        client.call("create_record", "SampleRows", {"id": str(uuid7())})  # its sessions are open by now
        # An uncommitted insert of the same row blocks the worker's write.
        dba_cursor.execute("INSERT INTO samples (id) VALUES (%s)", [key])

        def write() -> None:
            try:
                answers.append(client.call("create_record", "SampleRows", {"id": key}, timeout=120))
            except BedsError as error:
                answers.append(error)

        caller = threading.Thread(target=write)
        caller.start()
        started = time.monotonic()
        time.sleep(1)  # the event is with its worker
        stack.rabbitmq.control("set_vm_memory_high_watermark", "0")
        try:
            assert time.monotonic() - started < SOFT_LIMIT - 2, "the machine is too slow for this test"
            dba_cursor.connection.rollback()
            time.sleep(SOFT_LIMIT + 4 - (time.monotonic() - started))
        finally:
            stack.rabbitmq.control("set_vm_memory_high_watermark", "absolute", "2GB")
        caller.join(150)
        audits = wait_for(lambda: list(mongo[dba.database].msAudit.find({"record_id": key})), 60, "the audit")
    assert answers == [Response(key, 1)]
    assert [audit["outcome"] for audit in audits] == ["ok"]


def test_12_the_first_callers_patience_is_not_the_connections(client: Client) -> None:
    with Client(client.settings) as impatient:
        for timeout in (3.0, 30.0):
            impatient.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=timeout)
            in_flight = impatient.transport._in_flight  # type: ignore[attr-defined]
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                seconds, _ = struct.unpack("ll", in_flight.connection._socket.getsockopt(socket.SOL_SOCKET, option, 16))
                assert seconds == client.settings.amqp.heartbeat_seconds * 2


def test_12_a_wrong_vhost_is_an_answer(settings: Settings) -> None:
    url = SecretStr(settings.amqp.client_url.removesuffix("beds") + "nowhere")
    wrong = settings.model_copy(update={"amqp": settings.amqp.model_copy(update={"url": url})})
    with Client(wrong) as client, pytest.raises(PermissionDenied) as caught:
        client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=20)
    assert "vhost" in caught.value.hint


def test_12_a_client_closed_while_it_connects_leaves_nothing(settings: Settings) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    for pause in (0.0, 0.001, 0.005, 0.01, 0.02, 0.05) * 3:
        client = Client(settings)

        def ask(client: Client = client) -> None:
            with suppress(BedsError):  # it may be answered before
                client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=10)

        caller = threading.Thread(target=ask)
        caller.start()
        time.sleep(pause)
        client.close()
        caller.join(30)
        assert not caller.is_alive()

    def left() -> bool:
        return not [t for t in threading.enumerate() if t.ident not in before and t.name == "beds-link"]

    wait_for(left, 30, "the end of each connection's thread")


KEYS = r"rec\.read|rec\.write|rel\.read|rel\.write|calgon"


@pytest.mark.parametrize(
    ("user", "exchange", "keys", "said"),
    [
        ("app", "beds.events", rf"^({KEYS}|operator)$", "publish to beds.events with an operator's key"),
        (
            "app",
            "beds.events",
            rf"^({KEYS}|[0-9.]+probe\.unroutable)$",
            "publish to beds.events with a delayed key, which holds a slot",
        ),
        ("app", "beds.logs", r"^(log\.info|probe\.unroutable)$", "publish to beds.logs with any key, audits too"),
        ("app", "beds.logs", r"^(log\.info|audit)$", "publish audits to beds.logs"),
        ("operator", "beds.events", ".*", "publish with any key"),
        ("operator", "beds.logs", r"^(log\.info|audit)$", "publish audits to beds.logs"),
    ],
)
def test_16_the_check_finds_each_key(
    own_vhost: OwnVhost, stack: Stack, user: str, exchange: str, keys: str, said: str
) -> None:
    with kombu.Connection(own_vhost.settings.amqp.broker_url) as connection:
        declare(Topology.from_settings(own_vhost.settings.amqp), connection)
    assert not [check for check in client_checks(own_vhost.settings) if check.failed]
    stack.rabbitmq.control("set_topic_permissions", "-p", "own", f"beds_{user}", exchange, keys, "^$")
    (found,) = (check for check in client_checks(own_vhost.settings) if check.failed)
    assert found.found == f"its user may also {said}"


def test_16_a_surplus_privilege_is_revoked(settings: Settings, project: Path, tmp_path: Path) -> None:
    """Whoever gave it: an apply that has anything to do puts the role of the workers right."""
    dba = settings.schema_.dba.rec
    assert dba is not None
    folder = Path(shutil.copytree(SYSTEM / "rec", tmp_path / "rec"))
    file = folder / "msAudit" / "collection.json"
    file.write_text(file.read_text() + "\n")
    wide = {"resource": {"db": dba.database, "collection": "msAudit"}, "actions": ["update"]}
    with MongoClient[dict[str, Any]](dba.uri.get_secret_value()) as mongo:

        def granted() -> set[str]:
            (role,) = mongo[dba.database].command("rolesInfo", BROKER_ROLE, showPrivileges=True)["roles"]
            return {a for p in role["privileges"] if p["resource"] == wide["resource"] for a in p["actions"]}

        mongo[dba.database].command("grantPrivilegesToRole", BROKER_ROLE, privileges=[wide])
        try:
            assert granted() == {"find", "insert", "update"}
            for _ in range(2):
                schema = RecSchema([project / "schema" / "rec", folder], dba)
                for change in schema.changes():
                    change.apply()
                schema.close()
                folder = SYSTEM / "rec"  # which puts the history right
                assert granted() == {"find", "insert"}
        finally:
            if "update" in granted():
                mongo[dba.database].command("revokePrivilegesFromRole", BROKER_ROLE, privileges=[wide])


@pytest.mark.parametrize("collection", ["msAudit", "msLedger"])
@pytest.mark.parametrize(
    "act",
    [
        lambda c: c.update_one({"_id": "none"}, {"$set": {"outcome": "ok"}}),
        lambda c: c.replace_one({"_id": "none"}, {}),
        lambda c: c.delete_many({}),
        lambda c: c.drop(),
        lambda c: c.find_one_and_delete({}),
    ],
)
def test_16_what_happened_cannot_be_changed_by_the_workers(settings: Settings, collection: str, act: Any) -> None:
    rec = settings.databases.rec
    assert rec is not None
    with MongoClient[dict[str, Any]](rec.uri.get_secret_value()) as mongo:
        mongo[rec.database][collection].find_one()
        with pytest.raises(OperationFailure) as caught:
            act(mongo[rec.database][collection])
    assert caught.value.code == 13


def test_16_nobody_else_on_the_machine_reads_the_stack(stack: Stack) -> None:
    assert stat.S_IMODE(stack.folder.stat().st_mode) == 0o700

"""A full node, an honest client under load, and attackers with only a client's AMQP user."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import amqp
import psutil
import pytest
from pymongo import MongoClient

from beds.client.client import Client
from beds.config import Settings
from beds.domain.identity import uuid7
from beds.stack.stack import Stack
from beds.transport.rights import NOTHING, Rights, User, client_for, definitions
from beds.wire.routes import LEVELS, LOGS
from tests.conftest import ADMIN_QUEUES, ALL_QUEUES, OwnVhost, running_worker, vhost_of_its_own, wait_until_served

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
RIGHTS = {
    "default": client_for(()),
    "reader": client_for(["rec.read", "rel.read"]),
    "calgon": client_for(["calgon"]),
    "logger": Rights(NOTHING, rf"^{LOGS}$", NOTHING, ((LOGS, rf"^log\.({'|'.join(LEVELS)})$"),)),
}
"""The rights of each attacker on RabbitMQ."""
PASSWORD = "attacker"


class Attacker:
    """A bare AMQP connection as a client's user, which can send any message."""

    def __init__(self, stack: Stack, name: str, url: str = "") -> None:
        place = urlsplit(url)
        self.user = place.username or f"attacker_{name}"
        self._password = unquote(place.password or PASSWORD)
        self._port = stack.plan.amqp_port
        self.replies: dict[str, Any] = {}
        self._connect()

    def _connect(self) -> None:
        self._connection = amqp.Connection(
            f"127.0.0.1:{self._port}", self.user, self._password, virtual_host="own", read_timeout=20, write_timeout=20
        )
        self._connection.connect()
        self.channel = self._connection.channel()
        self.channel.confirm_select()
        self.channel.basic_consume("amq.rabbitmq.reply-to", no_ack=True, callback=self._take)

    def _take(self, message: amqp.Message) -> None:
        self.replies[str(message.properties.get("correlation_id"))] = json.loads(message.body)

    def publish(
        self, key: str, task: str, arguments: Any, *, exchange: str = "beds.events", guid: str = "",
        beds: dict[str, Any] | None = None, headers: dict[str, Any] | None = None, places: Any = (), **properties: Any,
    ) -> str:  # fmt: skip
        """Send one message and return its guid. Raises amqp.AccessRefused: RabbitMQ does not let this user."""
        guid = guid or str(uuid7())
        message = amqp.Message(
            json.dumps([list(places), arguments, EMBED]),
            **{
                "content_type": "application/json", "content_encoding": "utf-8", "delivery_mode": 2,
                "correlation_id": guid, "reply_to": "amq.rabbitmq.reply-to",
                **({} if properties.get("user_id") == "" else {"user_id": self.user}),
            } | {name: value for name, value in properties.items() if value != ""},
            application_headers={
                "lang": "py", "id": guid, "task": task, "timelimit": [None, None],
                "beds": {"event_id": f"x.y.{guid}", "ticket": False} | (beds or {}), **(headers or {}),
            },
        )  # fmt: skip
        return self.send(message, exchange, key, guid)

    def send(self, message: amqp.Message, exchange: str, key: str, guid: str = "") -> str:
        try:
            self.channel.basic_publish(message, exchange, key, mandatory=True)
            self.channel.wait(amqp.spec.Basic.Ack, timeout=20)
        except amqp.AMQPError:
            self.close()
            self._connect()  # RabbitMQ has closed the channel
            raise
        return guid

    def answer(self, guid: str, seconds: float = 30.0) -> Any:
        """The reply to a message; None without a reply."""
        deadline = time.monotonic() + seconds
        while guid not in self.replies and time.monotonic() < deadline:
            try:
                self._connection.drain_events(timeout=1)
            except TimeoutError:
                continue
        return self.replies.get(guid)

    def code(self, guid: str, seconds: float = 30.0) -> str:
        """`ok`, an error's code, or `silence`."""
        reply = self.answer(guid, seconds)
        if reply is None:
            return "silence"
        return "ok" if reply["status"] == "SUCCESS" else str(reply["result"]["beds"]["code"])

    def close(self) -> None:
        self._connection.collect()


@dataclass
class Node:
    """The target of the attacks.

    Args:
        own: its vhost.
        honest: a client whose rights are its own.
        operator: a client with the operator's user.
        database: MongoDB as the DBA sees it.
        processes: of its workers, with their slots.
    """

    own: OwnVhost
    stack: Stack
    honest: Client
    operator: Client
    database: Any
    parents: list[int]
    worked: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def processes(self) -> set[int]:
        return {c.pid for pid in self.parents for c in [psutil.Process(pid), *psutil.Process(pid).children()]}


def define(stack: Stack, users: Sequence[User], folder: Path) -> None:
    file = folder / "attackers.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(definitions("own", users)))
    stack.rabbitmq.control("import_definitions", str(file))
    file.unlink()


@pytest.fixture(scope="module")
def node(project: Path, settings: Settings, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("attack")
    with vhost_of_its_own(settings, stack) as own:
        where = urlsplit(settings.amqp.client_url)
        url = "amqp://{}:{}@" + f"{where.hostname}:{where.port}/own"
        users = [User.of(url.format(f"attacker_{name}", quote(PASSWORD)), rights) for name, rights in RIGHTS.items()]
        define(stack, users, folder)
        dba = settings.schema_.dba.rec
        assert dba is not None
        with (
            running_worker(project, ALL_QUEUES, env=own.env) as worker,
            running_worker(project, ADMIN_QUEUES, env=own.env) as admin,
            Client(own.settings) as honest,
            Client(own.settings, operator=True) as operator,
            MongoClient[dict[str, Any]](dba.uri.get_secret_value(), tz_aware=True) as mongo,
        ):
            wait_until_served(honest)
            found = Node(own, stack, honest, operator, mongo[dba.database], [worker.pid, admin.pid])
            before = found.processes
            with _at_work(found):
                yield found
            found.database.msDead.delete_many({})  # thousands, which other tests would have to page through
            assert worker.poll() is None
            assert admin.poll() is None
            assert found.processes == before, "a process of the node ended"
            assert not found.failed, "\n".join(found.failed[:5])
            assert len(found.worked) > 5


@contextmanager
def _at_work(node: Node) -> Iterator[None]:
    """An honest client writes, reads and polls meanwhile; each of its calls must succeed."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            key = str(uuid.uuid4())
            try:
                node.honest.call("create_record", "SampleRows", {"id": key}, timeout=60)
                ticket = node.honest.submit("create_record", "SampleDocs", {"id": key}, timeout=60)
                ticket.result(60)
                assert len(node.honest.call("fetch_records", "SampleDocs", {"id": key}, using="by_id", timeout=60)) == 1  # type: ignore[arg-type]
                node.worked.append(key)
            except Exception as error:  # noqa: BLE001 — each is a finding
                node.failed.append(f"{key}: {error!r} {error}")
            stop.wait(0.2)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(90)


@pytest.fixture(params=list(RIGHTS))
def attacker(request: pytest.FixtureRequest, node: Node) -> Iterator[Attacker]:
    found = Attacker(node.stack, request.param)
    yield found
    found.close()


@pytest.fixture
def default(node: Node) -> Iterator[Attacker]:
    found = Attacker(node.stack, "default")
    yield found
    found.close()

"""Events that kill their worker, and malformed messages: stored in msDead, answered, and replayed."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import amqp
import pytest
from pymongo import MongoClient

from beds.client.call import Call
from beds.client.client import Client
from beds.client.tickets import Ticket
from beds.config import Settings
from beds.domain.event import Event
from beds.domain.identity import uuid7
from beds.domain.ticket import TicketState
from beds.errors import DeadEvent, NotFound
from beds.stack.stack import Stack
from beds.wire.reply import parse_reply, read_reply
from tests.conftest import ADMIN_QUEUES, ALL_QUEUES, ROOT, OwnVhost, run, running_worker, wait_for, wait_until_served

LIMIT = 3


@pytest.fixture
def poisoned(project: Path, own_vhost: OwnVhost) -> Iterator[OwnVhost]:
    """Workers with an operation that kills them, and an admin worker; a low delivery limit."""
    env = own_vhost.env | {
        "PYTHONPATH": str(ROOT), "BEDS_METRICS__PROMETHEUS": "", "BEDS_AMQP__DELIVERY_LIMIT": str(LIMIT),
    }  # fmt: skip
    poison = project / "poison"
    poison.touch()
    with (
        running_worker(project, ALL_QUEUES, "-I", "tests.poison_task", "-c", "3", env=env),
        running_worker(project, ADMIN_QUEUES, "-c", "2", env=env),
        Client(own_vhost.settings) as client,
    ):
        wait_until_served(client)
        yield replace(own_vhost, env=env)
    poison.unlink(missing_ok=True)


def poison_event(client: Client, key: str, *, ticket: bool) -> Event:
    event = client.event(Call("create_record", "SampleDocs", {"id": key}), ticket=ticket, timeout=60)
    return replace(event, task="rec.poison", body=b"")


def submitted(client: Client, event: Event) -> Ticket:
    return client.submit_event(event, time.monotonic() + 30)


@pytest.mark.timeout(240)
def test_trap_5_an_event_that_ends_its_worker_is_buried_told_and_replayed(poisoned: OwnVhost, project: Path) -> None:
    with Client(poisoned.settings) as client:
        key, other = str(uuid7()), str(uuid7())
        waiting = client.transport.send(poison_event(client, other, ticket=False), time.monotonic() + 10)
        event = poison_event(client, key, ticket=True)
        ticket = submitted(client, event)
        for n in range(20):  # other events are still executed
            client.call("create_record", "SampleRows", {"id": f"{key[-20:]}-{n}"}, timeout=60)
        with pytest.raises(DeadEvent) as caught:
            ticket.result(120)
        assert caught.value.event_id == ticket.event_id
        with pytest.raises(DeadEvent):
            read_reply(parse_reply(waiting.reply.result(60)))
        assert client.ticket(ticket.guid).status().state is TicketState.FAILURE
        assert len((project / "poison").read_text()) == 2 * (LIMIT + 1)
        tree = wait_for(lambda: _tree(client, ticket.guid), 30, "its lineage")
        assert tree.outcome == "dead_event"

        listed = run(project, "beds", "dead", "list", "--queue", "rec.write", "--json", env=poisoned.env)
        assert listed.returncode == 0, listed.stderr
        dead = {record["guid"]: record for record in json.loads(listed.stdout)["records"]}
        assert dead[ticket.guid]["reason"] == "delivery_limit"
        assert dead[ticket.guid]["deliveries"] >= LIMIT
        dead_id = dead[ticket.guid]["dead_id"]
        shown = run(project, "beds", "dead", "show", ticket.guid, env=poisoned.env)
        assert "delivery_limit" in shown.stdout, shown.stderr

        (project / "poison").unlink()
        replayed = run(project, "beds", "dead", "replay", dead_id, env=poisoned.env)
        assert replayed.returncode == 0, replayed.stderr
        assert client.ticket(ticket.guid).wait(60).state is TicketState.SUCCESS
        assert len(client.call("fetch_records", "SampleDocs", {"id": key}, using="by_id")) == 1  # type: ignore[arg-type]
        discarded = run(project, "beds", "dead", "discard", "--queue", "rec.write", "--json", env=poisoned.env)
        assert discarded.returncode == 0, discarded.stderr
        assert (
            run(
                project, "beds", "dead", "replay", dead[waiting.event.lineage.guid]["dead_id"], env=poisoned.env
            ).returncode
            == 66
        )
        assert run(project, "beds", "dead", "replay", env=poisoned.env).returncode == 2


def _tree(client: Client, guid: str) -> Any:
    try:
        return client.lineage(guid)
    except NotFound:
        return None


@pytest.fixture
def database(settings: Settings) -> Iterator[Any]:
    dba = settings.schema_.dba.rec
    assert dba is not None
    with MongoClient[dict[str, Any]](dba.uri.get_secret_value()) as mongo:
        yield mongo[dba.database]


@pytest.mark.timeout(180)
def test_no_message_ends_a_worker_or_the_dead_letter_consumer(
    project: Path, own_vhost: OwnVhost, stack: Stack, database: Any
) -> None:
    """Headers nested deeper than Python can follow, bodies too large for MongoDB, forged messages in beds.dead."""
    env = own_vhost.env | {"BEDS_METRICS__PROMETHEUS": ""}
    deep: dict[str, Any] = {}
    for _ in range(700):
        deep = {"x": deep}
    before = database.msDead.count_documents({})
    with (
        running_worker(project, ALL_QUEUES, env=env) as worker,
        running_worker(project, ADMIN_QUEUES, env=env) as admin,
        Client(own_vhost.settings) as client,
    ):
        wait_until_served(client)
        with amqp.Connection(
            f"127.0.0.1:{stack.plan.amqp_port}", "beds_worker", stack.plan.passwords["amqp_worker"], virtual_host="own"
        ) as connection:
            channel = connection.channel()
            channel.basic_publish(amqp.Message(b"x" * 16_700_000), "beds.events", "rec.write")
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(5000)  # py-amqp writes the nesting recursively, too
            channel.basic_publish(amqp.Message(b"x", application_headers={"x-deep": deep}), "beds.events", "rel.write")
            sys.setrecursionlimit(limit)
            lies: list[Any] = [7, [], [5], [{"routing-keys": 7}], [{"routing-keys": [5], "queue": 5, "time": "x"}]]
            for lie in lies:
                channel.basic_publish(amqp.Message(b"x", application_headers={"x-death": lie}), "beds.dead", "x")
        wait_for(lambda: database.msDead.count_documents({}) >= before + 2 + len(lies), 60, "the burials")
        assert worker.poll() is None
        assert admin.poll() is None
        assert len(client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=30)) == 0  # type: ignore[arg-type]


@pytest.mark.timeout(400)
def test_ten_thousand_malformed_messages_are_buried_and_no_worker_dies(
    project: Path, own_vhost: OwnVhost, stack: Stack, database: Any
) -> None:
    """Wrong JSON, wrong types, foreign tasks, pickles, huge headers: each is stored in msDead, none is executed."""
    env = own_vhost.env | {"BEDS_METRICS__PROMETHEUS": ""}
    with (
        running_worker(project, ALL_QUEUES, env=env) as worker,
        running_worker(project, ADMIN_QUEUES, env=env) as admin,
        Client(own_vhost.settings) as client,
    ):
        wait_until_served(client)
        marker = uuid.uuid4().hex[:8]
        with amqp.Connection(
            f"127.0.0.1:{stack.plan.amqp_port}", "beds_worker", stack.plan.passwords["amqp_worker"], virtual_host="own"
        ) as connection:
            channel = connection.channel()
            for n in range(10_000):
                queue = ("rel.write", "rec.read", "calgon", "rec.write")[n % 4]
                # With confirms: a message that is unconfirmed when its channel closes may be lost.
                channel.basic_publish_confirm(_malformed(n, f"{marker}-{n:06}"), "beds.events", queue)

        mine = {"reason": "rejected", "summary": {"$regex": f"^{marker}"}}
        wait_for(lambda: database.msDead.count_documents(mine) == 10_000, 240, "ten thousand burials")
        assert worker.poll() is None
        assert admin.poll() is None
        client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=30)


def _malformed(n: int, summary: str) -> amqp.Message:
    bodies: list[bytes] = [
        b"not json", b"\x80\x04K\x05.", b"[1]", b"{}", b"null", b'[[],{"template":5},{"id":1}]',
        b"[" * 400 + b"]" * 400, b"\xff\xfe\x00", b'[[],"x",{}]', b"",
    ]  # fmt: skip
    headers: list[dict[str, Any]] = [
        {}, {"task": "os.system"}, {"task": "celery.backend_cleanup"}, {"task": ["x"]}, {"id": 5}, {"id": "x"},
        {"callbacks": [1]}, {"retries": "x"}, {"big": "x" * 20_000}, {"timelimit": [1, 2]}, {"task": None},
    ]  # fmt: skip
    kinds = ("application/json", "application/x-python-serialize", "text/plain", "application/x-yaml", "")
    guid = str(uuid.uuid4())
    return amqp.Message(
        bodies[n % len(bodies)], content_type=kinds[n % len(kinds)], content_encoding="utf-8", correlation_id=guid,
        application_headers={
            "task": "rel.create_record", "id": guid, "kwargsrepr": f"({summary})", **headers[n % len(headers)],
        },
    )  # fmt: skip

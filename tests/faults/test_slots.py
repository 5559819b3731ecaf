"""Slots that are killed, stopped, cut off and replaced: each event has its effect once, and the pool stays whole."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import amqp
import kombu
import psutil
import pytest
from pymongo import MongoClient

from beds.client.call import Call
from beds.client.client import Client
from beds.client.tickets import Ticket
from beds.config import Settings
from beds.domain.event import Operation
from beds.domain.identity import uuid7
from beds.domain.ticket import TicketState
from beds.errors import BedsError, CallTimeout, DuplicateKey, TimeLimitExceeded, TransportError
from beds.services.dispatch import execute
from beds.services.factory import AdapterFactory
from beds.stack.stack import Stack
from beds.templates.registry import TemplateRegistry
from beds.worker.slots.slot import KEEPER_SECONDS
from tests.conftest import OwnVhost, run, running_worker, wait_for, wait_until_served
from tests.proxy import SilentProxy

QUEUES = "rel.read,rel.write,rec.write,calgon,operator"
ADMIN = "beds.logs,beds.audit,beds.metrics"


def slots(worker: subprocess.Popen[bytes]) -> list[int]:
    """The pids of a worker's slots."""
    found = []
    for child in psutil.Process(worker.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return sorted(found)


@contextlib.contextmanager
def pool(project: Path, own: OwnVhost, count: int, *options: str, **env: str) -> Iterator[Any]:
    """One worker for all events with that many slots, and the admin worker."""
    with (
        running_worker(project, QUEUES, "-c", str(count), *options, env=own.env | env) as worker,
        running_worker(project, ADMIN, env=own.env),
        Client(own.settings) as client,
    ):
        wait_until_served(client, ["SampleRows"])
        yield worker, client


@contextlib.contextmanager
def one_slot(project: Path, own: OwnVhost, *, hard: int, soft: int) -> Iterator[Any]:
    """A worker with one slot for `rel.read`, and its limits in seconds."""
    limits = {
        "BEDS_BROKERS__REL_READ__TIME_LIMIT": str(hard),
        "BEDS_BROKERS__REL_READ__SOFT_TIME_LIMIT": str(soft),
    }
    with (
        running_worker(project, "rel.read", "-c", "1", env=own.env | limits) as worker,
        Client(own.settings) as client,
    ):
        wait_until_served(client, ["SampleRows"])
        yield worker, client


@contextlib.contextmanager
def frozen(stack: Stack) -> Iterator[None]:
    """RabbitMQ stands still: what was sent to it stays unanswered."""
    processes = stack.rabbitmq.daemon.family()
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@pytest.fixture
def stored(settings: Settings) -> Iterator[Callable[[str, str], int]]:
    """Counts a record in its store, past RabbitMQ."""
    factory = AdapterFactory(settings, TemplateRegistry.from_folder(settings.schema_path))

    def count(template: str, key: str) -> int:
        page = execute(
            factory,
            factory.registry[template].store,
            Operation.FETCH,
            template,
            {"using": "by_id", "args": {"id": key}},
        )
        return len(page)  # type: ignore[arg-type]

    yield count
    factory.close()


@pytest.fixture
def logged(settings: Settings) -> Iterator[Callable[[str], list[Any]]]:
    """Finds records of msLogs by a part of their message."""
    dba = settings.schema_.dba.rec
    assert dba is not None
    with MongoClient[dict[str, Any]](dba.uri.get_secret_value()) as mongo:
        yield lambda part: list(mongo[dba.database].msLogs.find({"message": {"$regex": re.escape(part)}}))


def rows_of(client: Client, key: str) -> int:
    return len(client.fetch("SampleRows", "by_id", {"id": key}, timeout=30))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("template", ["SampleRows", "SampleDocs"])
def test_a_slot_killed_between_the_commit_and_its_acknowledgement(
    project: Path, own_vhost: OwnVhost, stack: Stack, template: str, stored: Callable[[str, str], int]
) -> None:
    """RabbitMQ stands still, so that the audit record's confirm is outstanding, and the event not acknowledged."""
    key = str(uuid7())
    with pool(project, own_vhost, 1, "--prefetch-multiplier", "4") as (worker, client):
        (pid,) = slots(worker)
        busy = client.submit("fetch_records", "SampleRows", {"seconds": 12.0}, using="sleep")
        wait_for(lambda: _is_active(project, own_vhost, busy.guid), 30, "its begin")
        ticketless = Call("create_record", template, {"id": key})
        pending = _in_thread(lambda: client.call_many([ticketless], timeout=90))
        wait_for(lambda: _is_reserved(project, own_vhost), 30, "the write behind it")
        with frozen(stack):
            wait_for(lambda: stored(template, key) == 1, 30, "the commit")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: slots(worker) not in ([], [pid]), 10, "another slot")
        (answer,) = pending()
        assert answer.affected == 1, "the stored answer, not a duplicate key"
        assert stored(template, key) == 1
        assert busy.wait(60).state is TicketState.SUCCESS


@pytest.mark.timeout(180)
def test_a_slot_killed_with_sixteen_events_prefetched(project: Path, own_vhost: OwnVhost) -> None:
    keys = [str(uuid7()) for _ in range(40)]
    with pool(project, own_vhost, 2, "--prefetch-multiplier", "16") as (worker, client):
        tickets = client.submit_many([Call("create_record", "SampleRows", {"id": key}) for key in keys])
        for _ in range(4):
            time.sleep(0.05)
            for pid in slots(worker)[:1]:
                os.kill(pid, signal.SIGKILL)
        assert [ticket.wait(90).state for ticket in tickets] == [TicketState.SUCCESS] * len(keys)
        assert [rows_of(client, key) for key in keys] == [1] * len(keys)


@pytest.mark.timeout(120)
def test_a_dead_slot_is_replaced_at_once_and_said_in_the_logs(
    project: Path, own_vhost: OwnVhost, logged: Callable[[str], list[Any]]
) -> None:
    with pool(project, own_vhost, 2) as (worker, client):
        before = slots(worker)
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: len(slots(worker)) == 2 and before[0] not in slots(worker), 5, "its replacement")
        assert before[1] in slots(worker), "the other one stayed"
        assert client.fetch("SampleRows", "by_id", {"id": "x"}, timeout=30) is not None
        wait_for(lambda: logged(f"slot 0 died by signal {int(signal.SIGKILL)}"), 30, "the record in msLogs")


@pytest.mark.timeout(120)
def test_trap_7_a_stopped_slot_is_killed_past_the_hard_limit(project: Path, own_vhost: OwnVhost) -> None:
    with one_slot(project, own_vhost, hard=4, soft=3) as (worker, client):
        (pid,) = slots(worker)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: slots(worker) and pid not in slots(worker), 60, "its replacement")
        wait_until_served(client, ["SampleRows"])


@pytest.mark.timeout(120)
def test_the_soft_limit_is_a_typed_error_and_the_slot_stays(project: Path, own_vhost: OwnVhost) -> None:
    with one_slot(project, own_vhost, hard=20, soft=1) as (worker, client):
        before = slots(worker)
        with pytest.raises(TimeLimitExceeded):
            client.fetch("SampleRows", "sleep", {"seconds": 8.0}, timeout=30)
        assert slots(worker) == before
        assert client.fetch("SampleRows", "by_id", {"id": "x"}, timeout=30) is not None


@pytest.mark.timeout(120)
def test_the_hard_limit_kills_the_slot_and_the_event_is_delivered_again(project: Path, own_vhost: OwnVhost) -> None:
    with one_slot(project, own_vhost, hard=6, soft=4) as (worker, client):
        (pid,) = slots(worker)
        pending = _in_thread(lambda: client.fetch("SampleRows", "sleep", {"seconds": 1.0}, timeout=60))
        time.sleep(0.5)
        os.kill(pid, signal.SIGSTOP)  # the soft limit cannot strike in a process that is stopped
        wait_for(lambda: slots(worker) and pid not in slots(worker), 30, "its replacement")
        assert len(pending()) == 1


@pytest.mark.timeout(180)
def test_rabbitmqs_restart_leaves_the_slots_serving(project: Path, own_vhost: OwnVhost, stack: Stack) -> None:
    with pool(project, own_vhost, 2) as (worker, client):
        before = slots(worker)
        stack.rabbitmq.control("close_all_connections", "-p", "own", "a test")
        wait_until_served(client, ["SampleRows"])
        stack.rabbitmq.control("stop_app")
        stack.rabbitmq.control("start_app")
        wait_for(lambda: _answers(client), 90, "the service")
        assert slots(worker) == before


@pytest.mark.timeout(180)
@pytest.mark.parametrize("options", [(), ("-P", "threads")])
def test_a_reply_that_is_lost_on_its_way_is_sent_again(
    project: Path, own_vhost: OwnVhost, stack: Stack, options: tuple[str, ...]
) -> None:
    """Replies have a connection of their own: the one that consumes may stay, so that nothing is delivered again."""
    proxy = SilentProxy(stack.plan.amqp_port)
    url = own_vhost.env["BEDS_AMQP__WORKER_URL"].replace(f":{stack.plan.amqp_port}/", f":{proxy.port}/")
    env = own_vhost.env | {"BEDS_AMQP__WORKER_URL": url}
    with (
        contextlib.closing(proxy),
        running_worker(project, QUEUES, "-c", "1", *options, env=env),
        running_worker(project, ADMIN, env=own_vhost.env),
        Client(own_vhost.settings) as client,
    ):
        wait_until_served(client, ["SampleRows"])
        for _ in range(3):
            key = str(uuid7())
            proxy.cut_at = b"amq.rabbitmq.reply-to."
            assert client.write("create_record", "SampleRows", {"id": key}, timeout=30).affected == 1
            assert proxy.cut_at is None, "no reply passed the proxy"
            proxy.cut_at = b"amq.rabbitmq.reply-to."
            assert rows_of(client, key) == 1


@pytest.mark.timeout(180)
def test_a_called_read_survives_rabbitmqs_restart_in_a_classic_queue(
    project: Path, own_vhost: OwnVhost, stack: Stack
) -> None:
    """The queue is written to no disk, so that the read is lost with it; its client sends it again."""
    env = own_vhost.env | {"BEDS_AMQP__QUEUE_TYPES": '{"rel.read": "classic"}'}
    with pool(project, OwnVhost(own_vhost.settings, env), 2) as (_, client):
        pending = [
            _in_thread(lambda: client.fetch("SampleRows", "sleep", {"seconds": 2.0}, timeout=90)) for _ in range(6)
        ]
        time.sleep(0.5)
        stack.rabbitmq.down()
        stack.rabbitmq.up()
        assert [len(answer()) for answer in pending] == [1] * 6
        with kombu.Connection(own_vhost.settings.amqp.broker_url) as connection, pytest.raises(amqp.PreconditionFailed):
            connection.default_channel.queue_declare("rel.read", arguments={"x-queue-type": "quorum"})


@pytest.mark.timeout(180)
def test_a_read_that_ends_its_slot_each_time_leaves_a_classic_queue(project: Path, own_vhost: OwnVhost) -> None:
    """The queue does not count deliveries, so the pool does."""
    env = own_vhost.env | {"BEDS_AMQP__QUEUE_TYPES": '{"rel.read": "classic"}', "BEDS_AMQP__DELIVERY_LIMIT": "2"}
    with pool(project, OwnVhost(own_vhost.settings, env), 4) as (worker, client):
        ticket = client.submit("fetch_records", "SampleRows", {"seconds": 60.0}, using="sleep")
        for _ in range(3):
            wait_for(lambda: ticket.guid in _inspect(project, own_vhost, "active"), 30, "its begin")
            before = slots(worker)
            active = json.loads(_inspect(project, own_vhost, "active"))
            (pid,) = [task["worker_pid"] for tasks in active.values() for task in tasks if task["id"] == ticket.guid]
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda old=before: slots(worker) != old and len(slots(worker)) == len(old), 30, "its replacement")
        assert ticket.wait(60).state is TicketState.FAILURE
        assert rows_of(client, "x") == 0


@pytest.mark.timeout(120)
def test_a_queue_that_was_deleted_is_declared_again(project: Path, own_vhost: OwnVhost, stack: Stack) -> None:
    with pool(project, own_vhost, 1) as (worker, client):
        before = slots(worker)
        stack.rabbitmq.control("delete_queue", "-p", "own", "rel.read")
        wait_for(lambda: _answers(client), 60, "the service")
        assert slots(worker) == before


@pytest.mark.timeout(120)
def test_a_slot_ends_after_its_number_of_events_and_loses_none(project: Path, own_vhost: OwnVhost) -> None:
    keys = [str(uuid7()) for _ in range(60)]
    options = ("--max-tasks-per-child", "7", "--prefetch-multiplier", "4")
    with pool(project, own_vhost, 2, *options) as (worker, client):
        before = slots(worker)
        client.call_many([Call("create_record", "SampleRows", {"id": key}) for key in keys], timeout=90)
        assert [rows_of(client, key) for key in keys] == [1] * len(keys)
        assert not set(before) & set(slots(worker))
        assert "died" not in _log(project)[-4000:]


@pytest.mark.timeout(120)
def test_operators_see_one_worker_and_what_it_executes(project: Path, own_vhost: OwnVhost) -> None:
    with pool(project, own_vhost, 2, "--prefetch-multiplier", "4") as (worker, client):
        tickets = [client.submit("fetch_records", "SampleRows", {"seconds": 6.0}, using="sleep") for _ in range(5)]
        wait_for(lambda: _is_active(project, own_vhost, tickets[0].guid), 30, "its begin")
        active = _inspect(project, own_vhost, "active")
        assert "SampleRows.fetch_records" in active
        assert "rel.fetch_records" in active
        assert "SampleRows.fetch_records" in _inspect(project, own_vhost, "reserved")
        stats = _inspect(project, own_vhost, "stats")
        assert all(str(pid) in stats for pid in slots(worker))
        assert "rel.fetch_records" in stats
        listed = _inspect(project, own_vhost, "active_queues")
        assert all(name in listed for name in QUEUES.split(","))
        assert all(ticket.wait(60).state is TicketState.SUCCESS for ticket in tickets)


@pytest.mark.timeout(120)
def test_a_remote_shutdown_drains(project: Path, own_vhost: OwnVhost) -> None:
    with pool(project, own_vhost, 2) as (worker, client):
        ticket = client.submit("fetch_records", "SampleRows", {"seconds": 4.0}, using="sleep")
        wait_for(lambda: _is_active(project, own_vhost, ticket.guid), 30, "its begin")
        pids = slots(worker)
        run(project, "celery", "-A", "beds", "control", "shutdown", env=own_vhost.env)
        assert worker.wait(60) == 0
        assert not [pid for pid in pids if psutil.pid_exists(pid)]
    with running_worker(project, "calgon", env=own_vhost.env), Client(own_vhost.settings) as client:
        wait_for(lambda: _state(client, ticket) is TicketState.SUCCESS, 60, "the outcome that it stored")


@pytest.mark.timeout(60)
def test_the_slots_end_with_their_parent(project: Path, own_vhost: OwnVhost) -> None:
    with pool(project, own_vhost, 2) as (worker, _):
        pids = slots(worker)
        worker.kill()
        worker.wait()
        wait_for(lambda: not [pid for pid in pids if psutil.pid_exists(pid)], 10, "the end of its slots")


def _answers(client: Client) -> bool:
    try:
        client.fetch("SampleRows", "by_id", {"id": "x"}, timeout=5)
    except (CallTimeout, TransportError):
        return False
    return True


def _state(client: Client, ticket: Ticket) -> TicketState | None:
    try:
        return client.ticket(ticket.guid).status().state
    except BedsError:
        return None


def _inspect(project: Path, own: OwnVhost, what: str) -> str:
    return run(project, "celery", "-A", "beds", "inspect", what, "--json", env=own.env).stdout


def _is_active(project: Path, own: OwnVhost, guid: str) -> bool:
    return guid in _inspect(project, own, "active")


def _is_reserved(project: Path, own: OwnVhost) -> bool:
    return "create_record" in _inspect(project, own, "reserved")


def _log(project: Path) -> str:
    return (project / "worker.log").read_text(errors="replace")


def _in_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    """Call in a thread; returns a function that waits for the result."""
    executor = concurrent.futures.ThreadPoolExecutor(1)
    future = executor.submit(call)
    return lambda: future.result(120)


def _forged(node: bytes, rest: bytes = b"\x00" * 12) -> str:
    """An address of the form that RabbitMQ makes, with a process id of our own."""
    term = b"\x83Xw" + bytes([len(node)]) + node + rest
    return f"amq.rabbitmq.reply-to.{base64.b64encode(term).decode()}.{base64.b64encode(b'key').decode()}"


HOSTILE: list[dict[str, Any]] = [
    *(
        {"reply_to": address}
        for address in (
            "amq.rabbitmq.reply-to.!!!.x",
            "amq.rabbitmq.reply-to.AAAA.BBBB",
            "amq.rabbitmq.reply-to.g2gCdwFhYQ==.q",
            "amq.rabbitmq.reply-to.",
            b"amq.rabbitmq.reply-to.\xed\xa0\x80".decode("utf-8", "surrogatepass"),
            "amq.rabbitmq.reply-to." + "A" * 230,
            _forged(b"reply@1"),
            _forged(b"reply@4294967295", b"\xff" * 12),
            _forged(b"rabbit@elsewhere"),
        )
    ),
    {"correlation_id": b"\xed\xa0\x80".decode("utf-8", "surrogatepass")},
    {"correlation_id": ""},
    {"expiration": "99999999999"},
]
"""Properties of messages whose replies, or whose refusal, could break the connection that consumes."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("is_valid", [False, True])
def test_hostile_properties_break_neither_the_slot_nor_its_connection(
    project: Path, own_vhost: OwnVhost, is_valid: bool
) -> None:
    with (
        running_worker(project, "rel.read", "-c", "1", env=own_vhost.env) as worker,
        Client(own_vhost.settings) as client,
        kombu.Connection(own_vhost.settings.amqp.client_url) as connection,
    ):
        wait_until_served(client, ["SampleRows"])
        before, begun = slots(worker), len(_log(project))
        channel = connection.default_channel
        for properties in HOSTILE:
            guid = str(uuid7())
            headers = {"lang": "py", "task": "rel.fetch_records", "id": guid, "argsrepr": {"a": 1}, "root_id": ["x"]}
            arguments = {"template": "SampleRows", "using": "by_id", "args": {"id": "x"}}
            body = json.dumps([[], arguments, {}]) if is_valid else "5"
            message = amqp.Message(
                body, content_type="application/json", content_encoding="utf-8", user_id="beds_app",
                application_headers=headers, **({"correlation_id": guid} | properties),
            )  # fmt: skip
            channel.basic_publish(message, "beds.events", "rel.read")
            reads = [Call("fetch_records", "SampleRows", {"id": "x"}, using="by_id")] * 8
            assert len(client.call_many(reads, timeout=30)) == 8, (
                "their replies share a connection with the hostile one's"
            )
        for _ in range(5):
            assert client.fetch("SampleRows", "by_id", {"id": "x"}, timeout=30) is not None
            time.sleep(KEEPER_SECONDS)  # the keeper publishes what monitors see of them
        assert slots(worker) == before
        assert psutil.Process(before[0]).num_threads() >= 3, "the keeper lives"
        said = _log(project)[begun:]
        assert "connection to RabbitMQ is lost" not in said
        assert "keeper failed" not in said
        assert "could not be handled" not in said


@pytest.mark.timeout(120)
def test_a_second_signal_ends_a_worker_before_its_events(project: Path, own_vhost: OwnVhost) -> None:
    with (
        running_worker(project, "rel.read", "-c", "1", env=own_vhost.env) as worker,
        Client(own_vhost.settings) as client,
    ):
        wait_until_served(client, ["SampleRows"])
        pending = _in_thread(lambda: _answers_slowly(client))
        time.sleep(2)
        started = time.monotonic()
        worker.send_signal(signal.SIGQUIT)  # Celery's cold shutdown: ten seconds for what runs
        worker.wait(60)
        assert time.monotonic() - started < 20, "an event of 25 s was waited for"
        pending()


@pytest.mark.timeout(120)
def test_a_pool_of_threads_executes_the_same_events(project: Path, own_vhost: OwnVhost) -> None:
    """Celery's own consumer, task and result backend, as the pool of the records uses them."""
    with (
        running_worker(project, QUEUES, "-P", "threads", "-c", "2", env=own_vhost.env),
        running_worker(project, ADMIN, env=own_vhost.env),
        Client(own_vhost.settings) as client,
    ):
        wait_until_served(client, ["SampleRows"])
        key = str(uuid7())
        assert client.write("create_record", "SampleRows", {"id": key}, timeout=30).affected == 1
        assert rows_of(client, key) == 1
        with pytest.raises(DuplicateKey):
            client.write("create_record", "SampleRows", {"id": key}, timeout=30)
        ticket = client.submit("create_record", "SampleDocs", {"id": key})
        assert ticket.wait(60).state is TicketState.SUCCESS


def _answers_slowly(client: Client) -> bool:
    try:
        client.fetch("SampleRows", "sleep", {"seconds": 22.0}, timeout=40)
    except BedsError:
        return False
    return True

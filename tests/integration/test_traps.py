"""Known faults of Celery and RabbitMQ, and tests that BEDS avoids them."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
from pathlib import Path
from typing import Any

import amqp
import kombu
import MySQLdb
import pytest

from beds.adapters.mariadb import session as mariadb_session
from beds.adapters.mongo import session as mongo_session
from beds.client.client import Client
from beds.config import Settings
from beds.domain.event import Operation, Store
from beds.errors import NotFound, SchemaMismatch, StoreUnavailable, TopologyMismatch
from beds.services.dispatch import execute
from beds.services.factory import AdapterFactory
from beds.stack.stack import Stack
from beds.templates.registry import TemplateRegistry
from beds.transport.topology import Topology, declare
from beds.wire.routes import CRUD_QUEUES, DEAD, EVENT_QUEUES, LOG_QUEUES
from tests.conftest import run, running_worker, wait_for, workers_in

RETRYING_TASK = """
import os, pathlib
from beds.wire.routes import QUEUE_ROUTES, ROUTES, Kind, Route
from beds.worker.app import app

app.conf.task_routes = {**app.conf.task_routes, "trap.retrying": {"queue": "job.aggregate"}}
ROUTES["trap.retrying"] = Route("trap.retrying", "retrying", QUEUE_ROUTES["job.aggregate"], Kind.PROBE)

@app.task(bind=True, name="trap.retrying", max_retries=2)
def retrying(self):
    with pathlib.Path(os.environ["TRAP_LOG"]).open("a") as log:
        log.write(f"{self.request.retries} {self.request.delivery_info['routing_key']} {self.request.hostname}\\n")
    raise self.retry(countdown=1, user_id="beds_worker")
"""


@pytest.mark.timeout(120)
def test_trap_1_a_retried_task_stays_on_its_own_queue(project: Path, settings: Settings, tmp_path: Path) -> None:
    """Call-time exchange and key lose a retry to the default queue; routing by the queue's name does not."""
    (project / "trap_tasks.py").write_text(RETRYING_TASK)
    log = tmp_path / "trap.log"
    env = {"TRAP_LOG": str(log)}
    declare_all(settings)
    with (
        running_worker(project, "job.aggregate", "-I", "trap_tasks", "-n", "right@trap", "-c", "1", env=env),
        running_worker(project, "job.migrate", "-I", "trap_tasks", "-n", "wrong@trap", "-c", "1", env=env),
    ):
        send = "import beds, trap_tasks; trap_tasks.retrying.apply_async(user_id='beds_worker')"
        assert run(project, sys.executable, "-c", send).returncode == 0
        lines = wait_for(
            lambda: (found := log.read_text().splitlines() if log.exists() else []) and len(found) == 3 and found,
            60,
            "the second retry",
        )
    assert [line.split()[2] for line in lines] == ["right@trap"] * 3


def test_trap_1_nobody_consumes_the_default_queue(project: Path) -> None:
    import celeryconfig

    assert celeryconfig.task_default_queue == DEAD
    assert all(list(route) == ["queue"] for route in celeryconfig.task_routes.values())
    done = run(project, "celery", "-A", "beds", "worker", "-Q", DEAD)
    assert done.returncode == 78
    assert "beds.dead" in done.stderr


def test_trap_2_confirms_alone_lose_an_unroutable_message_and_the_client_does_not(
    settings: Settings, stack: Stack
) -> None:
    """The fault itself; test_client tests the workaround (unroutable at once)."""
    with kombu.Connection(settings.amqp.broker_url, transport_options={"confirm_publish": True}) as connection:
        channel = connection.default_channel
        # Confirmed and dropped, without an error.
        channel.basic_publish_confirm(amqp.Message("{}"), "beds.events", "no.such.key")
        returned: list[Any] = []
        channel.events["basic_return"].add(lambda *arguments: returned.append(arguments))
        channel.basic_publish_confirm(amqp.Message("{}"), "beds.events", "no.such.key", mandatory=True)
        assert returned


def declare_all(settings: Settings) -> None:
    with kombu.Connection(settings.amqp.broker_url) as connection:
        declare(Topology.from_settings(settings.amqp), connection)


def test_trap_10_the_whole_topology_is_there_before_a_worker_consumes(
    project: Path, settings: Settings, stack: Stack
) -> None:
    """A quorum worker that finds a queue of its app missing logs CRITICAL and has no delayed delivery."""
    stack.rabbitmq.control("delete_queue", "-p", "beds", "job.warehouse")
    log = project / "worker.log"
    before = log.read_text() if log.exists() else ""
    with running_worker(project, "rec.read", "-n", "trap10@trap"):
        wait_for(lambda: "trap10@trap ready" in log.read_text()[len(before) :], 60, "the worker")
    said = log.read_text()[len(before) :]
    assert "CRITICAL" not in said
    listed = stack.rabbitmq.control("list_queues", "-p", "beds", "name", "type").split()
    for name in (*EVENT_QUEUES, *LOG_QUEUES, DEAD):
        assert listed[listed.index(name) + 1] == "quorum"


def test_trap_10_prefetch_is_set_for_each_consumer(workers: None, stack: Stack) -> None:
    listed = stack.rabbitmq.control("list_consumers", "-p", "beds", "queue_name", "prefetch_count")
    prefetch = dict(line.split() for line in listed.splitlines() if line.split()[0] in CRUD_QUEUES)
    assert set(prefetch) == set(CRUD_QUEUES)
    assert all(int(count) > 0 for count in prefetch.values())


def test_a_queue_with_other_arguments_is_told_with_both_sets(settings: Settings, stack: Stack) -> None:
    other = Topology.from_settings(settings.amqp.model_copy(update={"delivery_limit": 9}))
    declare_all(settings)
    with kombu.Connection(settings.amqp.broker_url) as connection, pytest.raises(TopologyMismatch) as caught:
        declare(other, connection)
    assert caught.value.detail["wanted"]["x-delivery-limit"] == 9
    assert "5" in caught.value.detail["existing"]["x-delivery-limit"]
    assert "delete_queue" in caught.value.hint


def test_declaring_twice_does_no_harm(settings: Settings, stack: Stack) -> None:
    declare_all(settings)
    declare_all(settings)


@pytest.fixture
def factory(settings: Settings, stack: Stack) -> Any:
    found = AdapterFactory(settings, TemplateRegistry.from_folder(settings.schema_path))
    yield found
    found.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("template", ["SampleRows", "SampleDocs"])
def test_trap_11_a_child_opens_connections_of_its_own(
    factory: AdapterFactory, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither driver's connection survives a fork, so a session stores its process id."""
    opened: list[int] = []
    for module in (mariadb_session, mongo_session):

        def connect(*arguments: Any, real: Any = module.connect, **options: Any) -> Any:
            opened.append(os.getpid())
            return real(*arguments, **options)

        monkeypatch.setattr(module, "connect", connect)
    store = factory.registry[template].store

    def ask() -> None:
        execute(factory, store, Operation.FETCH, template, {"using": "by_id", "args": {"id": "x"}})

    ask()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            ask()
            os.write(write, b"own" if opened[-1] == os.getpid() else b"shared")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"own"
    ask()
    assert opened == [os.getpid()]


def test_trap_11_the_workers_parent_holds_no_database_connection(
    project: Path, workers: None, settings: Settings, stack: Stack
) -> None:
    """Every connection of the brokers belongs to a pool child."""
    parents = workers_in(project)
    roots = [p for p in parents if p.parent() not in parents]
    assert roots
    ports = {stack.plan.mariadb_port, stack.plan.mongodb_port}
    for root in roots:
        held = [c for c in root.net_connections("tcp") if c.raddr and c.raddr.port in ports]
        assert held == []


def test_trap_12_every_result_set_is_drained_and_out_parameters_are_read(factory: AdapterFactory) -> None:
    for _ in range(3):  # an undrained set makes the next call fail with 2014
        page = execute(
            factory, Store.REL, Operation.FETCH, "SampleRows", {"using": "chatty", "args": {"text": "nothing"}}
        )
        sets = {name: [{"word": name}] for name in ("first", "second", "third")}
        assert page.records == (sets | {"total": 0},)  # type: ignore[union-attr]
        with pytest.raises(SchemaMismatch, match="more result sets"):
            execute(factory, Store.REL, Operation.FETCH, "SampleRows", {"using": "silenced", "args": {"text": "x"}})


def test_trap_12_a_killed_connection_is_opened_anew_and_only_a_read_is_repeated(
    factory: AdapterFactory, settings: Settings
) -> None:
    dba = settings.schema_.dba.rel
    assert dba is not None

    session: Any = factory.adapter("SampleRows")._store

    def kill() -> None:
        thread = session._connection.thread_id()
        broker = settings.databases.rel
        assert broker is not None
        with contextlib.closing(mariadb_session.connect(broker, 5)) as connection:
            connection.cursor().execute(f"KILL {thread}")  # a user may kill its own

    body = {"using": "by_id", "args": {"id": "x"}}
    execute(factory, Store.REL, Operation.FETCH, "SampleRows", body)
    kill()
    execute(factory, Store.REL, Operation.FETCH, "SampleRows", body)
    kill()
    with pytest.raises(NotFound):  # the session sees that its connection has ended, and sends nothing there
        execute(factory, Store.REL, Operation.DELETE, "SampleRows", {"record_id": "x"})
    kill()
    session._ending = select.poll()  # as if it ended just after the look
    with pytest.raises(StoreUnavailable) as caught:
        execute(factory, Store.REL, Operation.DELETE, "SampleRows", {"record_id": "x"})
    assert not caught.value.detail["nothing_written"]


def test_trap_12_mysqlclient_is_new_enough() -> None:
    assert MySQLdb.version_info[:3] >= (2, 3, 1)  # GHSA-m9c3-99x3-77g6


def test_a_worker_says_nothing_secret(workers: None, project: Path, client: Client, settings: Settings) -> None:
    canary = "canary-7f3a"
    client.call("create_record", "SampleDocs", {"id": "canary", "text": canary})
    client.call("fetch_records", "SampleDocs", {"text": canary}, using="by_text")
    client.call("delete_record", "SampleDocs", "canary")
    said = (project / "worker.log").read_text()
    assert canary not in said
    secrets = [
        s for url in (settings.amqp.broker_url, settings.amqp.client_url) for s in [url.split(":")[2].split("@")[0]]
    ]
    assert settings.databases.rel
    for secret in [*secrets, settings.databases.rel.password.get_secret_value()]:
        assert secret not in said
    logging.getLogger(__name__).debug("checked %d characters", len(said))

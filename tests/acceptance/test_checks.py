"""Start-up checks: in production a failed check prevents the start and is named; elsewhere the other pools serve."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kombu
import psutil
import pytest
from pymongo import MongoClient

from beds.client.client import Client
from beds.config import Settings, load_settings
from beds.errors import CallTimeout
from beds.node import status
from beds.node.daemon import accepts
from beds.node.name_hold import NameHold
from beds.node.supervisor import state_file
from beds.stack.mongodb import MongoDB, mongod_of_wheel
from beds.stack.stack import Stack
from tests.acceptance.test_nodes import beds, running_node, statuses, write_role
from tests.conftest import PORT_BASE, OwnVhost, run, running_worker, wait_for, wait_until_served

Fault = AbstractContextManager[dict[str, str]]


@dataclass
class Bench:
    """The resources that a fault needs."""

    project: Path
    stack: Stack
    settings: Settings
    vhost: OwnVhost
    tmp: Path
    env: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def bench(project: Path, stack: Stack, settings: Settings, own_vhost: OwnVhost, tmp_path: Path) -> Bench:
    return Bench(project, stack, settings, own_vhost, tmp_path, own_vhost.env)


@contextmanager
def nothing(bench: Bench) -> Iterator[dict[str, str]]:
    yield {}


@contextmanager
def a_bad_amqp_password(bench: Bench) -> Iterator[dict[str, str]]:
    assert run(bench.project, "beds", "topology", "declare", env=bench.env).returncode == 0  # for the client's check
    user, place = bench.vhost.env["BEDS_AMQP__WORKER_URL"].split("@")
    yield {"BEDS_AMQP__WORKER_URL": f"{user[:-4]}-no@{place}"}


@contextmanager
def a_bad_mariadb_password(bench: Bench) -> Iterator[dict[str, str]]:
    yield {"BEDS_DATABASES__REL__PASSWORD": "no-such-passw0rd"}


@contextmanager
def a_bad_mongodb_password(bench: Bench) -> Iterator[dict[str, str]]:
    uri = bench.stack.plan.mongo_uri("broker")
    yield {"BEDS_DATABASES__REC__URI": uri.replace("@", "-no@")}


@contextmanager
def a_missing_procedure(bench: Bench) -> Iterator[dict[str, str]]:
    schema = bench.tmp / "schema"
    shutil.copytree(bench.project / "schema", schema)
    template = (schema / "templates" / "airlines.toml").read_text()
    (schema / "templates" / "airlines.toml").write_text(template.replace("airlines_delete", "airlines_scrap"))
    yield {"BEDS_SCHEMA__PATH": str(schema)}


def a_surplus_grant(bench: Bench) -> Fault:
    account = "beds_broker@'127.0.0.1'"
    right = "SELECT ON beds.airlines"
    return sql_as_root(bench, f"GRANT {right} TO {account}", f"REVOKE {right} FROM {account}")


def a_surplus_privilege(bench: Bench) -> Fault:
    return privilege_of(bench, "beds_objects", "insert")


def an_audit_that_can_be_changed(bench: Bench) -> Fault:
    return privilege_of(bench, "msAudit", "update")


@contextmanager
def privilege_of(bench: Bench, collection: str, action: str) -> Iterator[dict[str, str]]:
    privilege = {"resource": {"db": "beds", "collection": collection}, "actions": [action]}
    with MongoClient[dict[str, Any]](bench.stack.plan.mongo_uri("dba")) as client:
        client["beds"].command("grantPrivilegesToRole", "beds_broker", privileges=[privilege])
        try:
            yield {}
        finally:
            client["beds"].command("revokePrivilegesFromRole", "beds_broker", privileges=[privilege])


@contextmanager
def a_surplus_amqp_right(bench: Bench) -> Iterator[dict[str, str]]:
    bench.stack.rabbitmq.control("set_permissions", "-p", "own", "beds_app", ".*", "^beds\\.events$", "^$")
    yield {}


@contextmanager
def a_surplus_key(bench: Bench) -> Iterator[dict[str, str]]:
    """Permission for any key: also the operator's, and the keys of delayed delivery."""
    bench.stack.rabbitmq.control("set_topic_permissions", "-p", "own", "beds_app", "beds.events", ".*", "^$")
    yield {}


@contextmanager
def a_flower_without_a_password(bench: Bench) -> Iterator[dict[str, str]]:
    yield {"BEDS_SERVICES__FLOWER__IS_LOCAL": "true", "BEDS_FLOWER__BASIC_AUTH": ""}


@contextmanager
def a_queue_with_other_arguments(bench: Bench) -> Iterator[dict[str, str]]:
    with kombu.Connection(bench.vhost.settings.amqp.broker_url) as connection, connection.channel() as channel:
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 9}
        channel.queue_declare("rel.write", durable=True, auto_delete=False, arguments=arguments)
    yield {}


@contextmanager
def no_replica_set(bench: Bench) -> Iterator[dict[str, str]]:
    port = PORT_BASE + 90
    server = bench.stack.server("mongodb")
    assert isinstance(server, MongoDB)
    (bench.tmp / "data").mkdir()
    program = server.program("mongod", mongod_of_wheel())
    command = [
        program,
        "--dbpath",
        str(bench.tmp / "data"),
        "--port",
        str(port),
        "--bind_ip",
        "127.0.0.1",
        "--nounixsocket",
    ]
    alone = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: accepts(port), 30, "mongod")
        yield {"BEDS_DATABASES__REC__URI": f"mongodb://127.0.0.1:{port}/beds"}
    finally:
        alone.kill()
        alone.wait()


def a_clock_that_is_off(bench: Bench) -> Fault:
    """MariaDB's clock, set one hour ahead for sessions of this user."""
    ahead = "SET GLOBAL init_connect = 'SET timestamp = UNIX_TIMESTAMP() + 3600'"
    return sql_as_root(bench, ahead, "SET GLOBAL init_connect = ''")


@contextmanager
def an_alarm(bench: Bench) -> Iterator[dict[str, str]]:
    control = bench.stack.rabbitmq.control
    control("set_vm_memory_high_watermark", "0")
    try:
        yield {}
    finally:
        control("set_vm_memory_high_watermark", "absolute", "2GB")


@contextmanager
def a_secret_that_others_can_read(bench: Bench) -> Iterator[dict[str, str]]:
    file = bench.project / ".beds" / "stack.env"
    file.chmod(0o644)
    try:
        yield {}
    finally:
        file.chmod(0o600)


@contextmanager
def sql_as_root(bench: Bench, do: str, undo: str) -> Iterator[dict[str, str]]:
    root: Any = bench.stack.server("mariadb")
    with contextlib.closing(root._root()) as connection:
        connection.cursor().execute(do)
        try:
            yield {}
        finally:
            connection.cursor().execute(undo)


FAULTS: list[tuple[Callable[[Bench], Fault], str, str]] = [
    (a_bad_amqp_password, "RabbitMQ, as worker", "check user, password and vhost in [amqp] worker_url"),
    (a_bad_mariadb_password, "MariaDB", "databases.rel"),
    (a_bad_mongodb_password, "MongoDB", "databases.rec"),
    (a_missing_procedure, "template Airlines", "airlines_scrap"),
    (a_surplus_grant, "MariaDB rights", "SELECT ON `beds`.`airlines`"),
    (a_surplus_privilege, "MongoDB rights", "insert on beds.beds_objects"),
    (an_audit_that_can_be_changed, "MongoDB rights", "update on beds.msAudit"),
    (a_surplus_amqp_right, "client's AMQP rights", "declare queues"),
    (a_surplus_key, "client's AMQP rights", "publish with any key"),
    (a_flower_without_a_password, "flower", "BEDS_FLOWER__BASIC_AUTH"),
    (a_queue_with_other_arguments, "topology of rel.write", "x-delivery-limit"),
    (no_replica_set, "MongoDB transactions", "--replSet"),
    (a_clock_that_is_off, "clock against MariaDB", "they differ by 3,"),
    (an_alarm, "RabbitMQ's alarms", "it takes no messages"),
    (a_secret_that_others_can_read, "secrets", "chmod 600"),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("fault", "name", "words"), FAULTS, ids=[fault.__name__ for fault, _, _ in FAULTS])
def test_in_production_one_wrong_thing_is_named_and_fatal(
    bench: Bench, fault: Callable[[Bench], Fault], name: str, words: str
) -> None:
    write_role(bench.project, "data", "rec", "rel")
    with fault(bench) as more:
        env = {**bench.env, **more}
        checked = beds(bench.project, "data", "node", "check", "--json", env=env)
        started = beds(bench.project, "data", "node", "run", env=env)
    assert checked.returncode == 78, checked.stdout
    failed = [check for check in json.loads(checked.stdout) if check["verdict"] == "failed"]
    assert any(check["name"] == name and words in check["found"] + check["remedy"] for check in failed), failed
    assert all(check["remedy"] for check in failed)
    if fault is not no_replica_set:  # an empty mongod lacks the stored commands as well
        assert {check["name"] for check in failed} == {name}
    # The node does not start and prints the reason, without secrets.
    assert started.returncode == 78
    assert f"check failed: {name}" in started.stderr
    for secret in bench.stack.plan.passwords.values():
        assert secret not in checked.stdout + started.stderr


@pytest.mark.timeout(60)
def test_nothing_wrong_is_told_so(bench: Bench) -> None:
    """The counterpart of the test above: without a fault no check fails."""
    write_role(bench.project, "data", "rec", "rel")
    checked = beds(bench.project, "data", "node", "check", env=bench.env)
    assert checked.returncode == 0, checked.stdout
    for _, name, _ in FAULTS:
        if not name.startswith(("topology", "template", "MongoDB transactions", "flower")):
            assert name in checked.stdout


def test_an_unknown_key_is_named_with_the_nearest(bench: Bench) -> None:
    file = write_role(bench.project, "typo", "rec")
    file.write_text(file.read_text() + '[brokers]\n"rec.read" = { instanzes = 2 }\n')
    for command in ("check", "run"):
        done = beds(bench.project, "typo", "node", command, env=bench.env)
        assert done.returncode == 78
        assert "instances" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.timeout(180)
def test_in_development_the_rest_serves(bench: Bench) -> None:
    """A queue that cannot be declared and a missing procedure: both are reported, and calls get a typed error."""
    write_role(bench.project, "data", "rec", "rel", "calgon")
    with a_queue_with_other_arguments(bench), a_missing_procedure(bench) as more:
        env = {**bench.env, **more, "BEDS_NODE__ENVIRONMENT": "development"}
        with running_node(bench.project, "data", env, serving=False):
            expected = {"rec.read": "ready", "rec.write": "ready", "rel.read": "ready", "rel.write": "refused",
                        "calgon,operator": "ready"}  # fmt: skip

            def states() -> dict[str, str]:
                return {name: pool["state"] for name, pool in statuses(bench.project, "data", env).items()}

            wait_for(lambda: states() == expected, 60, "the pools that can work")

            def call(*arguments: str) -> subprocess.CompletedProcess[str]:
                return run(bench.project, "beds", "--config", "node-data.toml", "call", *arguments, "--json", env=env)

            assert call("Notices.fetch_records", "--using", "open").returncode == 0
            assert call("Planes.fetch_records", "--using", "count").returncode == 0
            refused = call("Airlines.fetch_records", "--using", "count", "--timeout", "20")
            assert refused.returncode == 0, "an operation whose object is there still works"
            late = call("Airlines.delete_record", "carrier=XX", "--timeout", "3")
            assert json.loads(late.stderr)["error"]["code"] == CallTimeout.code
        started = beds(bench.project, "data", "node", "start", env=env)
        beds(bench.project, "data", "node", "stop", env=env)
        assert started.returncode == 3
        assert "refused to start: rel.write" in started.stderr
    log = (bench.project / "node-data.log").read_text()
    assert "check failed: topology of rel.write" in log
    assert "check failed: template Airlines" in log


@pytest.mark.timeout(150)
def test_a_database_that_is_away_for_a_while_ends_no_node(bench: Bench) -> None:
    """A worker that restarts meanwhile cannot work yet; its exit code differs from that of a permanent failure."""
    write_role(bench.project, "data", "rec", "rel")
    with running_node(bench.project, "data", bench.env):
        (parent,) = (p["pid"] for n, p in statuses(bench.project, "data", bench.env).items() if n == "rel.read")
        server = bench.stack.server("mariadb").daemon.process()
        assert server
        server.suspend()
        try:
            psutil.Process(parent).kill()
            wait_for(lambda: statuses(bench.project, "data", bench.env)["rel.read"]["restarts"] > 1, 60, "its refusal")
        finally:
            server.resume()
        wait_for(
            lambda: beds(bench.project, "data", "node", "status", "--ready", env=bench.env).returncode == 0, 60, "it"
        )


@pytest.mark.timeout(60)
def test_of_two_nodes_that_start_together_one_has_the_name(bench: Bench) -> None:
    """Both checks run before either node holds the name, so declaring the queue decides."""
    holds = [NameHold(bench.vhost.settings) for _ in range(2)]
    for hold in holds:
        hold.start()
    for hold in holds:
        hold.wait_tried(20)
    assert [hold.is_taken for hold in holds].count(True) == 1
    for hold in holds:
        hold.close()
        hold.join(10)


@pytest.mark.parametrize("state", ["{bad", "[]", "null", '{"pools": 5}', '{"pools": [{}]}', None])
def test_a_node_without_a_state_that_can_be_read_is_not_ready(bench: Bench, state: str | None) -> None:
    file = write_role(bench.project, "data", "rec")
    settings = load_settings(file)
    noted = state_file(settings)
    noted.unlink(missing_ok=True)
    if state is not None:
        noted.write_text(state)
    assert not status.is_ready(settings)
    assert not status.is_serving(settings)
    assert status.pools(settings) == []
    noted.write_text(json.dumps({"pools": [dict.fromkeys(status.KEYS, "ready") | {"pid": 2**22 + 1}]}))
    assert not status.is_ready(settings), "its process is gone"
    noted.unlink()


@pytest.mark.timeout(180)
def test_one_broken_template_leaves_the_others_served(project: Path, own_vhost: OwnVhost, tmp_path: Path) -> None:
    """In development. In production no worker starts."""
    shutil.copytree(project / "schema", tmp_path / "schema")
    (tmp_path / "schema" / "templates" / "bad.toml").write_text("[template\n")
    env = own_vhost.env | {"BEDS_SCHEMA__PATH": str(tmp_path / "schema")}
    log = project / "worker.log"
    begun = len(log.read_text(errors="replace")) if log.exists() else 0
    with running_worker(project, "rel.read", env=env), Client(own_vhost.settings) as client:
        wait_until_served(client, ["SampleRows"])
        wait_for(lambda: "bad.toml" in log.read_text(errors="replace")[begun:], 30, "the name of the broken file")
    strict = env | {"BEDS_NODE__ENVIRONMENT": "production"}
    refused = run(project, "celery", "-A", "beds", "worker", "-Q", "rel.read", env=strict)
    assert refused.returncode == 78
    assert "bad.toml" in refused.stderr

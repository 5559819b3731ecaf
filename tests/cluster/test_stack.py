"""A stack on one machine that becomes a cluster, and reads from its replicas."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient, WriteConcern

from beds.client.client import Client
from beds.config import Settings, load_settings
from beds.core.namaste import Query
from beds.services.factory import AdapterFactory
from beds.stack.mariadb import MariaDB
from beds.stack.plan import DATABASE
from beds.stack.stack import Stack
from beds.templates.registry import TemplateRegistry
from tests.cluster.conftest import FOLDER, PATIENCE, frozen, kill
from tests.conftest import (
    ADMIN_QUEUES,
    ALL_QUEUES,
    PORT_BASE,
    apply_schema,
    make_project,
    run,
    running_worker,
    wait_for,
    wait_until_served,
)

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

BASE = PORT_BASE + 1000
MAX_LAG = 1.0
SOCKET_SECONDS = 20.0
METRICS = f"127.0.0.1:{BASE + 464}"


@dataclass(frozen=True)
class Clustered:
    """A project whose stack is a cluster.

    Args:
        project: its folder.
        stack: its servers.
        settings: of its nodes.
        before: what `beds stack up --cluster` printed.
    """

    project: Path
    stack: Stack
    settings: Settings
    before: str

    def factory(self, **read: Any) -> AdapterFactory:
        """Adapters that read from replicas."""
        rel, rec = self.settings.databases.rel, self.settings.databases.rec
        assert rel and rec
        hosts = [f"127.0.0.1:{each.plan.mariadb_port}" for each in self.stack.mariadbs if each.follows()]
        there = type(rel).model_validate({**rel.model_dump(), "read": {"hosts": hosts, "max_lag": MAX_LAG, **read}})
        here = type(rec).model_validate(
            {**rec.model_dump(), "read_preference": "secondaryPreferred", "read": {"max_lag": MAX_LAG, **read}}
        )
        databases = self.settings.databases.model_copy(update={"rel": there, "rec": here})
        changed = self.settings.model_copy(update={"databases": databases})
        return AdapterFactory(changed, TemplateRegistry.from_folder(changed.schema_path), SOCKET_SECONDS)

    def replica(self) -> MariaDB:
        return next(each for each in self.stack.mariadbs if each.follows())

    def root(self, port: int | None = None) -> MongoClient[dict[str, Any]]:
        """MongoDB's root user; on one member if `port` is given."""
        plan = self.stack.plan
        if port is None:
            return MongoClient(plan.mongo_uri("root", "admin"))
        uri = plan.alone.mongo_uri("root", "admin").replace(f":{plan.mongodb_port}/", f":{port}/")
        return MongoClient(uri, directConnection=True)

    def secondaries(self) -> list[int]:
        """The ports of MongoDB's secondaries."""
        with self.root() as root:
            wait_for(lambda: len(root.secondaries) == 2, PATIENCE, "two secondaries")
            return sorted(port for _, port in root.secondaries if port)


@pytest.fixture(scope="module")
def clustered() -> Iterator[Clustered]:
    """A stack of single servers with a record in each database, of which one command makes a cluster."""
    folder = FOLDER / "project"
    Stack.down(folder / ".beds")
    shutil.rmtree(folder, ignore_errors=True)
    project = make_project(folder)
    try:
        made = run(project, "beds", "stack", "up", "--port-base", str(BASE))
        assert made.returncode == 0, made.stderr
        apply_schema(project)
        settings = load_settings(project / "beds.toml")
        with running_worker(project, ALL_QUEUES), Client(settings) as client:
            wait_until_served(client)
            for template in ("SampleRows", "SampleDocs"):
                client.call("create_record", template, {"id": "before"})
        grown = run(project, "beds", "stack", "up", "--cluster", seconds=400)
        assert grown.returncode == 0, grown.stderr
        yield Clustered(project, Stack(project / ".beds"), load_settings(project / "beds.toml"), grown.stdout)
    finally:
        Stack.down(project / ".beds", wipe=True)


def calls_of(server: MariaDB) -> int:
    """The procedures that a server has called."""
    (row,) = server.ask("SHOW GLOBAL STATUS LIKE 'Com_call_procedure'")
    return int(row["Value"])


def test_one_command_makes_a_cluster_of_a_stack_with_its_data(clustered: Clustered) -> None:
    assert "mariadb    takes the writes of MariaDB" in clustered.before
    shown = run(clustered.project, "beds", "stack", "status", "--json")
    assert {server["name"]: server["ready"] for server in json.loads(shown.stdout)} == dict.fromkeys(
        ["rabbitmq", "mariadb", "mongodb", "rabbitmq-2", "mongodb-2", "rabbitmq-3", "mongodb-3", "mariadb-2"], True
    )
    for server in clustered.stack.mariadbs:
        assert server.ask(f"SELECT id FROM {DATABASE}.samples WHERE id = 'before'"), server.label
    for port in clustered.secondaries():
        with clustered.root(port) as root:
            assert root[DATABASE].samples.find_one({"_id": "before"}), port


def test_every_view_of_the_operator_shows_the_members(clustered: Clustered) -> None:
    project = clustered.project
    with (
        running_worker(project, ALL_QUEUES),
        running_worker(project, ADMIN_QUEUES, env={"BEDS_METRICS__PROMETHEUS": METRICS}),
        Client(clustered.settings) as client,
    ):
        wait_until_served(client)
        seen = json.loads(run(project, "beds", "top", "--json").stdout)["members"]
        up = {found["server"]: [member["is_up"] for member in found["members"]] for found in seen}
        assert up == {"RabbitMQ": [True] * 3, "MongoDB": [True] * 3, "MariaDB": [True] * 2}
        assert "takes writes" in run(project, "beds", "top", "--once").stdout
        assert "ok       MariaDB members" in run(project, "beds", "doctor").stdout
        member = clustered.stack.server("mongodb", 3)
        try:
            kill(member)
            checked = run(project, "beds", "node", "check").stdout
            assert f"2 of 3 answer; not 127.0.0.1:{member.plan.mongodb_port}" in checked
            away = f'beds_member_up{{member="127.0.0.1:{member.plan.mongodb_port}",server="MongoDB"}} 0.0'

            def scraped() -> bool:
                with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=10) as page:
                    return away in page.read().decode()

            wait_for(scraped, PATIENCE, away)
        finally:
            member.up()


def test_a_read_comes_from_a_replica_that_lags_less_than_the_bound(clustered: Clustered) -> None:
    """A replica that stops replicating is read until its lag exceeds the bound, and again when it goes on."""
    replica = clustered.replica()

    def called() -> int:
        return calls_of(replica)

    with contextlib.closing(clustered.factory()) as factory:
        rows = factory.adapter("SampleRows")

        def found(key: str) -> bool:
            return bool(rows.fetch_records(Query("by_id", {"id": key}, 1)).records)

        before = called()
        assert found("before")
        assert called() > before, "the replica was not asked"
        replica.ask("STOP SLAVE SQL_THREAD")
        try:
            rows.create_record({"id": "while-it-lags"})
            wait_for(lambda: found("while-it-lags"), 30, "a read from the primary")
            asked = called()
            assert found("before")
            assert called() == asked, "a replica that lags was asked"
        finally:
            replica.ask("START SLAVE SQL_THREAD")
        wait_for(lambda: found("before") and called() > asked, 60, "a read from the replica")


def test_own_writes_are_seen_at_once_if_that_is_asked_for(clustered: Clustered) -> None:
    replica = clustered.replica()
    with contextlib.closing(clustered.factory(own_writes=True)) as factory:
        rows, docs = factory.adapter("SampleRows"), factory.adapter("SampleDocs")
        before = calls_of(replica)
        for number in range(100):
            for each in (rows, docs):
                each.create_record({"id": f"own-{number}"})
                assert each.fetch_records(Query("by_id", {"id": f"own-{number}"}, 1)).records, (each, number)
        assert calls_of(replica) > before + 50, "most reads went to the primary"
        replica.ask("STOP SLAVE SQL_THREAD")
        try:
            rows.create_record({"id": "own-lagging"})
            assert rows.fetch_records(Query("by_id", {"id": "own-lagging"}, 1)).records
        finally:
            replica.ask("START SLAVE SQL_THREAD")


def test_a_replica_that_is_lost_costs_no_read(clustered: Clustered) -> None:
    replica = clustered.replica()
    with contextlib.closing(clustered.factory()) as factory:
        rows = factory.adapter("SampleRows")
        before = calls_of(replica)
        assert rows.fetch_records(Query("by_id", {"id": "before"}, 1)).records
        assert calls_of(replica) > before, "the replica was not asked"
        try:
            kill(replica)
            for _ in range(20):
                assert rows.fetch_records(Query("by_id", {"id": "before"}, 1)).records
        finally:
            clustered.stack.up(lambda _line: None)


def test_a_frozen_replica_is_left_after_a_second(clustered: Clustered) -> None:
    """And one that takes writes now: it is no replica any more."""
    replica = clustered.replica()
    with contextlib.closing(clustered.factory(own_writes=True)) as factory:
        rows = factory.adapter("SampleRows")
        rows.create_record({"id": "before-the-frost"})  # a write would wait for the replica's confirmation
        with frozen(replica):
            began = time.monotonic()
            assert rows.fetch_records(Query("by_id", {"id": "before-the-frost"}, 1)).records
            assert time.monotonic() - began < SOCKET_SECONDS / 2, "it waits as long as for a whole read"
        replica.ask("SET GLOBAL read_only = 0")
        try:
            before = calls_of(replica)
            for _ in range(20):
                assert rows.fetch_records(Query("by_id", {"id": "before"}, 1)).records
                time.sleep(0.5)
            assert calls_of(replica) == before
        finally:
            replica.ask("SET GLOBAL read_only = 1")


def test_reads_of_documents_leave_a_secondary_that_lags(clustered: Clustered) -> None:
    """Both secondaries apply nothing. Within the bound a read may miss the new document; after it, none does."""
    ports = clustered.secondaries()
    with contextlib.closing(clustered.factory()) as factory, contextlib.ExitStack() as locked:
        docs = factory.adapter("SampleDocs")

        def finds() -> int:
            total = 0
            for port in ports:
                with clustered.root(port) as root:
                    total += root.admin.command("serverStatus")["opcounters"]["query"]
            return total

        before = finds()
        assert docs.fetch_records(Query("by_id", {"id": "before"}, 1)).records
        assert finds() > before, "no secondary was asked"
        for port in ports:
            root = locked.enter_context(clustered.root(port))
            root.admin.command("fsync", lock=True)
            locked.callback(root.admin.command, "fsyncUnlock")
        with clustered.root() as root:
            # Only the primary has it: a majority, which BEDS waits for, cannot confirm it.
            root[DATABASE].samples.with_options(write_concern=WriteConcern(1)).insert_one({"_id": "while-locked"})
        wait_for(
            lambda: docs.fetch_records(Query("by_id", {"id": "while-locked"}, 1)).records, 30, "a read from the primary"
        )


def test_the_replica_is_promoted_and_takes_writes(clustered: Clustered) -> None:
    """A planned switchover, then another after the primary was killed."""
    first = clustered.replica().label
    with running_worker(clustered.project, ALL_QUEUES), Client(clustered.settings) as client:
        wait_until_served(client)
        promoted = run(clustered.project, "beds", "stack", "promote")
        assert promoted.stdout.startswith(f"{first} takes writes"), promoted
        client.call("create_record", "SampleRows", {"id": "after-promote"}, timeout=60)
        primary = next(each for each in clustered.stack.mariadbs if not each.follows())
        second = clustered.replica()
        wait_for(lambda: second.ask(f"SELECT 1 FROM {DATABASE}.samples WHERE id = 'after-promote'"), 60, "the replica")
        kill(primary)
        promoted = run(clustered.project, "beds", "stack", "promote")
        assert promoted.stdout.startswith(f"{second.label} takes writes"), promoted
        client.call("create_record", "SampleRows", {"id": "after-kill"}, timeout=60)
    up = run(clustered.project, "beds", "stack", "up")
    assert f"{second.label:10} takes the writes of MariaDB" in up.stdout, up
    assert second.ask(f"SELECT COUNT(*) AS n FROM {DATABASE}.samples WHERE id LIKE 'after-%'")[0]["n"] == 2

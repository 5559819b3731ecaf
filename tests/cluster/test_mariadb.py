"""Two MariaDB servers, the second a replica of the first, and a proxy that follows when they change roles."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from beds.client.call import Call
from beds.client.client import Client
from beds.domain.reply import Page
from beds.stack.mariadb import MariaDB
from beds.stack.members import MariaDBReplica
from beds.stack.plan import DATABASE, Plan
from beds.stack.stack import Stack
from tests.cluster.conftest import (
    CALL_SECONDS,
    PATIENCE,
    Load,
    SwitchedProxy,
    check,
    kill,
    rows_of,
    servers_of_their_own,
    wait_until_written,
    wrote_nothing,
)
from tests.conftest import PORT_BASE, OwnVhost, run, running_worker, wait_for, wait_until_served

pytestmark = pytest.mark.stack

SWITCHES = 4
TEMPLATES = ("SampleRows", "TransferRows")
REFRESH = {"BEDS_SCHEMA__REFRESH": "1"}
"""Seconds between two checks by a reading slot whether its server is now a replica; shorter than the default of 10."""


class Member(MariaDB):
    """A server that can be a primary and a replica."""

    def value(self, expression: str) -> Any:
        (row,) = self.ask(f"SELECT {expression} AS value")
        return row["value"]

    def broker_connections(self) -> int:
        return int(self.value("(SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'beds_broker')"))


class Replica(MariaDBReplica, Member):
    """A copy of the first."""


@dataclass
class Pair:
    """A primary, its replica, and the proxy that all workers connect to.

    Args:
        primary, replica: the current roles.
        proxy: forwards new connections to the primary.
        env: of a worker.
    """

    primary: Member
    replica: Member
    proxy: SwitchedProxy
    env: dict[str, str]

    @property
    def hosts(self) -> dict[str, str]:
        """A worker's environment with both servers' addresses, without the proxy."""
        servers = [f"127.0.0.1:{server.plan.mariadb_port}" for server in (self.primary, self.replica)]
        return {"BEDS_DATABASES__REL__HOSTS": json.dumps(servers), "BEDS_RETRY__DEADLINE": "1.5"}

    def has_applied_all(self) -> bool:
        """Whether the replica has applied everything that it has received."""
        (status,) = self.replica.ask("SHOW SLAVE STATUS")
        received = status["Master_Log_File"], status["Read_Master_Log_Pos"]
        return received == (status["Relay_Master_Log_File"], status["Exec_Master_Log_Pos"])

    def is_semi_synchronous(self) -> bool:
        """Whether a commit is answered only when the replica has it: before, a kill of the primary may lose it."""
        (status,) = self.primary.ask("SHOW STATUS LIKE 'Rpl_semi_sync_master_status'")
        (clients,) = self.primary.ask("SHOW STATUS LIKE 'Rpl_semi_sync_master_clients'")
        return status["Value"] == "ON" and int(clients["Value"]) > 0

    def close_primary(self) -> None:
        """Make the primary read-only, and wait until the replica has all its writes."""
        self.primary.refuse_writes()
        self.replica.catch_up(self.primary, int(PATIENCE))

    def switch(self) -> None:
        """Promote the replica and point the proxy to it. The old primary keeps running, and receives no new writes."""
        self.replica.take_writes()
        self.proxy.lead_to(self.replica.plan.mariadb_port)
        self.primary, self.replica = self.replica, self.primary


@contextlib.contextmanager
def primary_and_replica(project: Path, stack: Stack) -> Iterator[Pair]:
    """Two servers with the schema applied, the second following the first."""

    def make(folder: Path) -> list[Member]:
        one, two = (
            Plan(folder / f"server{n}", PORT_BASE + 1200 + n, {**stack.plan.passwords}, is_cluster=True, number=n)
            for n in (1, 2)
        )
        first = Member(one)
        return [first, Replica(two, first)]

    with servers_of_their_own("mariadb", make) as servers:
        first, second = servers
        first.up()
        second.up()
        first.take_writes()
        second.follow(first)
        proxy = SwitchedProxy(first.plan.mariadb_port)
        try:
            port = str(first.plan.mariadb_port)
            applied = run(
                project,
                *("beds", "schema", "apply"),
                env={"BEDS_DATABASES__REL__PORT": port, "BEDS_SCHEMA__DBA__REL__PORT": port},
            )
            assert applied.returncode == 0, applied.stderr
            # A short deadline, so that a switch may outlast it: both `ok` and a refusal occur.
            yield Pair(
                first, second, proxy, {"BEDS_DATABASES__REL__PORT": str(proxy.port), "BEDS_RETRY__DEADLINE": "1.5"}
            )
        finally:
            proxy.close()


@pytest.fixture
def pair(project: Path, stack: Stack) -> Iterator[Pair]:
    with primary_and_replica(project, stack) as found:
        yield found


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_primary_that_becomes_a_replica_costs_no_write(project: Path, own_vhost: OwnVhost, pair: Pair) -> None:
    """Writing slots reconnect to the new primary, although their old connections stay open."""
    with running_worker(project, "rel.write", "-c", "4", env=own_vhost.env | pair.env) as worker:
        wait_until_written(own_vhost.settings, TEMPLATES)
        with Load(own_vhost.settings, TEMPLATES) as load:
            for number in range(SWITCHES):
                load.wait_for_more()
                old = pair.primary
                assert old.broker_connections() > 0
                refused = load.told()["store_unavailable"]
                pair.close_primary()
                if number % 2:
                    wait_for(lambda n=refused: load.told()["store_unavailable"] > n, PATIENCE, "a refusal")
                pair.switch()
                load.wait_for_more()
                wait_for(lambda old=old: not old.broker_connections(), PATIENCE, "the move of every slot")
                refused = load.told()["store_unavailable"]
                load.wait_for_more()
                assert load.told()["store_unavailable"] == refused, "a slot that moved is refused again"
                pair.replica.follow(pair.primary)
        assert worker.poll() is None, "the worker ended"
    print(f"mariadb: {dict(load.told())}")
    surprises = load.unlike(wrote_nothing)
    assert not surprises, (len(surprises), surprises[:5])
    pair.close_primary()
    both = [rows_of(server.plan, load.name) for server in (pair.primary, pair.replica)]
    for stored in both:
        check(load, stored)
    assert both[0] == both[1]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_slots_that_only_read_leave_a_primary_that_was_demoted(project: Path, own_vhost: OwnVhost, pair: Pair) -> None:
    """The old primary keeps running with old data; a record created after the switch must be found."""
    with (
        running_worker(project, "rel.read", "-c", "2", env=own_vhost.env | pair.env | REFRESH),
        Client(own_vhost.settings) as client,
    ):

        def found(key: str) -> bool:
            """Whether all of several concurrent reads, which use both slots, find the record."""
            sleep = Call("fetch_records", "SampleRows", {"seconds": 0.2}, "sleep")
            read = Call("fetch_records", "SampleRows", {"id": key}, "by_id")
            pages = client.call_many([sleep, sleep, read, read, sleep, sleep, read, read], timeout=CALL_SECONDS)
            return all(len(page) == 1 for page in pages if isinstance(page, Page))

        def add() -> str:
            key = f"read-{uuid.uuid4().hex}"
            pair.primary.ask(f"INSERT INTO {DATABASE}.samples (id) VALUES ('{key}')")
            return key

        before = add()
        wait_until_served(client, ["SampleRows"])
        wait_for(lambda: found(before) and pair.primary.broker_connections() == 2, PATIENCE, "both slots' connections")
        old = pair.primary
        pair.close_primary()
        pair.switch()
        after = add()
        wait_for(lambda: found(after) and not old.broker_connections(), PATIENCE, "the move of every slot")
        assert all(found(after) for _ in range(5)), "a slot still reads the old primary"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_workers_with_both_addresses_find_the_primary(project: Path, own_vhost: OwnVhost, pair: Pair) -> None:
    """A planned switchover that keeps the sessions, and then a kill: no proxy, and no change of a configuration."""
    with running_worker(project, "rel.write", "-c", "4", env=own_vhost.env | pair.hosts) as worker:
        wait_until_written(own_vhost.settings, TEMPLATES)
        with Load(own_vhost.settings, TEMPLATES) as load:
            load.wait_for_more()
            old = pair.primary
            pair.close_primary()
            pair.switch()
            load.wait_for_more()
            wait_for(lambda: not old.broker_connections(), PATIENCE, "the move of every slot")
            refused = load.told()["store_unavailable"]
            load.wait_for_more()
            assert load.told()["store_unavailable"] == refused, "a slot that moved is refused again"
            pair.replica.follow(pair.primary)
            wait_for(pair.is_semi_synchronous, PATIENCE, "a replica that confirms each commit")
            load.wait_for_more()
            kill(pair.primary)
            # The replica has confirmed what is in its relay log, and has to apply it before it is promoted.
            wait_for(pair.has_applied_all, PATIENCE, "the end of the relay log")
            pair.switch()
            load.wait_for_more()
        assert worker.poll() is None, "the worker ended"
    print(f"mariadb: {dict(load.told())}")
    # The proxy of other tests makes every refusal harmless; a kill may also leave a call without an answer in time.
    surprises = load.unlike(lambda answer: wrote_nothing(answer) or answer.code == "call_timeout")
    assert not surprises, (len(surprises), surprises[:5])
    check(load, rows_of(pair.primary.plan, load.name), ["call_timeout"])


@pytest.mark.timeout(300)
def test_a_file_that_the_binary_log_would_refuse_is_not_begun(project: Path, tmp_path: Path, pair: Pair) -> None:
    port = str(pair.primary.plan.mariadb_port)
    env = {
        "BEDS_DATABASES__REL__PORT": port,
        "BEDS_SCHEMA__DBA__REL__PORT": port,
        "BEDS_SCHEMA__PATH": str(tmp_path / "schema"),
    }
    shutil.copytree(project / "schema", tmp_path / "schema")
    (tmp_path / "schema/rel/V0990__doubled.sql").write_text(
        "CREATE TABLE doubled (id INT PRIMARY KEY);\nCREATE FUNCTION doubled_of(p INT) RETURNS INT RETURN 2 * p;\n"
    )
    pair.primary.ask("SET GLOBAL log_bin_trust_function_creators = 0")
    refused = run(project, "beds", "schema", "apply", env=env)
    assert refused.returncode != 0
    assert "nothing of it was applied" in refused.stderr
    assert "log_bin_trust_function_creators = 1" in refused.stderr
    assert not pair.primary.ask("SELECT 1 FROM information_schema.TABLES WHERE TABLE_NAME = 'doubled'")
    pair.primary.ask("SET GLOBAL log_bin_trust_function_creators = 1")
    applied = run(project, "beds", "schema", "apply", env=env)
    assert applied.returncode == 0, applied.stderr

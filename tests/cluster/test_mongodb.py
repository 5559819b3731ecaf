"""A MongoDB replica set whose members step down, are killed, and replace each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

from beds.stack.members import MongoDBMember
from beds.stack.mongodb import MongoDB
from beds.stack.plan import Plan
from beds.stack.stack import Stack
from tests.cluster.conftest import (
    OK,
    PATIENCE,
    Load,
    check,
    documents_of,
    kill,
    servers_of_their_own,
    wait_until_written,
    wrote_nothing,
)
from tests.conftest import PORT_BASE, OwnVhost, run, running_worker, wait_for

pytestmark = pytest.mark.stack

STEPS = 12
KILLS = 4
TAKEOVERS = 4
STANDS_BACK = 5
"""Seconds in which a member that stepped down cannot be elected."""


@dataclass(frozen=True)
class ReplicaSet:
    """Three members.

    Args:
        members: their servers.
        root: the URI of a user that may step down the primary.
        dba: the DBA's URI.
        env: of a worker.
    """

    members: Sequence[MongoDB]
    root: str
    dba: str
    env: dict[str, str]

    def primary(self) -> MongoDB | None:
        """The primary; None while there is none."""
        with suppress(PyMongoError), self._client() as client:
            address = client.admin.command("hello").get("primary")
            return next((each for each in self.members if _host(each) == address), None)
        return None

    def secondaries(self) -> list[MongoDB]:
        """The members that are not primary, when there is one."""
        primary = wait_for(self.primary, PATIENCE, "a primary")
        return [each for each in self.members if each is not primary]

    def is_whole(self) -> bool:
        """Whether there is a primary, and the other members follow it."""
        with suppress(PyMongoError), self._client() as client:
            states = [each["stateStr"] for each in client.admin.command("replSetGetStatus")["members"]]
            return sorted(states) == ["PRIMARY", "SECONDARY", "SECONDARY"]
        return False

    def kill_primary(self) -> MongoDB:
        """Kill the primary, wait until another one is elected, and return the killed one."""
        before = wait_for(self.election, PATIENCE, "an election")
        victim: MongoDB = wait_for(self.primary, PATIENCE, "a primary")
        assert kill(victim), "the victim had ended"
        wait_for(lambda: self.election() not in ("", before), PATIENCE, "an election")
        return victim

    def come_back(self, member: MongoDB) -> None:
        """Start a member, and wait until the set is whole."""
        member.up()
        wait_for(self.is_whole, PATIENCE, "the return to the set")

    def prefer(self, member: MongoDB) -> None:
        """Give a member a higher priority than the others, and wait until it has taken the primary's place."""

        def change(known: list[dict[str, Any]]) -> None:
            for each in known:
                each["priority"] = 2 if each["host"] == _host(member) else 1

        _reconfigure(self.root, change)
        wait_for(lambda: self.primary() is member, PATIENCE, "the takeover")

    def election(self) -> str:
        """The id of the primary's election; empty without a primary."""
        with suppress(PyMongoError), self._client() as client:
            return str(client.admin.command("hello").get("electionId", ""))
        return ""

    def step_down(self, *, force: bool) -> None:
        """Make the primary step down, and wait until one is elected.

        Args:
            force: whether to step down without an up-to-date secondary.
        """
        before = wait_for(self.election, PATIENCE, "a primary")

        def stepped() -> bool:
            order = {"replSetStepDown": STANDS_BACK, "force": force}
            order |= {"secondaryCatchUpPeriodSecs": 0 if force else STANDS_BACK - 1}
            with self._client() as client:
                try:
                    client.admin.command(order)
                except AutoReconnect:
                    return True
                except OperationFailure:
                    return False  # no secondary is up to date yet
            return True

        wait_for(stepped, PATIENCE, "the step down")
        wait_for(lambda: self.election() not in ("", before), PATIENCE, "an election")

    def _client(self) -> MongoClient[dict[str, Any]]:
        return MongoClient(self.root, serverSelectionTimeoutMS=2000)


def _host(member: MongoDB) -> str:
    return f"127.0.0.1:{member.plan.mongodb_port}"


@contextmanager
def three_members(project: Path, stack: Stack) -> Iterator[ReplicaSet]:
    """Three members with the schema applied."""

    def make(folder: Path) -> list[MongoDB]:
        plans = [
            Plan(folder / f"member{n}", PORT_BASE + 1400 + n, {**stack.plan.passwords}, is_cluster=True)
            for n in range(3)
        ]
        first = MongoDB(plans[0])
        return [first, *(MongoDBMember(plan, first) for plan in plans[1:])]

    with servers_of_their_own("mongodb", make) as members:
        for member in members:
            member.up()
        plan = members[0].plan.alone
        hosts = [_host(member) for member in members]

        def uri(user: str, *source: str) -> str:
            return plan.mongo_uri(user, *source).replace(hosts[0], ",".join(hosts))

        env = {"BEDS_DATABASES__REC__URI": uri("broker"), "BEDS_SCHEMA__DBA__REC__URI": uri("dba")}
        applied = run(project, "beds", "schema", "apply", env=env)
        assert applied.returncode == 0, applied.stderr
        yield ReplicaSet(members, uri("root", "admin"), uri("dba"), env)


@pytest.fixture
def replica_set(project: Path, stack: Stack) -> Iterator[ReplicaSet]:
    with three_members(project, stack) as found:
        yield found


def _reconfigure(root: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the members of a set.

    Args:
        root: the URI of a user that may.
        change: called with the members of the current configuration, perhaps several times.
    """

    def done() -> bool:
        # An election, or a change by the server itself, such as of a member that was just added, may come between.
        with suppress(PyMongoError), MongoClient[dict[str, Any]](root, serverSelectionTimeoutMS=2000) as client:
            config = client.admin.command("replSetGetConfig")["config"]
            config["version"] += 1
            change(config["members"])
            client.admin.command("replSetReconfig", config)
            return True
        return False

    wait_for(done, PATIENCE, "the change of the members")


@contextmanager
def _written(project: Path, own: OwnVhost, replica_set: ReplicaSet) -> Iterator[Load]:
    """A load on a worker of the set. Afterwards each write that was answered `ok` exists once, by majority."""
    env = own.env | replica_set.env
    with running_worker(project, "rec.read,rec.write,calgon", "-c", "4", env=env) as worker:
        wait_until_written(own.settings, ["SampleDocs"])
        with Load(own.settings, ["SampleDocs"]) as load:
            load.wait_for_more()
            yield load
            load.wait_for_more()
        assert worker.poll() is None, "the worker ended"
    print(f"mongodb: {dict(load.told())}")
    surprises = load.unlike(wrote_nothing)
    assert not surprises, (len(surprises), surprises[:5])
    check(load, documents_of(replica_set.dba, load.name))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_primary_that_steps_down_twelve_times_costs_no_write(
    project: Path, own_vhost: OwnVhost, replica_set: ReplicaSet
) -> None:
    """Every third step-down is forced, without waiting for an up-to-date member."""
    with _written(project, own_vhost, replica_set) as load:
        for step in range(STEPS):
            replica_set.step_down(force=step % 3 == 2)
            load.wait_for_more()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_primary_that_is_killed_costs_no_answered_write(
    project: Path, own_vhost: OwnVhost, replica_set: ReplicaSet
) -> None:
    """The killed one comes back, and rolls back what a majority does not have."""
    with _written(project, own_vhost, replica_set) as load:
        for _ in range(KILLS):
            victim = replica_set.kill_primary()
            load.wait_for_more()
            replica_set.come_back(victim)
            load.wait_for_more()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_no_write_fails_while_a_secondary_is_away(project: Path, own_vhost: OwnVhost, replica_set: ReplicaSet) -> None:
    with _written(project, own_vhost, replica_set) as load:
        for number in range(KILLS):
            away = replica_set.secondaries()[number % 2]
            assert kill(away), "the secondary had ended"
            load.wait_for_more(100)
            replica_set.come_back(away)
            load.wait_for_more()
    assert set(load.told()) == {OK}, load.told()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_secondary_that_takes_over_by_its_priority_costs_no_write(
    project: Path, own_vhost: OwnVhost, replica_set: ReplicaSet
) -> None:
    """The configuration changes under writes, and the preferred member calls an election."""
    with _written(project, own_vhost, replica_set) as load:
        for number in range(TAKEOVERS):
            replica_set.prefer(replica_set.secondaries()[number % 2])
            load.wait_for_more()

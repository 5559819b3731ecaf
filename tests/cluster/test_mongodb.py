"""A MongoDB replica set whose primary steps down again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

from beds.stack.mongodb import MongoDB
from beds.stack.plan import Plan
from beds.stack.stack import Stack
from tests.cluster.conftest import (
    PATIENCE,
    Answer,
    Load,
    check,
    documents_of,
    servers_of_their_own,
    wait_until_written,
)
from tests.conftest import PORT_BASE, OwnVhost, run, running_worker, wait_for

pytestmark = pytest.mark.stack

STEPS = 12
STANDS_BACK = 5
"""Seconds in which a member that stepped down cannot be elected."""


class Follower(MongoDB):
    """A member that the first one adds to its set.

    Args:
        plan: its port and folder.
        first: whose key it shares.
    """

    def __init__(self, plan: Plan, first: MongoDB) -> None:
        super().__init__(plan)
        self._first = first

    def make(self) -> None:
        super().make()
        (self.folder / "keyfile").write_text((self._first.folder / "keyfile").read_text())

    def is_ready(self) -> bool:
        """True if the member is reachable, even outside a set."""
        with suppress(PyMongoError), self._client() as client:
            client.admin.command("hello")
            return True
        return False

    def provision(self) -> None:
        """Does nothing: the set replicates the users."""


@dataclass(frozen=True)
class ReplicaSet:
    """Three members.

    Args:
        root: the URI of a user that may step down the primary.
        dba: the DBA's URI.
        env: of a worker.
    """

    root: str
    dba: str
    env: dict[str, str]

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


@pytest.fixture
def replica_set(project: Path, stack: Stack) -> Iterator[ReplicaSet]:
    """Three members with the schema applied."""

    def make(folder: Path) -> list[MongoDB]:
        plans = [Plan(folder / f"member{n}", PORT_BASE + 1400 + n, {**stack.plan.passwords}) for n in range(3)]
        first = MongoDB(plans[0])
        return [first, *(Follower(plan, first) for plan in plans[1:])]

    with servers_of_their_own("mongodb", make) as members:
        for member in members:
            member.up()
        plan = members[0].plan
        hosts = [f"127.0.0.1:{member.plan.mongodb_port}" for member in members]

        def uri(user: str, *source: str) -> str:
            return plan.mongo_uri(user, *source).replace(hosts[0], ",".join(hosts))

        _take_in(plan, hosts)
        env = {"BEDS_DATABASES__REC__URI": uri("broker"), "BEDS_SCHEMA__DBA__REC__URI": uri("dba")}
        applied = run(project, "beds", "schema", "apply", env=env)
        assert applied.returncode == 0, applied.stderr
        yield ReplicaSet(uri("root", "admin"), uri("dba"), env)


def _take_in(plan: Plan, hosts: list[str]) -> None:
    """Add the others to the set of the first one by one, as MongoDB requires."""
    with MongoClient[dict[str, Any]](plan.mongo_uri("root", "admin")) as root:
        for n, host in enumerate(hosts[1:], 1):
            config = root.admin.command("replSetGetConfig")["config"]
            config["version"] += 1
            config["members"].append({"_id": n, "host": host})
            root.admin.command("replSetReconfig", config)

            def stand(host: str = host) -> bool:
                states = {each["name"]: each["stateStr"] for each in root.admin.command("replSetGetStatus")["members"]}
                return bool(states[host] == "SECONDARY")

            wait_for(stand, PATIENCE, f"{host} as a secondary")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_primary_that_steps_down_twelve_times_costs_no_write(
    project: Path, own_vhost: OwnVhost, replica_set: ReplicaSet
) -> None:
    """Every third step-down is forced, without waiting for an up-to-date member."""
    env = own_vhost.env | replica_set.env
    with running_worker(project, "rec.read,rec.write,calgon", "-c", "4", env=env) as worker:
        wait_until_written(own_vhost.settings, ["SampleDocs"])
        with Load(own_vhost.settings, ["SampleDocs"]) as load:
            for step in range(STEPS):
                load.wait_for_more()
                replica_set.step_down(force=step % 3 == 2)
            load.wait_for_more()
        assert worker.poll() is None, "the worker ended"
    print(f"mongodb: {dict(load.told())}")
    surprises = load.unlike(_wrote_nothing)
    assert not surprises, (len(surprises), surprises[:5])
    check(load, documents_of(replica_set.dba, load.name))


def _wrote_nothing(answer: Answer) -> bool:
    return answer.code == "store_unavailable" and answer.nothing_written

"""The clusters of all three servers at once, under writes and a migration, while one fault follows another.

`CLUSTER_SECONDS` sets how long faults are injected, and `CLUSTER_SEED` repeats their order.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pymongo import MongoClient

from beds.client.client import Client
from beds.client.jobs import JobTicket
from beds.config import Settings
from beds.domain.reply import Record
from beds.errors import BedsError
from beds.stack.plan import DATABASE
from beds.stack.stack import Stack
from tests.cluster.conftest import (
    CALL_SECONDS,
    PATIENCE,
    Load,
    audited_of,
    check,
    documents_of,
    frozen,
    kill,
    rows_of,
    running_node,
    wait_until_written,
    wrote_nothing,
)
from tests.cluster.test_mariadb import Member, Pair, primary_and_replica
from tests.cluster.test_mongodb import ReplicaSet, three_members
from tests.cluster.test_rabbitmq import Node, Way, is_empty, is_whole, three_nodes
from tests.conftest import wait_for
from tests.records_of_jobs import Places

pytestmark = pytest.mark.stack

SECONDS = float(os.environ.get("CLUSTER_SECONDS", "600"))
SEED = os.environ.get("CLUSTER_SEED") or uuid.uuid4().hex[:8]
TEMPLATES = ("SampleRows", "SampleDocs", "TransferRows")
IN_DOUBT = ("call_timeout", "broker_unavailable")
"""Allowed answers other than `ok`, besides a `store_unavailable` that wrote nothing; the record may exist or not."""
RECORDS = 2000
"""Of the migration; chunks have 50."""
RULES = ("docs_to_rows", "rows_to_docs")
A_FEW = 10
"""Writes of each template during and after a fault."""
Value = TypeVar("Value")


@dataclass
class Faults:
    """Each method injects one fault, waits for writes during it where the cluster allows them, and repairs it.

    Args:
        nodes, members, pair: the clusters.
        load: the writes.
        chance: chooses members and durations.
    """

    nodes: Sequence[Node]
    members: ReplicaSet
    pair: Pair
    load: Load
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)

    def run(self, seconds: float) -> None:
        """Inject faults in random order, each kind once before one comes again, until the time is over."""
        kinds: tuple[Callable[[], None], ...] = (
            self.rabbitmq_killed, self.rabbitmq_restarted, self.rabbitmq_frozen,
            self.mongodb_stepped_down, self.mongodb_primary_killed, self.mongodb_secondary_away,
            self.mariadb_switched, self.mariadb_primary_killed,
        )  # fmt: skip
        began = time.monotonic()
        waiting: list[Callable[[], None]] = []
        while time.monotonic() < began + seconds:
            if not waiting:
                waiting = self.chance.sample(kinds, len(kinds))
            fault = waiting.pop()
            print(f"{time.monotonic() - began:6.0f} s {fault.__name__}", flush=True)
            fault()
            self.done[fault.__name__] += 1
            self.load.wait_for_more(A_FEW)

    def rabbitmq_killed(self) -> None:
        victim, witness = self._two_nodes()
        if self.chance.random() < 0.5:
            victim.lead()
        assert kill(victim), "the victim had ended"
        self.load.wait_for_more(A_FEW)
        self._return(victim, witness)

    def rabbitmq_restarted(self) -> None:
        victim, witness = self._two_nodes()
        assert victim.down(), "the node had ended"
        self.load.wait_for_more(A_FEW)
        self._return(victim, witness)

    def rabbitmq_frozen(self) -> None:
        victim, witness = self._two_nodes()
        with frozen(victim):
            time.sleep(self.chance.uniform(3, 20))
        wait_for(lambda: is_whole(victim, witness), PATIENCE, "the return to its queues")

    def mongodb_stepped_down(self) -> None:
        self.members.step_down(force=self.chance.random() < 0.3)

    def mongodb_primary_killed(self) -> None:
        victim = self.members.kill_primary()
        self.load.wait_for_more(A_FEW)
        self.members.come_back(victim)

    def mongodb_secondary_away(self) -> None:
        away = self.chance.choice(self.members.secondaries())
        assert kill(away), "the secondary had ended"
        self.load.wait_for_more(A_FEW)
        self.members.come_back(away)

    def mariadb_switched(self) -> None:
        old = self.pair.primary
        self.pair.close_primary()
        self.pair.switch()
        self.load.wait_for_more(A_FEW)
        self._follow(old)

    def mariadb_primary_killed(self) -> None:
        """The replica is promoted, and the killed one follows it."""
        victim = self.pair.primary
        assert kill(victim), "the primary had ended"
        # The replica has confirmed what is in its relay log, and has to apply it before it is promoted.
        wait_for(self.pair.has_applied_all, PATIENCE, "the end of the relay log")
        self.pair.switch()
        self.load.wait_for_more(A_FEW)
        # It must take no writes before it follows, and drop from its binary log what the replica has not confirmed.
        victim.more = tuple(dict.fromkeys((*victim.more, "--init-rpl-role=SLAVE")))
        victim.up()
        self._follow(victim)

    def _follow(self, member: Member) -> None:
        member.follow(self.pair.primary)
        wait_for(self.pair.is_semi_synchronous, PATIENCE, "a replica that confirms each commit")

    def _two_nodes(self) -> tuple[Node, Node]:
        """A victim, and another node that shows the queues."""
        victim, witness = self.chance.sample(self.nodes, 2)
        return victim, witness

    def _return(self, node: Node, witness: Node) -> None:
        node.up()
        wait_for(lambda: is_whole(node, witness), PATIENCE, "the return to its queues")


class Migrations:
    """A job moves all records from documents to rows, and the next one back, again and again.

    Args:
        settings: of an operator.
    """

    def __init__(self, settings: Settings) -> None:
        self.ended: Counter[str] = Counter()
        self.resumed = 0
        self.problem: BaseException | None = None
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Migrations:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the end of the job at work."""
        self._stop.set()
        self._thread.join(4 * PATIENCE)
        assert not self._thread.is_alive(), "a job does not end"

    def _run(self) -> None:
        try:
            with Client(self._settings, operator=True) as client:
                while not self._stop.is_set():
                    self._move(client, RULES[self.ended.total() % 2])
        except BaseException as problem:  # noqa: BLE001 — the test's own thread raises it
            self.problem = problem

    def _move(self, client: Client, rule: str) -> None:
        key = uuid.uuid4().hex  # a repeated submission starts no second job
        ticket = _insist(lambda: client.submit_job(rule, idempotency_key=key, timeout=CALL_SECONDS))
        deadline, before = time.monotonic() + PATIENCE, None
        while (report := _insist(lambda: ticket.report(CALL_SECONDS)))["state"] != "DONE":
            assert report["state"] != "FAILED", report
            if report["state"] == "STALLED":
                self._resume(ticket, report)
            if (now := (report["state"], report.get("moved"))) != before:
                deadline, before = time.monotonic() + PATIENCE, now
            assert time.monotonic() < deadline, f"no progress: {report}"
            time.sleep(0.5)
        assert report["rejected"] == report["in_doubt"] == 0, report
        assert report["moved"] == RECORDS, report
        self.ended[rule] += 1

    def _resume(self, ticket: JobTicket, report: dict[str, Any]) -> None:
        assert "given up" in report["why"], report  # by chance, faults struck one chunk each time
        self.resumed += 1
        with contextlib.suppress(BedsError):  # the next report shows whether it goes on
            ticket.resume(timeout=CALL_SECONDS)


def _insist(call: Callable[[], Value]) -> Value:
    """Repeat a call as long as its error is one after which a caller should."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except BedsError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


@contextlib.contextmanager
def _opened(settings: Settings, members: ReplicaSet, server: Member) -> Iterator[Places]:
    """The records of the job, in the replica set and on one MariaDB server."""
    dba = settings.schema_.dba
    assert dba.rel is not None
    rel = dba.rel.model_copy(update={"port": server.plan.mariadb_port})
    of_server = settings.schema_.model_copy(update={"dba": dba.model_copy(update={"rel": rel})})
    with (
        MongoClient[dict[str, Any]](members.dba, tz_aware=True) as mongo,
        Places.opened(settings.model_copy(update={"schema_": of_server}), mongo[DATABASE]) as places,
    ):
        yield places


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 1800)
def test_faults_of_all_clusters_lose_and_double_nothing(project: Path, settings: Settings, stack: Stack) -> None:
    """RabbitMQ, MongoDB and MariaDB change their leaders in turn, while records are created and moved."""
    print(f"seed {SEED}, {SECONDS:.0f} s")
    with (
        three_nodes(project, settings, stack) as nodes,
        three_members(project, stack) as members,
        primary_and_replica(project, stack) as pair,
    ):
        ports = [node.amqp_port for node in nodes]
        way = Way.over_all(settings, nodes[0].plan, ports, ports)
        env = way.env | members.env | {"BEDS_DATABASES__REL__HOSTS": pair.hosts["BEDS_DATABASES__REL__HOSTS"]}
        with _opened(settings, members, pair.primary) as places:
            places.clear()
            model = places.fill("JobDocs", RECORDS)
        wait_for(pair.is_semi_synchronous, PATIENCE, "a replica that confirms each commit")
        with running_node(project, env | {"BEDS_NODE__NAME": "all"}) as node:
            wait_until_written(way.settings, TEMPLATES)
            with Load(way.settings, TEMPLATES) as load, Migrations(way.settings) as jobs:
                load.wait_for_more(A_FEW)
                faults = Faults(nodes, members, pair, load, random.Random(SEED))
                try:
                    faults.run(SECONDS)
                finally:
                    print(f"faults: {dict(faults.done)}\ntold: {dict(load.told())}\njobs: {dict(jobs.ended)}")
            if jobs.problem is not None:
                raise jobs.problem
            wait_for(lambda: is_empty(nodes[0]), PATIENCE, "empty queues")
            assert node.poll() is None, "the node ended"
        print(f"told: {dict(load.told())}\njobs: {dict(jobs.ended)}, resumed {jobs.resumed} times")
        surprises = load.unlike(lambda answer: answer.code in IN_DOUBT or wrote_nothing(answer))
        assert not surprises, (len(surprises), surprises[:5])
        pair.close_primary()
        documents = documents_of(members.dba, load.name)
        written = rows_of(pair.primary.plan, load.name) + documents
        for answer in load.unlike(lambda _: False):
            print(f"{answer}, written {written[answer.template, answer.key]} times")
        for server in (pair.primary, pair.replica):
            check(load, rows_of(server.plan, load.name) + documents, IN_DOUBT)
            with _opened(settings, members, server) as places:
                _compare(places, model)
        check(load, audited_of(members.dba, load.name), IN_DOUBT)


def _compare(places: Places, model: dict[int, Record]) -> None:
    """Each record of the job is in one place, and unchanged."""
    hot, cool = places.records("JobDocs"), places.records("JobRows")
    assert not hot.keys() & cool.keys(), "records in two places"
    found = {**hot, **cool}
    assert sum(each["amount"] for each in found.values()) == sum(each["amount"] for each in model.values())
    assert found == model

"""Three RabbitMQ nodes; the leader of the queues is killed repeatedly."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import MongoClient

from beds.client.client import Client
from beds.config import Settings
from beds.node.daemon import Daemon
from beds.stack.plan import VHOST, Plan
from beds.stack.rabbitmq import RabbitMQ
from beds.stack.stack import Stack
from tests.cluster.conftest import (
    CALL_SECONDS,
    OK,
    PATIENCE,
    Load,
    SwitchedProxy,
    check,
    create,
    documents_of,
    kill,
    rows_of,
    running_node,
    servers_of_their_own,
    wait_until_written,
)
from tests.conftest import ADMIN_QUEUES, ALL_QUEUES, PORT_BASE, run, running_worker, wait_for

pytestmark = pytest.mark.stack

KILLS = 5
TEMPLATES = ("SampleRows", "SampleDocs", "TransferRows")
IN_DOUBT = ("call_timeout", "broker_unavailable")
"""Allowed answers other than `ok`; the record may exist or not."""
COOKIE = "BEDSTESTCLUSTER"


class NodePlan(Plan):
    """The ports of one node; all nodes share one epmd."""

    @property
    def epmd_port(self) -> int:
        return PORT_BASE + 1069


class Node(RabbitMQ):
    """One of three RabbitMQ nodes.

    Args:
        plan: its ports and its folder.
        names: of all nodes.
        folder: where the epmd of all of them is kept.
    """

    def __init__(self, plan: NodePlan, names: Sequence[str], folder: Path) -> None:
        super().__init__(plan)
        self.epmd = Daemon("epmd", folder)
        self.more = (
            "cluster_partition_handling = pause_minority",
            "cluster_formation.peer_discovery_backend = classic_config",
            *(f"cluster_formation.classic_config.nodes.{n} = {name}" for n, name in enumerate(names, 1)),
        )

    @property
    def amqp_port(self) -> int:
        return self.plan.amqp_port

    @property
    def name_in_cluster(self) -> str:
        return self.environment["RABBITMQ_NODENAME"]

    def make(self) -> None:
        super().make()
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(COOKIE)
        cookie.chmod(0o400)

    def down(self) -> bool:
        return self.daemon.stop()

    def queues(self) -> dict[str, dict[str, Any]]:
        """This node's view of the queues of BEDS, by name."""
        columns = ("name", "leader", "online", "messages")
        told = self.control("-q", "list_queues", "-p", VHOST, "--formatter", "json", *columns)
        return {queue["name"]: queue for queue in json.loads(told) if queue["leader"]}

    def lead(self) -> None:
        """Make this node the leader of every quorum queue."""
        self.control(
            "eval",
            f"[rabbit_quorum_queue:transfer_leadership(Q, '{self.name_in_cluster}') || "
            f'Q <- rabbit_amqqueue:list(<<"{VHOST}">>), amqqueue:get_type(Q) =:= rabbit_quorum_queue].',
        )


@dataclass(frozen=True)
class Way:
    """The addresses of RabbitMQ for clients and for workers.

    Args:
        settings: of a client.
        env: of a worker.
    """

    settings: Settings
    env: dict[str, str]

    @classmethod
    def over(cls, settings: Settings, plan: Plan, clients: int, workers: int) -> Way:
        """The addresses on these two ports.

        Args:
            settings: of the project.
            plan: with the passwords.
            clients, workers: their ports.
        """
        app = plan.amqp_url("app").replace(f":{plan.amqp_port}/", f":{clients}/")
        worker = plan.amqp_url("worker").replace(f":{plan.amqp_port}/", f":{workers}/")
        amqp = settings.amqp.model_copy(update={"url": SecretStr(app), "worker_url": SecretStr(worker)})
        env = {"BEDS_AMQP__URL": app, "BEDS_AMQP__WORKER_URL": worker, "BEDS_METRICS__PROMETHEUS": ""}
        return cls(settings.model_copy(update={"amqp": amqp}), env)


@pytest.fixture
def cluster(project: Path, settings: Settings, stack: Stack) -> Iterator[tuple[Node, Node, Node]]:
    """Three nodes with BEDS's users, and its topology, led by the first."""

    def make(folder: Path) -> list[Node]:
        plans = [NodePlan(folder / f"node{n}", PORT_BASE + 500 + 30 * n, {**stack.plan.passwords}) for n in range(1, 4)]
        names = [f"beds{plan.amqp_port}@localhost" for plan in plans]
        return [Node(plan, names, folder / "epmd") for plan in plans]

    with servers_of_their_own("rabbitmq", make) as nodes:
        try:
            for node in nodes:
                node.up()
            first, second, third = nodes
            first.control("await_online_nodes", "3", "-t", "60")
            way = Way.over(settings, first.plan, first.amqp_port, first.amqp_port)
            declared = run(project, "beds", "topology", "declare", env=way.env)
            assert declared.returncode == 0, declared.stderr
            yield first, second, third
        finally:
            for node in nodes:
                kill(node)
            nodes[0].epmd.stop()


@pytest.mark.timeout(1200)
def test_a_leader_that_is_killed_costs_no_write_and_no_refusal(
    project: Path, settings: Settings, stack: Stack, cluster: tuple[Node, Node, Node]
) -> None:
    """Clients and workers connect to live nodes; the queues of the dead node get another leader."""
    victim, witness, other = cluster
    way = Way.over(settings, victim.plan, witness.amqp_port, other.amqp_port)
    with (
        running_worker(project, ALL_QUEUES, "-c", "4", env=way.env) as worker,
        running_worker(project, ADMIN_QUEUES, env=way.env) as admin,
    ):
        wait_until_written(way.settings, TEMPLATES)
        with Load(way.settings, TEMPLATES) as load:
            for _ in range(KILLS):
                wait_for(lambda: _leads(victim, witness), PATIENCE, "the leadership of the victim")
                load.wait_for_more()
                assert kill(victim), "the victim had ended"
                load.wait_for_more()
                led = {queue["leader"] for queue in witness.queues().values()}
                assert victim.name_in_cluster not in led
                load.wait_for_more()
                victim.up()
                wait_for(lambda: _is_whole(victim, witness), PATIENCE, "the victim's return to its queues")
                load.wait_for_more()
        wait_for(lambda: _is_empty(witness), PATIENCE, "empty queues")
        assert worker.poll() is None, "the worker ended"
        assert admin.poll() is None, "the admin worker ended"
    _reckon(load, settings, stack)


@pytest.mark.timeout(1200)
def test_the_node_that_all_are_connected_to_is_killed(
    project: Path, settings: Settings, stack: Stack, cluster: tuple[Node, Node, Node]
) -> None:
    """Clients and workers have one address, which resolves to another node when their node fails."""
    proxy = SwitchedProxy(cluster[0].amqp_port)
    way = Way.over(settings, cluster[0].plan, proxy.port, proxy.port)
    try:
        with running_node(project, way.env | {"BEDS_NODE__NAME": "cluster"}) as node:
            wait_until_written(way.settings, TEMPLATES)
            with Load(way.settings, TEMPLATES) as load:
                for number in range(KILLS):
                    victim, witness = cluster[number % 3], cluster[(number + 1) % 3]
                    wait_for(lambda v=victim, w=witness: _leads(v, w), PATIENCE, "the leadership of the victim")
                    load.wait_for_more()
                    proxy.lead_to(witness.amqp_port)
                    assert kill(victim), "the victim had ended"
                    load.wait_for_more()
                    victim.up()
                    wait_for(lambda v=victim, w=witness: _is_whole(v, w), PATIENCE, "the victim's return to its queues")
                    load.wait_for_more()
            wait_for(lambda: _is_empty(cluster[0]), PATIENCE, "empty queues")
            assert node.poll() is None, "the node ended"
    finally:
        proxy.close()
    _reckon(load, settings, stack)


@pytest.mark.timeout(600)
def test_a_client_whose_first_write_meets_no_leader_is_served_by_the_next(
    project: Path, settings: Settings, cluster: tuple[Node, Node, Node]
) -> None:
    """Connections to live nodes that were not used for these queues before their leader was killed."""
    victim, witness, other = cluster
    way = Way.over(settings, victim.plan, witness.amqp_port, other.amqp_port)
    with running_worker(project, ALL_QUEUES, "-c", "4", env=way.env), contextlib.ExitStack() as clients:
        wait_until_written(way.settings, TEMPLATES)
        wait_for(lambda: _leads(victim, witness), PATIENCE, "the leadership of the victim")
        new = [clients.enter_context(Client(way.settings)) for _ in range(6)]
        for client in new:
            client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=CALL_SECONDS)
        assert kill(victim, wait=False), "the victim had ended"
        with ThreadPoolExecutor(len(new)) as pool:
            answers = list(pool.map(create, new, TEMPLATES * 2, [uuid.uuid4().hex for _ in new]))
        refused = [answer for answer in answers if answer.code != OK]
        assert not refused, (f"{len(refused)} of {len(new)}", refused)


def _leads(node: Node, witness: Node) -> bool:
    """Transfer the leadership of all queues to the node; whether it leads all of them."""
    node.lead()
    queues = witness.queues()
    return len(queues) > 8 and all(queue["leader"] == node.name_in_cluster for queue in queues.values())


def _is_whole(node: Node, witness: Node) -> bool:
    return all(node.name_in_cluster in queue["online"] for queue in witness.queues().values())


def _is_empty(node: Node) -> bool:
    return not any(queue["messages"] for queue in node.queues().values())


def _reckon(load: Load, settings: Settings, stack: Stack) -> None:
    """Each write that was answered `ok` exists once in its database and once in the audit."""
    rec = settings.schema_.dba.rec
    assert rec is not None
    uri = rec.uri.get_secret_value()
    print(f"told: {dict(load.told())}")
    surprises = load.unlike(lambda answer: answer.code in IN_DOUBT)
    assert not surprises, (len(surprises), surprises[:5])
    check(load, rows_of(stack.plan, load.name) + documents_of(uri, load.name), IN_DOUBT)
    with MongoClient[dict[str, Any]](uri) as mongo:
        records = mongo[rec.database].msAudit.find({"record_id": {"$regex": f"^{load.name}-"}, "outcome": OK})
        audited = Counter((str(each["template"]), str(each["record_id"])) for each in records)
    check(load, audited, IN_DOUBT)

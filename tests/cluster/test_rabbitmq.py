"""Three RabbitMQ nodes; the leader of the queues is killed repeatedly."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from beds.client.client import Client
from beds.config import Settings
from beds.node.daemon import Daemon
from beds.node.members import rabbitmq_members
from beds.stack.plan import VHOST, Plan
from beds.stack.rabbitmq import RabbitMQ
from beds.stack.stack import Stack
from beds.transport import connection
from tests.cluster.conftest import (
    CALL_SECONDS,
    OK,
    PATIENCE,
    Load,
    SwitchedProxy,
    audited_of,
    check,
    create,
    documents_of,
    frozen,
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
SILENCES = (2, 5, 10, 25, 5, 2, 25, 10)
"""Seconds. A client gives a silent connection up after six to eight seconds."""
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

    def connections(self) -> int:
        """How many clients and workers are connected to this node."""
        return int(self.control("eval", "length(rabbit_networking:local_connections())."))

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
        return cls.over_all(settings, plan, [clients], [workers])

    @classmethod
    def over_all(cls, settings: Settings, plan: Plan, clients: Sequence[int], workers: Sequence[int]) -> Way:
        """The same on several ports each, in addresses of several hosts."""
        urls = {
            key: plan.amqp_url(user).replace(f":{plan.amqp_port}/", f":{',127.0.0.1:'.join(map(str, ports))}/")
            for key, user, ports in (
                ("url", "app", clients),
                ("operator_url", "operator", clients),
                ("worker_url", "worker", workers),
            )
        }
        amqp = settings.amqp.model_copy(update={key: SecretStr(url) for key, url in urls.items()})
        env = {f"BEDS_AMQP__{key.upper()}": url for key, url in urls.items()} | {"BEDS_METRICS__PROMETHEUS": ""}
        return cls(settings.model_copy(update={"amqp": amqp}), env)


@contextlib.contextmanager
def three_nodes(project: Path, settings: Settings, stack: Stack) -> Iterator[tuple[Node, Node, Node]]:
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


@pytest.fixture
def cluster(project: Path, settings: Settings, stack: Stack) -> Iterator[tuple[Node, Node, Node]]:
    with three_nodes(project, settings, stack) as nodes:
        yield nodes


@pytest.mark.long
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
                wait_for(lambda: leads(victim, witness), PATIENCE, "the leadership of the victim")
                load.wait_for_more()
                assert kill(victim), "the victim had ended"
                load.wait_for_more()
                led = {queue["leader"] for queue in witness.queues().values()}
                assert victim.name_in_cluster not in led
                load.wait_for_more()
                victim.up()
                wait_for(lambda: is_whole(victim, witness), PATIENCE, "the victim's return to its queues")
                load.wait_for_more()
        wait_for(lambda: is_empty(witness), PATIENCE, "empty queues")
        assert worker.poll() is None, "the worker ended"
        assert admin.poll() is None, "the admin worker ended"
    _reckon(load, settings, stack)


@pytest.mark.long
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
                    wait_for(lambda v=victim, w=witness: leads(v, w), PATIENCE, "the leadership of the victim")
                    load.wait_for_more()
                    proxy.lead_to(witness.amqp_port)
                    assert kill(victim), "the victim had ended"
                    load.wait_for_more()
                    victim.up()
                    wait_for(lambda v=victim, w=witness: is_whole(v, w), PATIENCE, "the victim's return to its queues")
                    load.wait_for_more()
            wait_for(lambda: is_empty(cluster[0]), PATIENCE, "empty queues")
            assert node.poll() is None, "the node ended"
    finally:
        proxy.close()
    _reckon(load, settings, stack)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_client_whose_first_write_meets_no_leader_is_served_by_the_next(
    project: Path, settings: Settings, cluster: tuple[Node, Node, Node]
) -> None:
    """Connections to live nodes that were not used for these queues before their leader was killed."""
    victim, witness, other = cluster
    way = Way.over(settings, victim.plan, witness.amqp_port, other.amqp_port)
    with running_worker(project, ALL_QUEUES, "-c", "4", env=way.env), contextlib.ExitStack() as clients:
        wait_until_written(way.settings, TEMPLATES)
        wait_for(lambda: leads(victim, witness), PATIENCE, "the leadership of the victim")
        new = [clients.enter_context(Client(way.settings)) for _ in range(6)]
        for client in new:
            client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=CALL_SECONDS)
        assert kill(victim, wait=False), "the victim had ended"
        with ThreadPoolExecutor(len(new)) as pool:
            answers = list(pool.map(create, new, TEMPLATES * 2, [uuid.uuid4().hex for _ in new]))
        refused = [answer for answer in answers if answer.code != OK]
        assert not refused, (f"{len(refused)} of {len(new)}", refused)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_address_of_three_hosts_outlives_each_of_them(
    project: Path, settings: Settings, stack: Stack, cluster: tuple[Node, Node, Node]
) -> None:
    """Leader killed, rolling restart, two of three down and back, a leader frozen for 40 seconds; no proxy helps."""
    ports = [node.amqp_port for node in cluster]
    way = Way.over_all(settings, cluster[0].plan, ports, ports)
    with running_node(project, way.env | {"BEDS_NODE__NAME": "hosts"}) as node:
        wait_until_written(way.settings, TEMPLATES)
        with Load(way.settings, TEMPLATES) as load:
            load.wait_for_more()
            victim, witness, other = cluster
            wait_for(lambda: leads(victim, witness), PATIENCE, "the leadership of the victim")
            assert found_by_checks(way, cluster)["queue leaders"] == "warning", "one node leads all"
            assert kill(victim), "the victim had ended"
            load.wait_for_more()
            found = found_by_checks(way, cluster)
            assert {found[name] for name in ("RabbitMQ hosts", "RabbitMQ cluster", "quorum queues")} == {"warning"}
            victim.up()
            wait_for(lambda: is_whole(victim, witness), PATIENCE, "the victim's return to its queues")
            wait_for(
                lambda: "quorum queues" not in found_by_checks(way, cluster), PATIENCE, "the statistics' agreement"
            )
            found = found_by_checks(way, cluster)
            assert {found[name] for name in ("RabbitMQ hosts", "RabbitMQ cluster")} == {"ok"}
            for each, beside in ((victim, witness), (witness, other), (other, victim)):
                each.control("stop_app")
                load.wait_for_more(10)
                each.control("start_app")
                wait_for(lambda e=each, b=beside: is_whole(e, b), PATIENCE, "the return to its queues")
            load.wait_for_more()
            assert kill(witness)
            assert kill(other)
            time.sleep(5)
            witness.up()
            other.up()
            wait_for(lambda: is_whole(witness, victim) and is_whole(other, victim), PATIENCE, "three members")
            load.wait_for_more()
            wait_for(lambda: leads(victim, witness), PATIENCE, "the leadership of the victim")
            with frozen(victim):
                time.sleep(40)
                load.wait_for_more()
            wait_for(lambda: is_whole(victim, witness), PATIENCE, "the frozen one's return to its queues")
            load.wait_for_more()
        # The frozen one may have paused itself, as one that was cut off.
        wait_for(lambda: is_empty(witness), PATIENCE, "empty queues")
        assert node.poll() is None, "the node ended"
    _reckon(load, settings, stack)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_node_that_is_cut_off_from_clients_and_workers_costs_no_write(
    project: Path, settings: Settings, stack: Stack, cluster: tuple[Node, Node, Node]
) -> None:
    """The path to the node with most connections goes silent: they stay open, and held bytes arrive afterwards.

    After a short silence the old connections go on; after a long one both ends have given them up.
    """
    proxies = [SwitchedProxy(node.amqp_port) for node in cluster]
    ports = [proxy.port for proxy in proxies]
    way = Way.over_all(settings, cluster[0].plan, ports, ports)
    cut: list[str] = []
    try:
        with running_node(project, way.env | {"BEDS_NODE__NAME": "cutoff"}) as node:
            wait_until_written(way.settings, TEMPLATES)
            with Load(way.settings, TEMPLATES) as load:
                for number, seconds in enumerate(SILENCES):
                    load.wait_for_more()
                    connections = [each.connections() for each in cluster]
                    victim = connections.index(max(connections))
                    if number % 2:
                        leader, witness = cluster[victim], cluster[victim - 1]
                        wait_for(lambda v=leader, w=witness: leads(v, w), PATIENCE, "the leadership of the victim")
                    cut.append(f"node {victim + 1} of {connections} connections for {seconds} s")
                    with _silent(proxies[victim]):
                        time.sleep(seconds)
                        if seconds == max(SILENCES):
                            load.wait_for_more()
                load.wait_for_more()
            wait_for(lambda: is_empty(cluster[0]), PATIENCE, "empty queues")
            assert node.poll() is None, "the node ended"
    finally:
        for proxy in proxies:
            proxy.close()
    print(f"cut off: {cut}")
    _reckon(load, settings, stack)


@contextlib.contextmanager
def _silent(proxy: SwitchedProxy) -> Iterator[None]:
    proxy.silent = True
    try:
        yield
    finally:
        proxy.silent = False


def found_by_checks(way: Way, nodes: Sequence[Node]) -> dict[str, str]:
    """The verdicts on the cluster, by the names of the checks."""
    plan = nodes[0].plan
    hosts = ",".join(f"127.0.0.1:{node.plan.management_port}" for node in nodes)
    api = SecretStr(f"http://beds_admin:{plan.passwords['amqp_admin']}@{hosts}/api/")
    settings = way.settings.model_copy(update={"flower": way.settings.flower.model_copy(update={"broker_api": api})})
    return {check.name: str(check.verdict) for check in rabbitmq_members(settings)}


@pytest.mark.timeout(300)
def test_a_frozen_first_address_costs_a_client_about_a_second(
    project: Path, settings: Settings, cluster: tuple[Node, Node, Node]
) -> None:
    stuck, witness, other = cluster
    workers = Way.over(settings, stuck.plan, witness.amqp_port, witness.amqp_port)
    with running_worker(project, ALL_QUEUES, env=workers.env):
        wait_until_written(workers.settings, TEMPLATES)
        wait_for(lambda: leads(witness, other), PATIENCE, "the leadership of another node")
        with frozen(stuck):
            way = Way.over_all(settings, stuck.plan, [stuck.amqp_port, other.amqp_port], [witness.amqp_port])
            took = []
            for _ in range(8):  # an order of chance: some begin at the frozen one
                connection._failed_at.clear()
                with Client(way.settings) as client:
                    began = time.monotonic()
                    client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=CALL_SECONDS)
                    took.append(time.monotonic() - began)
    print(f"frozen first address: {[round(each, 2) for each in took]}")
    assert any(each >= connection.FIRST_TRY_SECONDS for each in took), "none began at the frozen one"
    # Half of the 4 s of [amqp] connect_timeout: the frozen one has not used them up.
    assert sorted(took)[len(took) // 2] < connection.FIRST_TRY_SECONDS + 2


def leads(node: Node, witness: Node) -> bool:
    """Transfer the leadership of all queues to the node; whether it leads all of them."""
    node.lead()
    queues = witness.queues()
    return len(queues) > 8 and all(queue["leader"] == node.name_in_cluster for queue in queues.values())


def is_whole(node: Node, witness: Node) -> bool:
    return all(node.name_in_cluster in queue["online"] for queue in witness.queues().values())


def is_empty(node: Node) -> bool:
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
    check(load, audited_of(uri, load.name), IN_DOUBT)

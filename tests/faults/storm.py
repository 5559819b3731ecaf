"""A storm: clients submit non-idempotent operations on both stores while a fault is injected repeatedly.

Afterwards the databases, the tickets and the audit are compared with the answers that the clients received.

`make faults` runs the long form, each fault many times, and prints a table:

    python -m tests.faults.storm [--times 5] [--fault NAME]... [--markdown]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import MySQLdb
import psutil
from pymongo import MongoClient

from beds.client.client import Client
from beds.config import Settings, load_settings
from beds.domain.ticket import TicketState
from beds.errors import BedsError
from beds.node.pool import slots_of
from beds.stack.stack import Stack
from tests.conftest import (
    PORT_BASE,
    OwnVhost,
    apply_schema,
    environment,
    make_project,
    vhost_of_its_own,
    wait_for,
    wait_until_served,
)
from tests.proxy import SilentProxy

CLIENTS = 3
NODE = "storm"
QUIET_SECONDS = 180.0
"""How long queues and workers may take to become idle after the last fault."""
IN_DOUBT = frozenset({"call_timeout", "broker_unavailable", "broker_blocked", "dead_event", "store_unavailable", ""})
"""Answers after which an operation may or may not have had its effect; empty when the client was killed."""


@dataclass
class Storm:
    """Servers, a node and clients, under faults.

    Args:
        project, stack, vhost: of the tests.
        folder: where the clients write.
    """

    project: Path
    stack: Stack
    vhost: OwnVhost
    folder: Path
    node_env: dict[str, str]
    proxies: Mapping[str, SilentProxy]
    node: subprocess.Popen[bytes] = field(init=False)
    kills: int = 0
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return environment(self.project, **self.vhost.env)

    def start_node(self) -> None:
        """`beds node run`, as a service manager starts it."""
        with (self.project / "storm.log").open("ab") as log:
            self.node = subprocess.Popen(
                ["beds", "node", "run"],
                cwd=self.project,
                env=environment(self.project, **self.node_env),
                stdout=log,
                stderr=log,
            )

    def is_whole(self) -> bool:
        """Whether every pool serves with all its slots."""
        try:
            noted = json.loads((self.project / ".beds" / "run" / f"{NODE}.json").read_text())
        except (OSError, ValueError):
            return False
        return noted["pid"] == self.node.pid and all(
            pool["state"] == "ready" and (len(slots_of(pool["pid"])) == pool["slots"] or "beds.logs" in pool["pool"])
            for pool in noted["pools"]
        )

    def start_client(self) -> None:
        name = f"s{uuid.uuid4().hex[:12]}"
        with Client(self.vhost.settings) as client:
            for account in ("a", "b"):
                client.call("create_record", "AccountRows", {"id": f"{name}-{account}", "amount": 0}, timeout=60)
            client.call("create_record", "AccountDocs", {"id": f"{name}-a", "amount": 0}, timeout=60)
        url = self.vhost.env["BEDS_AMQP__URL"].replace(
            f":{self.stack.plan.amqp_port}/", f":{self.proxies['client'].port}/"
        )
        command = [sys.executable, "-m", "tests.faults.storm_client", name, str(self.folder / f"{name}.jsonl")]
        env = self.env | {"BEDS_AMQP__URL": url, "PYTHONPATH": str(Path.cwd()), "BEDS_AMQP__HEARTBEAT": "2"}
        self.names.append(name)
        with (self.folder / "clients.log").open("ab") as log:
            self.clients.append(subprocess.Popen(command, cwd=self.project, env=env, stdout=log, stderr=log))

    def workers(self) -> list[psutil.Process]:
        """The worker processes of the node, without their pool children."""
        return psutil.Process(self.node.pid).children()


@contextmanager
def storm(project: Path, stack: Stack, settings: Settings, folder: Path) -> Iterator[Storm]:
    """A node with all services on a vhost of its own, reached through proxies, and clients at work."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = stack.plan
    proxies = {
        "client": SilentProxy(plan.amqp_port),
        "worker": SilentProxy(plan.amqp_port),
        "mongodb": SilentProxy(plan.mongodb_port),
        "mariadb": SilentProxy(plan.mariadb_port),
    }
    with vhost_of_its_own(settings, stack) as vhost:
        worker_url = vhost.env["BEDS_AMQP__WORKER_URL"].replace(f":{plan.amqp_port}/", f":{proxies['worker'].port}/")
        uri = plan.mongo_uri("broker").replace(f":{plan.mongodb_port}/", f":{proxies['mongodb'].port}/")
        node_env = vhost.env | {
            "BEDS_NODE__NAME": NODE,
            "BEDS_AMQP__WORKER_URL": worker_url,
            "BEDS_AMQP__HEARTBEAT": "2",
            "BEDS_DATABASES__REC__URI": uri.replace("replicaSet=rs0", "directConnection=true"),
            "BEDS_DATABASES__REL__PORT": str(proxies["mariadb"].port),
            "BEDS_METRICS__PROMETHEUS": "",
            "BEDS_AMQP__DELIVERY_LIMIT": "20",
            **{f"BEDS_BROKERS__{q}__TIME_LIMIT": "10" for q in ("REC_WRITE", "REL_WRITE", "REC_READ", "REL_READ")},
        }
        found = Storm(project, stack, vhost, folder, node_env, proxies)
        found.start_node()
        try:
            with Client(vhost.settings) as client:
                wait_until_served(client)
            for _ in range(CLIENTS):
                found.start_client()
            yield found
        finally:
            for process in found.clients:
                process.kill()
                process.wait()
            found.node.terminate()
            try:
                found.node.wait(90)
            except subprocess.TimeoutExpired:
                found.node.kill()
                found.node.wait()
            for proxy in proxies.values():
                proxy.close()


# --- Faults ----------------------------------------------------------------------------------------------------------
def kill_pool_children(s: Storm) -> None:
    for worker in s.workers():
        for child in worker.children():
            _kill(child)


def kill_a_worker(s: Storm) -> None:
    worker = random.choice(s.workers())
    for process in (*worker.children(recursive=True), worker):
        _kill(process)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:  # it has just ended, and is started again
        return []


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two
        return True


def kill_next_process(s: Storm) -> None:
    """One process of the node after another: the supervisor (which is started again, as systemd would), each worker's
    parent, each slot. Then all slots must run again."""
    wait_for(s.is_whole, 90, "the pools")  # another fault may have come before
    workers = s.workers()
    mine = [psutil.Process(s.node.pid), *workers, *(child for worker in workers for child in _children(worker))]
    victim = mine[s.kills % len(mine)]
    s.kills += 1
    _kill(victim)
    if victim.pid == s.node.pid:
        s.node.wait()
        s.start_node()
    wait_for(lambda: _has_ended(victim), 30, "its end")
    wait_for(s.is_whole, 90, "the pools")


def restart_all_workers(s: Storm) -> None:
    """A rolling restart: each worker drains on SIGTERM, and the node starts it again."""
    workers = s.workers()
    for worker in workers:
        worker.terminate()
        wait_for(lambda old=worker.pid: old not in {w.pid for w in s.workers()}, 60, "the drain")
        wait_for(lambda: len(s.workers()) == len(workers), 60, "its successor")
        time.sleep(1)


def rabbitmq_restart(s: Storm) -> None:
    s.stack.rabbitmq.down()
    s.stack.rabbitmq.up()


def rabbitmq_kill(s: Storm) -> None:
    _kill_server(s, "rabbitmq")


def rabbitmq_close_connections(s: Storm) -> None:
    s.stack.rabbitmq.control("close_all_connections", "-p", "own", "a storm")


def rabbitmq_alarm(s: Storm) -> None:
    s.stack.rabbitmq.control("set_vm_memory_high_watermark", "0")
    time.sleep(2)
    s.stack.rabbitmq.control("set_vm_memory_high_watermark", "absolute", "2GB")


def mariadb_restart(s: Storm) -> None:
    s.stack.server("mariadb").down()
    s.stack.server("mariadb").up()


def mariadb_kill(s: Storm) -> None:
    _kill_server(s, "mariadb")


def mariadb_kill_connections(s: Storm) -> None:
    plan = s.stack.plan
    connection = MySQLdb.connect(
        host="127.0.0.1", port=plan.mariadb_port, user="beds_broker", passwd=plan.passwords["rel_broker"]
    )
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM information_schema.processlist WHERE user = 'beds_broker' AND id <> CONNECTION_ID()"
        )
        for (each,) in cursor.fetchall():
            with contextlib.suppress(MySQLdb.Error):
                cursor.execute("KILL CONNECTION %s", [each])


def mariadb_deadlocks(s: Storm) -> None:
    """Transfers both ways between the same accounts, from many threads at once."""
    name = f"d{uuid.uuid4().hex[:8]}"
    with Client(s.vhost.settings) as client:
        for account in ("a", "b"):
            client.call("create_record", "AccountRows", {"id": f"{name}-{account}", "amount": 0}, timeout=60)

        def there_and_back(n: int) -> None:
            ends = ("a", "b") if n % 2 else ("b", "a")
            data = {"id": f"{name}-{n}", "source": f"{name}-{ends[0]}", "target": f"{name}-{ends[1]}", "amount": 1}
            client.call("create_record", "TransferRows", data, timeout=90)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(there_and_back, range(60)))
        for account in ("a", "b"):
            page = client.call("fetch_records", "AccountRows", {"id": f"{name}-{account}"}, using="by_id", timeout=60)
            assert page[0]["balance"] == 0, "a deadlock's victim was lost, or came twice"  # type: ignore[index]


def mongodb_restart(s: Storm) -> None:
    s.stack.server("mongodb").down()
    s.stack.server("mongodb").up()


def mongodb_kill(s: Storm) -> None:
    _kill_server(s, "mongodb")


def kill_a_client(s: Storm) -> None:
    s.clients[0].kill()
    s.clients.pop(0).wait()
    s.start_client()


def silence(which: str) -> Callable[[Storm], None]:
    def inject(s: Storm) -> None:
        s.proxies[which].silent = True
        time.sleep(6)  # longer than two heartbeats
        s.proxies[which].silent = False

    inject.__name__ = f"silence_{which}"
    return inject


FAULTS: tuple[Callable[[Storm], None], ...] = (
    kill_pool_children, kill_a_worker, kill_next_process, restart_all_workers, kill_a_client,
    rabbitmq_close_connections, rabbitmq_alarm, rabbitmq_restart, rabbitmq_kill,
    mariadb_kill_connections, mariadb_deadlocks, mariadb_restart, mariadb_kill,
    mongodb_restart, mongodb_kill,
    silence("client"), silence("worker"), silence("mariadb"), silence("mongodb"),
)  # fmt: skip


def _kill(process: psutil.Process) -> None:
    try:
        os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _kill_server(s: Storm, name: str) -> None:
    server = s.stack.server(name)
    for process in server.daemon.family():
        _kill(process)
    time.sleep(0.5)
    server.up()


# --- The reckoning ---------------------------------------------------------------------------------------------------
@dataclass
class Reckoning:
    """The result of a storm. Lost, doubled and unanswered must be 0."""

    fault: str
    times: int
    operations: int = 0
    lost: int = 0
    doubled: int = 0
    unanswered: int = 0
    failed: int = 0
    longest: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.unanswered)


def calm(s: Storm, fault: str, times: int) -> Reckoning:
    """Stop the clients, wait until no event is in flight, and compare."""
    (s.folder / "stop").touch()
    for process in s.clients:
        process.wait(150)
    events = _read(s)
    _wait_for_rest(s)
    found = Reckoning(fault, times, operations=len(events))
    with Client(s.vhost.settings) as client:
        outcomes = _audited(s, events)
        for event_id, event in events.items():
            done = outcomes.get(event_id) == "ok"
            told = event.get("told", "")
            found.longest = max(found.longest, event.get("seconds", 0.0))
            if told == "call_timeout":
                found.unanswered += 1
                found.notes.append(f"unanswered: {event_id}")
            if event["ticket"] and told == "confirmed":
                try:
                    status = client.ticket(event_id).wait(60)
                    told = "ok" if status.state is TicketState.SUCCESS else "failed"
                except BedsError as error:
                    found.unanswered += 1
                    found.notes.append(f"ticket {event_id}: {error!r}")
            found.failed += told not in ("ok", "")
            if told == "ok" and not done:
                found.lost += 1
                found.notes.append(f"lost: {event_id} {event}")
            if told not in IN_DOUBT and told != "ok" and done:
                found.doubled += 1
                found.notes.append(f"told {told}, and done: {event_id}")
        _compare_databases(client, s, events, outcomes, found)
    return found


def _read(s: Storm) -> dict[str, dict[str, Any]]:
    events: dict[str, dict[str, Any]] = {}
    for file in s.folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a client that was killed
            if "event" in row:
                events[row["event"]] = row | {"client": file.stem}
            else:
                events[row["done"]] |= {"told": row["told"], "seconds": row["seconds"]}
    return events


def _wait_for_rest(s: Storm) -> None:
    """Wait until no message is ready or unacknowledged in any queue."""

    def at_rest() -> bool:
        try:
            queues = s.stack.rabbitmq.management("queues/own")
        except OSError:
            return False
        names = {queue["name"]: queue.get("messages", 1) for queue in queues if "." in queue["name"]}
        return len(names) > 8 and not any(n for name, n in names.items() if not name.startswith(("celery", "amq")))

    calm_since = time.monotonic()
    deadline = time.monotonic() + QUIET_SECONDS
    while time.monotonic() - calm_since < 6:  # management's figures are some seconds old
        if not at_rest():
            calm_since = time.monotonic()
        assert time.monotonic() < deadline, "the queues do not come to rest"
        time.sleep(0.5)


def _audited(s: Storm, events: Mapping[str, Any]) -> dict[str, str]:
    dba = load_settings(s.project / "beds.toml").schema_.dba.rec
    assert dba is not None
    with MongoClient[dict[str, Any]](dba.uri.get_secret_value()) as mongo:
        rows = mongo[dba.database].msAudit.find({"parent_id": {"$in": list(events)}}, {"parent_id": 1, "outcome": 1})
        return {row["parent_id"]: row["outcome"] for row in rows}


def _compare_databases(
    client: Client, s: Storm, events: Mapping[str, Any], outcomes: Mapping[str, str], found: Reckoning
) -> None:
    """Each account holds the sum of its executed operations, and each transfer exists once."""

    def one(template: str, record_id: str) -> dict[str, Any]:
        page = client.call("fetch_records", template, {"id": record_id}, using="by_id", timeout=60)
        return page[0]  # type: ignore[index]

    copies: dict[str, int] = {}
    for row in client.template("TransferRows").fetch_all("copies", limit=1000):
        copies[row["id"]] = row["copies"]
    for name in s.names:
        mine = [(e, outcomes.get(i) == "ok") for i, e in events.items() if e["client"] == name]
        deposits = sum(e["amount"] for e, done in mine if done and e["kind"] == "rows")
        moved = sum(e["amount"] for e, done in mine if done and e["kind"] == "transfer")
        wanted = {
            ("AccountRows", f"{name}-a", "balance"): deposits - moved,
            ("AccountRows", f"{name}-b", "balance"): moved,
            ("AccountDocs", f"{name}-a", "amount"): sum(e["amount"] for e, d in mine if d and e["kind"] == "docs"),
        }
        for (template, record_id, column), amount in wanted.items():
            have = one(template, record_id)[column]
            if have != amount:
                found.lost += have < amount
                found.doubled += have > amount
                found.notes.append(f"{template} {record_id}: {have} instead of {amount}")
        for event, done in mine:
            if event["kind"] == "transfer" and copies.get(event["id"], 0) != int(done):
                found.notes.append(f"transfer {event['id']}: {copies.get(event['id'], 0)} instead of {int(done)}")
                found.doubled += copies.get(event["id"], 0) > int(done)
                found.lost += copies.get(event["id"], 0) < int(done)


def run_one(project: Path, stack: Stack, settings: Settings, fault: Callable[[Storm], None], times: int) -> Reckoning:
    """One storm of one fault."""
    folder = project / "storm"
    shutil.rmtree(folder, ignore_errors=True)
    with storm(project, stack, settings, folder) as found:
        time.sleep(2)
        for _ in range(times):
            fault(found)
            time.sleep(random.uniform(0.5, 2.0))
        time.sleep(2)
        return calm(found, fault.__name__, times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="how often each fault is injected")
    parser.add_argument("--fault", action="append", choices=[fault.__name__ for fault in FAULTS], help="only these")
    options = parser.parse_args()
    project = make_project()
    stack = Stack(project / ".beds", PORT_BASE)
    stack.up(lambda line: print(line, file=sys.stderr))
    apply_schema(project)
    settings = load_settings(project / "beds.toml")
    print(
        "| fault | times | operations | lost | doubled | unanswered | told to try again | longest pause (s) |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    clean = True
    for fault in FAULTS:
        if options.fault and fault.__name__ not in options.fault:
            continue
        r = run_one(project, stack, settings, fault, options.times)
        clean = clean and r.is_clean
        cells = (r.fault.replace("_", " "), r.times, r.operations, r.lost, r.doubled, r.unanswered, r.failed)
        print("".join(f"| {cell} " for cell in cells) + f"| {r.longest:.1f} |", flush=True)
        for line in r.notes:
            print(line, file=sys.stderr)
    raise SystemExit(not clean)


if __name__ == "__main__":
    main()

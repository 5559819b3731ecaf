"""Nodes from the command line: three roles on one machine, the doctor, a new project, signals to the supervisor."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from beds.stack.stack import Stack
from tests.conftest import PORT_BASE, OwnVhost, environment, run, wait_for
from tests.http_process import ALL, http_environment

NODE = 'env_file = ".beds/stack.env"\n[node]\nname = "{name}"\nenvironment = "production"\n[services]\n{services}\n'
BEARER = {"Authorization": f"Bearer {ALL}"}
ROLES = {
    "app": ("app_server",),
    "data": ("rec", "rel"),
    "admin": ("admin", "calgon"),
}


def write_role(project: Path, name: str, *services: str) -> Path:
    local = [f"{service} = {{ is_local = true }}" for service in services]
    if "calgon" not in services:
        local.append("calgon = { is_local = false }")
    file = project / f"node-{name}.toml"
    text = NODE.format(name=name, services="\n".join(local))
    if services == ROLES["app"]:
        text = text.partition("\n")[2]  # without the stack's variables: it knows no database
    file.write_text(text)
    return file


def beds(project: Path, role: str, *arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return run(project, "beds", "--config", f"node-{role}.toml", *arguments, env=env)


@contextmanager
def running_node(
    project: Path, role: str, env: Mapping[str, str], *, serving: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """`beds node run` with a role's file, as a process of its own."""
    with (project / f"node-{role}.log").open("ab") as log:
        node = subprocess.Popen(
            ["beds", "--config", f"node-{role}.toml", "node", "run"],
            cwd=project, env=environment(project, **env), stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        if serving:
            wait_for(lambda: beds(project, role, "node", "status", "--ready", env=env).returncode == 0, 60, role)
        yield node
    finally:
        if node.poll() is None:
            node.terminate()
            node.wait(70)


def statuses(project: Path, role: str, env: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    shown = json.loads(beds(project, role, "node", "status", "--json", env=env).stdout)
    return {pool["pool"]: pool for pool in shown["pools"]}


@pytest.mark.timeout(280)
def test_three_nodes_serve_together_and_a_role_is_a_matter_of_its_file(project: Path, own_vhost: OwnVhost) -> None:
    env = own_vhost.env | http_environment(PORT_BASE + 96)
    for name, services in ROLES.items():
        write_role(project, name, *services)
    # Workers first: they declare what a client checks.
    with running_node(project, "data", env), running_node(project, "admin", env), running_node(project, "app", env):
        written = beds(project, "app", "call", "Airlines.create_record", "carrier=Z9", "name=Nodes", env=env)
        assert written.returncode == 0, written.stderr
        read = beds(
            project, "app", "call", "Airlines.fetch_records", "--using", "by_carrier", "carrier=Z9", "--json", env=env
        )
        assert json.loads(read.stdout)["records"] == [{"carrier": "Z9", "name": "Nodes"}]
        assert beds(project, "app", "call", "Airlines.delete_record", "carrier=Z9", env=env).returncode == 0
        ticket = beds(project, "app", "submit", "Notices.fetch_records", "--using", "open", "--json", env=env)
        guid = json.loads(ticket.stdout)["guid"]
        assert beds(project, "app", "ticket", guid, "--wait", env=env).returncode == 0

        def dead() -> set[str]:
            listed = beds(project, "app", "dead", "list", "--limit", "1000", "--json", env=env)
            return {record["dead_id"] for record in json.loads(listed.stdout)["records"]}

        before = dead()
        well = beds(project, "app", "doctor", "--json", env=env)
        checks = {check["name"]: check for check in json.loads(well.stdout)}
        assert well.returncode == 0, checks
        assert "data" in checks["pool rec.read"]["found"]
        assert "after a retry" in checks["pool rel.write"]["found"]
        assert "@admin" in checks["pool calgon"]["found"]
        # The doctor's probes leave nothing behind.
        assert dead() == before

        assert set(statuses(project, "data", env)) == {"rec.read", "rec.write", "rel.read", "rel.write"}
        admin = statuses(project, "admin", env)
        assert set(admin) == {"calgon,operator", "beds.logs,beds.audit,beds.metrics"}
        assert admin["calgon,operator"]["done"] > 0
        assert len(admin["calgon,operator"]["slot_pids"]) == admin["calgon,operator"]["slots"] == 2
        assert set(statuses(project, "app", env)) == {"http"}
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT_BASE + 96}", headers=BEARER, trust_env=False) as web:
            made = web.post("/v1/Airlines", json={"carrier": "Z8", "name": "Over HTTP"})
            assert (made.status_code, made.headers["location"]) == (201, "/v1/Airlines/Z8")
            assert web.delete(made.headers["location"]).status_code == 204
        assert "without a key was refused" in checks["http"]["found"]
        # With a database's address it does not start.
        (project / "node-app.toml").write_text(
            'env_file = ".beds/stack.env"\n' + (project / "node-app.toml").read_text()
        )
        told = beds(project, "app", "node", "check", env=env)
        assert "knows the address of a database" in told.stdout
        write_role(project, "app", *ROLES["app"])

        # A second node of the same name, wherever it runs, does not start.
        twin = project / "twin" / "node-data.toml"
        twin.parent.mkdir(exist_ok=True)
        twin.write_text((project / "node-data.toml").read_text().replace(".beds/stack.env", "../.beds/stack.env"))
        refused = run(project, "beds", "--config", str(twin), "node", "run",
                      env={**env, "BEDS_SCHEMA__PATH": "../schema"})  # fmt: skip
        assert refused.returncode == 78
        assert "another node is named data" in refused.stderr

    # The same three, with MariaDB's service moved to the admin node: two files, two restarts.
    write_role(project, "data", "rec")
    with running_node(project, "data", env), running_node(project, "app", env):
        with running_node(project, "admin", env):
            ill = beds(project, "app", "doctor", "--json", env=env)
            assert ill.returncode == 1
            failed = {check["name"]: check for check in json.loads(ill.stdout) if check["verdict"] == "failed"}
            assert set(failed) == {"pool rel.read", "pool rel.write"}
            assert "start a node" in failed["pool rel.read"]["remedy"]
        write_role(project, "admin", *ROLES["admin"], "rel")
        with running_node(project, "admin", env):
            well = beds(project, "app", "doctor", env=env)
            assert well.returncode == 0, well.stdout
            counted = beds(project, "app", "call", "Airlines.fetch_records", "--using", "count", env=env)
            assert counted.returncode == 0, counted.stderr


@pytest.mark.timeout(120)
def test_a_service_manager_hears_of_it_and_a_second_signal_is_not_needed(
    project: Path, own_vhost: OwnVhost, tmp_path: Path
) -> None:
    """systemd's notify protocol, sent to a socket of the test: ready, watchdog, stopping."""
    write_role(project, "data", "rec")
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)
        env = {**own_vhost.env, "NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "1000000"}
        with running_node(project, "data", env) as node:
            heard: list[bytes] = []
            while b"READY=1" not in heard:
                heard.append(manager.recv(100))
            for _ in range(3):
                assert manager.recv(100) == b"WATCHDOG=1"
            workers = psutil.Process(node.pid).children()
            assert not any("NOTIFY_SOCKET" in worker.environ() for worker in workers)
            node.terminate()
            while (said := manager.recv(100)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1"
            assert node.wait(70) == 0


@pytest.mark.timeout(120)
def test_as_first_process_of_a_container_it_reaps_what_lost_its_parent(project: Path, own_vhost: OwnVhost) -> None:
    """In a pid namespace of its own, where the kernel gives orphans to process 1."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us make a pid namespace (unshare, as root)")
    write_role(project, "data", "rec")
    env = own_vhost.env
    with (project / "node-data.log").open("ab") as log:
        outer = subprocess.Popen(
            [*unshare, "beds", "--config", "node-data.toml", "node", "run"],
            cwd=project, env=environment(project, **env), stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_for(lambda: all(p["state"] == "ready" for p in _noted(project)) and _noted(project), 60, "the node")
        (first,) = psutil.Process(outer.pid).children()
        parents = first.children()
        orphans = [child for parent in parents for child in parent.children()]
        assert orphans
        for parent in parents:
            parent.kill()
        # Their slots, now children of process 1, end as well, and no zombie remains.
        _, alive = psutil.wait_procs(orphans, timeout=30)
        assert not alive
        wait_for(lambda: all(p["restarts"] == 1 and p["state"] == "ready" for p in _noted(project)), 60, "new workers")
        assert not [c for c in first.children(recursive=True) if c.status() == psutil.STATUS_ZOMBIE]
        first.send_signal(signal.SIGTERM)
        assert outer.wait(70) == 0
    finally:
        with suppress(ProcessLookupError):
            outer.kill()


def _noted(project: Path) -> list[dict[str, Any]]:
    try:
        pools: list[dict[str, Any]] = json.loads((project / ".beds" / "run" / "data.json").read_text())["pools"]
    except OSError:
        return []
    return pools


@pytest.mark.timeout(120)
def test_flower_is_a_service_behind_a_password(project: Path, own_vhost: OwnVhost, stack: Stack) -> None:
    write_role(project, "watch", "rec", "flower")
    port = PORT_BASE + 555
    api = stack.plan.flower_environment()["FLOWER_BROKER_API"]
    env = {
        **own_vhost.env, "BEDS_FLOWER__PORT": str(port), "BEDS_FLOWER__BASIC_AUTH": "op:s3cret-flower",
        "BEDS_FLOWER__BROKER_API": api,
    }  # fmt: skip
    with running_node(project, "watch", env) as node:
        wait_for(lambda: _flower(port, "/") != 0, 30, "Flower")
        assert _flower(port, "/") == 401
        assert _flower(port, "/", "op:s3cret-flower") == 200
        wait_for(lambda: "rec.write" in _page(port, "/broker", "op:s3cret-flower"), 60, "the queues on its page")
        # No command line contains its secrets, because every user of the machine can read command lines.
        lines = [" ".join(p.cmdline()) for p in psutil.Process(node.pid).children(recursive=True)]
        assert not any("s3cret" in line for line in lines)
    assert "s3cret" not in (project / "node-watch.log").read_text()


def _request(port: int, path: str, user: str = "") -> urllib.request.Request:
    headers = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    return urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)


def _flower(port: int, path: str, user: str = "") -> int:
    try:
        with urllib.request.urlopen(_request(port, path, user), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _page(port: int, path: str, user: str) -> str:
    with urllib.request.urlopen(_request(port, path, user), timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.timeout(280)
def test_a_new_project_runs_with_two_commands(tmp_path: Path, stack: Stack) -> None:
    made = run(tmp_path, "beds", "init", "library")
    assert made.returncode == 0, made.stderr
    library = tmp_path / "library"
    again = run(tmp_path, "beds", "init", "library")
    assert again.returncode == 78
    assert "not empty" in again.stderr
    try:
        up = run(library, "beds", "up", "--port-base", str(PORT_BASE + 2000), seconds=180)
        assert up.returncode == 0, up.stderr
        # The commands of its README.
        commands = (library / "README.md").read_text().split("```")[1].splitlines()
        for line in commands:
            if line.startswith("beds call"):
                done = run(library, "bash", "-c", line)
                assert done.returncode == 0, (line, done.stderr)
        assert (
            "Pride and Prejudice"
            in run(library, "beds", "call", "Books.fetch_records", "--using", "titled", "title=Pride").stdout
        )
        refused = run(library, "beds", "call", "Books.delete_record", "isbn=9780141439518")
        assert refused.returncode == 1
        assert "there are copies left" in refused.stderr
        tested = run(library, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
        assert "3 passed" in tested.stdout, tested.stdout
        doctor = run(library, "beds", "doctor")
        assert doctor.returncode == 0, doctor.stdout
        check = run(library, "beds", "node", "check")
        assert check.returncode == 0, check.stdout
    finally:
        run(library, "beds", "down", "--wipe")
    assert not (library / ".beds").exists()

"""The command line."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from beds.adapters.mariadb.session import connect
from beds.client.client import Client
from beds.config import Settings, load_settings
from beds.node.daemon import node_daemon, port_is_free
from beds.stack.stack import Stack
from tests.conftest import PORT_BASE, ROOT, OwnVhost, environment, run, running_worker, wait_for

STANDARD_PORTS = (5672, 15672, 25672, 4369, 3306, 27017)


def beds(project: Path, *arguments: str, **options):  # type: ignore[no-untyped-def]
    return run(project, "beds", *arguments, **options)


@pytest.mark.parametrize("command", [[], ["call"], ["submit"], ["schema", "apply"], ["stack", "up"], ["node", "run"]])
def test_every_command_has_help(project: Path, command: list[str]) -> None:
    done = beds(project, *command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_a_record_from_the_command_line(project: Path, workers: None) -> None:
    assert (
        beds(project, "call", "SampleRows.create_record", "id=cli", "whole=5", "moment=2013-07-01T12:00").returncode
        == 0
    )
    shown = beds(project, "call", "SampleRows.fetch_records", "--using", "by_id", "id=cli")
    assert "2013-07-01 12:00:00+00:00" in shown.stdout
    assert "1 record" in shown.stdout
    as_json = json.loads(
        beds(project, "call", "SampleRows.fetch_records", "--using", "by_id", "id=cli", "--json").stdout
    )
    assert as_json["records"][0]["whole"] == 5
    by_data = beds(project, "call", "SampleRows.update_record", "--data", "-", input='{"id": "cli", "whole": 6}')
    assert by_data.returncode == 0, by_data.stderr
    guid = beds(project, "submit", "SampleRows.delete_record", "id=cli").stdout.strip()
    assert len(guid) == 36


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["SampleRow.fetch_records"], 64, "did you mean 'SampleRows'?"),
        (["SampleRows.fetch"], 64, "did you mean 'fetch_records'?"),
        (["SampleRows.fetch_records", "--using", "by_ident"], 64, "did you mean 'by_id'?"),
        (["SampleRows.create_record", "id=x", "whole=five"], 65, "field whole takes integer"),
        (["SampleRows.create_record", "whole=5"], 65, "lacks the required field id"),
        (["SampleRows.create_record", "id=x", "colour=red"], 65, "unknown field 'colour'"),
        (["SampleRows.delete_record", "id=nobody"], 66, "no record with id = nobody"),
        (["SampleRows.fetch_records", "--using", "sleep", "seconds=5", "--timeout", "1"], 75, "by the deadline"),
        (["SampleRows.create_record", "id=x", "text=forbidden"], 1, "this text is forbidden"),
        (["VersionedRows.delete_record", "id=nobody", "--expected-version", "1"], 1, "and the expected version"),
        (["VersionedRows.delete_record", "id=nobody", "--expected-version", "one"], 65, "takes integer"),
        (["SampleRows.delete_record", "id=nobody", "--expected-version", "1"], 65, "SampleRows has no version"),
        (["SampleRows"], 2, "TEMPLATE.OPERATION"),
        (["SampleRows.create_record", "id"], 2, "FIELD=VALUE"),
        (["SampleRows.delete_record", "id=a", "id=b"], 2, "given twice"),
        (["SampleRows.create_record", "id=x", "moment=yesterday"], 65, "2013-07-01T12:00Z"),
        (["SampleRows.create_record", "--data", "{"], 2, "not JSON"),
        (["SampleRows.create_record", "--data", "@/no/such/file"], 2, "No such file"),
        (["SampleRows.fetch_records", "--using", "by_id", "id=x", "--timeout", "nan"], 65, "timeout"),
    ],
)
def test_an_error_has_words_a_hint_and_an_exit_code(
    project: Path, workers: None, arguments: list[str], code: int, words: str
) -> None:
    done = beds(project, "call", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    if code != 2:
        wire = json.loads(beds(project, "call", *arguments, "--json").stderr)["error"]
        assert wire["message"]


def test_templates_are_listed_and_shown(project: Path) -> None:
    assert "Flights" in beds(project, "template", "list").stdout
    shown = beds(project, "template", "show", "Flights").stdout
    assert "flights_by_route" in shown
    assert json.loads(beds(project, "template", "show", "Weather", "--json").stdout)["template"]["store"] == "rec"


def test_the_topology_is_declared_and_shown(project: Path, stack: Stack) -> None:
    assert beds(project, "topology", "declare").returncode == 0
    assert "rec.write" in {q["queue"] for q in json.loads(beds(project, "topology", "show", "--json").stdout)}


def test_a_wrong_configuration_is_told_without_a_traceback(project: Path, tmp_path: Path) -> None:
    (tmp_path / "beds.toml").write_text("[amqp]\nurll = 'x'\n")
    done = run(tmp_path, "beds", "template", "list")
    assert done.returncode == 78
    assert "did you mean 'url'?" in done.stderr
    worker = run(tmp_path, "celery", "-A", "beds", "worker", "-Q", "rec.read")
    assert worker.returncode == 78
    assert worker.stderr.startswith("beds: ")
    assert "did you mean 'url'?" in worker.stderr
    assert "Traceback" not in worker.stderr


@pytest.mark.timeout(180)
def test_a_worker_by_hand_takes_its_size_from_beds_toml(project: Path, settings: Settings, stack: Stack) -> None:
    def pool_of(name: str) -> dict[str, object]:
        def stats() -> object:
            done = run(project, "celery", "-A", "beds", "inspect", "stats", "-d", name, "--json", "-t", "5")
            return json.loads(done.stdout).get(name) if done.returncode == 0 else None

        return wait_for(stats, 60, name)  # type: ignore[no-any-return]

    size = {"BEDS_BROKERS__REC_WRITE__INSTANCES": "3", "BEDS_BROKERS__REC_WRITE__PREFETCH": "2"}
    with running_worker(project, "rec.write", "-n", "sized@test", env=size):
        stats = pool_of("sized@test")
        assert stats["pool"]["max-concurrency"] == 3  # type: ignore[index]
        assert stats["pool"]["timeouts"] == [24, 30]  # type: ignore[index]
        assert stats["prefetch_count"] == 6
        queues = run(project, "celery", "-A", "beds", "inspect", "active_queues", "-d", "sized@test")
        assert "rec.write" in queues.stdout
        flower_port = PORT_BASE + 555
        flower = subprocess.Popen(
            ["celery", "-A", "beds", "flower", f"--port={flower_port}", "--address=127.0.0.1"],
            cwd=project,
            env=environment(project, FLOWER_BASIC_AUTH="op:s3cret-flower"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:

            def shown() -> bool:
                try:
                    with urllib.request.urlopen(_asked_of_flower(f"{flower_port}/workers"), timeout=5) as page:
                        return b"sized@test" in page.read()
                except OSError:
                    return False

            wait_for(shown, 60, "the worker in Flower")
            with Client(settings) as client:
                guid = client.submit("create_record", "SampleDocs", {"id": f"flower-{time.time_ns()}"}).guid

            def task() -> dict[str, object] | None:
                asked = _asked_of_flower(f"{flower_port}/api/task/info/{guid}")
                with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=5) as answer:
                    found: dict[str, object] = json.load(answer)
                    return found if found["state"] == "SUCCESS" else None
                return None

            seen = wait_for(task, 60, "the ticket in Flower")
            assert seen["name"] == "rec.create_record"
            assert seen["result"] == "'1 affected'"  # and no value
        finally:
            flower.terminate()
            flower.wait(20)
    with running_worker(project, "rec.write", "-n", "forced@test", "-c", "1", env=size):
        assert pool_of("forced@test")["pool"]["max-concurrency"] == 1  # type: ignore[index]


def _asked_of_flower(where: str) -> urllib.request.Request:
    password = base64.b64encode(b"op:s3cret-flower").decode()
    return urllib.request.Request(f"http://127.0.0.1:{where}", headers={"Authorization": f"Basic {password}"})


def test_a_worker_without_a_known_queue_is_refused(project: Path, stack: Stack) -> None:
    done = run(project, "celery", "-A", "beds", "worker", "-Q", "rec.wirte")
    assert done.returncode == 78
    assert "did you mean 'rec.write'?" in done.stderr
    assert "Traceback" not in done.stderr


GATES = {
    "rel/V0901__gates.sql": "CREATE TABLE gates (code VARCHAR(4) NOT NULL PRIMARY KEY, terminal TINYINT NOT NULL);",
    "rel/R__gates.sql": """
CREATE OR REPLACE PROCEDURE gates_create(IN p_code VARCHAR(4), IN p_terminal TINYINT)
INSERT INTO gates (code, terminal) VALUES (p_code, p_terminal);
CREATE OR REPLACE PROCEDURE gates_by_terminal(IN p_terminal TINYINT, IN p_after_code VARCHAR(4), IN p_limit INT)
SELECT code, terminal FROM gates WHERE terminal = p_terminal AND code > COALESCE(p_after_code, '')
 ORDER BY code LIMIT p_limit;
""",
    "templates/gates.toml": """
[template]
name = "Gates"
store = "rel"
key = "code"
[create]
object = "gates_create"
[fetch.by_terminal]
object = "gates_by_terminal"
cursor = ["code"]
[fields.code]
type = "string"
max_length = 4
required = true
[fields.terminal]
type = "integer"
min = 1
required = true
""",
}


@pytest.fixture
def gates(project: Path, stack: Stack) -> Iterator[Path]:
    """The schema change and the template of a seventh domain, taken out of files and database again afterwards."""
    for name, text in GATES.items():
        (project / "schema" / name).write_text(text)
    yield project / "schema"
    for name in GATES:
        (project / "schema" / name).unlink()
    dba = load_settings(project / "beds.toml").schema_.dba.rel
    assert dba
    with contextlib.closing(connect(dba, 30)) as connection, connection.cursor() as cursor:
        for statement in (
            "DROP TABLE IF EXISTS gates",
            "DROP PROCEDURE IF EXISTS gates_create",
            "DROP PROCEDURE IF EXISTS gates_by_terminal",
            "DELETE FROM beds_schema_history WHERE file LIKE '%gates.sql'",
        ):
            cursor.execute(statement)
        connection.commit()


@pytest.mark.timeout(180)
def test_a_seventh_domain_takes_one_schema_change_and_one_template(
    project: Path, gates: Path, own_vhost: OwnVhost
) -> None:
    # Given: the files alone; then the diff names them, apply applies them, and nothing is left.
    assert "V0901__gates.sql" in beds(project, "schema", "diff").stdout
    applied = beds(project, "schema", "apply")
    assert applied.returncode == 0, applied.stderr
    assert beds(project, "schema", "diff").returncode == 0
    assert beds(project, "schema", "check").returncode == 0
    # When: workers that were started after the template was written serve it, in a vhost without older ones.
    with running_worker(project, "rel.read,rel.write", env=own_vhost.env):

        def call(*arguments: str) -> subprocess.CompletedProcess[str]:
            return run(project, "beds", "call", *arguments, "--json", "--timeout", "30", env=own_vhost.env)

        wait_for(lambda: call("Gates.create_record", "code=A1", "terminal=1").returncode == 0, 90, "the first gate")
        # Then: it is served as any other.
        assert call("Gates.create_record", "code=A2", "terminal=1").returncode == 0
        assert call("Gates.create_record", "code=B1", "terminal=2").returncode == 0
        page = json.loads(call("Gates.fetch_records", "--using", "by_terminal", "terminal=1", "--limit", "1").stdout)
        assert [r["code"] for r in page["records"]] == ["A1"]
        rest = call("Gates.fetch_records", "--using", "by_terminal", "terminal=1", "--cursor", page["cursor"])
        assert [r["code"] for r in json.loads(rest.stdout)["records"]] == ["A2"]


def test_the_schema_commands_refuse_what_must_not_be(project: Path, gates: Path) -> None:
    beds(project, "schema", "apply")
    versioned = gates / "rel" / "V0901__gates.sql"
    original = versioned.read_text()
    try:
        versioned.write_text(original + "-- changed")
        done = beds(project, "schema", "apply")
        assert done.returncode == 78
        assert "V0901__gates.sql was changed after it was applied" in done.stderr
    finally:
        versioned.write_text(original)
    routine = gates / "rel" / "R__gates.sql"
    routine.write_text(
        GATES["rel/R__gates.sql"].replace(
            "INSERT INTO gates (code, terminal) VALUES (p_code, p_terminal);",
            "BEGIN INSERT INTO gates (code, terminal) VALUES (p_code, p_terminal); COMMIT; END;",
        )
    )
    done = beds(project, "schema", "apply")
    assert done.returncode == 78
    assert "procedure gates_create commits, runs DDL" in done.stderr
    routine.write_text(
        GATES["rel/R__gates.sql"].replace("p_code VARCHAR(4), IN p_terminal", "p_gate VARCHAR(4), IN p_terminal")
    )
    done = beds(project, "schema", "apply")
    assert done.returncode == 78
    assert "parameter code: is missing" in done.stderr
    routine.write_text(GATES["rel/R__gates.sql"])
    assert beds(project, "schema", "apply").returncode == 0


def test_the_stack_can_be_started_twice_and_tells_its_state(project: Path, stack: Stack) -> None:
    done = beds(project, "stack", "up")
    assert done.stdout.count("was running") == 3
    assert all(s["ready"] for s in json.loads(beds(project, "stack", "status", "--json").stdout))
    assert "export BEDS_AMQP__URL=" in beds(project, "stack", "env").stdout
    assert (project / ".beds" / "stack.env").stat().st_mode & 0o777 == 0o600


def test_a_taken_port_and_a_broken_plan_are_told(tmp_path: Path, stack: Stack) -> None:
    done = run(tmp_path, "beds", "stack", "up", "--port-base", str(PORT_BASE))
    assert done.returncode == 71
    assert "is taken by" in done.stderr
    assert "--port-base" in done.stderr
    # A stack that never began has no ports of its own yet: the hint can be followed.
    assert f"port {PORT_BASE + 672}" in run(tmp_path, "beds", "stack", "up", "--port-base", str(PORT_BASE)).stderr
    assert not (tmp_path / ".beds" / "stack.json").exists()
    assert run(tmp_path, "beds", "stack", "up", "--port-base", "99999").returncode == 71
    assert run(tmp_path, "beds", "stack", "down").returncode == 0
    for damaged in ("{", "[]", '{"base": 24000, "passwords": {}}'):
        (tmp_path / ".beds" / "stack.json").write_text(damaged)
        broken = run(tmp_path, "beds", "stack", "status")
        assert broken.returncode == 71
        assert "Traceback" not in broken.stderr
        assert "down --wipe" in broken.stderr
    assert run(tmp_path, "beds", "stack", "down", "--wipe").returncode == 0
    assert not (tmp_path / ".beds").exists()


@pytest.mark.timeout(180)
def test_a_node_runs_once_and_its_workers_end_with_it(project: Path, stack: Stack) -> None:
    assert beds(project, "node", "status").returncode == 3
    template = project / "schema" / "templates" / "broken.toml"
    template.write_text("x = [")
    broken = beds(project, "node", "start", env={"BEDS_NODE__ENVIRONMENT": "production"})
    template.unlink()
    assert broken.returncode == 71
    assert "broken.toml cannot be read" in broken.stderr
    assert "started" in beds(project, "node", "start").stdout
    try:
        # It returns when the workers serve, not before.
        served = beds(project, "call", "SampleRows.fetch_records", "--using", "by_id", "id=none", "--timeout", "5")
        assert served.returncode == 0, served.stderr
        assert beds(project, "node", "status").returncode == 0
        assert "was running" in beds(project, "node", "start").stdout
        assert "workers: node.ms (pid" in beds(project, "stack", "status").stdout
        twice = beds(project, "node", "run")
        assert twice.returncode == 78
        assert "run already" in twice.stderr
        supervisor = node_daemon(stack.folder, "ms").process()
        assert supervisor
        assert str(supervisor.pid) in twice.stderr
        workers = wait_for(lambda: found if len(found := supervisor.children()) == 7 else None, 30, "the workers")
        # After SIGKILL it cannot stop them itself.
        supervisor.kill()
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
    finally:
        beds(project, "node", "stop")
    assert "workers: none" in beds(project, "stack", "status").stdout


@pytest.mark.timeout(180)
def test_a_killed_server_leaves_nothing_behind(tmp_path: Path, stack: Stack) -> None:
    """The pid file of RabbitMQ names a script; killing only the script leaves the Erlang VM running."""
    own = Stack(tmp_path / ".beds", PORT_BASE + 1000)
    own.up(lambda _line: None)
    try:
        for server in own.servers:
            process = server.daemon.process()
            assert process
            process.kill()
        again = beds(tmp_path, "stack", "up")
        assert again.stdout.count("started") == 3, again.stderr
        rabbit = own.rabbitmq.daemon.process()
        assert rabbit
        rabbit.kill()
    finally:
        stopped = beds(tmp_path, "stack", "down", "--wipe").stdout
    assert "rabbitmq" in stopped
    for server in own.servers:
        for port in server.ports.values():
            assert port_is_free(port), (server.name, port)


@pytest.mark.timeout(300)
def test_a_client_without_drivers_calls_and_submits(project: Path, workers: None, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    assert run(tmp_path, sys.executable, "-m", "venv", str(venv)).returncode == 0
    installed = run(tmp_path, str(venv / "bin" / "pip"), "install", "-q", str(ROOT), seconds=240)
    assert installed.returncode == 0, installed.stderr
    python = str(venv / "bin" / "python")
    for driver in ("pymongo", "MySQLdb"):
        assert run(tmp_path, python, "-c", f"import {driver}").returncode != 0
    code = (
        "import beds\n"
        "print(beds.call('create_record', 'SampleDocs', {'id': 'lean'}).record_id)\n"
        "print(len(beds.call('fetch_records', 'SampleDocs', {'id': 'lean'}, using='by_id')))\n"
        "print(beds.submit('delete_record', 'SampleDocs', 'lean').result().affected)\n"
    )
    done = run(project, python, "-c", code)
    assert done.stdout.split() == ["lean", "1", "1"], done.stderr
    by_cli = run(project, str(venv / "bin" / "beds"), "call", "SampleRows.fetch_records", "--using", "by_id", "id=x")
    assert by_cli.returncode == 0, by_cli.stderr
    without = run(project, str(venv / "bin" / "beds"), "schema", "diff")
    assert without.returncode == 78
    assert "is not installed" in without.stderr


@pytest.mark.timeout(420)
def test_the_demo_loads_everything_through_beds_beside_the_machines_own_servers(tmp_path: Path, stack: Stack) -> None:
    """All standard ports are taken by something else, as on a machine with servers of its own."""
    for name in ("beds.toml", "celeryconfig.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "schema", tmp_path / "schema")
    occupied = []
    for port in STANDARD_PORTS:
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(("127.0.0.1", port))
            own.listen()
        except OSError:
            pass  # a real server uses the port already
        occupied.append(own)
    made = Stack(tmp_path / ".beds", PORT_BASE - 3000)
    try:
        made.plan.save()
        started = time.monotonic()
        done = run(tmp_path, "beds", "demo", "--json", seconds=400)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["counts"] == {
            "Airlines": 16, "Airports": 1458, "Planes": 3322, "Flights": 336_776, "Weather": 26_115,
        }  # fmt: skip
        assert (answer["busiest_routes"][0]["dest"], answer["busiest_routes"][0]["flights"]) == ("LAX", 11262)
        assert answer["worst_delay"]["flight"]["dep_delay"] == 1301
        print(f"demo: {time.monotonic() - started:.0f} s")
        again = run(tmp_path, "beds", "demo", seconds=120)
        assert again.stdout.count("were there already") == 5, again.stderr
    finally:
        for own in occupied:
            own.close()
        stopped = run(tmp_path, "beds", "stack", "down", "--wipe").stdout
    assert "rabbitmq" in stopped
    left = [
        p.info["cmdline"]
        for p in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []


def test_wrong_usage_is_json_for_machines_and_output_fits_any_terminal(project: Path, workers: None) -> None:
    for command in (["call"], ["call", "x"], ["tickets", "--state", "NOPE"], ["call", "SampleRows.x", "--data", "{"]):
        done = run(project, "beds", *command, "--json")
        assert done.returncode == 2
        assert json.loads(done.stderr)["error"]["code"] == "usage"
    run(project, "beds", "call", "SampleRows.create_record", "id=umlaut", "text=M\u00fcller")
    narrow = run(
        project, "beds", "call", "SampleRows.fetch_records", "--using", "by_id", "id=umlaut",
        env={"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert narrow.returncode == 0, narrow.stderr
    assert "M\\xfcller" in narrow.stdout
    piped = run(project, "sh", "-c", "beds template list | true; echo ${PIPESTATUS:-0}")
    assert "Traceback" not in piped.stderr


def test_a_variable_that_means_nothing_is_refused(project: Path) -> None:
    unknown = run(project, "beds", "template", "list", env={"BEDS_NODES__NAME": "x"})
    assert unknown.returncode == 78
    assert "BEDS_NODE" in unknown.stderr
    missing = run(project, "beds", "template", "list", env={"BEDS_ENV_FILE": "/nope"})
    assert missing.returncode == 78

"""Shared by all tests: a project folder, real servers for it, real workers.

The servers have their own ports and data (`.beds/test`), so a developer's stack and data stay unchanged.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
from pydantic import SecretStr
from pymongo import MongoClient

from beds.client.client import Client
from beds.config import Settings, load_settings
from beds.errors import CallTimeout, StackError, TransportError
from beds.schema_tools.apply import changes
from beds.stack.stack import Stack
from beds.transport.rights import definitions, users_of

ROOT = Path(__file__).parent.parent
PARALLEL = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""Which of the processes that share the tests this is; each has servers and a project of its own."""
PORT_BASE = int(os.environ.get("TEST_PORT_BASE", "29000")) - 2900 * PARALLEL
"""Clear of every standard port: 25000 would put RabbitMQ on 25672, and 27000 MongoDB on 27017."""
WORKER_SECONDS = 60.0
ALL_QUEUES = "rec.read,rec.write,rel.read,rel.write,calgon,operator"
JOB_QUEUES = "job.aggregate,job.migrate,job.warehouse"
ADMIN_QUEUES = "beds.logs,beds.audit,beds.metrics"
PROMETHEUS = {"BEDS_METRICS__PROMETHEUS": f"127.0.0.1:{PORT_BASE + 464}", "BEDS_METRICS__INTERVAL": "0.5"}


# Fixed examples in CI; random ones in local runs, where a developer can examine a failure.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    # A developer's own settings must not affect the tests.
    for name in [n for n in os.environ if n.startswith("BEDS_")]:
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run fault tests last: after a storm the shared workers may have ended, and no supervisor restarts them here."""
    # The longest of them first, so that no process runs it alone at the end.
    items.sort(key=lambda item: ("faults" in item.path.parts, item.path.stem != "test_storm"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what a test printed travel between the processes that share the tests: some print half a character."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def project() -> Path:
    return make_project()


def make_project(folder: Path = ROOT / ".beds" / (f"test-{PARALLEL}" if PARALLEL else "test")) -> Path:
    """A project in a folder: the repository's own files, and the test domain beside the sample domain."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "celeryconfig.py", folder)
    # Its nodes start no app server, whose port only one of them could have.
    text = (ROOT / "beds.toml").read_text()
    local = "app_server = { is_local = true }\n"
    assert local in text
    (folder / "beds.toml").write_text(text.replace(local, ""))
    shutil.rmtree(folder / "schema", ignore_errors=True)
    shutil.copytree(ROOT / "schema", folder / "schema")
    shutil.copytree(ROOT / "tests" / "schema", folder / "schema", dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def stack(project: Path) -> Iterator[Stack]:
    """RabbitMQ, MariaDB and MongoDB with the schema applied. Fails in CI where one is missing, skips elsewhere."""
    keep = bool(os.environ.get("KEEP_TEST_STACK"))
    if not keep:
        Stack.down(project / ".beds", wipe=True)
    found = Stack(project / ".beds", PORT_BASE)
    try:
        found.up(lambda _line: None)
    except StackError as error:
        if os.environ.get("CI") or "not installed" not in error.message:
            raise
        pytest.skip(f"{error.message}: `make setup` installs it")
    apply_schema(project)
    yield found
    if not keep:
        Stack.down(project / ".beds", wipe=True)


@pytest.fixture(scope="session")
def settings(project: Path, stack: Stack) -> Settings:
    return load_settings(project / "beds.toml")


@pytest.fixture(scope="module")
def database(settings: Settings, stack: Stack) -> Iterator[Any]:
    """MongoDB as the DBA, to read data without BEDS."""
    dba = settings.schema_.dba.rec
    assert dba is not None
    with MongoClient[dict[str, Any]](dba.uri.get_secret_value(), tz_aware=True) as mongo:
        yield mongo[dba.database]


@pytest.fixture(scope="session")
def workers(project: Path, settings: Settings) -> Iterator[None]:
    """One worker for all queues, and one for the records of beds.logs, both started by `celery -A beds worker`."""
    with running_worker(project, ALL_QUEUES), running_worker(project, ADMIN_QUEUES, env=PROMETHEUS):
        with Client(settings) as client:
            wait_until_served(client)
        yield


@pytest.fixture
def client(settings: Settings, workers: None) -> Iterator[Client]:
    with Client(settings) as found:
        yield found


@pytest.fixture
def operator(settings: Settings, workers: None) -> Iterator[Client]:
    with Client(settings, operator=True) as found:
        yield found


@dataclass(frozen=True)
class OwnVhost:
    """A vhost that no other worker serves: settings for a client, and the environment for a command."""

    settings: Settings
    env: dict[str, str]


@pytest.fixture
def own_vhost(settings: Settings, stack: Stack) -> Iterator[OwnVhost]:
    with vhost_of_its_own(settings, stack) as found:
        yield found


@contextmanager
def vhost_of_its_own(settings: Settings, stack: Stack) -> Iterator[OwnVhost]:
    wanted = definitions("own", users_of(settings.amqp))
    file = stack.folder / "own.json"
    file.write_text(json.dumps({name: part for name, part in wanted.items() if name != "users"}))
    stack.rabbitmq.control("import_definitions", str(file))
    assert settings.amqp.operator_url is not None
    operator_url = settings.amqp.operator_url.get_secret_value().removesuffix("beds") + "own"
    client_url = settings.amqp.client_url.removesuffix("beds") + "own"
    worker_url = settings.amqp.broker_url.removesuffix("beds") + "own"
    assert settings.amqp.http_url is not None
    http_url = settings.amqp.http_url.get_secret_value().removesuffix("beds") + "own"
    urls = {"url": client_url, "worker_url": worker_url, "operator_url": operator_url, "http_url": http_url}
    amqp = settings.amqp.model_copy(update={name: SecretStr(url) for name, url in urls.items()})
    yield OwnVhost(
        settings.model_copy(update={"amqp": amqp}),
        # No endpoint: the session's own admin worker has its port.
        {f"BEDS_AMQP__{name.upper()}": url for name, url in urls.items()} | {"BEDS_METRICS__PROMETHEUS": ""},
    )
    stack.rabbitmq.control("delete_vhost", "own")


def apply_schema(project: Path) -> None:
    with changes(load_settings(project / "beds.toml")) as pending:
        for change in pending:
            change.apply()


def environment(project: Path, **more: str) -> dict[str, str]:
    """The environment of a command in the project: without outer `BEDS_…` variables, the venv's programs first."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BEDS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}"
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", **more}


def run(
    project: Path, *command: str, seconds: float = 120, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A command as a person types it in the project folder."""
    return subprocess.run(
        command,
        cwd=project,
        env=environment(project, **(env or {})),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        **options,
    )


@contextmanager
def running_worker(
    project: Path, queues: str, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`celery -A beds worker -Q …` as a process of its own; its output goes to `worker.log` in the project."""
    command = ["celery", "-A", "beds", "worker", "-Q", queues, "-l", "INFO", *options]
    with (project / "worker.log").open("ab") as log:
        worker = subprocess.Popen(
            command, cwd=project, env=environment(project, **(env or {})), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield worker
    finally:
        if worker.poll() is None:
            worker.terminate()
            try:
                worker.wait(40)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def workers_in(project: Path) -> list[psutil.Process]:
    """The processes of the workers that serve all queues of this project."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if ALL_QUEUES in (process.info["cmdline"] or []) and process.info["cwd"] == str(project)
    ]


def wait_until_served(client: Client, templates: Sequence[str] = ("SampleRows", "SampleDocs")) -> None:
    deadline = time.monotonic() + WORKER_SECONDS
    for template in templates:
        while True:
            try:
                client.call("fetch_records", template, {"id": "none"}, using="by_id", timeout=5)
                break
            except (CallTimeout, TransportError):
                assert time.monotonic() < deadline, "the workers do not answer"


def wait_for(condition: Any, seconds: float = 30.0, what: str = "the condition") -> Any:
    """The first true value of `condition()`; fails after a deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:.0f} s"
        time.sleep(0.1)
    return value

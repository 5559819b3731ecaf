"""docker/ with an engine: skipped, with the reason, where there is none.

pytest -m docker
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amqp
import kombu
import pytest
from docker.errors import DockerException
from pydantic import SecretStr
from pytest_celery import RabbitMQContainer
from pytest_docker_tools import container, fetch

import docker
from beds.config.local_key import sha256_of
from beds.config.sections import Amqp
from beds.transport.topology import Topology, declare
from beds.wire.routes import DEAD
from tests.conftest import ROOT, wait_for

pytestmark = pytest.mark.docker
HTTP_KEY = "key-of-this-test"


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    if not Path("/var/run/docker.sock").exists() and not os.environ.get("DOCKER_HOST"):
        pytest.skip("no Docker engine here: neither /var/run/docker.sock nor DOCKER_HOST")
    try:
        with contextlib.closing(docker.from_env(timeout=5)) as client:
            client.ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers here: {error}")


rabbitmq4_image = fetch(repository="rabbitmq:4-management")
rabbitmq4 = container(
    image="{rabbitmq4_image.id}",
    ports=RabbitMQContainer.ports(),
    environment=RabbitMQContainer.initial_env(),
    wrapper_class=RabbitMQContainer,
    timeout=120,
)


def test_rabbitmq_4_takes_the_topology_and_drops_no_dead_event(rabbitmq4: RabbitMQContainer) -> None:
    """RabbitMQ 4 refuses some of 3.x's features, and drops a message after 20 deliveries if its queue has no limit."""
    settings = Amqp(url=SecretStr(rabbitmq4.celeryconfig["host_url"]))
    topology = Topology.from_settings(settings)
    with kombu.Connection(settings.client_url) as connection:
        declare(topology, connection)
        declare(topology, connection)
        channel = connection.default_channel
        channel.basic_publish(amqp.Message("x"), DEAD, DEAD)
        for _ in range(30):
            message = wait_for(lambda: channel.basic_get(DEAD), 10, "the message")
            channel.basic_reject(message.delivery_tag, requeue=True)
        assert wait_for(lambda: channel.basic_get(DEAD), 10, "it, after thirty deliveries")


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The whole of compose.yaml, built from this repository, with generated passwords."""
    folder = tmp_path_factory.mktemp("compose") / "beds"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".venv", ".beds", ".git", ".*_cache", "build"))
    env_file = folder / "docker" / ".env"
    example = (folder / "docker" / ".env.example").read_text()
    example = example.replace("HTTP_KEY_SHA256=change-me", f"HTTP_KEY_SHA256={sha256_of(HTTP_KEY)}")
    env_file.write_text(example.replace("change-me", "s3cret-of-this-test"))

    def run(*arguments: str, seconds: int = 120) -> subprocess.CompletedProcess[str]:
        command = ["docker", "compose", "-p", "beds-test", "-f", "docker/compose.yaml", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)

    up = run("up", "--build", "--wait", "--wait-timeout", "300", seconds=1200)
    try:
        assert up.returncode == 0, up.stderr[-4000:]
        yield run
    finally:
        run("down", "--volumes")


@pytest.mark.timeout(1500)
def test_all_roles_serve_and_the_doctor_finds_nothing(compose: Any) -> None:
    well = compose("exec", "app", "beds", "doctor")
    assert well.returncode == 0, well.stdout
    for role in ("app", "data", "admin"):
        checked = compose("exec", role, "beds", "node", "check")
        assert checked.returncode == 0, checked.stdout
    who = compose("exec", "data", "id", "-un")
    assert who.stdout.strip() == "beds"


@pytest.mark.timeout(300)
def test_the_app_server_is_reached_from_the_host(compose: Any) -> None:
    request = urllib.request.Request("http://127.0.0.1:8080/v1", headers={"Authorization": f"Bearer {HTTP_KEY}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert json.load(reply)["actor"] == "key:shop"


@pytest.mark.timeout(300)
def test_a_container_drains(compose: Any) -> None:
    stopped = compose("stop", "data", seconds=100)
    assert stopped.returncode == 0
    code = compose("ps", "-a", "--format", "{{.ExitCode}}", "data")
    assert code.stdout.strip() == "0"

"""docker/ without a container engine: checks on the files alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from beds.config import load_settings
from beds.config.http import host_and_port
from beds.config.settings import Settings
from beds.node.checks import _http
from beds.node.supervisor import DRAIN_SECONDS
from beds.stack.mariadb import MariaDB
from beds.stack.plan import Plan
from beds.wire.routes import QUEUES, local_pools
from tests.conftest import ROOT

DOCKER = ROOT / "docker"
ROLES = sorted(file.stem for file in (DOCKER / "nodes").glob("*.toml"))


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that compose.yaml sets for a node and that its file requires."""
    monkeypatch.setenv("BEDS_FLOWER__BASIC_AUTH", "admin:x")


def parsed(name: str) -> dict[str, Any]:
    """A file with its anchors and merges resolved. Variables stay unresolved, so no engine is needed."""
    found: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return found


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return parsed("compose.yaml")


def clustered(compose: dict[str, Any]) -> dict[str, Any]:
    """The services of both files: of a service in both, each key of the second comes before the first's."""
    services = dict(compose["services"])
    for name, service in parsed("compose.cluster.yaml")["services"].items():
        merged = dict(services.get(name, {}))
        for key, value in service.items():
            merged[key] = {**merged[key], **value} if isinstance(merged.get(key), dict) else value
        services[name] = merged
    return services


def test_there_is_one_service_for_each_role_and_together_they_serve_every_queue(
    compose: dict[str, Any],
) -> None:
    served: list[str] = []
    for role in ROLES:
        service = compose["services"][role]
        assert service["environment"]["BEDS_CONFIG"] == f"/app/{role}.toml"
        settings = load_settings(DOCKER / "nodes" / f"{role}.toml")
        assert settings.node.is_production
        served += [queue for pool in local_pools(settings.services) for queue in pool]
    assert sorted(served) == sorted(QUEUES)


def test_the_client_role_is_told_no_secret_of_a_database(compose: dict[str, Any]) -> None:
    variables = {"BEDS_CONFIG", "BEDS_AMQP__URL", "BEDS_HTTP__KEY", "BEDS_HTTP__ROLES"}
    assert set(compose["services"]["app"]["environment"]) == variables
    settings = load_settings(DOCKER / "nodes" / "app.toml")
    assert settings.databases.rec is None
    assert settings.databases.rel is None


def test_the_app_server_has_a_caller_and_is_published_on_loopback_only(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = compose["services"]["app"]
    for name in ("BEDS_HTTP__KEY", "BEDS_HTTP__ROLES"):
        monkeypatch.setenv(name, service["environment"][name].replace("${HTTP_KEY_SHA256:?}", "0" * 64))
    settings = load_settings(DOCKER / "nodes" / "app.toml")
    _, port = host_and_port(settings.http.listen)
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    checks = list(_http(settings, runs_here=True))
    assert {check.name for check in checks} == {"http callers", "http", "http admin"}
    assert [check for check in checks if check.failed] == []


def test_containers_of_one_role_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "4f2a1c.local")
    assert load_settings(DOCKER / "nodes" / "data.toml").node.name == "data-4f2a1c"


def test_every_variable_is_a_known_key(compose: dict[str, Any]) -> None:
    variables = {n for s in compose["services"].values() for n in s.get("environment", {}) if n.startswith("BEDS_")}
    assert variables
    for variable in variables - {"BEDS_CONFIG"}:
        model: Any = Settings
        for part in variable.removeprefix("BEDS_").lower().split("__"):
            field = model.model_fields.get(part) or model.model_fields[part + "_"]
            annotation = field.annotation
            model = next((a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")), annotation)


def test_no_file_holds_a_password_and_all_are_named() -> None:
    text = "".join((DOCKER / name).read_text() for name in ("compose.yaml", "compose.cluster.yaml"))
    used = set(re.findall(r"\$\{(\w+):\?\}", text))
    example = dict(line.split("=", 1) for line in (DOCKER / ".env.example").read_text().splitlines() if "=" in line)
    assert used == set(example)
    assert set(example.values()) == {"change-me"}


def test_what_is_mounted_and_copied_exists(compose: dict[str, Any]) -> None:
    files = [parsed("compose.cluster.yaml"), compose]
    volumes = [v for file in files for s in file["services"].values() for v in s.get("volumes", [])]
    known = {name for file in files for name in file["volumes"]}
    for volume in volumes:
        source = volume.split(":")[0]
        assert (DOCKER / source).is_file() if source.startswith("./") else source in known, volume
    text = (DOCKER / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_what_others_wait_for_is_there(compose: dict[str, Any]) -> None:
    for services in (compose["services"], clustered(compose)):
        for name, service in services.items():
            for other, condition in service.get("depends_on", {}).items():
                assert other in services, name
                if condition["condition"] == "service_healthy":
                    assert "test" in services[other]["healthcheck"]


def test_the_image_runs_as_nobody_special_and_says_how_it_is() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert re.search(r"^USER beds$", text, re.MULTILINE)
    assert text.count("FROM ") == 2
    assert re.search(r'^HEALTHCHECK .*CMD \["beds", "node", "status", "--ready"\]$', text, re.MULTILINE)


def test_a_container_has_time_to_drain(compose: dict[str, Any]) -> None:
    assert int(compose["services"]["data"]["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS


def test_the_cluster_has_a_majority_and_nodes_name_every_member(compose: dict[str, Any]) -> None:
    services = clustered(compose)
    hosts = {each["hostname"] for name, each in services.items() if name.startswith("rabbitmq")}
    conf = (DOCKER / "rabbitmq-cluster.conf").read_text()
    assert set(re.findall(r"rabbit@(\S+)", conf)) == hosts
    assert len(hosts) == 3
    amqp, rec = ["rabbitmq", "rabbitmq-2", "rabbitmq-3"], ["mongodb", "mongodb-2", "mongodb-3"]
    for role in ("data", "admin"):
        environment = services[role]["environment"]
        for variable in ("BEDS_AMQP__URL", "BEDS_AMQP__WORKER_URL"):
            assert _hosts_of(environment[variable]) == amqp
        assert _hosts_of(environment["BEDS_DATABASES__REC__URI"]) == rec
        assert json.loads(environment["BEDS_DATABASES__REL__HOSTS"]) == ["mariadb:3306", "mariadb-2:3306"]
    for variable in ("BEDS_AMQP__OPERATOR_URL", "BEDS_FLOWER__BROKER_API"):
        assert _hosts_of(services["admin"]["environment"][variable]) == amqp
    assert _hosts_of(services["app"]["environment"]["BEDS_AMQP__URL"]) == amqp
    assert services["mongodb-users"]["environment"]["MEMBERS"] == ",".join(f"{host}:27017" for host in rec)
    assert {*amqp, *rec, "mariadb", "mariadb-2"} <= services.keys()


def _hosts_of(url: str) -> list[str]:
    """The hosts of a URL with a variable for its password."""
    return [each.split(":")[0] for each in url.rpartition("@")[2].split("/")[0].split(",")]


def test_the_stack_and_the_containers_replicate_mariadb_alike() -> None:
    conf = (DOCKER / "mariadb-cluster.cnf").read_text()
    said = {line.replace(" ", "") for line in conf.splitlines() if line and line[0] not in "[#"}
    plan = Plan(Path("/nowhere"), is_cluster=True)
    started = {option.removeprefix("--") for option in MariaDB(plan)._replication()}
    assert started - {"server-id=1", "read-only"} == said - {
        "character-set-server=utf8mb4",
        "collation-server=utf8mb4_bin",
    }


@pytest.mark.parametrize("conf", ["rabbitmq.conf", "rabbitmq-cluster.conf"])
def test_rabbitmqs_patience_is_what_beds_toml_says(conf: str) -> None:
    said = re.search(r"^consumer_timeout = (\d+)$", (DOCKER / conf).read_text(), re.MULTILINE)
    assert said
    for role in ROLES:
        assert load_settings(DOCKER / "nodes" / f"{role}.toml").amqp.consumer_timeout * 1000 == int(said[1])


def test_the_scaffold_is_the_same_files() -> None:
    scaffold = ROOT / "beds" / "scaffold"
    links = [file for file in scaffold.rglob("*") if file.is_symlink()]
    assert {link.resolve() for link in links} >= {file for file in DOCKER.rglob("*") if file.is_file()}
    assert all(isinstance(link, Path) and link.exists() for link in links)

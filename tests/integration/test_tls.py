"""TLS to all three servers with generated certificates: other connections are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from beds.client.client import Client
from beds.config import Settings, load_settings
from beds.domain.event import Operation, Store
from beds.errors import BrokerUnavailable, StoreUnavailable
from beds.services.dispatch import execute
from beds.services.factory import AdapterFactory
from beds.stack.stack import Stack
from beds.templates.registry import TemplateRegistry
from tests.conftest import PORT_BASE, ROOT, apply_schema, run, running_worker, wait_until_served

BASE = PORT_BASE - 5000
OTHER_NAME = "127.1"
"""The same address in another form, which the certificate does not contain."""


@dataclass(frozen=True)
class Secured:
    """A project whose servers use TLS and require a client certificate."""

    project: Path
    stack: Stack
    pem: dict[str, Path]
    env: dict[str, str]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    pem = {
        name: folder / f"{name}.pem"
        for name in ("ca", "other_ca", "server", "server_key", "server_both", "client", "client_key", "client_both")
    }
    authority.cert_pem.write_to_path(pem["ca"])
    other.cert_pem.write_to_path(pem["other_ca"])
    # The name in the certificate must be the one in the URL: 127.0.0.1, not localhost.
    for role, identity in (("server", "127.0.0.1"), ("client", "beds@example.org")):
        made = authority.issue_cert(identity)
        made.cert_chain_pems[0].write_to_path(pem[role])
        made.private_key_pem.write_to_path(pem[f"{role}_key"])
        made.private_key_and_cert_chain_pem.write_to_path(pem[f"{role}_both"])
        for name in (role, f"{role}_key", f"{role}_both"):
            pem[name].chmod(0o600)
    (folder / "beds.toml").write_text((ROOT / "beds.toml").read_text())
    (folder / "celeryconfig.py").write_text((ROOT / "celeryconfig.py").read_text())
    run(folder, "cp", "-r", str(ROOT / "tests" / "schema"), str(folder / "schema"))
    stack = Stack(folder / ".beds", BASE)
    tls_port = stack.plan.amqp_port + 5
    rabbitmq, mariadb, mongodb = (stack.server(name) for name in ("rabbitmq", "mariadb", "mongodb"))
    rabbitmq.more = (
        f"listeners.ssl.1 = 127.0.0.1:{tls_port}", f"ssl_options.cacertfile = {pem['ca']}",
        f"ssl_options.certfile = {pem['server']}", f"ssl_options.keyfile = {pem['server_key']}",
        "ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = true",
    )  # fmt: skip
    mariadb.more = (f"--ssl-ca={pem['ca']}", f"--ssl-cert={pem['server']}", f"--ssl-key={pem['server_key']}")
    mongodb.more = (
        "--tlsMode=preferTLS", f"--tlsCertificateKeyFile={pem['server_both']}", f"--tlsCAFile={pem['ca']}",
        "--tlsAllowConnectionsWithoutCertificates",
    )  # fmt: skip
    stack.up(lambda _line: None)
    plan = stack.plan
    url = {user: plan.amqp_url(user).replace("amqp://", "amqps://").replace(str(plan.amqp_port), str(tls_port))
           for user in ("app", "worker")}  # fmt: skip
    client = {"CA": pem["ca"], "CERTIFICATE": pem["client"], "KEY": pem["client_key"]}
    env = {
        "BEDS_AMQP__URL": url["app"],
        "BEDS_AMQP__WORKER_URL": url["worker"],
        **{f"BEDS_AMQP__TLS__{name}": str(file) for name, file in client.items()},
        **{f"BEDS_DATABASES__REL__TLS__{name}": str(file) for name, file in client.items()},
        "BEDS_DATABASES__REC__TLS__CA": str(pem["ca"]),
        "BEDS_DATABASES__REC__TLS__CERTIFICATE": str(pem["client_both"]),
        "BEDS_METRICS__PROMETHEUS": "",
    }
    apply_schema(folder)
    yield Secured(folder, stack, pem, env)
    Stack.down(stack.folder, wipe=True)


@pytest.fixture
def settings(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return settings_with(secured, monkeypatch)


def settings_with(secured: Secured, monkeypatch: pytest.MonkeyPatch, **more: str) -> Settings:
    for name, value in (secured.env | more).items():
        monkeypatch.setenv(name, value)
    return load_settings(secured.project / "beds.toml")


@pytest.mark.timeout(180)
def test_all_of_it_over_tls(secured: Secured, settings: Settings) -> None:
    queues = "rec.read,rec.write,rel.read,rel.write,calgon"
    with running_worker(secured.project, queues, env=secured.env), Client(settings) as client:
        wait_until_served(client)
        for template in ("SampleRows", "SampleDocs"):
            client.call("create_record", template, {"id": "tls", "text": "x" * 150})
            client.submit("delete_record", template, "tls").result(timeout=30)
        checked = run(secured.project, "beds", "node", "check", env=secured.env)
        assert checked.returncode == 0, checked.stdout
        answered = run(secured.project, "celery", "-A", "beds", "status", env=secured.env)
        assert "1 node online" in answered.stdout, answered.stderr
        # What they say of their connections, not what we believe of them.
        listed = secured.stack.rabbitmq.control("list_connections", "user", "ssl")
        users = {tuple(line.split()) for line in listed.splitlines() if line.startswith("beds_")}
        assert users == {("beds_app", "true"), ("beds_worker", "true")}


def fetch(settings: Settings, store: Store, template: str) -> None:
    registry = TemplateRegistry.from_folder(settings.schema_path)
    factory = AdapterFactory(settings, registry)
    try:
        execute(factory, store, Operation.FETCH, template, {"using": "by_id", "args": {"id": "x"}})
    finally:
        factory.close()


@pytest.mark.parametrize(
    ("store", "template", "variable"),
    [
        (Store.REL, "SampleRows", "BEDS_DATABASES__REL__TLS__CA"),
        (Store.REC, "SampleDocs", "BEDS_DATABASES__REC__TLS__CA"),
    ],
)
def test_a_database_whose_authority_is_not_trusted_is_refused(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, store: Store, template: str, variable: str
) -> None:
    fetch(settings_with(secured, monkeypatch), store, template)
    with pytest.raises(StoreUnavailable):
        fetch(settings_with(secured, monkeypatch, **{variable: str(secured.pem["other_ca"])}), store, template)


@pytest.mark.parametrize(
    ("store", "template", "variable"),
    [(Store.REL, "SampleRows", "BEDS_DATABASES__REL__HOST"), (Store.REC, "SampleDocs", "BEDS_DATABASES__REC__URI")],
)
def test_a_database_under_another_name_is_refused(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, store: Store, template: str, variable: str
) -> None:
    """The same machine, by a name that is not in the certificate."""
    if store is Store.REL:
        fetch_under = {variable: OTHER_NAME}
    else:
        uri = secured.stack.plan.mongo_uri("broker").replace("127.0.0.1", OTHER_NAME)
        fetch_under = {variable: uri.replace("replicaSet=rs0", "directConnection=true")}
    with pytest.raises(StoreUnavailable):
        fetch(settings_with(secured, monkeypatch, **fetch_under), store, template)


@pytest.mark.parametrize("fault", ["authority", "name", "no certificate of the client's own"])
def test_rabbitmq_is_refused_and_refuses(secured: Secured, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    more = {}
    if fault == "authority":
        more["BEDS_AMQP__TLS__CA"] = str(secured.pem["other_ca"])
    elif fault == "name":
        more["BEDS_AMQP__URL"] = secured.env["BEDS_AMQP__URL"].replace("127.0.0.1", OTHER_NAME)
    found = settings_with(secured, monkeypatch, **more)
    if fault.startswith("no"):
        tls = found.amqp.tls
        assert tls
        bare = tls.model_copy(update={"certificate": None, "key": None})
        found = found.model_copy(update={"amqp": found.amqp.model_copy(update={"tls": bare})})
    with Client(found) as client, pytest.raises(BrokerUnavailable, match=r"(?i)certificate|EOF"):
        client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=3)


def test_a_worker_does_not_start_without_trust(secured: Secured) -> None:
    env = {**secured.env, "BEDS_AMQP__TLS__CA": str(secured.pem["other_ca"])}
    checked = run(secured.project, "beds", "node", "check", env=env)
    assert checked.returncode == 78
    assert "certificate" in checked.stdout.lower()

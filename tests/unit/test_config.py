"""beds.toml: reading, overrides, and refused values."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest

from beds.config import Settings, load_settings
from beds.errors import ConfigurationError
from beds.transport.topology import Topology
from beds.wire.routes import DEAD, EVENT_QUEUES, EVENTS, LATER
from tests.conftest import ROOT

SECRET = "hunter2"


def write(folder: Path, text: str) -> Path:
    file = folder / "beds.toml"
    file.write_text(text)
    return file


def test_the_repositorys_own_file_is_valid() -> None:
    settings = load_settings(ROOT / "beds.toml")
    assert settings.broker("rec.write").instances == 2
    assert settings.schema_path == ROOT / "schema"


def test_a_missing_file_means_defaults_unless_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings().node.name == "ms"
    with pytest.raises(ConfigurationError, match="no configuration file"):
        load_settings(tmp_path / "other.toml")


def test_the_environment_wins_over_the_env_file_and_that_over_the_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local.env").write_text("BEDS_NODE__NAME=from-env-file\nBEDS_AMQP__HEARTBEAT=7\n")
    file = write(tmp_path, 'env_file = "local.env"\n[node]\nname = "from-toml"\n[amqp]\nheartbeat = 5\n')
    assert load_settings(file).node.name == "from-env-file"
    monkeypatch.setenv("BEDS_NODE__NAME", "from-environment")
    monkeypatch.setenv("BEDS_BROKERS__REC_READ__INSTANCES", "9")
    settings = load_settings(file)
    assert (settings.node.name, settings.amqp.heartbeat) == ("from-environment", 7)
    assert settings.broker("rec.read").instances == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[nod]\nname='x'", "unknown key nod; did you mean 'node'?"),
        ("[amqp]\nqueue_typ='x'", "unknown key amqp.queue_typ; did you mean 'queue_type'?"),
        ("[databases.rel]\nhots='x'", "unknown key databases.rel.hots; did you mean 'hosts'?"),
        ("[brokers]\n'rec.raed'={instances=1}", "unknown broker 'rec.raed'; did you mean 'rec.read'?"),
        ("[brokers]\n'rec.read'={instancs=1}", "did you mean 'instances'?"),
        ("[schema]\npaht='x'", "did you mean 'path'?"),
        ("[brokers]\n'rec.read'={instances=0}", "brokers.rec.read.instances"),
        ("[brokers]\n'rec.read'={time_limit=5, soft_time_limit=5}", "soft_time_limit must be below time_limit"),
        ("[brokers]\n'rec.read'={time_limit=1800}", "well below amqp.consumer_timeout"),
        ("[node]\nname='a.b'", "node.name"),
        ("not toml at all", "cannot be read"),
        ("[brokers]\n'rec.read'=5", "brokers.rec.read"),
        (f"x = {'[' * 500}{']' * 500}", "cannot be read"),
        (f"x = {'9' * 5000}", "cannot be read"),
        ('[databases.rel]\nhost = "a\\u0000b"', "databases.rel.host"),
        ("env_file = 5", "env_file: takes the path of a file"),
        ("_env_file = 'x'", "unknown key _env_file; did you mean 'env_file'?"),
        ("_case_sensitive = true", "unknown key _case_sensitive"),
        ("root = '/x'", "unknown key root"),
        (f"[amqp]\nurl='amqp://u:{SECRET}@h:99999/'", "amqp.url: 'h:99999' is no host"),
        (f"[amqp]\nurl='amqp://u:{SECRET}@[::1/'", "amqp.url: not a URL"),
        (f"[amqp]\nworker_url='redis://u:{SECRET}@h/'", "amqp.worker_url: not a URL"),
        (f"[databases.rec]\nuri='{SECRET}'", "databases.rec.uri: not a URL"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(tmp_path, text))
    assert words in str(caught.value)
    assert "beds.toml" in str(caught.value)
    assert SECRET not in f"{caught.value!r}{caught.value.to_wire()}"


def test_a_variable_that_is_no_section_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDS_AMQP", SECRET)
    with pytest.raises(ConfigurationError, match="BEDS_AMQP: a whole section is written as JSON") as caught:
        load_settings(write(tmp_path, ""))
    assert SECRET not in str(caught.value)


def test_secrets_never_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        f"[amqp]\nurl='amqp://u:{SECRET}@h/'\nworker_url='amqp://w:{SECRET}@h/'\n"
        f"[databases.rec]\nuri='mongodb://u:{SECRET}@h/'\n[databases.rel]\npassword='{SECRET}'\n"
    )
    settings = load_settings(write(tmp_path, text))
    logging.getLogger().warning("%r %s", settings, settings)
    shown = f"{settings!r}{settings}{settings.model_dump()}{settings.model_dump_json()}{caplog.text}"
    assert SECRET not in shown
    assert SECRET in settings.amqp.client_url
    # A wrong value beside a secret, and a secret of the wrong type.
    for wrong in (text + "prot=1", text + "port='x'", f"[databases.rel]\npassword=['{SECRET}']"):
        with pytest.raises(ConfigurationError) as caught:
            load_settings(write(tmp_path, wrong))
        assert SECRET not in f"{caught.value!r}{caught.value}{caught.value.detail}"


def test_settings_are_frozen_and_picklable() -> None:
    settings = load_settings(ROOT / "beds.toml")
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(ValueError, match="frozen"):
        settings.node = settings.node  # type: ignore[misc]


def test_trap_16_every_queue_dead_letters_and_counts_deliveries() -> None:
    topology = Topology.from_settings(Settings().amqp)
    for queue in topology.queues:
        if queue.name == DEAD:
            assert "x-dead-letter-exchange" not in queue.arguments
            continue
        if queue.name == LATER:
            assert queue.arguments["x-dead-letter-exchange"] == EVENTS
            assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
            continue
        assert queue.arguments["x-dead-letter-exchange"] == DEAD
        assert queue.arguments["x-delivery-limit"] == 5
    assert {q.name for q in topology.queues} >= set(EVENT_QUEUES)


def test_classic_queues_have_no_delivery_limit(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "[amqp]\nqueue_type='classic'"))
    queues = [queue for queue in Topology.from_settings(settings.amqp).queues if queue.name != LATER]
    assert all("x-delivery-limit" not in queue.arguments for queue in queues)


def test_the_queue_of_a_store_s_reads_may_have_another_type(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, '[amqp]\nqueue_types = { "rel.read" = "classic" }'))
    topology = Topology.from_settings(settings.amqp)
    assert topology.queue("rel.read").arguments["x-queue-type"] == "classic"
    assert "x-delivery-limit" not in topology.queue("rel.read").arguments
    assert topology.queue("rec.read").arguments["x-queue-type"] == "quorum"
    with pytest.raises(ConfigurationError, match=r"unknown name in amqp\.queue_types 'rel\.write'"):
        load_settings(write(tmp_path, '[amqp]\nqueue_types = { "rel.write" = "classic" }'))


def test_tls_files_are_read_from_beside_beds_toml_and_named_when_they_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "beds.toml"
    file.write_text('[amqp]\nurl = "amqps://a:b@h/v"\nworker_url = "amqps://c:d@h/v"\n[amqp.tls]\nca = "ca.pem"\n')
    with pytest.raises(ConfigurationError, match=r"amqp\.tls\.ca.*ca\.pem cannot be read"):
        load_settings(file)
    (tmp_path / "ca.pem").write_text("x")
    tls = load_settings(file).amqp.tls
    assert tls
    assert tls.ca == tmp_path / "ca.pem"
    file.write_text(file.read_text().replace("amqps://c", "amqp://c"))
    with pytest.raises(ConfigurationError, match="begin with amqps"):
        load_settings(file)
    file.write_text(
        '[databases.rec]\nuri = "mongodb://h/"\n[databases.rec.tls]\ncertificate = "ca.pem"\nkey = "ca.pem"\n'
    )
    with pytest.raises(ConfigurationError, match="append it there"):
        load_settings(file)

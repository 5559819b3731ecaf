"""Checks without a server: conversion of values, unsafe settings, and double counting."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import select
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr, ValidationError
from pymongo.errors import OperationFailure

from beds.adapters.bound import BoundAdapter
from beds.adapters.ledger import LedgerEntry
from beds.adapters.memory import MemoryStore
from beds.adapters.mongo.errors import translate
from beds.adapters.mongo.health import rights_on, surplus
from beds.adapters.mongo.stored_commands import fill, parse
from beds.adapters.store import Outcome, harmless, is_harmless
from beds.client.aio import AsyncClient
from beds.client.client import Client
from beds.config import Settings
from beds.config.sections import Flower, RecDatabase, Retry
from beds.domain.event import Event, Operation, RecordKind, Store
from beds.domain.histogram import BOUNDS_MS
from beds.domain.identity import uuid7
from beds.domain.lineage import Lineage
from beds.domain.ticket import TicketState, TicketStatus
from beds.domain.trace import OK, DatabaseCall, Trace
from beds.errors import (
    BedsError,
    BrokerUnavailable,
    ConfigurationError,
    MalformedEvent,
    StoreUnavailable,
    UnknownTicket,
    WrongType,
)
from beds.node.pool import FLOWER, pools_of
from beds.services.dead import DeadMessage
from beds.services.execution import Delivery
from beds.services.metrics import Meter
from beds.services.tickets import TicketStore
from beds.templates.registry import TemplateRegistry
from beds.testing import MemoryFactory
from beds.transport.pending import Pending
from beds.transport.rights import users_of
from beds.wire.header import EventHeader
from beds.wire.message import to_message, with_encoded_body
from beds.wire.reply import encode_reply
from beds.wire.routes import EVENTS, LOGS, ROUTES
from beds.worker import operator as operators
from beds.worker.frames import UNREADABLE, _readable_arguments, readable_properties
from beds.worker.prometheus import CONNECTIONS, PrometheusCollector
from beds.worker.telemetry import Telemetry
from beds.worker.validation import check
from tests.conftest import ROOT, run, wait_for
from tests.unit.test_rights import AMQP
from tests.unit.test_validation import GUID, message

DELAYED = "0." * 28


@pytest.fixture(scope="module")
def registry() -> TemplateRegistry:
    return TemplateRegistry.from_folder(ROOT / "schema")


# --- 1 and 2: dead letters and the operator's verbs -----------------------------------------------------------------


def test_1_only_the_latest_death_counts() -> None:
    lie = {"queue": "rec.write", "reason": "expired"}
    dead = DeadMessage(b"", {"x-death": [{"queue": "calgon", "reason": "rejected"}, lie]}, {})
    assert (dead.death.queue, dead.death.reason) == ("calgon", "rejected")


def test_2_the_operator_is_somebody_else() -> None:
    with pytest.raises(ConfigurationError, match="operator"):
        users_of(AMQP.model_copy(update={"operator_url": SecretStr("amqp://app:x@h/v")}))


@pytest.mark.parametrize("verb", ["cancel", "replay", "discard"])
def test_2_no_audit_no_effect(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ takes no audit record; whatever the order was, nothing came of it."""
    dead = {"dead_id": "d", "headers": "{}", "user": "somebody", "guid": GUID}
    app = Mock()
    app.settings.node.name, app.settings.node.environment = "ms", "development"
    app.tickets.owners_of.return_value = ["somebody"]
    app.dead.replay.side_effect = lambda _id, _by, publish: publish(dead)
    app.telemetry.confirm.side_effect = ConnectionError
    publish_again, cancel = Mock(), Mock()
    monkeypatch.setattr(operators, "app", app)
    monkeypatch.setattr(operators, "publish_again", publish_again)
    monkeypatch.setattr(operators, "cancel", cancel)
    trace = Trace(Lineage.root("ms", "development"), "operator")
    with pytest.raises(ConnectionError):
        operators._VERBS[verb](operators.Order(trace, verb, {"guid": GUID, "ids": ["d"]}))
    for effect in (cancel, publish_again, app.tickets.reopen, app.tickets.end, app.dead.discard):
        assert not effect.called


# --- 3 to 5: owners and keys ----------------------------------------------------------------------------------------


def test_3_a_digest_names_all_four() -> None:
    asked: dict[str, Any] = {"operation": Operation.CREATE, "template": "T", "body": {"payload": {"id": 1}}}
    others: list[dict[str, Any]] = [
        {"user": "somebody else"}, {"operation": Operation.UPDATE}, {"template": "U"}, {"body": {"payload": {"id": 2}}},
    ]  # fmt: skip
    lineage = Lineage.root("ms", "development")

    def digest(**more: Any) -> str:
        return LedgerEntry.of(Trace(lineage, **({"user": "somebody"} | asked | more))).digest

    assert digest() == digest()
    assert len({digest(), *(digest(**more) for more in others)}) == 1 + len(others)


class _Shipper:
    """Takes records, and sends none."""

    def __init__(self, *_: object) -> None:
        self.taken: list[dict[str, Any]] = []
        self.sources: list[Callable[[], list[dict[str, Any]]]] = []

    def add_source(self, source: Callable[[], list[dict[str, Any]]]) -> None:
        self.sources.append(source)

    def start(self) -> None: ...

    def add(self, _kind: RecordKind, record: dict[str, Any], _rank: int) -> None:
        self.taken.append(record)


@pytest.fixture
def told(registry: TemplateRegistry, monkeypatch: pytest.MonkeyPatch) -> tuple[Telemetry, _Shipper]:
    """What a worker tells, and where it goes."""
    monkeypatch.setattr("beds.worker.telemetry.Shipper", _Shipper)
    telemetry = Telemetry(Settings(), registry)
    return telemetry, telemetry.shipper  # type: ignore[return-value]


def _read() -> tuple[Delivery, Trace]:
    """A fetch of somebody's that was carried out."""
    lineage = Lineage.root("ms", "development")
    header = EventHeader(lineage, lineage.event_id)
    delivery = Delivery(lineage.guid, "rel.fetch_records", ROUTES["rel.fetch_records"], header, "somebody", "rel.read")
    return delivery, Trace(lineage, "somebody", operation=Operation.FETCH, template="Airlines")


def test_3_calls_have_an_owner(told: tuple[Telemetry, _Shipper]) -> None:
    telemetry, shipper = told
    delivery, trace = _read()
    trace.note(DatabaseCall("airlines_by_carrier", "rel", time.time(), 0.001, 1, OK))
    telemetry.ended(delivery, trace, OK, None)
    assert [(record["kind"], record["user"]) for record in shipper.taken] == [
        ("event", "somebody"), ("call", "somebody"),
    ]  # fmt: skip


def _event(key: str = "rel.write", user: Any = "somebody", **headers: Any) -> Any:
    return message(
        {"task": "rel.create_record", "id": GUID, "lang": "py"} | headers,
        {"correlation_id": GUID, "user_id": user},
        [[], {}, {}],
        key,
    )


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (_event(user=None), "user_id"),
        (_event(user=""), "user_id"),
        (_event(eta="2999-01-01T00:00:00+00:00"), "eta"),
        (_event(key=f"{DELAYED}rel.write"), "eta"),
        (_event(**{UNREADABLE: "UnicodeDecodeError"}), "properties"),
    ],
)
def test_3_5_7_what_is_no_clients_to_send_is_refused(event: Any, field: str) -> None:
    with pytest.raises(MalformedEvent) as caught:
        check(event, 10_000, "workers")
    assert caught.value.detail["field"] == field


def test_5_a_worker_may_delay() -> None:
    check(_event(key=f"{DELAYED}rel.write", user="workers", eta="2999-01-01T00:00:00+00:00"), 10_000, "workers")


def test_2_5_a_clients_topics_are_whole_keys() -> None:
    keys = dict(users_of(AMQP)[0].rights.topics)
    for key in ("operator", f"{DELAYED}rec.write", "rec.write.x", "job.aggregate", ""):
        assert not re.search(keys[EVENTS], key), key
    for key in ("log.x", "log.\ufffd", "log.info.x", "audit", "lineage", "x.log.info"):
        assert not re.search(keys[LOGS], key), key


# --- 6: operators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["$in", "$nin", "$all"])
@pytest.mark.parametrize("evil", [{"$elemMatch": {"a": 1}}, {"$regex": "^a"}, {"$where": "1"}, {"$eq": 1}])
@pytest.mark.parametrize("whole", [True, False])
def test_6_a_value_in_a_list_becomes_no_operator(operator: str, evil: Any, whole: bool) -> None:
    operand = {"$param": "p"} if whole else [{"$param": "p"}]
    source = {
        "name": "docs_by", "kind": "find", "params": {"p": {"bsonType": "array" if whole else "object"}},
        "command": {"find": "docs", "filter": {"f": {operator: operand}}},
    }  # fmt: skip
    target = parse(source)
    with pytest.raises(WrongType) as caught:
        fill(target, {"p": [evil] if whole else evil})
    assert caught.value.detail["field"] == "p"
    harmless = {"a": [{"b": 1}]}
    filled = fill(target, {"p": [harmless] if whole else harmless})
    assert filled["filter"]["f"][operator] == [harmless]


# --- 7 to 11: what must survive anything ----------------------------------------------------------------------------


def test_7_what_can_be_read_is_kept() -> None:
    table = b"\x02idS" + struct.pack(">I", 3) + b"abc" + b"\x02taS" + struct.pack(">I", 1) + b"\xff"
    flags = struct.pack(">H", 0x2000 | 0x0400 | 0x0010)  # headers, correlation_id, user_id
    found = readable_properties(flags + struct.pack(">I", len(table)) + table + b"\x02\xff\xfe" + b"\x03bob")
    assert found["user_id"] == "bob"
    assert found["correlation_id"] == "\ufffd\ufffd"
    assert found["application_headers"]["id"] == "abc"


def test_7_a_key_that_is_no_utf8_is_read() -> None:
    values, _ = _readable_arguments("sLbss", b"\x01t" + bytes(8) + b"\x00" + b"\x01e" + b"\x02\xff\xfe", 0)
    assert values == ["t", 0, False, "e", "\ufffd\ufffd"]


def test_9_an_unknown_ticket_is_answered_at_once(registry: TemplateRegistry) -> None:
    """Waiting for its acceptance is the client's: here it would hold a slot."""
    tickets = TicketStore(MemoryFactory(registry), 3600)
    took = []
    for _ in range(5):
        begun = time.monotonic()
        with pytest.raises(UnknownTicket):
            tickets.status("somebody", str(uuid7()))
        took.append(time.monotonic() - begun)
    assert min(took) < 0.2  # whatever else the machine does


@pytest.mark.parametrize("code", [91, 112, 189])
@pytest.mark.parametrize("label", ["UnknownTransactionCommitResult", "RetryableWriteError"])
def test_11_a_commit_in_doubt_is_so_whatever_the_code(code: int, label: str) -> None:
    assert not is_harmless(translate(OperationFailure("x", code, {"errorLabels": [label]})))


class _Flaky(MemoryStore):
    """A store that fails twice before it does what it is asked."""

    def fail(self, error: StoreUnavailable) -> None:
        self.error, self.asked = error, 0

    def execute(self, *arguments: Any, **options: Any) -> Outcome:
        self.asked += 1
        if self.asked < 3:
            raise self.error
        return super().execute(*arguments, **options)


def test_11_a_transient_error_is_retried(registry: TemplateRegistry) -> None:
    """A write outside of any event, which nothing else makes happen once."""
    store = _Flaky(registry["Airlines"])
    adapter = BoundAdapter(registry["Airlines"], store, Retry(deadline=60, first_delay=0.01), refresh=float("inf"))
    store.fail(harmless(StoreUnavailable("a deadlock")))
    assert adapter.create_record({"carrier": "ZZ", "name": "Zed"}).record_id == "ZZ"
    assert store.asked == 3
    store.fail(StoreUnavailable("the connection was lost"))
    with pytest.raises(StoreUnavailable):
        adapter.create_record({"carrier": "YY", "name": "Why"})
    assert store.asked == 1, "it may have written"


# --- 13: clients ----------------------------------------------------------------------------------------------------


class _Answers:
    """A transport whose workers answer each question with one status."""

    is_ready = True

    def __init__(self, status: TicketStatus, lost: int = 0) -> None:
        self._status = status
        self._lost = lost
        self.asked = 0

    def send(self, event: Event, deadline: float) -> Pending:
        self.asked += 1
        if self.asked <= self._lost:
            raise BrokerUnavailable("the connection to RabbitMQ was lost")
        pending = Pending(event)
        pending.answer(encode_reply(event.lineage.guid, self._status))
        return pending

    def send_now(self, event: Event) -> Pending | None:
        return None

    def why_late(self, pending: Pending, what: str) -> BedsError:
        raise NotImplementedError

    def close(self) -> None: ...


def test_13_a_final_failure_that_could_be_repeated_is_final_all_the_same() -> None:
    error = StoreUnavailable("MariaDB is away")
    outcome = {"status": "FAILURE", "result": {"beds": error.to_wire()}}
    guid = str(uuid7())
    status = TicketStatus(guid=guid, event_id=f"a.b.{guid}", state=TicketState.FAILURE, summary="", result=outcome)
    answers = _Answers(status)
    client = Client(Settings(), transport=answers)
    with pytest.raises(StoreUnavailable, match="MariaDB is away"):
        client.ticket(guid).result(30)
    assert answers.asked == 1


def _pending() -> TicketStatus:
    guid = str(uuid7())
    return TicketStatus(guid=guid, event_id=f"a.b.{guid}", state=TicketState.PENDING, summary="")


def test_13_ask_repeats() -> None:
    answers = _Answers(status := _pending(), lost=1)
    told = Client(Settings(), transport=answers).ask("status", {"guid": status.guid}, timeout=30)
    assert told["guid"] == status.guid
    assert answers.asked == 2


def test_13_aio_repeats() -> None:
    answers = _Answers(status := _pending(), lost=1)
    client = AsyncClient(Client(Settings(), transport=answers))
    told = asyncio.run(client.ask("status", {"guid": status.guid}, timeout=30))
    assert told["guid"] == status.guid
    assert answers.asked == 2


# --- 15 and 16: what people and machines see, and what is counted ----------------------------------------------------


def test_15_no_flower_without_a_password(project: Path) -> None:
    services = {"flower": {"is_local": True}}
    assert not pools_of(Settings.model_validate({"services": services}))
    with_password = Settings.model_validate({"services": services, "flower": {"basic_auth": "a:b"}})
    assert [pool.name for pool in pools_of(with_password)] == [FLOWER]
    started = run(project, "celery", "-A", "beds", "flower", seconds=40, env={"BEDS_FLOWER__BASIC_AUTH": ""})
    assert started.returncode == 78
    assert "Flower has no password" in started.stderr


def test_15_flowers_open_api_is_off() -> None:
    assert Flower(basic_auth=SecretStr("a:b")).environment["FLOWER_UNAUTHENTICATED_API"] == "0"


def test_15_no_value_in_an_event() -> None:
    """Its headers are what workers tell every monitor."""
    body = {"payload": {"id": "canary"}}
    event = Event.of_operation(Store.REL, Operation.CREATE, "T", body, Lineage.root("ms", "development"))
    sent = to_message(with_encoded_body(event, 10_000), "somebody")
    assert b"canary" in sent.body
    assert "canary" not in repr(sent.properties)


@pytest.mark.parametrize(
    "option",
    ["tls=false", "ssl=false", "tlsInsecure=true", "tlsAllowInvalidCertificates=true", "TLS=False",
     "tlsAllowInvalidHostnames=true", "tlsDisableOCSPEndpointCheck=true"],
)  # fmt: skip
def test_16_no_option_of_the_uri_undoes_tls(option: str) -> None:
    with pytest.raises(ValidationError, match="would undo TLS"):
        RecDatabase.model_validate({"uri": f"mongodb://u:secret@h/beds?{option}", "tls": {}})


def test_16_a_child_counts_nothing_of_its_parent() -> None:
    meter = Meter("node", "test")
    key = ("rec.read", "fetch_records", "Samples", "ok")
    meter.count(key, 0.001)
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    child = context.Process(target=lambda: told.put(len(meter.drain())))
    child.start()
    assert told.get() == 0
    child.join(30)
    (record,) = meter.drain()
    assert record["count"] == 1


def test_16_a_forked_child_that_counts_first() -> None:
    meter = Meter("node", "test")
    key = ("rec.read", "fetch_records", "Samples", "ok")
    meter.count(key, 0.001)
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def work() -> None:
        meter.count(key, 0.001)
        told.put([record["count"] for record in meter.drain()])

    child = context.Process(target=work)
    child.start()
    assert told.get() == [1]
    child.join(30)


def test_16_a_repeated_end_counts_once(told: tuple[Telemetry, _Shipper]) -> None:
    telemetry, shipper = told
    delivery, trace = _read()
    for _ in range(2):
        telemetry.ended(delivery, trace, OK, None)
    (source,) = shipper.sources
    (record,) = source()
    assert record["count"] == 1


def test_16_a_record_delivered_twice_counts_once() -> None:
    collector = PrometheusCollector()
    record = {"event_id": "x", "meta": {"queue": "q"}, "buckets": [1] * (len(BOUNDS_MS) + 1), "total_ms": 1.0}
    for _ in range(2):
        collector.take([record])
    family, _records = collector.collect()
    (count,) = (sample.value for sample in family.samples if sample.name.endswith("_count"))
    assert count == len(BOUNDS_MS) + 1


@pytest.mark.parametrize("name", ["msAudit", "msLedger"])
def test_16_audit_and_ledger_are_added_to_only(name: str) -> None:
    assert rights_on(name) == ["find", "insert"]
    privilege = {"resource": {"db": "beds", "collection": name}, "actions": ["find", "insert", "update"]}
    assert surplus([privilege], "beds", set())


def test_16_prometheus_takes_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody's time is up meanwhile: beyond the backlog, the kernel itself lets connections wait for seconds.
    monkeypatch.setattr("beds.worker.prometheus._ScrapeHandler.timeout", 120)
    gauges = PrometheusCollector()
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    gauges.serve(f"127.0.0.1:{port}")
    idle = []
    before = threading.active_count()
    try:
        idle = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(CONNECTIONS * 5)]
        wait_for(lambda: len(select.select(idle, [], [], 0.5)[0]) == CONNECTIONS * 4, 30, "the end of those too many")
        assert not any(connection.recv(1) for connection in select.select(idle, [], [], 0)[0])
        assert threading.active_count() - before <= CONNECTIONS
    finally:
        REGISTRY.unregister(gauges)
        for connection in idle:
            connection.close()
    wait_for(lambda: _is_scraped(port), 30, "a free connection")


def _is_scraped(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
            return b"python_info" in page.read()
    except OSError:
        return False  # the server has not seen yet that the others are closed

"""Logs, audit and metrics: stored records, masked values, and the output of the commands."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import amqp
import pytest
from click.testing import CliRunner

from beds.adapters.mongo import stored_commands
from beds.cli.main import cli
from beds.client.client import Client
from beds.config import Settings
from beds.domain.event import Event, Operation, RecordKind
from beds.domain.identity import uuid7
from beds.domain.lineage import Lineage
from beds.domain.reply import Page
from beds.errors import BedsError
from beds.services.factory import AdapterFactory
from beds.services.records import RecordStore
from beds.stack.stack import Stack
from beds.templates.registry import TemplateRegistry
from beds.transport.log_handler import LogHandler
from beds.wire.reply import parse_reply, read_reply
from tests.conftest import PROMETHEUS, environment, run, wait_for


@pytest.fixture
def marked(settings: Settings, workers: None) -> Iterator[tuple[logging.Logger, LogHandler]]:
    """A logger with a unique name, whose records go to msLogs."""
    handler = LogHandler(settings)
    logger = logging.getLogger(f"tests.{uuid7().hex}")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield logger, handler
    logger.removeHandler(handler)
    handler.shipper.close()


def stored(database: Any, logger: str, count: int) -> list[dict[str, Any]]:
    """The records of one logger, in the order of their process, once there are enough."""
    wait_for(lambda: database.msLogs.count_documents({"logger": logger}) >= count, 60, f"{count} records")
    return list(database.msLogs.find({"logger": logger}).sort([("host", 1), ("pid", 1), ("seq", 1)]))


def test_a_log_line_arrives_with_all_that_belongs_to_it(database: Any, marked: Any) -> None:
    logger, _ = marked
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("cannot find %s", "it", extra={"order": 42, "odd": object(), "nan": float("nan"), "$where": 1})
    logger.debug("too little")
    logger.warning("a lone surrogate \udc80, a NUL \0, and much: %s", "x" * 50_000)
    first, second = stored(database, logger.name, 2)
    assert (first["level"], first["levelno"], first["message"]) == ("ERROR", 40, "cannot find 'it'"[:12] + "it")
    assert "KeyError: 'gone'" in first["exception"]
    assert first["extra"]["order"] == 42
    assert first["extra"]["nan"] == "nan"
    assert first["pid"] == os.getpid()
    assert first["expires_at"] - datetime.now(UTC) > timedelta(days=29)
    assert second["seq"] == first["seq"] + 1  # DEBUG lies below [logging] level
    assert len(second["message"]) < 9000
    assert "(50,0" in second["message"]


FLOOD = """
import logging, os, sys
import beds
if sys.argv[3] == "fork":
    logging.getLogger("early").addHandler(handler := beds.LogHandler())
    logging.getLogger("early").error("before the fork")
    if os.fork():
        os.wait()
        sys.exit(0)
else:
    handler = beds.LogHandler()
logger = logging.getLogger(sys.argv[1])
logger.setLevel(logging.INFO)
logger.addHandler(handler)
for noisy in ("amqp", "kombu", "pymongo", "beds.transport.shipper"):
    logging.getLogger(noisy).addHandler(handler)
    logging.getLogger(noisy).setLevel(logging.DEBUG)
for n in range(int(sys.argv[2])):
    logger.info("line %d", n)
"""


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_trap_14_a_handler_flushes_at_exit_survives_a_fork_and_never_feeds_itself(
    database: Any, project: Path, workers: None, how: str
) -> None:
    name = f"tests.{uuid7().hex}"
    done = run(project, sys.executable, "-W", "ignore", "-c", FLOOD, name, "2000", how)
    assert done.returncode == 0, done.stderr
    records = stored(database, name, 2000)
    assert [record["message"] for record in records] == [f"line {n}" for n in range(2000)]
    (pid,) = {record["pid"] for record in records}
    assert [record["seq"] for record in records] == list(range(1, 2001))
    assert database.msLogs.count_documents({"pid": pid}) == 2000, "what sends records was recorded, too"


@pytest.fixture
def store(settings: Settings, workers: None) -> Iterator[RecordStore]:
    with closing(AdapterFactory(settings, TemplateRegistry.from_folder(settings.schema_path))) as factory:
        yield RecordStore(factory, 30)


def test_records_are_written_once_however_often_they_come(database: Any, store: RecordStore) -> None:
    name = f"tests.{uuid7().hex}"
    common = {"node": "n", "env": "e", "host": "h", "pid": 1}
    records = [
        {"event_id": str(uuid7()), "root_id": "r", "parent_id": "", "depth": 0, "at": 1e9, "level": "INFO",
         "levelno": 20, "logger": name, "message": "m", "seq": n}
        for n in range(5)
    ]  # fmt: skip
    store.write(RecordKind.LOG, common, records[:3])
    store.write(RecordKind.LOG, common, records)
    assert database.msLogs.count_documents({"logger": name}) == 5
    bad: tuple[Any, ...] = (5, [], [5], [{}], [records[0] | {"at": "x"}], [records[0] | {"surplus": 1}], records * 2000)
    for wrong in bad:
        try:
            written, refused = store.write(RecordKind.LOG, common, wrong)
        except BedsError:
            continue
        assert (written, isinstance(refused, BedsError)) == ([], True)


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "log"}, {"kind": "audit", "common": {}, "records": [{}]}, {"records": 5},
        {"kind": "log", "common": 5, "records": [{}]}, {"kind": "log", "common": {}, "records": ["x"]},
    ],
)  # fmt: skip
def test_what_is_no_record_is_turned_away_and_the_admin_worker_goes_on(
    database: Any, settings: Settings, stack: Stack, marked: Any, body: dict[str, Any]
) -> None:
    guid = str(uuid7())
    with amqp.Connection(
        f"127.0.0.1:{stack.plan.amqp_port}", "beds_app", stack.plan.passwords["amqp_app"], virtual_host="beds"
    ) as connection:
        message = amqp.Message(
            json.dumps([[], body, {}]), content_type="application/json", content_encoding="utf-8", correlation_id=guid,
            application_headers={"task": "admin.write_logs", "id": guid, "lang": "py"},
        )  # fmt: skip
        connection.channel().basic_publish(message, "beds.logs", "log.info")
    logger, handler = marked
    logger.info("after it")
    assert handler.shipper.flush(30)
    stored(database, logger.name, 1)


CANARY = f"canary-{uuid7().hex[-12:]}"


def test_a_sensitive_value_appears_nowhere(client: Client, database: Any, project: Path, settings: Settings) -> None:
    log = project / "worker.log"
    begun = log.stat().st_size
    events = []
    for template in ("AccountRows", "AccountDocs"):
        key = uuid7().hex
        pin = f"{CANARY}-{key[-8:]}"
        calls: list[tuple[str, str, Any, str]] = [
            ("create_record", template, {"id": key, "amount": 1, "pin": pin}, ""),
            ("create_record", template, {"id": f"{key}2", "amount": 1, "pin": pin}, ""),  # refused: one pin each
            ("create_record", template, {"id": f"{key}3", "amount": 1, "pin": pin + "x" * 40}, ""),
            ("create_record", template, {"id": f"{key}4", "amount": "much", "pin": [pin]}, ""),
            ("update_record", template, {"id": key, "amount": 5, "pin": pin}, ""),
            ("fetch_records", template, {"pin": pin}, "by_pin"),
            ("fetch_records", template, {"pin": [pin]}, "by_pin"),
        ]
        if template == "AccountRows":
            calls += [("delete_record", "PinRows", pin, ""), ("delete_record", "PinRows", pin, "")]
        for operation, name, data, using in calls:
            try:
                body = {"template": name, **_body(operation, data, using)}
                events.append(_send_unchecked(client, settings, operation, name, body))
            except BedsError as error:
                assert CANARY not in str(error) + repr(error) + json.dumps(error.to_wire())
    wait_for(lambda: database.msAudit.count_documents({"root_id": {"$in": events}}) >= 12, 30, "the audit")
    wait_for(lambda: database.msLineage.count_documents({"root_id": {"$in": events}}) >= 16, 30, "the lineage")
    for name in ("msLogs", "msAudit", "msLineage"):
        found = [d for d in database[name].find() if CANARY in json.dumps(d, default=str)]
        assert not found, name
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(begun)
        assert CANARY not in file.read()
    (created,) = database.msAudit.find({"root_id": events[0]})
    assert json.loads(created["values"])["pin"] == "•••"
    assert json.loads(created["values"])["amount"] == 1
    assert created["fields"] == ["id", "amount", "pin"]
    assert created["user"] == "beds_app"


def _body(operation: str, data: Any, using: str) -> dict[str, Any]:
    if operation == "fetch_records":
        return {"using": using, "args": data, "limit": 10, "cursor": ""}
    return {"record_id": data} if operation == "delete_record" else {"payload": data}


def _send_unchecked(client: Client, settings: Settings, operation: str, name: str, body: dict[str, Any]) -> str:
    """Publish without the client's checks, like a client in another language. Returns the event's id."""
    lineage = Lineage.root(settings.node.name, settings.node.environment)
    event = Event.of_operation(client.templates[name].store, Operation(operation), name, body, lineage)
    pending = client.transport.send(event, time.monotonic() + 30)
    try:
        read_reply(parse_reply(pending.reply.result(30)))
    except BedsError as error:
        assert CANARY not in str(error) + repr(error) + json.dumps(error.to_wire())
    return lineage.event_id


def test_every_write_is_audited_with_who_and_what(client: Client, database: Any, project: Path) -> None:
    key = uuid7().hex
    client.call("create_record", "AccountRows", {"id": key, "amount": 10}, actor="alice")
    client.call("update_record", "AccountRows", {"id": key, "amount": 5}, actor="bob")
    client.call("create_records", "SampleRows", [{"id": f"{key}{n}", "text": "t"} for n in range(3)])
    wait_for(lambda: database.msAudit.count_documents({"record_id": key}) == 2, 30, "the audit")
    shown = run(project, "beds", "audit", "--template", "AccountRows", "--record", key, "--json")
    assert shown.returncode == 0, shown.stderr
    second, first = json.loads(shown.stdout)["records"]
    assert (first["operation"], first["actor"], first["values"]["amount"]) == ("create_record", "alice", 10)
    assert (second["operation"], second["actor"], second["user"]) == ("update_record", "bob", "beds_app")
    table = run(project, "beds", "audit", "--template", "AccountRows", "--since", "5m").stdout
    assert "alice" in table
    bulk = wait_for(lambda: database.msAudit.find_one({"operation": "create_records", "affected": 3}), 30, "the audit")
    assert json.loads(bulk["values"]) == {"records": 3}
    assert run(project, "beds", "audit", "--record", "x").returncode == 2
    assert run(project, "beds", "audit", "--template", "AcountRows").returncode == 64


def test_the_audit_shows_the_newest_first_page_after_page(client: Client, database: Any, project: Path) -> None:
    key = uuid7().hex
    client.call("create_record", "AccountRows", {"id": key, "amount": 0})
    for amount in range(1, 5):
        client.call("update_record", "AccountRows", {"id": key, "amount": amount})
    client.call("create_record", "SampleRows", {"id": key})
    wait_for(lambda: database.msAudit.count_documents({"record_id": key}) == 6, 30, "the audit")
    # Some of equal time: their ids decide.
    at = database.msAudit.find_one({"record_id": key}, sort=[("at", -1)])["at"]
    database.msAudit.update_many({"record_id": key, "template": "AccountRows"}, {"$set": {"at": at}})
    wanted = [r["_id"] for r in database.msAudit.find({"record_id": key}).sort([("at", -1), ("_id", -1)])]
    accounts = [r["_id"] for r in database.msAudit.find({"record_id": key, "template": "AccountRows"}).sort("_id", -1)]

    def pages(*arguments: str) -> list[str]:
        found: list[str] = []
        asked: tuple[str, ...] = ("--limit", "2")
        while True:
            shown = run(project, "beds", "audit", *arguments, *asked, "--json")
            assert shown.returncode == 0, shown.stderr
            page = json.loads(shown.stdout)
            found += [r["event_id"] for r in page["records"] if r["record_id"] == key]
            if not page["cursor"] or len(found) >= len(wanted):
                return found
            since = ("--since", page["since"]) if "since" in page else ()
            asked = ("--limit", "2", "--cursor", page["cursor"], *since)

    assert pages("--template", "AccountRows", "--record", key) == accounts
    assert pages("--template", "AccountRows", "--record", key, "--since", "1h") == accounts
    assert pages()[: len(wanted)] == wanted
    assert pages("--template", "AccountRows", "--since", "2013-01-01")[: len(accounts)] == accounts
    (line,) = run(project, "beds", "audit", "--since", "2h", "--limit", "1").stdout.splitlines()[-1:]
    assert re.fullmatch(r"1 change; next page: --cursor \S+ --since \S+\+00:00", line)
    own = client.call("fetch_records", "msAudit", {"template": "SampleRows"}, using="newest", limit=1)
    assert isinstance(own, Page)
    assert own[0]["record_id"] == key


@pytest.mark.parametrize("name", ["audit_newest", "audit_all_newest", "audit_newest_of_record"])
@pytest.mark.parametrize("template", [None, "AccountRows"])
def test_a_page_of_the_audit_comes_from_an_index_in_its_order(database: Any, name: str, template: str | None) -> None:
    source = database["beds_objects"].find_one({"_id": name})
    target = stored_commands.parse({**source, "name": name})
    values = {p.name: p.default for p in target.params}
    values |= {"user": "beds_app", "template": template, "record_id": "x", "limit": 10}
    command = stored_commands.fill(target, {p.name: values[p.name] for p in target.params})
    plan = json.dumps(database.command("explain", command, verbosity="queryPlanner"), default=str)
    winning = json.dumps(json.loads(plan)["queryPlanner"]["winningPlan"])
    assert "IXSCAN" in winning
    assert "COLLSCAN" not in winning
    assert '"SORT"' not in winning


def test_logs_are_shown_and_followed(marked: Any, database: Any, project: Path) -> None:
    logger, handler = marked
    logger.info("a quiet line of %s", logger.name)
    logger.error("a loud line of %s", logger.name)
    assert handler.shipper.flush(30)
    stored(database, logger.name, 2)
    loud = run(project, "beds", "logs", "--level", "ERROR", "--limit", "1000").stdout
    assert f"a loud line of {logger.name}" in loud
    assert f"a quiet line of {logger.name}" not in loud
    assert logger.name in run(project, "beds", "logs", "--node", "ms", "--json", "--limit", "1000").stdout
    assert run(project, "beds", "logs", "--node", "nobody").stdout == "0 records\n"
    assert run(project, "beds", "logs", "--since", "yesterday").returncode == 2
    follower = subprocess.Popen(
        ["beds", "logs", "--follow", "--level", "INFO"],
        cwd=project, env=environment(project), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert follower.stdout is not None
        logger.info("while it follows")
        for line in follower.stdout:
            if "while it follows" in line:
                break
    finally:
        follower.kill()
        follower.communicate()


def test_top_and_prometheus_tell_what_was_carried_out(client: Client, project: Path) -> None:
    for _ in range(20):
        client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id")
    with pytest.raises(BedsError):
        client.call("create_record", "SampleRows", {"id": "x" * 40, "text": "forbidden"})

    def shown() -> Any:
        done = run(project, "beds", "top", "--json", "--window", "120")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["queues"]
        return found if found["rel.read"]["per_second"] >= 20 / 120 and found["rel.write"]["errors"] else None

    queues = wait_for(shown, 60, "metrics")
    assert queues["rel.read"]["consumers"] == 2  # one of each slot
    assert queues["rel.read"]["p50_ms"] <= queues["rel.read"]["p99_ms"]
    assert "rel.read" in run(project, "beds", "top", "--once").stdout
    address = PROMETHEUS["BEDS_METRICS__PROMETHEUS"]

    def exposed() -> bool:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        lines = [line for line in text.splitlines() if line.startswith("beds_events_seconds_count")]
        return any('queue="rel.read"' in line and 'template="SampleRows"' in line for line in lines) and any(
            'outcome="business_rule"' in line for line in lines
        )

    wait_for(exposed, 60, "the metrics of both in Prometheus' form")


def test_help_of_each_command_has_an_example() -> None:
    for command in ("lineage", "logs", "audit"):
        shown = CliRunner().invoke(cli, [command, "--help"]).output
        assert "Example" in shown


ENDINGS = """
import atexit, logging, multiprocessing, os, sys, time
import beds
logger = logging.getLogger(sys.argv[1])
def work():
    logger.error("from a child")
class Last:
    def __del__(self):
        logger.error("from the very end")
if sys.argv[2] == "del":
    keep = Last()
logger.addHandler(beds.LogHandler())
if sys.argv[2] == "child":
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
"""


@pytest.mark.parametrize("how", ["child", "del"])
def test_a_process_ends_with_its_records_sent_and_never_hangs(
    database: Any, project: Path, workers: None, how: str
) -> None:
    name = f"tests.{uuid7().hex}"
    done = run(project, sys.executable, "-W", "ignore", "-c", ENDINGS, name, how, seconds=60)
    assert done.returncode == 0, done.stderr
    if how == "child":
        (record,) = stored(database, name, 1)
        assert record["message"] == "from a child"


def test_one_odd_record_costs_no_other(marked: Any, database: Any) -> None:
    logger, handler = marked
    logger.info("before")
    odd = logging.makeLogRecord({"msg": "x", "levelno": 2**70, "levelname": "L" * 300, "created": float("nan")})
    for change in ({}, {"name": "n" * 500}, {"created": 1e300}, {"name": None}):
        record = logging.makeLogRecord({**vars(odd), **change})
        handler.handle(record)
    logger.info("after")
    assert handler.shipper.flush(30)
    assert len(stored(database, logger.name, 2)) == 2


def test_a_record_that_is_none_is_left_out_and_the_others_are_kept(database: Any, store: RecordStore) -> None:
    name = f"tests.{uuid7().hex}"
    good = [
        {"event_id": str(uuid7()), "root_id": "r", "parent_id": "", "depth": 0, "at": 9e11, "level": "INFO",
         "levelno": 20, "logger": name, "message": "m", "seq": n}
        for n in range(3)
    ]  # fmt: skip
    common = {"node": "n", "env": "e", "host": "h", "pid": 1}
    written, bad = store.write(RecordKind.LOG, common, [*good, {"surplus": 1}])
    assert len(written) == 3
    assert isinstance(bad, BedsError)
    found = list(database.msLogs.find({"logger": name}))
    assert len(found) == 3
    assert found[0]["at"] < datetime.now(UTC) + timedelta(minutes=5)  # a fast clock hides no record


def test_an_application_cannot_tell_who_did_what(
    client: Client, database: Any, settings: Settings, stack: Stack
) -> None:
    """RabbitMQ refuses the key, and the admin worker refuses the sender."""
    forged = {"kind": "audit", "common": {}, "records": [{
        "event_id": f"forged-{uuid7()}", "root_id": "r", "at": time.time(), "template": "Airlines",
        "operation": "create_record", "outcome": "ok", "user": "alice",
    }]}  # fmt: skip
    for user, exchange_key in (("app", "audit"), ("app", "log.info"), ("admin", "audit")):
        guid = str(uuid7())
        with amqp.Connection(
            f"127.0.0.1:{stack.plan.amqp_port}", f"beds_{user}", stack.plan.passwords[f"amqp_{user}"],
            virtual_host="beds",
        ) as connection:  # fmt: skip
            channel = connection.channel()
            message = amqp.Message(
                json.dumps([[], forged, {}]), content_type="application/json", content_encoding="utf-8",
                correlation_id=guid, user_id=f"beds_{user}",
                application_headers={"task": "admin.write_audit", "id": guid, "lang": "py"},
            )  # fmt: skip
            channel.basic_publish(message, "beds.logs", exchange_key)
    time.sleep(3)
    assert not database.msAudit.count_documents({"user": "alice", "template": "Airlines"})


def test_an_idle_system_tells_nothing_of_itself(client: Client, database: Any) -> None:
    client.call("create_record", "SampleRows", {"id": str(uuid7())})
    time.sleep(4)
    assert database.msLineage.count_documents({"name": {"$regex": "write_"}}) == 0

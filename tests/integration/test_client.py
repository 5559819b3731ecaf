"""The client against real workers: replies, errors, tickets, threads, forks, deadlines."""

from __future__ import annotations

import enum
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import SecretStr

from beds.client.call import Call
from beds.client.client import Client, default_client
from beds.config import Settings
from beds.domain.description import Description
from beds.domain.event import Event, Store
from beds.domain.identity import uuid7
from beds.domain.lineage import Lineage
from beds.domain.reply import Page, Response
from beds.errors import (
    BedsError,
    BodyTooLarge,
    BrokerUnavailable,
    BusinessRule,
    CallTimeout,
    ClientClosed,
    DuplicateKey,
    ForeignKeyViolation,
    IdempotencyConflict,
    InvalidCursor,
    MalformedEvent,
    NotFound,
    OutOfRange,
    PermissionDenied,
    PreconditionFailed,
    ResultTooLarge,
    StoreDenied,
    TooLong,
    UnknownField,
    UnknownOperation,
    UnknownTemplate,
    Unroutable,
    WrongType,
)
from beds.stack.stack import Stack
from beds.wire.message import with_encoded_body
from tests.conftest import environment, run, wait_for

TEMPLATES = ["SampleRows", "SampleDocs"]


@pytest.fixture
def key() -> str:
    return str(uuid7())


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_record_travels_with_all_its_types(client: Client, key: str, template: str) -> None:
    record = {
        "id": key,
        "text": "Größe 😀\x00",
        "whole": -(2**63),
        "ratio": 0.1,
        "price": Decimal("1.1000"),
        "flag": False,
        "moment": datetime(2013, 7, 1, 12, tzinfo=UTC),
        "token": UUID(int=7),
        "raw": b"\x00\xff",
        "extra": {"$gt": "", "a.b": [1]},
        "list": [None, 1],
        "parent": None,
    }
    assert client.call("create_record", template, record) == Response(key, 1)
    page = client.call("fetch_records", template, {"id": key}, using="by_id")
    assert isinstance(page, Page)
    assert page[0] == record


@pytest.mark.parametrize("template", TEMPLATES)
def test_errors_travel_with_their_class(client: Client, key: str, template: str) -> None:
    client.call("create_record", template, {"id": key})
    with pytest.raises(DuplicateKey) as caught:
        client.call("create_record", template, {"id": key})
    assert caught.value.event_id.startswith("ms.development.")
    assert caught.value.detail["field"] == "id"
    with pytest.raises(NotFound):
        client.call("delete_record", template, "nobody")


def test_a_rule_and_a_foreign_key_travel_too(client: Client, key: str) -> None:
    with pytest.raises(BusinessRule, match="this text is forbidden"):
        client.call("create_record", "SampleRows", {"id": key, "text": "forbidden"})
    with pytest.raises(ForeignKeyViolation):
        client.call("create_record", "SampleRows", {"id": key, "parent": "nobody"})


def test_bad_data_is_refused_before_it_is_sent(settings: Settings) -> None:
    unreachable = settings.model_copy(
        update={"amqp": settings.amqp.model_copy(update={"url": SecretStr("amqp://x@127.0.0.1:1/")})}
    )
    with Client(unreachable) as client:
        with pytest.raises(TooLong):
            client.call("create_record", "SampleRows", {"id": "x" * 41})
        with pytest.raises(UnknownOperation, match="did you mean 'create_record'"):
            client.call("create_recrod", "SampleRows", {})
        with pytest.raises(WrongType):
            client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", cursor=5)  # type: ignore[arg-type]
        for timeout in (0, -1, "5", True, float("nan"), 1e9):
            with pytest.raises(OutOfRange):
                client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=timeout)  # type: ignore[arg-type]


class Size(enum.IntEnum):
    SMALL = 5


def test_a_subclass_of_a_plain_type_is_its_value(client: Client, key: str) -> None:
    client.call("create_record", "SampleRows", {"id": key, "whole": Size.SMALL}, timeout=10)
    client.call("create_record", "SampleDocs", {"id": key, "extra": {"size": Size.SMALL}}, timeout=10)
    assert client.template("SampleRows").fetch_records("by_id", {"id": key})[0]["whole"] == 5
    assert client.template("SampleDocs").fetch_records("by_id", {"id": key})[0]["extra"] == {"size": 5}


def test_what_is_no_call_at_all_has_a_typed_error(client: Client) -> None:
    wrong: list[Any] = [["x"], {}, None, 5]
    for each in wrong:
        with pytest.raises(BedsError):
            client.call("create_record", each, {})
        with pytest.raises(BedsError):
            client.call(each, "SampleRows", {})
        with pytest.raises(BedsError):
            client.call_many([each])
    ticket = client.submit("fetch_records", "SampleRows", {"id": "x"}, using="by_id")
    for timeout in (None, "5", float("inf"), 10**400, 0, -1, float("nan"), True):
        with pytest.raises(BedsError):
            ticket.result(timeout)  # type: ignore[arg-type]
    new_york = datetime(9999, 12, 31, 23, 59, 59, tzinfo=ZoneInfo("America/New_York"))
    with pytest.raises(OutOfRange, match="years 1 to 9999"):
        client.call("create_record", "SampleDocs", {"id": "x", "extra": {"at": new_york}})


def test_a_cursor_belongs_to_its_arguments_and_reserved_names_are_none(client: Client, key: str) -> None:
    for number in range(4):
        client.call("create_record", "SampleDocs", {"id": f"{key}{number}", "text": key})
    page = client.template("SampleDocs").fetch_records("by_text", {"text": key}, limit=2)
    assert page.cursor
    assert len(client.template("SampleDocs").fetch_records("by_text", {"text": key}, cursor=page.cursor)) == 2
    with pytest.raises(InvalidCursor, match="other arguments"):
        client.template("SampleDocs").fetch_records("by_text", {"text": "another"}, cursor=page.cursor)
    for reserved in ("after_id", "limit"):
        with pytest.raises(UnknownField):
            client.template("SampleDocs").fetch_records("by_text", {"text": key, reserved: {"$gt": ""}})


def test_a_body_of_ten_megabytes_is_refused(client: Client, key: str) -> None:
    with pytest.raises(BodyTooLarge) as caught:
        client.call("create_record", "SampleDocs", {"id": key, "extra": {"x": "y" * 10_000_000}})
    assert caught.value.detail["field"] == "payload"
    page = client.call("fetch_records", "SampleDocs", {"id": key}, using="by_id")
    assert isinstance(page, Page)
    assert len(page) == 0


def test_a_result_over_the_limit_says_how_to_page(client: Client, key: str) -> None:
    big = {"x": "y" * 400_000}
    for n in range(4):
        client.call("create_record", "SampleDocs", {"id": f"{key[-20:]}-{n}", "text": key, "extra": big})
    with pytest.raises(ResultTooLarge, match="limit="):
        client.call("fetch_records", "SampleDocs", {"text": key}, using="by_text")
    records = client.template("SampleDocs").fetch_all("by_text", {"text": key}, limit=1)
    assert len(list(records)) == 4


def test_many_calls_keep_their_order_and_their_errors(client: Client, key: str) -> None:
    calls = [Call("create_record", "SampleRows", {"id": f"{key[-20:]}-{n % 90}", "whole": n}) for n in range(100)]
    outcomes = client.call_many(calls, return_errors=True, timeout=60)
    assert sum(isinstance(o, DuplicateKey) for o in outcomes) == 10
    reads = [Call("fetch_records", "SampleRows", {"id": f"{key[-20:]}-{n}"}, "by_id") for n in range(90)]
    for n, page in enumerate(client.call_many(reads, timeout=60)):
        assert isinstance(page, Page)
        assert page[0]["whole"] % 90 == n
    with pytest.raises(DuplicateKey):
        client.call_many(calls[:1])


@pytest.mark.parametrize("template", ["VersionedRows", "VersionedDocs"])
def test_of_updates_at_once_that_expect_one_version_one_wins(client: Client, key: str, template: str) -> None:
    bound = client.template(template)
    bound.create_record({"id": key})
    for turn in range(10):
        (before,) = bound.fetch_records("by_id", {"id": key})
        calls = [
            Call("update_record", template, {"id": key, "text": f"{turn}-{n}"}, expected_version=before["revision"])
            for n in range(6)
        ]
        outcomes = client.call_many(calls, return_errors=True, timeout=60)
        (winner,) = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Response)]
        assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 5, outcomes
        (after,) = bound.fetch_records("by_id", {"id": key})
        assert (after["text"], after["revision"]) == (f"{turn}-{winner}", before["revision"] + 1)


@pytest.mark.parametrize("template", ["VersionedRows", "VersionedDocs"])
def test_a_keyed_update_with_a_version_is_answered_as_at_first(client: Client, key: str, template: str) -> None:
    bound = client.template(template)
    bound.create_record({"id": key})
    (record,) = bound.fetch_records("by_id", {"id": key})
    version = record["revision"]

    def update(text: str, expected_version: int, name: str) -> Any:
        change = {"id": key, "text": text}
        return bound.update_record(change, expected_version=expected_version, idempotency_key=f"{key} {name}")

    first = update("mine", version, "first")
    assert update("mine", version, "first") == first
    with pytest.raises(PreconditionFailed) as refused:
        update("theirs", version, "late")
    assert refused.value.detail == {"template": template, "record_id": key, "field": "revision"}
    with pytest.raises(PreconditionFailed):
        update("early", version + 2, "early")
    assert update("again", version + 1, "again").affected == 1
    with pytest.raises(PreconditionFailed):  # it has the expected version by now
        update("early", version + 2, "early")
    with pytest.raises(IdempotencyConflict):
        update("mine", version + 1, "first")
    assert bound.fetch_records("by_id", {"id": key})[0]["text"] == "again"
    assert bound.delete_record(key, expected_version=version + 2).affected == 1


def test_a_ticket_comes_at_once_and_the_outcome_later(client: Client, key: str) -> None:
    ticket = client.submit("create_record", "SampleRows", {"id": key})
    assert ticket.event_id.endswith(ticket.guid)
    assert ticket.result(timeout=30) == Response(key, 1)
    assert ticket.ready
    failing = client.submit("create_record", "SampleRows", {"id": key})
    with pytest.raises(DuplicateKey):
        failing.result(timeout=30)
    tickets = client.submit_many([Call("fetch_records", "SampleRows", {"id": key}, "by_id")] * 20)
    assert len({t.guid for t in tickets}) == 20
    for each in tickets:
        assert len(each.result(timeout=30)) == 1  # type: ignore[arg-type]


def test_an_event_is_carried_out_though_its_submitter_was_killed(project: Path, client: Client, key: str) -> None:
    code = (
        "import os, signal, beds\n"
        f"beds.submit('create_record', 'SampleRows', {{'id': {key!r}, 'text': 'orphan'}})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=environment(project), timeout=60, check=False)
    assert done.returncode == -9
    wait_for(lambda: len(client.call("fetch_records", "SampleRows", {"id": key}, using="by_id")))  # type: ignore[arg-type]


def test_threads_share_one_client(client: Client, key: str) -> None:
    def work(n: int) -> Any:
        record_id = f"{key[-20:]}-{n}"
        client.call("create_record", "SampleDocs", {"id": record_id, "whole": n}, timeout=60)
        return client.call("fetch_records", "SampleDocs", {"id": record_id}, using="by_id", timeout=60)

    with ThreadPoolExecutor(8) as pool:
        for n, page in enumerate(pool.map(work, range(200))):
            assert page[0]["whole"] == n


def _child(client: Client, key: str, pipe: Any) -> None:
    pages = [client.call("fetch_records", "SampleRows", {"id": key}, using="by_id") for _ in range(20)]
    pipe.send([len(page) for page in pages])  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_after_use_works_on_both_sides(client: Client, key: str) -> None:
    client.call("create_record", "SampleRows", {"id": key})
    context = multiprocessing.get_context("fork")
    pipes = []
    for _ in range(3):
        mine, theirs = context.Pipe()
        context.Process(target=_child, args=(client, key, theirs), daemon=True).start()
        pipes.append(mine)
    for _ in range(20):
        assert len(client.call("fetch_records", "SampleRows", {"id": key}, using="by_id")) == 1  # type: ignore[arg-type]
    for pipe in pipes:
        assert pipe.poll(30), "a child did not answer"
        assert pipe.recv() == [1] * 20


def test_no_reply_by_the_deadline_is_a_timeout_that_tells_what_may_happen(client: Client) -> None:
    started = time.monotonic()
    with pytest.raises(CallTimeout) as caught:
        client.call("fetch_records", "SampleRows", {"seconds": 8.0}, using="sleep", timeout=1)
    assert time.monotonic() - started < 8
    assert caught.value.detail["queue"] == "rel.read"


def test_a_closed_client_says_so(settings: Settings, workers: None) -> None:
    client = Client(settings)
    client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id")
    waiting: list[BedsError] = []

    def wait() -> None:
        try:
            client.call("fetch_records", "SampleRows", {"seconds": 3.0}, using="sleep", timeout=20)
        except BedsError as error:
            waiting.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    client.close()
    thread.join(10)
    assert isinstance(waiting[0], ClientClosed)
    with pytest.raises(ClientClosed):
        client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id")


def _with_url(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"amqp": settings.amqp.model_copy(update={"url": SecretStr(url)})})


def test_nobody_there_is_told_by_the_deadline(settings: Settings) -> None:
    with Client(_with_url(settings, "amqp://u:hunter2@127.0.0.1:1/beds")) as client:
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable) as caught:
            client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=2)
        assert time.monotonic() - started < 15
        assert "hunter2" not in str(caught.value)


def test_a_wrong_password_is_told_at_once(settings: Settings, stack: Stack) -> None:
    url = f"amqp://beds_app:hunter2@127.0.0.1:{stack.plan.amqp_port}/beds"
    with Client(_with_url(settings, url)) as client, pytest.raises(PermissionDenied) as caught:
        client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=20)
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def bare_vhost(stack: Stack) -> Iterator[str]:
    """A vhost with the events exchange and no queue."""
    stack.rabbitmq.control("add_vhost", "bare")
    stack.rabbitmq.control("set_permissions", "-p", "bare", "beds_app", ".*", ".*", ".*")
    yield "bare"
    stack.rabbitmq.control("delete_vhost", "bare")


def test_an_event_without_a_queue_is_unroutable_at_once(settings: Settings, bare_vhost: str) -> None:
    import kombu

    url = settings.amqp.client_url.removesuffix("beds") + bare_vhost
    with kombu.Connection(url) as connection, connection.channel() as channel:
        channel.exchange_declare("beds.events", "topic", durable=True, auto_delete=False)
    with Client(_with_url(settings, url)) as client:
        for act in (client.call, client.submit):
            started = time.monotonic()
            with pytest.raises(Unroutable) as caught:
                act("create_record", "SampleRows", {"id": "x"}, timeout=30)
            assert caught.value.detail["routing_key"] == "rel.write"
            assert time.monotonic() - started < 20


def test_the_default_client_reads_the_working_folder(
    project: Path, workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import beds as package

    monkeypatch.chdir(project)
    monkeypatch.setattr("beds.client.client._default", None)
    page = package.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id")
    assert page == Page()
    assert package.template("SampleRows").fetch_records("by_id", {"id": "none"}) == Page()
    assert package.submit("fetch_records", "SampleRows", {"id": "none"}, using="by_id").result() == Page()
    default_client().close()


def test_all_calls_are_judged_before_the_first_is_sent(client: Client, key: str) -> None:
    good = Call("create_record", "SampleRows", {"id": key})
    large = Call("create_record", "SampleDocs", {"id": key, "extra": {"x": "y" * 1_200_000}})
    acts: tuple[Any, ...] = (client.call_many, client.submit_many)
    for act in acts:
        with pytest.raises(BodyTooLarge):
            act([good, large])
        with pytest.raises(WrongType):
            act(5)
    assert not client.call("fetch_records", "SampleRows", {"id": key}, using="by_id")
    with pytest.raises(BodyTooLarge):
        client.submit("create_record", "SampleDocs", large.data, idempotency_key=key)
    # No ticket was accepted under the key, so the key is free.
    client.submit("create_record", "SampleDocs", {"id": key}, idempotency_key=key).result(30)


def test_an_interrupted_publish_does_not_spoil_the_next(client: Client, key: str) -> None:
    client.call("fetch_records", "SampleRows", {"id": key}, using="by_id")

    def interrupt(_tag: int) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        connection = client.transport._open(time.monotonic() + 10).connection  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            connection.publish(None, "beds.events", "rel.read", interrupt)
        assert client.submit("fetch_records", "SampleRows", {"id": key}, using="by_id").result(30) == Page()


@pytest.mark.parametrize("args", [{"zz": float("nan")}, {"zz": {1: 2}}, {1: 2}, {"zz": object()}])
def test_an_argument_that_cannot_be_sent_is_told_by_name(client: Client, args: Any) -> None:
    with pytest.raises(BedsError) as caught:
        client.call("fetch_records", "SampleRows", args, using="by_id")
    assert caught.value.detail["field"]


@pytest.mark.parametrize("key", [0, False, [], {}, b"", "", 1, float("nan"), "x" * 201, "\ud800"])
def test_an_idempotency_key_is_a_text_or_refused(client: Client, key: Any) -> None:
    with pytest.raises(BedsError) as caught:
        client.submit("create_record", "SampleRows", {"id": "x"}, idempotency_key=key)
    assert caught.value.detail["field"] == "idempotency_key"


@pytest.mark.parametrize("guid", [None, 5, b"x"])
def test_a_ticket_is_known_by_a_text(client: Client, guid: Any) -> None:
    with pytest.raises(WrongType):
        client.ticket(guid)


def test_a_page_says_whether_it_is_complete(client: Client) -> None:
    carriers = ("Q1", "Q2")
    for carrier in carriers:
        client.write("create_record", "Airlines", {"carrier": carrier, "name": "complete"}, timeout=60)
    try:
        cut = client.fetch("Airlines", "all", limit=1, timeout=60)
        assert (len(cut), cut.cursor, cut.complete) == (1, "", False)
        assert "more may exist" in repr(cut)
        assert client.submit("fetch_records", "Airlines", using="all", limit=1).result(60) == cut
        assert client.fetch("Airlines", "all", limit=1000, timeout=60).complete
        assert client.fetch("Airlines", "by_carrier", {"carrier": "Q1"}, limit=1, timeout=60).complete  # takes no limit
    finally:
        for carrier in carriers:
            client.write("delete_record", "Airlines", carrier, timeout=60)
    client.call("create_records", "SampleDocs", [{"id": f"complete-{n}", "text": "complete"} for n in range(3)])
    first = client.fetch("SampleDocs", "by_text", {"text": "complete"}, limit=2, timeout=60)
    rest = client.fetch("SampleDocs", "by_text", {"text": "complete"}, limit=2, cursor=first.cursor, timeout=60)
    assert (first.complete, rest.complete) == (False, True)


@pytest.mark.parametrize("template", ["SampleRows", "SampleDocs"])
def test_a_worker_tells_what_the_objects_of_a_template_take(client: Client, template: str) -> None:
    found = client.describe(template, timeout=60)
    by_text = found.operations["fetch.by_text"]
    assert [(argument.name, argument.types, argument.required) for argument in by_text.args] == [
        ("text", ("string",), True)
    ]
    assert by_text.object == {"SampleRows": "samples_by_text", "SampleDocs": "docs_by_text"}[template]
    assert (by_text.pages, by_text.problem) == (True, "")
    assert found.operations["update"].args == ()
    assert client.describe(template, timeout=60).hash == found.hash


def test_arguments_that_only_the_object_declares_are_told(client: Client, project: Path) -> None:
    nearest = client.describe("Airports", timeout=60).operations["fetch.nearest"]
    assert {argument.name: argument.types for argument in nearest.args} == {"lat": ("number",), "lon": ("number",)}
    shown = run(project, "beds", "template", "show", "Airports", "--live")
    assert shown.returncode == 0, shown.stderr
    assert "airports_nearest" in shown.stdout
    assert "lat" in shown.stdout
    as_json = json.loads(run(project, "beds", "template", "show", "Airports", "--live", "--json").stdout)
    assert Description.from_wire(as_json).operations["fetch.nearest"] == nearest


def test_what_a_fetch_returns_is_told_where_the_database_declares_it(client: Client) -> None:
    view = client.describe("Airlines", timeout=60).operations["fetch.all"]
    assert view.results == ("carrier", "name")
    documents = client.describe("SampleDocs", timeout=60).operations["fetch.by_id"]
    assert documents.results[0] == "id"
    assert {"text", "whole", "price"} <= set(documents.results)


def test_descriptions_of_others_and_of_wrong_questions_are_refused(client: Client) -> None:
    with pytest.raises(StoreDenied, match="belongs to BEDS itself"):
        client.describe("msAudit", timeout=60)
    with pytest.raises(UnknownTemplate, match="did you mean 'Flights'"):
        client.describe("Flight")
    for store, body in ((Store.REC, {"template": "SampleRows"}), (Store.REL, {"template": ["SampleRows"]}),
                        (Store.REL, {}), (Store.REL, {"template": "SampleRows", "using": "by_id"})):  # fmt: skip
        made = Event.of_question(store, "describe", "SampleRows", Lineage.root("test", "test"), {}, expires_in=60)
        deadline = time.monotonic() + 60
        pending = client.send(with_encoded_body(replace(made, arguments=body), 100_000), deadline)
        with pytest.raises(MalformedEvent):
            client.answer(pending, deadline)

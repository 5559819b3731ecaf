"""Unit tests of an application use the real client on an in-memory transport."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner

import beds
from beds.adapters.memory import MemoryAdapter
from beds.cli import call as commands
from beds.client.aio import AsyncBoundTemplate, AsyncClient, AsyncJobTicket, AsyncTicket
from beds.client.bound_template import BoundTemplate
from beds.client.call import Call
from beds.client.client import Client, as_page, as_response
from beds.client.flows import Flows, Handle
from beds.client.jobs import JobTicket
from beds.client.steps import Flow, run
from beds.client.tickets import Ticket
from beds.core.namaste import Query
from beds.domain.event import Event
from beds.domain.reply import Page, Response, reply_from_wire
from beds.domain.ticket import TicketState, TicketStatus
from beds.errors import (
    BrokerUnavailable,
    ClientClosed,
    DuplicateKey,
    IdempotencyConflict,
    InternalError,
    MalformedEvent,
    MissingField,
    PreconditionFailed,
    StoreDenied,
    StoreUnavailable,
    UnknownField,
    UnknownTemplate,
    UnknownTicket,
    WrongType,
)
from beds.templates.template import load_template
from beds.testing import MemoryClient, memory
from beds.transport.pending import Pending
from tests.conftest import ROOT

ZED = {"carrier": "ZZ", "name": "Zed"}


@pytest.fixture
def client() -> Iterator[MemoryClient]:
    with memory(ROOT / "schema") as found:
        yield found


def test_an_application_calls_and_submits_without_a_server(client: MemoryClient) -> None:
    assert beds.write("create_record", "Airlines", ZED).record_id == "ZZ"
    ticket = beds.submit("create_record", "Airlines", ZED)
    assert ticket.status().state is TicketState.FAILURE
    assert ticket.wait().ready
    for asked in (ticket, beds.ticket(ticket.guid)):
        with pytest.raises(DuplicateKey):
            asked.result()
    assert [record["name"] for record in beds.template("Airlines").fetch_all("by_carrier", {"carrier": "ZZ"})] == [
        "Zed"
    ]
    with pytest.raises(MissingField):
        beds.call("create_record", "Airlines", {})
    with pytest.raises(UnknownTicket):
        beds.ticket("0190a0b0-0000-7000-8000-000000000000").status()
    assert beds.Client is Client


def test_many_at_once(client: MemoryClient) -> None:
    calls = [Call("create_record", "Airlines", {"carrier": c, "name": c}) for c in ("AA", "BB", "AA")]
    *made, twice = beds.call_many(calls, return_errors=True)
    assert [reply.record_id for reply in made] == ["AA", "BB"]
    assert isinstance(twice, DuplicateKey)
    tickets = beds.submit_many([Call("delete_record", "Airlines", c) for c in ("AA", "BB")])
    assert [ticket.result().affected for ticket in tickets] == [1, 1]  # type: ignore[union-attr]


def test_an_idempotency_key_leads_to_the_same_ticket(client: MemoryClient) -> None:
    first = beds.submit("create_record", "Airlines", ZED, idempotency_key="once")
    assert beds.submit("create_record", "Airlines", ZED, idempotency_key="once") == first
    assert first.result().affected == 1  # type: ignore[union-attr]
    with pytest.raises(IdempotencyConflict):
        beds.submit("create_record", "Airlines", {**ZED, "name": "Other"}, idempotency_key="once")


def test_a_call_with_a_key_is_executed_once(client: MemoryClient) -> None:
    airlines, awaited = beds.template("Airlines"), beds.aio.template("Airlines")
    first = airlines.create_record(ZED, idempotency_key="call")
    assert airlines.create_record(ZED, idempotency_key="call") == first
    assert asyncio.run(awaited.create_record(ZED, idempotency_key="call")) == first
    assert beds.write("create_record", "Airlines", ZED, idempotency_key="call") == first
    assert airlines.delete_record("ZZ", idempotency_key="gone").affected == 1
    assert airlines.delete_record("ZZ", idempotency_key="gone").affected == 1
    with pytest.raises(IdempotencyConflict):
        airlines.delete_record("YY", idempotency_key="gone")


SNOW = {"airport": "JFK", "title": "Snow", "status": "open"}


def test_two_people_change_one_record(client: MemoryClient) -> None:
    notices, awaited = beds.template("Notices"), beds.aio.template("Notices")
    key = UUID(notices.create_record(SNOW).record_id)

    def version() -> int:
        (notice,) = beds.fetch("Notices", "by_id", {"id": key})
        found: int = notice["revision"]
        return found

    assert version() == 0
    assert notices.update_record({"id": key, "severity": 1}, expected_version=0).affected == 1
    late: list[Callable[[], Any]] = [
        lambda: notices.update_record({"id": key, "severity": 2}, expected_version=0),
        lambda: notices.delete_record(key, expected_version=0),
        lambda: beds.write("update_record", "Notices", {"id": key, "severity": 2}, expected_version=0),
        lambda: beds.call("delete_record", "Notices", key, expected_version=0),
        lambda: beds.submit("delete_record", "Notices", key, expected_version=0).result(),
        lambda: beds.call_many([Call("delete_record", "Notices", key, expected_version=0)]),
        lambda: asyncio.run(awaited.update_record({"id": key, "severity": 2}, expected_version=0)),
        lambda: asyncio.run(awaited.delete_record(key, expected_version=0)),
        lambda: asyncio.run(beds.aio.call("delete_record", "Notices", key, expected_version=0)),
        lambda: asyncio.run(beds.aio.write("delete_record", "Notices", key, expected_version=0)),
    ]
    for act in late:
        with pytest.raises(PreconditionFailed) as caught:
            act()
        assert caught.value.detail == {"template": "Notices", "record_id": str(key), "field": "revision"}
    assert version() == 1
    assert asyncio.run(awaited.update_record({"id": key, "severity": 3}, expected_version=1)).affected == 1
    assert notices.update_record({"id": key, "severity": 3}).affected == 1  # by somebody who compares nothing
    assert notices.delete_record(key, expected_version=3).affected == 1


def test_an_expected_version_is_part_of_the_event_and_of_its_key(client: MemoryClient) -> None:
    sent: list[Mapping[str, Any]] = []
    send = client.transport.send

    def recorded(event: Event, deadline: float) -> Pending:
        sent.append(event.arguments)
        return send(event, deadline)

    client.transport.send = recorded  # type: ignore[method-assign]
    key = UUID(beds.write("create_record", "Notices", SNOW).record_id)
    change = {"id": key, "severity": 1}
    first = beds.write("update_record", "Notices", change, expected_version=0, idempotency_key="once")
    assert beds.write("update_record", "Notices", change, expected_version=0, idempotency_key="once") == first
    for other in (1, None):
        with pytest.raises(IdempotencyConflict):
            beds.write("update_record", "Notices", change, expected_version=other, idempotency_key="once")
    beds.write("update_record", "Notices", change)
    assert [event["expected_version"] for event in sent if "expected_version" in event] == [0]
    assert set(sent[-1]) == {"template", "payload"}  # as older workers know it


@pytest.mark.parametrize("value", ["0", True, 0.0, b"", {"$gt": -1}])
def test_a_wrong_version_is_refused_before_it_is_sent(client: MemoryClient, value: Any) -> None:
    client.transport.fail_next(InternalError("sent"))
    with pytest.raises(WrongType) as caught:
        beds.call("delete_record", "Notices", UUID(int=1), expected_version=value)
    assert caught.value.detail["field"] == "expected_version"
    for operation, template, data in (
        ("create_record", "Notices", SNOW),
        ("fetch_records", "Notices", {}),
        ("delete_record", "Airlines", "ZZ"),
    ):
        with pytest.raises(UnknownField) as unknown:
            beds.call(operation, template, data, expected_version=value)
        assert unknown.value.detail["field"] == "expected_version"


def test_a_call_without_a_version_has_the_digest_that_it_had() -> None:
    """Idempotency keys of before keep their events."""
    call = Call("update_record", "Notices", {"id": 1, "severity": 2})
    assert call.digest == "c89ae4c366ba4684a84177ff5bb042183308e6bca7b64dd6903458f25da86f95"
    assert Call("update_record", "Notices", {"id": 1, "severity": 2}, expected_version=None).digest == call.digest
    compared = {Call("update_record", "Notices", call.data, expected_version=v).digest for v in (0, 1, "1", False)}
    assert len(compared | {call.digest}) == 5


@pytest.mark.parametrize("kind", ["integer", "string", "datetime", "uuid", "bytes", "object_id"])
def test_each_write_in_memory_changes_the_version(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "things.toml"
    file.write_text(
        '[template]\nname = "T"\nstore = "rel"\nkey = "id"\nversion = "v"\n[create]\nobject = "c"\n'
        '[update]\nobject = "u"\n[fetch.by_id]\nobject = "f"\n[fields.id]\ntype = "integer"\n'
        f'[fields.n]\ntype = "integer"\n[fields.v]\ntype = "{kind}"\n'
    )
    adapter = MemoryAdapter(load_template(file))
    adapter.create_record({"id": 1})
    seen = []
    for n in range(20):
        (record,) = adapter.fetch_records(Query("by_id", {"id": 1}))
        assert record["v"] not in seen
        adapter.template.fields["v"].check("v", record["v"], nullable=False)
        seen.append(record["v"])
        assert adapter.update_record({"id": 1, "n": n}, record["v"]).affected == 1
    with pytest.raises(PreconditionFailed):
        adapter.update_record({"id": 1, "n": 0}, seen[0])


@pytest.mark.parametrize("command", ["call", "submit"])
def test_the_command_line_converts_the_expected_version(
    client: MemoryClient, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("beds.cli.call.Client", lambda _settings: contextlib.nullcontext(client))
    monkeypatch.setattr("beds.cli.call.load_settings", lambda _config: None)
    key = beds.write("create_record", "Notices", SNOW).record_id

    def typed(*arguments: str) -> Any:
        return CliRunner().invoke(
            getattr(commands, command), ["Notices.update_record", f"id={key}", "severity=2", *arguments]
        )

    done = typed("--expected-version", "0")
    assert done.exit_code == 0, done.output
    (notice,) = beds.fetch("Notices", "by_id", {"id": UUID(key)})
    assert (notice["severity"], notice["revision"]) == (2, 1)
    assert isinstance(typed("--expected-version", "one").exception, WrongType)
    nothing = typed("--expected-version", "null")
    assert nothing.exit_code == 2
    assert "would compare nothing" in nothing.output
    typed("--expected-version", "0")
    (notice,) = beds.fetch("Notices", "by_id", {"id": UUID(key)})
    assert notice["revision"] == 1


def test_the_awaited_client_does_the_same(client: MemoryClient) -> None:
    async def story() -> None:
        ticket = await beds.aio.submit("create_record", "Airlines", ZED)
        created = await ticket.result()
        assert isinstance(created, Response)
        assert created.affected == 1
        with pytest.raises(DuplicateKey):
            await beds.aio.call("create_record", "Airlines", ZED)
        page = await beds.aio.fetch("Airlines", "by_carrier", {"carrier": "ZZ"})
        assert page[0]["name"] == "Zed"
        assert [r async for r in beds.aio.template("Airlines").fetch_all("by_carrier", {"carrier": "ZZ"})]
        assert (await beds.aio.ticket(ticket.guid).status()).state is TicketState.SUCCESS
        assert len(await beds.aio.call_many([Call("delete_record", "Airlines", "ZZ")])) == 1

    asyncio.run(story())


def test_a_failure_can_be_asked_for(client: MemoryClient) -> None:
    client.transport.fail_next(StoreUnavailable("MariaDB is away"))
    with pytest.raises(StoreUnavailable):
        beds.write("create_record", "Airlines", ZED)
    assert beds.write("create_record", "Airlines", ZED).affected == 1


def test_a_broker_that_is_away_stays_so_until_the_deadline(client: MemoryClient) -> None:
    client.transport.fail_next(BrokerUnavailable("RabbitMQ is away"))
    with pytest.raises(BrokerUnavailable):
        beds.write("create_record", "Airlines", ZED, timeout=0.3)
    assert beds.write("create_record", "Airlines", ZED).affected == 1


def test_a_stub_that_fails_is_an_internal_error() -> None:
    def broken(_records: Any, _args: Any) -> Any:
        raise ValueError("a bug")

    with memory(ROOT / "schema", {"airlines_by_carrier": broken}), pytest.raises(InternalError):
        beds.fetch("Airlines", "by_carrier", {"carrier": "ZZ"})


def test_an_awaited_ticket_can_be_pickled(client: MemoryClient) -> None:
    ticket = asyncio.run(beds.aio.submit("create_record", "Airlines", ZED))
    again = pickle.loads(pickle.dumps(ticket))
    assert again == ticket
    assert asyncio.run(again.result()).affected == 1
    assert asyncio.run(beds.aio.ticket(again).status()).state is TicketState.SUCCESS


def test_a_caller_that_has_gone_publishes_nothing_more(client: MemoryClient) -> None:
    """Its events wait behind one that blocks; cancelled, they are not sent when that one is through."""
    gate, send = threading.Event(), client.transport.send
    sent: list[str] = []

    def slow(event: Event, deadline: float) -> Pending:
        sent.append(event.task)
        gate.wait(10)
        return send(event, deadline)

    client.transport.send = slow  # type: ignore[method-assign]

    async def story() -> None:
        calls = [asyncio.create_task(beds.aio.call("create_record", "Airlines", {"carrier": c, "name": c}))
                 for c in ("AA", "BB", "CC")]  # fmt: skip
        while not sent:
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        gate.set()

    asyncio.run(story())
    client.transport.send = send  # type: ignore[method-assign]
    asyncio.run(beds.aio.call("fetch_records", "Airlines", {"carrier": "BB"}, using="by_carrier"))
    assert len(sent) == 1


def test_a_reply_of_the_wrong_kind_is_told(client: MemoryClient) -> None:
    with pytest.raises(MalformedEvent):
        as_page(Response("x", 1))
    with pytest.raises(MalformedEvent):
        as_response(Page())


def test_a_closed_client_says_so() -> None:
    with memory(ROOT / "schema") as client:
        pass
    with pytest.raises(ClientClosed):
        client.write("create_record", "Airlines", ZED)


def test_write_takes_no_fetch(client: MemoryClient) -> None:
    with pytest.raises(WrongType):
        beds.write("fetch_records", "Airlines", {})


TOOLS = {"event", "send", "submit_event", "answer"}
"""Methods of the blocking client only: for tools that handle single events, and for the shared connection."""


@pytest.mark.parametrize(
    ("blocking", "awaited", "surplus"),
    [(Client, AsyncClient, TOOLS), (Ticket, AsyncTicket, {"ready", "progress"}),
     (JobTicket, AsyncJobTicket, {"ready", "progress"}),
     (BoundTemplate, AsyncBoundTemplate, set())],
)  # fmt: skip
def test_both_clients_have_the_same_methods(blocking: type, awaited: type, surplus: set[str]) -> None:
    def methods(of: type) -> dict[str, list[Any]]:
        found = inspect.getmembers(of, lambda member: inspect.isfunction(member) or isinstance(member, property))
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(member).parameters.values()]
            if inspect.isfunction(member)
            else []
            for name, member in found
            if not name.startswith("_")
        }

    wanted = {name: parameters for name, parameters in methods(blocking).items() if name not in surplus}
    assert methods(awaited) == wanted


def test_the_functions_of_the_package_are_those_of_its_client() -> None:
    for name in ("call", "fetch", "write", "submit", "call_many", "submit_many", "lineage", "ticket", "template"):
        assert callable(getattr(beds, name)), name
        assert callable(getattr(beds.aio, name)), name
        assert callable(getattr(AsyncClient, name)), name


def test_a_template_is_described(client: MemoryClient) -> None:
    found = beds.describe("Airlines")
    assert found.template == "Airlines"
    assert found.operations["create"].operation == "create_record"
    assert "carrier" in {argument.name for argument in found.operations["fetch.by_carrier"].args}
    assert asyncio.run(beds.aio.describe("Airlines")) == found
    with pytest.raises(UnknownTemplate):
        beds.describe("Airline")
    with pytest.raises(StoreDenied):
        beds.describe("msLogs")


def test_a_page_of_an_older_worker_may_be_cut() -> None:
    page = reply_from_wire({"kind": "page", "records": [{"a": 1}], "cursor": ""})
    assert isinstance(page, Page)
    assert not page.complete
    assert reply_from_wire(page.to_wire()) == page
    assert reply_from_wire(Page(({"a": 1},)).to_wire()).complete  # type: ignore[union-attr]


def test_a_ticket_submitted_here_may_be_unknown_until_its_acceptance_arrives(client: MemoryClient) -> None:
    class Late(Flows):
        asked = 0

        def status(self, guid: str, timeout: float, actor: str = "") -> Flow[TicketStatus]:
            self.asked += 1
            if self.asked < 4:
                raise UnknownTicket("not yet")
            return (yield from super().status(guid, timeout))

    ticket = client.submit("create_record", "Airlines", ZED)
    ours = client.flows
    late = Late(ours.settings, ours.templates, ours.transport)
    assert run(late.wait(Handle(ticket.guid, is_own=True), 30), ours.transport).ready
    late.asked = 0
    with pytest.raises(UnknownTicket):
        run(late.wait(Handle(ticket.guid), 30), ours.transport)

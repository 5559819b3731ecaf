"""CALGON: any client polls tickets over AMQP, and every ticket ends."""

from __future__ import annotations

import asyncio
import json
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery import Celery

from beds.client.aio import AsyncClient
from beds.client.call import Call
from beds.client.client import Client
from beds.client.flows import Handle
from beds.client.tickets import Ticket
from beds.config import Settings
from beds.domain.event import Event
from beds.domain.identity import uuid7
from beds.domain.lineage import Lineage
from beds.domain.ticket import TicketState
from beds.errors import (
    BedsError,
    CallTimeout,
    DuplicateKey,
    IdempotencyConflict,
    ResultTooLarge,
    StoreDenied,
    TicketExpired,
    TicketRevoked,
    UnknownTicket,
    Unroutable,
)
from beds.services.factory import AdapterFactory
from beds.services.tickets import TicketStore
from beds.stack.stack import Stack
from beds.templates.registry import TemplateRegistry
from beds.transport.topology import Topology, declare
from beds.wire.reply import parse_reply, read_reply
from tests.conftest import ROOT, OwnVhost, environment, run, running_worker, wait_for

BOTH = pytest.mark.parametrize("template", ["SampleRows", "SampleDocs"])


def declare_all(settings: Settings) -> None:
    with kombu.Connection(settings.amqp.broker_url) as connection:
        declare(Topology.from_settings(settings.amqp), connection)


def new_id() -> str:
    return uuid.uuid4().hex[:12]


@BOTH
def test_a_ticket_is_polled_to_its_end_by_anybody(client: Client, settings: Settings, template: str) -> None:
    key = new_id()
    ticket = client.submit("create_record", template, {"id": key})
    assert ticket.wait(30).state is TicketState.SUCCESS
    status = ticket.status()
    assert status.accepted_at and status.started_at and status.ended_at
    assert status.accepted_at <= status.ended_at
    assert (status.summary, status.event_id) == (f"{template}.create_record", ticket.event_id)
    assert ticket.result().record_id == key  # type: ignore[union-attr]
    with Client(settings) as other:
        assert other.ticket(ticket.guid).result().record_id == key  # type: ignore[union-attr]
        assert other.ticket(ticket.event_id) == ticket
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(ticket.result(30)))
    thread.start()
    thread.join(60)
    assert found[0].record_id == key


def test_a_ticket_tells_of_a_failure_as_the_call_would(client: Client, settings: Settings) -> None:
    key = new_id()
    client.call("create_record", "SampleRows", {"id": key})
    ticket = client.submit("create_record", "SampleRows", {"id": key})
    with Client(settings) as other:
        with pytest.raises(DuplicateKey) as caught:
            other.ticket(ticket.guid).result(30)
        assert caught.value.event_id == ticket.event_id
        assert other.ticket(ticket.guid).status().state is TicketState.FAILURE


def test_another_process_and_celerys_own_result_see_it(client: Client, project: Path) -> None:
    key = new_id()
    ticket = client.submit("create_record", "SampleDocs", {"id": key})
    shown = run(project, "beds", "ticket", ticket.guid, "--wait", "--json")
    assert json.loads(shown.stdout)["state"] == "SUCCESS", shown.stderr
    again = client.submit("create_record", "SampleDocs", {"id": key})
    code = (
        "import beds, sys\n"
        "from celery.result import AsyncResult\n"
        "good, bad = (AsyncResult(guid, app=beds.app) for guid in sys.argv[1:])\n"
        "print(good.get(timeout=30).record_id, good.state)\n"
        "try: bad.get(timeout=30)\n"
        "except beds.BedsError as error: print(error.code, bad.state)\n"
    )
    done = run(project, sys.executable, "-c", code, ticket.guid, again.guid)
    assert done.stdout.split() == [key, "SUCCESS", "duplicate_key", "FAILURE"], done.stderr


def test_it_ends_although_its_submitter_was_killed(client: Client, project: Path) -> None:
    key = new_id()
    code = (
        "import beds, os, signal, sys\n"
        f"print(beds.submit('create_record', 'SampleRows', {{'id': {key!r}}}).guid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run(project, sys.executable, "-c", code)
    assert done.returncode == -signal.SIGKILL
    assert client.ticket(done.stdout.strip()).wait(30).state is TicketState.SUCCESS
    assert client.template("SampleRows").fetch_records("by_id", {"id": key})[0]["id"] == key


def test_unknown_expired_and_queued_are_told_apart(
    client: Client, project: Path, own_vhost: OwnVhost, settings: Settings
) -> None:
    for never in (str(uuid7()), str(uuid.uuid4()), "no guid at all", ""):
        with pytest.raises(UnknownTicket):
            client.ticket(never).status()
    long_ago = uuid.UUID(int=uuid7().int & ~(0xFFFF_FFFF_FFFF << 80) | (1_600_000_000_000 << 80))
    with pytest.raises(TicketExpired):
        client.ticket(str(long_ago)).status()
    declare_all(own_vhost.settings)
    with Client(own_vhost.settings) as alone:
        waiting = alone.submit("create_record", "SampleRows", {"id": new_id()})
        with running_worker(project, "calgon", env=own_vhost.env):
            assert wait_for(lambda: _status(waiting), 60, "the ticket") is TicketState.PENDING
            with pytest.raises(CallTimeout, match="has not ended"):
                waiting.result(2)


def _status(ticket: Ticket) -> TicketState | None:
    try:
        return ticket.status(2).state
    except CallTimeout:
        return None


@BOTH
def test_an_idempotency_key_gives_one_ticket_and_one_effect(client: Client, settings: Settings, template: str) -> None:
    record, key = {"id": new_id(), "whole": 5}, new_id()
    first = client.submit("create_record", template, record, idempotency_key=key)
    assert first.result(30).affected == 1  # type: ignore[union-attr]
    with Client(settings) as other:
        second = other.submit("create_record", template, dict(reversed(record.items())), idempotency_key=key)
        assert second == first
        assert second.result(30) == first.result()
        for differing in ({**record, "whole": 6}, {"id": new_id()}):
            with pytest.raises(IdempotencyConflict) as caught:
                other.submit("create_record", template, differing, idempotency_key=key)
            assert caught.value.detail["guid"] == first.guid


def test_many_submitters_of_one_key_have_one_effect(client: Client) -> None:
    key, record = new_id(), {"id": new_id()}
    found: list[Any] = []

    def submit() -> None:
        ticket = client.submit("create_record", "SampleRows", record, idempotency_key=key, timeout=30)
        found.append((ticket.guid, ticket.wait(30).state))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # A second effect would be a duplicate key, and so a FAILURE.
    assert len(found) == 8
    assert set(found) == {(found[0][0], TicketState.SUCCESS)}


@BOTH
def test_a_call_with_a_key_has_one_effect_and_one_reply(client: Client, settings: Settings, template: str) -> None:
    record, key = {"id": new_id(), "whole": 5}, new_id()
    with ThreadPoolExecutor(8) as threads:
        calls = [
            threads.submit(client.call, "create_record", template, record, idempotency_key=key, timeout=60)
            for _ in range(8)
        ]
        replies = [call.result() for call in calls]
    assert replies == [replies[0]] * 8  # a second effect would be a duplicate key
    with Client(settings) as other:
        assert other.write("create_record", template, record, idempotency_key=key, timeout=60) == replies[0]
        with pytest.raises(IdempotencyConflict):
            other.call("create_record", template, {**record, "whole": 6}, idempotency_key=key, timeout=60)
    assert [found["whole"] for found in client.fetch(template, "by_id", {"id": record["id"]}, timeout=60)] == [5]


def test_an_awaited_call_with_a_key_gets_the_first_reply_also_if_it_is_an_error(client: Client) -> None:
    record, key = {"id": new_id()}, new_id()

    async def twice() -> None:
        awaited = AsyncClient(client)
        first = await awaited.write("create_record", "SampleRows", record, timeout=60)
        assert first.affected == 1
        for _ in range(2):
            with pytest.raises(DuplicateKey):
                await awaited.write("create_record", "SampleRows", record, idempotency_key=key, timeout=60)
        await awaited.write("delete_record", "SampleRows", record["id"], timeout=60)
        with pytest.raises(DuplicateKey):  # the key stands for the first attempt
            await awaited.write("create_record", "SampleRows", record, idempotency_key=key, timeout=60)

    asyncio.run(twice())


def test_a_call_whose_reply_came_too_late_is_asked_for_again_by_its_key(project: Path, own_vhost: OwnVhost) -> None:
    record, key = {"id": new_id()}, new_id()
    with Client(own_vhost.settings) as client:
        with running_worker(project, "calgon", env=own_vhost.env), pytest.raises(CallTimeout):
            wait_until_accepting(client)
            client.write("create_record", "SampleRows", record, idempotency_key=key, timeout=3)
        with running_worker(project, "calgon,rel.write,rel.read", env=own_vhost.env):
            reply = client.write("create_record", "SampleRows", record, idempotency_key=key, timeout=60)
            assert reply.affected == 1
            assert len(client.fetch("SampleRows", "by_id", record, timeout=60)) == 1


def wait_until_accepting(client: Client) -> None:
    """Wait until a worker answers requests about tickets."""

    def answered() -> bool:
        try:
            client.ticket(str(uuid.UUID(int=0x7 << 76 | 0x2 << 62))).status(2)
        except (UnknownTicket, TicketExpired):
            return True
        except (CallTimeout, Unroutable):
            return False
        return False

    wait_for(answered, 60, "an answer about tickets")


def test_a_key_whose_submitter_died_before_publishing_is_taken_up(client: Client, settings: Settings) -> None:
    """The acceptance is stored but the event was never published: the next submit with the key publishes it."""
    key, call = new_id(), Call("create_record", "SampleRows", {"id": new_id()})
    lost = client.event(call, ticket=True, timeout=5)
    ticket = {"guid": lost.lineage.guid, "event_id": lost.lineage.event_id}
    client.ask("accept", {"tickets": [ticket], "idempotency_key": key, "digest": call.digest})
    taken = client.submit("create_record", "SampleRows", call.data, idempotency_key=key)
    assert taken.guid == lost.lineage.guid
    assert taken.wait(30).state is TicketState.SUCCESS


def test_an_event_delivered_again_after_its_end_has_no_second_effect(client: Client) -> None:
    event = client.event(Call("create_record", "SampleRows", {"id": new_id()}), ticket=True, timeout=5)
    for _ in range(2):
        pending = client.transport.send(replace(event), time.monotonic() + 10)
        assert read_reply(parse_reply(pending.reply.result(30)))["affected"] == 1
    assert client.ticket(event.lineage.guid).status().state is TicketState.SUCCESS


@BOTH
def test_trap_13_a_queued_ticket_is_cancelled_for_good(project: Path, own_vhost: OwnVhost, template: str) -> None:
    key = new_id()
    declare_all(own_vhost.settings)
    with Client(own_vhost.settings) as alone:
        ticket = alone.submit("create_record", template, {"id": key})
        with running_worker(project, "calgon", env=own_vhost.env):
            wait_for(lambda: _status(ticket), 60, "the ticket")
            status = ticket.cancel(by="the operator")
            assert (status.state, status.cancelled_by) == (TicketState.REVOKED, "beds_app: the operator")
            # Celery keeps a revoke in worker memory only; BEDS keeps it in the ticket.
            queue = f"{'rel' if template == 'SampleRows' else 'rec'}"
            with running_worker(project, f"{queue}.read,{queue}.write", env=own_vhost.env):
                assert not alone.call("fetch_records", template, {"id": key}, using="by_id", timeout=60)
                with pytest.raises(TicketRevoked, match="cancelled by beds_app: the operator"):
                    ticket.result(30)
                assert not alone.call("fetch_records", template, {"id": key}, using="by_id", timeout=60)
            assert ticket.cancel(by="somebody else").cancelled_by == "beds_app: the operator"


@pytest.fixture
def slow_worker(project: Path, own_vhost: OwnVhost) -> Iterator[OwnVhost]:
    (project / "steps").unlink(missing_ok=True)
    env = {**own_vhost.env, "PYTHONPATH": str(ROOT)}
    with (
        running_worker(project, "rec.write", "-I", "tests.slow_task", env=env),
        running_worker(project, "calgon", env=own_vhost.env),
    ):
        declare_all(own_vhost.settings)
        yield own_vhost


def submit_slow(client: Client, event_id: str = "") -> Ticket:
    lineage = Lineage.root("ms", "test")
    if event_id:
        lineage = replace(lineage, guid=event_id.rsplit(".", 1)[-1], root_id=event_id)
    event = Event("rec.slow", "rec.write", {}, "Slow.create_record", lineage, ticket=True)
    pending = client.transport.send(event, time.monotonic() + 10)
    pending.confirmed.result(10)
    return Ticket(Handle(lineage.event_id, pending), client)


def test_an_outcome_is_never_logged(client: Client, project: Path) -> None:
    secret = f"outcome-{new_id()}"
    client.call("create_record", "SampleRows", {"id": new_id(), "text": secret})
    key = new_id()
    client.call("create_record", "SampleDocs", {"id": key, "text": secret})
    ticket = client.submit("fetch_records", "SampleDocs", {"id": key}, using="by_id")
    status = ticket.wait(30)
    assert status.result["result"]["records"][0]["text"] == secret
    assert secret not in (project / "worker.log").read_text()
    assert secret not in repr(status)


def test_progress_shows_and_a_running_ticket_stops_at_its_next_checkpoint(slow_worker: OwnVhost, project: Path) -> None:
    with Client(slow_worker.settings) as client:
        ticket = submit_slow(client)
        wait_for(lambda: _status(ticket) is TicketState.PROGRESS, 60, "progress")
        progress = ticket.progress
        assert progress is not None
        assert (progress.total, progress.unit) == (200, "steps")
        wait_for(lambda: (ticket.progress or progress).done > progress.done, 30, "more progress")
        asked = ticket.cancel(by="me")
        assert (asked.state, asked.cancelled_by) == (TicketState.PROGRESS, "beds_app: me")
        assert ticket.wait(30).state is TicketState.REVOKED
        with pytest.raises(TicketRevoked, match="cancelled by beds_app: me"):
            ticket.result(30)
        assert len((project / "steps").read_text().splitlines()) < 200


def test_of_two_copies_of_one_event_one_is_carried_out(slow_worker: OwnVhost, project: Path) -> None:
    with Client(slow_worker.settings) as client:
        ticket = submit_slow(client)
        wait_for(lambda: _status(ticket) is TicketState.PROGRESS, 60, "progress")
        copy = submit_slow(client, ticket.event_id)
        other = submit_slow(client)  # behind the copy; with two slots it begins after the copy was acknowledged
        wait_for(lambda: _status(other) is TicketState.PROGRESS, 60, "progress of the one behind")
        for each in (ticket, other):
            each.cancel(by="the test")
        assert ticket.wait(30).state is TicketState.REVOKED
        with pytest.raises(TicketRevoked):
            copy.result(30)
        assert len(set((project / "steps").read_text().split())) == 2


def test_a_result_that_is_too_large_ends_the_ticket_with_the_way_out(client: Client) -> None:
    prefix = new_id()
    rows = [{"id": f"{prefix}{n}", "text": prefix, "extra": {"filler": "x" * 1000}} for n in range(100)]
    for start in range(0, 1200, 100):
        client.call("create_records", "SampleDocs", [{**row, "id": f"{row['id']}-{start}"} for row in rows], timeout=30)
    ticket = client.submit("fetch_records", "SampleDocs", {"text": prefix}, using="by_text", limit=1000)
    with pytest.raises(ResultTooLarge, match="limit"):
        ticket.result(30)
    assert ticket.status().state is TicketState.FAILURE


def test_a_ticket_is_a_value(client: Client) -> None:
    ticket = client.submit("create_record", "SampleRows", {"id": new_id()})
    copy = pickle.loads(pickle.dumps(ticket))
    assert copy == ticket
    assert hash(copy) == hash(ticket)
    assert repr(ticket) == f"<Ticket {ticket.guid}>"
    assert ticket.wait(30).ready
    assert ticket.ready


def test_nobody_but_beds_writes_tickets(client: Client) -> None:
    attempts: list[tuple[str, Any, str]] = [
        ("create_record", {"user": "x", "guid": str(uuid7()), "state": "SUCCESS"}, ""),
        ("create_records", [{"user": "x", "guid": str(uuid7())}], ""),
        ("update_record", {"user": "x", "guid": str(uuid7()), "state": "SUCCESS"}, ""),
        ("fetch_records", {"guid": str(uuid7())}, "by_guid"),
        ("fetch_records", {"idempotency_key": "x"}, "by_key"),
        ("fetch_records", {"state": "STARTED"}, "all_by_state"),
    ]
    for operation, data, using in attempts:
        with pytest.raises(StoreDenied):
            client.call(operation, "msTickets", data, using=using)
    with pytest.raises(BedsError):
        client.call("delete_record", "msTickets", "x")
    wrong: tuple[Any, ...] = (5, [], [{}], [{"guid": "x"}], [{"guid": str(uuid7()), "state": "SUCCESS"}], [{}] * 1001)
    for tickets in wrong:
        with pytest.raises(BedsError):
            client.ask("accept", {"tickets": tickets}, timeout=5)
    with pytest.raises(UnknownTicket):
        client.ask("cancel", {"guid": {"$gt": ""}}, timeout=5)


PROCESSES, THREADS, EACH = 4, 8, 313


def queue_names(stack: Stack) -> set[str]:
    """The queues, as soon as the management API lists them: it fails while one is being deleted."""

    def listed() -> set[str] | None:
        try:
            return {queue["name"] for queue in stack.rabbitmq.management("queues/beds")}
        except OSError:
            return None

    return wait_for(listed, 60, "the list of queues")  # type: ignore[no-any-return]


@pytest.mark.timeout(300)
def test_ten_thousand_tickets_at_once_all_end_and_none_is_mixed_up(client: Client, project: Path, stack: Stack) -> None:
    """8 threads in each of 4 processes; each ticket's reply names the requested record."""
    known = [new_id() for _ in range(50)]
    for key in known:
        client.call("create_record", "SampleRows", {"id": key})
    before = queue_names(stack)
    code = (
        "import sys, threading\n"
        "from beds import Call\n"
        "from beds.client.client import default_client\n"
        "process, threads, each = map(int, sys.argv[1:4])\n"
        "known = sys.argv[4:]\n"
        "wrong = []\n"
        "def work(thread):\n"
        "    try:\n"
        "        keys = [known[(process + thread + n) % len(known)] for n in range(each)]\n"
        "        calls = [Call('fetch_records', 'SampleRows', {'id': key}, 'by_id') for key in keys]\n"
        "        tickets = default_client().submit_many(calls, timeout=120)\n"
        "        assert len({t.guid for t in tickets}) == each\n"
        "        for ticket, key in zip(tickets, keys):\n"
        "            assert [record['id'] for record in ticket.result(200)] == [key]\n"
        "    except BaseException as error:\n"
        "        wrong.append(f'{error!r} {error}')\n"
        "all_of_them = [threading.Thread(target=work, args=(n,)) for n in range(threads)]\n"
        "[t.start() for t in all_of_them]; [t.join() for t in all_of_them]\n"
        "print(len(wrong), wrong[:3])\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(n), str(THREADS), str(EACH), *known],
            cwd=project,
            env=environment(project),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(PROCESSES)
    ]
    try:
        for process in started:
            out, err = process.communicate(timeout=280)
            assert out.startswith("0 "), out + err
    finally:
        for process in started:
            process.kill()
            process.communicate()
    left = queue_names(stack)
    assert left == before
    page = client.call("fetch_records", "msTickets", {"state": "PENDING"}, using="by_state", limit=1000)
    mine = [t for t in page if t.get("summary", "").startswith("SampleRows.fetch_records")]  # type: ignore[union-attr]
    assert not mine


def test_tickets_are_listed_and_cancelled_from_the_command_line(client: Client, project: Path) -> None:
    ticket = client.submit("create_record", "SampleRows", {"id": new_id()})
    ticket.wait(30)
    listed = run(project, "beds", "tickets", "--state", "SUCCESS", "--limit", "1000", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "outcome" not in listed.stdout
    shown = run(project, "beds", "ticket", ticket.guid)
    assert "SUCCESS" in shown.stdout, shown.stderr
    late = run(project, "beds", "ticket", "cancel", ticket.guid)
    assert "had ended before" in late.stdout, late.stderr
    unknown = run(project, "beds", "ticket", str(uuid7()))
    assert unknown.returncode == 66
    assert "never accepted" in unknown.stderr
    assert "Usage" in run(project, "beds", "ticket", "--help").stdout


def test_trap_4_celerys_rpc_results_are_pending_for_everybody_else(stack: Stack, client: Client) -> None:
    """The fault itself; the tests above cover the workaround: every client sees a ticket's state."""
    rpc = Celery("rpc", broker=stack.plan.amqp_url("admin"), backend="rpc://")  # it declares a queue of its own
    ticket = client.submit("create_record", "SampleRows", {"id": new_id()})
    assert ticket.wait(30).state is TicketState.SUCCESS
    assert rpc.AsyncResult(ticket.guid).state == "PENDING"
    rpc.close()


def test_a_guid_of_a_year_that_never_comes_is_unknown(client: Client) -> None:
    with pytest.raises(UnknownTicket):
        client.ticket("ffffffff-ffff-7fff-bfff-ffffffffffff").status(20)


def test_questions_after_unknown_tickets_hold_nobody_up(client: Client) -> None:
    """An old guid is unknown at once; for a new one the acceptance may still be in flight."""
    ended = client.submit("create_record", "SampleRows", {"id": new_id()})
    ended.wait(30)
    old = [f"01900000-{n:04x}-7000-8000-000000000000" for n in range(60)]
    with ThreadPoolExecutor(20) as pool:
        outcomes = [pool.submit(client.ticket(guid).status, 20) for guid in old]
        assert ended.status(20).ready
    assert all(isinstance(o.exception(), TicketExpired) for o in outcomes)


def test_a_wait_goes_on_while_rabbitmq_takes_nothing(client: Client, stack: Stack) -> None:
    ticket = client.submit("fetch_records", "SampleRows", {"seconds": 4.0}, using="sleep")
    stack.rabbitmq.control("set_vm_memory_high_watermark", "0")
    try:
        with pytest.raises(CallTimeout):
            client.ticket(ticket.guid).wait(3)
    finally:
        stack.rabbitmq.control("set_vm_memory_high_watermark", "absolute", "2GB")
    assert ticket.wait(60).state is TicketState.SUCCESS


@pytest.mark.timeout(180)
def test_a_ticket_outlives_an_outage_of_its_store(client: Client, stack: Stack) -> None:
    """An event is acknowledged only after its outcome is stored in its ticket."""
    tickets = [client.submit("create_record", "SampleRows", {"id": new_id()})]
    stack.server("mongodb").down()
    try:
        tickets += [client.submit("create_record", "SampleRows", {"id": new_id()}) for _ in range(3)]
        time.sleep(8)
    finally:
        stack.server("mongodb").up()
    for ticket in tickets:
        assert client.ticket(ticket.guid).wait(90).state is TicketState.SUCCESS


def test_a_worker_that_did_not_hear_that_it_may_begin_asks_again_and_begins(settings: Settings, stack: Stack) -> None:
    """If the answer to its claim is lost with the connection, a worker must recognize its own claim."""
    with closing(AdapterFactory(settings, TemplateRegistry.from_folder(settings.schema_path))) as factory:
        store = TicketStore(factory, 3600)
        guid = str(uuid7())
        ticket = {"user": "somebody", "guid": guid, "event_id": f"ms.test.{guid}"}
        first = store.start(ticket, "w1", "claim of w1", again=False)
        assert first is not None
        assert store.start(ticket, "w1", "claim of w1", again=False) is not None
        assert store.start(ticket, "w2", "claim of w2", again=False) is None
        assert store.start(ticket, "w2", "claim of w2", again=True) is not None  # RabbitMQ has redelivered it

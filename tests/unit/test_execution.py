"""One event from claim to ending, without Celery, RabbitMQ or a database."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from beds.adapters.store import harmless
from beds.client.lineage import build
from beds.domain.clock import Clock
from beds.domain.lineage import Lineage
from beds.domain.reply import Page, Response
from beds.domain.ticket import TicketState
from beds.domain.trace import Trace, current_trace
from beds.errors import (
    BedsError,
    ClientClosed,
    SchemaMismatch,
    StoreUnavailable,
    TemplateError,
    TicketRevoked,
    UnknownTemplate,
)
from beds.services.execution import (
    CALL_WAIT_SECONDS,
    KEEP_SECONDS,
    TICKET_PATIENCE,
    Abandon,
    Attempt,
    Delivery,
    Ending,
    Execution,
    InOtherHands,
    Postpone,
    Redeliver,
    checkpoint,
)
from beds.services.tickets import TicketStore
from beds.templates.registry import TemplateRegistry
from beds.testing import MemoryFactory
from beds.wire import codec
from beds.wire.header import EventHeader
from beds.wire.routes import QUEUE_ROUTES, ROUTES
from tests.conftest import ROOT

ZED = {"carrier": "ZZ", "name": "Zed"}


class Interrupt(Exception):
    """Stands for the soft time limit."""


class Tickets(TicketStore):
    """One ticket, in memory."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = {"state": "STARTED", "guid": "g"}
        self.ended: list[tuple[TicketState, dict[str, Any]]] = []
        self.steps: list[int] = []
        self.refusals = 0

    def start(self, ticket: Mapping[str, Any], worker: str, claim: str, *, again: bool) -> dict[str, Any] | None:
        return self.found

    def progress(self, user: str, guid: str, done: int, total: int | None, unit: str) -> dict[str, Any]:
        self.steps.append(done)
        assert self.found is not None
        return self.found

    def end(
        self,
        user: str,
        guid: str,
        state: TicketState,
        outcome: bytes,
        by: str = "",
        *,
        dead: bool = False,
        retryable: bool = False,
    ) -> None:
        if self.refusals:
            self.refusals -= 1
            raise SchemaMismatch("tickets_change is missing")
        self.ended.append((state, json.loads(outcome)))


class Recorder:
    """Stores the arguments of its calls."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.interrupt = False
        self.error: BedsError | None = None

    def ended(self, delivery: Delivery, trace: Trace, outcome: str, reply: Any) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.outcomes.append(outcome)
        if self.interrupt:
            self.interrupt = False
            raise Interrupt

    def confirm(self, audit: Any) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.factory = MemoryFactory(TemplateRegistry.from_folder(ROOT / "schema"))
        self.tickets, self.recorder = Tickets(), Recorder()
        self.execution = Execution(
            self.factory,
            self.tickets,
            self.recorder,
            max_body_bytes=2**20,
            patience=lambda queue: 0.1,
            interrupts=Interrupt,
            longest_wait=60,
            give_up=lambda why: pytest.fail(why),
        )

    def run(
        self,
        act: Any,
        task: str = "rel.create_record",
        *,
        ticket: bool = True,
        since: float = 0.0,
        redelivered: bool = False,
        in_doubt: bool = False,
        lineage: Lineage | None = None,
        **arguments: Any,
    ) -> Ending:
        lineage = lineage or Lineage.root("ms", "test")
        header = EventHeader(lineage, lineage.event_id, ticket)
        body = codec.encode(arguments or {"template": "Airlines", "payload": ZED})
        route = ROUTES[task]
        delivery = Delivery(
            lineage.guid,
            task,
            route,
            header,
            "beds_app",
            "rel.write",
            redelivered=redelivered,
            in_doubt=in_doubt,
            waiting_since=since,
            arguments=body,
        )
        return self.execution.run(Attempt(delivery), act)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_here_imports_celery() -> None:
    code = "import sys, beds.services.execution as _; print('celery' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_answer_ends_the_ticket_and_is_recorded(bench: Bench) -> None:
    ending = bench.run(lambda trace, body: Response("ZZ", 1))
    assert json.loads(ending.reply)["result"]["record_id"] == "ZZ"
    assert bench.recorder.outcomes == ["ok"]
    assert bench.tickets.ended == [(TicketState.SUCCESS, json.loads(ending.reply))]


def test_one_event_may_write_twice_and_each_write_has_its_effect_once(bench: Bench) -> None:
    """The ledger's key is the event and the number of the write in it."""
    adapter = bench.factory.adapter("Airlines")

    def two(trace: Trace, body: Any) -> Response:
        adapter.create_record({"carrier": "AA", "name": "A"})
        return adapter.create_record({"carrier": "BB", "name": "B"})

    lineage = Lineage.root("ms", "test")
    header = EventHeader(lineage, lineage.event_id)
    for _ in range(2):  # delivered, and delivered again
        delivery = Delivery(lineage.guid, "rel.create_record", ROUTES["rel.create_record"], header, "beds_app",
                            arguments={"template": "Airlines", "payload": ZED})  # fmt: skip
        ending = bench.execution.run(Attempt(delivery), two)
        assert ending.error is None
        assert ending.value.record_id == "BB"
    assert {record["carrier"] for record in adapter._store.records.values()} == {"AA", "BB"}  # type: ignore[attr-defined]


def test_progress_is_reported_and_a_cancelled_event_stops_there(bench: Bench) -> None:
    def long(trace: Trace, body: Any) -> Response:
        for done in range(10):
            if done == 3:
                bench.tickets.found = {"state": "PROGRESS", "guid": "g", "cancelled_by": "me"}
            checkpoint(done, 10)
        return Response("", 10)

    ending = bench.run(long)
    assert bench.tickets.steps == [0, 1, 2, 3]
    assert isinstance(ending.error, TicketRevoked)
    assert ending.state is TicketState.REVOKED


def test_a_checkpoint_of_an_event_without_a_ticket_does_nothing(bench: Bench) -> None:
    checkpoint(1)

    def act(trace: Trace, body: Any) -> Response:
        checkpoint(1)
        return Response("", 1)

    assert bench.run(act, ticket=False).error is None
    assert bench.tickets.steps == []
    assert current_trace() is None


def test_a_store_in_doubt_decides_nothing(bench: Bench) -> None:
    def doubt(trace: Trace, body: Any) -> Response:
        raise StoreUnavailable("the connection broke")

    with pytest.raises(Postpone):
        bench.run(doubt)
    assert (bench.recorder.outcomes, bench.tickets.ended) == ([], [])
    assert bench.run(doubt, "rel.fetch_records", ticket=False).error is not None  # a caller of a read gets its error


@pytest.mark.parametrize("task", ["rel.create_record", "rel.fetch_records"])
def test_an_event_with_a_ticket_waits_for_its_store_as_long_as_it_may(bench: Bench, task: str) -> None:
    def away(trace: Trace, body: Any) -> Response:
        raise harmless(StoreUnavailable("it is away"))

    for since in (0.0, time.time() - 50):
        with pytest.raises(Postpone):
            bench.run(away, task, since=since)
    assert bench.tickets.ended == []
    assert isinstance(bench.run(away, task, since=time.time() - 61).error, StoreUnavailable)
    assert [state for state, _ in bench.tickets.ended] == [TicketState.FAILURE]
    assert isinstance(bench.run(away, task, ticket=False).error, StoreUnavailable)


def test_a_write_in_doubt_that_has_waited_too_long_goes_to_the_dead_events(bench: Bench) -> None:
    """Nobody may tell its caller that it failed."""

    def doubt(trace: Trace, body: Any) -> Response:
        raise StoreUnavailable("the connection broke")

    with pytest.raises(Abandon):
        bench.run(doubt, since=time.time() - 61)
    with pytest.raises(Abandon):
        bench.run(doubt, since=time.time() - CALL_WAIT_SECONDS - 1, ticket=False)


def test_an_attempt_that_wrote_nothing_says_nothing_of_the_one_before(bench: Bench) -> None:
    """The first delivery was in doubt; the second cannot reach the store at all."""

    def away(trace: Trace, body: Any) -> Response:
        raise harmless(StoreUnavailable("it cannot be reached"))

    for ticket in (True, False):
        with pytest.raises(Postpone) as caught:
            bench.run(away, ticket=ticket, redelivered=True, in_doubt=True, since=time.time() - 5)
        assert caught.value.in_doubt
        with pytest.raises(Abandon):
            bench.run(away, ticket=ticket, redelivered=True, in_doubt=True, since=time.time() - 61)
    assert bench.tickets.ended == []


def test_a_ticket_occupies_its_slot_for_a_moment_while_the_store_is_away(bench: Bench) -> None:
    seen: list[float] = []

    def look(trace: Trace, body: Any) -> Response:
        seen.append(trace.patience)
        return Response("a", 1)

    bench.run(look)
    bench.run(look, since=time.time() - 5)
    bench.run(look, ticket=False)
    assert seen == [TICKET_PATIENCE, 0.0, math.inf]


def test_a_write_whose_caller_waits_is_repeated_at_once_and_then_later(bench: Bench) -> None:
    def doubt(trace: Trace, body: Any) -> Response:
        raise StoreUnavailable("the connection broke")

    with pytest.raises(Redeliver) as caught:
        bench.run(doubt, ticket=False)
    assert not isinstance(caught.value, Postpone)
    with pytest.raises(Postpone):
        bench.run(doubt, ticket=False, redelivered=True)


def test_a_cancelled_write_that_was_committed_before_is_no_cancelled_one(bench: Bench) -> None:
    """Its first delivery committed, and was lost; the user cancelled before the second."""
    lineage = Lineage.root("ms", "test")

    def write(trace: Trace, body: Any) -> Any:
        return bench.factory.adapter("Airlines").create_record(ZED)

    bench.run(write, lineage=lineage)
    bench.tickets.found = {"state": "STARTED", "guid": lineage.guid, "cancelled_by": "somebody"}
    ended = bench.run(write, lineage=lineage, redelivered=True)
    assert (ended.state, ended.value.affected) == (TicketState.SUCCESS, 1)
    never = bench.run(write, redelivered=True)
    assert isinstance(never.error, TicketRevoked)


def test_only_workers_say_that_an_event_waits() -> None:
    header = EventHeader.read({"waiting_since": 5.0}, "g")
    assert header.waits_since({"user_id": "workers"}, "workers") == 5.0
    assert header.waits_since({"user_id": "app"}, "workers") == 0.0
    odd: Any
    for odd in (True, "5", -1, None, [], 1e300, float("nan")):
        assert EventHeader.read({"waiting_since": odd}, "g").waiting_since == 0.0


def test_a_copy_in_other_hands_is_left_to_them(bench: Bench) -> None:
    bench.tickets.found = None
    with pytest.raises(InOtherHands):
        bench.run(lambda trace, body: pytest.fail("it was executed"))


def test_a_ticket_that_ended_before_is_answered_and_not_executed(bench: Bench) -> None:
    bench.tickets.found = {"state": "SUCCESS", "guid": "g", "outcome": '{"status": "SUCCESS"}'}
    ending = bench.run(lambda trace, body: pytest.fail("it was executed"))
    assert ending.reply == b'{"status": "SUCCESS"}'
    assert bench.recorder.outcomes == []


def test_an_outcome_stands_when_the_limit_strikes_while_it_is_recorded(bench: Bench) -> None:
    bench.recorder.interrupt = True
    ending = bench.run(lambda trace, body: Response("ZZ", 1))
    assert ending.error is None
    assert bench.recorder.outcomes == ["ok", "ok"]
    assert [state for state, _ in bench.tickets.ended] == [TicketState.SUCCESS]


def test_an_event_without_an_acceptance_has_a_ticket_that_can_be_made(bench: Bench) -> None:
    """By a worker that begins it, or by the dead-letter consumer when it is given up."""
    lineage = Lineage.root("ms", "test")
    header = EventHeader(lineage, lineage.event_id, ticket=True)
    store = TicketStore(bench.factory, 60)
    store.accept("beds_app", [header.acceptance(lineage.guid, "Airlines.create_record")])
    assert store.status("beds_app", lineage.guid).state is TicketState.PENDING


def test_an_outcome_that_could_not_be_recorded_is_recorded_before_it_is_answered(bench: Bench) -> None:
    lineage = Lineage.root("ms", "test")
    header = EventHeader(lineage, lineage.event_id, ticket=True)
    delivery = Delivery(lineage.guid, "rel.create_record", ROUTES["rel.create_record"], header, "beds_app",
                        arguments={"template": "Airlines", "payload": ZED})  # fmt: skip
    attempt = Attempt(delivery)
    closed = ClientClosed("the shipper is closed")
    bench.recorder.error = closed
    with pytest.raises(ClientClosed):
        bench.execution.run(attempt, lambda trace, body: Response("ZZ", 1))
    assert attempt.ending is not None
    assert not attempt.ending.concluded
    ending = bench.execution.refuse(attempt, closed, closed)
    assert (ending.error, ending.concluded) == (None, True)
    assert [state for state, _ in bench.tickets.ended] == [TicketState.SUCCESS]


def test_a_ticket_store_that_refuses_is_asked_again(bench: Bench) -> None:
    bench.tickets.refusals = 2
    assert bench.run(lambda trace, body: Response("ZZ", 1)).error is None
    assert len(bench.tickets.ended) == 1


class GaveUp(Exception):
    """Stands for the end of the process."""


def test_an_outcome_that_cannot_be_stored_for_minutes_leaves_the_event_unacknowledged(bench: Bench) -> None:
    """By a clock of the test's own: five minutes of pauses, and no second of waiting."""
    seconds = [0.0]

    def give_up(why: str) -> NoReturn:
        raise GaveUp(why)

    bench.execution = Execution(
        bench.factory,
        bench.tickets,
        bench.recorder,
        max_body_bytes=2**20,
        patience=lambda queue: 0.1,
        interrupts=Interrupt,
        longest_wait=60,
        give_up=give_up,
        clock=Clock(lambda: seconds[0], lambda pause: seconds.__setitem__(0, seconds[0] + pause)),
    )
    bench.tickets.refusals = 10_000
    with pytest.raises(GaveUp, match="cannot be kept"):
        bench.run(lambda trace, body: Response("ZZ", 1))
    assert KEEP_SECONDS - 2 < seconds[0] <= KEEP_SECONDS
    assert bench.tickets.ended == []


def test_what_nobody_expected_is_an_internal_error_without_its_words(bench: Bench) -> None:
    ending = bench.run(lambda trace, body: json.loads("secret"))
    assert ending.error is not None
    assert ending.error.code == "internal"
    assert b"secret" not in ending.reply


# --- templates, and what people print ---------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "templates"
    folder.mkdir()
    good = ["[template]", 'name = "Good"', 'store = "rel"', 'key = "id"', "[fields.id]", 'type = "string"']
    (folder / "good.toml").write_text("\n".join(good))
    (folder / "bad.toml").write_text('[template\nname = "Bad"')
    yield tmp_path


def test_one_broken_template_leaves_the_others(broken: Path) -> None:
    found = TemplateRegistry.from_folder(broken, strict=False)
    assert "Good" in found
    (problem,) = found.broken
    assert "bad.toml" in str(problem)
    with pytest.raises(UnknownTemplate, match=r"bad\.toml"):
        found["Bad"]
    with pytest.raises(TemplateError):
        TemplateRegistry.from_folder(broken)


def test_what_people_print_shows_what_it_holds() -> None:
    page = Page(({"carrier": "ZZ", "name": "Zed"},) * 12, "next")
    assert "Zed" in repr(page)
    assert "12 records, more follow" in repr(page)
    assert "2 more" in repr(page)
    assert "Zed" in repr(Response("ZZ", 1, {"name": "Zed"}))
    root = {
        "event_id": "ms.test.a",
        "root_id": "ms.test.a",
        "depth": 0,
        "name": "Airlines.create_record",
        "outcome": "ok",
    }
    child = {"event_id": "ms.test.b", "parent_id": "ms.test.a", "depth": 1, "kind": "call", "name": "airlines_create"}
    lines = str(build([root, child], "ms.test.a")).splitlines()
    assert "Airlines.create_record" in lines[0]
    assert lines[1].startswith("  call  airlines_create")


def test_one_table_has_all_routes() -> None:
    import celeryconfig

    assert celeryconfig.task_routes == {task: {"queue": route.queue.name} for task, route in ROUTES.items()}
    assert {queue.name for queue in celeryconfig.task_queues} == {*QUEUE_ROUTES, "beds.dead"}

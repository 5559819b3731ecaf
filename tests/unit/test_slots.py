"""The parts of a slot that need no server: its page, frames, audit records and what it received."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
from celery.worker.consumer import Consumer

from beds.config import Settings
from beds.domain.event import Event, RecordKind
from beds.domain.lineage import Lineage
from beds.errors import MalformedEvent
from beds.services.execution import Redeliver
from beds.transport.confirms import UNCONFIRMED_SECONDS
from beds.transport.connection import HostsConnection
from beds.transport.frames import FrameReader
from beds.worker.consumer import MOST_LOCKED, ValidatingConsumer
from beds.worker.slots.audits import Batch, SlotAudits
from beds.worker.slots.board import PAGE_BYTES, Board, SlotState, Work
from beds.worker.slots.connection import ConnectionLost
from beds.worker.slots.pool import SlotPool, _groups, _Place
from beds.worker.slots.received import Received

WORK = Work("guid-1", "rel.read", "(Flights.fetch_records)", "rel.read", 12.5)


def test_a_page_shows_the_current_event_and_those_behind_it() -> None:
    page = Board(2).page(1)
    waiting = [Work(f"g{n}", "t", "s", "q") for n in range(3)]
    page.show_state(SlotState.CONSUMING)
    page.show_waiting(waiting)
    page.begin(WORK)
    view = page.read()
    assert (view.state, view.active, view.waiting) == (SlotState.CONSUMING, WORK, tuple(waiting[1:]))
    page.end(3)
    page.end(3)
    assert page.read().active is None
    assert page.read().counts[3] == 2


def test_pages_do_not_overlap_and_odd_text_stays_in_its_field() -> None:
    board = Board(2)
    first, second = board.page(0), board.page(1)
    second.begin(WORK)
    first.show_waiting([Work("x" * 500, "a\tb\nc", "ü" * 500, "q")] * 200)
    first.begin(Work("y" * 5000, "t\n", "\ud800", "q", 1.0))
    assert second.read().active == WORK
    active = first.read().active
    assert active is not None
    assert active.task == "t"
    assert all(len(work.guid) <= 200 and work.task == "a b c" for work in first.read().waiting)
    assert len(first.read().waiting) * 200 < PAGE_BYTES


def test_a_new_process_of_a_slot_begins_anew_and_keeps_the_counts() -> None:
    board = Board(1)
    board.page(0).begin(WORK)
    board.page(0).end(1)
    board.page(0).begin(WORK)
    page = board.page(0)
    page.reset()
    assert (page.read().active, page.read().counts[1], page.read().state) == (None, 1, SlotState.STARTING)


def test_a_page_is_never_read_half_written() -> None:
    page = Board(1).page(0)
    done = threading.Event()

    def write() -> None:
        for n in itertools.cycle(range(10)):
            if done.is_set():
                return
            page.begin(Work(str(n) * 36, str(n) * 50, str(n) * 100, str(n), float(n + 1)))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5000):
            active = page.read().active
            if active is not None:
                assert len({*active.guid, *active.task, *active.summary, *active.queue}) == 1
                assert active.began == int(active.queue) + 1
    finally:
        done.set()
        writer.join()


def test_a_board_remembers_the_events_that_ended_a_slot() -> None:
    board = Board(1)
    guids = [f"{n:036d}" for n in range(300)]
    for guid in guids:
        board.suspect(guid)
    assert board.deaths(guids[-1]) == 1
    assert not board.deaths(guids[0]), "the oldest is forgotten"
    assert not board.deaths("0" * 35 + "x")
    board.suspect(guids[-1])
    assert board.deaths(guids[-1]) == 2


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


@pytest.mark.parametrize("step", [1, 3, 7, 8, 64, 100_000])
def test_frames_are_cut_wherever_the_bytes_are_split(step: int) -> None:
    here, there = socket.socketpair()
    taken: list[tuple[int, int, bytes]] = []
    reader = FrameReader(SimpleNamespace(sock=here, on_inbound_frame=taken.append))
    payloads = [os.urandom(size) for size in (0, 1, 7, 300, 131_064 % 4000)]
    sent = b"".join(frame(8, payload) for payload in payloads)
    for at in range(0, len(sent), step):
        there.sendall(sent[at : at + step])
        reader.read()
    assert [payload for _, _, payload in taken] == payloads
    reader.read()  # nothing has arrived, and it does not wait
    there.sendall(struct.pack(">BHI", 8, 1, 1) + b"xy")
    with pytest.raises(OSError, match="no frame"):
        reader.read()
    there.close()
    with pytest.raises(ConnectionResetError):
        reader.read()
    here.close()


class FakeConnection:
    """Takes what is published; `confirm` answers as RabbitMQ does."""

    user = "beds_worker"

    def __init__(self, audits: Callable[[], SlotAudits]) -> None:
        self.published: list[amqp.Message] = []
        self.answers: list[bool] = []
        self.lock = threading.RLock()
        self.free_since = 0.0
        self._audits = audits

    def lost(self, why: str) -> ConnectionLost:
        return ConnectionLost(why)

    def publish_confirmed(
        self, message: amqp.Message, _exchange: str, _key: str, register: Callable[[int], None]
    ) -> None:
        self.published.append(message)
        register(len(self.published))

    def wait(self, _seconds: float) -> None:
        if not self.answers:
            raise ConnectionLost("gone")

    def receive(self) -> None:
        self._audits().on_confirm(len(self.published), False, self.answers.pop(0))


@pytest.fixture
def fake() -> tuple[SlotAudits, FakeConnection]:
    def make(records: Sequence[dict[str, Any]]) -> Event:
        return Event.of_records(RecordKind.AUDIT, "", {"node": "n"}, records, Lineage.root("n", "test"))

    connection = FakeConnection(lambda: audits)
    audits = SlotAudits(make, 4000, lambda: connection)  # type: ignore[arg-type,return-value]
    return audits, connection


def records_in(message: amqp.Message) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(message.body)[1]["records"]
    return found


def test_audit_records_travel_together_and_are_confirmed_together(fake: tuple[SlotAudits, FakeConnection]) -> None:
    audits, connection = fake
    first, second = audits.send({"n": 1}), audits.send({"n": 2})
    audits.flush(connection)  # type: ignore[arg-type]
    third = audits.send({"n": 3})
    audits.flush(connection)  # type: ignore[arg-type]
    assert [records_in(message) for message in connection.published] == [[{"n": 1}, {"n": 2}], [{"n": 3}]]
    audits.on_confirm(1, False, True)
    assert (first.is_confirmed, second.is_confirmed, third.is_confirmed) == (True, True, False)
    audits.on_confirm(2, True, True)
    assert third.is_confirmed


def test_a_refused_or_returned_audit_record_is_published_again(
    fake: tuple[SlotAudits, FakeConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    audits, connection = fake
    monkeypatch.setattr("beds.worker.slots.audits.PAUSE_SECONDS", 0.0)
    audit = audits.send({"n": 1})
    audits.flush(connection)  # type: ignore[arg-type]
    audits.on_confirm(1, False, False)
    audits.flush(connection)  # type: ignore[arg-type]
    audits.on_return("beds.logs", "audit")
    audits.on_confirm(2, False, True)
    assert not audit.is_confirmed, "no queue took it, although RabbitMQ confirms it"
    connection.answers = [True]
    audits.confirm(audit)
    assert audit.is_confirmed
    assert len(connection.published) == 3


def test_records_too_large_for_one_message_are_split_and_confirmed_as_a_whole(
    fake: tuple[SlotAudits, FakeConnection],
) -> None:
    audits, connection = fake
    audit = audits.send({"n": 0, "values": "x" * 3000})
    assert audits.send({"n": 1, "values": "x" * 3000}) is audit
    audits.send({"n": 2, "values": "x" * 9000, "fields": ["a"]})
    audits.flush(connection)  # type: ignore[arg-type]
    sent = [record for message in connection.published for record in records_in(message)]
    assert [record["n"] for record in sent] == [0, 1, 2]
    assert sent[2]["values"] == "{}", "one that is too large alone says who changed which record"
    for tag in range(1, len(connection.published)):
        audits.on_confirm(tag, False, True)
    assert not audit.is_confirmed
    audits.on_confirm(len(connection.published), False, True)
    assert audit.is_confirmed


def test_a_lost_connection_ends_the_wait_for_a_confirm(fake: tuple[SlotAudits, FakeConnection]) -> None:
    audits, _ = fake
    with pytest.raises(Redeliver):
        audits.confirm(audits.send({"n": 1}))
    audits.forget()
    assert not audits.is_due
    audits.on_confirm(1, False, True)  # a late confirm means nothing
    assert isinstance(audits.send({"n": 2}), Batch)


def test_a_connection_that_confirms_nothing_is_given_up_with_growing_patience(
    fake: tuple[SlotAudits, FakeConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    audits, connection = fake
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("beds.worker.slots.audits.time", clock)
    monkeypatch.setattr("beds.transport.confirms.time", clock)

    def seconds_until_given_up() -> float:
        audits.send({"n": 1})
        audits.flush(connection)  # type: ignore[arg-type]
        began = now[0]
        while True:
            now[0] += 1
            try:
                audits.check(connection)  # type: ignore[arg-type]
            except ConnectionLost:
                audits.forget()
                return now[0] - began

    connection.free_since = math.inf
    audits.send({"n": 0})
    audits.flush(connection)  # type: ignore[arg-type]
    now[0] += 1000
    audits.check(connection)  # type: ignore[arg-type]  # RabbitMQ blocks it: no confirm is due
    audits.forget()
    connection.free_since = 0.0
    first, second = seconds_until_given_up(), seconds_until_given_up()
    assert UNCONFIRMED_SECONDS < first < UNCONFIRMED_SECONDS + 2
    assert second > 1.4 * first
    audits.send({"n": 2})
    audits.flush(connection)  # type: ignore[arg-type]
    audits.on_confirm(len(connection.published), False, True)
    assert seconds_until_given_up() < UNCONFIRMED_SECONDS + 2


def test_a_worker_waits_for_its_own_queue_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cluster another node may hold the exclusive queue of a lost connection for some seconds."""
    passed: list[Exception] = []
    monkeypatch.setattr(Consumer, "on_connection_error_after_connected", lambda _self, exc: passed.append(exc))
    monkeypatch.setattr("beds.worker.consumer.time.sleep", lambda _seconds: None)
    consumer = ValidatingConsumer.__new__(ValidatingConsumer)
    locked = amqp.ResourceLocked("it is exclusive")
    for _ in range(MOST_LOCKED):
        consumer.on_connection_error_after_connected(locked)
    assert len(passed) == MOST_LOCKED
    with pytest.raises(amqp.ResourceLocked):
        consumer.on_connection_error_after_connected(locked)
    consumer.on_connection_error_after_connected(OSError("another loss"))
    consumer.on_connection_error_after_connected(locked)


def received(body: bytes = b"[[], {}, {}]", **properties: Any) -> Received:
    found = amqp.Message(body, content_type="application/json", application_headers={"id": "x"})
    found.properties.update(properties)
    found.delivery_info = {"delivery_tag": 1, "routing_key": "rel.read", "redelivered": False}
    return Received(found)


@pytest.mark.parametrize(
    "properties", [{"content_type": "application/x-python-serialize"}, {"content_encoding": "utf-16"}]
)
def test_a_body_of_another_type_is_refused(properties: dict[str, Any]) -> None:
    with pytest.raises(MalformedEvent):
        _ = received(**properties).payload


def test_an_event_expires_by_its_ttl_here_and_by_the_header_of_celerys_clients() -> None:
    late = received(expiration="50")
    assert not late.has_expired
    late.arrived -= 1
    assert late.has_expired
    for text, expected in (
        ((datetime.now(UTC) - timedelta(seconds=5)).isoformat(), True),
        ((datetime.now(UTC) + timedelta(hours=1)).isoformat(), False),
    ):
        assert received(application_headers={"id": "x", "expires": text}).has_expired is expected
    with pytest.raises(MalformedEvent):
        _ = received(application_headers={"id": "x", "expires": "soon"}).has_expired


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        (4, [("rel.read",), ("rel.read",), ("calgon", "operator"), ("calgon", "operator")]),
        (3, [("rel.read",), ("calgon", "operator")]),
        (1, [("rel.read", "calgon", "operator")]),
    ],
)
def test_each_slot_consumes_the_queues_of_one_entry_of_brokers(slots: int, expected: list[tuple[str, ...]]) -> None:
    assert _groups(["rel.read", "calgon", "operator"], Settings(), slots) == expected


def test_a_slot_that_does_not_begin_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another thread held at the fork stays locked in the child."""
    pool = object.__new__(SlotPool)
    pool._hard_limit = math.inf
    page = Board(1).page(0)
    page.reset()
    process = multiprocessing.get_context("fork").Process(target=threading.Event().wait)
    process.start()
    try:
        place = _Place(0, page, process)
        pool._limit(place, process)
        assert not place.is_killed, "it has just begun"
        monkeypatch.setattr("beds.worker.slots.pool.START_SECONDS", 0.0)
        page.show_state(SlotState.CONNECTING)
        pool._limit(place, process)
        assert not place.is_killed, "it is alive, and waits for RabbitMQ"
        page.reset()
        pool._limit(place, process)
        assert place.is_killed
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
    finally:
        process.kill()


def test_a_connection_asks_for_no_other_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """kombu tries to import librabbitmq, whose module lock may be held at a fork."""
    asked: list[str] = []

    class Spy:
        def find_spec(self, name: str, *_: Any) -> None:
            asked.append(name)

    monkeypatch.setattr(sys, "meta_path", [Spy(), *sys.meta_path])
    connection = HostsConnection(["amqp://user@one:1/v", "amqp://user@two:2/v"])
    connection.switch("amqp://user@two:2/v")
    assert "librabbitmq" not in asked
    assert connection.as_uri() == "amqp://user:**@two:2/v"

"""Reads from replicas: what is read where, by positions alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from beds.adapters import replicas
from beds.adapters.mariadb.session import gtid_position
from beds.adapters.replicas import CHECK_SECONDS, REST_SECONDS, ReplicaReader, has_passed
from beds.adapters.store import ObjectStore, Outcome, Position
from beds.config.sections import ReplicaReads
from beds.domain.event import Operation
from beds.errors import InvalidPayload, StoreUnavailable
from beds.templates.binding import Binding

READ = cast(Binding, SimpleNamespace(operation=Operation.FETCH, target=SimpleNamespace(may_write=False)))
WRITES = cast(Binding, SimpleNamespace(operation=Operation.FETCH, target=SimpleNamespace(may_write=True)))


class Clock:
    """Time that passes only when told, or slept through."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclasses.dataclass
class Server:
    """A primary or replica with a position, which may fail."""

    number: int = 100
    writer: str = "1"
    server: str = "b:3306"
    error: Exception | None = None
    calls: int = 0
    left: int = 0
    asked: int = 0
    on_position: Callable[[], None] = lambda: None

    def position(self) -> Position:
        self.asked += 1
        self.on_position()
        if self.error:
            raise self.error
        return {"0": (self.number, self.writer)}

    def execute(self, *_: Any) -> Outcome:
        if self.error:
            raise self.error
        self.calls += 1
        return Outcome()

    def leave(self) -> None:
        self.left += 1

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(replicas, "time", found)
    return found


@pytest.fixture
def primary() -> Server:
    return Server()


@pytest.fixture
def replica() -> Server:
    return Server()


def reader(primary: Server, replica: Server, **config: Any) -> ReplicaReader:
    return ReplicaReader(cast(ObjectStore, primary), replica, ReplicaReads(**{"max_lag": 4.0, **config}))


def test_a_position_is_passed_only_with_the_same_last_writer() -> None:
    at = gtid_position("0-2-104,1-1-7")
    assert has_passed(gtid_position(b"0-2-104,1-1-7"), at)
    assert has_passed(gtid_position("0-2-105,1-1-9,2-1-1"), at)
    assert not has_passed(gtid_position("0-2-103,1-1-7"), at)
    assert not has_passed(gtid_position("0-2-104"), at)
    assert not has_passed(gtid_position("0-1-105,1-1-7"), at), "a former primary with writes of its own"
    assert not has_passed(at, {}), "an unknown position"


def test_reads_go_to_the_replica_and_writes_do_not(clock: Clock, primary: Server, replica: Server) -> None:
    reads = reader(primary, replica)
    for _ in range(50):
        reads.execute(READ, {})
        clock.now += 0.01
    assert (replica.calls, primary.calls) == (50, 0)
    assert primary.asked == 1, "the position is noted four times within the bound, not at each read"
    reads.execute(WRITES, {})
    assert (replica.calls, primary.calls) == (50, 1)


def test_a_replica_that_stops_is_read_until_the_bound_and_no_longer(
    clock: Clock, primary: Server, replica: Server
) -> None:
    reads = reader(primary, replica)
    reads.execute(READ, {})
    stopped = clock.now
    primary.number += 1  # committed just after the replica stopped
    last = stopped
    while clock.now < stopped + 12:
        before = replica.calls
        reads.execute(READ, {})
        if replica.calls > before:
            last = clock.now
        clock.now += 0.1
    assert 3.0 <= last - stopped <= 4.0
    assert replica.left, "a replica that lags for long is left, since another one may not"
    replica.number = primary.number
    clock.now += REST_SECONDS
    before = replica.calls
    reads.execute(READ, {})
    assert replica.calls == before + 1


def test_another_replica_begins_without_trust(clock: Clock, primary: Server, replica: Server) -> None:
    reads = reader(primary, replica, max_lag=3600)
    reads.execute(READ, {})
    assert replica.calls == 1
    clock.now += 3600 / 4 + 1
    replica.server, replica.number = "c:3306", 1  # the session found another one, which lags an hour
    reads.execute(READ, {})
    assert (replica.calls, primary.calls) == (1, 1)


def test_the_time_that_the_questions_take_counts(clock: Clock, primary: Server, replica: Server) -> None:
    replica.on_position = lambda: clock.sleep(5)
    reader(primary, replica).execute(READ, {})
    assert (replica.calls, primary.calls) == (0, 1)


def test_without_the_primary_the_replica_is_read_until_the_bound(
    clock: Clock, primary: Server, replica: Server
) -> None:
    reads = reader(primary, replica)
    reads.execute(READ, {})
    primary.error = StoreUnavailable("away")
    clock.now += 3.9
    reads.execute(READ, {})
    assert replica.calls == 2
    clock.now += 0.2
    with pytest.raises(StoreUnavailable):
        reads.execute(READ, {})


def test_a_replica_that_fails_rests_and_the_primary_answers(clock: Clock, primary: Server, replica: Server) -> None:
    reads = reader(primary, replica)
    reads.execute(READ, {})
    replica.error = StoreUnavailable("lost")
    for _ in range(10):
        reads.execute(READ, {})
    assert (primary.calls, replica.left) == (10, 1)
    replica.error = None
    reads.execute(READ, {})
    assert primary.calls == 11
    clock.now += REST_SECONDS
    reads.execute(READ, {})
    assert replica.calls == 2


def test_a_callers_error_is_the_callers(clock: Clock, primary: Server, replica: Server) -> None:
    reads = reader(primary, replica)
    reads.execute(READ, {})
    replica.error = InvalidPayload("no such date")
    with pytest.raises(InvalidPayload):
        reads.execute(READ, {})
    assert not replica.left
    assert primary.calls == 0


def test_own_writes_ask_at_each_read_and_wait_once_for_a_replica_that_lags(
    clock: Clock, primary: Server, replica: Server
) -> None:
    reads = reader(primary, replica, own_writes=True)
    for _ in range(3):
        reads.execute(READ, {})
    assert (replica.calls, primary.asked) == (3, 3)
    primary.number += 1
    began = clock.now
    reads.execute(READ, {})
    assert primary.calls == 1
    assert 0.1 < clock.now - began < 0.5
    began = clock.now
    reads.execute(READ, {})
    assert primary.calls == 2
    assert clock.now == began, "it is not waited for again"
    replica.number = primary.number
    reads.execute(READ, {})
    assert replica.calls == 4


def test_own_writes_look_at_the_primary_also_while_the_replica_rests(
    clock: Clock, primary: Server, replica: Server
) -> None:
    """The look leaves a primary that became a replica meanwhile."""
    reads = reader(primary, replica, own_writes=True)
    replica.error = StoreUnavailable("lost")
    reads.execute(READ, {})
    asked = primary.asked
    reads.execute(READ, {})
    assert primary.asked == asked + 1


def test_the_lag_is_measured_within_some_seconds(clock: Clock, primary: Server, replica: Server) -> None:
    reads = reader(primary, replica, max_lag=20)
    assert reads.lag().seconds == 0
    replica.number -= 1
    assert reads.lag().seconds is None
    assert reads.lag().waited == CHECK_SECONDS
    primary.error = StoreUnavailable("away")
    assert reads.lag().problem == "away"

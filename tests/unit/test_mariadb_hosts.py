"""The server that takes writes is found among several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from beds.adapters.mariadb import hosts
from beds.config.sections import RelDatabase
from beds.errors import StoreDenied, StoreUnavailable

NAMES = ("a:1", "b:2", "c:3")


class Server:
    """What `connect` returns for one host."""

    def __init__(self, *, read_only: bool) -> None:
        self.read_only = read_only
        self.is_closed = False

    @contextmanager
    def cursor(self) -> Iterator[Server]:
        yield self

    def execute(self, statement: str) -> None:
        assert "read_only" in statement

    def fetchall(self) -> list[dict[str, int]]:
        return [{"it": int(self.read_only)}]

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "PRIMARIES", hosts.HostOrder())


def opened(states: dict[str, Any]) -> tuple[Any, list[str]]:
    """Connect to servers that are `primary`, `replica` or `away`; returns the connection and the hosts tried."""
    tried: list[str] = []

    def connect(host: str, port: int, seconds: float) -> Any:
        tried.append(f"{host}:{port}")
        assert 1 <= seconds <= 3
        state = states[tried[-1]]
        if state == "stranger":
            raise StoreDenied("it does not know the user")
        if state == "away":
            raise StoreUnavailable("it is away")
        return Server(read_only=state == "replica")

    return hosts.connect_to_primary(RelDatabase(hosts=NAMES), connect), tried


def test_the_one_that_takes_writes_is_found_and_then_tried_first() -> None:
    for _ in range(10):
        found, tried = opened({"a:1": "replica", "b:2": "primary", "c:3": "away"})
        assert not found.read_only
    assert tried == ["b:2"]


def test_after_a_failover_the_new_primary_is_found() -> None:
    opened({"a:1": "primary", "b:2": "replica", "c:3": "replica"})
    found, tried = opened({"a:1": "away", "b:2": "replica", "c:3": "primary"})
    assert not found.read_only
    assert tried[-1] == "c:3"


def test_reads_go_on_while_no_host_takes_writes() -> None:
    found, tried = opened({"a:1": "away", "b:2": "replica", "c:3": "replica"})
    assert found.read_only
    assert not found.is_closed
    assert set(tried) >= {"b:2", "c:3"}


def test_a_candidate_that_does_not_know_the_user_is_passed_over() -> None:
    for _ in range(20):
        found, tried = opened({"a:1": "stranger", "b:2": "primary", "c:3": "stranger"})
        assert not found.read_only
    assert tried == ["b:2"]
    with pytest.raises(StoreDenied):
        opened(dict.fromkeys(NAMES, "stranger"))


def test_no_host_at_all_is_an_error() -> None:
    with pytest.raises(StoreUnavailable):
        opened(dict.fromkeys(NAMES, "away"))


@pytest.mark.parametrize(
    "given",
    [
        ["a", "a"],
        ["a:x"],
        ["a:1,b:2"],
        [""],
        ["a:1/v"],
        ["u:geheim@a"],
        ["a:"],
        ["A:1", "a:1"],
        ["a:1", "a:01"],
        ["a", "a:3306"],
    ],
)
def test_a_wrong_host_is_refused(given: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        RelDatabase(hosts=tuple(given))
    assert "geheim" not in str(caught.value)


def test_hosts_come_before_the_host() -> None:
    assert RelDatabase(host="a", hosts=("b", "c:7"), port=3307).addresses == [("b", 3307), ("c", 7)]

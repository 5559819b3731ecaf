"""Addresses of several hosts: their form, and the order in which they are tried."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import amqp
import pytest
from pydantic import SecretStr, ValidationError

from beds.config.hosts import each_host
from beds.config.sections import Amqp, Flower
from beds.transport import connection
from beds.transport.connection import FIRST_TRY_SECONDS, HostsConnection, connect_to


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("amqp://u:p@a:1,b:2,c/v", ["amqp://u:p@a:1/v", "amqp://u:p@b:2/v", "amqp://u:p@c/v"]),
        ("amqp://a", ["amqp://a"]),
        ("amqp://u:p@[::1]:5672,b//", ["amqp://u:p@[::1]:5672//", "amqp://u:p@b//"]),
        ("amqps://u:p%2C%40@a,b", ["amqps://u:p%2C%40@a", "amqps://u:p%2C%40@b"]),
    ],
)
def test_each_host_has_a_url(url: str, hosts: list[str]) -> None:
    assert Amqp(url=url).client_url == url
    assert each_host(url) == hosts


@pytest.mark.parametrize(
    "url",
    [
        "amqp://u:geheim@a:1;amqp://u:geheim@b:2",
        "amqp://u:geheim@a:1;b:2/v",
        "amqp://u:geheim@a:1,u:geheim@b:2/v",
        "amqp://u:geheim@a:1/v,b:2/v",
        "amqp://u:geheim@a:1/v;b",
        "amqp://u:geheim@a:1,,b:2",
        "amqp://u:geheim@a:1,",
        "amqp://u:geheim@a:1,a:1",
        "amqp://u:geheim@a:0,b",
        "amqp://u:geheim@a:99999,b",
        "amqp://u:geheim@a:x",
        "amqp://u:geheim@a, b",
        "amqp://u:geheim@a/v?heartbeat=5",
        "amqp://u:geheim@a:1,\tb:2/v",
        "amqp://u:ge\theim@a:1/v",
        "amqp://u:geheim@a:1/v\n",
        "amqp://u:geheim@mq1..local:1,b:2/v",
        "amqp://u:geheim@h:2,a:pw@h:3/v",
        "amqp://u:geheim@h:2,H:2/v",
        "amqp://u:geheim@h,h:5672/v",
        "amqp://u:geheim@h:2,h:02/v",
        "amqp://@h:1,b:2/v",
        "amqp://u:geheim@h:/v",
        "amqp://u:geheim@-/v",
        "amqp://u:geheim@h/%zz",
        "amqp://h:2,a:geheim@h:3/v",
        "amqp://u:geheim@" + "h" * 5000,
        "amqp://u:geheim@/v",
        "amqp://",
        "a:1,b:2",
        "http://a",
    ],
)
def test_a_spelling_without_a_meaning_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Amqp(url=url)
    assert "geheim" not in str(caught.value)


def test_the_heartbeat_is_shorter_where_another_host_can_take_over() -> None:
    assert Amqp(url="amqp://a").heartbeat_seconds == 10
    assert Amqp(url="amqp://a,b").heartbeat_seconds == 3
    assert Amqp(url="amqp://a,b", heartbeat=7).heartbeat_seconds == 7


@contextmanager
def silent() -> Iterator[int]:
    """A server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, float]]]:
    """The hosts that are tried, with their time limits; those named `good…` answer, `strict…` refuse the user."""
    found: list[tuple[str, float]] = []

    def establish(transport: Any) -> Any:
        client = transport.client
        found.append((client.hostname, client.connect_timeout))
        if client.hostname.startswith("strict"):
            raise amqp.AccessRefused("no", (50, 10), 403)
        if client.hostname.startswith("slow"):
            raise TimeoutError
        if not client.hostname.startswith("good"):
            raise ConnectionRefusedError
        return type("Opened", (), {"sock": sock})()

    monkeypatch.setattr("kombu.transport.pyamqp.Transport.establish_connection", establish)
    monkeypatch.setattr(connection, "_failed_at", {})
    with socket.socket() as sock:
        yield found


def to(url: str) -> HostsConnection:
    return connect_to(Amqp(url=url), url)


def test_all_hosts_are_tried_and_one_that_failed_comes_last(opened: list[tuple[str, float]]) -> None:
    for _ in range(20):
        to("amqp://u:p@bad1,bad2,good/v").establish()
    names = [name for name, _ in opened]
    assert names.count("good") == 20
    assert names.count("bad1") <= 1, "tried last afterwards"
    assert names.count("bad2") <= 1


def test_the_first_host_is_one_of_chance(opened: list[tuple[str, float]]) -> None:
    for _ in range(200):
        to("amqp://good1,good2,good3").establish()
    assert {name for name, _ in opened} == {"good1", "good2", "good3"}


def test_one_that_may_only_be_slow_gets_the_time_that_is_left(opened: list[tuple[str, float]]) -> None:
    with pytest.raises(TimeoutError):
        to("amqp://bad1,slow,bad2").establish()
    assert len(opened) == 4
    assert all(seconds <= FIRST_TRY_SECONDS for _, seconds in opened[:3])
    name, seconds = opened[-1]
    assert name == "slow"
    assert FIRST_TRY_SECONDS < seconds <= Amqp().connect_timeout


def test_a_short_timeout_leaves_time_for_every_host(opened: list[tuple[str, float]]) -> None:
    with pytest.raises(OSError):
        connect_to(Amqp(), "amqp://bad1,bad2,bad3", connect_timeout=0.5).establish()
    assert {name for name, _ in opened} == {"bad1", "bad2", "bad3"}
    assert all(seconds <= 0.5 for _, seconds in opened)


def test_a_clone_has_the_whole_time_again(opened: list[tuple[str, float]]) -> None:
    first = to("amqp://bad1,good")
    first.establish()
    assert first.clone()._initial_params["connect_timeout"] == Amqp().connect_timeout


def test_a_user_that_is_refused_is_not_tried_elsewhere(opened: list[tuple[str, float]]) -> None:
    with pytest.raises(amqp.AccessRefused):
        to("amqp://strict1,strict2").establish()
    assert len(opened) == 1


def test_port_and_server_name_are_those_of_each_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """kombu keeps the port of the host before, and writes its name into the TLS options of all."""
    tried: list[tuple[str, ...]] = []

    class Refusing(amqp.Connection):  # type: ignore[misc]
        def __init__(self, host: str, *, ssl: dict[str, Any], **_: Any) -> None:
            tried.append((*host.split(":"), ssl["server_hostname"]))
            raise ConnectionRefusedError

    monkeypatch.setattr("kombu.transport.pyamqp.Transport.Connection", Refusing)
    monkeypatch.setattr(connection, "_failed_at", {})
    with pytest.raises(ConnectionRefusedError):
        to("amqps://u:p@a:1,b,c:3/v").establish()
    assert set(tried) == {("a", "1", "a"), ("b", "5671", "b"), ("c", "3", "c")}


def test_a_clone_knows_all_hosts(opened: list[tuple[str, float]]) -> None:
    to("amqp://u:p@bad1,good/v").clone().establish()
    assert opened[-1][0] == "good"


def test_a_host_that_is_silent_costs_one_second_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_failed_at", {})
    with silent() as one, silent() as other:
        began = time.monotonic()
        with pytest.raises(OSError, match=r"timed out|temporarily unavailable"):
            connect_to(Amqp(connect_timeout=2.5), f"amqp://u:p@127.0.0.1:{one},127.0.0.1:{other}/v").establish()
        assert time.monotonic() - began >= 2


def test_messages_name_all_hosts_and_no_password() -> None:
    where = to("amqp://u:geheim@a:1,b:2/v").where
    assert "a:1,b:2" in where
    assert "geheim" not in where
    assert to("amqp://u:geheim@[::1]:1,[::2]/v").where == "amqp://u:**@[::1]:1,[::2]/v"
    assert to("amqp://a:1,b:2/v").where == "amqp://a:1,b:2/v"
    assert "geheim" not in repr(to("amqp://u:geheim@a:1,b:2/v"))


def test_flower_gets_one_of_several_addresses() -> None:
    flower = Flower(broker_api=SecretStr("http://u:p@a:15672,b:15672/api/"))
    assert flower.environment["FLOWER_BROKER_API"] == "http://u:p@a:15672/api/"

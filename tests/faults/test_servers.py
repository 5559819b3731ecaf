"""Servers that stop, block or vanish: an answer by the deadline, and automatic recovery afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.client.client import Client
from beds.config import Settings
from beds.domain.identity import uuid7
from beds.domain.reply import Response
from beds.errors import (
    BrokerBlocked,
    BrokerUnavailable,
    CallTimeout,
    DuplicateKey,
    StoreUnavailable,
    TimeLimitExceeded,
    TransportError,
)
from beds.stack.stack import Stack
from tests.conftest import OwnVhost, running_worker, wait_for, wait_until_served, workers_in

SLACK = 20.0
"""Seconds that a busy machine may add to a deadline before the test counts it as a hang."""


def works_again(client: Client, template: str = "SampleRows", seconds: float = 60) -> None:
    def answered() -> bool:
        try:
            client.call("fetch_records", template, {"id": "none"}, using="by_id", timeout=5)
        except (StoreUnavailable, TransportError):
            return False
        return True

    wait_for(answered, seconds, "an answer")


@pytest.fixture
def alarm(stack: Stack) -> Iterator[None]:
    stack.rabbitmq.control("set_vm_memory_high_watermark", "0")
    yield
    stack.rabbitmq.control("set_vm_memory_high_watermark", "absolute", "2GB")


def test_trap_3_an_alarm_ends_each_wait_by_its_deadline(client: Client, alarm: None, stack: Stack) -> None:
    for act in (client.call, client.submit):
        started = time.monotonic()
        with pytest.raises((BrokerBlocked, BrokerUnavailable)) as caught:
            act("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=2)
        assert time.monotonic() - started < 2 + SLACK
        assert caught.value.retryable
    # At the second wait the client had already received RabbitMQ's blocked notification.
    assert isinstance(caught.value, BrokerBlocked)
    stack.rabbitmq.control("set_vm_memory_high_watermark", "absolute", "2GB")
    works_again(client)


@pytest.mark.parametrize(("server", "template"), [("mariadb", "SampleRows"), ("mongodb", "SampleDocs")])
def test_a_database_that_is_down_is_unavailable_and_comes_back(
    client: Client, stack: Stack, server: str, template: str
) -> None:
    works_again(client, template)
    target = stack.server(server)
    target.down()
    try:
        for operation, data, using in (("fetch_records", {"id": "x"}, "by_id"), ("delete_record", "x", "")):
            with pytest.raises(StoreUnavailable) as caught:
                client.call(operation, template, data, using=using, timeout=60)
            assert caught.value.retryable
        other = "SampleDocs" if template == "SampleRows" else "SampleRows"
        client.call("fetch_records", other, {"id": "x"}, using="by_id", timeout=30)
    finally:
        target.up()
    works_again(client, template)


def test_a_keyed_write_that_failed_for_an_outage_is_another_attempt_with_the_same_key(
    client: Client, stack: Stack
) -> None:
    works_again(client)
    key, record = str(uuid7()), {"id": str(uuid7())}
    stack.server("mariadb").down()
    try:
        with pytest.raises(StoreUnavailable):
            client.call("create_record", "SampleRows", record, idempotency_key=key, timeout=60)
    finally:
        stack.server("mariadb").up()
    works_again(client)
    assert client.call("create_record", "SampleRows", record, idempotency_key=key, timeout=60) == Response(
        record["id"], 1
    )
    again = client.submit("create_record", "SampleRows", record, idempotency_key=key)
    assert again.result(60) == Response(record["id"], 1)
    with pytest.raises(DuplicateKey):
        client.call("create_record", "SampleRows", record, timeout=60)
    other = str(uuid7())
    for _ in range(2):  # an error that does not pass stays the answer of its key
        with pytest.raises(DuplicateKey):
            client.call("create_record", "SampleRows", record, idempotency_key=other, timeout=60)


def test_rabbitmq_stopped_and_started_again(client: Client, stack: Stack) -> None:
    works_again(client)
    stack.rabbitmq.down()
    try:
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=2)
        assert time.monotonic() - started < 2 + SLACK
    finally:
        stack.rabbitmq.up()
    works_again(client)
    works_again(client, "SampleDocs")


def test_a_killed_pool_child_is_replaced_and_its_event_is_carried_out(
    project: Path, settings: Settings, workers: None, client: Client
) -> None:
    key = str(uuid7())
    children = [process for process in workers_in(project) if not process.children()]
    assert children
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    assert client.call("create_record", "SampleDocs", {"id": key}, timeout=60) == Response(key, 1)
    works_again(client)


@pytest.mark.timeout(120)
def test_a_soft_time_limit_is_a_typed_error(project: Path, own_vhost: OwnVhost) -> None:
    limits = {**own_vhost.env, "BEDS_BROKERS__REL_READ__TIME_LIMIT": "6"}
    with running_worker(project, "rel.read", "-c", "1", env=limits), Client(own_vhost.settings) as client:
        wait_until_served(client, ["SampleRows"])
        with pytest.raises(TimeLimitExceeded):
            client.call("fetch_records", "SampleRows", {"seconds": 60.0}, using="sleep", timeout=60)
        works_again(client)


@pytest.mark.timeout(120)
def test_a_read_that_nobody_waits_for_any_more_is_not_run(project: Path, own_vhost: OwnVhost) -> None:
    """The one slot sleeps; the calls behind it expire, and the slot is free again at once."""
    with running_worker(project, "rel.read", "-c", "1", env=own_vhost.env), Client(own_vhost.settings) as client:
        wait_until_served(client, ["SampleRows"])
        tickets = [client.submit("fetch_records", "SampleRows", {"seconds": 5.0}, using="sleep")]
        for _ in range(4):
            with pytest.raises(CallTimeout):
                client.call("fetch_records", "SampleRows", {"seconds": 20.0}, using="sleep", timeout=1)
        tickets[0].result(timeout=30)
        # Four sleeps of 20 s lie between this call and its answer, unless they were dropped.
        client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=15)

"""Servers that stop, block or vanish: an answer by the deadline, and work again by itself afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from beds.client import Client
from beds.config import Settings
from beds.domain.identity import uuid7
from beds.domain.reply import Response
from beds.errors import (
    BedsError,
    BrokerBlocked,
    BrokerUnavailable,
    CallTimeout,
    StoreUnavailable,
    TimeLimitExceeded,
    TransportError,
)
from beds.stack.stack import Stack
from tests.conftest import running_worker, wait_for

DEADLINE = 6.0
SLACK = 20.0
"""Seconds: what a busy machine may add to a deadline before it counts as a hang."""


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
    # The second wait knew already that RabbitMQ was blocked.
    assert isinstance(caught.value, BrokerBlocked)
    stack.rabbitmq.control("set_vm_memory_high_watermark", "absolute", "2GB")
    works_again(client)


@pytest.mark.parametrize(("server", "template"), [("mariadb", "SampleRows"), ("mongodb", "SampleDocs")])
def test_a_database_that_is_down_is_unavailable_and_comes_back(
    client: Client, stack: Stack, server: str, template: str
) -> None:
    works_again(client, template)
    target = getattr(stack, server)
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
    children = [
        p
        for p in psutil.process_iter(["cmdline"])
        if "rec.read,rec.write,rel.read,rel.write" in (p.info["cmdline"] or []) and not p.children()
    ]
    assert children
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    assert client.call("create_record", "SampleDocs", {"id": key}, timeout=60) == Response(key, 1)
    works_again(client)


def test_a_soft_time_limit_is_a_typed_error(project: Path, settings: Settings, stack: Stack) -> None:
    limits = {"BEDS_BROKERS__JOB_AGGREGATE__TIME_LIMIT": "6"}
    code = (
        "import beds.broker.crud as c\n"
        "from beds.broker.app import app\n"
        "@app.task(bind=True, base=c.CrudTask, name='limit.sleep', store='rel', operation=c.Operation.FETCH)\n"
        "def sleep(self, **kwargs):\n"
        "    return c.CrudTask.run(self, **kwargs)\n"
    )
    (project / "limit_tasks.py").write_text(code)
    with (
        running_worker(project, "job.aggregate", "-I", "limit_tasks", "-c", "1", env=limits),
        Client(settings) as client,
    ):
        event = client._event(  # the sleeping fetch, sent to a queue with a short limit
            __import__("beds").Call("fetch_records", "SampleRows", {"seconds": 30.0}, "sleep"), ticket=True, timeout=60
        )
        moved = _moved(event, "job.aggregate", "limit.sleep")
        pending = client._requester.send(moved, time.monotonic() + 60)
        with pytest.raises(BedsError) as caught:
            pending.reply.result(60)
    assert isinstance(caught.value, TimeLimitExceeded), caught.value


def _moved(event, queue: str, task: str):  # type: ignore[no-untyped-def]
    """The event with another queue and task, as a foreign client might publish it."""

    class Moved(type(event)):  # type: ignore[misc]
        __slots__ = ()
        queue = ""
        task = ""

    Moved.queue, Moved.task = queue, task
    return Moved(event.store, event.operation, event.template, event.body, event.lineage, ticket=True)


def test_an_expired_read_is_never_run(settings: Settings, workers: None, client: Client) -> None:
    """A call that nobody waits for any more does not occupy a slot later."""
    assert client._event(
        __import__("beds").Call("fetch_records", "SampleRows", {"id": "x"}, "by_id"), ticket=False, timeout=5
    ).expires
    with pytest.raises(CallTimeout):
        client.call("fetch_records", "SampleRows", {"seconds": 5.0}, using="sleep", timeout=1)

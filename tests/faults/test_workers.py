"""Workers whose channel RabbitMQ closes, or that restart under their old name."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from beds.client.client import Client
from beds.domain.ticket import TicketState
from beds.stack.stack import Stack
from tests.conftest import OwnVhost, run, running_worker, wait_for, wait_until_served


@pytest.mark.timeout(240)
def test_trap_6_a_worker_that_outlasts_the_consumer_timeout_is_replaced(
    project: Path, own_vhost: OwnVhost, stack: Stack
) -> None:
    """RabbitMQ closes the channel of a consumer that does not acknowledge in time. Validated limits prevent this
    (test_config); if RabbitMQ's own limit is lower, the event is delivered again and the service continues."""
    for name, value in (("consumer_timeout", 3000), ("channel_tick_interval", 1000)):
        stack.rabbitmq.control("eval", f"application:set_env(rabbit, {name}, {value}).")
    try:
        with (
            running_worker(project, "rel.read,calgon", env=own_vhost.env) as worker,
            Client(own_vhost.settings) as client,
        ):
            wait_until_served(client, ["SampleRows"])
            ticket = client.submit("fetch_records", "SampleRows", {"seconds": 8.0}, using="sleep")
            wait_for(lambda: _cut_off(project) or worker.poll() is not None, 60, "RabbitMQ's patience to end")
    finally:
        for name, value in (("consumer_timeout", 1_800_000), ("channel_tick_interval", 60_000)):
            stack.rabbitmq.control("eval", f"application:set_env(rabbit, {name}, {value}).")
    with running_worker(project, "rel.read,calgon", env=own_vhost.env), Client(own_vhost.settings) as client:
        wait_until_served(client, ["SampleRows"])
        assert client.ticket(ticket.guid).wait(90).state is TicketState.SUCCESS


def _cut_off(project: Path) -> bool:
    return "PRECONDITION_FAILED" in (project / "worker.log").read_text(errors="replace")[-20_000:]


@pytest.mark.timeout(120)
def test_trap_8_each_start_of_a_worker_has_a_name_of_its_own(project: Path, own_vhost: OwnVhost) -> None:
    """Celery's control queue is exclusive: after a kill, the queue of that worker name can be locked (405)."""
    log = project / "worker.log"
    begun = len(log.read_text(errors="replace")) if log.exists() else 0
    for n in range(2):
        with running_worker(project, "rel.read", env=own_vhost.env) as worker, Client(own_vhost.settings) as client:
            wait_until_served(client, ["SampleRows"])
            wait_for(lambda n=n: len(_ready(log, begun)) > n, 30, "its parent")
            worker.kill()
            worker.wait()
    assert len(set(_ready(log, begun))) == 2
    assert "RESOURCE_LOCKED" not in log.read_text(errors="replace")[begun:]
    done = run(project, "celery", "-A", "beds", "status", env=own_vhost.env)
    assert done.returncode != 0, "a worker that was killed still answers"


def _ready(log: Path, begun: int) -> list[str]:
    return re.findall(r"(rel\.read\.\w+@ms) ready", log.read_text(errors="replace")[begun:])


@pytest.mark.timeout(120)
def test_the_soft_limit_of_a_first_delivery_does_not_strike_the_second(
    project: Path, own_vhost: OwnVhost, stack: Stack
) -> None:
    """A lost connection ends the first run; its timer must stop, though the second run has the same task id."""
    env = {**own_vhost.env, "BEDS_BROKERS__REL_READ__SOFT_TIME_LIMIT": "8", "BEDS_BROKERS__REL_READ__TIME_LIMIT": "40"}
    with running_worker(project, "rel.read,calgon", env=env), Client(own_vhost.settings) as client:
        wait_until_served(client, ["SampleRows"])
        # Started at second 0 and cut off at second 5, it restarts soon after, and runs past second 8.
        ticket = client.submit("fetch_records", "SampleRows", {"seconds": 6.5}, using="sleep")
        wait_for(lambda: ticket.status().state is TicketState.STARTED, 30, "its begin")
        time.sleep(5)
        stack.rabbitmq.control("close_all_connections", "-p", "own", "a test")
        assert ticket.wait(60).state is TicketState.SUCCESS

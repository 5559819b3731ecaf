"""Between a client and RabbitMQ: permissions, lost connections, and a silent network."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from beds.client.call import Call
from beds.client.client import Client
from beds.client.tickets import Ticket
from beds.config import Settings
from beds.domain.ticket import TicketState
from beds.errors import PermissionDenied, TransportError
from beds.stack.stack import Stack
from tests.conftest import OwnVhost, running_worker, wait_for, wait_until_served
from tests.proxy import SilentProxy

SLACK = 20.0
USER, PASSWORD = "narrow", "narrow-password"


@pytest.fixture
def narrow(settings: Settings, stack: Stack, workers: None) -> Iterator[Client]:
    """A user that may publish to rel.write and calgon only."""
    control = stack.rabbitmq.control
    control("add_user", USER, PASSWORD)
    control("set_permissions", "-p", "beds", USER, "^$", "^beds\\.events$", "^$")
    control("set_topic_permissions", "-p", "beds", USER, "beds.events", "^(rel\\.write|calgon)$", "^$")
    url = SecretStr(f"amqp://{USER}:{PASSWORD}@127.0.0.1:{stack.plan.amqp_port}/beds")
    amqp = settings.amqp.model_copy(update={"url": url, "worker_url": None})
    with Client(settings.model_copy(update={"amqp": amqp})) as client:
        yield client
    control("delete_user", USER)


def test_trap_4_a_client_needs_no_right_but_to_publish_to_its_keys(narrow: Client) -> None:
    key = f"narrow-{time.monotonic_ns()}"
    assert narrow.call("create_record", "SampleRows", {"id": key}).record_id == key  # type: ignore[union-attr]
    ticket = narrow.submit("update_record", "SampleRows", {"id": key, "whole": 5})
    assert ticket.wait(30).state is TicketState.SUCCESS
    for _ in range(2):  # a refusal closes the channel; the next call has a new one
        with pytest.raises(PermissionDenied, match=r"rec\.write"):
            narrow.call("create_record", "SampleDocs", {"id": key}, timeout=20)
    assert narrow.call("update_record", "SampleRows", {"id": key, "whole": 6}, timeout=20).affected == 1  # type: ignore[union-attr]


def test_cut_connections_are_opened_anew(client: Client, stack: Stack) -> None:
    client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id")
    ticket = client.submit("fetch_records", "SampleRows", {"seconds": 2}, using="sleep")
    stack.rabbitmq.control("close_all_user_connections", "beds_app", "a test")
    # Its own reply is lost with the connection; the ticket is not.
    assert ticket.wait(60).state is TicketState.SUCCESS
    client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=30)


def test_submits_outlive_connections_that_are_cut(settings: Settings, client: Client, stack: Stack) -> None:
    """Events that were unconfirmed at the cut are published again; each has one ticket and one effect."""
    known = f"cut-{time.monotonic_ns()}"
    done = threading.Event()

    def cut() -> None:
        for _ in range(4):
            stack.rabbitmq.control("close_all_user_connections", "beds_app", "a test")
        done.set()

    cutter = threading.Thread(target=cut)
    cutter.start()
    tickets: list[Ticket] = []
    while not done.is_set() or not tickets:
        some = range(len(tickets), len(tickets) + 50)
        calls = [Call("create_record", "SampleRows", {"id": f"{known}-{n}"}) for n in some]
        tickets += client.submit_many(calls, timeout=60)
    cutter.join()
    for n, ticket in enumerate(tickets):
        assert ticket.result(60).record_id == f"{known}-{n}"  # type: ignore[union-attr]


def test_a_network_that_goes_silent_ends_each_wait_by_its_deadline(
    settings: Settings, stack: Stack, workers: None
) -> None:
    proxy = SilentProxy(stack.plan.amqp_port)
    url = settings.amqp.client_url.replace(f":{stack.plan.amqp_port}/", f":{proxy.port}/")
    amqp = settings.amqp.model_copy(update={"url": SecretStr(url), "heartbeat": 2})
    try:
        with Client(settings.model_copy(update={"amqp": amqp})) as client:
            client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id")
            proxy.silent = True
            for act in (client.call, client.submit):
                started = time.monotonic()
                with pytest.raises(TransportError) as caught:
                    act("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=2)
                assert caught.value.retryable
                assert time.monotonic() - started < 2 + SLACK
            proxy.silent = False

            def answered() -> bool:
                with contextlib.suppress(TransportError):
                    client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=5)
                    return True
                return False

            wait_for(answered, 60, "an answer")
    finally:
        proxy.close()


@pytest.mark.timeout(200)
def test_workers_and_clients_start_while_one_of_their_hosts_is_away(
    project: Path, own_vhost: OwnVhost, stack: Stack
) -> None:
    """Celery would wait for each host of a list when it sets up its delayed delivery."""
    both = f"127.0.0.1:{stack.plan.amqp_port},127.0.0.1:1/"

    def with_both(url: str) -> str:
        return url.replace(f"127.0.0.1:{stack.plan.amqp_port}/", both)

    env = own_vhost.env | {"BEDS_AMQP__WORKER_URL": with_both(own_vhost.env["BEDS_AMQP__WORKER_URL"])}
    amqp = own_vhost.settings.amqp.model_copy(update={"url": SecretStr(with_both(own_vhost.settings.amqp.client_url))})
    log = project / "worker.log"
    before = log.stat().st_size if log.exists() else 0
    with (
        running_worker(project, "rel.read", env=env),
        Client(own_vhost.settings.model_copy(update={"amqp": amqp})) as client,
    ):
        wait_until_served(client, ["SampleRows"])
        for _ in range(5):
            client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=60)
    told = log.read_bytes()[before:]
    assert b"Connection to broker lost" not in told
    assert b"delayed delivery setup" not in told, "Celery tried the host that is away by itself"

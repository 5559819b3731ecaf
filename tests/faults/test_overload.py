"""A full queue refuses a call and a submit at once; the ticket of the submit ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from beds.client.call import Call
from beds.client.client import Client
from beds.domain.identity import uuid7
from beds.domain.ticket import TicketState
from beds.errors import Overloaded, UnknownTicket
from tests.conftest import OwnVhost, running_worker, wait_for, wait_until_served


@pytest.mark.timeout(180)
def test_a_full_queue_is_overload_and_not_a_hang(project: Path, own_vhost: OwnVhost) -> None:
    env = own_vhost.env | {"BEDS_AMQP__MAX_QUEUE_LENGTH": "20"}
    # A client without max_queue_length treats a nack as in doubt and publishes again.
    amqp = own_vhost.settings.amqp.model_copy(update={"max_queue_length": 20})
    limited = own_vhost.settings.model_copy(update={"amqp": amqp})
    with running_worker(project, "calgon,rel.read", env=env), Client(limited) as client:
        wait_until_served(client, ["SampleRows"])
        # No worker consumes rel.write, so events fill it and further ones are refused. RabbitMQ notices late that a
        # quorum queue is full, so a burst may go through.
        started = time.monotonic()
        with pytest.raises(Overloaded) as caught:
            for _ in range(50):
                calls = [Call("create_record", "SampleRows", {"id": str(uuid7())}) for _ in range(100)]
                client.submit_many(calls, timeout=60)
        assert time.monotonic() - started < 60
        assert caught.value.retryable
        assert caught.value.detail["retry_after"] > 0
        refused = caught.value.detail["refused"]
        assert 0 < len(refused) <= 100

        def ended(guid: str) -> bool:
            try:
                return client.ticket(guid).status().state is TicketState.REVOKED
            except (UnknownTicket, Overloaded):  # this vhost's limit holds for calgon's queue, too
                return False

        for guid in (refused[0], refused[-1]):
            wait_for(lambda guid=guid: ended(guid), 30, "the end of a ticket that was refused")
        with pytest.raises(Overloaded):
            client.call("create_record", "SampleRows", {"id": str(uuid7())}, timeout=30)
        # There is room in the other queues.
        client.call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=30)
        with running_worker(project, "rel.write", env=env):
            wait_for(lambda: _accepted(client), 60, "room in the queue")


def _accepted(client: Client) -> bool:
    try:
        return client.submit("create_record", "SampleRows", {"id": str(uuid7())}).wait(30).state is TicketState.SUCCESS
    except Overloaded:
        return False

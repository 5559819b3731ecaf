"""Tickets outlive an outage of a store: their events wait in beds.later, and waiting counts as no death."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from beds.client.client import Client
from beds.domain.reply import Response
from beds.domain.ticket import TicketState
from beds.errors import StoreUnavailable
from beds.stack.stack import Stack
from beds.transport.topology import LATER_SECONDS
from tests.conftest import OwnVhost, running_worker, wait_until_served

QUEUES = "rec.read,rec.write,rel.read,rel.write,calgon,operator"
ROUNDS = 8
"""Rounds through beds.later: more than the deliveries after which an event is dead."""


@pytest.mark.timeout(280)
@pytest.mark.parametrize(("server", "template"), [("mariadb", "SampleRows"), ("mongodb", "SampleDocs")])
def test_tickets_end_well_after_an_outage_that_no_retry_outlasts(
    server: str, template: str, project: Path, own_vhost: OwnVhost, stack: Stack
) -> None:
    env = {**own_vhost.env, "BEDS_RETRY__DEADLINE": "0.5", "BEDS_BROKERS__calgon__TIME_LIMIT": "10"}
    with running_worker(project, QUEUES, env=env), Client(own_vhost.settings) as client:
        wait_until_served(client, ["SampleRows", "SampleDocs"])
        away = stack.server(server)
        away.down()
        try:
            began = time.monotonic()
            writes = [client.submit("create_record", template, {"id": f"{server}-{began}-{n}"}) for n in range(10)]
            read = client.submit("fetch_records", template, {"id": "none"}, using="by_id")
            with pytest.raises(StoreUnavailable):
                client.call("fetch_records", template, {"id": "none"}, using="by_id", timeout=60)
            time.sleep(max(0.0, began + ROUNDS * LATER_SECONDS - time.monotonic()))
        finally:
            away.up()
        for ticket in writes:
            reply = ticket.result(timeout=120)
            assert isinstance(reply, Response)
            assert reply.affected == 1
            assert ticket.status(timeout=60).state is TicketState.SUCCESS
        assert len(read.result(timeout=120)) == 0  # type: ignore[arg-type]
        for n in range(10):
            found = client.fetch(template, "by_id", {"id": f"{server}-{began}-{n}"}, timeout=60)
            assert len(found) == 1

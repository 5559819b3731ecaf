"""Tickets, idempotency keys, jobs and lineage belong to an AMQP user and the actor that it names."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from beds.client.aio import AsyncClient
from beds.client.client import Client
from beds.domain.ticket import TicketState
from beds.errors import BedsError, IdempotencyConflict, NotFound, UnknownTicket
from tests.conftest import wait_for

ANN, BOB = "jwt:idp:ann", "jwt:idp:bob"


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def test_a_ticket_is_seen_by_its_actor_and_by_the_application(client: Client) -> None:
    ticket = client.submit("create_record", "SampleDocs", {"id": new_id()}, actor=ANN)
    assert ticket.wait(30).state is TicketState.SUCCESS
    assert client.ticket(ticket.guid, actor=ANN).status().ready
    assert client.ticket(ticket.guid).status().ready
    stranger = client.ticket(ticket.guid, actor=BOB)
    for ask in (stranger.status, stranger.result, stranger.wait, stranger.cancel):
        with pytest.raises(UnknownTicket):
            ask(10)


def test_another_actor_cannot_cancel_a_waiting_ticket(client: Client) -> None:
    slow = client.submit("fetch_records", "SampleRows", {"seconds": 3}, using="sleep", actor=ANN)
    with pytest.raises(UnknownTicket):
        client.ticket(slow.guid, actor=BOB).cancel()
    assert slow.status().cancelled_by == ""
    assert slow.wait(30).state is TicketState.SUCCESS


def test_an_idempotency_key_is_the_actors_own(client: Client) -> None:
    key, ids = new_id(), [new_id(), new_id(), new_id()]
    tickets = [
        client.submit("create_record", "SampleDocs", {"id": made}, actor=actor, idempotency_key=key)
        for made, actor in zip(ids, (ANN, BOB, ""), strict=True)
    ]
    assert len({ticket.guid for ticket in tickets}) == 3
    assert [ticket.result(30).record_id for ticket in tickets] == ids  # type: ignore[union-attr]
    again = client.call("create_record", "SampleDocs", {"id": ids[1]}, actor=BOB, idempotency_key=key)
    assert again.record_id == ids[1]  # type: ignore[union-attr]
    with pytest.raises(IdempotencyConflict):
        client.submit("create_record", "SampleDocs", {"id": ids[1]}, actor=ANN, idempotency_key=key)


def test_lineage_is_shown_to_its_actor_only(client: Client) -> None:
    ticket = client.submit("create_record", "SampleRows", {"id": new_id()}, actor=ANN)
    ticket.result(30)

    def of(actor: str) -> Any:
        try:
            return client.lineage(ticket.guid, actor=actor)
        except NotFound:
            return None

    assert wait_for(lambda: of(ANN), what="the lineage").record["actor"] == ANN
    assert of("")
    assert of(BOB) is None


def test_the_asyncio_client_asks_for_an_actor_too(client: Client) -> None:
    async def story() -> None:
        aio = AsyncClient(client)
        ticket = await aio.submit("create_record", "SampleDocs", {"id": new_id()}, actor=ANN)
        assert (await ticket.wait(30)).ready
        assert (await aio.ticket(ticket.guid, actor=ANN).status()).ready
        with pytest.raises(UnknownTicket):
            await aio.ticket(ticket.guid, actor=BOB).status(5)
        with pytest.raises(BedsError):
            await aio.lineage(ticket.guid, actor=BOB)

    asyncio.run(story())

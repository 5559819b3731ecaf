"""beds.aio: the asyncio client."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from typing import Any

import pytest
from pydantic import SecretStr

from beds.client.aio import AsyncClient
from beds.client.call import Call
from beds.client.client import Client
from beds.client.flows import Flows
from beds.client.loop import drive
from beds.config import Settings
from beds.domain.event import Event
from beds.domain.ticket import TicketState
from beds.errors import BedsError, CallTimeout, DuplicateKey, MissingField, TransportError, Unroutable
from beds.stack.stack import Stack
from beds.transport.pending import Pending, Transport
from tests.conftest import OwnVhost
from tests.proxy import SilentProxy


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def test_thousands_of_calls_are_in_flight_at_once(client: Client) -> None:
    keys = [new_id() for _ in range(20)]
    for key in keys:
        client.call("create_record", "SampleRows", {"id": key})

    async def ask_all() -> list[Any]:
        aio = AsyncClient(client)
        wanted = keys * 100
        return await asyncio.gather(
            *(aio.call("fetch_records", "SampleRows", {"id": key}, using="by_id", timeout=60) for key in wanted)
        )

    pages = asyncio.run(ask_all())
    assert [page[0]["id"] for page in pages] == keys * 100


def test_an_awaited_ticket_ends_as_any_other(client: Client) -> None:
    async def story() -> None:
        aio, key = AsyncClient(client), new_id()
        ticket = await aio.submit("create_record", "SampleDocs", {"id": key})
        assert (await ticket.wait(30)).state is TicketState.SUCCESS
        assert (await aio.ticket(ticket.guid).result(30)).record_id == key  # type: ignore[union-attr]
        again = await aio.submit("create_record", "SampleDocs", {"id": key})
        with pytest.raises(DuplicateKey):
            await again.result(30)
        assert (await again.cancel()).state is TicketState.FAILURE

    asyncio.run(story())


def test_errors_and_deadlines_are_those_of_the_client(client: Client) -> None:
    async def story() -> None:
        aio = AsyncClient(client)
        with pytest.raises(MissingField):
            await aio.call("create_record", "SampleRows", {})
        with pytest.raises(CallTimeout):
            await aio.call("fetch_records", "SampleRows", {"seconds": 5}, using="sleep", timeout=0.5)

    asyncio.run(story())


def test_a_cancelled_wait_leaves_nothing_behind_and_disturbs_nobody(client: Client) -> None:
    async def story() -> None:
        aio = AsyncClient(client)
        slow = asyncio.create_task(aio.call("fetch_records", "SampleRows", {"seconds": 2}, using="sleep", timeout=30))
        await asyncio.sleep(0.3)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert not await aio.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=30)

    asyncio.run(story())


def test_the_event_loop_goes_on_while_the_client_connects(own_vhost: OwnVhost, settings: Settings) -> None:
    """An address that never answers: connecting takes its full timeout, in a separate thread."""
    silent = settings.amqp.model_copy(update={"url": SecretStr("amqp://u:p@127.0.0.1:1/x")})
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.02)

    async def story() -> None:
        counter = asyncio.create_task(tick())
        with Client(settings.model_copy(update={"amqp": silent})) as client:
            started = time.monotonic()
            with pytest.raises(BedsError) as caught:
                await AsyncClient(client).call("fetch_records", "SampleRows", {"id": "x"}, using="by_id", timeout=2)
            assert not isinstance(caught.value, Unroutable)
            assert time.monotonic() - started > 0.5
        counter.cancel()

    asyncio.run(story())
    assert ticks > 10


def test_a_connected_client_publishes_on_the_loop_itself(client: Client) -> None:
    client.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id")
    sent = threading.Event()
    transport = client.transport

    class Noting:
        """The client's transport, which notes what goes through the sender's thread."""

        is_ready = True

        def send(self, event: Event, deadline: float) -> Pending:
            sent.set()
            return transport.send(event, deadline)

        def send_now(self, event: Event) -> Pending | None:
            return transport.send_now(event)

        def why_late(self, pending: Pending, what: str) -> BedsError:
            return transport.why_late(pending, what)

        def close(self) -> None: ...

    noting: Transport = Noting()
    flows = Flows(client.settings, client.templates, noting)

    async def story() -> None:
        call = Call("fetch_records", "SampleRows", {"id": "none"}, "by_id")
        await asyncio.gather(*(drive(flows.call(call, 60), flows) for _ in range(50)))
        assert not sent.is_set()
        large = Call("create_record", "SampleDocs", {"id": new_id(), "extra": {"a": "x" * 100_000}})
        await drive(flows.call(large, 60), flows)
        assert sent.is_set()  # a body of 100 kB may not fit the socket's buffer

    asyncio.run(story())


def test_the_event_loop_goes_on_while_rabbitmq_reads_nothing(settings: Settings, stack: Stack, workers: None) -> None:
    proxy = SilentProxy(stack.plan.amqp_port)
    url = settings.amqp.client_url.replace(f":{stack.plan.amqp_port}/", f":{proxy.port}/")
    amqp = settings.amqp.model_copy(update={"url": SecretStr(url)})
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            at = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - at)

    async def story() -> None:
        with Client(settings.model_copy(update={"amqp": amqp})) as client:
            aio = AsyncClient(client)
            await aio.call("fetch_records", "SampleRows", {"id": "none"}, using="by_id", timeout=30)
            proxy.silent = True
            counter = asyncio.create_task(tick())
            for _ in range(40):  # about 20 MB: far more than the sockets' buffers hold
                outcomes = await asyncio.gather(
                    *(
                        aio.call(
                            "create_record", "SampleDocs", {"id": new_id(), "extra": {"a": "x" * 10_000}}, timeout=1
                        )
                        for _ in range(50)
                    ),
                    return_exceptions=True,
                )
                assert all(isinstance(outcome, TransportError) for outcome in outcomes)
            counter.cancel()

    try:
        asyncio.run(story())
    finally:
        proxy.close()
    assert longest < 5  # a blocked loop would stop for twice the heartbeat, 20 s

"""WebSocket over memory: who may connect, what a message may be, and how a connection ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect, WebSocketState

from beds.http import websocket
from beds.http.application import Application
from beds.http.websocket import Conversation
from tests.unit.http.conftest import ALL, NARROW, application, as_caller

NOTICE = {"airport": "JFK", "title": "Snow", "status": "open"}
CREATE = {"template": "Notices", "operation": "create", "record": NOTICE}


@pytest.fixture
def web(app: Application) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def closed_with(web: TestClient, path: str = "/v1/ws", **options: Any) -> tuple[int, str]:
    with web.websocket_connect(path, **options) as socket, pytest.raises(WebSocketDisconnect) as found:
        socket.receive_json()
    return found.value.code, found.value.reason


def asked(socket: Any, **message: Any) -> Any:
    socket.send_json(message)
    return socket.receive_json()


def test_who_may_connect(web: TestClient) -> None:
    key = as_caller(ALL)
    assert closed_with(web) == (4401, "unauthorized")
    assert closed_with(web, headers=as_caller("wrong")) == (4401, "unauthorized")
    assert closed_with(web, headers={**key, "Origin": "https://evil.example"}) == (4403, "forbidden")
    assert closed_with(web, headers={**key, "Origin": "null"}) == (4403, "forbidden")
    assert closed_with(web, headers={**key, "Origin": "http://testserver.evil.example"}) == (4403, "forbidden")
    assert closed_with(web, "/v1/other", headers=key) == (4404, "not_found")
    assert closed_with(web, "/v1/%00", headers=key) == (4400, "unreadable")
    with web.websocket_connect("/v1/ws", headers={**key, "Origin": "http://testserver"}) as socket:
        assert asked(socket, id=1, op="none")["status"] == 422


def test_a_browser_names_its_token_among_the_protocols(web: TestClient) -> None:
    with web.websocket_connect("/v1/ws", subprotocols=["beds", f"bearer.{ALL}"]) as socket:
        assert socket.accepted_subprotocol == "beds", "and the token is not sent back"
        assert asked(socket, id=1, **CREATE)["status"] == 201
    with web.websocket_connect("/v1/ws", subprotocols=["beds", "bearer.wrong"]) as socket:
        # Without a protocol the browser would fail the connection, and its page would see no code.
        assert socket.accepted_subprotocol == "beds"
        with pytest.raises(WebSocketDisconnect) as found:
            socket.receive_json()
    assert found.value.code == 4401


@pytest.mark.parametrize(
    "number",
    ["1" + "0" * 400, "18446744073709551616", "1.5", "true", "null", "[1]", "{}", '"' + "x" * 101 + '"', "1e400"],
)
def test_an_id_that_is_none_is_answered_without_one(web: TestClient, number: str) -> None:
    with web.websocket_connect("/v1/ws", headers=as_caller(ALL)) as socket:
        socket.send_text(f'{{"id": {number}, "template": "Airlines", "operation": "all"}}')
        found = socket.receive_json()
        assert (found["id"], found["status"], found["body"]["field"]) == (None, 422, "id")


@pytest.mark.parametrize(
    "text",
    ["", "{", "x", "[" * 100_000, '{"a":' * 50_000, '"\\ud800"', "9" * 5000, '{"id": NaN}', "1e99999999999999999999"],
)
def test_a_message_that_is_no_json_leaves_the_connection_open(web: TestClient, text: str) -> None:
    with web.websocket_connect("/v1/ws", headers=as_caller(ALL)) as socket:
        socket.send_text(text)
        assert socket.receive_json()["status"] in (400, 422)
        socket.send_bytes(text.encode() + b"\xff")
        assert socket.receive_json()["status"] == 400
        assert asked(socket, id="a", **CREATE)["status"] == 201


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ({"op": "none"}, 422),
        ({"op": ["call"]}, 422),
        ({"op": None}, 422),
        ({"op": {"a": 1}}, 422),
        ({}, 422),
        ({"template": "none", "operation": "all"}, 404),
        ({"template": "Airlines", "operation": "__class__"}, 404),
        ({"template": "Airlines", "operation": {"$ne": 1}}, 422),
        ({"template": "msAudit", "operation": "since"}, 404),
        ({"op": "submit", "idempotency_key": {"a": 1}, **CREATE}, 422),
        ({"op": "submit", "idempotency_key": "k" * 1000, **CREATE}, 422),
        ({"op": "submit", "idempotency_key": "", **CREATE}, 422),
        ({"idempotency_key": 7, **CREATE}, 422),
        ({"actor": "root", **CREATE}, 422),
        ({"op": "subscribe"}, 404),
        ({"op": "subscribe", "ticket": {"$ne": ""}}, 404),
        ({"op": "subscribe", "ticket": "x" * 1000}, 404),
        ({"op": "cancel", "ticket": 7}, 404),
        ({"op": "status", "ticket": "none"}, 404),
        ({"op": "unsubscribe", "subscription": {"a": 1}}, 200),
    ],
    ids=str,
)
def test_each_message_has_an_answer(web: TestClient, message: Any, status: int) -> None:
    with web.websocket_connect("/v1/ws", headers=as_caller(ALL)) as socket:
        found = asked(socket, id="m", **message)
        assert (found["id"], found["status"]) == ("m", status), found


def test_what_a_role_does_not_name_is_refused_here_too(web: TestClient) -> None:
    with web.websocket_connect("/v1/ws", headers=as_caller(NARROW)) as socket:
        assert asked(socket, id=1, template="Airlines", operation="all")["status"] == 403
        assert asked(socket, id=2, template="Flights", operation="count")["status"] == 404
        assert asked(socket, id=3, op="submit", template="Airlines", operation="create", record={})["status"] == 403


def test_another_callers_ticket_is_unknown(web: TestClient) -> None:
    with web.websocket_connect("/v1/ws", headers=as_caller(ALL)) as socket:
        ticket = asked(socket, id=1, op="submit", **CREATE)["body"]["ticket"]
        assert asked(socket, id=2, op="status", ticket=ticket)["status"] == 200
        with web.websocket_connect("/v1/ws", headers=as_caller(NARROW)) as foreign:
            for number, op in enumerate(("subscribe", "status", "cancel")):
                found = asked(foreign, id=number, op=op, ticket=ticket)
                assert (found["status"], found["body"]["code"]) == (404, "unknown_ticket")


def test_a_subscription_ends_with_its_ticket(web: TestClient) -> None:
    with web.websocket_connect("/v1/ws", headers=as_caller(ALL)) as socket:
        ticket = asked(socket, id=1, op="submit", **CREATE)["body"]["ticket"]
        assert asked(socket, id=2, op="subscribe", ticket=ticket)["body"] == {"subscribed": ticket}
        found = socket.receive_json()
        assert (found["id"], found["event"], found["body"]["state"]) == (2, "ended", "SUCCESS")


def test_drain_closes_with_a_code_to_connect_elsewhere(app: Application, web: TestClient) -> None:
    with web.websocket_connect("/v1/ws", headers=as_caller(ALL)) as socket:
        assert asked(socket, id=1, **CREATE)["status"] == 201
        assert web.portal is not None
        web.portal.call(app.drain)
        with pytest.raises(WebSocketDisconnect) as found:
            socket.receive_json()
    assert found.value.code == 1012


def test_a_token_that_ends_closes_the_connection(
    app: Application, web: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "CHECK_SECONDS", 0.05)
    with web.websocket_connect("/v1/ws", headers=as_caller(ALL)) as socket:
        app.node.sign_in._known.clear()
        app.node.sign_in._by_hash.clear()
        with pytest.raises(WebSocketDisconnect) as found:
            socket.receive_json()
    assert found.value.code == 4401


# --- a connection whose other side does as a test wants --------------------------------------------------------------


class Wire:
    """Stands for a WebSocket connection: it sends `messages`, and reads when `reads` is set."""

    def __init__(self, *messages: str) -> None:
        self.scope: dict[str, Any] = {"subprotocols": []}
        self.application_state = WebSocketState.CONNECTED
        self.reads = asyncio.Event()
        self.taken = 0
        self.code = 0
        self._messages = iter(messages)

    async def accept(self, _protocol: str | None = None) -> None:
        pass

    async def receive(self) -> dict[str, Any]:
        text = next(self._messages, None)
        if text is None:
            await asyncio.Event().wait()
        self.taken += 1
        return {"type": "websocket.receive", "text": text}

    async def send_text(self, _text: str) -> None:
        await self.reads.wait()

    async def close(self, code: int, _reason: str) -> None:
        self.code = code


async def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def conversation(app: Application, wire: Wire) -> Conversation:
    caller = app.node.sign_in._caller("key:all", ["everything"], {})
    return Conversation(app.node, wire, caller, f"Bearer {ALL}")  # type: ignore[arg-type]


def test_a_flood_is_slowed_to_so_many_calls_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    async def flood() -> None:
        app = application()
        goes_on = asyncio.Event()
        wire = Wire(*('{"id": 1, "op": "status", "ticket": "x"}' for _ in range(500)))
        talk = conversation(app, wire)

        async def waits(*_: Any) -> None:
            await goes_on.wait()

        monkeypatch.setattr(talk, "_execute", waits)
        running = asyncio.create_task(talk.run())
        await until(lambda: wire.taken >= websocket.IN_FLIGHT)
        for _ in range(100):
            await asyncio.sleep(0)
        assert wire.taken == websocket.IN_FLIGHT, "the rest stays unread"
        assert app.node.limits.in_flight == websocket.IN_FLIGHT
        other = Wire('{"id": 2, "op": "none"}')  # of another caller, which is served meanwhile
        beside = Conversation(app.node, other, app.node.sign_in._caller("key:other", ["everything"], {}), "")  # type: ignore[arg-type]
        task = asyncio.create_task(beside.run())
        await until(lambda: beside._unread_bytes > 0)
        beside.end()
        await task
        goes_on.set()
        await until(lambda: wire.taken == 500)
        talk.end()
        await running
        assert app.node.limits.in_flight == 0

    asyncio.run(flood())


def test_a_slow_reader_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "UNREAD_BYTES", 10_000)

    async def slow() -> None:
        app = application()
        wire = Wire(*('{"id": 1, "op": "none"}' for _ in range(500)))
        talk = conversation(app, wire)
        await asyncio.wait_for(talk.run(), 30)
        assert wire.code == 1013
        assert wire.taken < 500
        assert not talk._tasks

    asyncio.run(slow())

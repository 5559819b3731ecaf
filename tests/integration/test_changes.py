"""Committed writes are followed over AMQP, as server-sent events and over a WebSocket: each once, in one order."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from beds.client.client import Client
from beds.errors import BedsError, ChangesExpired, InvalidCursor, StoreDenied, UnknownOperation
from tests.conftest import PORT_BASE, wait_for
from tests.http_process import ALL, NARROW, HttpNode, running_http

PORT = PORT_BASE + 92
STORES = ["SampleRows", "SampleDocs"]


def new_id() -> str:
    return uuid.uuid4().hex[:12]


@pytest.fixture(scope="module")
def node(project: Path, workers: None) -> Iterator[HttpNode]:
    with running_http(project, PORT) as found:
        yield found


def followed(client: Client, template: str, start: str, count: int) -> list[Any]:
    """The changes after a position, once there are so many."""
    found: list[Any] = []
    position = start

    def enough() -> bool:
        nonlocal position
        page = client.changes(template, position, limit=50, timeout=60)
        found.extend(page.changes)
        position = page.position
        return len(found) >= count

    wait_for(enough, 60, "the changes")
    return found


@pytest.mark.parametrize("template", STORES)
def test_each_committed_write_is_one_change(client: Client, template: str) -> None:
    start, key = client.changes(template, "$").position, new_id()
    client.call("create_record", template, {"id": key, "text": "secret words"})
    with pytest.raises(BedsError):
        client.call("create_record", template, {"id": key})  # a duplicate is no change
    client.call("update_record", template, {"id": key, "text": "b"})
    client.call("create_records", template, [{"id": new_id()}, {"id": new_id()}])
    client.call("delete_record", template, key)
    found = followed(client, template, start, 4)
    # Two slots report their writes at about the same time, so neighbours may change places.
    assert sorted((c.operation, c.record_id, c.affected) for c in found) == [
        ("create_record", key, 1),
        ("create_records", "", 2),
        ("delete_record", key, 1),
        ("update_record", key, 1),
    ]
    assert "secret words" not in repr(found)
    assert client.lineage(found[0].event_id).event_id == found[0].event_id


def test_writers_in_parallel_are_followed_without_a_gap(client: Client) -> None:
    start, ids = client.changes("SampleRows", "$").position, [new_id() for _ in range(300)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: client.call("create_record", "SampleRows", {"id": key}, timeout=60), ids))
    found = followed(client, "SampleRows", start, len(ids))
    assert sorted(c.record_id for c in found) == sorted(ids)
    again = followed(client, "SampleRows", start, len(ids))
    assert again == found, "the order is the same for every reader"
    middle = found[100].position
    assert followed(client, "SampleRows", middle, len(ids) - 101) == found[101:]


def test_wrong_questions(client: Client) -> None:
    for arguments, error in (
        (("AccountRows",), UnknownOperation),
        (("msTickets",), StoreDenied),
        (("SampleRows", "x"), InvalidCursor),
        (("SampleRows", "999999999-1"), ChangesExpired),
    ):
        with pytest.raises(error):
            client.changes(*arguments)


def following(node: HttpNode, template: str, **headers: str) -> list[tuple[str, Any]]:
    """What a stream of changes sends from now on, as ids and data; it ends with the node."""
    seen: list[tuple[str, Any]] = []

    def follow() -> None:
        number = ""
        with (
            contextlib.suppress(httpx.TransportError),
            node.client() as web,
            web.stream("GET", f"/v1/changes/{template}", headers={"Accept": "text/event-stream", **headers}) as stream,
        ):
            for line in stream.iter_lines():
                if line.startswith("id: "):
                    number = line.removeprefix("id: ")
                elif line.startswith("data: "):
                    seen.append((number, json.loads(line.removeprefix("data: "))))

    threading.Thread(target=follow, daemon=True).start()
    wait_for(lambda: seen, 30, "the position")
    return seen


def test_a_stream_of_changes_resumes_after_the_last_event(node: HttpNode) -> None:
    ids = [new_id() for _ in range(6)]
    with node.client() as web:
        seen = following(node, "SampleDocs")
        for key in ids[:3]:
            assert web.post("/v1/SampleDocs", json={"id": key}).status_code == 201
        wait_for(lambda: len(seen) >= 4, 30, "the first changes")
        last = seen[3][0]
        for key in ids[3:]:
            assert web.post("/v1/SampleDocs", json={"id": key}).status_code == 201
        resumed = following(node, "SampleDocs", **{"Last-Event-ID": last})
        wait_for(lambda: len(resumed) >= 4, 30, "the later changes")
        page = web.get("/v1/changes/SampleDocs", params={"after": seen[0][0], "limit": 4}).json()
    assert [data["key"] for _, data in seen[1:4]] == ids[:3]
    assert [data["key"] for _, data in resumed[1:]] == ids[3:]
    assert [change["key"] for change in page["changes"]] == ids[:4]
    assert page["complete"] is False
    assert set(page["changes"][0]) == {"position", "template", "operation", "key", "affected", "event_id", "at"}


def test_changes_over_a_websocket(node: HttpNode) -> None:
    address = node.url.replace("http", "ws") + "/v1/ws"
    with connect(address, additional_headers={"Authorization": f"Bearer {ALL}"}) as socket:
        socket.send(json.dumps({"id": "c", "op": "subscribe", "changes": "SampleRows"}))
        subscribed = json.loads(socket.recv(60))["body"]
        assert subscribed["subscribed"] == "SampleRows"
        ids = [new_id() for _ in range(5)]
        for number, key in enumerate(ids):
            socket.send(
                json.dumps({"id": number, "template": "SampleRows", "operation": "create", "record": {"id": key}})
            )
        found: list[Any] = []
        while len(found) < 5:
            message = json.loads(socket.recv(60))
            found += [message["body"]] if message.get("event") == "change" else []
        assert sorted(change["key"] for change in found) == sorted(ids)
        socket.send(json.dumps({"id": "d", "op": "subscribe", "changes": "SampleRows", "after": found[1]["position"]}))
        later: list[Any] = []
        while len(later) < 3:
            message = json.loads(socket.recv(60))
            later += [message["body"]] if message.get("event") == "change" and message["id"] == "d" else []
        assert later == found[2:]
        for wrong, status in (({"changes": "AccountRows"}, 404), ({"changes": "none"}, 404), ({"changes": 7}, 404)):
            socket.send(json.dumps({"id": "w", "op": "subscribe", **wrong}))
            assert json.loads(socket.recv(60))["status"] == status
        socket.send(json.dumps({"id": "w", "op": "subscribe", "changes": "SampleRows", "after": ["x"]}))
        assert json.loads(socket.recv(60))["status"] == 400


def test_who_may_not_follow_is_refused(node: HttpNode) -> None:
    with node.client(NARROW) as web:
        assert web.get("/v1/changes/SampleRows").status_code == 403
        assert web.get("/v1/changes/SampleDocs").status_code == 404
    with node.client() as web:
        assert web.get("/v1/changes/AccountRows").status_code == 404
        assert web.get("/v1/changes/none").status_code == 404
        assert web.get("/v1/changes/SampleRows?after=x").json()["code"] == "invalid_cursor"
        assert web.get("/v1/changes/SampleRows?limit=x").json()["field"] == "limit"
        assert web.get("/v1/changes/SampleRows?after=99999999-1").status_code == 410
        assert web.post("/v1/changes/SampleRows", json={}).status_code == 405

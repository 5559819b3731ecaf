"""The app-server node as a process, with real workers and databases: HTTP, events, WebSocket, tools and the page."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp.client import Client as McpClient
from mcp.client.streamable_http import streamable_http_client
from websockets.sync.client import ClientConnection, connect

from tests.conftest import JOB_QUEUES, PORT_BASE, running_worker, wait_for
from tests.http_process import ALL, NARROW, HttpNode, running_http

PORT = PORT_BASE + 90


def new_id() -> str:
    return uuid.uuid4().hex[:12]


@pytest.fixture(scope="module")
def node(project: Path, workers: None) -> Iterator[HttpNode]:
    with running_worker(project, JOB_QUEUES), running_http(project, PORT) as found:
        yield found


@pytest.fixture
def web(node: HttpNode) -> Iterator[httpx.Client]:
    with node.client() as found:
        yield found


@pytest.mark.parametrize("template", ["SampleRows", "SampleDocs"])
def test_values_of_every_type_go_there_and_back(web: httpx.Client, template: str) -> None:
    record = {
        "id": new_id(), "text": "é, \"x\"\n", "whole": 2**53 + 1, "ratio": 0.1, "price": "12345678901234.5678",
        "flag": True, "moment": "2013-07-01T12:00:00.123+02:00", "token": str(uuid.uuid4()), "raw": "aGk=",
        "extra": {"a": [1, 2.5]}, "list": ["x", None],
    }  # fmt: skip
    made = web.post(f"/v1/{template}", json=record)
    assert made.status_code == 201, made.text
    assert made.headers["location"] == f"/v1/{template}/{record['id']}"
    found = web.get(made.headers["location"]).json()
    expected = {**record, "whole": str(2**53 + 1), "moment": "2013-07-01T10:00:00.123000+00:00"}
    assert {name: found[name] for name in expected} == expected
    # A number that JavaScript would round is a text, and is taken back as one.
    again = web.patch(made.headers["location"], json={"text": "other", "whole": found["whole"]})
    assert again.status_code == 200, again.text
    assert web.get(made.headers["location"]).json()["whole"] == found["whole"]


@pytest.mark.parametrize("template", ["SampleRows", "SampleDocs"])
def test_pages_follow_their_links(web: httpx.Client, template: str) -> None:
    text, ids = new_id(), sorted(new_id() for _ in range(12))
    done = web.post(f"/v1/{template}:batch", json=[{"id": each, "text": text} for each in ids])
    assert done.json()["affected"] == 12
    found, address = [], f"/v1/{template}:by_text?text={text}&limit=5"
    while address:
        page = web.get(address)
        found += [record["id"] for record in page.json()["records"]]
        address = page.links.get("next", {}).get("url", "")
    assert found == ids
    lines = web.get(f"/v1/{template}:by_text?text={text}&limit=5", headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line)["id"] for line in lines.text.splitlines()] == ids


def test_an_argument_of_the_dbas_object_alone_is_read_by_its_type(web: httpx.Client) -> None:
    described = web.get("/openapi.json").json()["paths"]["/v1/Airports:nearest"]["get"]["parameters"]
    own = [each for each in described if "name" in each]  # without Prefer, which all have
    assert {each["name"]: each.get("required") for each in own} == {"lat": True, "lon": True, "limit": None}
    assert web.get("/v1/Airports:nearest?lat=40.6&lon=-73.7").status_code == 200
    wrong = web.get("/v1/Airports:nearest?lat=x&lon=-73.7")
    assert (wrong.status_code, wrong.json()["field"]) == (422, "lat")
    missing = web.get("/v1/Airports:nearest?lat=40.6")
    assert (missing.status_code, missing.json()["code"]) == (422, "missing_field")


def test_duplicates_in_flight_are_one_write(web: httpx.Client) -> None:
    key, record = new_id(), {"id": new_id()}

    def send(_: int) -> httpx.Response:
        return web.post("/v1/SampleRows", json=record, headers={"Idempotency-Key": key})

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(send, range(16)))
    assert {reply.status_code for reply in replies} == {201}, [reply.text for reply in replies]
    assert len({reply.headers["beds-event-id"] for reply in replies}) == 1
    twice = web.post("/v1/SampleRows", json=record)
    assert (twice.status_code, twice.json()["code"]) == (409, "duplicate_key")


def test_a_ticket_is_followed_by_events_to_its_end_and_its_lineage(web: httpx.Client) -> None:
    accepted = web.get("/v1/SampleRows:sleep?seconds=1", headers={"Prefer": "respond-async"})
    address = accepted.headers["location"]
    assert accepted.status_code == 202
    assert web.get(f"{address}/result").status_code in (200, 202)
    with web.stream("GET", f"{address}/events") as stream:
        text = "".join(stream.iter_text())
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert names[-1] == "ended"
    last = json.loads([line for line in text.splitlines() if line.startswith("data: ")][-1].removeprefix("data: "))
    assert (last["state"], last["ready"]) == ("SUCCESS", True)
    seen = [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")][-1]
    with web.stream("GET", f"{address}/events", headers={"Last-Event-ID": seen}) as again:
        assert "data:" not in "".join(again.iter_text())

    def lineage() -> Any:
        found = web.get(f"/v1/lineage/{accepted.json()['event_id']}")
        return found.json()["tree"] if found.status_code == 200 else None

    tree = wait_for(lineage, what="the lineage")
    assert (tree["name"], tree["children"][0]["name"]) == ("SampleRows.fetch_records using sleep", "samples_sleep")


def test_a_cancelled_ticket_says_so(web: httpx.Client) -> None:
    busy = [web.get("/v1/SampleRows:sleep?seconds=3", headers={"Prefer": "respond-async"}) for _ in range(12)]
    cancelled = web.delete(busy[-1].headers["location"])
    assert cancelled.json()["cancelled_by"] == "beds_http: key:all"
    ended = web.get(busy[-1].headers["location"], headers={"Prefer": "wait=30"}).json()
    assert (ended["state"], ended["error"]["code"]) == ("REVOKED", "ticket_revoked")
    assert web.get(f"{busy[-1].headers['location']}/result").status_code == 409
    for each in busy[:-1]:
        web.delete(each.headers["location"])


def test_the_trace_context_of_a_request_is_in_its_lineage(web: httpx.Client, node: HttpNode) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    reply = web.get("/v1/SampleRows/none", headers={"traceparent": trace})
    event = reply.headers["beds-event-id"]
    wait_for(lambda: web.get(f"/v1/lineage/{event}").status_code == 200, what="the lineage")
    with node.client(NARROW) as narrow:
        assert narrow.get(f"/v1/lineage/{event}").status_code == 403


def opened(node: HttpNode, secret: str = ALL) -> ClientConnection:
    return connect(node.url.replace("http", "ws") + "/v1/ws", additional_headers={"Authorization": f"Bearer {secret}"})


def test_calls_and_tickets_over_a_websocket(node: HttpNode) -> None:
    with opened(node) as socket:
        ids = [new_id() for _ in range(30)]
        for number, each in enumerate(ids):
            socket.send(
                json.dumps({"id": number, "template": "SampleDocs", "operation": "create", "record": {"id": each}})
            )
        replies = {reply["id"]: reply for reply in (json.loads(socket.recv(60)) for _ in ids)}
        assert {replies[number]["body"]["record_id"] for number in range(30)} == set(ids)
        sleep = {"template": "SampleRows", "operation": "sleep", "args": {"seconds": 1}}
        socket.send(json.dumps({"id": "s", "op": "submit", **sleep}))
        ticket = json.loads(socket.recv(60))["body"]["ticket"]
        socket.send(json.dumps({"id": "t", "op": "subscribe", "ticket": ticket}))
        events: list[Any] = []
        while not events or events[-1].get("event") != "ended":
            events.append(json.loads(socket.recv(60)))
        assert events[0]["body"] == {"subscribed": ticket}
        assert events[-1]["body"]["state"] == "SUCCESS"
        socket.send(json.dumps({"id": 9, "template": "SampleDocs", "operation": "none"}))
        assert json.loads(socket.recv(60))["status"] == 404


def test_many_websockets_call_at_once(node: HttpNode) -> None:
    async def one(number: int) -> int:
        from websockets.asyncio.client import connect as connect_async

        address = node.url.replace("http", "ws") + "/v1/ws"
        async with connect_async(address, additional_headers={"Authorization": f"Bearer {ALL}"}) as socket:
            for n in range(10):
                await socket.send(
                    json.dumps({"id": n, "template": "SampleDocs", "operation": "by_id", "args": {"id": "x"}})
                )
            return sum([json.loads(await socket.recv())["status"] == 200 for _ in range(10)])

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(one(number) for number in range(100)))

    assert asyncio.run(asyncio.wait_for(all_of_them(), 120)) == [10] * 100


def test_a_model_lists_fetches_and_writes_with_a_narrow_key(node: HttpNode) -> None:
    made = new_id()

    async def story() -> None:
        import httpx2

        for secret, may_write in ((ALL, True), (NARROW, False)):
            headers = {"Authorization": f"Bearer {secret}"}
            async with httpx2.AsyncClient(headers=headers) as http:
                transport = streamable_http_client(f"{node.url}/mcp", http_client=http)
                async with McpClient(transport) as client:
                    assert {tool.name for tool in (await client.list_tools()).tools} == {
                        "list", "describe", "fetch", "write", "ticket",
                    }  # fmt: skip
                    listed = (await client.call_tool("list", {})).structured_content["templates"]
                    assert ("SampleDocs" in {each["name"] for each in listed}) is may_write
                    described = await client.call_tool("describe", {"template": "SampleRows"})
                    assert "by_id" in described.structured_content["fetches"]
                    wrote = await client.call_tool(
                        "write",
                        {
                            "template": "SampleRows",
                            "operation": "create",
                            "record": {"id": made},
                            "idempotency_key": made,
                        },
                    )
                    assert wrote.is_error is not may_write
                    fetched = await client.call_tool(
                        "fetch", {"template": "SampleRows", "fetch": "by_id", "args": {"id": made}}
                    )
                    assert fetched.structured_content["records"][0]["id"] == made

    asyncio.run(asyncio.wait_for(story(), 120))


def test_the_page_signs_in_calls_and_shows(node: HttpNode) -> None:
    with node.client("", follow_redirects=True) as person:
        assert "Key or token" in person.get("/ui/").text
        own = {"Origin": node.url}
        assert person.post("/ui/sign-in", data={"token": ALL}).status_code == 403  # without an Origin
        assert person.post("/ui/sign-in", data={"token": "wrong"}, headers=own).status_code == 401
        assert "Live" in person.post("/ui/sign-in", data={"token": ALL}, headers=own).text
        made = new_id()
        done = person.post("/ui/templates/SampleRows/create", data={"id": made, "whole": "7", "text": ""}, headers=own)
        assert made in done.text
        foreign = {"Origin": "https://elsewhere.example"}
        assert person.post("/ui/templates/SampleRows/delete", data={"id": made}, headers=foreign).status_code == 403
        found = person.post("/ui/templates/SampleRows/by_id", data={"id": made}, headers=own)
        assert f"<td>{made}</td>" in found.text
        refused = person.post("/ui/templates/SampleRows/create", data={"id": made, "whole": "x"}, headers=own)
        assert (refused.status_code, "whole: field whole takes integer" in refused.text) == (422, True)
        script = person.post("/ui/templates/SampleRows/by_id", data={"id": "<script>"}, headers=own)
        assert "<script>" not in script.text.replace('<script type="module"', "")
        assert person.get("/ui/queues/rel.write").status_code == 403  # it takes an operator's rights
        assert person.get("/ui/queues/none").status_code == 404
        person.post("/ui/sign-out", headers=own)
        assert "Key or token" in person.get("/ui/").text


def test_a_node_that_is_killed_loses_no_keyed_write(project: Path, workers: None) -> None:
    """Clients repeat each write with its key until they have an answer. No write is lost, none happens twice."""
    ids = [new_id() for _ in range(120)]
    answered: dict[str, int] = {}
    left = iter(ids)
    lock = threading.Lock()
    port = PORT_BASE + 94

    def write_all() -> None:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {ALL}"}, timeout=30
        ) as web:
            while True:
                with lock:
                    made = next(left, None)
                if made is None:
                    return
                while made not in answered:
                    try:
                        reply = web.post("/v1/SampleRows", json={"id": made}, headers={"Idempotency-Key": made})
                        if reply.status_code in (201, 409):
                            answered[made] = reply.status_code
                    except httpx.TransportError:
                        threading.Event().wait(0.05)

    threads = [threading.Thread(target=write_all) for _ in range(6)]
    for turn in range(3):
        with running_http(project, port) as node:
            if turn == 0:
                for thread in threads:
                    thread.start()
            if turn < 2:
                enough = min(len(answered) + 20, 100)
                wait_for(lambda: len(answered) >= enough, 60, "some writes")  # noqa: B023 — waited for at once
                node.process.kill()
                node.process.wait()
                continue
            for thread in threads:
                thread.join(120)
    assert answered == dict.fromkeys(ids, 201)

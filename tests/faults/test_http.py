"""The app server while others are killed: every keyed write happens once, and every client has an answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from beds.client.client import Client
from beds.domain.identity import uuid7
from beds.stack.stack import Stack
from tests.conftest import PORT_BASE, OwnVhost, running_worker, wait_for, workers_in
from tests.http_process import ALL, HttpNode, running_http

PORT = PORT_BASE + 98
ANSWERS = frozenset({201, 409, 429, 503, 504})


@pytest.fixture(scope="module")
def node(project: Path, workers: None) -> Iterator[HttpNode]:
    with running_http(project, PORT) as found:
        yield found


class Writers:
    """Clients that write records, each with a key of its own, and repeat a write until it is answered for good."""

    def __init__(self, node: HttpNode, template: str, total: int) -> None:
        self.statuses: dict[int, int] = {}
        self.done: list[str] = []
        self._node = node
        self._template = template
        self._left = iter([str(uuid7()) for _ in range(total)])
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._write) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(180)
            assert not thread.is_alive()

    def _write(self) -> None:
        with self._node.client() as web:
            while True:
                with self._lock:
                    key = next(self._left, None)
                if key is None:
                    return
                while True:
                    reply = web.post(f"/v1/{self._template}", json={"id": key}, headers={"Idempotency-Key": key})
                    with self._lock:
                        self.statuses[reply.status_code] = self.statuses.get(reply.status_code, 0) + 1
                    assert reply.status_code in ANSWERS, reply.text
                    assert reply.status_code == 201 or reply.json()["code"], reply.text
                    if reply.status_code == 201:
                        break
                    assert reply.status_code != 409, reply.text  # nothing happens twice
                    time.sleep(0.2)
                self.done.append(key)


@pytest.mark.timeout(280)
@pytest.mark.parametrize(("what", "template"), [("rabbitmq", "SampleRows"), ("mariadb", "SampleRows"),
                                                ("mongodb", "SampleDocs"), ("slots", "SampleRows")])  # fmt: skip
def test_a_keyed_write_happens_once_through_a_kill_behind_the_node(
    what: str, template: str, node: HttpNode, stack: Stack, project: Path, client: Client
) -> None:
    writers = Writers(node, template, 200)
    wait_for(lambda: len(writers.done) >= 20, 60, "the first writes")
    if what == "slots":
        for slot in workers_in(project):
            if not slot.children():
                slot.kill()
    else:
        server = stack.server(what)
        process = server.daemon.process()
        assert process is not None
        process.kill()
        process.wait(30)
        server.down()
        server.up()
    writers.wait()
    assert len(writers.done) == len(set(writers.done)) == 200
    for key in writers.done[::7]:
        assert len(client.fetch(template, "by_id", {"id": key}, timeout=60)) == 1


@pytest.mark.timeout(200)
def test_a_stream_goes_on_while_rabbitmq_restarts_and_tells_the_end_once(node: HttpNode, stack: Stack) -> None:
    with node.client() as web:
        address = web.get("/v1/SampleRows:sleep?seconds=20", headers={"Prefer": "respond-async"}).headers["location"]
        seen: list[dict[str, object]] = []

        def follow() -> None:
            with web.stream("GET", f"{address}/events", timeout=120) as stream:
                seen.extend(
                    json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: ")
                )

        follower = threading.Thread(target=follow)
        follower.start()
        time.sleep(1)
        stack.rabbitmq.down()
        stack.rabbitmq.up()
        follower.join(150)
    assert not follower.is_alive()
    assert [each["state"] for each in seen if each["ready"]] == ["SUCCESS"]
    states = [each["state"] for each in seen]
    assert states == list(dict.fromkeys(states))


@pytest.mark.timeout(120)
def test_a_download_that_breaks_off_never_looks_complete(project: Path, own_vhost: OwnVhost) -> None:
    """Records come page by page; the worker ends after the first pages, and the chunked body is not ended."""
    port = PORT_BASE + 100
    queues = "rec.read,rec.write,calgon,operator"
    env = {**own_vhost.env, "BEDS_HTTP__TIMEOUT": "3"}
    with running_worker(project, queues, env=own_vhost.env) as worker, running_http(project, port, env=env) as own:
        text = str(uuid7())
        with own.client() as web:
            wait_for(lambda: web.get("/v1/SampleDocs/none").status_code == 404, 60, "the worker")
            for _ in range(16):  # 14 MB: more than the sockets' buffers hold
                rows = [{"id": str(uuid7()), "text": text, "extra": {"a": "x" * 9000}} for _ in range(100)]
                assert web.post("/v1/SampleDocs:batch", json=rows).status_code == 200
            headers = {"Accept": "application/x-ndjson", "Authorization": f"Bearer {ALL}"}
            with (
                pytest.raises(httpx.RemoteProtocolError),
                web.stream("GET", f"/v1/SampleDocs:by_text?text={text}&limit=10", headers=headers) as stream,
            ):
                for count, _ in enumerate(stream.iter_lines()):
                    if count == 20:
                        os.kill(worker.pid, signal.SIGSTOP)
                        for slot in psutil.Process(worker.pid).children(recursive=True):
                            slot.kill()
            os.kill(worker.pid, signal.SIGCONT)


@pytest.mark.timeout(250)
def test_changes_are_followed_through_restarts_and_kills_without_a_gap_and_once(
    node: HttpNode, stack: Stack, project: Path
) -> None:
    """Over server-sent events and a WebSocket that are opened anew where they end, at the position reached."""
    streamed, socketed = Follower(node, over_websocket=False), Follower(node, over_websocket=True)
    wait_for(lambda: streamed.position and socketed.position, 60, "the positions")
    writers = Writers(node, "SampleRows", 200)
    wait_for(lambda: len(writers.done) >= 30, 60, "the first writes")
    stack.rabbitmq.down()
    stack.rabbitmq.up()
    wait_for(lambda: len(writers.done) >= 80, 120, "writes after the restart")
    streamed.break_off()
    socketed.break_off()
    for slot in workers_in(project):  # those of the admin worker among them
        if not slot.children():
            slot.kill()
    wait_for(lambda: len(writers.done) >= 120, 120, "writes after the kills")
    server = stack.server("mongodb")
    server.down()
    server.up()
    writers.wait()
    for follower in (streamed, socketed):
        wait_for(lambda f=follower: set(writers.done) <= set(f.keys), 90, "the changes")
        assert sorted(follower.keys) == sorted(writers.done)
    assert streamed.keys == socketed.keys, "one order for all"


class Follower:
    """Follows the changes of SampleRows, and connects again where it stopped."""

    def __init__(self, node: HttpNode, *, over_websocket: bool) -> None:
        self.keys: list[str] = []
        self.position = ""
        self._node = node
        self._connected: ClientConnection | httpx.Response | None = None
        threading.Thread(
            target=self._run, args=(self._socket if over_websocket else self._stream,), daemon=True
        ).start()

    def break_off(self) -> None:
        """Close the connection, in the midst of what it receives."""
        connected = self._connected
        if isinstance(connected, httpx.Response):
            connected.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        elif connected is not None:
            connected.socket.shutdown(socket.SHUT_RDWR)

    def _run(self, follow: Callable[[], None]) -> None:
        while True:
            with contextlib.suppress(httpx.TransportError, ConnectionClosed, OSError):
                follow()
            time.sleep(0.1)

    def _take(self, message: dict[str, Any]) -> None:
        self.position = message["position"]
        if "key" in message:
            self.keys.append(message["key"])

    def _stream(self) -> None:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": self.position} if self.position else {})}
        with (
            self._node.client() as web,
            web.stream("GET", "/v1/changes/SampleRows", headers=headers) as self._connected,
        ):
            for line in self._connected.iter_lines():
                if line.startswith("data: "):
                    self._take(json.loads(line.removeprefix("data: ")))

    def _socket(self) -> None:
        address = self._node.url.replace("http", "ws") + "/v1/ws"
        with connect(address, additional_headers={"Authorization": f"Bearer {ALL}"}) as self._connected:
            after = {"after": self.position} if self.position else {}
            self._connected.send(json.dumps({"id": 1, "op": "subscribe", "changes": "SampleRows", **after}))
            while True:
                message = json.loads(self._connected.recv(90))
                if message["status"] != 200:
                    return
                self._take(message["body"])

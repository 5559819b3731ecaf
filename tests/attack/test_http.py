"""The app-server node as a stranger meets it, with a key and without: a typed refusal or a closed connection.

Nothing is written that should not be, the process stays up, its memory stays bounded, and another caller is served
all the time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import websockets.exceptions
from websockets.sync.client import connect

from beds.client.client import Client
from beds.config import Settings
from beds.domain.identity import uuid7
from beds.stack.stack import Stack
from beds.transport.rights import User, client_for
from tests.attack.conftest import define
from tests.conftest import ALL_QUEUES, PORT_BASE, running_worker, vhost_of_its_own, wait_for, wait_until_served
from tests.http_process import ALL, NARROW, PROBLEM, HttpNode, drained, running_http

BODY_SECONDS = 3.0
"""`body_timeout` of the node: the shortest time that a slow machine does not mistake for an attack."""
CLOSED_SECONDS = 90.0
"""By this time a connection must have ended."""
GROWTH = 150
"""Megabytes that an attack may add to the process, while it sends several times as many."""
KEY = f"Host: x\r\nAuthorization: Bearer {ALL}\r\n".encode()
JSON = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
NODE = {"BEDS_HTTP__BODY_TIMEOUT": str(BODY_SECONDS), "BEDS_HTTP__CORS_ORIGINS": '["https://shop.example"]'}


@dataclass
class Honest:
    """Another caller, which reads all the time."""

    node: HttpNode
    stop: threading.Event = field(default_factory=threading.Event)
    worked: int = 0
    failed: list[str] = field(default_factory=list)

    def work(self) -> None:
        with self.node.client(NARROW) as web:
            while not self.stop.is_set():
                self.read(web)
                self.stop.wait(0.1)

    def read(self, web: httpx.Client) -> None:
        during, started, why = os.environ.get("PYTEST_CURRENT_TEST"), time.monotonic(), ""
        for _ in range(2):  # a server may close an idle connection at any time (RFC 9112, 9.3.1)
            try:
                found = web.get("/v1/SampleRows:by_id", params={"id": "none"})
            except httpx.HTTPError as error:
                why = repr(error)
                continue
            if found.status_code == 200:
                self.worked += 1
                return
            why = found.text
        self.failed.append(f"{during}, after {time.monotonic() - started:.1f} s: {why}")


@pytest.fixture(scope="module")
def node(project: Path, workers: None) -> Iterator[HttpNode]:
    with running_http(project, env=NODE) as found:
        honest = Honest(found)
        thread = threading.Thread(target=honest.work)
        thread.start()
        try:
            wait_for(lambda: honest.worked, 60, "the first answer")
            before = found.megabytes
            yield found
        finally:
            honest.stop.set()
            thread.join(90)
        assert found.process.poll() is None, found.log.read_text()[-5000:]
        assert found.megabytes - before < GROWTH
        assert not honest.failed, honest.failed[:5]
        assert honest.worked > 5


@pytest.fixture
def web(node: HttpNode) -> Iterator[httpx.Client]:
    with node.client() as found:
        yield found


def statuses(answer: bytes) -> list[int]:
    """The status of each response. Those of errors must be typed."""
    found = []
    for head in re.finditer(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)", answer):
        status = int(head[1])
        found.append(status)
        if status >= 400:
            assert b"application/problem+json" in head[2].lower(), answer[:500]
    return found


def refused(response: httpx.Response, *codes: int) -> dict[str, Any]:
    assert response.status_code in codes, (response.status_code, response.text[:300])
    assert response.headers["content-type"] == PROBLEM
    problem: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "code", "retryable"} <= problem.keys()
    assert "Traceback" not in response.text
    return problem


def exists(web: httpx.Client, key: str) -> bool:
    return bool(web.get("/v1/SampleDocs:by_id", params={"id": key}).json()["records"])


def key_of(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


# --- the protocol ----------------------------------------------------------------------------------------------------

GET = b"GET /v1 HTTP/1.1\r\n" + KEY
POST = b"POST /v1/SampleDocs HTTP/1.1\r\n" + KEY + JSON
MALFORMED = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.9": b"GET /v1 HTTP/3.9\r\n" + KEY + b"\r\n",
    "method": b"FOO /v1 HTTP/1.1\r\n" + KEY + b"\r\n",
    "method of control characters": b"GE\x00T /v1 HTTP/1.1\r\n" + KEY + b"\r\n",
    "CONNECT": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + KEY + b"\r\n",
    "no path": b"GET http://evil.example HTTP/1.1\r\n" + KEY + b"\r\n",
    "raw bytes in the path": b"GET /v1/\xff\xfe HTTP/1.1\r\n" + KEY + b"\r\n",
    "space in the path": b"GET /v1 /x HTTP/1.1\r\n" + KEY + b"\r\n",
    "bare LF": (GET + b"\r\n").replace(b"\r\n", b"\n"),
    "bare CR": GET + b"X-A: a\rX-B: b\r\n\r\n",
    "NUL in a header": GET + b"X-A: a\x00b\r\n\r\n",
    "folded header": GET + b"X-A: a\r\n b\r\n\r\n",
    "space before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "negative length": POST + b"Content-Length: -1\r\n\r\n{}",
    "signed length": POST + b"Content-Length: +2\r\n\r\n{}",
    "length beyond 64 bits": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "chunk beyond 64 bits": POST + CHUNKED + b"\r\nfffffffffffffffff\r\n{}",
    "negative chunk": POST + CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunk without its end": POST + CHUNKED + b"\r\n2\r\n{}0\r\n\r\n",
}
SMUGGLING = {
    "two lengths": (b"Content-Length: 2\r\nContent-Length: 300\r\n\r\n{}",),
    "two equal lengths": (b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",),
    "a list of lengths": (b"Content-Length: 2, 300\r\n\r\n{}",),
    "length and chunks": (b"Content-Length: 2\r\n" + CHUNKED + b"\r\n0\r\n\r\n",),
    "chunks and length": (CHUNKED + b"Content-Length: 2\r\n\r\n0\r\n\r\n",),
    "unknown coding": (b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",),
    "chunked not last": (b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",),
    "space before the colon": (b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",),
    "folded coding": (b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",),
    "tab in the coding": (b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_http_is_refused_and_closed(node: HttpNode, what: str) -> None:
    answer = node.exchange(MALFORMED[what])
    assert statuses(answer) in ([], [400]), answer[:300]


@pytest.mark.parametrize("what", SMUGGLING)
def test_a_second_request_is_not_smuggled_in(node: HttpNode, web: httpx.Client, what: str) -> None:
    key = str(uuid7())
    body = json.dumps({"id": key}).encode()
    second = b"POST /v1/SampleDocs HTTP/1.1\r\n" + KEY + JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answer = node.exchange(POST + SMUGGLING[what][0] + second)
    assert statuses(answer) in ([], [400]), answer[:300]
    assert not exists(web, key)


def test_methods_addresses_and_versions(node: HttpNode) -> None:
    assert statuses(node.exchange(b"GET /v1 HTTP/1.0\r\n" + KEY + b"\r\n")) == [200]
    assert statuses(node.exchange(b"GET http://evil.example/v1 HTTP/1.1\r\n" + KEY + b"Connection: close\r\n\r\n")) == [
        200
    ]
    for method, status in (("TRACE", 405), ("PROPFIND", 405), ("PUT", 405), ("DELETE", 405), ("M-SEARCH", 405)):
        answer = node.exchange(f"{method} /v1 HTTP/1.1\r\n".encode() + KEY + b"Connection: close\r\n\r\n")
        assert statuses(answer) == [status], method
    assert statuses(node.exchange(b"HEAD /v1 HTTP/1.1\r\n" + KEY + b"Connection: close\r\n\r\n")) == [200]
    upgrade = node.exchange(GET + b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n")
    assert statuses(upgrade) == [200], "an unknown upgrade is ignored"


def test_pipelined_requests_are_answered_in_order(node: HttpNode) -> None:
    requests = [b"GET /v1/none-%d HTTP/1.1\r\n" % n + KEY + b"\r\n" for n in range(50)]
    answer = node.exchange(b"".join(requests) + GET + b"Connection: close\r\n\r\n")
    assert statuses(answer) == [404] * 50 + [200]


def test_garbage_after_a_request_is_not_its_answer(node: HttpNode) -> None:
    """A client that took the refusal for the response to its write would think that nothing was written."""
    request = b"GET /v1/SampleRows:sleep?seconds=1 HTTP/1.1\r\n" + KEY + b"\r\n"
    assert statuses(node.exchange(request + b"\x00\x01\x02\r\n\r\n")) == []


def test_a_client_that_waits_for_the_word_to_go_on(node: HttpNode, web: httpx.Client) -> None:
    key = str(uuid7())
    body = json.dumps({"id": key}).encode()
    with node.connect() as connection:
        connection.sendall(
            POST + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert statuses(drained(connection)) == [201]
    assert exists(web, key)
    large = node.exchange(POST + b"Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n")
    assert statuses(large) == [413], "before any of it is sent"
    nobody = (
        POST.replace(KEY, b"Host: x\r\n") + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"
    )
    assert statuses(node.exchange(nobody)) == [401]


def test_the_rest_of_a_body_is_no_request(node: HttpNode) -> None:
    """The answer may come before the body has arrived; the connection goes on after it."""
    body = b"GET /v1 HTTP/1.1\r\n" * 50_000
    request = b"POST /v1/SampleDocs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = node.exchange(request + body + GET + b"Connection: close\r\n\r\n")
    assert statuses(answer) == [401, 200]


def test_a_trailer_is_no_header(node: HttpNode) -> None:
    chunks = b"2\r\n{}\r\n0\r\nAuthorization: Bearer " + ALL.encode() + b"\r\n\r\n"
    request = b"POST /v1/SampleDocs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + JSON + CHUNKED + b"\r\n" + chunks
    assert statuses(node.exchange(request)) == [401]


@pytest.mark.parametrize("size", [70_000, 150_000, 5_000_000])
@pytest.mark.parametrize("what", ["header", "headers", "path", "query"])
def test_a_head_that_is_too_large_is_refused(node: HttpNode, size: int, what: str) -> None:
    filled = b"a" * size
    heads = {
        "header": GET + b"X-A: " + filled + b"\r\n\r\n",
        "headers": GET + b"A: b\r\n" * (size // 4) + b"\r\n",
        "path": b"GET /v1/" + filled + b" HTTP/1.1\r\n" + KEY + b"\r\n",
        "query": b"GET /v1/Airlines:all?a=" + filled + b" HTTP/1.1\r\n" + KEY + b"\r\n",
    }
    assert statuses(node.exchange(heads[what])) in ([], [431])


def test_a_long_address_within_the_limit_is_read(node: HttpNode) -> None:
    path = b"GET /v1/SampleRows/" + b"a" * 60_000 + b" HTTP/1.1\r\n" + KEY + b"Connection: close\r\n\r\n"
    assert statuses(node.exchange(path)) == [404]
    query = b"&".join(b"a%d=" % n for n in range(10_000))
    many = b"GET /v1/Airlines:all?" + query + b" HTTP/1.1\r\n" + KEY + b"Connection: close\r\n\r\n"
    assert statuses(node.exchange(many)) in ([422], [431])


# --- clients that send or read too slowly or too much ----------------------------------------------------------------


def sent_until_refused(connection: socket.socket, unit: bytes, most: int) -> int:
    """The bytes that the node's side takes; it must end the connection before `most`."""
    sent, deadline = 0, time.monotonic() + CLOSED_SECONDS
    connection.settimeout(CLOSED_SECONDS)
    with contextlib.suppress(OSError):
        while sent < most:
            connection.sendall(unit)
            sent += len(unit)
            assert time.monotonic() < deadline, f"{sent} bytes were taken"
    return sent


@pytest.mark.parametrize("key", [KEY, b"Host: x\r\n"], ids=["key", "no key"])
@pytest.mark.parametrize(
    "form",
    [
        b"Content-Length: 104857600\r\n\r\n",
        CHUNKED + b"\r\n6400000\r\n",
        CHUNKED + b"\r\n2;name=",
        CHUNKED + b"\r\n2\r\n{}\r\n0\r\nX-A: ",
    ],
    ids=["length", "chunk", "chunk extension", "trailer"],
)
def test_a_body_without_end_is_not_kept(node: HttpNode, key: bytes, form: bytes) -> None:
    before = node.megabytes
    with node.connect() as connection:
        connection.sendall(b"POST /v1/SampleDocs HTTP/1.1\r\n" + key + JSON + form)
        sent_until_refused(connection, b"x" * 100_000, 400 << 20)
    assert node.megabytes - before < GROWTH


def test_endless_chunks_and_trailers_are_not_kept(node: HttpNode) -> None:
    before = node.megabytes
    for unit in (b"1\r\nx\r\n" * 20_000, b"1;a=b\r\nx\r\n" * 10_000):
        with node.connect() as connection:
            connection.sendall(POST + CHUNKED + b"\r\n")
            assert sent_until_refused(connection, unit, 400 << 20) < 400 << 20
    with node.connect() as connection:
        connection.sendall(POST + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n")
        assert sent_until_refused(connection, b"X-A: b\r\n" * 10_000, 400 << 20) < 400 << 20
    assert node.megabytes - before < GROWTH


def test_connections_that_send_byte_by_byte_end(node: HttpNode, web: httpx.Client) -> None:
    handshake = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    starts = {
        "nothing": b"",
        "half a head": b"GET /v1 HTTP/1.1\r\nX-A: ",
        "half a body": POST + b'Content-Length: 1000\r\n\r\n{"id": "',
        "half a chunk": POST + CHUNKED + b'\r\n3e8\r\n{"id": "',
        "the body of a refused request": b"POST /v1/SampleDocs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
        "the body of a read": GET + b"Content-Length: 1000\r\n\r\n",
        "empty lines after a request": GET + b"\r\n",
        "half a second head": GET + b"\r\nGET /v1 HTTP/1.1\r\nX-A: ",
        "a handshake that fails": b"GET /v1/ws HTTP/1.1\r\nX-A: " + b"a" * 9000 + b"\r\n" + handshake + b"\r\n",
        "a handshake with a body": b"POST /v1/ws HTTP/1.1\r\nContent-Length: 9\r\n" + handshake + b"\r\n",
        "an unknown upgrade": GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    }
    with ExitStack() as all_of_them:
        open_ones = {}
        for name, start in starts.items():
            for number in range(5):
                connection = all_of_them.enter_context(node.connect())
                connection.sendall(start)
                connection.settimeout(0.01)
                open_ones[f"{name} {number}"] = connection
        deadline = time.monotonic() + CLOSED_SECONDS
        while open_ones:
            assert time.monotonic() < deadline, f"still open: {', '.join(open_ones)}"
            for name, connection in list(open_ones.items()):
                if has_ended(connection, b"\r\n" if "empty lines" in name else b"a"):
                    del open_ones[name]
            assert web.get("/v1/Airlines:all").status_code == 200
            time.sleep(0.2)


def has_ended(connection: socket.socket, drip: bytes) -> bool:
    """Whether the other side has closed the connection; sends one byte more if not."""
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        with contextlib.suppress(OSError):
            connection.sendall(drip)
        return False
    except OSError:
        pass
    return True


def frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    """A frame of a client, masked with zeros."""
    size = len(data)
    head = bytes([(0x80 if fin else 0) | opcode])
    head += bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + struct.pack("!H", size)
    return head + b"\0\0\0\0" + data


def opened(node: HttpNode, receive_buffer: int = 0) -> socket.socket:
    """A raw WebSocket connection."""
    connection = node.connect(receive_buffer=receive_buffer)
    connection.sendall(
        b"GET /v1/ws HTTP/1.1\r\n" + KEY + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )  # fmt: skip
    assert b" 101 " in connection.recv(1000)
    return connection


@pytest.mark.parametrize(
    "unit",
    [
        frame(9, b"x" * 125) * 500,
        frame(1, b'{"id": "' + b"x" * 90 + b'", "op": "none"}') * 500,
    ],
    ids=["pings", "messages"],
)
def test_a_websocket_whose_replies_nobody_reads_ends(node: HttpNode, unit: bytes) -> None:
    before = node.megabytes
    with opened(node, receive_buffer=4096) as connection:
        connection.settimeout(CLOSED_SECONDS)
        deadline = time.monotonic() + CLOSED_SECONDS
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                connection.sendall(unit)
        assert time.monotonic() < deadline + CLOSED_SECONDS / 2
        assert node.megabytes - before < GROWTH
        wait_for(lambda: connections_of(node, connection) == 0, CLOSED_SECONDS, "the end of the connection")


def connections_of(node: HttpNode, connection: socket.socket) -> int:
    """The connections of the process to a client's port."""
    port = connection.getsockname()[1]
    found = psutil.Process(node.process.pid).net_connections(kind="tcp")
    return sum(1 for each in found if each.raddr and each.raddr.port == port)


def test_a_message_in_millions_of_frames_is_bounded(node: HttpNode) -> None:
    before = node.megabytes
    with opened(node) as connection:
        connection.sendall(frame(1, b"x", fin=False))
        sent_until_refused(connection, frame(0, b"x", fin=False) * 10_000, 100 << 20)
    assert node.megabytes - before < GROWTH


def test_a_message_that_expands_is_bounded(node: HttpNode) -> None:
    """Compressed, a gigabyte of zeros takes a megabyte."""
    before = node.megabytes
    with connect(f"ws://127.0.0.1:{node.port}/v1/ws", additional_headers=key_of(ALL)) as ws:
        assert ws.protocol.extensions, "the messages are compressed"
        with pytest.raises(websockets.exceptions.ConnectionClosed) as found:
            ws.send("0" * (64 << 20))
            ws.recv(timeout=60)
    assert found.value.rcvd is not None
    assert found.value.rcvd.code == 1009
    assert node.megabytes - before < GROWTH


def test_a_page_of_another_origin_opens_no_websocket(node: HttpNode) -> None:
    for headers, origin, code in (
        (key_of(ALL), "https://evil.example", 4403),
        ({}, "https://shop.example", 4401),
        (key_of("wrong"), None, 4401),
    ):
        with (
            connect(f"ws://127.0.0.1:{node.port}/v1/ws", additional_headers=headers, origin=origin) as ws,  # type: ignore[arg-type]
            pytest.raises(websockets.exceptions.ConnectionClosed) as found,
        ):
            ws.recv(timeout=60)
        assert found.value.rcvd is not None
        assert found.value.rcvd.code == code


# --- addresses, headers and bodies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/SampleRows:samples_by_id",
        "/v1/SampleRows:by_id%00",
        "/v1/SampleRows:by_id;DROP%20TABLE%20samples",
        "/v1/SampleRows:by_id'--",
        "/v1/SampleRows:__class__",
        "/v1/SampleRows:by_id:by_text",
        "/v1/SampleRows%3Aby_id%2F..%2F..",
        "/v1/SampleRows?using=samples_by_id",
        "/v1/SampleRows?using=by_id%00",
        "/v1/SampleRows?using=../by_id",
        "/v1/SampleRows?using=by_id&using=by_text",
        "/v1/SampleRows?using[]=by_id",
        "/v1/samplerows:by_id?id=x",
        "/v1/msTickets:by_state?state=PENDING",
        "/v1/msAudit:since",
        "/v1/__init__/x",
        "/v1/SampleRows/a/b",
        "/v1/SampleRows/%ff",
        "/v1/SampleRows/a%00b",
        "/v1/SampleRows/a%0d%0aX:%20y",
        "/v1/../../etc/passwd",
        "/v1/%2e%2e/%2e%2e/etc/passwd",
        "/static/../server.py",
        "/static/%2e%2e%2fserver.py",
        "/static/..%5cserver.py",
        "//v1",
        "/v1/",
        "/v1;x",
        "/V1",
        "/metrics",
        "/livez",
        "/v1/tickets/",
        "/v1/tickets/%2e%2e",
        "/v1/lineage/a%2fb",
        "/v1/SampleRows:by_id?id=x&$where=1",
        "/v1/SampleRows:by_id?id=x&id.$ne=1",
        "/v1/SampleDocs:by_id?id[$ne]=x",
        "/v1/SampleRows:by_id?id=x&limit=1%20OR%201=1",
        "/v1/SampleRows:by_text?text=x&cursor=%27%20OR%201=1",
    ],
)
def test_an_address_names_what_the_templates_name_and_nothing_else(node: HttpNode, path: str) -> None:
    answer = node.exchange(f"GET {path} HTTP/1.1\r\n".encode() + KEY + b"Connection: close\r\n\r\n")
    assert statuses(answer)[0] in (400, 404, 422), answer[:300]
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    "text", ["' OR '1'='1", '{"$ne": null}', "x'; DROP TABLE samples; --", "$where", "\\", "%", "_"]
)
def test_values_are_values(web: httpx.Client, text: str) -> None:
    web.post("/v1/SampleRows", json={"id": str(uuid7()), "text": "somebody's"})
    for template in ("SampleRows", "SampleDocs"):
        assert web.get(f"/v1/{template}:by_id", params={"id": text}).json()["records"] == []
        assert web.get(f"/v1/{template}:by_text", params={"text": text}).json()["records"] == []


@pytest.mark.parametrize("tail", ["/b", "%2Fb", "?b", "#b", " b", "é/ü", ",b", "%00", "&b=c", "\\b", "..", "//", "+"])
def test_a_key_may_hold_any_letters(node: HttpNode, web: httpx.Client, tail: str) -> None:
    key = f"{str(uuid7())[-12:]}{tail}"
    made = web.post("/v1/SampleRows", json={"id": key, "text": "t"})
    assert made.status_code == 201, made.text
    location = made.headers["location"]
    answer = node.exchange(f"GET {location} HTTP/1.1\r\n".encode() + KEY + b"Connection: close\r\n\r\n")
    assert statuses(answer) == [200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["id"] == key
    assert statuses(node.exchange(f"DELETE {location} HTTP/1.1\r\n".encode() + KEY + b"Connection: close\r\n\r\n")) == [
        204
    ]
    assert web.get("/v1/SampleRows:by_id", params={"id": key}).json()["records"] == []


def test_nothing_of_a_request_becomes_a_header(web: httpx.Client) -> None:
    text = f"{uuid7()}\r\nSet-Cookie: a=b\r\n\r\n<script>"
    records = [{"id": str(uuid7()), "text": text} for _ in range(3)]
    assert web.post("/v1/SampleDocs:batch", json=records).status_code == 200
    page = web.get("/v1/SampleDocs:by_text", params={"text": text, "limit": "1"}, headers={"Host": "evil.example/a?b"})
    assert len(page.json()["records"]) == 1
    assert "set-cookie" not in page.headers
    following = web.get(page.links["next"]["url"])
    assert following.json()["records"][0]["text"] == text
    assert page.links["next"]["url"].startswith("/v1/"), "and no host that the caller chose"
    for key in ("a\tb", "x" * 201):
        headers = {b"Idempotency-Key": key.encode()}
        refused(web.post("/v1/SampleDocs", json={"id": str(uuid7())}, headers=headers), 422)


def test_a_foreign_page_can_neither_read_nor_write(node: HttpNode, web: httpx.Client) -> None:
    evil = {"Origin": "https://evil.example"}
    seen = web.get("/v1", headers=evil)
    assert "access-control-allow-origin" not in seen.headers
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = web.options("/v1/SampleDocs", headers={**evil, **asked})
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    friend = web.options("/v1/SampleDocs", headers={"Origin": "https://shop.example", **asked})
    assert friend.headers["access-control-allow-origin"] == "https://shop.example"
    assert "access-control-allow-credentials" not in friend.headers
    for origin in ("null", "https://shop.example.evil.example", "http://shop.example", "https://shop.example:1", "*"):
        assert "access-control-allow-origin" not in web.get("/v1", headers={"Origin": origin}).headers, origin
    # What a form can send without a preflight.
    key = str(uuid7())
    body = json.dumps({"id": key})
    with node.client("") as stranger:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            headers = {**evil, "Content-Type": kind, "Cookie": f"authorization={ALL}; session={ALL}"}
            refused(stranger.post("/v1/SampleDocs", content=body, headers=headers), 401)
            refused(web.post("/v1/SampleDocs", content=body, headers={**evil, "Content-Type": kind}), 415)
        refused(stranger.get(f"/v1?access_token={ALL}&authorization=Bearer%20{ALL}"), 401)
    assert not exists(web, key)


BODIES = {
    "NaN": b'{"id": "K", "ratio": NaN}',
    "Infinity": b'{"id": "K", "ratio": -Infinity}',
    "1e400": b'{"id": "K", "ratio": 1e400}',
    "an exponent of 20 digits": b'{"id": "K", "price": 1e99999999999999999999}',
    "a decimal of a million digits": b'{"id": "K", "price": 1e1000000}',
    "10**400": b'{"id": "K", "whole": 1' + b"0" * 400 + b"}",
    "10**5000": b'{"id": "K", "whole": 1' + b"0" * 5000 + b"}",
    "a number of a megabyte": b'{"id": "K", "whole": ' + b"9" * 1_000_000 + b"}",
    "lone surrogate": b'{"id": "K", "text": "\\ud800"}',
    "surrogates the wrong way": b'{"id": "K", "text": "\\udc00\\ud800"}',
    "no UTF-8": b'{"id": "K", "text": "\xff"}',
    "UTF-16": '{"id": "K"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"id": "K"}',
    "deep lists": b'{"id": "K", "list": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"id": "K", "extra": ' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}",
    "comment": b'{"id": "K"} // x',
    "two values": b'{"id": "K"}{}',
    "single quotes": b"{'id': 'K'}",
    "an operator": b'{"id": {"$gt": ""}}',
    "a tag": b'{"id": {"$oid": "507f1f77bcf86cd799439011"}}',
    "an unknown field": b'{"id": "K", "_id": "x"}',
    "an actor": b'{"id": "K", "actor": "root"}',
    "a list": b'[{"id": "K"}]',
    "text": b'"K"',
    "nothing": b"",
}


@pytest.mark.parametrize("what", BODIES)
def test_a_body_that_is_no_record_writes_nothing(web: httpx.Client, what: str) -> None:
    key = str(uuid7())
    body = BODIES[what].replace(b"K", key.encode())
    refused(web.post("/v1/SampleDocs", content=body, headers={"Content-Type": "application/json"}), 400, 413, 422)
    assert not exists(web, key)


def test_a_compressed_body_is_not_expanded(web: httpx.Client) -> None:
    bomb = zlib.compress(b"[" + b" " * (64 << 20) + b"]", wbits=31)
    for coding in ("gzip", "deflate", "br", "identity, gzip"):
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        refused(web.post("/v1/SampleDocs:batch", content=bomb, headers=headers), 400, 415)


@pytest.mark.parametrize("accept", [b";;;,,,", b"\xff\xfe", b"a" * 20_000, b"*/*;q=nan", b"*/*;q=0", b",," * 10_000])
def test_preferences_without_sense_are_typed_refusals(web: httpx.Client, accept: bytes) -> None:
    refused(web.get("/v1/Airlines:all", headers={b"Accept": accept}), 406)
    prefer = {b"Accept": b"*/*", b"Prefer": b"wait=\xb2, =;, respond-async;;, return=" + accept[:5000]}
    assert web.get("/v1/Airlines:all", headers=prefer).status_code in (200, 202)
    odd = dict.fromkeys((b"If-None-Match", b"traceparent", b"Last-Event-ID", b"Cookie"), accept[:5000])
    assert web.get("/v1/Airlines:all", headers=odd).status_code == 200


# --- much data -------------------------------------------------------------------------------------------------------


def test_a_thousand_records_of_a_kilobyte_go_up_and_down(node: HttpNode, web: httpx.Client) -> None:
    text, filled = str(uuid7()), "y" * 900
    lines = [json.dumps({"id": f"{text[-12:]}-{n:04}", "text": text, "extra": {"x": filled}}) for n in range(1000)]
    kind = {"Content-Type": "application/x-ndjson"}
    for part in (lines[:500], lines[500:]):
        done = web.post("/v1/SampleDocs:batch", content="\n".join(part), headers=kind)
        assert (done.status_code, done.json()["affected"]) == (200, 500)
    before = node.megabytes
    page = web.get("/v1/SampleDocs:by_text", params={"text": text, "limit": "1000"})
    if page.status_code == 200:
        assert len(page.json()["records"]) == 1000
    else:
        refused(page, 422)
    for accept in ("application/x-ndjson", "text/csv"):
        all_of_them = web.get(
            "/v1/SampleDocs:by_text", params={"text": text, "limit": "100"}, headers={"Accept": accept}
        )
        assert len(all_of_them.text.splitlines()) == 1000 + (accept == "text/csv")
    assert node.megabytes - before < GROWTH


@pytest.mark.parametrize("bad", ["x", "{}", '{"id": 7}', '{"id": "a", "whole": "x"}', '{"id": "\\ud800"}', "[1]"])
def test_one_bad_line_among_a_thousand_writes_nothing(web: httpx.Client, bad: str) -> None:
    text = str(uuid7())
    lines = [json.dumps({"id": f"{text[-12:]}-{n:04}", "text": text}) for n in range(999)]
    kind = {"Content-Type": "application/x-ndjson"}
    refused(web.post("/v1/SampleDocs:batch", content="\n".join([*lines, bad]), headers=kind), 400, 422)
    assert web.get("/v1/SampleDocs:by_text", params={"text": text}).json()["records"] == []


# --- a vhost of its own: a worker that dies, and a node with few rights ----------------------------------------------


def test_a_download_breaks_when_the_worker_dies(project: Path, settings: Settings, stack: Stack) -> None:
    """A body that ends well would be taken for all of the records."""
    text = str(uuid7())
    records = [{"id": f"{text[-12:]}-{n:04}", "text": text} for n in range(1000)]
    with vhost_of_its_own(settings, stack) as own:
        url = own.settings.amqp.client_url
        env = {**own.env, **NODE, "BEDS_AMQP__HTTP_URL": url, "BEDS_HTTP__TIMEOUT": "5"}
        with (
            running_worker(project, ALL_QUEUES, env=own.env) as worker,
            Client(own.settings) as client,
            running_http(project, PORT_BASE + 90, env=env) as node,
            node.client() as web,
        ):
            wait_until_served(client)
            assert web.post("/v1/SampleDocs:batch", json=records).status_code == 200
            kinds = {"application/x-ndjson": 2, "text/csv": 3}
            query = {"text": text, "limit": "1"}
            broken = 0
            with ExitStack() as streams:
                readers = []
                for kind, lines in kinds.items():
                    stream = streams.enter_context(
                        web.stream("GET", "/v1/SampleDocs:by_text", params=query, headers={"Accept": kind})
                    )
                    assert stream.status_code == 200
                    reader = stream.iter_lines()
                    for _ in range(lines):
                        next(reader)
                    readers.append(reader)
                for process in [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]:
                    process.kill()
                for reader in readers:
                    with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                        assert sum(1 for _ in reader) < len(records)
                    broken += 1
            assert broken == len(kinds)
            refused(web.get("/v1/SampleDocs:by_text", params=query), 503, 504)
            assert node.process.poll() is None
            assert web.get("/v1").status_code == 200


def test_the_node_can_do_no_more_than_its_amqp_user(
    project: Path, settings: Settings, stack: Stack, tmp_path: Path
) -> None:
    with vhost_of_its_own(settings, stack) as own:
        where = urlsplit(settings.amqp.client_url)
        url = f"amqp://attacker_narrow:attacker@{where.hostname}:{where.port}/own"
        define(stack, [User.of(url, client_for(["rel.read"]))], tmp_path)
        env = {**own.env, **NODE, "BEDS_AMQP__HTTP_URL": url}
        with (
            running_worker(project, ALL_QUEUES, env=own.env),
            Client(own.settings) as client,
            running_http(project, PORT_BASE + 90, env=env) as node,
            node.client() as web,
        ):
            wait_until_served(client)
            key = str(uuid7())
            assert web.get("/v1/SampleRows:by_id", params={"id": key}).status_code == 200
            attempts: list[tuple[str, str, Any, dict[str, str]]] = [
                ("POST", "/v1/SampleRows", {"id": key}, {}),
                ("POST", "/v1/SampleRows:batch", [{"id": key}], {}),
                ("PATCH", f"/v1/SampleRows/{key}", {"text": "x"}, {}),
                ("DELETE", f"/v1/SampleRows/{key}", None, {}),
                ("POST", "/v1/SampleDocs", {"id": key}, {}),
                ("GET", f"/v1/SampleDocs:by_id?id={key}", None, {}),
                ("POST", "/v1/SampleRows", {"id": key}, {"Prefer": "respond-async"}),
                ("POST", "/v1/SampleRows", {"id": key}, {"Idempotency-Key": key}),
                ("GET", f"/v1/tickets/{key}", None, {}),
                ("POST", "/v1/jobs/rows_to_docs", {}, {}),
            ]
            for method, path, body, headers in attempts:
                problem = refused(web.request(method, path, json=body, headers=headers), 403)
                assert "beds_" not in problem["detail"], "no names of users or queues"
            with connect(f"ws://127.0.0.1:{node.port}/v1/ws", additional_headers=key_of(ALL)) as ws:
                ws.send(json.dumps({"id": 1, "template": "SampleRows", "operation": "create", "record": {"id": key}}))
                assert json.loads(ws.recv(timeout=60))["status"] == 403
            assert web.get("/v1/SampleRows:by_id", params={"id": key}).json()["records"] == []
            assert httpx.get(f"http://127.0.0.1:{node.port + 1}/readyz", timeout=60, trust_env=False).status_code == 503


def test_a_node_that_stops_sends_its_clients_elsewhere(project: Path, workers: None) -> None:
    with running_http(project, PORT_BASE + 90, env=NODE) as node, node.client() as web:
        with connect(f"ws://127.0.0.1:{node.port}/v1/ws", additional_headers=key_of(ALL)) as ws:
            ws.send('{"id": 1, "op": "none"}')
            assert json.loads(ws.recv(timeout=60))["status"] == 422
            found: list[int] = []
            at_work = threading.Thread(
                target=lambda: found.append(web.get("/v1/SampleRows:sleep?seconds=2").status_code)
            )
            at_work.start()
            time.sleep(1)
            node.process.terminate()
            with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
                ws.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        at_work.join(60)
        assert found == [200], "a request at work ends"
        assert node.process.wait(60) == 0

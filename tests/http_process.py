"""An app-server node as a process of its own, and raw connections to it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.conftest import PORT_BASE, environment, wait_for

ALL, NARROW = "key-of-all", "key-of-narrow"
START_SECONDS = 60.0
PROBLEM = "application/problem+json"


def http_environment(port: int, **more: str) -> dict[str, str]:
    """`[http]` with a key that may do everything and one that may read one fetch."""
    roles = {
        "all": {"allow": ["*"], "rate": 100_000, "burst": 100_000, "concurrency": 500},
        "narrow": {"allow": ["SampleRows:by_id"]},
    }
    keys = [
        {"name": name, "sha256": [hashlib.sha256(secret.encode()).hexdigest()], "roles": [name]}
        for name, secret in (("all", ALL), ("narrow", NARROW))
    ]
    return {
        "BEDS_HTTP__LISTEN": f"127.0.0.1:{port}",
        "BEDS_HTTP__ADMIN": f"127.0.0.1:{port + 1}",
        "BEDS_HTTP__ROLES": json.dumps(roles),
        "BEDS_HTTP__KEY": json.dumps(keys),
        **more,
    }


@dataclass
class HttpNode:
    """A running node.

    Args:
        process: `python -m beds.http`.
        port: for clients.
        log: what the process printed.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def megabytes(self) -> int:
        """Resident memory of the process."""
        return int(psutil.Process(self.process.pid).memory_info().rss) >> 20

    def client(self, secret: str = ALL, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **options)

    def connect(self, *, receive_buffer: int = 0) -> socket.socket:
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def exchange(self, data: bytes, seconds: float = 20.0) -> bytes:
        """What the node sends after these bytes, until it closes the connection or is silent for some time."""
        with self.connect() as connection:
            connection.settimeout(seconds)
            with contextlib.suppress(OSError):  # it has closed the connection already; its answer may still be there
                connection.sendall(data)
            return drained(connection)


def drained(connection: socket.socket) -> bytes:
    """Everything that arrives until the other side closes or the timeout passes without a byte."""
    found = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(65536):
            found += part
    return found


@contextmanager
def running_http(
    project: Path, port: int = PORT_BASE + 80, *, env: Mapping[str, str] | None = None
) -> Iterator[HttpNode]:
    """`python -m beds.http` in the project; its output goes to `http.log` there."""
    log = project / f"http-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "beds.http"],
            cwd=project,
            env=environment(project, **http_environment(port, **(env or {}))),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    node = HttpNode(process, port, log)
    try:
        wait_for(lambda: process.poll() is not None or is_live(port), START_SECONDS, "the app server")
        assert process.poll() is None, log.read_text()
        yield node
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def is_live(port: int) -> bool:
    """Whether both ports answer."""
    try:
        with httpx.Client(timeout=5, trust_env=False) as web:
            is_open = web.get(f"http://127.0.0.1:{port}/v1").status_code == 401
            return is_open and web.get(f"http://127.0.0.1:{port + 1}/livez").is_success
    except httpx.TransportError:
        return False

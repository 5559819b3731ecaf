"""The sides of bench.http: for each, its processes, and how it is asked for an operation."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import psutil
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from beds.client.aio import AsyncClient
from beds.client.client import Client
from beds.config import Settings
from beds.config.http import host_and_port
from bench.http_load import Make, Tally, calls_loop, closed_loop
from bench.objects import Data, Objects, Samples
from bench.side import DEADLINE, ROOT, module, wait_until_answered, worker

FETCH_REL, FETCH_REC, CREATE_REC = "fetch-rel", "fetch-rec", "create-rec"
HOST = "127.0.0.1"
QUEUES = "rel.read,rel.write,rec.read,rec.write,calgon"
PORTS = {"node": 10, "direct": 11, "eve": 12, "stub": 13}
"""Ports of the sides, behind the one of `[http] listen`."""
ADMIN = 10
"""The port of an app server's operators, behind its own."""
ISSUER, AUDIENCE, KID = "https://bench.example", "bench", "bench"
ROLES = {
    "all": {"allow": ["*"], "rate": 1e6, "burst": 1_000_000, "concurrency": 100_000},
    "few": {"allow": ["*"], "rate": 1e6, "burst": 1_000_000, "concurrency": 64},
}
"""`all` is limited by the node alone, `few` by the usual number of requests at the same time."""


@dataclass(frozen=True)
class Bench:
    """What the sides share.

    Args:
        settings: those of the benchmark's vhost.
        slots: processes that execute BEDS's operations.
        processes: of each peer.
        pythons: the Python of each peer, by its name.
        samples: data of documents.
        airports: keys of airports.
    """

    settings: Settings
    slots: int
    processes: int
    pythons: Mapping[str, str]
    samples: Samples
    airports: tuple[str, ...]

    def port(self, side: str) -> int:
        return host_and_port(self.settings.http.listen)[1] + PORTS[side]


@dataclass(frozen=True)
class Side:
    """One way to execute the operations.

    Args:
        run: executes an operation from a number of connections for some seconds.
        operations: those that it has.
        server: the processes that take the requests.
        port: where they listen, if they do.
        make: returns the requests of an operation; the second argument names a role.
        shares_workers: whether BEDS's workers execute its operations.
    """

    run: Callable[[str, int, float], Tally]
    operations: tuple[str, ...]
    server: tuple[psutil.Process, ...] = ()
    port: int = 0
    make: Callable[[str, str], Make] = lambda operation, role: bytes


def request(method: str, path: str, token: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\nAccept: application/json\r\n"
    if method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def cycle(requests: list[bytes]) -> Make:
    return itertools.cycle(requests).__next__


class Keys:
    """An identity provider of its own: writes its public key, and signs tokens."""

    def __init__(self, file: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._file = file
        public = json.loads(ECAlgorithm.to_jwk(self._key.public_key()))
        self._file.write_text(json.dumps({"keys": [{**public, "kid": KID, "alg": "ES256", "use": "sig"}]}))

    def token(self, role: str) -> str:
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": f"bench-{role}", "exp": int(time.time()) + 86_400,
                  "roles": [role]}  # fmt: skip
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": KID})

    @property
    def environment(self) -> dict[str, str]:
        provider = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(self._file)}
        return {"BEDS_HTTP__JWT": json.dumps([provider]), "BEDS_HTTP__ROLES": json.dumps(ROLES)}


@contextmanager
def workers(bench: Bench) -> Iterator[psutil.Process]:
    """The workers of the sides `node` and `aio`."""
    with worker("beds", QUEUES, "-c", str(bench.slots), "--prefetch-multiplier", "4") as process:
        with Client(bench.settings) as client:
            ask = {"faa": bench.airports[0]}
            wait_until_answered(lambda: client.fetch("Airports", "by_faa", ask, timeout=5))
        yield process


@contextmanager
def node_side(bench: Bench) -> Iterator[Side]:
    """The app server, in front of RabbitMQ and BEDS's workers."""
    with _app_server(bench, "node", "beds.http") as side:
        yield side


@contextmanager
def stub_side(bench: Bench) -> Iterator[Side]:
    """The app server over a transport that replies at once."""
    with _app_server(bench, "stub", "bench.http_stub") as side:
        yield side


@contextmanager
def _app_server(bench: Bench, name: str, module_name: str) -> Iterator[Side]:
    keys, port = Keys(bench.settings.root / ".beds" / "run" / f"bench-{name}-jwks.json"), bench.port(name)
    tokens = {role: keys.token(role) for role in ROLES}
    environment = {
        **keys.environment,
        "BEDS_HTTP__LISTEN": f"{HOST}:{port}",
        "BEDS_HTTP__ADMIN": f"{HOST}:{port + ADMIN}",
        "BEDS_AMQP__HTTP_URL": bench.settings.amqp.client_url,
    }

    def make(operation: str, role: str) -> Make:
        token = tokens[role]
        match operation:
            case "fetch-rel":
                paths = [f"/v1/Airports:by_faa?faa={faa}" for faa in bench.airports]
                return cycle([request("GET", path, token) for path in paths])
            case "fetch-rec":
                return cycle([request("GET", f"/v1/Notices/{key}", token) for key in _notices(bench)])

        def create() -> bytes:
            return request("POST", "/v1/Notices", token, json.dumps(bench.samples.next(CREATE_REC)).encode())

        return create

    with module(module_name, log=f"bench-http-{name}", env=environment) as process:
        yield _http_side(process, port, make, (FETCH_REL, FETCH_REC, CREATE_REC))


def _notices(bench: Bench) -> list[str]:
    return [data["id"] for data in bench.samples.several(FETCH_REC, 200)]


def _http_side(
    process: psutil.Process, port: int, make: Callable[[str, str], Make], operations: tuple[str, ...]
) -> Side:
    _wait_listening(process, port)

    def run(operation: str, connections: int, seconds: float) -> Tally:
        return uvloop.run(closed_loop((HOST, port), make(operation, "all"), connections, seconds))

    return Side(run, operations, (process, *process.children(recursive=True)), port, make)


def _wait_listening(process: psutil.Process, port: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            with contextlib.closing(HTTPConnection(HOST, port, timeout=5)) as connection:
                connection.request("GET", "/")
                connection.getresponse().read()
                return
        except OSError:
            if time.monotonic() > deadline or process.status() == psutil.STATUS_ZOMBIE:
                raise  # its log is in .beds/run
            time.sleep(0.1)


@contextmanager
def direct_side(bench: Bench) -> Iterator[Side]:
    """A hand-written service without a broker."""

    def make(operation: str, token: str) -> Make:
        match operation:
            case "fetch-rel":
                return cycle([request("GET", f"/airports/{faa}", token) for faa in bench.airports])
            case "fetch-rec":
                return cycle([request("GET", f"/notices/{key}", token) for key in _notices(bench)])
        return lambda: request("POST", "/notices", token, json.dumps(bench.samples.next(CREATE_REC)).encode())

    with _peer(bench, "direct", make, (FETCH_REL, FETCH_REC, CREATE_REC)) as side:
        yield side


@contextmanager
def eve_side(bench: Bench) -> Iterator[Side]:
    """python-eve, which has documents alone."""

    def make(operation: str, token: str) -> Make:
        if operation == FETCH_REC:
            return cycle([request("GET", f"/notices/{key}", token) for key in _notices(bench)])

        def create() -> bytes:
            data = bench.samples.next(CREATE_REC)
            data["_id"] = data.pop("id")
            return request("POST", "/notices", token, json.dumps(data).encode())

        return create

    with _peer(bench, "eve", make, (FETCH_REC, CREATE_REC)) as side:
        yield side


@contextmanager
def _peer(bench: Bench, name: str, make: Callable[[str, str], Make], operations: tuple[str, ...]) -> Iterator[Side]:
    rel, rec = bench.settings.databases.rel, bench.settings.databases.rec
    assert rel is not None
    assert rec is not None
    token, port = secrets.token_urlsafe(32), bench.port(name)
    environment = {
        "BENCH_TOKEN": token,
        "BENCH_REL": json.dumps({"host": rel.host, "port": rel.port, "user": rel.user, "db": rel.database,
                                 "password": rel.password.get_secret_value()}),
        "BENCH_REC_URI": rec.uri.get_secret_value(),
        "BENCH_REC_DATABASE": rec.database,
    }  # fmt: skip
    arguments = (f"bench.http_{name}", str(port), str(bench.processes))
    with module(*arguments, log=f"bench-http-{name}", env=environment, python=bench.pythons[name]) as process:
        yield _http_side(process, port, lambda operation, role: make(operation, token), operations)


@contextmanager
def aio_side(bench: Bench) -> Iterator[Side]:
    """`beds.aio.call` in the measuring process, with as many calls in flight as the others have connections."""
    with Client(bench.settings) as client:
        aio = AsyncClient(client)

        def run(operation: str, in_flight: int, seconds: float) -> Tally:
            airports = itertools.cycle(bench.airports)
            keys = itertools.cycle([UUID(key) for key in _notices(bench)])

            async def call() -> object:
                match operation:
                    case "fetch-rel":
                        return await aio.call("fetch_records", "Airports", {"faa": next(airports)}, using="by_faa")
                    case "fetch-rec":
                        return await aio.call("fetch_records", "Notices", {"id": next(keys)}, using="by_id")
                return await aio.call("create_record", "Notices", _typed(bench.samples.next(CREATE_REC)))

            return uvloop.run(calls_loop(call, in_flight, seconds))

        yield Side(run, (FETCH_REL, FETCH_REC, CREATE_REC))


def _typed(notice: Data) -> dict[str, Any]:
    return {**notice, "id": UUID(notice["id"]), "opened": datetime.fromisoformat(notice["opened"])}


SIDES: dict[str, Callable[[Bench], AbstractContextManager[Side]]] = {
    "node": node_side,
    "aio": aio_side,
    "direct": direct_side,
    "eve": eve_side,
    "stub": stub_side,
}
NEEDED = {"direct": "fastapi, uvicorn, uvloop, httptools, asyncmy, pymongo", "eve": "eve, gunicorn"}


def lacking(side: str, python: str) -> str:
    """What to do so that a peer can run; empty if it can."""
    imports = f"import {NEEDED[side]}"
    if subprocess.run([python, "-c", imports], capture_output=True, cwd=ROOT, env=os.environ).returncode:
        return f"{python} lacks one of {NEEDED[side]}, so this side is left out: pip install 'beds[bench]' there"
    return ""


def seeded_airports(dba: Objects) -> tuple[str, ...]:
    """The keys of airports. Raises SystemExit: there are none."""
    with dba.rel.cursor() as cursor:
        cursor.execute("SELECT faa FROM airports ORDER BY faa LIMIT 200")
        found = tuple(row["faa"] for row in cursor.fetchall())
    if not found:
        sys.exit("there are no airports: `beds demo` loads the sample data")
    return found

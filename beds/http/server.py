"""Runs the application with uvicorn: its port for clients, and one for operators."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from beds.client.client import Client
from beds.config import Settings
from beds.config.http import host_and_port
from beds.errors import ConfigurationError
from beds.http.application import Application
from beds.http.protocols import GuardedHttp, GuardedWebSocket

DRAIN_SECONDS = 20
"""Time for requests at work to end after SIGTERM."""
WEBSOCKET_BYTES = 1024 * 1024

logger = logging.getLogger("beds.http")


class _Server(uvicorn.Server):
    """A server that leaves signals to `serve`, which stops both servers in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings, client: Client | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Then let requests at work end, and close WebSockets with 1012.

    Args:
        settings: beds.toml.
        client: publishes the events; one of its own when absent.
    """
    http = settings.http
    sockets = [_listening(address) for address in (http.listen, http.admin) if address]
    application = Application(settings, client)
    limits = {"seconds": http.body_timeout, "max_connections": http.max_connections}
    tls: dict[str, Any] = {}
    if http.tls_certificate and http.tls_key:
        tls = {"ssl_certfile": str(http.tls_certificate), "ssl_keyfile": str(http.tls_key)}
    host, port = host_and_port(http.listen)
    servers = [
        _Server(
            uvicorn.Config(
                application,
                host=host,
                port=port,
                loop="uvloop",
                http=type("Http", (GuardedHttp,), limits),
                ws=type("WebSocket", (GuardedWebSocket,), limits),
                ws_max_size=WEBSOCKET_BYTES,
                ws_ping_interval=20,
                ws_ping_timeout=20,
                lifespan="on",
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=bool(http.trusted_proxies),
                forwarded_allow_ips=list(http.trusted_proxies),
                timeout_graceful_shutdown=DRAIN_SECONDS,
                log_level="warning",
                **tls,
            )
        )
    ]
    if http.admin:
        host, port = host_and_port(http.admin)
        config = uvicorn.Config(
            admin(application), host=host, port=port, loop="uvloop", lifespan="off", access_log=False,
            server_header=False, log_level="warning",
        )  # fmt: skip
        servers.append(_Server(config))
    with asyncio.Runner(loop_factory=servers[0].config.get_loop_factory()) as runner:
        runner.run(_serve_all(servers, sockets, application))


def _listening(address: str) -> socket.socket:
    """Raises ConfigurationError: the address cannot be listened on."""
    host, port = host_and_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigurationError(
            f"{address} cannot be listened on: {error.strerror}",
            hint="`beds node status` shows whether this node serves it already; else choose another in [http]",
        ) from None


async def _serve_all(servers: list[_Server], sockets: list[socket.socket], application: Application) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        application.drain()
        for server in servers:
            server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    tasks = [asyncio.create_task(server.serve(sockets=[each])) for server, each in zip(servers, sockets, strict=True)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop()
    await asyncio.gather(*tasks)


def admin(application: Application) -> Starlette:
    """The operators' application: `/livez`, `/readyz` and `/metrics`."""

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        why = await application.node.not_ready()
        return PlainTextResponse(f"{why or 'ok'}\n", 503 if why else 200)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(application.node.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])

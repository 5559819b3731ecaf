"""What all parts of the app-server node share: its client, its templates, its limits and its metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from beds.client.call import Call
from beds.client.client import Client
from beds.client.flows import Begun, Handle
from beds.client.loop import drive
from beds.client.steps import Flow
from beds.config import Settings
from beds.domain.change import Changes
from beds.domain.event import Operation
from beds.domain.identity import uuid7
from beds.errors import BedsError, ConfigurationError, UnknownTicket
from beds.http.feeds import Feeds
from beds.http.limits import Limits
from beds.http.problems import not_found
from beds.http.sign_in import SignIn
from beds.http.signatures import Signatures
from beds.templates.roles import check_roles
from beds.templates.template import Template
from beds.wire.reply import encoded_result

T = TypeVar("T")
RESERVED = frozenset({"tickets", "jobs", "lineage", "changes", "ws"})
"""First segments behind `/v1` that are no templates."""
PROBE_SECONDS = 5.0
"""Time for which the result of a probe counts."""
PROBE_TIMEOUT = 3.0

logger = logging.getLogger("beds.http")


class Node:
    """The app-server node.

    Args:
        settings: beds.toml.
        client: publishes the events; one of its own when absent.

    Raises:
        ConfigurationError: `[http]` names what does not exist.
    """

    def __init__(self, settings: Settings, client: Client | None = None) -> None:
        self.settings = settings
        self.http = settings.http
        self.client = client or Client(_as_app_server(settings))
        self.flows = self.client.flows
        self.templates = self.client.templates
        for name in sorted(RESERVED & self.templates.keys()):
            raise ConfigurationError(f"a template cannot be named {name} here: /v1/{name} is an address of its own")
        check_roles(self.http, self.templates)
        self.sign_in = SignIn(self.http)
        self.limits = Limits(self.http.max_in_flight)
        self.signatures = Signatures(self.flows)
        self.feeds = Feeds(self._read_changes)
        self.metrics = Metrics()
        self._probed_at = float("-inf")
        self._probed = "not probed yet"

    def template(self, name: str) -> Template:
        """Raises Problem (404): there is no such template."""
        if name not in self.templates:
            raise not_found()
        return self.templates[name]

    async def run(self, flow: Flow[T]) -> T:
        """Run a flow of the client on this event loop."""
        return await drive(flow, self.flows)

    async def reply(self, call: Call, key: str | None = None, begun: Begun | None = None) -> Any:
        """The worker's reply to a call, as the codec encodes it. A fetch needs no idempotency key, and has none.

        Args:
            call: the call.
            key: its idempotency key.
            begun: called with the event's id when it is published.

        Raises:
            BedsError: the error that the reply carries, or that there is none.
        """
        key = key if call.operation != Operation.FETCH else None
        return encoded_result(await self.run(self.flows.encoded_reply(call, self.http.timeout, key, begun)))

    def handle(self, guid: str, actor: str) -> Handle:
        """A ticket or job of a caller. Raises UnknownTicket: the text is empty, or too long for a guid."""
        if not 0 < len(guid) <= 120:
            raise UnknownTicket("this is no ticket of BEDS")
        return Handle(guid, actor=actor)

    async def _read_changes(self, template: str, after: str, limit: int, actor: str) -> Changes:
        return await self.run(self.flows.changes(template, after, limit, self.http.timeout, actor))

    async def not_ready(self) -> str:
        """Why the node cannot serve now; empty if it can. Probes RabbitMQ and the pool of tickets, at most once in
        `PROBE_SECONDS`."""
        if time.monotonic() - self._probed_at >= PROBE_SECONDS:
            self._probed_at = time.monotonic()
            self._probed = await self._probe()
        return self._probed

    async def _probe(self) -> str:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await self.run(self.flows.ask("status", {"guid": str(uuid7())}, PROBE_TIMEOUT))
        except UnknownTicket:
            return ""
        except TimeoutError:
            return "no worker of the queue calgon replies"
        except BedsError as error:
            return error.code
        return ""

    def start(self) -> None:
        """Connect in the background, so that the first request does not wait."""
        self._starting = asyncio.create_task(self.not_ready())

    async def stop(self) -> None:
        """Close the connection."""
        self._starting.cancel()
        await asyncio.to_thread(self.client.close)


def _as_app_server(settings: Settings) -> Settings:
    """The settings of a client with the app server's own AMQP user."""
    amqp = settings.amqp
    return settings.model_copy(update={"amqp": amqp.model_copy(update={"url": amqp.http_url or amqp.url})})


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("what", "status")
        self.requests = Counter(
            "beds_http_requests", "Requests, by operation and status", labels, registry=self.registry
        )
        self.seconds = Histogram(
            "beds_http_seconds",
            "Time from a request's head to its response's head",
            ("what",),
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.sockets = Gauge("beds_http_websockets", "Open WebSocket connections", registry=self.registry)
        self.streams = Gauge("beds_http_streams", "Open event streams", registry=self.registry)
        self._children: dict[tuple[str, int], tuple[Callable[[], Any], Callable[[float], Any]]] = {}

    def ended(self, what: str, status: int, seconds: float) -> None:
        """Count a request. `what` is one of a limited number of names, and never text of the caller's choice."""
        found = self._children.get((what, status))
        if found is None:
            counter, histogram = self.requests.labels(what, str(status)), self.seconds.labels(what)
            found = self._children[what, status] = counter.inc, histogram.observe
        found[0]()
        found[1](seconds)

"""Tests the running system end to end, with probes that it publishes as any client does."""

from __future__ import annotations

import contextlib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, TypeVar

from beds.client.client import Client
from beds.client.overview import members
from beds.config import Settings
from beds.config.http import host_and_port
from beds.domain.event import OPERATOR, Event, Operation
from beds.domain.lineage import Lineage
from beds.errors import BedsError, MalformedEvent, NotFound, PermissionDenied, Unroutable
from beds.node.amqp_checks import ALARMS, UNROUTABLE, client_checks
from beds.node.check import Check, failed, of_error, ok, skipped, warned
from beds.node.members import rabbitmq_members, store_members
from beds.services.members import SERVERS
from beds.transport.connection import connect_to
from beds.transport.pending import Pending
from beds.transport.topology import Depth, depths
from beds.wire.routes import CRUD_QUEUES, DEAD, EVENT_QUEUES, JOB_QUEUES, LOG_QUEUES, QUEUE_ROUTES

ARRIVAL_SECONDS = 0.3
"""Interval between two queries for an expected record."""
T = TypeVar("T")


def examine(settings: Settings, timeout: float) -> Iterator[Check]:
    """Probe the system that this node's client sees.

    Args:
        settings: of any node; only `[node]`, `[amqp]` and the templates are used.
        timeout: seconds for each probe.
    """
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(settings))
        has_operator = settings.amqp.operator_url is not None
        operator = stack.enter_context(Client(settings, operator=True)) if has_operator else None
        doctor = Doctor(client, operator, timeout)
        for check in client_checks(settings):
            yield check
            if check.name == ALARMS and check.failed:
                return  # RabbitMQ accepts no messages
        try:
            yield doctor.unroutable()
            with connect_to(settings.amqp, settings.amqp.client_url, patience=timeout) as connection:
                found = depths((*EVENT_QUEUES, *LOG_QUEUES, DEAD), connection)
        except BedsError as error:
            yield of_error("RabbitMQ", error)
            return
        yield from rabbitmq_members(settings)
        yield from doctor.pools(found)
        yield from doctor.stores(found)
        yield from _consumers(found)
        if settings.services.app_server.is_local:
            yield _http(settings, timeout)
        yield doctor.dead(found)
        yield doctor.lineage()


class Doctor:
    """The probes of one examination."""

    def __init__(self, client: Client, operator: Client | None, timeout: float) -> None:
        self._client = client
        self._operator = operator
        self._timeout = timeout
        self._answered: list[Lineage] = []

    def unroutable(self) -> Check:
        name = "an unroutable event"
        event = Event("doctor.probe", UNROUTABLE, {}, "doctor.probe", self._lineage())
        try:
            self._answer(self._send(event))
        except (Unroutable, PermissionDenied) as refused:
            return ok(name, f"is refused: {refused.code}")
        except BedsError as error:
            return of_error(name, error)
        return failed(name, f"was taken by something bound to {UNROUTABLE}", "see who bound a queue to beds.events")

    def pools(self, found: dict[str, Depth | None]) -> Iterator[Check]:
        """Probe all pools at once. The task of a CRUD queue retries once, which must return to the same queue."""
        asked: dict[str, Pending | BedsError] = {}
        for queue in EVENT_QUEUES:
            depth = found[queue]
            if depth is None:
                yield failed(f"pool {queue}", "there is no such queue", "start a node with workers; it declares it")
            elif depth.consumers:
                event = Event.of_probe(queue, self._lineage(), retry=queue in CRUD_QUEUES)
                try:
                    asked[queue] = self._send(event, by=self._asks(queue))
                except BedsError as error:
                    asked[queue] = error
            elif queue in JOB_QUEUES and not self._scheduled(queue):
                yield skipped(f"pool {queue}", "nobody consumes it, and no rule of this kind is scheduled")
            else:
                yield failed(f"pool {queue}", f"nobody consumes it; {depth.messages} events wait",
                             f"start a node whose beds.toml has the service of {queue}")  # fmt: skip
        for queue, pending in asked.items():
            yield self._pool(queue, pending)

    def stores(self, found: dict[str, Depth | None]) -> Iterator[Check]:
        """The members of the databases, which a worker of the queue `operator` reports."""
        queue = found[OPERATOR]
        if self._operator is None or queue is None or not queue.consumers:
            return
        for seen in members(self._operator, self._timeout):
            if seen.server in SERVERS.values():
                if seen.problem:
                    yield warned(f"{seen.server} members", seen.problem, "`beds node check` on a node of that database")
                yield from store_members(seen)

    def _pool(self, queue: str, pending: Pending | BedsError) -> Check:
        name = f"pool {queue}"
        try:
            if isinstance(pending, BedsError):
                raise pending
            answer = self._answer(pending, by=self._asks(queue))
        except PermissionDenied:
            return skipped(name, "this node's client may not publish there")
        except BedsError as error:
            return of_error(name, error)
        # A worker rejects an event of another queue, so a reply after a retry proves that it returned to its own.
        worker, retries = str(answer["worker"]), int(answer["retries"])
        if queue in CRUD_QUEUES:  # events about tickets leave no lineage
            self._answered.append(pending.event.lineage)
        if retries:
            return ok(name, f"{worker} answered, and its database, after a retry on its own queue")
        return ok(name, f"{worker} answered")

    def _asks(self, queue: str) -> Client | None:
        """Who probes a queue: the operator, where applications have no right by default."""
        return self._operator if queue in (OPERATOR, *JOB_QUEUES) else None

    def _scheduled(self, queue: str) -> list[str]:
        """The scheduled rules whose jobs a queue gets."""
        rules = self._client.templates.jobs.items()
        return [name for name, rule in rules if rule.kind.queue == queue and rule.schedule]

    def dead(self, found: dict[str, Depth | None]) -> Check:
        """Send an event that no worker can execute. It must arrive in msDead, where it is discarded."""
        name = "a dead event"
        queue = next((queue for queue in CRUD_QUEUES if (depth := found[queue]) and depth.consumers), None)
        if queue is None:
            return skipped(name, "no pool to end it")
        operator = self._operator
        if operator is None:
            return skipped(name, "[amqp] operator_url is not set, and msDead is an operator's to see")
        lineage = self._lineage()
        try:
            self._answer(self._send(Event("doctor.dead", queue, {}, "doctor.dead", lineage, repeatable=True)))
            return failed(name, f"was carried out by {queue}", "a task doctor.dead is registered; remove it")
        except MalformedEvent:
            pass
        except PermissionDenied:
            return skipped(name, f"this node's client may not publish to {queue}")
        except BedsError as error:
            return of_error(name, error)
        try:
            record = self._arrival(lambda: self._find_dead(operator, lineage.guid))
            if record is None:
                return failed(name, "did not reach msDead", "see that an admin worker runs: beds.logs,beds.audit,…")
            operator.ask("discard", {"ids": [record["dead_id"]], "by": "beds doctor"}, timeout=self._timeout)
        except BedsError as error:
            return of_error(name, error)
        return ok(name, f"of {queue} reached msDead, its caller was told, and it was discarded")

    def lineage(self) -> Check:
        """Check that the lineage of a probe arrives."""
        name = "lineage"
        if not self._answered:
            return skipped(name, "no pool answered")
        try:
            found = self._arrival(lambda: self._find_lineage(self._answered[-1].guid))
        except BedsError as error:
            return of_error(name, error)
        if found is None:
            return failed(name, "of a probe did not arrive in msLineage",
                          "see that an admin worker runs, and that [logging] lineage is true")  # fmt: skip
        return ok(name, "of a probe arrived in msLineage")

    def _send(self, event: Event, by: Client | None = None) -> Pending:
        return (by or self._client).send(event, time.monotonic() + self._timeout)

    def _answer(self, pending: Pending, by: Client | None = None) -> Any:
        return (by or self._client).answer(pending, time.monotonic() + self._timeout)

    def _arrival(self, look: Callable[[], T | None]) -> T | None:
        """The first result of `look` within the timeout of a probe, or None."""
        deadline = time.monotonic() + self._timeout
        while (found := look()) is None and time.monotonic() < deadline:
            time.sleep(ARRIVAL_SECONDS)
        return found

    def _find_dead(self, operator: Client, guid: str) -> dict[str, Any] | None:
        page = operator.call(Operation.FETCH, "msDead", {"dead_id": guid}, using="by_id", timeout=self._timeout)
        return next(iter(page), None)  # type: ignore[arg-type]

    def _find_lineage(self, guid: str) -> Any:
        try:
            return self._client.lineage(guid, timeout=self._timeout)
        except NotFound:
            return None

    def _lineage(self) -> Lineage:
        node = self._client.settings.node
        return Lineage.root(node.name, node.environment)


def _http(settings: Settings, timeout: float) -> Check:
    """Check that the app server of this node answers a request without a key, and that it is ready."""
    name, address = "http", settings.http.listen
    scheme = "https" if settings.http.tls_certificate else "http"
    host, port = host_and_port(address)
    base = f"{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    try:
        status, _ = _got(f"{scheme}://{base}/v1", timeout)
        if status != HTTPStatus.UNAUTHORIZED:
            return failed(
                name, f"{address} answers {status} to a request without a key", "another program listens there"
            )
        if settings.http.admin and (why := _not_ready(f"http://{settings.http.admin}/readyz", timeout)):
            return failed(name, f"it is not ready: {why}", "see the checks above")
    except OSError as error:
        remedy = "start this node: `beds node run`, or `beds http` alone"
        return failed(name, f"{address} cannot be reached: {error}", remedy)
    return ok(name, f"{address} is ready after a request without a key was refused")


def _not_ready(address: str, timeout: float) -> str:
    """Why the app server is not ready; empty if it is within the timeout. Its answer may be a few seconds old, from
    before a pool came back. Raises OSError."""
    deadline = time.monotonic() + timeout
    while True:
        status, why = _got(address, timeout)
        if status == HTTPStatus.OK:
            return ""
        if time.monotonic() >= deadline:
            return why.strip()
        time.sleep(ARRIVAL_SECONDS)


def _got(address: str, timeout: float) -> tuple[int, str]:
    """The status and the text of a reply. Raises OSError."""
    # The certificate names the host that clients use, and not this address.
    context = ssl._create_unverified_context() if address.startswith("https") else None
    try:
        with urllib.request.urlopen(address, timeout=timeout, context=context) as reply:
            return reply.status, reply.read(1000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(1000).decode(errors="replace")


def _consumers(found: dict[str, Depth | None]) -> Iterator[Check]:
    """Check the consumers of the queues that a client may not publish to."""
    for queue in (*LOG_QUEUES, DEAD):
        depth = found[queue]
        service = QUEUE_ROUTES[queue].service if queue in QUEUE_ROUTES else "admin"
        if depth is None or not depth.consumers:
            yield failed(
                f"pool {queue}",
                "nobody consumes it",
                f"start a node whose beds.toml has services.{service}; `beds node status` shows this node's pools",
            )
        else:
            yield ok(f"pool {queue}", f"{depth.consumers} consumers, {depth.messages} messages wait")

"""What a worker tells of each event it carries out: its lineage, its audit record, its time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from beds.config import Settings
from beds.domain.event import CALGON, RecordKind
from beds.domain.lineage import Lineage
from beds.domain.reply import Page, Reply, Response
from beds.domain.trace import DatabaseCall, Trace, tracing
from beds.errors import BodyTooLarge, TransportError
from beds.services.audit import audit_record
from beds.services.metrics import Meter
from beds.templates.registry import TemplateRegistry
from beds.transport.shipper import LINEAGE_RANK, Sent, Shipper, logger
from beds.transport.topology import undelayed

AUDIT_SECONDS = 300.0
"""How long a write waits, unacknowledged, for its audit record to be safe, while RabbitMQ takes nothing."""


class Telemetry:
    """One per process tree; children have a buffer and a connection of their own.

    Args:
        settings: beds.toml.
        registry: whose templates say what is sensitive.
    """

    def __init__(self, settings: Settings, registry: TemplateRegistry) -> None:
        self.shipper = Shipper(settings, settings.amqp.broker_url)
        self._settings = settings
        self._registry = registry
        self._meter = Meter(settings.node.name, settings.node.environment)
        self.shipper.add_source(self._meter.drain)

    @contextmanager
    def carrying_out(self, request: Any) -> Iterator[Trace]:
        """The course of one task: what it spawns knows where it comes from."""
        request.trace = Trace(lineage_of(request))
        with tracing(request.trace) as trace:
            yield trace

    def ended(self, request: Any, outcome: str, reply: Reply | None) -> Sent | None:
        """Tell how an event ended.

        Args:
            request: Celery's.
            outcome: `ok`, or the error's code.
            reply: what it answered, when it went well.

        Returns:
            The audit record on its way, which `confirm` waits for; None for what changes nothing.
        """
        trace: Trace | None = getattr(request, "trace", None)
        if trace is None:
            trace = Trace(lineage_of(request))  # it never began: it expired, or was revoked
        seconds = trace.seconds
        queue = undelayed(str((request.delivery_info or {}).get("routing_key", "")))
        store, _, verb = str(request.task).partition(".")
        template = trace.template if trace.template in self._registry else ""
        self._meter.count((queue, verb, template, outcome), seconds)
        self.shipper.start()
        if store == CALGON and not trace.lineage.parent_id:
            return None  # a question from outside belongs to no request's story
        using = trace.body.get("using")
        known = isinstance(using, str) and template and using in self._registry[template].fetch
        name = f"{template or '?'}.{verb}" + (f" using {using}" if known else "")
        who = self._who(request)
        if self._settings.logging.lineage:
            rows = len(reply) if isinstance(reply, Page) else reply.affected if isinstance(reply, Response) else 0
            self._tell(trace, seconds, name if store != CALGON else str(request.task), queue, outcome, rows, who)
        if template and trace.operation and not trace.operation.is_read:
            record = audit_record(trace, trace.operation, self._registry[template], outcome, reply, who)
            try:
                return self.shipper.send(RecordKind.AUDIT, [record])
            except BodyTooLarge:  # many fields, and a small [amqp] max_body_bytes: who and which remain
                return self.shipper.send(RecordKind.AUDIT, [record | {"values": "{}", "fields": []}])
        return None

    def confirm(self, audit: Sent) -> None:
        """Wait until the audit record is safe; the event is acknowledged after this."""
        deadline = time.monotonic() + AUDIT_SECONDS
        try:
            self.shipper.settle(audit, lambda: deadline)
        except TransportError as error:
            leave_unacknowledged(f"an audit record cannot be kept: {error}")

    def _tell(
        self, trace: Trace, seconds: float, name: str, queue: str, outcome: str, rows: int, who: Mapping[str, Any]
    ) -> None:
        event = trace.lineage
        place = {"parent_id": event.parent_id, "root_id": event.root_id, "depth": event.depth}
        self._ship(
            {
                "event_id": event.event_id,
                "guid": event.guid,
                **place,
                "kind": "event",
                "name": name[:300],
                "queue": queue,
                "at": trace.at,
                "duration_ms": round(seconds * 1000, 3),
                "rows": rows,
                "outcome": outcome,
                **who,
            }
        )
        for call in trace.calls:
            self._ship(self._call_record(event, call))

    def _call_record(self, event: Lineage, call: DatabaseCall) -> dict[str, Any]:
        node = self._settings.node
        own = event.child(node.name, node.environment)
        return {
            "event_id": own.event_id,
            "guid": own.guid,
            "parent_id": own.parent_id,
            "root_id": own.root_id,
            "depth": own.depth,
            "kind": "call",
            "name": call.object,
            "store": call.store,
            "at": call.at,
            "duration_ms": round(call.seconds * 1000, 3),
            "rows": call.rows,
            "outcome": call.outcome,
        }

    def _ship(self, record: dict[str, Any]) -> None:
        self.shipper.add(RecordKind.LINEAGE, record, LINEAGE_RANK)

    @staticmethod
    def _who(request: Any) -> dict[str, Any]:
        header = header_of(request)
        actor = header.get("actor")
        return {
            # RabbitMQ refuses a message whose user_id is not its publisher's.
            "user": str((request.properties or {}).get("user_id") or ""),
            "actor": actor[:200] if isinstance(actor, str) else "",
            "worker": str(request.hostname or "")[:200],
            "redelivered": bool((request.delivery_info or {}).get("redelivered")),
        }


def leave_unacknowledged(why: str) -> NoReturn:
    """End this process at once, so that RabbitMQ delivers its event again: the last resort where the effect is done,
    and what must be told of it cannot be."""
    logger.critical("%s; ending this process, so that its event is delivered again", why)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def header_of(request: Any) -> Mapping[str, Any]:
    """The `beds` header of an event; empty for what has none."""
    found = getattr(request, "beds", None)
    return found if isinstance(found, Mapping) else {}


def lineage_of(request: Any) -> Lineage:
    """An event's place, as its header tells."""
    return Lineage.from_header(header_of(request), str(request.id))

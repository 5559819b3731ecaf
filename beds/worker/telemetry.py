"""Records lineage, audit and metrics of each event that a worker executes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from beds.config import Settings
from beds.domain.event import RecordKind
from beds.domain.histogram import RECORDS_MOVED
from beds.domain.job import Job, Lane, Tally
from beds.domain.lineage import Lineage
from beds.domain.reply import Page, Response
from beds.domain.trace import OK, DatabaseCall, Trace
from beds.errors import BodyTooLarge, TransportError
from beds.services.audit import audit_record, chunk_record, without_values
from beds.services.execution import Delivery
from beds.services.metrics import Meter
from beds.templates.registry import TemplateRegistry
from beds.transport.shipper import LINEAGE_RANK, Sent, Shipper, logger
from beds.wire.routes import Kind

AUDIT_SECONDS = 300.0
"""A write stays unacknowledged for this time while RabbitMQ does not confirm its audit record."""


class Audits(Protocol):
    """Sends audit records."""

    def send(self, record: dict[str, Any]) -> Any:
        """Send a record; returns what `confirm` takes."""
        ...

    def confirm(self, audit: Any) -> None:
        """Wait until RabbitMQ has confirmed a record."""
        ...


class ShippedAudits:
    """Audit records over the shipper's connection, for pools of threads."""

    def __init__(self, shipper: Shipper) -> None:
        self._shipper = shipper

    def send(self, record: dict[str, Any]) -> Sent:
        try:
            return self._shipper.send(RecordKind.AUDIT, [record])
        except BodyTooLarge:  # many fields, and a small [amqp] max_body_bytes
            return self._shipper.send(RecordKind.AUDIT, [without_values(record)])

    def confirm(self, audit: Sent) -> None:
        deadline = time.monotonic() + AUDIT_SECONDS
        try:
            self._shipper.settle(audit, lambda: deadline)
        except TransportError as error:
            kill_process_unacked(f"an audit record cannot be kept: {error}")


class Telemetry:
    """One per process tree; children have a buffer and a connection of their own.

    Args:
        settings: beds.toml.
        registry: the templates, which mark sensitive fields.
    """

    def __init__(self, settings: Settings, registry: TemplateRegistry) -> None:
        self.shipper = Shipper(settings, settings.amqp.broker_url)
        self.audits: Audits = ShippedAudits(self.shipper)
        """Where audit records go; a slot sends them over its own connection."""
        self.afterwards: Callable[[Callable[[], None]], None] = lambda act: act()
        """Called with what may happen after the reply; a slot replies first."""
        self._settings = settings
        self._registry = registry
        self._meter = Meter(settings.node.name, settings.node.environment)
        self.shipper.add_source(self._meter.drain)

    def ended(self, delivery: Delivery, trace: Trace, outcome: str, reply: Any) -> Any:
        """Record how an event ended.

        Args:
            delivery: the event.
            trace: its calls and times.
            outcome: `ok`, or the error's code.
            reply: its result on success.

        Returns:
            The published audit record, for `confirm`; None for an event that writes nothing.
        """
        seconds, queue, route = trace.seconds, delivery.queue, delivery.route
        verb = route.verb if route else "?"
        # Requests about tickets, with their probes, and looks at the log of changes.
        is_question = route is not None and (route.queue.service == "calgon" or route.kind is Kind.CHANGES)
        template = trace.template if trace.template in self._registry else ""
        if not trace.counted:
            self._meter.count((queue, verb, template, outcome), seconds)
            trace.counted = True
        self.shipper.start()
        if is_question and not trace.lineage.parent_id:
            return None  # such a request without a parent belongs to no other event's lineage
        using = trace.body.get("using")
        known = isinstance(using, str) and template and using in self._registry[template].fetch
        name = f"{template or '?'}.{verb}" + (f" using {using}" if known else "")
        who = {
            "user": delivery.user,
            "actor": delivery.header.actor,
            "worker": delivery.worker[:200],
            "redelivered": delivery.redelivered,
        }
        if self._settings.logging.lineage:
            rows = len(reply) if isinstance(reply, Page) else reply.affected if isinstance(reply, Response) else 0
            is_job = route is not None and route.kind is Kind.JOB
            title = delivery.task if is_question or is_job else name
            self.afterwards(lambda: self._add_lineage(trace, seconds, title, queue, outcome, rows, who))
        if template and trace.operation and not trace.operation.is_read:
            record = audit_record(trace, trace.operation, self._registry[template], outcome, reply, who)
            return self.audits.send(record)
        return None

    def confirm(self, audit: Any) -> None:
        """Wait until RabbitMQ has confirmed an audit record; the event is acknowledged after this."""
        self.audits.confirm(audit)

    def chunk_ended(self, job: Job, lane: Lane, tally: Tally, trace: Trace) -> None:
        """Write the audit record of a chunk of a job, and wait until RabbitMQ has confirmed it."""
        self._meter.count((job.kind.queue, RECORDS_MOVED, job.rule, OK), 0.0, tally.read)
        self.confirm(self.audits.send(chunk_record(job, lane, tally, trace)))

    def _add_lineage(
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
                **({"traceparent": event.traceparent} if event.traceparent else {}),
                **who,
            }
        )
        for call in trace.calls:
            self._ship(self._call_record(event, call) | {"user": who["user"]})

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


def kill_process_unacked(why: str) -> NoReturn:
    """Kill this process, so that RabbitMQ redelivers its event.

    The last resort when the effect is done and its audit record or outcome cannot be stored.
    """
    logger.critical("%s; ending this process, so that its event is delivered again", why)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")

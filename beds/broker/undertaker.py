"""The undertaker: reads beds.dead as raw messages, buries each in msDead, ends its ticket and tells its caller.

It lives inside the admin worker as a thread with a connection of its own. It is no Celery consumer: that would run the
event which ended its worker before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import states
from kombu.mixins import ConsumerMixin

from beds.broker.backend import outcome
from beds.broker.intake import check
from beds.domain.event import RecordKind
from beds.domain.lineage import Lineage
from beds.domain.ticket import TicketState
from beds.errors import DeadEvent, MalformedEvent, StoreUnavailable
from beds.services.dead import DELIVERY_LIMIT, DeadMessage, Death
from beds.services.tickets import ACCEPT_FIELDS
from beds.transport.connection import connect_to
from beds.transport.shipper import LINEAGE_RANK
from beds.transport.topology import DEAD, Topology

logger = logging.getLogger("celery.beds.undertaker")

PREFETCH = 50
STORE_PAUSE = 1.0
"""Seconds between two attempts while MongoDB is away."""


class Undertaker(ConsumerMixin):
    """Consumes beds.dead until `stop`. kombu's mixin connects, and connects again.

    Args:
        app: the Celery application, with its stores.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        settings = app.settings.amqp
        # kombu's mixin asks for this name.
        self.connection = connect_to(settings, settings.broker_url)
        self._queue = Topology.from_settings(settings).queue(DEAD).to_kombu()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="beds-undertaker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.should_stop = True
        self._ended.set()

    def get_consumers(self, consumer_class: Callable[..., Any], channel: Any) -> list[Any]:
        return [consumer_class([self._queue], on_message=self._on_message, prefetch_count=PREFETCH)]

    def _serve(self) -> None:
        """Consume, and begin again after whatever ends that: without an undertaker nobody is told of the dead."""
        while not self._ended.is_set():
            try:
                self.run()
            except Exception:  # a message, or a library, of a kind that nobody thought of
                logger.exception("the undertaker stumbled, and begins again")
            self._ended.wait(STORE_PAUSE)

    def _on_message(self, message: Any) -> None:
        while not self._ended.is_set():
            try:
                dead = DeadMessage(_bytes(message.body), _table(message.headers), _table(message.properties))
                self._bury(message, dead)
                message.ack()
                return
            except StoreUnavailable as error:
                logger.warning("the dead wait for MongoDB: %s", error.message)
            except Exception:  # hostile beyond reading: that it was there is kept, and the others are not held up
                logger.exception("a dead message cannot be read")
                size = len(_bytes(message.body))
                self._app.dead.bury(DeadMessage(b"", {}, {}), f"it could not be read; its body had {size} bytes", 1)
                message.ack()
                return
            self._ended.wait(STORE_PAUSE)

    def _bury(self, message: Any, dead: DeadMessage) -> None:
        death = dead.death
        poison = death.reason == DELIVERY_LIMIT
        # RabbitMQ does not say how often it tried, but only that it was too often.
        deliveries = self._app.settings.amqp.delivery_limit + 1 if poison else 1
        why = self._why(message, dead, deliveries if poison else 0)
        self._app.dead.bury(dead, why, deliveries)
        logger.error("buried %.64r of %s: %s", dead.guid, death.queue, why)
        if not (poison and dead.guid):
            return  # it is no event, and whoever sent it was told by the worker that turned it away
        header = dead.beds_header
        error = DeadEvent(f"the event was given up: {why}", event_id=str(header.get("event_id", "")))
        body = outcome(dead.guid, states.FAILURE, error, error.event_id)
        if header.get("ticket") is True:
            ticket = {n: v for n, v in header.items() if n in ACCEPT_FIELDS and isinstance(v, str)}
            self._app.tickets.accept([ticket | {"guid": dead.guid}])  # its acceptance may be dead, too
            self._app.tickets.end(dead.guid, TicketState.FAILURE, body, dead=True)
        if isinstance(reply_to := dead.properties.get("reply_to"), str):
            self._app.backend.reply(reply_to, dead.guid, body)
        self._tell(dead, death)

    def _why(self, message: Any, dead: DeadMessage, poisonous: int) -> str:
        if poisonous:
            return f"it ended its worker, or was given back by it, {poisonous} times"
        try:
            original = _Original(message, dead)
            check(original, self._app.conf.task_routes, self._app.settings.amqp.max_body_bytes)
        except MalformedEvent as error:
            return error.message
        return f"RabbitMQ says: {dead.death.reason or 'nothing'}"

    def _tell(self, dead: DeadMessage, death: Death) -> None:
        lineage = Lineage.from_header(dead.beds_header, dead.guid)
        record = {
            "event_id": lineage.event_id, "guid": lineage.guid, "parent_id": lineage.parent_id,
            "root_id": lineage.root_id, "depth": lineage.depth, "kind": "event",
            "name": str(dead.headers.get("kwargsrepr", ""))[1:-1][:300], "queue": death.queue,
            "at": death.at.timestamp() if death.at else time.time(), "duration_ms": 0.0,
            "rows": 0, "outcome": DeadEvent.code, "user": str(dead.properties.get("user_id") or ""),
        }  # fmt: skip
        self._app.telemetry.shipper.add(RecordKind.LINEAGE, record, LINEAGE_RANK)


class _Original:
    """A dead message as it was when its worker judged it: with the routing key that it came by."""

    def __init__(self, message: Any, dead: DeadMessage) -> None:
        self.headers = message.headers
        self.properties = message.properties
        self.body = message.body
        self.delivery_info = {"routing_key": dead.death.routing_key}
        self._message = message

    @property
    def payload(self) -> Any:
        return self._message.payload


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else str(body or "").encode(errors="replace")


def _table(found: Any) -> dict[str, Any]:
    return dict(found) if isinstance(found, dict) else {}

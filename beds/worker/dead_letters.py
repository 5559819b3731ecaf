"""Consumes beds.dead as raw messages: stores each in msDead, fails its ticket, replies to its caller.

It runs in a thread of the admin worker, with its own connection. It is no Celery consumer: Celery would run the event
again, and the event may have ended its worker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import states
from kombu.mixins import ConsumerMixin

from beds.domain.backoff import Backoff
from beds.domain.event import CHUNK_TASKS, RecordKind
from beds.domain.ticket import TicketState
from beds.errors import DeadEvent, InvalidPayload, MalformedEvent, StoreUnavailable
from beds.services.dead import DELIVERY_LIMIT, EXPIRED, DeadMessage, Death
from beds.transport.connection import connect_to
from beds.transport.shipper import LINEAGE_RANK
from beds.transport.topology import Topology, undelayed
from beds.wire.header import HEADER, EventHeader
from beds.wire.reply import encode_error
from beds.wire.routes import DEAD
from beds.worker.validation import check

logger = logging.getLogger("celery.beds.dead")

PREFETCH, AT_ONCE = 64, 64
GATHER_SECONDS = 0.1
"""How long the first message of a batch waits for others."""
STORE_PAUSE = 1.0
"""Seconds between two attempts while MongoDB is away."""


@dataclass(frozen=True, slots=True)
class _DeadLetter:
    """One dead message, the reason, and how often it was delivered."""

    dead: DeadMessage
    why: str
    deliveries: int


class DeadLetterConsumer(ConsumerMixin):
    """Consumes beds.dead until `stop`. kombu's mixin connects and reconnects.

    Args:
        app: the Celery application, with its stores.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        settings = app.settings.amqp
        # kombu's mixin requires this name.
        self.connection = connect_to(settings, settings.broker_url)
        self._queue = Topology.from_settings(settings).queue(DEAD).to_kombu()
        self._ended = threading.Event()
        self._batch: list[Any] = []
        self._gathered_until = 0.0
        self._thread = threading.Thread(target=self._serve, name="beds-dead-letters", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.should_stop = True
        self._ended.set()

    def get_consumers(self, consumer_class: Callable[..., Any], channel: Any) -> list[Any]:
        return [consumer_class([self._queue], on_message=self._on_message, prefetch_count=PREFETCH)]

    def _serve(self) -> None:
        """Consume, and start again after any error: callers wait for the replies to their dead events."""
        while not self._ended.is_set():
            self._batch = []  # its connection is closed, so RabbitMQ redelivers these messages
            try:
                self.run(safety_interval=GATHER_SECONDS)
            except Exception:  # any unforeseen error of a message or a library
                logger.exception("the dead-letter consumer failed, and starts again")
            self._ended.wait(STORE_PAUSE)

    def _on_message(self, message: Any) -> None:
        if not self._batch:
            self._gathered_until = time.monotonic() + GATHER_SECONDS
        self._batch.append(message)

    def on_iteration(self) -> None:
        """Called by kombu's mixin between two frames. Stores a full or due batch in one write, and acknowledges it."""
        if not self._batch or (len(self._batch) < AT_ONCE and time.monotonic() < self._gathered_until):
            return
        batch, self._batch = self._batch, []
        backoff = Backoff(math.inf, first=0.1, longest=STORE_PAUSE)
        while not self._ended.is_set():
            try:
                self._store_all(batch)
                return
            except StoreUnavailable as error:
                logger.warning("dead letters wait for MongoDB: %s", error.message)
            self._ended.wait(backoff.next_pause())

    def _store_all(self, batch: list[Any]) -> None:
        """Store and acknowledge a batch, without expired messages.

        Raises:
            StoreUnavailable: the rest of the batch is not acknowledged.
        """
        batch = [message for message in batch if not message.acknowledged]  # some may be, of a batch that was split
        if not batch:
            return
        try:
            found = [self._examined(message) for message in batch]
            kept = [letter for letter in found if letter.dead.death.reason != EXPIRED]
            self._app.dead.bury([(letter.dead, letter.why, letter.deliveries) for letter in kept])
        except StoreUnavailable:
            raise
        except Exception:  # a message cannot be read: store only that it existed, and store the others normally
            logger.exception("a dead message cannot be read")
            if len(batch) > 1:
                for message in batch:
                    self._store_all([message])
                return
            size = len(_bytes(batch[0].body))
            self._app.dead.bury([(DeadMessage(b"", {}, {}), f"it could not be read; its body had {size} bytes", 1)])
            kept = []
        for letter in kept:
            self._notify(letter)
        batch[-1].ack(multiple=True)

    def _examined(self, message: Any) -> _DeadLetter:
        dead = self._read(message)
        return _DeadLetter(dead, *self._reason(message, dead))

    def _read(self, message: Any) -> DeadMessage:
        headers, properties = _table(message.headers), _table(message.properties)
        return DeadMessage(
            _bytes(message.body),
            headers,
            properties,
            undelayed(str(message.delivery_info.get("routing_key", ""))),
            EventHeader.read(headers.get(HEADER), "").sender(properties, self._app.settings.amqp.workers),
        )

    def _reason(self, message: Any, dead: DeadMessage) -> tuple[str, int]:
        """The reason, and how often the message was delivered."""
        if dead.death.reason != DELIVERY_LIMIT:
            return self._why(message, dead), 1
        # RabbitMQ does not report the count, only that the limit was exceeded.
        deliveries = self._app.settings.amqp.delivery_limit + 1
        return f"it ended its worker, or was given back by it, {deliveries} times", deliveries

    def _why(self, message: Any, dead: DeadMessage) -> str:
        try:
            settings = self._app.settings.amqp
            original = _Original(message, dead)
            check(original, settings.max_body_bytes, settings.workers)
        except MalformedEvent as error:
            return error.message
        return f"RabbitMQ says: {dead.death.reason or 'nothing'}"

    def _notify(self, letter: _DeadLetter) -> None:
        """Fail the event's ticket; reply to the caller and record lineage if the delivery limit was exceeded."""
        dead, death, why = letter.dead, letter.dead.death, letter.why
        logger.error("stored the dead letter %.64r of %s: %s", dead.guid, death.queue, why)
        if not dead.guid:
            return
        header = dead.header
        given_up = death.reason == DELIVERY_LIMIT
        if not given_up and not (header.ticket and dead.user):
            return  # the worker that rejected it has replied to the caller
        error = DeadEvent(f"the event was given up: {why}", event_id=header.event_id)
        body = encode_error(dead.guid, states.FAILURE, error, error.event_id)
        if header.ticket:
            ticket = header.acceptance(dead.guid, dead.summary)
            with contextlib.suppress(MalformedEvent, InvalidPayload):  # no valid ticket
                self._app.tickets.accept(dead.user, [ticket])  # its acceptance may be dead, too
            self._app.tickets.end(dead.user, dead.guid, TicketState.FAILURE, body, dead=True)
        if not given_up:
            return
        if str(dead.headers.get("task")) in CHUNK_TASKS and dead.user:
            self._stall(dead, why)
        reply_to = dead.properties.get("reply_to")
        if isinstance(reply_to, str):
            self._app.backend.reply(reply_to, dead.guid, body)
        self._record_lineage(dead, death)

    def _stall(self, dead: DeadMessage, why: str) -> None:
        """Stall the job of a chunk that was given up."""
        try:
            _, body, _ = json.loads(dead.body)
            self._app.jobs.dead(dead.user, body, why)
        except (ValueError, TypeError, AttributeError):
            logger.warning("the dead chunk %.64r names no job", dead.guid)

    def _record_lineage(self, dead: DeadMessage, death: Death) -> None:
        lineage = dead.header.lineage
        record = {
            "event_id": lineage.event_id, "guid": lineage.guid, "parent_id": lineage.parent_id,
            "root_id": lineage.root_id, "depth": lineage.depth, "kind": "event",
            "name": dead.summary[:300], "queue": death.queue,
            "at": time.time(), "duration_ms": 0.0,
            "rows": 0, "outcome": DeadEvent.code, "user": dead.user,
        }  # fmt: skip
        self._app.telemetry.shipper.add(RecordKind.LINEAGE, record, LINEAGE_RANK)


class _Original:
    """A dead message as its worker received it, with the original routing key, so that `check` can validate it."""

    def __init__(self, message: Any, dead: DeadMessage) -> None:
        self.headers = message.headers
        self.properties = message.properties
        self.body = message.body
        self.delivery_info = {"routing_key": dead.routing_key}
        self._message = message

    @property
    def payload(self) -> Any:
        return self._message.payload


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else str(body or "").encode(errors="replace")


def _table(found: Any) -> dict[str, Any]:
    return dict(found) if isinstance(found, dict) else {}

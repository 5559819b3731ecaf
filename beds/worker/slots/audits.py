"""Publishes what a slot's events leave behind, with confirms that do not delay the next event.

These are audit records, several in one message, and events that wait for their store.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import amqp

from beds.domain.event import Event, RecordKind
from beds.errors import BodyTooLarge
from beds.services.audit import without_values
from beds.services.execution import Redeliver
from beds.transport.confirms import ConfirmWatch
from beds.wire.message import to_message, with_encoded_body
from beds.wire.routes import LOGS
from beds.worker.slots.connection import ConnectionLost, SlotConnection
from beds.worker.telemetry import AUDIT_SECONDS, kill_process_unacked

logger = logging.getLogger("celery.beds.slot")

Record = dict[str, Any]
MAX_RECORDS = 100
"""The most records of one message."""
CONFIRM_SECONDS = 0.2
"""Longest wait between two looks at a confirm that an event waits for."""
GATHER_SECONDS = 0.005
"""A record waits this time for others while further events are handled."""
MAX_REFUSALS = 3
"""A channel that refuses a message so often leads to a leader that is gone; a new one finds its successor."""
PAUSE_SECONDS = 0.5
"""Pause before a message is published again that RabbitMQ refused."""


@dataclass(slots=True, eq=False)
class Batch:
    """Audit records that are published together; their events are acknowledged once RabbitMQ has confirmed them."""

    records: list[Record] = field(default_factory=list)
    message: tuple[amqp.Message, str, str] | None = None
    """A message of another kind, with exchange and key, instead of records."""
    is_confirmed: bool = False
    unconfirmed: int = 0
    """Messages in flight: one, unless the records are too large for one."""
    is_refused: bool = False
    refusals: int = 0
    since: float = field(default_factory=time.monotonic)
    not_before: float = 0.0


@dataclass(slots=True)
class InFlight:
    """One message that waits for its confirm.

    Args:
        batch: what it belongs to.
        key: its routing key.
        published_at: when it was about to be handed over to the socket.
    """

    batch: Batch
    key: str
    published_at: float = 0.0


class SlotAudits:
    """The records that a slot has made, from their execution to their confirm.

    Args:
        make_event: makes the event of some records.
        max_body_bytes: the largest message.
        current: returns the slot's connection.
    """

    def __init__(
        self,
        make_event: Callable[[Sequence[Record]], Event],
        max_body_bytes: int,
        current: Callable[[], SlotConnection | None],
    ) -> None:
        self._current = current
        self._make_event = make_event
        self._max_body_bytes = max_body_bytes
        self._open: Batch | None = None
        self._due: deque[Batch] = deque()
        self._in_flight: dict[int, InFlight] = {}
        self._confirms = ConfirmWatch()
        self._must_reconnect = False

    def send(self, record: Record) -> Batch:
        """Add a record to the open batch, which `flush` publishes."""
        connection = self._current()
        with connection.lock if connection is not None else contextlib.nullcontext():
            if self._open is None or len(self._open.records) >= MAX_RECORDS:
                self._open = Batch()
                self._due.append(self._open)
            self._open.records.append(record)
            return self._open

    def send_message(self, message: amqp.Message, exchange: str, key: str) -> Batch:
        """Publish one message, which is confirmed as audit records are."""
        connection = self._current()
        batch = Batch(message=(message, exchange, key))
        with connection.lock if connection is not None else contextlib.nullcontext():
            self._due.append(batch)
        return batch

    def confirm(self, audit: Batch) -> None:
        """Wait until RabbitMQ has confirmed a record.

        Raises:
            Redeliver: the connection is lost, so the event is delivered again.
        """
        connection = self._current()
        deadline = time.monotonic() + AUDIT_SECONDS
        while not audit.is_confirmed:
            if time.monotonic() > deadline:
                kill_process_unacked("RabbitMQ did not confirm an audit record")
            try:
                if connection is None:
                    raise ConnectionLost("it is closed")
                self.flush(connection)
                connection.wait(CONFIRM_SECONDS)
                connection.receive()
            except ConnectionLost as lost:
                raise Redeliver(f"the connection was lost before an audit record was confirmed: {lost}") from None

    @property
    def is_due(self) -> bool:
        """True if a record has waited for `GATHER_SECONDS`."""
        return bool(self._due) and time.monotonic() > self._due[0].since + GATHER_SECONDS

    def flush(self, connection: SlotConnection) -> None:
        """Publish all records, from either thread. Raises ConnectionLost."""
        if not self._due:
            return
        if self._must_reconnect:
            raise connection.lost("RabbitMQ keeps refusing messages on it")
        with connection.lock:
            self._open = None
            for _ in range(len(self._due)):
                batch = self._due[0]
                if time.monotonic() < batch.not_before:
                    self._due.rotate(-1)
                    continue
                batch.is_refused = False
                messages = [batch.message] if batch.message else self._messages(batch.records, connection.user)
                batch.unconfirmed, batch.is_confirmed = len(messages), not messages
                for message, exchange, key in messages:
                    sent = InFlight(batch, key)
                    connection.publish_confirmed(message, exchange, key, self._awaiting(sent))
                self._due.popleft()  # only now: the soft limit may interrupt the lines above

    def check(self, connection: SlotConnection) -> None:
        """Give the connection up if RabbitMQ does not confirm the messages of a queue for long.

        Raises:
            ConnectionLost: it did.
        """
        with connection.lock:
            unconfirmed = [(sent.key, sent.published_at) for sent in self._in_flight.values()]
        if key := self._confirms.overdue(unconfirmed, connection.free_since):
            raise connection.lost(f"RabbitMQ does not confirm messages for {key}")

    def on_confirm(self, tag: int, multiple: bool, accepted: bool) -> None:
        """Take a confirm from RabbitMQ; what it refused is published again."""
        for each in [t for t in self._in_flight if t <= tag] if multiple else [tag]:
            sent = self._in_flight.pop(each, None)
            if sent is None:
                continue
            if accepted:
                self._confirms.confirmed(sent.key)
            batch = sent.batch
            batch.unconfirmed -= 1
            batch.is_refused |= not accepted
            if batch.unconfirmed:
                continue
            batch.is_confirmed = not batch.is_refused
            if batch.is_refused:
                self._publish_again(batch)

    def on_return(self, exchange: str, key: str) -> None:
        """Take the news that no queue takes a message; RabbitMQ confirms it nevertheless."""
        for sent in self._in_flight.values():
            batch = sent.batch
            _, own_exchange, own_key = batch.message or (None, LOGS, str(RecordKind.AUDIT))
            batch.is_refused |= (own_exchange, own_key) == (exchange, key)

    def forget(self) -> None:
        """Drop all: the connection is lost, so RabbitMQ delivers the events again, and their records are made anew."""
        self._open = None
        self._must_reconnect = False
        self._due.clear()
        self._in_flight.clear()

    def _awaiting(self, sent: InFlight) -> Callable[[int], None]:
        def register(tag: int) -> None:
            sent.published_at = time.monotonic()
            self._in_flight[tag] = sent

        return register

    def _publish_again(self, batch: Batch) -> None:
        if time.monotonic() > batch.since + AUDIT_SECONDS:
            kill_process_unacked("RabbitMQ keeps refusing an audit record")
        logger.warning("RabbitMQ refused %d audit records, or an event; published again", len(batch.records))
        batch.refusals += 1
        self._must_reconnect |= batch.refusals >= MAX_REFUSALS
        batch.not_before = time.monotonic() + PAUSE_SECONDS
        self._due.append(batch)

    def _messages(self, records: list[Record], user: str) -> list[tuple[amqp.Message, str, str]]:
        """The records as one message, or as several where one would be too large, each with exchange and key."""
        try:
            event = with_encoded_body(self._make_event(records), self._max_body_bytes)
        except BodyTooLarge:
            if len(records) == 1:
                reduced = without_values(records[0])
                if reduced != records[0]:
                    return self._messages([reduced], user)
                logger.critical(
                    "an audit record of %s is too large for [amqp] max_body_bytes", reduced.get("parent_id")
                )
                return []
            middle = len(records) // 2
            return [*self._messages(records[:middle], user), *self._messages(records[middle:], user)]
        return [(to_message(event, user), event.exchange, event.queue)]

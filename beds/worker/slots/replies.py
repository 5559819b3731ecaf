"""A slot's second connection, over which it sends replies.

RabbitMQ closes the connection that publishes to a forged direct reply-to address, however well it is formed. On the
connection that consumes, all events would return to their queue, and each would count as delivered.

Replies are published with confirms. This connection may be lost alone, and neither RabbitMQ nor the caller then repeats
the event. Unconfirmed replies are therefore published again on the next connection, and an event is acknowledged only
when its reply is confirmed.
"""

from __future__ import annotations

import contextlib
import logging
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import amqp

from beds.config.sections import Amqp
from beds.transport.connection import connect_to
from beds.transport.frames import LOST, FrameReader, limit_waits, publish

logger = logging.getLogger("celery.beds.slot")

MAX_ATTEMPTS = 5
"""A reply is dropped when the connection was lost this often while it was in flight."""
PAUSE_SECONDS = 0.5
"""Pause after a failed attempt to connect."""
KEEPER_CONNECT_SECONDS = 1.0
"""The keeper also sends the heartbeats of the other connection, so it waits no longer for a new one."""
REPEAT_SECONDS, REPEATS = 0.02, 20
"""How long one repeated reply may keep the keeper, and how many it publishes in a row."""
_REFUSED = (amqp.IrrecoverableConnectionError, amqp.IrrecoverableChannelError)
"""RabbitMQ closed the connection because of a message, not because of the network or its own end."""


@dataclass(slots=True, eq=False)
class Reply:
    """A reply. Its event may be acknowledged once it is settled: RabbitMQ has confirmed it, or it was dropped."""

    message: amqp.Message
    address: str
    attempts: int = 0
    is_settled: bool = False


class Replies:
    """Publishes replies, and publishes unconfirmed ones again on the next connection.

    The slot's main thread uses it, and the slot's keeper while the main thread executes an event.

    Args:
        settings: `[amqp]` of beds.toml.
    """

    def __init__(self, settings: Amqp) -> None:
        self.descriptor: int | None = None
        """Becomes readable with a confirm; None while there is no connection."""
        self._settings = settings
        self._lock = threading.Lock()
        self._amqp: amqp.Connection | None = None
        self._published = 0
        self._waiting: deque[Reply] = deque()
        self._in_flight: dict[int, Reply] = {}
        self._is_repeating = False
        """A reply is published again. It is alone in flight, so that a forged address shows."""
        self._not_before = 0.0
        self._unconnected_since: float | None = None

    def publish(self, message: amqp.Message, address: str) -> Reply:
        """Publish a reply to a direct reply-to address; never raises for a lost connection."""
        reply = Reply(message, address)
        with self._lock:
            self._waiting.append(reply)
            self._publish_waiting(self._settings.connect_timeout)
        return reply

    def receive(self) -> None:
        """Take the confirms that have arrived, without waiting, and publish what waits."""
        with self._lock:
            self._receive(self._settings.connect_timeout)

    def tick(self) -> None:
        """The keeper's part: receive, publish what waits, and send a heartbeat if one is due."""
        if not self._lock.acquire(blocking=False):
            return  # the main thread does it
        try:
            self._receive(KEEPER_CONNECT_SECONDS)
            for _ in range(REPEATS):
                if not self._waiting or not self._in_flight or self.descriptor is None:
                    break
                arrivals = select.poll()  # unlike select(), it takes descriptors beyond 1023
                arrivals.register(self.descriptor, select.POLLIN)
                arrivals.poll(REPEAT_SECONDS * 1000)
                self._receive(KEEPER_CONNECT_SECONDS)
            with self._closed_on_error():
                if self._amqp is not None:
                    self._amqp.heartbeat_tick()
        finally:
            self._lock.release()

    @property
    def is_stuck(self) -> bool:
        """True if replies wait and RabbitMQ has accepted no connection for two heartbeats."""
        since = self._unconnected_since
        return (
            bool(self._waiting)
            and since is not None
            and time.monotonic() - since > 2 * self._settings.heartbeat_seconds
        )

    def forget(self) -> None:
        """Drop all replies: their events are delivered again, and replied to again."""
        with self._lock:
            self._waiting.clear()
            self._in_flight.clear()
            self._unconnected_since = None

    def close(self) -> None:
        """Close without an answer. Events whose replies are not confirmed return to their queues."""
        self.forget()
        with self._lock:
            self._close()

    def _receive(self, patience: float) -> None:
        with self._closed_on_error():
            if self._amqp is not None:
                self._frames.read()
        self._publish_waiting(patience)

    def _publish_waiting(self, patience: float) -> None:
        with self._closed_on_error():
            while self._waiting and not self._must_wait():
                if self._amqp is None:
                    self._connect(patience)
                reply = self._waiting.popleft()
                self._is_repeating = reply.attempts > 0
                reply.attempts += 1
                self._published += 1
                self._in_flight[self._published] = reply
                publish(self._channel, reply.message, "", reply.address)

    def _must_wait(self) -> bool:
        if self._amqp is None:
            return time.monotonic() < self._not_before
        return bool(self._in_flight) and (self._is_repeating or self._waiting[0].attempts > 0)

    def _connect(self, patience: float) -> None:
        settings = self._settings
        try:
            parameters = connect_to(settings, settings.broker_url, patience=patience, connect_timeout=patience)
            self._amqp = parameters.establish()
            self._channel = self._amqp.channel()
            self._channel.confirm_select()
        except LOST:
            self._not_before = time.monotonic() + PAUSE_SECONDS
            self._unconnected_since = self._unconnected_since or time.monotonic()
            raise
        for event in ("basic_ack", "basic_nack"):  # a refused reply would be refused again
            self._channel.events[event].add(self._on_confirm)
        self._published = 0
        self._unconnected_since = None
        limit_waits(self._amqp.sock, settings.heartbeat_seconds * 2)
        self._frames = FrameReader(self._amqp)
        self.descriptor = self._amqp.sock.fileno()

    def _on_confirm(self, tag: int, multiple: bool) -> None:
        for each in [t for t in self._in_flight if t <= tag] if multiple else [tag]:
            if (reply := self._in_flight.pop(each, None)) is not None:
                reply.is_settled = True

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """Close on any error: half a frame may have been sent, and tags would no longer agree."""
        try:
            yield
        except LOST as error:
            logger.warning("the connection for replies is lost (%s)", type(error).__name__)
            self._close(is_refused=isinstance(error, _REFUSED))
        except BaseException:
            self._close()
            raise

    def _close(self, *, is_refused: bool = False) -> None:
        """Close, and let unconfirmed replies wait for the next connection.

        Args:
            is_refused: RabbitMQ closed the connection because of a message. A repeated reply is alone in flight, so
                the message is known then, and dropped.
        """
        connection, self._amqp, self.descriptor = self._amqp, None, None
        with contextlib.suppress(*LOST, RuntimeError):
            if connection is not None:
                connection.collect()
        for reply in reversed(self._in_flight.values()):
            if (is_refused and self._is_repeating) or reply.attempts >= MAX_ATTEMPTS:
                reply.is_settled = True
                guid = reply.message.properties.get("correlation_id")
                logger.error("the reply to %.64r is dropped after %d attempts", guid, reply.attempts)
            else:
                self._waiting.appendleft(reply)
        self._in_flight.clear()

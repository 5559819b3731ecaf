"""A slot's second connection, over which it sends replies.

RabbitMQ closes the connection that publishes to a forged direct reply-to address, however well it is formed. On the
connection that consumes, all events would return to their queue, and each would count as delivered.

The connection that is lost with a reply may be this one alone. Neither the caller nor RabbitMQ would then repeat the
event. So RabbitMQ confirms each reply, a reply is published again until it has, and its event is acknowledged then.
"""

from __future__ import annotations

import contextlib
import logging
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
"""A reply whose connection was lost this often is given up."""
PAUSE_SECONDS = 0.5
"""Pause between attempts to connect."""


@dataclass(slots=True, eq=False)
class Reply:
    """A reply, and whether its event may be acknowledged: RabbitMQ has confirmed it, or it was given up."""

    message: amqp.Message
    address: str
    attempts: int = 0
    is_settled: bool = False


class Replies:
    """Publishes replies, and again those that a lost connection may have taken along.

    Args:
        settings: `[amqp]` of beds.toml.
    """

    def __init__(self, settings: Amqp) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._amqp: amqp.Connection | None = None
        self._published = 0
        self._waiting: deque[Reply] = deque()
        self._in_flight: dict[int, Reply] = {}
        self._is_repeating = False
        """A reply is published for another time. No other is beside it, since its address may cost the connection."""
        self._not_before = 0.0

    def fileno(self) -> int | None:
        """The descriptor that becomes readable with a confirm; None while it is not connected."""
        return self._amqp.sock.fileno() if self._amqp is not None else None

    def publish(self, message: amqp.Message, address: str) -> Reply:
        """Publish a reply to a direct reply-to address; never raises for a lost connection."""
        reply = Reply(message, address)
        with self._lock:
            self._waiting.append(reply)
            self._advance()
        return reply

    def receive(self) -> None:
        """Take the confirms that have arrived, without waiting, and publish what waits."""
        with self._lock:
            if self._amqp is not None:
                with self._given_up_on_error():
                    self._frames.read()
            self._advance()

    def tick(self) -> None:
        """Receive, and send a heartbeat if one is due."""
        self.receive()
        with self._lock, self._given_up_on_error():
            if self._amqp is not None:
                self._amqp.heartbeat_tick()

    def close(self) -> None:
        """Close without an answer. Events whose replies are not confirmed return to their queues."""
        with self._lock:
            self._waiting.clear()
            self._in_flight.clear()
            self._give_up()

    def _advance(self) -> None:
        with self._given_up_on_error():
            while self._waiting and not self._must_wait():
                if self._amqp is None:
                    self._connect()
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

    def _connect(self) -> None:
        self._not_before = time.monotonic() + PAUSE_SECONDS
        settings = self._settings
        parameters = connect_to(settings, settings.broker_url, patience=settings.connect_timeout)
        self._amqp = parameters.transport.establish_connection()
        self._channel = self._amqp.channel()
        self._channel.confirm_select()
        for event in ("basic_ack", "basic_nack"):  # a refused reply would be refused again
            self._channel.events[event].add(self._on_confirm)
        self._published = 0
        limit_waits(self._amqp.sock, settings.heartbeat * 2)
        self._frames = FrameReader(self._amqp)
        self._not_before = 0.0

    def _on_confirm(self, tag: int, multiple: bool) -> None:
        for each in [t for t in self._in_flight if t <= tag] if multiple else [tag]:
            if (reply := self._in_flight.pop(each, None)) is not None:
                reply.is_settled = True

    @contextlib.contextmanager
    def _given_up_on_error(self) -> Iterator[None]:
        """Give the connection up on any error: half a frame may have been sent, and tags would no longer agree."""
        try:
            yield
        except amqp.InternalError:
            self._give_up(is_refused=True)
        except LOST as error:
            logger.warning("the connection for replies is lost (%s)", type(error).__name__)
            self._give_up()
        except BaseException:
            self._give_up()
            raise

    def _give_up(self, *, is_refused: bool = False) -> None:
        """Close, and let what is not confirmed wait for the next connection.

        Args:
            is_refused: RabbitMQ failed by a message. If one alone was in flight, it was that.
        """
        connection, self._amqp = self._amqp, None
        with contextlib.suppress(*LOST, RuntimeError):
            if connection is not None:
                connection.collect()
        is_culprit = is_refused and len(self._in_flight) == 1
        for reply in reversed(self._in_flight.values()):
            if is_culprit or reply.attempts >= MAX_ATTEMPTS:
                reply.is_settled = True
                logger.error("a reply is given up: the connection was lost %d times with it", reply.attempts)
            else:
                self._waiting.appendleft(reply)
        self._in_flight.clear()

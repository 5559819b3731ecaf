"""A slot's second connection, over which it sends replies.

RabbitMQ closes the connection that publishes to a forged direct reply-to address, however well it is formed. Here a few
replies are lost, and their callers ask again. On the connection that consumes, all events would return to their queue,
and each would count as delivered.
"""

from __future__ import annotations

import contextlib
import logging
import threading

import amqp

from beds.config.sections import Amqp
from beds.transport.connection import connect_to
from beds.transport.frames import LOST, FrameReader, limit_waits, publish

logger = logging.getLogger("celery.beds.slot")


class Replies:
    """Publishes replies, best effort: the caller of a reply that is lost repeats its request.

    Args:
        settings: `[amqp]` of beds.toml.
    """

    def __init__(self, settings: Amqp) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._amqp: amqp.Connection | None = None

    def publish(self, message: amqp.Message, address: str) -> None:
        """Publish a reply to a direct reply-to address; never raises for a lost connection."""
        with self._lock:
            for _ in range(2):
                try:
                    if self._amqp is None:
                        self._connect()
                    self._frames.read()  # whether RabbitMQ has closed it meanwhile
                    publish(self._channel, message, "", address)
                    return
                except LOST as error:
                    self._give_up()
                    problem = error
        logger.error("a reply could not be sent: %s", type(problem).__name__)

    def tick(self) -> None:
        """Send a heartbeat if one is due."""
        with self._lock, contextlib.suppress(*LOST):
            if self._amqp is not None:
                try:
                    self._frames.read()
                    self._amqp.heartbeat_tick()
                except LOST:
                    self._give_up()
                    raise

    def close(self) -> None:
        """Close without an answer."""
        with self._lock:
            self._give_up()

    def _connect(self) -> None:
        settings = self._settings
        parameters = connect_to(settings, settings.broker_url, patience=settings.connect_timeout)
        self._amqp = parameters.transport.establish_connection()
        self._channel = self._amqp.channel()
        limit_waits(self._amqp.sock, settings.heartbeat * 2)
        self._frames = FrameReader(self._amqp)

    def _give_up(self) -> None:
        connection, self._amqp = self._amqp, None
        with contextlib.suppress(*LOST, RuntimeError):
            if connection is not None:
                connection.collect()

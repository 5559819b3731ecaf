"""Holds a node's name: an exclusive queue on RabbitMQ, which no second node on any machine can declare."""

from __future__ import annotations

import contextlib
import logging
import threading

import amqp
from kombu import Connection

from beds.config import Settings
from beds.transport.connection import connect_to
from beds.wire.routes import node_queue

RETRY_SECONDS = 2.0
SILENT_SECONDS = 20.0
logger = logging.getLogger("beds.node")


class NameHold(threading.Thread):
    """A thread with one connection, which it reopens when it is lost."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="beds-name", daemon=True)
        self._settings = settings
        self._ended = threading.Event()
        self._tried = threading.Event()
        self.is_taken = False
        """True if another node had the name at the last attempt."""

    def wait_tried(self, seconds: float) -> None:
        """Wait until the first attempt has shown whether the name is free, for `seconds` at most."""
        self._tried.wait(seconds)

    def run(self) -> None:
        while not self._ended.is_set():
            with connect_to(self._settings.amqp, self._settings.amqp.broker_url, patience=SILENT_SECONDS) as connection:
                self._hold(connection)
            self._ended.wait(RETRY_SECONDS)

    def close(self) -> None:
        self._ended.set()

    def _hold(self, connection: Connection) -> None:
        name = self._settings.node.name
        try:
            with connection.channel() as channel:
                channel.queue_declare(node_queue(name), exclusive=True, auto_delete=True)
                self.is_taken = False
                self._tried.set()
                while not self._ended.is_set():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=1.0)
                    connection.heartbeat_check()
        except amqp.ResourceLocked:
            self.is_taken = True
            self._tried.set()
            logger.error("another node is named %s: give each a name of its own in [node]", name)
        except connection.connection_errors as error:
            logger.debug("the node's name is not held: %s", error)
        except amqp.AccessRefused:
            logger.error("the node's name cannot be held: the worker's AMQP user may not declare %s", node_queue(name))
            self._ended.set()

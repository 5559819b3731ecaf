"""A slot's connection to RabbitMQ: it consumes, acknowledges, and publishes with confirms.

py-amqp does the handshake, the channels and the decoding of frames.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import amqp
from amqp import spec

from beds.config.sections import Amqp
from beds.transport.confirms import UNCONFIRMED_SECONDS
from beds.transport.connection import connect_to
from beds.transport.frames import LOST, FrameReader, limit_waits, publish


class ConnectionLost(Exception):
    """The connection broke, or could not be opened. What it delivered will be delivered again."""


class QueueMissing(ConnectionLost):
    """A queue or exchange does not exist."""


class SlotConnection:
    """An open connection of one slot. It never reconnects: once it is lost, the slot makes a new one.

    The slot's main thread uses it, and the slot's keeper while the main thread executes an event.

    Args:
        settings: `[amqp]` of beds.toml.
        queues: the queues to consume, each with the most events that may be unacknowledged.
        wake: a descriptor that ends `wait` when it becomes readable.
        declare: called with the channel before anything is consumed.
        on_delivery: called with each delivered message. It must not use the connection.
        on_confirm: called with (delivery tag, multiple, accepted) of each confirm of `publish_confirmed`.
        on_return: called with exchange and key when no queue took a message of `publish_confirmed`, before its confirm.

    Raises:
        QueueMissing: a queue does not exist.
        ConnectionLost: RabbitMQ cannot be reached, or refuses.
    """

    def __init__(
        self,
        settings: Amqp,
        queues: Mapping[str, int],
        wake: int,
        declare: Callable[[Any], None],
        on_delivery: Callable[[amqp.Message], None],
        on_confirm: Callable[[int, bool, bool], None],
        on_return: Callable[[str, str], None],
    ) -> None:
        self.is_open = True
        self.lock = threading.RLock()
        """Held while the connection is used, by either thread."""
        self.free_since = time.monotonic()
        """When it was opened or last unblocked, in monotonic seconds; infinite while RabbitMQ blocks it."""
        self._published = 0
        self._why = ""
        self._lost: type[ConnectionLost] = ConnectionLost
        parameters = connect_to(
            settings,
            settings.broker_url,
            transport_options={
                "on_blocked": self._block,
                "on_unblocked": self._unblock,
                "read_timeout": settings.connect_timeout,
                "write_timeout": settings.connect_timeout,
            },
        )
        self.user: str = parameters.userid or "guest"
        with self._lost_on_error():
            self._amqp: amqp.Connection = parameters.establish()
            self._channel = self._amqp.channel()
            self._channel.auto_decode = False
            declare(self._channel)
            self._confirmed = self._amqp.channel()
            self._confirmed.confirm_select()
            self._confirmed.events["basic_ack"].add(lambda tag, multiple: on_confirm(tag, multiple, True))
            self._confirmed.events["basic_nack"].add(lambda tag, multiple: on_confirm(tag, multiple, False))
            self._confirmed.events["basic_return"].add(lambda _error, exchange, key, _message: on_return(exchange, key))
            self._queues, self._on_delivery = queues, on_delivery
            self._consumers: list[str] = []
            self._unattached: set[str] = set()
            """Queues that RabbitMQ has not answered yet for."""
            self._channel._callbacks[spec.Basic.ConsumeOk] = self._unattached.discard
            self._consume()
            self._socket: socket.socket = self._amqp.sock
            self._frames = FrameReader(self._amqp)
            limit_waits(self._socket, settings.heartbeat_seconds * 2)
            self._wake = wake

    def _block(self, _reason: str) -> None:
        self.free_since = math.inf

    def _unblock(self) -> None:
        self.free_since = time.monotonic()

    def wait(self, seconds: float, other: int | None = None) -> None:
        """Wait until something arrives, or the descriptor `wake` or `other` becomes readable, or `seconds` have passed.

        Raises:
            ConnectionLost: the other thread has closed it.
        """
        if self._frames.has_more:
            return
        waking = select.poll()  # unlike select(), it takes descriptors beyond 1023
        for descriptor in (self._socket.fileno(), self._wake, other):
            if descriptor is not None and descriptor >= 0:
                waking.register(descriptor, select.POLLIN)
        if not self.is_open:
            raise self._lost(self._why or "it was closed")
        waking.poll(seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 64)

    def receive(self) -> None:
        """Handle all that has arrived, without waiting. Raises ConnectionLost."""
        with self.lock, self._lost_on_error():
            self._frames.read()

    def tick(self) -> None:
        """Receive, and send a heartbeat if one is due. Raises ConnectionLost."""
        with self.lock, self._lost_on_error():
            self.receive()
            self._amqp.heartbeat_tick()

    def publish(self, message: amqp.Message, exchange: str, key: str) -> None:
        """Publish without a confirm. Raises ConnectionLost."""
        with self.lock, self._lost_on_error():
            publish(self._channel, message, exchange, key)

    def publish_confirmed(
        self, message: amqp.Message, exchange: str, key: str, register: Callable[[int], None]
    ) -> None:
        """Publish one message. `register` is called with its delivery tag before it can be confirmed.

        Raises:
            ConnectionLost: the connection broke.
        """
        with self.lock, self._lost_on_error():
            self._published += 1
            register(self._published)
            publish(self._confirmed, message, exchange, key, mandatory=True)

    def acknowledge(self, tag: int, *, all_before: bool = False) -> None:
        """Acknowledge one event, or all up to it that were not yet. Raises ConnectionLost."""
        with self.lock, self._lost_on_error():
            self._channel.send_method(spec.Basic.Ack, "Lb", (tag, all_before))

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Return an event to its queue, or send it to beds.dead. Raises ConnectionLost."""
        with self.lock, self._lost_on_error():
            self._channel.send_method(spec.Basic.Reject, "Lb", (tag, requeue))

    def consume(self) -> None:
        """Receive events again, once `has_stopped`. Raises ConnectionLost."""
        if self.has_stopped:
            with self.lock, self._lost_on_error():
                self._consume()

    def stop_consuming(self) -> None:
        """Ask RabbitMQ for no further events; those on their way still arrive. Raises ConnectionLost."""
        with self.lock, self._lost_on_error():
            while self._consumers:
                self._channel.send_method(spec.Basic.Cancel, "sb", (self._consumers.pop(), False))

    def check(self) -> None:
        """Give the connection up if RabbitMQ does not begin to deliver from a queue.

        A channel may send the request to a leader that is frozen or cut off, and never again.

        Raises:
            ConnectionLost: it did.
        """
        with self.lock:
            waits = self._unattached and time.monotonic() - max(self._asked_at, self.free_since) > UNCONFIRMED_SECONDS
        if waits:
            raise self.lost(f"RabbitMQ does not begin to deliver from {', '.join(sorted(self._unattached))}")

    @property
    def has_stopped(self) -> bool:
        """True once RabbitMQ has answered `stop_consuming`, so that no further event will arrive."""
        return not self._channel.callbacks

    def _consume(self) -> None:
        """Consume each queue with its own prefetch. A later `receive` gets the answer, or that a queue is missing."""
        self._asked_at = time.monotonic()
        for queue, prefetch in self._queues.items():
            self._channel.send_method(spec.Basic.Qos, "lBb", (0, prefetch, False))  # for the next consumer
            self._channel.callbacks[queue] = self._on_delivery
            self._unattached.add(queue)
            # py-amqp's `basic_consume` would wait for the answer, or ask for none.
            self._channel.send_method(spec.Basic.Consume, "BssbbbbF", (0, queue, queue, False, False, False, False, {}))
            self._consumers.append(queue)

    def close(self) -> None:
        """Close, and give RabbitMQ half a second for its answer."""
        with contextlib.suppress(Exception), self.lock:  # half a frame may be left to read
            if self.is_open and self._amqp.connected:
                with self._amqp.transport.having_timeout(0.5):
                    self._amqp.close()
        self.give_up()

    def lost(self, why: str) -> ConnectionLost:
        """Give the connection up. Returns the error, which the other thread meets, too."""
        self._why = why
        self.give_up()
        return ConnectionLost(why)

    def give_up(self) -> None:
        """Close without an answer."""
        self.is_open = False
        with contextlib.suppress(*LOST, RuntimeError), self.lock:
            self._amqp.collect()

    @contextlib.contextmanager
    def _lost_on_error(self) -> Iterator[None]:
        """Give the connection up on any error, a signal's too: half a frame may have been sent or read."""
        if not self.is_open:
            raise self._lost(self._why or "it was closed")
        try:
            yield
        except amqp.NotFound as error:
            self._why, self._lost = error.reply_text, QueueMissing  # for the other thread, too
            self.give_up()
            raise QueueMissing(error.reply_text) from None
        except LOST as error:
            self._why = f"{type(error).__name__}: {error}"  # for the other thread, which meets the closed connection
            self.give_up()
            raise ConnectionLost(self._why) from None
        except BaseException:
            self.give_up()
            raise

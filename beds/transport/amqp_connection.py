"""One AMQP connection with one channel: publishes with confirms, receives replies, and reports its own loss.

Threads publish under a lock, and the connection has its own reader thread. py-amqp allows one thread at a time, so the
reader holds the same lock while it drains frames, and waits for new ones without it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

import amqp

from beds.config.sections import Amqp
from beds.errors import BedsError, BrokerUnavailable, PermissionDenied, Unroutable
from beds.transport.connection import connect_to
from beds.transport.frames import FrameReader, limit_waits, publish
from beds.wire.reply import REPLY_TO

OnReply = Callable[[str, Any], None]
OnConfirm = Callable[[int, bool, bool], None]
OnReturn = Callable[[str, str], None]
OnLost = Callable[[BedsError], None]

logger = logging.getLogger(__name__)

SKEW_SECONDS = 5.0
"""Difference of two clocks that is tolerated without a warning; a reply's timestamp has whole seconds."""
WARN_EVERY_SECONDS = 60.0
TURN_SECONDS = 0.01
"""How long a publisher that must not block waits for the reader."""
_LOST = (OSError, amqp.AMQPError)


class _ClockWatch:
    """Logs a warning, at most once a minute, when this machine's clock differs from a reply's timestamp."""

    def __init__(self) -> None:
        self._next = 0.0

    def compare(self, at: Any) -> None:
        if not isinstance(at, int):
            return
        seconds = at - time.time()
        if abs(seconds) <= SKEW_SECONDS or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + WARN_EVERY_SECONDS
        word = "behind" if seconds > 0 else "ahead of"
        logger.warning(
            "this machine's clock is %.0f s %s the workers': times in logs and tickets are wrong; let it run NTP",
            abs(seconds),
            word,
        )


_CLOCK = _ClockWatch()


def _collect(opened: list[amqp.Connection]) -> None:
    """Close the opened connections without waiting for the peer's answer."""
    for connection in opened:
        connection.collect()


class AmqpConnection:
    """An open connection. It never reconnects: once it is lost, its owner makes a new one.

    Args:
        settings: `[amqp]` of beds.toml.
        timeout: seconds to connect.
        on_reply: called with (correlation id, body) of each reply.
        on_confirm: called with (delivery tag, multiple, accepted) of each confirm.
        on_return: called with (correlation id, routing key) of an unroutable message, before its confirm.
        on_lost: called once with the error when the connection fails.
        on_beat: called every half heartbeat, by the reader's thread.

    Raises:
        BrokerUnavailable: RabbitMQ cannot be reached, or refuses the user.
    """

    def __init__(
        self,
        settings: Amqp,
        timeout: float,
        *,
        on_reply: OnReply,
        on_confirm: OnConfirm,
        on_return: OnReturn,
        on_lost: OnLost,
        on_beat: Callable[[], None],
    ) -> None:
        self.blocked = ""
        """Why RabbitMQ has blocked the connection, or empty."""
        self.free_since = time.monotonic()
        """When it was opened or last unblocked, in monotonic seconds; infinite while it is blocked."""
        self._on_beat = on_beat
        self._unblocked = threading.Event()
        self._unblocked.set()
        self._on_lost = on_lost
        self._on_reply = on_reply
        self._lock = threading.Lock()
        self._closed = False
        self._published = 0
        parameters = connect_to(
            settings,
            settings.client_url,
            connect_timeout=timeout,
            transport_options={
                "on_blocked": self._block,
                "on_unblocked": self._unblock,
                "read_timeout": timeout,
                "write_timeout": timeout,
            },
        )
        self.user: str = parameters.userid or "guest"
        self._where = parameters.where
        opened: list[amqp.Connection] = []
        try:
            self._amqp: amqp.Connection = parameters.establish()
            opened.append(self._amqp)
            self._channel = self._amqp.channel()
            self._channel.confirm_select()
            self._channel.events["basic_ack"].add(lambda tag, multiple: on_confirm(tag, multiple, True))
            self._channel.events["basic_nack"].add(lambda tag, multiple: on_confirm(tag, multiple, False))
            self._channel.events["basic_return"].add(
                lambda _error, _exchange, key, message: on_return(message.properties.get("correlation_id", ""), key)
            )
            self._channel.basic_consume(
                REPLY_TO,
                no_ack=True,
                callback=self._take_reply,
            )
            self._socket = self._amqp.sock
            self._departures = select.poll()
            self._departures.register(self._socket, select.POLLOUT)
            # The timeouts so far were the first caller's; from here on, twice the heartbeat applies.
            limit_waits(self._socket, settings.heartbeat_seconds * 2)
        except (amqp.AccessRefused, amqp.NotAllowed) as error:  # NotAllowed: the vhost does not exist
            _collect(opened)
            raise PermissionDenied(
                f"RabbitMQ at {self._where} refuses the user: {error.reply_text}",
                hint="check user, password and vhost in [amqp] url, or in operator_url for an operator's command",
            ) from None
        except _LOST as error:
            _collect(opened)
            raise BrokerUnavailable(f"RabbitMQ at {self._where} cannot be reached: {error}") from None
        self._heartbeat = settings.heartbeat_seconds
        threading.Thread(target=self._read, name="beds-link", daemon=True).start()

    def publish(
        self,
        message: amqp.Message,
        exchange: str,
        key: str,
        register: Callable[[int], None],
        *,
        at_once: bool = False,
    ) -> bool:
        """Publish one mandatory message. `register` is called with its delivery tag before it can be confirmed.

        Args:
            message, exchange, key, register: the message.
            at_once: do nothing, and return False, if another thread publishes or the socket's buffer is full.

        Raises:
            BrokerUnavailable: the connection is lost.
        """
        # The reader holds the lock while it handles frames, which is short.
        if not self._lock.acquire(timeout=TURN_SECONDS if at_once else -1):
            return False
        try:
            if at_once and not self._departures.poll(0):
                return False
            if self._closed:
                raise BrokerUnavailable(f"the connection to RabbitMQ at {self._where} is closed")
            try:
                self._published += 1
                register(self._published)
                publish(self._channel, message, exchange, key, mandatory=True)
            except (*_LOST, AttributeError) as error:  # AttributeError: py-amqp after the peer closed the channel
                lost = self._lost_because(error)
            except BaseException as error:
                # Ctrl-C, or a signal's exception: half a frame may be sent, and later delivery tags would be wrong.
                self.give_up(BrokerUnavailable(f"publishing was interrupted by {type(error).__name__}"))
                raise
            else:
                return True
        finally:
            self._lock.release()
        self.give_up(lost)
        raise lost

    def wait_unblocked(self, deadline: float) -> bool:
        """Wait until RabbitMQ unblocks the connection; False when `deadline` (monotonic seconds) comes first."""
        return self._unblocked.wait(max(0.0, deadline - time.monotonic()))

    @property
    def is_open(self) -> bool:
        return not self._closed

    def close(self) -> None:
        """Close without waiting for the peer's answer, which may never come."""
        self._closed = True
        self._unblocked.set()
        with contextlib.suppress(*_LOST, AttributeError), self._lock:
            if self._amqp.connected:
                # RabbitMQ has half a second for an orderly close; then the socket is closed in any case.
                with self._amqp.transport.having_timeout(0.5):
                    self._amqp.close()
        with contextlib.suppress(*_LOST, AttributeError):
            self._amqp.collect()

    def abandon(self) -> None:
        """Close this process's copy of the socket after a fork. Nothing is sent: the parent uses the connection."""
        self._closed = True
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._socket.detach())

    def _read(self) -> None:
        beat_every = self._heartbeat / 2
        next_beat = time.monotonic() + beat_every
        try:
            frames = FrameReader(self._amqp)
            arrivals = select.poll()  # unlike select(), it takes descriptors beyond 1023
            arrivals.register(self._socket, select.POLLIN)
            while not self._closed:
                ready = arrivals.poll(max(0.0, next_beat - time.monotonic()) * 1000)
                with self._lock:
                    if self._closed:
                        return
                    if ready:
                        frames.read()
                    if time.monotonic() >= next_beat:
                        self._amqp.heartbeat_tick()
                        next_beat = time.monotonic() + beat_every
                        self._on_beat()
        except Exception as error:  # noqa: BLE001 — when the reader ends, every in-flight request must fail
            self.give_up(self._lost_because(error))

    def _take_reply(self, message: amqp.Message) -> None:
        _CLOCK.compare(message.properties.get("timestamp"))
        self._on_reply(message.properties.get("correlation_id", ""), message.body)

    def _lost_because(self, error: BaseException) -> BedsError:
        if isinstance(error, amqp.AccessRefused):
            return PermissionDenied(f"RabbitMQ refuses: {error.reply_text}", detail={"reply": error.reply_text})
        if isinstance(error, amqp.NotFound):
            return Unroutable(f"RabbitMQ says: {error.reply_text}")
        return BrokerUnavailable(f"the connection to RabbitMQ at {self._where} broke: {error}")

    def give_up(self, why: BedsError) -> None:
        """Close the connection, and call `on_lost` with `why`."""
        if self._closed:
            return
        self._closed = True
        self._unblocked.set()
        with contextlib.suppress(*_LOST, AttributeError):
            self._amqp.collect()
        self._on_lost(why)

    def _block(self, reason: str) -> None:
        self.blocked = reason or "a resource alarm"
        self.free_since = math.inf
        self._unblocked.clear()

    def _unblock(self) -> None:
        self.blocked = ""
        self.free_since = time.monotonic()
        self._unblocked.set()

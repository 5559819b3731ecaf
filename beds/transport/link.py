"""One AMQP connection with one channel: publishes with confirms, takes replies, and knows when it is lost.

Threads publish under a lock; a thread of the link's own reads. py-amqp allows one thread at a time, so the reader holds
the same lock while it drains what has arrived, and waits for more outside of it.
"""

from __future__ import annotations

import contextlib
import os
import select
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import amqp

from beds.config.sections import Amqp
from beds.errors import BedsError, BrokerUnavailable, PermissionDenied, Unroutable
from beds.transport.connection import connect_to
from beds.transport.message import REPLY_TO

OnReply = Callable[[str, Any], None]
OnConfirm = Callable[[int, bool, bool], None]
OnReturn = Callable[[str, str], None]
OnLost = Callable[[BedsError], None]

DRAIN_AT_MOST = 256
"""Frames read before waiting publishers get the lock."""
_LOST = (OSError, amqp.AMQPError)


class Link:
    """An open connection. It is never repaired: once lost, its owner makes a new one.

    Args:
        settings: `[amqp]` of beds.toml.
        timeout: seconds to connect.
        on_reply: hears (correlation id, body) of each reply.
        on_confirm: hears (delivery tag, multiple, accepted).
        on_return: hears (correlation id, routing key) of an unroutable message, before its confirm.
        on_lost: hears once why the link is of no more use.

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
    ) -> None:
        self.blocked = ""
        """Why RabbitMQ takes no messages at the moment, or empty."""
        self._unblocked = threading.Event()
        self._unblocked.set()
        self._on_lost = on_lost
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
        self._where = parameters.as_uri()
        try:
            # Not `parameters.connection`, which on a failure sleeps two seconds and tries again.
            self._amqp: amqp.Connection = parameters.transport.establish_connection()
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
                callback=lambda message: on_reply(message.properties.get("correlation_id", ""), message.body),
            )
            self._socket = self._amqp.sock
            self._socket.setblocking(True)
        except amqp.AccessRefused as error:
            raise PermissionDenied(
                f"RabbitMQ at {self._where} refuses the user: {error.reply_text}",
                hint="check user, password and vhost in [amqp] url",
            ) from None
        except _LOST as error:
            raise BrokerUnavailable(f"RabbitMQ at {self._where} cannot be reached: {error}") from None
        self._heartbeat = settings.heartbeat
        threading.Thread(target=self._read, name="beds-link", daemon=True).start()

    def publish(self, message: amqp.Message, exchange: str, key: str, register: Callable[[int], None]) -> None:
        """Send one message, persistent and mandatory. `register` hears its delivery tag before it can be confirmed.

        Raises:
            BrokerUnavailable: the link is lost.
        """
        with self._lock:
            if self._closed:
                raise BrokerUnavailable(f"the connection to RabbitMQ at {self._where} is closed")
            try:
                self._published += 1
                register(self._published)
                self._channel.basic_publish(message, exchange, key, mandatory=True)
            except (*_LOST, AttributeError) as error:  # AttributeError: py-amqp after the peer closed the channel
                lost = self._lost_because(error)
            except BaseException as error:
                # Ctrl-C, or a signal's exception: half a frame may be out, and the tags of later confirms do not fit.
                self._give_up(BrokerUnavailable(f"publishing was interrupted by {type(error).__name__}"))
                raise
            else:
                return
        self._give_up(lost)
        raise lost

    def wait_unblocked(self, deadline: float) -> bool:
        """Wait until RabbitMQ takes messages again; False when `deadline` (monotonic seconds) came first."""
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
                # Half a second for RabbitMQ to see an orderly end; then the socket goes, whatever it says.
                with self._amqp.transport.having_timeout(0.5):
                    self._amqp.close()
        with contextlib.suppress(*_LOST, AttributeError):
            self._amqp.collect()

    def abandon(self) -> None:
        """Let go after a fork: the socket belongs to the parent, so it is closed here without a word to the peer."""
        self._closed = True
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._socket.detach())

    def _read(self) -> None:
        beat_every = self._heartbeat / 2
        next_beat = time.monotonic() + beat_every
        try:
            arrivals = select.poll()  # unlike select(), it takes descriptors beyond 1023
            arrivals.register(self._socket, select.POLLIN)
            while not self._closed:
                ready = arrivals.poll(max(0.0, next_beat - time.monotonic()) * 1000)
                with self._lock:
                    if self._closed:
                        return
                    if ready:
                        self._drain(arrivals)
                    if time.monotonic() >= next_beat:
                        self._amqp.heartbeat_tick()
                        next_beat = time.monotonic() + beat_every
        except (*_LOST, ValueError, AttributeError, TypeError) as error:
            # ValueError, AttributeError, TypeError: the socket or channel was closed under us.
            self._give_up(self._lost_because(error))

    def _drain(self, arrivals: select.poll) -> None:
        """Read what has arrived. Asking the socket again is far cheaper than py-amqp's way to find it empty."""
        for _ in range(DRAIN_AT_MOST):
            try:
                self._amqp.drain_events(timeout=0)
            except TimeoutError:
                return
            in_tls = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()
            if not (in_tls or arrivals.poll(0)):
                return

    def _lost_because(self, error: BaseException) -> BedsError:
        if isinstance(error, amqp.AccessRefused):
            return PermissionDenied(f"RabbitMQ refuses: {error.reply_text}", detail={"reply": error.reply_text})
        if isinstance(error, amqp.NotFound):
            return Unroutable(f"RabbitMQ says: {error.reply_text}")
        return BrokerUnavailable(f"the connection to RabbitMQ at {self._where} broke: {error}")

    def _give_up(self, why: BedsError) -> None:
        if self._closed:
            return
        self._closed = True
        self._unblocked.set()
        with contextlib.suppress(*_LOST, AttributeError):
            self._amqp.collect()
        self._on_lost(why)

    def _block(self, reason: str) -> None:
        self.blocked = reason or "a resource alarm"
        self._unblocked.clear()

    def _unblock(self) -> None:
        self.blocked = ""
        self._unblocked.set()

"""Publishes events and matches confirms and replies to them, over one connection that is renewed when lost."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import Any

from pydantic import SecretStr

from beds.config.sections import Amqp
from beds.domain.backoff import Backoff
from beds.domain.event import Event
from beds.errors import (
    BedsError,
    BrokerBlocked,
    BrokerUnavailable,
    CallTimeout,
    ClientClosed,
    Overloaded,
    PermissionDenied,
    Unroutable,
    from_wire,
)
from beds.transport.amqp_connection import AmqpConnection
from beds.transport.confirms import ConfirmWatch
from beds.transport.pending import Pending
from beds.wire.message import to_message, with_encoded_body

logger = logging.getLogger(__name__)

RETRY_AFTER = 1.0
"""Seconds after which a full queue may have room again."""
AT_ONCE_BYTES = 16_384
"""A body up to this size fits the buffer of a socket that is writable: Linux calls it so when a third is free."""


class Requester:
    """Publishes events and receives replies. Safe over threads and forks; one connection per process, opened on use.

    Args:
        settings: `[amqp]` of beds.toml.
        url: replaces `[amqp] url` when not empty.
    """

    def __init__(self, settings: Amqp, url: str = "") -> None:
        self._settings = settings.model_copy(update={"url": SecretStr(url)}) if url else settings
        self._closed = False
        self._opening = threading.Lock()
        self._in_flight: _InFlight | None = None
        self._confirms = ConfirmWatch()
        _live.add(self)

    def send(self, event: Event, deadline: float) -> Pending:
        """Publish the event, connecting first where necessary.

        Args:
            event: what to send.
            deadline: monotonic seconds.

        Raises:
            BrokerUnavailable: no connection by the deadline.
            BrokerBlocked: RabbitMQ still blocks publishing at the deadline.
            PermissionDenied: the user or password is refused.
            InvalidPayload: the event cannot be sent.
        """
        event = with_encoded_body(event, self._settings.max_body_bytes)
        in_flight = self._open(deadline)
        connection = in_flight.connection
        if connection.blocked and not connection.wait_unblocked(deadline):
            raise BrokerBlocked(f"RabbitMQ takes no messages: {connection.blocked}", event_id=event.lineage.event_id)
        pending = in_flight.publish(event)
        assert pending is not None
        return pending

    def send_now(self, event: Event) -> Pending | None:
        """As `send`, for an event loop's thread: returns None, and publishes nothing, where `send` might block."""
        in_flight = self._in_flight
        if in_flight is None or not self.is_ready:
            return None
        event = with_encoded_body(event, self._settings.max_body_bytes)
        return in_flight.publish(event, at_once=True) if len(event.body) <= AT_ONCE_BYTES else None

    @property
    def is_ready(self) -> bool:
        """Whether `send` would publish at once."""
        current = self._in_flight
        return current is not None and current.connection.is_open and not current.connection.blocked

    @property
    def blocked(self) -> str:
        """Why RabbitMQ has blocked the connection, or empty."""
        return self._in_flight.connection.blocked if self._in_flight else ""

    def why_late(self, pending: Pending, what: str) -> BedsError:
        """The error for a missing confirm or reply at the deadline; `what` begins its message."""
        event = pending.event
        detail = {"guid": event.lineage.guid, "queue": event.queue}
        where: dict[str, Any] = {"detail": detail, "event_id": event.lineage.event_id}
        if self.blocked:
            return BrokerBlocked(f"RabbitMQ takes no messages: {self.blocked}", **where)
        if not pending.confirmed.done():
            return BrokerUnavailable("RabbitMQ did not confirm the event by the deadline", **where)
        return CallTimeout(
            f"{what} to {event.summary} by the deadline",
            hint=f"does a worker consume {event.queue}? `beds node start` starts those of this node"
            + ("" if event.repeatable else "; the write may still be carried out"),
            **where,
        )

    def close(self) -> None:
        """Close the connection; requests in flight fail with ClientClosed."""
        self._closed = True
        current, self._in_flight = self._in_flight, None
        if current:
            current.connection.close()
            current.fail_all(ClientClosed("the client was closed"))

    def after_fork(self) -> None:
        """In a child: drop the parent's connection, and open a new one at the next use."""
        if self._in_flight:
            self._in_flight.connection.abandon()
        self._opening = threading.Lock()
        self._in_flight = None

    def _open(self, deadline: float) -> _InFlight:
        current = self._in_flight
        if current is not None and current.connection.is_open:
            return current
        backoff = Backoff(deadline)
        while True:
            remaining = deadline - time.monotonic()
            if not self._opening.acquire(timeout=max(0.0, remaining)):
                raise BrokerUnavailable("no connection to RabbitMQ by the deadline")
            try:
                if self._closed:
                    raise ClientClosed("this client is closed")
                current = self._in_flight
                if current is not None and current.connection.is_open:
                    return current
                timeout = max(0.05, min(self._settings.connect_timeout, remaining))
                current = _InFlight(self._settings, timeout, self._confirms)
                if self._closed:  # by another thread, while this one connected
                    current.connection.close()
                    raise ClientClosed("this client is closed")
                self._in_flight = current
                return current
            except BrokerUnavailable:
                pause = backoff.next_pause()
                if pause is None:
                    raise
            finally:
                self._opening.release()
            time.sleep(pause)


class _InFlight:
    """One connection and its in-flight requests. Losing the connection fails only these requests."""

    def __init__(self, settings: Amqp, timeout: float, confirms: ConfirmWatch) -> None:
        self._lock = threading.Lock()
        self._confirms = confirms
        self._queues_are_limited = settings.max_queue_length > 0
        self._over = False
        self._unconfirmed: dict[int, Pending] = {}
        # Weak, so that a request whose caller has stopped waiting is dropped.
        self._waiting: weakref.WeakValueDictionary[str, Pending] = weakref.WeakValueDictionary()
        self.connection = AmqpConnection(
            settings,
            timeout,
            on_reply=self._on_reply,
            on_confirm=self._on_confirm,
            on_return=self._on_return,
            on_lost=self.fail_all,
            on_beat=self._check_confirms,
        )

    def publish(self, event: Event, *, at_once: bool = False) -> Pending | None:
        """Publish an event with its encoded body. With `at_once`, returns None where this might block."""
        pending = Pending(event)
        message = to_message(event, self.connection.user)
        try:
            is_sent = self.connection.publish(
                message, event.exchange, event.queue, lambda tag: self.await_answer(tag, pending), at_once=at_once
            )
        except PermissionDenied as refusal:
            if _is_about(refusal, pending):
                raise
            raise _closed_by_another() from None
        pending.at = time.monotonic()
        return pending if is_sent else None

    def await_answer(self, tag: int, pending: Pending) -> None:
        """Register an event that is about to be published with this delivery tag.

        Raises:
            BrokerUnavailable: the connection has just been lost, and the requests in flight have failed.
        """
        with self._lock:
            if self._over:
                raise BrokerUnavailable("the connection to RabbitMQ was lost", event_id=pending.event.lineage.event_id)
            self._waiting[pending.event.lineage.guid] = pending
            self._unconfirmed[tag] = pending

    def fail_all(self, why: BedsError) -> None:
        """Fail every in-flight request with `why`."""
        with self._lock:
            self._over = True
            unconfirmed = set(map(id, self._unconfirmed.values()))
            self._unconfirmed.clear()
            waiting = list(self._waiting.values())
        for pending in waiting:
            known_lost = id(pending) in unconfirmed
            if isinstance(why, PermissionDenied) and not (known_lost and _is_about(why, pending)):
                # RabbitMQ refused another event, and closed the channel.
                pending.fail(_closed_by_another())
            else:
                pending.fail(from_wire(why.to_wire()))

    def _on_reply(self, guid: str, body: bytes | str) -> None:
        pending = self._waiting.get(guid)
        if pending is not None:
            pending.answer(body)

    def _on_confirm(self, tag: int, multiple: bool, accepted: bool) -> None:
        with self._lock:
            # Dictionaries keep their order, so the oldest tag comes first.
            tags = [t for t in self._unconfirmed if t <= tag] if multiple else [tag]
            confirmed = [self._unconfirmed.pop(t) for t in tags if t in self._unconfirmed]
        in_doubt = not accepted and not self._queues_are_limited
        for pending in confirmed:
            if accepted:
                self._confirms.confirmed(pending.event.queue)
                pending.confirm()
            elif self._queues_are_limited:
                detail = {"queue": pending.event.queue, "retry_after": RETRY_AFTER}
                pending.fail(Overloaded(f"the queue {pending.event.queue} is full", detail=detail))
            else:
                # A queue without a limit is never full, so its leader failed, and may have stored the event. The event
                # is therefore published again under its guid.
                pending.fail(_in_doubt(pending.event.queue))
        if in_doubt:
            # RabbitMQ keeps refusing on this channel until the failed leader is back; a new one finds the new leader.
            self.connection.give_up(_in_doubt(confirmed[0].event.queue if confirmed else "a queue"))

    def _check_confirms(self) -> None:
        """Give the connection up if RabbitMQ does not confirm the events of a queue for long.

        All events in flight are published again under their guids, over a new connection.
        """
        with self._lock:
            unconfirmed = [(pending.event.queue, pending.at) for pending in self._unconfirmed.values()]
        if queue := self._confirms.overdue(unconfirmed, self.connection.free_since):
            logger.warning("RabbitMQ does not confirm the events of %s; connecting again", queue)
            self.connection.give_up(BrokerUnavailable("RabbitMQ confirms no events on this connection"))

    def _on_return(self, guid: str, key: str) -> None:
        pending = self._waiting.get(guid)
        if pending is not None:
            pending.fail(Unroutable(f"no queue takes the key {key}", detail={"routing_key": key}))


def _in_doubt(queue: str) -> BrokerUnavailable:
    return BrokerUnavailable(f"RabbitMQ did not say whether it keeps an event of {queue}")


def _closed_by_another() -> BrokerUnavailable:
    """The error of an event that was in flight when RabbitMQ refused another one; it may be sent again."""
    return BrokerUnavailable("the channel was closed because of another event")


def _is_about(refusal: PermissionDenied, pending: Pending) -> bool:
    """Whether RabbitMQ's reply text names this event's key, or no key (the whole exchange is refused)."""
    words = str(refusal.detail.get("reply", ""))
    return f"'{pending.event.queue}'" in words or "topic" not in words


_live: weakref.WeakSet[Requester] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for requester in list(_live):
        requester.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)

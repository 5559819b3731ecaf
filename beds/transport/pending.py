"""The transport protocol through which a client publishes, and `Pending`, its handle for each event."""

from __future__ import annotations

import math
from concurrent.futures import Future, InvalidStateError
from typing import Protocol

from beds.domain.event import Event
from beds.errors import BedsError


class Pending:
    """One published event: `confirmed` is done on RabbitMQ's confirm, `reply` on a worker's reply, with its body.

    Both fail with the same error when the event fails. A reply is decoded by its caller's thread, because one reader
    thread serves all events.
    """

    __slots__ = ("__weakref__", "at", "confirmed", "event", "reply")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.at = math.inf
        """When it was handed over to the socket, in monotonic seconds."""
        self.confirmed: Future[None] = Future()
        self.reply: Future[bytes | str] = Future()

    def fail(self, error: BedsError) -> None:
        error.event_id = error.event_id or self.event.lineage.event_id
        for future in (self.confirmed, self.reply):
            try:
                future.set_exception(error)
            except InvalidStateError:
                continue  # done before

    def confirm(self) -> None:
        try:
            self.confirmed.set_result(None)
        except InvalidStateError:
            return  # replied before, or failed: RabbitMQ also confirms a message that it returned as unroutable

    def answer(self, body: bytes | str) -> None:
        """Complete with the body of a worker's reply."""
        self.confirm()
        try:
            self.reply.set_result(body)
        except InvalidStateError:
            return  # a second reply, after a redelivery


class Transport(Protocol):
    """Carries events: over RabbitMQ (`transport.requester`), or in memory (`beds.testing`)."""

    def send(self, event: Event, deadline: float) -> Pending:
        """Publish the event; returns before it is confirmed.

        Args:
            event: what to send.
            deadline: monotonic seconds.

        Raises:
            BrokerUnavailable: no connection by the deadline.
            BrokerBlocked: RabbitMQ still blocks publishing at the deadline.
            PermissionDenied: RabbitMQ refuses the user, the password or the key.
            InvalidPayload: the event cannot be sent.
        """
        ...

    def send_now(self, event: Event) -> Pending | None:
        """As `send`, for an event loop's thread: returns None, and publishes nothing, where `send` might block."""
        ...

    def why_late(self, pending: Pending, what: str) -> BedsError:
        """The error for a missing confirm or reply at the deadline; `what` begins its message."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether `send` would publish at once."""
        ...

    def close(self) -> None:
        """Close the connection; requests in flight fail with ClientClosed."""
        ...

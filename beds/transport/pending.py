"""The transport protocol through which a client publishes, and `Pending`, its handle for each event."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError
from typing import Any, Protocol

from beds.domain.event import Event
from beds.errors import BedsError, MalformedEvent
from beds.wire.reply import decode_reply


class Pending:
    """One published event: `confirmed` is done on RabbitMQ's confirm, `reply` on a worker's reply.

    Both fail with the same error when the event fails.
    """

    __slots__ = ("__weakref__", "confirmed", "event", "reply")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.confirmed: Future[None] = Future()
        self.reply: Future[Any] = Future()

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
        """Complete with a worker's reply. Never raises, because one reader thread serves all events."""
        self.confirm()
        try:
            value = decode_reply(body)
        except BedsError as error:
            self.fail(error)
            return
        except Exception as error:  # noqa: BLE001 — no reply may end the reader thread
            self.fail(MalformedEvent(f"the worker's reply cannot be read ({type(error).__name__})"))
            return
        try:
            self.reply.set_result(value)
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

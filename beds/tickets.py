"""A ticket in the hand of a client: asked after, waited for and cancelled, from any process, over AMQP alone."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from beds.domain.lineage import guid_of
from beds.domain.reply import Reply, reply_from_wire
from beds.domain.ticket import Progress, TicketStatus
from beds.errors import BedsError, BrokerUnavailable, CallTimeout, OutOfRange, UnknownTicket, WrongType
from beds.transport.requester import Pending, read_reply

if TYPE_CHECKING:
    from beds.client import Client

DEFAULT_TIMEOUT = 10.0
"""Seconds that anything waits when the caller does not say."""
FIRST_POLL = 0.05
"""Seconds until a ticket is asked after again; grows by half each time, to at most `LONGEST_POLL`."""
LONGEST_POLL = 2.0
OWN_REPLY_SECONDS = 1.0
"""How long a submitter waits for the reply before it asks, since a reply can be lost with a connection; doubled each
time, to at most `LONGEST_OWN_WAIT`."""
LONGEST_OWN_WAIT = 10.0


class Ticket:
    """A submitted event. RabbitMQ has it: it will be carried out even if the process that submitted it ends.

    It can be pickled and compared; a copy in another process uses that process's default client.

    Args:
        event_id: `node.env.guid`, or the guid alone.
        client: whom to ask.
        pending: the submitter's own wait for the reply, which spares it most questions.
    """

    __slots__ = ("_client", "_pending", "event_id")

    def __init__(self, event_id: str, client: Client, pending: Pending | None = None) -> None:
        self.event_id = event_id
        self._client = client
        self._pending = pending

    @property
    def guid(self) -> str:
        """The Celery task id."""
        return guid_of(self.event_id)

    @property
    def ready(self) -> bool:
        """Whether it has ended. Asks, unless the reply is here already."""
        return (self._pending is not None and self._pending.reply.done()) or self.status().ready

    @property
    def progress(self) -> Progress | None:
        """How far it is, when its operation tells."""
        return self.status().progress

    def status(self, timeout: float = DEFAULT_TIMEOUT) -> TicketStatus:
        """What is known of it.

        Raises:
            UnknownTicket, TicketExpired: it was never accepted, or its outcome is kept no more.
            CallTimeout: nobody answered within `timeout` seconds.
        """
        return TicketStatus.from_wire(self._client.ask("status", {"guid": self.guid}, timeout=timeout))

    def result(self, timeout: float = DEFAULT_TIMEOUT) -> Reply:
        """The reply, waiting for it for up to `timeout` seconds.

        Raises:
            CallTimeout: it has not ended yet; it goes on all the same.
            TicketRevoked: it was cancelled.
            BedsError: the operation failed.
        """
        deadline = deadline_after(timeout)
        asked_every = OWN_REPLY_SECONDS
        while self._pending is not None:
            remaining = deadline - time.monotonic()
            try:
                return reply_from_wire(self._pending.reply.result(max(0.0, min(asked_every, remaining))))
            except FutureTimeout:
                if remaining <= asked_every:
                    raise self._not_ended() from None
            except BrokerUnavailable:
                self._pending = None  # the reply's way was cut; the event goes on
                break
            try:
                status = self.status(min(asked_every, remaining))
                if status.ready:
                    return reply_from_wire(read_reply(status.result))
            except UnknownTicket:
                pass  # its acceptance is still on its way
            except BedsError as error:
                if not error.retryable:
                    raise  # else: nobody answers such questions at the moment; the reply may come all the same
            asked_every = min(asked_every * 2, LONGEST_OWN_WAIT)
        return reply_from_wire(read_reply(self.wait(max(0.1, deadline - time.monotonic())).result))

    def wait(
        self, timeout: float = DEFAULT_TIMEOUT, tell: Callable[[TicketStatus], None] | None = None
    ) -> TicketStatus:
        """Wait for the end, whichever it is.

        Args:
            timeout: seconds.
            tell: hears each status on the way.

        Raises:
            CallTimeout: it has not ended by then.
        """
        deadline = deadline_after(timeout)
        pauses = self.pauses(deadline)
        while True:
            try:
                status = self.status(max(0.1, deadline - time.monotonic()))
                if tell:
                    tell(status)
                if status.ready:
                    return status
            except UnknownTicket:
                if self._pending is None:
                    raise  # else: submitted here, and its acceptance is still on its way
            except BedsError as error:
                if not error.retryable:
                    raise  # else: nobody answers such questions at the moment; the ticket goes on
            time.sleep(next(pauses))

    def cancel(self, timeout: float = DEFAULT_TIMEOUT, *, by: str = "") -> TicketStatus:
        """Ask to cancel it: it never begins, or stops at its next checkpoint. One that has ended stays as it is.

        Args:
            timeout: seconds to wait for the answer.
            by: who asks, as the ticket will tell; this user and host when absent.
        """
        if not isinstance(by, str):
            raise WrongType(f"by takes a name, not {type(by).__name__}", detail={"field": "by"})
        who = by or f"{user_name()}@{socket.gethostname()}"
        return TicketStatus.from_wire(self._client.ask("cancel", {"guid": self.guid, "by": who}, timeout=timeout))

    def pauses(self, deadline: float) -> Iterator[float]:
        """Seconds to wait between two questions, again and again. Raises CallTimeout when `deadline` leaves no time."""
        delay = FIRST_POLL
        while time.monotonic() + delay <= deadline:
            yield delay
            delay = min(delay * 1.5, LONGEST_POLL)
        raise self._not_ended()

    def _not_ended(self) -> CallTimeout:
        """What a wait raises at its deadline."""
        return CallTimeout(
            f"ticket {self.guid} has not ended by the deadline",
            detail={"guid": self.guid},
            hint="it goes on; ask again later",
            event_id=self.event_id,
        )

    def as_async_result(self) -> Any:
        """The same as Celery's `AsyncResult`."""
        from celery.result import AsyncResult

        from beds.broker.app import app

        return AsyncResult(self.guid, app=app)

    def __repr__(self) -> str:
        return f"<Ticket {self.guid}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ticket) and other.guid == self.guid

    def __hash__(self) -> int:
        return hash(self.guid)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.event_id,)


def user_name() -> str:
    """Who runs this process, as a ticket or a dead event will tell."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # of a container, where nobody gave it a name


def _unpickled(event_id: str) -> Ticket:
    from beds.client import default_client

    return default_client().ticket(event_id)


def deadline_after(timeout: float) -> float:
    """Monotonic seconds. Raises OutOfRange."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= 86_400:
        raise OutOfRange("timeout takes seconds, more than 0 and at most a day", detail={"field": "timeout"})
    return time.monotonic() + timeout

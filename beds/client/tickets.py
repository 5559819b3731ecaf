"""The client's ticket: its status, wait and cancel work from any process, over AMQP alone."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from beds.client.deadline import DEFAULT_TIMEOUT
from beds.client.flows import Flows, Handle, Tell
from beds.client.steps import Flow, run
from beds.domain.reply import Reply
from beds.domain.ticket import Progress, TicketStatus

T = TypeVar("T")


class TicketBase:
    """The base of `Ticket` and `AsyncTicket`. RabbitMQ holds the event, so it is executed even if its submitter ends.

    Tickets compare and hash by their guid.
    """

    __slots__ = ("_flows", "_handle")

    def __init__(self, handle: Handle, flows: Flows) -> None:
        self._handle = handle
        self._flows = flows

    @property
    def event_id(self) -> str:
        """`node.env.guid`; the guid alone where only that is known."""
        return self._handle.event_id

    @property
    def guid(self) -> str:
        """The Celery task id: `celery.result.AsyncResult(ticket.guid, app=beds.app)` is the same ticket."""
        return self._handle.guid

    def _cancel(self, by: str, timeout: float) -> Flow[TicketStatus]:
        handle = self._handle
        return self._flows.cancel(handle.guid, by or f"{user_name()}@{socket.gethostname()}", timeout, handle.actor)

    def __repr__(self) -> str:
        return f"<Ticket {self.guid}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TicketBase) and other.guid == self.guid

    def __hash__(self) -> int:
        return hash(self.guid)


class TicketSource(Protocol):
    """Makes tickets: a client."""

    @property
    def flows(self) -> Flows: ...
    @property
    def restore(self) -> Callable[[str], Ticket]:
        """Called with the event id in the process that unpickles a ticket; pickle must be able to import it."""
        ...


class Ticket(TicketBase):
    """A submitted event. It can be pickled: a copy in another process uses that process's default client.

    Args:
        handle: of the ticket.
        client: sends the requests.
    """

    __slots__ = ("_restore",)

    def __init__(self, handle: Handle, client: TicketSource) -> None:
        super().__init__(handle, client.flows)
        self._restore = client.restore

    @property
    def ready(self) -> bool:
        """Whether the ticket has ended. Requests the status unless the reply has arrived."""
        pending = self._handle.pending
        return (pending is not None and pending.reply.done()) or self.status().ready

    @property
    def progress(self) -> Progress | None:
        """The operation's progress, if it reports any. Requests the status."""
        return self.status().progress

    def status(self, timeout: float = DEFAULT_TIMEOUT) -> TicketStatus:
        """Request the ticket's status.

        Raises:
            UnknownTicket, TicketExpired: it was never accepted, or its outcome is no longer kept.
            CallTimeout: no reply within `timeout` seconds.
        """
        return self._run(self._flows.status(self.guid, timeout, self._handle.actor))

    def result(self, timeout: float = DEFAULT_TIMEOUT) -> Reply:
        """Wait for the reply for up to `timeout` seconds.

        Raises:
            CallTimeout: the ticket has not ended; its execution continues.
            TicketRevoked: it was cancelled.
            BedsError: the operation failed.
        """
        return self._run(self._flows.result(self._handle, timeout))

    def wait(self, timeout: float = DEFAULT_TIMEOUT, tell: Tell | None = None) -> TicketStatus:
        """Wait until the ticket ends, in success or failure.

        Args:
            timeout: seconds.
            tell: called with each status that is polled.

        Raises:
            CallTimeout: it has not ended by then.
        """
        return self._run(self._flows.wait(self._handle, timeout, tell))

    def cancel(self, timeout: float = DEFAULT_TIMEOUT, *, by: str = "") -> TicketStatus:
        """Cancel the ticket: it never begins, or stops at its next checkpoint. An ended ticket stays unchanged.

        Args:
            timeout: seconds to wait for the reply.
            by: who cancels, stored in the ticket; this user and host when absent.
        """
        return self._run(self._cancel(by, timeout))

    def _run(self, flow: Flow[T]) -> T:
        return run(flow, self._flows.transport)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._restore, (self.event_id,)


def user_name() -> str:
    """The user that runs this process, for tickets and dead events."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # in a container, the user id may have no name

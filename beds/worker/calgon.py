"""CALGON's tasks on the queue `calgon`: accept, report and cancel the caller's own tickets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery import states

from beds.client.call import check_name
from beds.domain.ticket import TicketState, TicketStatus
from beds.domain.trace import Trace
from beds.errors import MalformedEvent, StoreUnavailable, TicketExpired, UnknownTicket
from beds.services.execution import Redeliver, cancelled
from beds.services.tickets import TicketStore
from beds.wire.reply import encode_error
from beds.wire.routes import JOB_QUEUES, Kind
from beds.worker.app import app
from beds.worker.task import EventTask, register

MAX_TICKETS = 1000
"""Tickets in one acceptance."""


class CalgonTask(EventTask):
    """One request about tickets."""

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        try:
            return _VERBS[self.route.verb](self.app.tickets, trace.user, body)
        except StoreUnavailable as error:
            if self.route.verb != "accept" or "idempotency_key" in body:
                raise
            # An acceptance has no waiting caller, so it is redelivered until it is stored.
            raise Redeliver(error.message) from None


def _accept(store: TicketStore, user: str, body: Mapping[str, Any]) -> Any:
    tickets = body.get("tickets")
    if not isinstance(tickets, list) or not 1 <= len(tickets) <= MAX_TICKETS:
        raise MalformedEvent(f"tickets: takes a list of 1 to {MAX_TICKETS}", detail={"field": "tickets"})
    if "idempotency_key" in body:
        return store.accept_keyed(user, tickets[0], body["idempotency_key"], body.get("digest"))
    store.accept(user, tickets)
    if by := check_name("cancelled_by", body.get("cancelled_by", "")):
        # RabbitMQ refused the events of these tickets. The cancellation travels with the acceptance, because another
        # slot could process two messages in the wrong order.
        for ticket in tickets:
            cancel(store, user, ticket["guid"], f"{user}: {by}")
    return {"accepted": len(tickets)}


def cancel(store: TicketStore, owner: str, guid: Any, by: str) -> TicketStatus:
    """Cancel a user's ticket; one that has not begun ends here.

    Args:
        store: the ticket store.
        owner: the ticket's AMQP user.
        guid: the ticket's.
        by: who cancels; stored in the ticket.
    """
    try:
        status = store.cancel(owner, guid, by)
    except (UnknownTicket, TicketExpired):
        # A job outlives its ticket.
        job = app.jobs.cancel(owner, guid, by) if isinstance(guid, str) else None
        if job is None:
            raise
        return TicketStatus(job.guid, job.event_id, TicketState.PROGRESS, job.rule, job.progress(), cancelled_by=by)
    if (
        (not status.queue or status.queue in JOB_QUEUES)
        and not status.ready
        and app.jobs.cancel(owner, str(guid), by) is not None
    ):
        return store.status(owner, guid)  # its chunks end it
    if status.state is TicketState.PENDING:
        # Not begun: a worker that begins it now finds `cancelled_by` and stops, so the ticket can end here.
        revoked = cancelled(status.guid, status.cancelled_by)
        body = encode_error(status.guid, states.REVOKED, revoked, status.event_id)
        store.end(owner, status.guid, TicketState.REVOKED, body)
        status = store.status(owner, status.guid)
    return status


def actor_of(user: str, body: Mapping[str, Any]) -> str:
    """The AMQP user that RabbitMQ checked, and the name `by` that the client gave. Raises WrongType, TooLong."""
    by = check_name("by", body.get("by", ""))
    return f"{user}: {by}" if by else user


def _job(act: Callable[[str, str], Any]) -> Callable[[TicketStore, str, Mapping[str, Any]], Any]:
    """A verb about one of the user's own jobs."""

    def verb(_store: TicketStore, user: str, body: Mapping[str, Any]) -> Any:
        return act(user, check_name("guid", body.get("guid"), empty=False)).report()

    return verb


_VERBS: Mapping[str, Callable[[TicketStore, str, Mapping[str, Any]], Any]] = {
    "accept": _accept,
    "status": lambda store, user, body: store.status(user, body.get("guid")),
    "cancel": lambda store, user, body: cancel(store, user, body.get("guid"), actor_of(user, body)),
    "pause": _job(lambda user, guid: app.jobs.pause(user, guid)),
    "resume": _job(lambda user, guid: app.jobs.resume(user, guid)),
}


TASKS = register(CalgonTask, Kind.TICKETS)

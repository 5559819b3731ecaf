"""CALGON's tasks on the queue `calgon`: accept, report and cancel the caller's own tickets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery import states

from beds.client.call import check_name
from beds.domain.ticket import TicketState, TicketStatus
from beds.domain.trace import Trace
from beds.errors import MalformedEvent, StoreUnavailable, TicketExpired, UnknownTicket
from beds.services.execution import Postpone, cancelled
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
            return _VERBS[self.route.verb](self.app.tickets, trace, body)
        except StoreUnavailable as error:
            if self.route.verb != "accept" or "idempotency_key" in body:
                raise
            # An acceptance has no waiting caller, so it is redelivered until it is stored.
            raise Postpone(error.message) from None


def _accept(store: TicketStore, trace: Trace, body: Mapping[str, Any]) -> Any:
    user = trace.user
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


def cancel(store: TicketStore, owner: str, guid: Any, by: str, actor: str = "") -> TicketStatus:
    """Cancel a user's ticket; one that has not begun ends here.

    Args:
        store: the ticket store.
        owner: the ticket's AMQP user.
        guid: the ticket's.
        by: who cancels; stored in the ticket.
        actor: whose ticket it must be; anybody's of the owner when empty.
    """
    try:
        status = store.cancel(owner, guid, by, actor)
    except (UnknownTicket, TicketExpired):
        # A job outlives its ticket.
        job = app.jobs.cancel(owner, guid, by) if isinstance(guid, str) and _has_job(owner, guid, actor) else None
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


def _has_job(user: str, guid: str, actor: str) -> bool:
    """True if the user has this job. If an actor is named, the job must be the actor's."""
    job = app.job_store.find(user, guid)
    return job is not None and (not actor or job.actor == actor)


Verb = Callable[[TicketStore, Trace, Mapping[str, Any]], Any]


def _job(act: Callable[[str, str], Any]) -> Verb:
    """A verb about one of the user's own jobs."""

    def verb(_store: TicketStore, trace: Trace, body: Mapping[str, Any]) -> Any:
        guid = check_name("guid", body.get("guid"), empty=False)
        if trace.actor and not _has_job(trace.user, guid, trace.actor):
            raise UnknownTicket(f"{guid[:64]} is no job of {trace.actor}", detail={"guid": guid[:64]})
        return act(trace.user, guid).report()

    return verb


_VERBS: Mapping[str, Verb] = {
    "accept": _accept,
    "status": lambda store, trace, body: store.status(trace.user, body.get("guid"), trace.actor),
    "cancel": lambda store, trace, body: cancel(
        store, trace.user, body.get("guid"), actor_of(trace.user, body), trace.actor
    ),
    "pause": _job(lambda user, guid: app.jobs.pause(user, guid)),
    "resume": _job(lambda user, guid: app.jobs.resume(user, guid)),
}


TASKS = register(CalgonTask, Kind.TICKETS)

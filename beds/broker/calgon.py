"""CALGON's tasks on the queue `calgon`: tickets are accepted, asked after and cancelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Task, states
from celery.exceptions import Reject

from beds.broker.app import app
from beds.broker.backend import as_beds_error, outcome
from beds.broker.crud import arguments_of
from beds.broker.progress import cancelled
from beds.broker.republish import publish_again
from beds.domain.event import CALGON, CALGON_VERBS
from beds.domain.reply import Record
from beds.domain.ticket import TicketState
from beds.errors import BedsError, MalformedEvent, StoreUnavailable
from beds.services.dead import check_ids
from beds.services.tickets import TicketStore
from beds.templates.call import check_name

MAX_TICKETS = 1000
"""Tickets in one acceptance."""


class CalgonTask(Task):
    """One question or order about tickets. A `TicketStatus` hides the outcome in its `repr`, which Celery logs."""

    abstract = True
    typing = False
    throws = (BedsError,)
    verb: str

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with self.app.telemetry.carrying_out(self.request):
            body = arguments_of(kwargs)
            store: TicketStore = self.app.tickets
            try:
                return _VERBS[self.verb](store, body)
            except StoreUnavailable as error:
                if self.verb != "accept" or "idempotency_key" in body:
                    raise
                # Nobody waits for the answer to an acceptance: it must come back until it is noted.
                raise Reject(error, requeue=True) from None
            except SoftTimeLimitExceeded as error:
                raise as_beds_error(error) from None


def _accept(store: TicketStore, body: Mapping[str, Any]) -> Any:
    tickets = body.get("tickets")
    if not isinstance(tickets, list) or not 1 <= len(tickets) <= MAX_TICKETS:
        raise MalformedEvent(f"tickets: takes a list of 1 to {MAX_TICKETS}", detail={"field": "tickets"})
    if "idempotency_key" in body:
        return store.accept_keyed(tickets[0], body["idempotency_key"], body.get("digest"))
    store.accept(tickets)
    return {"accepted": len(tickets)}


def _cancel(store: TicketStore, body: Mapping[str, Any]) -> Any:
    status = store.cancel(body.get("guid"), body.get("by", ""))
    if status.state is TicketState.PENDING:
        # It has not begun, and whoever begins it now sees the wish: it can be ended here.
        revoked = cancelled(status.guid, status.cancelled_by)
        store.end(status.guid, TicketState.REVOKED, outcome(status.guid, states.REVOKED, revoked, status.event_id))
        status = store.status(status.guid)
    return status


def _replay(store: TicketStore, body: Mapping[str, Any]) -> Any:
    by = check_name("by", body.get("by", ""))

    def publish(dead: Record) -> None:
        store.reopen(str(dead.get("guid", "")))
        publish_again(app, dead)

    ids = check_ids(body.get("ids"))
    return {"done": [dead_id for dead_id in ids if app.dead.replay(dead_id, by, publish)]}


def _discard(store: TicketStore, body: Mapping[str, Any]) -> Any:
    by = check_name("by", body.get("by", ""))
    return {"done": [dead_id for dead_id in check_ids(body.get("ids")) if app.dead.discard(dead_id, by)]}


_VERBS: Mapping[str, Callable[[TicketStore, Mapping[str, Any]], Any]] = {
    "accept": _accept,
    "status": lambda store, body: store.status(body.get("guid")),
    "cancel": _cancel,
    "replay": _replay,
    "discard": _discard,
}


def _make(verb: str) -> Task:
    name = f"{CALGON}.{verb}"
    return type(name, (CalgonTask,), {"name": name, "verb": verb, "__module__": __name__})()


TASKS = [app.register_task(_make(verb)) for verb in CALGON_VERBS]

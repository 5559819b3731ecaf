"""What a running operation does with its own ticket: begin it, tell how far it is, and see whether to stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery import current_task
from celery.exceptions import Ignore, Reject

from beds.broker.telemetry import header_of
from beds.domain.identity import uuid7
from beds.domain.ticket import TicketState
from beds.errors import NotFound, StoreUnavailable, TicketRevoked
from beds.services.tickets import ACCEPT_FIELDS
from beds.transport.topology import undelayed

STORE_PAUSE = 0.5
"""Seconds between two attempts while the ticket store is away."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The outcome of a ticket that ended before: an event delivered again is not carried out again."""

    outcome: bytes


def ticket_of(request: Any) -> dict[str, Any] | None:
    """What an event's header says of its ticket; None for an event without one."""
    header = header_of(request)
    if header.get("ticket") is not True:
        return None
    found = {name: value for name, value in header.items() if name in ACCEPT_FIELDS and isinstance(value, str)}
    return found | {"guid": str(request.id), "summary": str(getattr(request, "kwargsrepr", ""))[1:-1][:300]}


def begin(app: Any, request: Any) -> Ended | None:
    """Note that a ticket's event is being carried out. `Ended` when it was before.

    Raises:
        TicketRevoked: somebody cancelled it.
        Ignore: another worker has a copy of the event in hand; Celery acknowledges this one and answers nothing.
        Reject: the ticket store is away for longer than this worker may wait; nothing was done, and RabbitMQ delivers
            the event again.
    """
    ticket = ticket_of(request)
    if ticket is None:
        return None
    again = bool((request.delivery_info or {}).get("redelivered"))
    patience = app.settings.broker(undelayed(str((request.delivery_info or {}).get("routing_key", "")))).soft_limit / 2
    deadline = time.monotonic() + patience
    claim = str(uuid7())  # an answer may be lost with its connection: asked once more, this delivery knows its own
    while True:
        try:
            found = app.tickets.start(ticket, str(request.hostname or ""), claim, again=again)
            break
        except StoreUnavailable as error:
            if time.monotonic() >= deadline:
                raise Reject(error, requeue=True) from None
            time.sleep(STORE_PAUSE)
    if found is None:
        raise Ignore  # the other copy's outcome is the ticket's
    if TicketState(found["state"]).is_final:
        return Ended(str(found.get("outcome", "")).encode())
    _stop_if_cancelled(found)
    return None


def checkpoint(done: int, total: int | None = None, unit: str = "records") -> None:
    """Tell how far the running operation is. Long operations call it between two pieces of work, at a point from which
    it does no harm to stop.

    Args:
        done: how much is done.
        total: how much there is, or None when nobody knows.
        unit: of what.

    Raises:
        TicketRevoked: somebody cancelled the ticket; let it pass.
    """
    ticket = ticket_of(current_task.request)
    if ticket is None:
        return
    try:
        found = current_task.app.tickets.progress(ticket["guid"], done, total, unit)
    except NotFound:  # it was ended from elsewhere
        raise TicketRevoked("the ticket has ended", detail={"guid": ticket["guid"]}) from None
    _stop_if_cancelled(found)


def _stop_if_cancelled(found: Mapping[str, Any]) -> None:
    if by := found.get("cancelled_by"):
        raise cancelled(found["guid"], by)


def cancelled(guid: str, by: str) -> TicketRevoked:
    """How a ticket ends that somebody cancelled."""
    return TicketRevoked(f"cancelled by {by}", detail={"guid": guid, "cancelled_by": by})

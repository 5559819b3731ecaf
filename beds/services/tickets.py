"""The ticket store: msTickets, through the same adapters and stored commands as everybody's data.

A ticket that has ended never changes again: each change is guarded by its state, in the database.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from beds.core.namaste import NamasteCore, Query
from beds.domain.clock import now
from beds.domain.lineage import is_event_id
from beds.domain.reply import Record
from beds.domain.ticket import TicketState, TicketStatus, submitted_at
from beds.errors import (
    DuplicateKey,
    IdempotencyConflict,
    MalformedEvent,
    NotFound,
    TicketExpired,
    UnknownField,
    UnknownTicket,
    WrongType,
)
from beds.services.dispatch import Factory

TEMPLATE, BEGIN, REOPEN = "msTickets", "msTicketsBegin", "msTicketsReopen"
ACCEPT_FIELDS = frozenset({"guid", "event_id", "root_id", "parent_id", "summary", "queue"})
ACCEPTANCE_SECONDS = 10.0
"""From a ticket's making to its acceptance, at most, on machines whose clocks agree."""
GRACE_SECONDS = 1.0
"""How long a question waits for a ticket's acceptance: both came through the same queue, that one earlier, and may be
in the hands of another slot still."""


class TicketStore:
    """Tickets of all nodes.

    Args:
        factory: where the adapter of msTickets comes from.
        ttl: seconds an outcome is kept.
    """

    def __init__(self, factory: Factory, ttl: int) -> None:
        self._factory = factory
        self._ttl = ttl

    def accept(self, tickets: Sequence[Any]) -> None:
        """Note tickets as PENDING. What is known of one already stays as it is.

        Raises:
            MalformedEvent: one of them is not of the contract.
        """
        documents = [self._new(ticket) for ticket in tickets]
        if len(documents) > 1:
            try:
                self._adapter.create_records(documents)
                return
            except DuplicateKey:
                pass  # a worker was faster with one of them: one by one, then
        for document in documents:
            try:
                self._adapter.create_record(document)
            except DuplicateKey:
                continue

    def accept_keyed(self, ticket: Any, key: Any, digest: Any) -> TicketStatus:
        """Note a ticket under an idempotency key, or find the one that has the key.

        Raises:
            IdempotencyConflict: the key belongs to another event.
        """
        for name, value in (("idempotency_key", key), ("digest", digest)):
            if not isinstance(value, str) or not value:
                raise WrongType(f"{name} takes a text", detail={"field": name})
        fields = self._factory.registry[TEMPLATE].fields
        document = self._new(ticket) | {
            "idempotency_key": fields["idempotency_key"].check("idempotency_key", key),
            "digest": fields["digest"].check("digest", digest),
        }
        try:
            self._adapter.create_record(document)
        except DuplicateKey:
            found = self._first("by_key", {"idempotency_key": key})
            if found is None:  # it expired between the two; or the guid is taken, which is the same ticket again
                return self._status(self._first("by_guid", {"guid": document["guid"]}) or document)
            if found.get("digest") != digest:
                raise IdempotencyConflict(
                    "this idempotency key belongs to another event",
                    detail={"field": "idempotency_key", "guid": found["guid"]},
                ) from None
            return self._status(found)
        return self._status(document)

    def start(self, ticket: Mapping[str, Any], worker: str, claim: str, *, again: bool) -> Record | None:
        """Note that a worker begins.

        Args:
            ticket: the event's, as its header tells.
            worker: who begins.
            claim: the same when the same delivery asks once more, since it has not heard the answer.
            again: RabbitMQ delivers the event once more, since whoever had it is gone.

        Returns:
            The ticket as it is then: ended, perhaps, or to be cancelled. None when another worker has another copy of
            the same event in hand.
        """
        guid = str(ticket["guid"])
        changes = {
            "guid": guid,
            "state": str(TicketState.STARTED),
            "started_at": now(),
            "worker": worker,
            "claim": claim,
        }
        adapter = self._adapter if again else self._factory.adapter(BEGIN)
        for _ in range(3):
            try:
                return adapter.update_record(changes).record
            except NotFound:
                found = self._first("by_guid", {"guid": guid})
            if found is None:  # the event was faster than its acceptance
                self.accept([ticket])
            elif TicketState(found["state"]).is_final or found.get("claim") == claim:
                return found
            elif not again and found["state"] != TicketState.PENDING:
                return None
            # else: its acceptance was noted between the two questions
        raise UnknownTicket(f"ticket {guid} cannot be begun", detail={"guid": guid})

    def progress(self, guid: str, done: int, total: int | None, unit: str) -> Record:
        """Note progress. Returns the ticket as it is then. Raises NotFound when it has ended."""
        progress = {"done": done, "total": total, "unit": unit}
        return self._change(guid, {"state": str(TicketState.PROGRESS), "progress": progress})

    def end(self, guid: str, state: TicketState, outcome: bytes, by: str = "", *, dead: bool = False) -> None:
        """Note the outcome; the reply's own JSON text. A ticket that ended before keeps its first outcome.

        Args:
            guid, state, outcome: whose, which, and the reply.
            by: who cancelled it.
            dead: its event lies in msDead, and may be replayed.
        """
        at = now()
        changes: dict[str, Any] = {
            "state": str(state),
            "ended_at": at,
            "expires_at": at + timedelta(seconds=self._ttl),
            "outcome": outcome.decode(),
        }
        try:
            self._change(guid, changes | ({"cancelled_by": by} if by else {}) | ({"dead": True} if dead else {}))
        except NotFound:
            return

    def reopen(self, guid: str) -> None:
        """Let the ticket of a dead event wait again, for its event is published once more. Others stay as they are."""
        try:
            self._factory.adapter(REOPEN).update_record({"guid": guid, "state": str(TicketState.PENDING)})
        except NotFound:
            return

    def cancel(self, guid: Any, by: Any) -> TicketStatus:
        """Ask to cancel: at once when it has not begun, else at its next checkpoint.

        The wish is noted before anything else, so a worker that begins at the same moment sees it.

        Raises:
            UnknownTicket, TicketExpired: there is no such ticket.
        """
        if not isinstance(by, str):
            raise WrongType(f"by takes a name, not {type(by).__name__}", detail={"field": "by"})
        self.status(guid)
        try:
            found = self._change(guid, {"cancelled_by": by[:200] or "unknown"})
        except NotFound:
            return self.status(guid)
        return self._status(found)

    def status(self, guid: Any) -> TicketStatus:
        """What is known.

        Raises:
            UnknownTicket: it was never accepted.
            TicketExpired: its outcome is kept no more.
        """
        made = submitted_at(guid) if isinstance(guid, str) else None
        if made is None:
            raise UnknownTicket("this is no ticket of BEDS", detail={"guid": str(guid)[:64]})
        deadline = time.monotonic() + GRACE_SECONDS
        while True:
            found = self._first("by_guid", {"guid": guid})
            if found is not None:
                return self._status(found)
            if made < datetime.now(UTC) - timedelta(seconds=self._ttl):
                raise TicketExpired(f"the outcome of {guid} is kept no more", detail={"guid": guid, "ttl": self._ttl})
            # An older one would have been noted by now; waiting for it would keep others from their answers.
            if time.monotonic() >= deadline or made < datetime.now(UTC) - timedelta(seconds=ACCEPTANCE_SECONDS):
                raise UnknownTicket(f"ticket {guid} was never accepted", detail={"guid": guid})
            time.sleep(0.05)

    @property
    def _adapter(self) -> NamasteCore:
        return self._factory.adapter(TEMPLATE)

    def _new(self, ticket: Any) -> dict[str, Any]:
        if not isinstance(ticket, Mapping):
            raise MalformedEvent("a ticket is an object", detail={"field": "tickets"})
        if surplus := ticket.keys() - ACCEPT_FIELDS:
            raise UnknownField(f"a ticket does not take {min(surplus)}", detail={"field": min(surplus)})
        document = self._factory.registry[TEMPLATE].check_create(ticket, "ticket")
        if submitted_at(document["guid"]) is None:
            raise MalformedEvent("guid: a ticket's guid is a UUIDv7", detail={"field": "guid"})
        if not is_event_id(document.get("event_id"), document["guid"]):
            raise MalformedEvent("event_id: it is not node.env.guid", detail={"field": "event_id"})
        return document | {"state": str(TicketState.PENDING), "accepted_at": now()}

    def _change(self, guid: str, changes: Mapping[str, Any]) -> Record:
        return self._adapter.update_record({"guid": guid, **changes}).record

    def _first(self, using: str, args: Mapping[str, Any]) -> Record | None:
        page = self._adapter.fetch_records(Query(using, dict(args), 1, ""))
        return page[0] if page else None

    @staticmethod
    def _status(found: Record) -> TicketStatus:
        outcome = found.get("outcome")
        known = {name: found[name] for name in TicketStatus.__slots__ if found.get(name) is not None}
        return TicketStatus.from_wire(known | {"result": json.loads(outcome) if outcome else None})

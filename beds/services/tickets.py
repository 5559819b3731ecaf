"""The ticket store: msTickets, through the same adapters and stored commands as application data.

Each update in the database is conditional on the state, so that an ended ticket never changes again. Two changes are
exceptions: `reopen`, and a keyed submit after a failure that may pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from beds.core.namaste import NamasteCore, Query
from beds.domain.clock import now
from beds.domain.lineage import is_event_id
from beds.domain.reply import Record
from beds.domain.ticket import Progress, TicketState, TicketStatus, submitted_at
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

TEMPLATE, BEGIN, REOPEN, RETRY = "msTickets", "msTicketsBegin", "msTicketsReopen", "msTicketsRetry"
ACCEPT_FIELDS = frozenset({"guid", "event_id", "root_id", "parent_id", "summary", "queue", "actor"})
WAITING_DAYS = 7
"""A waiting ticket is kept for this time. If its event begins later, the ticket is created again."""


class TicketStore:
    """Tickets of all nodes. A ticket's key is its AMQP user and its guid, so no user can read or block another's.

    Within a user, a ticket and its idempotency key belong to the actor on whose behalf it was submitted. A request
    without an actor comes from the application itself, which sees the tickets of all its actors.

    Args:
        factory: where the adapter of msTickets comes from.
        ttl: seconds an outcome is kept.
    """

    def __init__(self, factory: Factory, ttl: int) -> None:
        self._factory = factory
        self._ttl = ttl

    def accept(self, user: str, tickets: Sequence[Any]) -> None:
        """Store a user's tickets as PENDING. Existing tickets stay unchanged.

        Raises:
            MalformedEvent: a ticket breaks the contract.
        """
        documents = [self._new(user, ticket) for ticket in tickets]
        if len(documents) > 1:
            try:
                self._adapter.create_records(documents)
                return
            except DuplicateKey:
                pass  # a worker has stored one of them already; insert one by one
        for document in documents:
            try:
                self._adapter.create_record(document)
            except DuplicateKey:
                continue

    def accept_keyed(self, user: str, ticket: Any, key: Any, digest: Any) -> TicketStatus:
        """Store a ticket under an idempotency key, or return the ticket of this user and actor that has the key.

        A ticket that failed with a retryable error is PENDING again: nothing was written, and its submitter repeats it.

        Raises:
            IdempotencyConflict: the key belongs to another event.
        """
        for name, value in (("idempotency_key", key), ("digest", digest)):
            if not isinstance(value, str) or not value:
                raise WrongType(f"{name} takes a text", detail={"field": name})
        fields = self._factory.registry[TEMPLATE].fields
        document = self._new(user, ticket) | {
            "idempotency_key": fields["idempotency_key"].check("idempotency_key", key),
            "digest": fields["digest"].check("digest", digest),
        }
        try:
            self._adapter.create_record(document)
        except DuplicateKey:
            owner = {"user": user, "actor": document.get("actor")}
            named = {"idempotency_key": key}
            found = self._first("by_key", {**owner, **named})
            if found is None:  # it expired in between, or this ticket itself was stored before
                return self._status(self._first("by_guid", {"user": user, "guid": document["guid"]}) or document)
            if found.get("digest") != digest:
                raise IdempotencyConflict(
                    "this idempotency key belongs to another event",
                    detail={"field": "idempotency_key", "guid": found["guid"]},
                ) from None
            if found.get("retryable") and found["state"] == TicketState.FAILURE:
                found = (
                    self._waiting_again(RETRY, user, found["guid"])
                    or self._first("by_key", {**owner, **named})
                    or found
                )
            return self._status(found)
        return self._status(document)

    def start(self, ticket: Mapping[str, Any], worker: str, claim: str, *, again: bool) -> Record | None:
        """Mark a ticket as started by a worker.

        Args:
            ticket: the event's, from its header.
            worker: the worker's name.
            claim: id of this delivery's claim; a retry of a lost request passes the same one.
            again: whether RabbitMQ redelivered the event, because its former worker is gone.

        Returns:
            The ticket after the update, which may have ended or be marked for cancellation. None when another worker
            executes a copy of the event.
        """
        user, guid = str(ticket["user"]), str(ticket["guid"])
        changes = {
            "user": user,
            "guid": guid,
            "state": str(TicketState.STARTED),
            "started_at": now(),
            "worker": worker,
            "claim": claim,
            "expires_at": self._kept_until(now()),  # a ticket that waited long must not expire during execution
        }
        adapter = self._adapter if again else self._factory.adapter(BEGIN)
        for _ in range(3):
            try:
                return adapter.update_record(changes).record
            except NotFound:
                found = self._first("by_guid", {"user": user, "guid": guid})
            if found is None:  # the event arrived before its acceptance
                self.accept(user, [{name: value for name, value in ticket.items() if name in ACCEPT_FIELDS}])
            elif TicketState(found["state"]).is_final or found.get("claim") == claim:
                return found
            elif not again and found["state"] != TicketState.PENDING:
                return None
            # else: the acceptance was stored between the two queries, so try again
        raise UnknownTicket(f"ticket {guid} cannot be begun", detail={"guid": guid})

    def progress(self, user: str, guid: str, done: int, total: int | None, unit: str) -> Record:
        """Store progress. Returns the updated ticket. Raises NotFound when it has ended."""
        return self.progress_of_job(user, guid, Progress(done, total, unit))

    def progress_of_job(self, user: str, guid: str, progress: Progress) -> Record:
        """Store a job's progress, as `progress`. A ticket of a job that goes on does not expire."""
        changes = {"state": str(TicketState.PROGRESS), "progress": progress.to_wire()}
        return self._change(user, guid, changes | {"expires_at": self._kept_until(now())})

    def end(
        self,
        user: str,
        guid: str,
        state: TicketState,
        outcome: bytes,
        by: str = "",
        *,
        dead: bool = False,
        retryable: bool = False,
    ) -> None:
        """Store the outcome. A ticket that ended before keeps its first outcome.

        Args:
            user, guid: the ticket's key.
            state, outcome: the final state, and the reply's JSON text.
            by: who cancelled it.
            dead: whether its event is in msDead, and may be replayed.
            retryable: whether it failed for a reason that may pass.
        """
        at = now()
        changes: dict[str, Any] = {
            "state": str(state),
            "ended_at": at,
            "expires_at": at + timedelta(seconds=self._ttl),
            "outcome": outcome.decode(),
        }
        flags = {"dead": dead, "retryable": retryable}
        changes |= ({"cancelled_by": by} if by else {}) | {name: True for name, given in flags.items() if given}
        try:
            self._change(user, guid, changes)
        except NotFound:
            return

    def reopen(self, user: str, guid: str) -> None:
        """Set a dead event's ticket to PENDING again, for its replay. Other tickets stay unchanged."""
        self._waiting_again(REOPEN, user, guid)

    def _waiting_again(self, template: str, user: str, guid: str) -> Record | None:
        """Set a ticket to PENDING by one of the two templates for it. None if it is in no state for that."""
        changes = {"state": str(TicketState.PENDING), "expires_at": self._kept_until(now())}
        try:
            return self._factory.adapter(template).update_record({"user": user, "guid": guid, **changes}).record
        except NotFound:
            return None

    def cancel(self, user: str, guid: Any, by: str, actor: str = "") -> TicketStatus:
        """Mark a ticket as cancelled; a running event stops at its next checkpoint.

        `cancelled_by` is stored first, so a worker that begins at the same moment finds it.

        Raises:
            UnknownTicket, TicketExpired: the user, or the actor, has no such ticket.
        """
        self.status(user, guid, actor)
        try:
            found = self._change(user, guid, {"cancelled_by": by[:200] or "unknown"})
        except NotFound:
            return self.status(user, guid)
        return self._status(found)

    def status(self, user: str, guid: Any, actor: str = "") -> TicketStatus:
        """The status of a user's ticket. It does not wait for the acceptance: the client asks again.

        Args:
            user, guid: the ticket's key.
            actor: whose ticket it must be; anybody's of this user when empty.

        Raises:
            UnknownTicket: they have no such ticket, or it was not accepted yet.
            TicketExpired: its outcome is no longer kept.
        """
        made = submitted_at(guid) if isinstance(guid, str) else None
        if made is None:
            raise UnknownTicket("this is no ticket of BEDS", detail={"guid": str(guid)[:64]})
        found = self._first("by_guid", {"user": user, "guid": guid})
        if found is not None and (not actor or found.get("actor") == actor):
            return self._status(found)
        if found is None and made < datetime.now(UTC) - timedelta(seconds=self._ttl):
            raise TicketExpired(f"the outcome of {guid} is kept no more", detail={"guid": guid, "ttl": self._ttl})
        raise UnknownTicket(f"ticket {guid} was never accepted from this user", detail={"guid": guid})

    def owners_of(self, guid: Any) -> list[str]:
        """The users that have a ticket with this guid; more than one if a user reused another's guid."""
        if not isinstance(guid, str):
            return []
        return [str(found["user"]) for found in self._adapter.fetch_records(Query("owner", {"guid": guid}, 10, ""))]

    @property
    def _adapter(self) -> NamasteCore:
        return self._factory.adapter(TEMPLATE)

    def _new(self, user: str, ticket: Any) -> dict[str, Any]:
        if not isinstance(ticket, Mapping):
            raise MalformedEvent("a ticket is an object", detail={"field": "tickets"})
        if surplus := ticket.keys() - ACCEPT_FIELDS:
            raise UnknownField(f"a ticket does not take {min(surplus)}", detail={"field": min(surplus)})
        document = self._factory.registry[TEMPLATE].check_create({**ticket, "user": user}, "ticket")
        if submitted_at(document["guid"]) is None:
            raise MalformedEvent("guid: a ticket's guid is a UUIDv7", detail={"field": "guid"})
        if not is_event_id(document.get("event_id"), document["guid"]):
            raise MalformedEvent("event_id: it is not node.env.guid", detail={"field": "event_id"})
        at = now()
        return document | {
            "state": str(TicketState.PENDING),
            "accepted_at": at,
            "expires_at": self._kept_until(at),
        }

    def _kept_until(self, at: datetime) -> datetime:
        """When a ticket that has not ended expires."""
        return at + max(timedelta(days=WAITING_DAYS), timedelta(seconds=self._ttl))

    def _change(self, user: str, guid: str, changes: Mapping[str, Any]) -> Record:
        return self._adapter.update_record({"user": user, "guid": guid, **changes}).record

    def _first(self, using: str, args: Mapping[str, Any]) -> Record | None:
        page = self._adapter.fetch_records(Query(using, dict(args), 1, ""))
        return page[0] if page else None

    @staticmethod
    def _status(found: Record) -> TicketStatus:
        outcome = found.get("outcome")
        known = {name: found[name] for name in TicketStatus.__slots__ if found.get(name) is not None}
        return TicketStatus.from_wire(known | {"result": json.loads(outcome) if outcome else None})

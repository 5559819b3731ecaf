"""The log of changes: the committed writes of the templates that ask for it, in one order for all readers.

The admin worker appends to it after it has written the audit, one document for each message of audit records. The
documents are numbered without a gap: each takes the number after the last one, and the loser of a race takes the next.
So a reader that has seen one number has missed none before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from beds.adapters.store import harmless
from beds.core.namaste import NamasteCore, Query
from beds.domain.change import (
    FROM_NOW,
    MAX_CHANGES,
    Change,
    Changes,
    Position,
    check_limit,
    parse_position,
    position_text,
)
from beds.domain.clock import now
from beds.domain.event import Operation, Store
from beds.domain.trace import OK
from beds.errors import (
    ChangesExpired,
    DuplicateKey,
    MalformedEvent,
    NotFound,
    StoreDenied,
    StoreUnavailable,
)
from beds.services.dispatch import Factory, template_in

LOG = "msChanges"
WRITES = frozenset(str(operation) for operation in Operation if not operation.is_read)
ATTEMPTS = 100
"""Races for a number that one message may lose."""
EXPIRE_EVERY = 100
"""Documents get an end of life in portions of this size. The newest one never has one, so that numbers go on."""
READ_AT_ONCE = 100
"""Documents that one reply looks through."""
ENTRY_BYTES = 400
"""About the size of a change in a reply, without its key."""

Entry = Mapping[str, Any]


class ChangeLog:
    """Appends and reads changes.

    Args:
        factory: where adapters come from.
        ttl_days: how long changes are kept, at least.
        max_bytes: about the most of one reply.
    """

    def __init__(self, factory: Factory, ttl_days: int, max_bytes: int = 2**19) -> None:
        self._factory = factory
        self._ttl = timedelta(days=ttl_days)
        self._max_bytes = max_bytes

    def append(self, audits: Iterable[Mapping[str, Any]]) -> None:
        """Append the committed writes among some audit records. Those that are there already are passed over.

        Raises:
            StoreUnavailable: MongoDB cannot be reached, or others append too fast.
        """
        entries = {str(entry["id"]): entry for entry in map(_entry, filter(self._is_wanted, audits))}
        for _ in range(ATTEMPTS):
            if not entries:
                return
            newest = self._first("newest")
            number = newest["number"] + 1 if newest else 1
            try:
                self._log.create_record({"number": number, "at": now(), "entries": list(entries.values())})
            except DuplicateKey:  # the number is taken, or an earlier copy of the message was written
                known = self._known(entries)
                entries = {guid: entry for guid, entry in entries.items() if guid not in known}
                continue
            if number % EXPIRE_EVERY == 0:
                self._expire_before(number)
            return
        raise harmless(StoreUnavailable("the log of changes is contended; the message is taken again"))

    def read(self, template: str, after: Position | None, limit: int) -> Changes:
        """The changes of a template after a position, or from the oldest one that is kept.

        Only what a majority of MongoDB's members has is read, since a failover may take back the rest.

        Raises:
            ChangesExpired: the log does not reach back to the position, so changes would be missed.
        """
        documents = self._fetch("after", {"from": after[0] if after else 0}, READ_AT_ONCE)
        _check_reach(after, documents)
        position = after or (0, 0)
        found: list[Change] = []
        size = 0
        for document in documents:
            for index, entry in enumerate(document["entries"], 1):
                here = document["number"], index
                if entry["template"] != template or here <= (after or (0, 0)):
                    continue
                size += ENTRY_BYTES + len(entry["record_id"].encode())
                if found and (len(found) == limit or size > self._max_bytes):
                    return Changes(tuple(found), found[-1].position, complete=False)
                found.append(_change(entry, here))
            position = document["number"], len(document["entries"])
        return Changes(tuple(found), position_text(position), complete=len(documents) < READ_AT_ONCE)

    def end(self) -> Changes:
        """No changes, and the position behind the last one."""
        newest = self._first("end")
        position = (newest["number"], len(newest["entries"])) if newest else (0, 0)
        return Changes((), position_text(position), complete=True)

    def _is_wanted(self, audit: Mapping[str, Any]) -> bool:
        name = audit["template"]
        is_write = audit["outcome"] == OK and audit["operation"] in WRITES
        return is_write and name in self._factory.registry and self._factory.registry[name].keeps_changes

    def _expire_before(self, number: int) -> None:
        try:
            self._log.update_record({"number": number, "expires_at": now() + self._ttl})
        except NotFound:
            return  # all of them have an end already

    def _first(self, using: str) -> Mapping[str, Any] | None:
        return next(iter(self._fetch(using, {}, 1)), None)

    def _known(self, entries: Mapping[str, Entry]) -> set[str]:
        documents = self._fetch("with_entries", {"ids": list(entries)}, len(entries))
        return {str(entry["id"]) for document in documents for entry in document["entries"]}

    def _fetch(self, using: str, args: Mapping[str, Any], limit: int) -> Sequence[Mapping[str, Any]]:
        return self._log.fetch_records(Query(using, dict(args), limit, "")).records

    @property
    def _log(self) -> NamasteCore:
        return self._factory.adapter(LOG)


def read_changes(log: ChangeLog, factory: Factory, store: Store, body: Mapping[str, Any]) -> Changes:
    """The reply to a client that asks for the changes of a template.

    Args:
        log: of changes.
        factory: knows the templates.
        store: of the queue that the event came through: who may read a template's records may read its changes.
        body: `template`, `after` and `limit`.

    Raises:
        MalformedEvent, UnknownTemplate: there is no such template in this store.
        StoreDenied: the template is BEDS's own.
        UnknownOperation: the template keeps no changes.
        InvalidCursor, ChangesExpired, OutOfRange: `after` or `limit` is wrong.
    """
    if surplus := body.keys() - {"template", "after", "limit"}:
        raise MalformedEvent(f"changes does not take {min(surplus)}", detail={"field": min(surplus)})
    template = template_in(factory.registry, body.get("template"), store, Operation.FETCH)
    if template.system:
        raise StoreDenied(f"template {template.name} belongs to BEDS itself")
    template.require_changes()
    after, limit = body.get("after", ""), check_limit(body.get("limit", MAX_CHANGES))
    return log.end() if after == FROM_NOW else log.read(template.name, parse_position(after), limit)


def _check_reach(after: Position | None, documents: Sequence[Mapping[str, Any]]) -> None:
    """Raises ChangesExpired: the document of a position, with which reading begins, is not there, or one after it."""
    numbers = [document["number"] for document in documents]
    first = numbers[0] if numbers else 0
    reaches = after is None or first == after[0] or (after[0] == 0 and first == 1)
    if not reaches or numbers != list(range(first, first + len(numbers))):
        raise ChangesExpired(
            "the log does not reach back to this position: read the records themselves, and follow the changes from $",
            detail={"field": "after"},
        )


def _entry(audit: Mapping[str, Any]) -> dict[str, Any]:
    return {
        # Without node and environment, which the client chooses: a copy of the event could name others.
        "id": audit["event_id"].rpartition(".")[2],
        "template": audit["template"],
        "operation": audit["operation"],
        "record_id": audit.get("record_id", ""),
        "affected": audit.get("affected", 0),
        "event_id": audit.get("parent_id", ""),
        "at": audit["at"],
    }


def _change(entry: Entry, position: Position) -> Change:
    named = ("template", "operation", "record_id", "affected", "event_id", "at")
    return Change(position_text(position), *(entry[name] for name in named))

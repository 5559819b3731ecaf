"""The admin worker's record store: writes records to msLogs, msLineage, msAudit and msMetrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from beds.domain.clock import now
from beds.domain.event import RecordKind
from beds.errors import DeadEvent, InvalidPayload, MalformedEvent
from beds.services.dispatch import Factory

TEMPLATES: Mapping[RecordKind, str] = {
    RecordKind.LOG: "msLogs",
    RecordKind.LINEAGE: "msLineage",
    RecordKind.AUDIT: "msAudit",
    RecordKind.METRIC: "msMetrics",
}
AHEAD_SECONDS = 60.0
"""How far in the future a record's time may lie; a later time is set back to this limit."""
MAX_RECORDS = 5000
"""Records in one message."""


class RecordStore:
    """Writes records. A redelivered record is stored once, because its id is its key.

    Args:
        factory: where adapters come from.
        ttl_days: how long logs, lineage and audit are kept.
    """

    def __init__(self, factory: Factory, ttl_days: int) -> None:
        self._factory = factory
        self._ttl = timedelta(days=ttl_days)

    def write(
        self, kind: RecordKind, common: Any, records: Any
    ) -> tuple[list[dict[str, Any]], MalformedEvent | InvalidPayload | None]:
        """Write the records of one message.

        Args:
            kind: the kind of the records.
            common: the fields that all of them share.
            records: plain JSON objects.

        Returns:
            The records as they were written, and the error of one that breaks the contract and was not.

        Raises:
            MalformedEvent: the message is not one of records.
            StoreUnavailable: MongoDB cannot be reached.
        """
        if not isinstance(common, Mapping) or not isinstance(records, list) or not 0 < len(records) <= MAX_RECORDS:
            raise MalformedEvent(f"records: takes 1 to {MAX_RECORDS} objects, and what they have in common")
        template = self._factory.registry[TEMPLATES[kind]]
        expires = {} if kind is RecordKind.METRIC else {"expires_at": now() + self._ttl}
        good: list[dict[str, Any]] = []
        bad: MalformedEvent | InvalidPayload | None = None
        for record in records:
            try:
                good.append(template.check_create(_document(kind, common, record) | expires))
            except (MalformedEvent, InvalidPayload) as error:
                bad = error
        if good:
            self._factory.adapter(template.name).create_records(good)
        return good, bad


def _document(kind: RecordKind, common: Mapping[str, Any], record: Any) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise MalformedEvent("a record is an object", detail={"field": "records"})
    found = _placed(kind, common, record) | {"at": _instant(record.get("at"))}
    if kind is RecordKind.LINEAGE:
        # The sender chooses the event's id, so the user is part of the key: no user can overwrite another's record.
        found["id"] = f"{found.get('event_id')} {found.get('user', '')}"
        if found.get("outcome") == DeadEvent.code:
            found["id"] += " dead"  # a replayed event has a second record, of its execution
    return found


def _placed(kind: RecordKind, common: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The record merged with the common fields; a metric has them in its `meta`."""
    if kind is RecordKind.METRIC and isinstance(meta := record.get("meta"), Mapping):
        return {**record, "meta": {**common, **meta}}
    return {**common, **record}


def _instant(seconds: Any) -> datetime:
    """Convert Unix seconds from the wire to a datetime, cut to the millisecond that MongoDB stores."""
    try:
        # A clock that runs ahead must not sort its records after all later ones.
        return datetime.fromtimestamp(int(min(seconds, time.time() + AHEAD_SECONDS) * 1000) / 1000, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        raise MalformedEvent("at: takes Unix seconds", detail={"field": "at"}) from None

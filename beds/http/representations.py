"""Replies and tickets in plain JSON, as responses have them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from beds.domain.ticket import TicketStatus
from beds.errors import MalformedEvent
from beds.http.problems import body_of, problem_of
from beds.http.values import plain_record
from beds.wire.reply import error_of


def page_of(wire: Any) -> dict[str, Any]:
    """The page in a worker's reply. Raises MalformedEvent."""
    if not (isinstance(wire, dict) and wire.get("kind") == "page" and isinstance(wire.get("records"), list)):
        raise MalformedEvent("the worker's reply to a fetch is no page")
    return wire


def page_json(page: Mapping[str, Any]) -> dict[str, Any]:
    """A page of a fetch."""
    cursor = page.get("cursor") or None
    return {
        "records": [plain_record(record) for record in page["records"]],
        "cursor": cursor,
        "complete": cursor is None and page.get("complete") is True,
    }


def write_json(wire: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's reply to a write, in plain JSON."""
    return {
        "record_id": str(wire.get("record_id", "")),
        "affected": wire.get("affected", 0),
        "record": plain_record(wire.get("record") or {}),
    }


def result_json(wire: Any) -> Any:
    """A worker's reply of any kind, in plain JSON."""
    match wire:
        case {"kind": "page"}:
            return page_json(page_of(wire))
        case {"kind": "response"}:
            return write_json(wire)
        case dict():
            return plain_record(wire)
    return wire


def ticket_json(status: TicketStatus) -> dict[str, Any]:
    """A ticket's status in plain JSON; its result has an address of its own."""
    found: dict[str, Any] = {
        "ticket": status.guid,
        "event_id": status.event_id,
        "state": str(status.state),
        "summary": status.summary,
        "ready": status.ready,
        "progress": status.progress.to_wire() if status.progress and not status.ready else None,
        "accepted_at": instant(status.accepted_at),
        "started_at": instant(status.started_at),
        "ended_at": instant(status.ended_at),
        "cancelled_by": status.cancelled_by or None,
        "error": None,
    }
    result = status.result.get("result") if isinstance(status.result, Mapping) else None
    if (error := error_of(result)) is not None:
        problem, event_id = problem_of(error)
        found["error"] = body_of(problem, event_id or status.event_id)
    return found


def instant(at: datetime | None) -> str | None:
    """A time in RFC 3339."""
    return at.isoformat().replace("+00:00", "Z") if at else None

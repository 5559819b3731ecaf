"""Who changed what: the audit record of a write, with values masked where the template says so."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

from beds.domain.event import Operation
from beds.domain.reply import Reply, Response
from beds.domain.trace import Trace
from beds.templates.template import Template
from beds.transport import codec

MASK = "•••"
VALUE_CHARACTERS = 1_000
"""What is kept of one value."""


def audit_record(
    trace: Trace, operation: Operation, template: Template, outcome: str, reply: Reply | None, who: Mapping[str, Any]
) -> dict[str, Any]:
    """One audit record, as plain JSON.

    Its id follows from the event and its outcome, so that an event delivered again is not audited twice.

    Args:
        trace: the write.
        operation, template: what it was.
        outcome: `ok`, or the error's code.
        reply: what was answered, when it went well.
        who: `user`, `actor` and where.
    """
    event = trace.lineage
    asked = hashlib.sha256(codec.dumps(trace.body)).hexdigest()
    # Whoever uses a guid twice, for two writes, has two audits.
    guid = str(uuid.uuid5(uuid.UUID(event.guid), f"audit {template.name} {operation} {outcome} {asked}"))
    record_id, fields, values = described(operation, template, trace.body)
    if isinstance(reply, Response) and reply.record_id and not _is_sensitive(template, template.key):
        record_id = reply.record_id
    return {
        "event_id": f"{event.node}.{event.env}.{guid}",
        "parent_id": event.event_id,
        "root_id": event.root_id,
        "depth": event.depth + 1,
        "at": trace.at,
        "template": template.name,
        "operation": str(operation),
        "record_id": record_id[:VALUE_CHARACTERS],
        "fields": fields,
        "values": codec.dumps_plain(values).decode(),
        "affected": reply.affected if isinstance(reply, Response) else 0,
        "outcome": outcome,
        **who,
    }


def described(operation: Operation, template: Template, body: Mapping[str, Any]) -> tuple[str, list[str], Any]:
    """What a write asks for: the record's key, the fields that were given, and their values as the codec writes them,
    masked where the template says so."""
    if operation is Operation.DELETE:
        return _shown(template, template.key, body.get("record_id")), [template.key], {}
    if operation is Operation.CREATE_MANY:
        rows = body.get("payloads")
        known = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        # A bulk load's values would double the data; how many there were, and which fields, tells what was done.
        return "", [name for name in template.fields if any(name in row for row in known)], {"records": len(known)}
    payload = body.get("payload")
    given = payload if isinstance(payload, Mapping) else {}
    fields = [name for name in template.fields if name in given]
    values = {name: _masked(template, name, given[name]) for name in fields}
    return _shown(template, template.key, given.get(template.key)), fields, values


def _is_sensitive(template: Template, name: str) -> bool:
    return template.fields[name].sensitive


def _shown(template: Template, name: str, value: Any) -> str:
    if value is None:
        return ""
    return MASK if _is_sensitive(template, name) else str(value)


def _masked(template: Template, name: str, value: Any) -> Any:
    if _is_sensitive(template, name):
        return MASK
    encoded = codec.encode(value)
    text = codec.dumps_plain(encoded)
    return encoded if len(text) <= VALUE_CHARACTERS else f"… ({len(text):,} bytes)"

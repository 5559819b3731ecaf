"""The audit record of a write: who changed which fields, with sensitive values masked."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from beds.domain.event import Operation
from beds.domain.job import Job, Lane, Tally
from beds.domain.reply import Reply, Response
from beds.domain.trace import OK, Trace
from beds.templates.template import Template
from beds.wire import codec

MASK = "•••"
VALUE_CHARACTERS = 1_000
"""Characters kept of one value."""


def audit_record(
    trace: Trace, operation: Operation, template: Template, outcome: str, reply: Reply | None, who: Mapping[str, Any]
) -> dict[str, Any]:
    """One audit record, as plain JSON.

    Its id follows from the event and its outcome, so that an event delivered again is not audited twice.

    Args:
        trace: of the write.
        operation, template: the write's.
        outcome: `ok`, or the error's code.
        reply: the result on success.
        who: `user`, `actor`, `worker` and `redelivered`.
    """
    event = trace.lineage
    asked = codec.digest(trace.body)
    # One guid may be used by two users or for two writes; each write gets its own audit record.
    guid = str(uuid.uuid5(uuid.UUID(event.guid), f"audit {trace.user} {template.name} {operation} {outcome} {asked}"))
    record_id, fields, values = described(operation, template, trace.body)
    if isinstance(reply, Response) and reply.record_id and not template.has_sensitive_key:
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


def chunk_record(job: Job, lane: Lane, tally: Tally, trace: Trace) -> dict[str, Any]:
    """The audit record of a chunk of a job: the range, and what became of its records, without their values."""
    event = trace.lineage
    guid = str(uuid.uuid5(uuid.UUID(event.guid), f"audit {job.user} {lane.lane} {lane.n}"))
    return {
        # Of the job's node: the chunk may be executed again on another one.
        "event_id": f"{job.event_id.rpartition('.')[0]}.{guid}",
        "parent_id": event.event_id,
        "root_id": event.root_id,
        "depth": event.depth + 1,
        "at": trace.at,
        "template": job.rule,
        "operation": str(job.kind),
        "record_id": "",
        "fields": [],
        "values": codec.dumps_plain({"job": job.guid, "lane": lane.lane, "n": lane.n, **tally.to_document()}).decode(),
        "affected": tally.moved,
        "outcome": OK,
        "user": job.user,
        "actor": job.actor,
        "worker": "",
        "redelivered": trace.redelivered,
    }


def without_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record that is too large for a message, reduced to who changed which record."""
    return {**record, "values": "{}", "fields": []}


def described(operation: Operation, template: Template, body: Mapping[str, Any]) -> tuple[str, list[str], Any]:
    """The key, the given fields and the encoded values of a write; sensitive values are masked."""
    if operation is Operation.DELETE:
        return _shown_key(template, _key_given(template, body.get("record_id"))), list(template.keys), {}
    if operation is Operation.CREATE_MANY:
        rows = body.get("payloads")
        known = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        # The values of a bulk load would double the stored data, so only the fields and the count are kept.
        return "", [name for name in template.fields if any(name in row for row in known)], {"records": len(known)}
    payload = body.get("payload")
    given = payload if isinstance(payload, Mapping) else {}
    fields = [name for name in template.fields if name in given]
    values = {name: _masked(template, name, given[name]) for name in fields}
    return _shown_key(template, given), fields, values


def _is_sensitive(template: Template, name: str) -> bool:
    return template.fields[name].sensitive


def _shown_key(template: Template, given: Mapping[str, Any]) -> str:
    text = template.id_of(given)
    return MASK if text and template.has_sensitive_key else text


def _key_given(template: Template, record_id: Any) -> Mapping[str, Any]:
    """The parts of a key by name, not yet validated."""
    if len(template.keys) == 1:
        return {template.keys[0]: record_id}
    if isinstance(record_id, Mapping):
        return record_id
    return dict(zip(template.keys, record_id, strict=False)) if isinstance(record_id, (list, tuple)) else {}


def _masked(template: Template, name: str, value: Any) -> Any:
    if _is_sensitive(template, name):
        return MASK
    encoded = codec.encode(value)
    text = codec.dumps_plain(encoded)
    return encoded if len(text) <= VALUE_CHARACTERS else f"… ({len(text):,} bytes)"

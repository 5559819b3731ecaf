"""One event's way through a broker: check it again, find the adapter, call the verb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from beds.core.namaste import NamasteCore, Query
from beds.domain.event import Operation, Store
from beds.domain.reply import Reply
from beds.errors import MalformedEvent, StoreDenied, UnknownTemplate
from beds.templates.registry import TemplateRegistry

_BODY_KEYS: Mapping[Operation, frozenset[str]] = {
    Operation.CREATE: frozenset({"payload"}),
    Operation.CREATE_MANY: frozenset({"payloads"}),
    Operation.UPDATE: frozenset({"payload"}),
    Operation.DELETE: frozenset({"record_id"}),
    Operation.FETCH: frozenset({"using", "args", "limit", "cursor"}),
}


def _name(using: Any) -> str:
    return using if isinstance(using, str) else ""


class Factory(Protocol):
    """What makes adapters; see `AdapterFactory`."""

    registry: TemplateRegistry

    def adapter(self, template_name: str) -> NamasteCore: ...


def carry_out(factory: Factory, store: Store, operation: Operation, template: Any, body: Mapping[str, Any]) -> Reply:
    """Carry out one operation.

    The data is judged again: a client in another language, or with an older template, may have sent anything.

    Args:
        factory: where adapters come from.
        store: the store of the queue that the event came through.
        operation: the verb.
        template: the template's name, as it came over the wire.
        body: the verb's arguments, decoded.

    Raises:
        BedsError: one of its subclasses; nothing was written.
    """
    if not isinstance(template, str):
        raise MalformedEvent(f"template takes a name, not {type(template).__name__}", detail={"field": "template"})
    if surplus := body.keys() - _BODY_KEYS[operation]:
        raise MalformedEvent(f"{operation} does not take {', '.join(sorted(surplus))}", detail={"field": min(surplus)})
    try:
        found = factory.registry[template]
    except UnknownTemplate as error:
        error.hint = "this worker read its templates when it started: restart the workers, all of them"
        raise
    if found.store is not store:
        raise MalformedEvent(
            f"template {template} lives in the {found.store} store, the event came to {store}",
            hint=f"publish it with the routing key {found.store}.{'read' if operation.is_read else 'write'}",
        )
    if operation is not Operation.FETCH:
        found.object_for(operation)
    if found.system and (operation is not Operation.FETCH or found.fetch_spec(_name(body.get("using"))).internal):
        raise StoreDenied(f"template {template} belongs to BEDS itself", hint="see docs/reference/tickets.md")
    match operation:
        case Operation.CREATE:
            payload = found.check_create(body.get("payload"))
            return factory.adapter(template).create_record(payload)
        case Operation.CREATE_MANY:
            payloads = found.check_create_many(body.get("payloads"))
            return factory.adapter(template).create_records(payloads)
        case Operation.UPDATE:
            payload = found.check_update(body.get("payload"))
            return factory.adapter(template).update_record(payload)
        case Operation.DELETE:
            record_id = found.check_record_id(body.get("record_id"))
            return factory.adapter(template).delete_record(record_id)
        case Operation.FETCH:
            query = Query(
                *found.check_fetch(body.get("using", ""), body.get("args"), body.get("limit"), body.get("cursor", ""))
            )
            return factory.adapter(template).fetch_records(query)

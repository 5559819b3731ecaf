"""Executes one operation: validates it again, finds the adapter, calls the verb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from beds.adapters.bound import BoundAdapter
from beds.core.namaste import NamasteCore, Query
from beds.domain.description import Description
from beds.domain.event import Operation, Store
from beds.domain.reply import Reply
from beds.errors import MalformedEvent, StoreDenied, UnknownTemplate
from beds.templates.registry import TemplateRegistry
from beds.templates.template import EXPECTED_VERSION, Template

_BODY_KEYS: Mapping[Operation, frozenset[str]] = {
    Operation.CREATE: frozenset({"payload"}),
    Operation.CREATE_MANY: frozenset({"payloads"}),
    Operation.UPDATE: frozenset({"payload"}),
    Operation.DELETE: frozenset({"record_id"}),
    Operation.FETCH: frozenset({"using", "args", "limit", "cursor"}),
}
"""The arguments of each operation, beside `expected_version`: where it does not belong, it has an error of its own."""
_OWN_RECORDS = "read them with `beds tickets`, `lineage`, `logs`, `audit` and `dead`"


def _name(using: Any) -> str:
    return using if isinstance(using, str) else ""


def _own_records(
    template: Template, operation: Operation, body: Mapping[str, Any], user: str, operator: bool
) -> Mapping[str, Any]:
    """The body of a fetch of BEDS's own records, limited to the user's own. Raises StoreDenied."""
    spec = template.fetch_spec(_name(body.get("using"))) if operation is Operation.FETCH else None
    if spec is None or spec.internal:
        raise StoreDenied(f"template {template.name} belongs to BEDS itself", hint=_OWN_RECORDS)
    if spec.owner is None and not operator:
        raise StoreDenied(
            f"{template.name} using {_name(body.get('using'))} is for operators: it reads the records of all users",
            hint="set [amqp] operator_url to a user that may use the key operator",
        )
    if spec.owner is None:
        return body
    args = body.get("args")
    given = args if isinstance(args, Mapping) else {}
    return {**body, "args": {**given, spec.owner: given.get(spec.owner) if operator else user}}


class Factory(Protocol):
    """Makes adapters; see `AdapterFactory`."""

    registry: TemplateRegistry

    def adapter(self, template_name: str) -> NamasteCore: ...


class Describing(Protocol):
    """A factory whose adapters know the signatures of their objects; see `AdapterFactory`."""

    registry: TemplateRegistry

    def adapter(self, template_name: str) -> BoundAdapter: ...


def describe(factory: Describing, store: Store, body: Mapping[str, Any]) -> Description:
    """What the objects of a template take.

    Args:
        factory: where adapters come from.
        store: the store of the queue that the event came through.
        body: its one argument, `template`.

    Raises:
        MalformedEvent, UnknownTemplate: there is no such template in this store.
        StoreDenied: the template is BEDS's own.
    """
    if surplus := body.keys() - {"template"}:
        raise MalformedEvent(f"describe does not take {', '.join(sorted(surplus))}", detail={"field": min(surplus)})
    found = template_in(factory.registry, body.get("template"), store, Operation.FETCH)
    if found.system:
        raise StoreDenied(f"template {found.name} belongs to BEDS itself", hint=_OWN_RECORDS)
    return factory.adapter(found.name).describe()


def template_in(registry: TemplateRegistry, name: Any, store: Store, operation: Operation) -> Template:
    """The template that an event names, if it belongs to the queue. Raises MalformedEvent, UnknownTemplate."""
    if not isinstance(name, str):
        raise MalformedEvent(f"template takes a name, not {type(name).__name__}", detail={"field": "template"})
    try:
        found = registry[name]
    except UnknownTemplate as error:
        error.hint = "this worker read its templates when it started: restart the workers, all of them"
        raise
    if found.store is not store:
        raise MalformedEvent(
            f"template {name} lives in the {found.store} store, the event came to {store}",
            hint=f"publish it with the routing key {found.store}.{'read' if operation.is_read else 'write'}",
        )
    return found


def execute(
    factory: Factory,
    store: Store,
    operation: Operation,
    template: Any,
    body: Mapping[str, Any],
    *,
    user: str = "",
    operator: bool = False,
) -> Reply:
    """Execute one operation.

    The data is validated again, because a client in another language or with an older template may send anything.

    Args:
        factory: where adapters come from.
        store: the store of the queue that the event came through.
        operation: the verb.
        template: the template's name, as it came over the wire.
        body: the verb's arguments, decoded.
        user: the AMQP user; it sees only its own of BEDS's records.
        operator: whether the event came through the operator's queue, whose users see all records.

    Raises:
        BedsError: one of its subclasses; nothing was written.
    """
    if surplus := body.keys() - _BODY_KEYS[operation] - {EXPECTED_VERSION}:
        raise MalformedEvent(f"{operation} does not take {', '.join(sorted(surplus))}", detail={"field": min(surplus)})
    found = template_in(factory.registry, template, store, operation)
    if operation is not Operation.FETCH:
        found.object_for(operation)
    if found.system:
        body = _own_records(found, operation, body, user, operator)
    expected_version = found.check_expected_version(operation, body.get(EXPECTED_VERSION))
    match operation:
        case Operation.CREATE:
            payload = found.check_create(body.get("payload"))
            return factory.adapter(found.name).create_record(payload)
        case Operation.CREATE_MANY:
            payloads = found.check_create_many(body.get("payloads"))
            return factory.adapter(found.name).create_records(payloads)
        case Operation.UPDATE:
            payload = found.check_update(body.get("payload"))
            return factory.adapter(found.name).update_record(payload, expected_version)
        case Operation.DELETE:
            record_id = found.check_record_id(body.get("record_id"))
            return factory.adapter(found.name).delete_record(record_id, expected_version)
        case Operation.FETCH:
            query = Query(
                *found.check_fetch(body.get("using", ""), body.get("args"), body.get("limit"), body.get("cursor", ""))
            )
            return factory.adapter(found.name).fetch_records(query)

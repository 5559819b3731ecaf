"""The operator's tasks on the queue `operator`: tickets, dead events and records of all users.

RabbitMQ's permissions restrict who may publish there. Each order is audited under its AMQP user before it takes effect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery import states

from beds.domain.event import Operation
from beds.domain.reply import Record
from beds.domain.ticket import TicketState
from beds.domain.trace import OK, Trace
from beds.errors import BedsError, BrokerUnavailable, MalformedEvent, UnknownTicket
from beds.services.dead import check_ids
from beds.services.dispatch import execute
from beds.services.members import all_members
from beds.wire.reply import encode_error
from beds.wire.routes import Kind
from beds.worker.app import app
from beds.worker.calgon import actor_of, cancel
from beds.worker.republish import check_replay, publish_again
from beds.worker.task import EventTask, register


class OperatorTask(EventTask):
    """One request of an operator."""

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        return _VERBS[self.route.verb](Order(trace, self.route.verb, body))


@dataclass(frozen=True)
class Order:
    """One operator's request.

    Args:
        trace: of its event, with the operator's AMQP user.
        verb, body: the verb, and its arguments.
    """

    trace: Trace
    verb: str
    body: Mapping[str, Any]

    @property
    def by(self) -> str:
        """The operator's name, as records store it."""
        return actor_of(self.trace.user, self.body)

    def audit(self, template: str, record_id: str) -> None:
        """Write the audit record before the order takes effect, so that no effect is without an audit."""
        own = self.trace.lineage.child(app.settings.node.name, app.settings.node.environment)
        record = {
            "event_id": own.event_id, "parent_id": own.parent_id, "root_id": own.root_id, "depth": own.depth,
            "at": time.time(), "template": template, "operation": self.verb, "record_id": record_id, "fields": [],
            "values": "{}", "affected": 0, "outcome": OK, "user": self.trace.user, "actor": self.by[:200],
        }  # fmt: skip
        app.telemetry.confirm(app.telemetry.audits.send(record))


def _fetch(order: Order) -> Any:
    template = order.body.get("template")
    found = app.registry[template] if isinstance(template, str) else None
    if found is None or not found.system:
        raise MalformedEvent("template: an operator asks for BEDS's own records here", detail={"field": "template"})
    question = {name: value for name, value in order.body.items() if name != "template"}
    return execute(app.factory, found.store, Operation.FETCH, template, question, operator=True)


def _owner(body: Mapping[str, Any]) -> tuple[str, Any]:
    """The user and guid of the ticket; the order must name the user when several users have this guid."""
    guid, user = body.get("guid"), body.get("user")
    owners = app.tickets.owners_of(guid) or app.job_store.owners_of(str(guid))
    if user in owners:
        return str(user), guid
    if not owners:
        app.tickets.status("", guid)  # raises the precise error
        raise UnknownTicket(f"ticket {guid} was never accepted", detail={"guid": str(guid)[:64]})
    if len(owners) > 1:
        raise MalformedEvent(
            f"ticket {guid} is one of each of several users: {', '.join(owners)}",
            detail={"field": "user", "guid": str(guid)[:64]},
            hint="name one of them as `user`, beside the guid",
        )
    return owners[0], guid


def _status(order: Order) -> Any:
    return app.tickets.status(*_owner(order.body))


def _cancel(order: Order) -> Any:
    owner, guid = _owner(order.body)
    order.audit("msTickets", str(guid))
    return cancel(app.tickets, owner, guid, order.by)


def _job(order: Order) -> Any:
    guid, user = order.body.get("guid"), order.body.get("user")
    owners = app.job_store.owners_of(str(guid))
    if user is not None and user not in owners:
        owners = []
    if len(owners) != 1:
        raise UnknownTicket(f"{str(guid)[:64]} is no job, or one of several users", detail={"guid": str(guid)[:64]})
    order.audit("msJobs", str(guid))
    act = app.jobs.pause if order.verb == "pause" else app.jobs.resume
    return act(owners[0], str(guid)).report()


def _replay(order: Order) -> Any:
    def publish(dead: Record) -> None:
        check_replay(dead)
        order.audit("msDead", str(dead["dead_id"]))
        user, guid = str(dead["user"]), str(dead.get("guid", ""))
        app.tickets.reopen(user, guid)
        try:
            publish_again(app, dead)
        except BedsError as error:
            body = encode_error(guid, states.FAILURE, error, str(dead.get("event_id", "")))
            app.tickets.end(user, guid, TicketState.FAILURE, body, dead=True)
            raise

    return _each(order, lambda dead_id: app.dead.replay(dead_id, order.by, publish))


def _discard(order: Order) -> Any:
    def discard(dead_id: str) -> bool:
        order.audit("msDead", dead_id)
        return app.dead.discard(dead_id, order.by)

    return _each(order, discard)


def _each(order: Order, act: Callable[[str], bool]) -> Any:
    """Call `act` with the id of each dead event. A failure is collected, and the others are still processed."""
    done: list[str] = []
    failed: dict[str, str] = {}
    for dead_id in check_ids(order.body.get("ids")):
        try:
            if act(dead_id):
                done.append(dead_id)
        except (BrokerUnavailable, MalformedEvent) as error:
            failed[dead_id] = error.message
    return {"done": done, "failed": failed}


def _members(order: Order) -> Any:
    return [found.to_wire() for found in all_members(app.settings, app.members_factory)]


_VERBS: Mapping[str, Callable[[Order], Any]] = {
    "fetch": _fetch,
    "status": _status,
    "cancel": _cancel,
    "replay": _replay,
    "discard": _discard,
    "pause": _job,
    "resume": _job,
    "members": _members,
}


TASKS = register(OperatorTask, Kind.ORDER)

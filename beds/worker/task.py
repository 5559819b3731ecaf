"""The base of all event tasks: turns a Celery request into a delivery and passes it to `services.execution`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject

from beds.domain.reply import Page, Response
from beds.domain.trace import Trace
from beds.errors import BedsError, MalformedEvent
from beds.services.execution import Abandon, Attempt, Delivery, InOtherHands, Redeliver
from beds.transport.topology import undelayed
from beds.wire.header import HEADER, EventHeader
from beds.wire.routes import ROUTES, Kind, Route
from beds.worker.app import app


class EventTask(Task):
    """One task of the table of routes. A failed event raises its error, so that monitors show it as failed."""

    abstract = True
    typing = False  # the arguments are validated here, with a precise error
    throws = (BedsError,)  # expected errors: replied, and logged without a traceback
    route: Route

    def run(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            raise MalformedEvent("an operation takes named arguments only", detail={"field": "args"})
        attempt = attempt_of(self.app, self.request, kwargs)
        try:
            ending = self.app.execution.run(attempt, self.act)
        except Redeliver as doubt:
            raise Reject(doubt, requeue=not isinstance(doubt, Abandon)) from None
        except InOtherHands:
            raise Ignore from None
        if ending.cause is not None:
            raise ending.cause
        return shown(ending.value)

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        """Execute the event.

        Args:
            trace: of the event, with its AMQP user.
            body: its arguments, decoded.
        """
        raise NotImplementedError


def register(base: type[EventTask], kind: Kind) -> list[Task]:
    """One task of the class for each route of the kind."""
    return [
        app.register_task(
            type(route.task, (base,), {"name": route.task, "route": route, "__module__": base.__module__})()
        )
        for route in ROUTES.values()
        if route.kind is kind
    ]


def shown(value: Any) -> str:
    """The result as Celery's log and monitors show it: its size, and no values."""
    if isinstance(value, Page):
        return f"{len(value)} records"
    if isinstance(value, Response):
        return f"{value.affected} affected"
    return type(value).__name__


def header_of(request: Any) -> EventHeader:
    """The header `beds` of an event; missing fields get defaults."""
    return EventHeader.read(getattr(request, HEADER, None), str(request.id))


def attempt_of(app: Any, request: Any, arguments: Mapping[str, Any] | None = None) -> Attempt:
    """The attempt of a Celery request: made at the first call, and kept on the request."""
    found = getattr(request, "attempt", None)
    if not isinstance(found, Attempt):  # Celery makes attributes of a message's headers
        header, info = header_of(request), request.delivery_info or {}
        delivery = Delivery(
            guid=str(request.id),
            task=str(request.task),
            route=ROUTES.get(str(request.task)),
            header=header,
            user=header.sender(request.properties, app.settings.amqp.workers),
            queue=undelayed(str(info.get("routing_key", ""))),
            worker=str(request.hostname or ""),
            summary=str(getattr(request, "kwargsrepr", ""))[1:-1],
            redelivered=bool(info.get("redelivered")),
            arguments=arguments or {},
        )
        found = request.attempt = Attempt(delivery)
    return found

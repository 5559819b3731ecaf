"""What comes from RabbitMQ, judged before Celery touches it: no message ends a worker, or runs what it should not.

Celery takes the shape of a message for granted (a body of another shape ends the whole worker, and the next one after
it), runs any registered task that a message names, its own included, and logs what it refuses with the whole body.
Here a message that is no event of the contract is answered with MalformedEvent where it says whom to tell, lies in
beds.dead, and leaves one line in the log without a value of it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from amqp.serialization import GenericContent
from celery import states
from celery.worker.consumer import Consumer
from kombu import compression

from beds.broker.backend import outcome
from beds.domain.lineage import is_event_id
from beds.errors import MalformedEvent
from beds.templates.fields import MAX_DEPTH
from beds.transport.topology import takes, undelayed

logger = logging.getLogger("celery.beds.intake")

MAX_WIRE_DEPTH = 3 * MAX_DEPTH + 8
"""Levels of JSON in a body: the codec writes one level of a caller's value as three, where a key begins with `$`."""
EVENTS_SECONDS = 0.5
"""How long a monitoring event may wait for others."""
_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HEADERS = frozenset(
    {"lang", "task", "id", "root_id", "parent_id", "retries", "eta", "expires", "timelimit", "argsrepr", "kwargsrepr",
     "origin", "beds"}
)  # fmt: skip
"""The headers of an event. Celery reads the rest as orders: what to call next, how to unpack, whom to answer."""
_NOT_CELERYS = ("x-", "traceparent", "tracestate", "baggage")
"""How headers begin that RabbitMQ and tracers add."""
_EMBED = frozenset({"callbacks", "errbacks", "chain", "chord"})


class Intake(Consumer):
    """Celery's consumer, for messages from anybody."""

    _flush_due = False

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*arguments, **options)
        routes = self.app.conf.task_routes
        limit = self.app.settings.amqp.max_body_bytes

        def on_message(message: Any) -> None:
            try:
                check(message, routes, limit)
                # By RabbitMQ's headers CC and BCC a message comes to queues that its key does not name.
                if routes[message.headers["task"]]["queue"] not in self.app.amqp.queues.consume_from:
                    raise _wrong("task", "it belongs to a queue that this worker does not serve")
                handle(message)
            except self.connection_errors:
                raise
            except MalformedEvent as error:
                self._turn_away(message, error)
            except Exception as error:  # noqa: BLE001 — whatever a hostile message makes Celery raise, the worker lives
                self._turn_away(message, _unreadable(error))

        return on_message

    def ensure_connected(self, conn: Any) -> Any:
        """Try again soon: Celery's pauses grow to half a minute, and RabbitMQ may be back a second after one began."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_start=1, interval_step=1, interval_max=3)
        return super().ensure_connected(conn)

    def on_send_event_buffered(self) -> None:
        """Let monitoring events gather. Celery sends them at each turn of its loop, which is a third of its time; a
        monitor does not mind a fraction of a second, and Celery itself sends a full buffer at once."""
        if self.hub and not self._flush_due:
            self._flush_due = True
            self.hub.call_later(EVENTS_SECONDS, self._flush_gathered)

    def _flush_gathered(self) -> None:
        self._flush_due = False
        self._flush_events()

    # Celery's own ways to refuse a message log the whole of it.

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._turn_away(message, _unreadable(exc))

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._turn_away(message, _unreadable(exc))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._turn_away(message, _unreadable(exc))

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._turn_away(message, MalformedEvent("the message has no header `task`", detail={"field": "task"}))

    def _turn_away(self, message: Any, error: MalformedEvent) -> None:
        guid = message.properties.get("correlation_id")
        logger.error("turned away %.64r (%d bytes): %s", guid, len(message.body or b""), error.message)
        if not message.acknowledged:
            message.reject_log_error(logger, self.connection_errors)
        reply_to = message.properties.get("reply_to")
        if isinstance(guid, str) and isinstance(reply_to, str):
            self.app.backend.reply(reply_to, guid, outcome(guid, states.FAILURE, error, ""))


def check(message: Any, routes: Mapping[str, Mapping[str, str]], max_body_bytes: int) -> None:
    """Judge one delivered message.

    Args:
        message: kombu's.
        routes: `task_routes` of the application: the queue of each task that a message may name.
        max_body_bytes: the largest body allowed.

    Raises:
        MalformedEvent: it is no event; names the field.
    """
    headers = message.headers
    if not isinstance(headers, Mapping):
        raise _wrong("headers", "the message has none")
    routing_key = message.delivery_info.get("routing_key", "")
    key = undelayed(routing_key)
    _check_task(headers.get("task"), key, routes)
    _check_headers(headers, message.properties)
    if headers.get("eta") and key == routing_key:
        # It would hold a slot's prefetch until then, and no one else's event would be delivered in its place.
        raise _wrong("eta", "an event has none, unless RabbitMQ itself has delayed it, as it does for a worker's retry")
    if len(message.body or b"") > max_body_bytes:
        raise _wrong("body", f"it has more than the {max_body_bytes:,} bytes allowed")
    try:
        body = message.payload
    except Exception as error:  # noqa: BLE001 — a body can be wrong in as many ways as there are decoders
        raise _unreadable(error) from None
    if not (isinstance(body, (list, tuple)) and len(body) == 3):
        raise _wrong("body", "it is not [args, kwargs, embed]")
    args, kwargs, embed = body
    if not (isinstance(args, (list, tuple)) and isinstance(kwargs, Mapping) and isinstance(embed, Mapping)):
        raise _wrong("body", "it is not [list, object, object]")
    if any(value is not None or name not in _EMBED for name, value in embed.items()):
        # Celery also lets it overwrite what the message says of itself, such as its id.
        raise _wrong("embed", "an event has no callbacks: whoever publishes must not choose what runs next")
    if "self" in kwargs:
        raise _wrong("self", "no operation has such an argument, and Celery's own call would stumble over it")
    _check_depth(kwargs)


def _check_task(task: Any, key: str, routes: Mapping[str, Mapping[str, str]]) -> None:
    route = routes.get(task) if isinstance(task, str) else None
    if route is None:
        raise _wrong("task", "it names no operation")
    # Who may publish to a key is what RabbitMQ's permissions say: a task must not come in by another key.
    if not takes(route["queue"], key):
        raise _wrong("task", f"it belongs to {route['queue']}, and came with the routing key of another queue")


def _check_headers(headers: Mapping[str, Any], properties: Mapping[str, Any]) -> None:
    guid = headers.get("id")
    if not (isinstance(guid, str) and _GUID.fullmatch(guid) and guid == properties.get("correlation_id")):
        raise _wrong("id", "it is not a UUID, or not that of correlation_id")
    limits = headers.get("timelimit")
    if limits is not None and list(limits if isinstance(limits, (list, tuple)) else [0]) != [None, None]:
        raise _wrong("timelimit", "the pool's limits are the operator's: it is null or [null, null]")
    retries = headers.get("retries") or 0
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise _wrong("retries", "it is not a whole number")
    for name, value in headers.items():
        if value and name not in _HEADERS and not str(name).startswith(_NOT_CELERYS):
            raise _wrong(str(name)[:64], "an event has no such header")
    if not isinstance(headers.get("expires") or "", str):
        raise _wrong("expires", "it is not a time in ISO 8601")
    reply_to = properties.get("reply_to")
    if not isinstance(reply_to or "", str):
        raise _wrong("reply_to", "it is not a name")
    header = headers.get("beds") or {}
    if not isinstance(header, Mapping):
        raise _wrong("beds", "it is not an object")
    if header.get("ticket") and not is_event_id(header.get("event_id"), guid):
        raise _wrong("event_id", "a ticket's event id is node.env.guid, with the guid of the message")


def refuse_compression() -> None:
    """Let no message be unpacked: a few bytes could fill the worker's memory, before anything can judge them."""

    def refuse(_body: bytes) -> bytes:
        raise ValueError("compressed messages are not taken")

    for content_type in compression.encoders():
        compression.register(lambda body: body, refuse, content_type)


def refuse_deep_headers() -> None:
    """Let a message whose headers are nested beyond what Python follows arrive without any: py-amqp would end the whole
    worker over it, before anybody could turn it away."""
    load = GenericContent._load_properties

    def guarded(self: Any, class_id: int, buffer: bytes, offset: int = 0) -> int:
        try:
            return int(load(self, class_id, buffer, offset) or 0)
        except RecursionError:
            self.properties = {}
            return offset

    GenericContent._load_properties = guarded


def _check_depth(value: Any) -> None:
    """Level by level: what hands the event to a pool process follows a few hundred levels, then ends the worker."""
    level = [value]
    for _ in range(MAX_WIRE_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise _wrong("body", "it is nested too deep")


def _wrong(field: str, why: str) -> MalformedEvent:
    return MalformedEvent(f"{field}: {why}", detail={"field": field})


def _unreadable(error: Exception) -> MalformedEvent:
    """A foreign error's words may hold data, so only its type is told."""
    return MalformedEvent(f"the message cannot be read ({type(error).__name__})", detail={"field": "body"})

"""Validates one delivered message before anything executes it.

Celery assumes the shape of a message: a body of another shape ends the worker, and then the next one. Celery also runs
any registered task that a message names, its own included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from beds.domain.lineage import is_event_id
from beds.errors import MalformedEvent
from beds.templates.fields import MAX_DEPTH
from beds.transport.topology import undelayed
from beds.wire.codec import MAX_VALUES
from beds.wire.header import HEADER
from beds.wire.routes import ROUTES, Route
from beds.worker.frames import UNREADABLE

MAX_WIRE_DEPTH = 3 * MAX_DEPTH + 8
"""Levels of JSON in a body. The codec writes an object with a key that begins with `$` as three levels."""
_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
HEADERS = frozenset(
    {"lang", "task", "id", "root_id", "parent_id", "retries", "eta", "expires", "timelimit", "argsrepr", "kwargsrepr",
     "origin", "beds"}
)  # fmt: skip
"""The allowed headers. Celery would obey others, such as callbacks, compression and reply settings."""
MAX_HEADER_CHARACTERS = 65_536
"""A message that is published again must fit a frame of 128 KiB with its headers."""
_NOT_CELERYS = ("x-", "traceparent", "tracestate", "baggage")
"""Prefixes of the headers that RabbitMQ and tracers add; Celery ignores these headers."""
_ODD_VALUES = re.compile(rb"NaN|Infinity|\\u[dD][89a-fA-F]|\d[eE]\+?\d{3}|\d{300}|\xed[\xa0-\xbf]")
"""Matches a body that may hold NaN, an infinity or a lone surrogate, which Python's JSON parser accepts."""
_EMBED = frozenset({"callbacks", "errbacks", "chain", "chord"})


def check(message: Any, max_body_bytes: int, workers: str) -> Route:
    """Validate one delivered message, and return its route.

    Args:
        message: kombu's.
        max_body_bytes: the largest body allowed.
        workers: the workers' AMQP user; no other may delay an event.

    Raises:
        MalformedEvent: the message breaks the contract; names the field.
    """
    headers = message.headers
    if not isinstance(headers, Mapping):
        raise wrong("headers", "the message has none")
    if UNREADABLE in headers:
        raise wrong("properties", f"they cannot be read ({headers[UNREADABLE]})")
    routing_key = message.delivery_info.get("routing_key", "")
    key = undelayed(routing_key)
    route = _route_of(headers.get("task"), key)
    _check_headers(headers, message.properties)
    user = message.properties.get("user_id")
    if not isinstance(user, str) or not user:
        raise wrong("user_id", "an event names its AMQP user, for whom RabbitMQ vouches")
    if user != workers and (headers.get("eta") or key != routing_key):
        # A delayed event would occupy a slot's prefetch until its eta, and block other events.
        raise wrong("eta", "an event has none: only a worker delays one, for its own retry")
    body_bytes = message.body or b""
    if len(body_bytes) > max_body_bytes:
        raise wrong("body", f"it has more than the {max_body_bytes:,} bytes allowed")
    try:
        body = message.payload
    except Exception as error:  # noqa: BLE001 — each decoder raises errors of its own
        raise unreadable(error) from None
    if not (isinstance(body, (list, tuple)) and len(body) == 3):
        raise wrong("body", "it is not [args, kwargs, embed]")
    args, kwargs, embed = body
    if not (isinstance(args, (list, tuple)) and isinstance(kwargs, Mapping) and isinstance(embed, Mapping)):
        raise wrong("body", "it is not [list, object, object]")
    if args:
        raise wrong("args", "an operation takes its arguments by name")
    if any(value is not None or name not in _EMBED for name, value in embed.items()):
        # Celery would also let `embed` overwrite the message's own headers, such as its id.
        raise wrong("embed", "an event has no callbacks: whoever publishes must not choose what runs next")
    if "self" in kwargs:
        raise wrong("self", "no operation has such an argument, and Celery's own call would stumble over it")
    _check_values(kwargs, "body", has_odd_ones=bool(_ODD_VALUES.search(_as_bytes(body_bytes))))
    return route


def _route_of(task: Any, key: str) -> Route:
    route = ROUTES.get(task) if isinstance(task, str) else None
    if route is None:
        raise wrong("task", "it names no operation")
    # RabbitMQ's permissions restrict the routing key, so a task must not arrive through another key.
    if key not in route.queue.keys:
        raise wrong("task", f"it belongs to {route.queue.name}, and came with the routing key of another queue")
    return route


def _check_headers(headers: Mapping[str, Any], properties: Mapping[str, Any]) -> None:
    guid = headers.get("id")
    if not (isinstance(guid, str) and _GUID.fullmatch(guid) and guid == properties.get("correlation_id")):
        raise wrong("id", "it is not a UUID, or not that of correlation_id")
    limits = headers.get("timelimit")
    if limits is not None and list(limits if isinstance(limits, (list, tuple)) else [0]) != [None, None]:
        raise wrong("timelimit", "the pool's limits are the operator's: it is null or [null, null]")
    retries = headers.get("retries") or 0
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise wrong("retries", "it is not a whole number")
    for name, value in headers.items():
        if value and name not in HEADERS and not str(name).startswith(_NOT_CELERYS):
            raise wrong(str(name)[:64], "an event has no such header")
    if sum(len(str(value)) for value in headers.values()) > MAX_HEADER_CHARACTERS:
        raise wrong("headers", f"they have more than the {MAX_HEADER_CHARACTERS:,} characters allowed")
    expiry_of(headers)
    reply_to = properties.get("reply_to")
    if not isinstance(reply_to or "", str):
        raise wrong("reply_to", "it is not a name")
    _check_values(dict(headers), "headers")
    header = headers.get(HEADER) or {}
    if not isinstance(header, Mapping):
        raise wrong("beds", "it is not an object")
    if header.get("ticket") and not is_event_id(header.get("event_id"), guid):
        raise wrong("event_id", "a ticket's event id is node.env.guid, with the guid of the message")


def expiry_of(headers: Mapping[str, Any]) -> datetime | None:
    """The time after which an event must not begin, from the header of Celery's clients. Raises MalformedEvent."""
    text = headers.get("expires")
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise wrong("expires", "it is not a time in ISO 8601") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _as_bytes(body: bytes | str) -> bytes:
    return body if isinstance(body, bytes) else body.encode(errors="surrogatepass")


def _check_values(value: Any, field: str, *, has_odd_ones: bool = False) -> None:
    """Check nesting and the number of values, level by level, without recursion.

    Celery's hand-over to a pool process fails at a few hundred levels: the worker ends, or never frees the slot.

    Args:
        value: of a message.
        field: its name, for the error.
        has_odd_ones: whether to look for NaN, infinities and lone surrogates, which no store can write later.
    """
    level, count = [value], 0
    for _ in range(MAX_WIRE_DEPTH):
        inside = [i for outer in level for i in (outer.values() if isinstance(outer, dict) else outer)]
        count += len(inside)
        if count > MAX_VALUES:
            raise wrong(field, f"it has more than the {MAX_VALUES:,} values allowed; send fewer records at once")
        if has_odd_ones:
            names = [name for outer in level if isinstance(outer, dict) for name in outer]
            if any(map(_is_odd, [*names, *inside])):
                raise wrong(field, "it holds a number beyond all numbers, or half a character")
        level = [i for i in inside if isinstance(i, (dict, list, tuple))]
        if not level:
            return
    raise wrong(field, "it is nested too deep")


def _is_odd(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)


def wrong(field: str, why: str) -> MalformedEvent:
    return MalformedEvent(f"{field}: {why}", detail={"field": field})


def unreadable(error: Exception) -> MalformedEvent:
    """A foreign error's message may hold data, so only its type is kept."""
    return MalformedEvent(f"the message cannot be read ({type(error).__name__})", detail={"field": "body"})

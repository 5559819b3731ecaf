"""A reply, written by a worker and read by a client: Celery's result message, with typed errors under `result.beds`."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from typing import Any, TypeGuard

import amqp

from beds.domain.reply import Page, Response
from beds.domain.ticket import TicketStatus
from beds.errors import BedsError, InternalError, MalformedEvent, from_wire
from beds.wire import codec

REPLY_TO = "amq.rabbitmq.reply-to"
"""RabbitMQ's pseudo-queue: replies arrive on the requesting channel, and no queue is declared."""
REPLY_NAMES = "amq.rabbitmq.reply-to."
"""Prefix of the `reply_to` that RabbitMQ puts in its place for the consumer."""
SUCCESS = "SUCCESS"
_ADDRESS = re.compile(r"amq\.rabbitmq\.reply-to\.([A-Za-z0-9+/]+={0,2})\.([A-Za-z0-9+/_-]+={0,2})")
_CONSUMER = re.compile(rb"\x83X(?:v\x00.|w.|d\x00.)reply@\d{1,10}.{12}", re.DOTALL)
"""The consumer in an address: an Erlang process id, in the external term format, of a node named by a hash."""


def is_reply_address(reply_to: Any) -> TypeGuard[str]:
    """True for a client's direct reply-to address. No other address gets replies.

    Through any other, a client could use the worker's rights to fill a foreign queue. Celery's own clients name a queue
    of theirs; they poll the ticket instead. RabbitMQ closes a connection that publishes to most addresses which it
    did not make itself, so the form is checked to the byte.
    """
    if not isinstance(reply_to, str) or len(reply_to) > 255 or (found := _ADDRESS.fullmatch(reply_to)) is None:
        return False
    try:
        return _CONSUMER.fullmatch(base64.b64decode(found[1], validate=True)) is not None
    except ValueError:
        return False


def reply_message(task_id: str, body: bytes) -> amqp.Message:
    """A reply as an AMQP message, to publish to the default exchange with the address as its key."""
    return amqp.Message(
        body,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=1,
        correlation_id=task_id,
        timestamp=int(time.time()),  # a client compares it with its own clock
    )


def encode_reply(task_id: str, value: Any) -> bytes:
    """The reply to an event that was executed.

    Args:
        task_id: the event's guid.
        value: the task's result.

    Raises:
        BedsError, ValueError: the value cannot be encoded.
    """
    wire = value.to_wire() if isinstance(value, (Response, Page, TicketStatus)) else value
    return _encode(task_id, SUCCESS, codec.encode(wire))


def encode_error(task_id: str, state: str, error: BedsError, event_id: str) -> bytes:
    """The reply to an event that failed: Celery's three keys, and `beds` with the typed error.

    Args:
        task_id: the event's guid.
        state: `FAILURE` or `REVOKED`.
        error: the error; gets the event's id if it has none.
        event_id: the event's.
    """
    error.event_id = error.event_id or event_id
    result = {
        "exc_type": type(error).__name__,
        "exc_module": "beds.errors",
        "exc_message": [error.message],
        "beds": codec.encode(error.to_wire()),
    }
    return _encode(task_id, state, result)


def parse_reply(body: bytes | str) -> Any:
    """A worker's reply as JSON values, as a ticket's status has it. Raises MalformedEvent."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedEvent("the worker's reply is not JSON, or nested too deep") from None


def read_reply(meta: Any) -> Any:
    """The value in a parsed reply. Raises the error that the reply carries, or MalformedEvent."""
    return codec.decode(encoded_result(meta))


def encoded_result(meta: Any) -> Any:
    """As `read_reply`, with the value as the codec encodes it."""
    try:
        status, result = meta["status"], meta["result"]
    except (KeyError, TypeError):
        raise MalformedEvent("the worker's reply cannot be read") from None
    if status == SUCCESS:
        return result
    if (error := error_of(result)) is not None:
        raise error
    raise InternalError(f"the worker answered {status}")


def error_of(result: Any) -> BedsError | None:
    """The typed error in the result of a failed event; None where there is none."""
    wire = result.get("beds") if isinstance(result, Mapping) else None
    return from_wire(codec.decode(wire)) if isinstance(wire, Mapping) else None


def _encode(task_id: str, state: str, result: Any) -> bytes:
    meta = {"task_id": task_id, "status": state, "result": result, "traceback": None, "children": []}
    text = json.dumps(meta, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")  # an error may quote a lone surrogate from a hostile event

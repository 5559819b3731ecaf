"""An event as a Celery message, protocol 2: https://docs.celeryq.dev/en/stable/internals/protocol.html"""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import amqp

from beds.domain.event import Event
from beds.wire import codec
from beds.wire.header import HEADER, EventHeader
from beds.wire.reply import REPLY_TO

_EMBED = b',{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'
"""The third part of a Celery body, after the positional and the named arguments."""
_HOST = socket.gethostname()


def with_encoded_body(event: Event, max_body_bytes: int) -> Event:
    """The event with its encoded and checked body, which can then be published any number of times.

    Args:
        event: what to send.
        max_body_bytes: the largest body allowed.

    Raises:
        BodyTooLarge: the body is larger, or has more values than a worker accepts.
        InvalidPayload: the body holds a value that the codec does not support.
    """
    if event.body:
        return event
    write = codec.dumps_plain if event.is_plain else codec.dumps
    body = b"[[]," + write(event.arguments) + _EMBED
    codec.check_size(body, max_body_bytes, f"this {event.task}")
    codec.check_values(body, f"this {event.task}")
    return replace(event, body=body)


def to_message(event: Event, user: str) -> amqp.Message:
    """An event as an AMQP message, to publish to its exchange with the routing key `event.queue`.

    Args:
        event: with its encoded body.
        user: the AMQP user; RabbitMQ checks it, so a consumer may trust it.
    """
    lineage = event.lineage
    headers = {
        "lang": "py",
        "task": event.task,
        "id": lineage.guid,
        "root_id": lineage.root_id.rsplit(".", 1)[-1],
        "parent_id": lineage.parent_id.rsplit(".", 1)[-1] or None,
        "retries": 0,
        "argsrepr": "()",
        # Monitors show it, so it has names and no values.
        "kwargsrepr": f"({event.summary})",
        "origin": _origin(),
        HEADER: EventHeader.of(event).to_wire(),
    }
    return amqp.Message(
        event.body,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=1 if event.is_transient else 2,
        correlation_id=lineage.guid,
        user_id=user,
        application_headers=headers,
        **({} if event.is_plain else {"reply_to": REPLY_TO}),
        **({} if event.expires_in is None else {"expiration": str(max(1, int(event.expires_in * 1000)))}),
    )


def _origin() -> str:
    return f"{os.getpid()}@{_HOST}"

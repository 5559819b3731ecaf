"""An event as a Celery message, protocol 2: https://docs.celeryq.dev/en/stable/internals/protocol.html"""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import amqp

from beds.domain.event import Event
from beds.transport import codec

REPLY_TO = "amq.rabbitmq.reply-to"
"""RabbitMQ's pseudo-queue: replies come over the connection that asked, and no queue is made."""
HEADER = "beds"


def sealed(event: Event, max_body_bytes: int) -> Event:
    """The event with its body: what can be sent, however often, without finding fault with it any more.

    Args:
        event: what to send.
        max_body_bytes: the largest body allowed.

    Raises:
        BodyTooLarge: the body is larger.
        InvalidPayload: the body holds something that BEDS does not carry.
    """
    if event.body:
        return event
    write = codec.dumps_plain if event.is_plain else codec.dumps
    body = write([[], event.arguments, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    codec.check_size(body, max_body_bytes, f"this {event.task}")
    return replace(event, body=body)


def to_message(event: Event, user: str) -> amqp.Message:
    """A sealed event, ready to publish to its exchange with the key `event.queue`.

    Args:
        event: what to send.
        user: the AMQP user; RabbitMQ checks it, so a consumer may trust it.
    """
    lineage = event.lineage
    headers = {
        "lang": "py",
        "task": event.task,
        "id": lineage.guid,
        "root_id": lineage.root_id.rsplit(".", 1)[-1],
        "parent_id": lineage.parent_id.rsplit(".", 1)[-1] or None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": event.expires.isoformat() if event.expires else None,
        "timelimit": [None, None],
        "argsrepr": "()",
        # What monitors show: names, never values.
        "kwargsrepr": f"({event.summary})",
        "origin": _origin(),
        "ignore_result": False,
        HEADER: {
            **lineage.to_header(),
            "ticket": event.ticket,
            "actor": event.actor,
            "submitted_at": event.submitted_at.isoformat(),
        },
    }
    return amqp.Message(
        event.body,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        correlation_id=lineage.guid,
        user_id=user,
        application_headers=headers,
        **({} if event.is_plain else {"reply_to": REPLY_TO}),
    )


def _origin() -> str:
    return f"{os.getpid()}@{socket.gethostname()}"

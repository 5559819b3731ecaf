"""Publishes a dead event to its queue again, unchanged."""

from __future__ import annotations

import json
import struct
from typing import Any

import amqp
from kombu.exceptions import OperationalError

from beds.domain.identity import uuid7
from beds.domain.reply import Record
from beds.errors import BrokerUnavailable, MalformedEvent
from beds.services.dead import REPLAYED
from beds.wire.header import HEADER, published_for

CONFIRM_SECONDS = 10.0


def check_replay(dead: Record) -> None:
    """Raises MalformedEvent: the event has no AMQP user that RabbitMQ checked; it would run as the workers' user."""
    header = json.loads(dead["headers"]).get(HEADER) or {}
    if not dead.get("user") or not isinstance(header, dict):
        raise MalformedEvent(
            "it names no AMQP user, on whose account it would be carried out",
            detail={"field": "user_id", "dead_id": dead["dead_id"]},
            hint="discard it",
        )


def publish_again(app: Any, dead: Record) -> None:
    """Publish a dead event with its original routing key, and return when RabbitMQ has confirmed it.

    Raises:
        BrokerUnavailable: RabbitMQ did not confirm.
    """
    headers = json.loads(dead["headers"]) | {REPLAYED: str(uuid7())}
    # The workers' user publishes it, so the header names the original user. The replay starts now, without an eta.
    headers |= {HEADER: published_for(headers.get(HEADER), dead["user"]), "eta": None}
    message = amqp.Message(
        dead["body"],
        delivery_mode=2,
        user_id=app.settings.amqp.workers,
        application_headers=headers,
        **dead["properties"],
    )
    connection = app.connection_for_write(transport_options={"confirm_publish": True})
    try:
        connection.ensure_connection(max_retries=2)
        connection.default_channel.basic_publish_confirm(
            message, dead["exchange"], dead["routing_key"], mandatory=True, confirm_timeout=CONFIRM_SECONDS
        )
    except (OperationalError, amqp.AMQPError, OSError, struct.error, TypeError, ValueError) as error:
        raise BrokerUnavailable(f"the dead event could not be published: {type(error).__name__}") from None
    finally:
        connection.collect()  # closing would wait for RabbitMQ's answer

"""A dead event on its way back to its queue, as it was."""

from __future__ import annotations

import json
import struct
from typing import Any

import amqp
from kombu.exceptions import OperationalError

from beds.domain.identity import uuid7
from beds.domain.reply import Record
from beds.errors import BrokerUnavailable
from beds.services.dead import REPLAYED

CONFIRM_SECONDS = 10.0


def publish_again(app: Any, dead: Record) -> None:
    """Publish a dead event to the exchange and key it came by, and return when RabbitMQ has it.

    Raises:
        BrokerUnavailable: RabbitMQ did not confirm.
    """
    headers = json.loads(dead["headers"]) | {REPLAYED: str(uuid7())}
    message = amqp.Message(dead["body"], delivery_mode=2, application_headers=headers, **dead["properties"])
    connection = app.connection_for_write(transport_options={"confirm_publish": True})
    try:
        with connection:
            connection.ensure_connection(max_retries=2)
            connection.default_channel.basic_publish_confirm(
                message, dead["exchange"], dead["routing_key"], mandatory=True, confirm_timeout=CONFIRM_SECONDS
            )
    except (OperationalError, amqp.AMQPError, OSError, struct.error, TypeError, ValueError) as error:
        connection.collect()  # which does not wait for an answer, as closing would
        raise BrokerUnavailable(f"the dead event could not be published: {type(error).__name__}") from None

"""Celery's own consumer, for pools of threads: validates each delivery before Celery handles it.

Celery logs refused messages with their bodies. Here a message that breaks the contract goes to beds.dead, gets
MalformedEvent as its reply, and is logged in one line without values.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import amqp
from celery import states
from celery.worker.consumer import Consumer
from kombu import compression

from beds.errors import MalformedEvent
from beds.wire.reply import encode_error
from beds.worker.validation import check, unreadable, wrong

logger = logging.getLogger("celery.beds.consumer")

EVENTS_SECONDS = 0.5
"""How long a monitoring event may wait to be sent in a batch."""


LOCKED_SECONDS = 1.0
"""Pause before a queue is declared again that a lost connection still holds."""
MOST_LOCKED = 60
"""After so many attempts in a row the queue belongs to another worker of this name."""


class ValidatingConsumer(Consumer):
    """Celery's consumer, made safe against hostile messages."""

    _flush_due = False
    _locked = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # The worker's own queue belongs to its connection. A cluster may keep the lost one for seconds.
        self.connection_errors = (*self.connection_errors, amqp.ResourceLocked)  # type: ignore[has-type]

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if not isinstance(exc, amqp.ResourceLocked):
            self._locked = 0
        elif (locked := self._locked + 1) > MOST_LOCKED:
            raise exc
        else:
            self._locked = locked
            logger.warning("a lost connection still holds a queue of this worker: %s", exc.reply_text)
            time.sleep(LOCKED_SECONDS)
        super().on_connection_error_after_connected(exc)

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*arguments, **options)
        settings = self.app.settings.amqp

        def on_message(message: Any) -> None:
            try:
                route = check(message, settings.max_body_bytes, settings.workers)
                # RabbitMQ's headers CC and BCC route a message to queues that its routing key does not name.
                if route.queue.name not in self.app.amqp.queues.consume_from:
                    raise wrong("task", "it belongs to a queue that this worker does not serve")
                _expire_here(message)
                handle(message)
            except self.connection_errors:
                raise
            except MalformedEvent as error:
                self._reject(message, error)
            except Exception as error:  # noqa: BLE001 — no error that a hostile message causes may end the worker
                self._reject(message, unreadable(error))

        return on_message

    def ensure_connected(self, conn: Any) -> Any:
        """Reconnect with pauses of at most 3 s: Celery's grow to 30 s, and RabbitMQ may be back long before."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_start=1, interval_step=1, interval_max=3)
        return super().ensure_connected(conn)

    def on_send_event_buffered(self) -> None:
        """Delay monitoring events, and send them in batches.

        Celery flushes them in each iteration of its event loop, which takes a third of the loop's time. Monitors
        tolerate the delay, and Celery sends a full buffer at once.
        """
        if self.hub and not self._flush_due:
            self._flush_due = True
            self.hub.call_later(EVENTS_SECONDS, self._flush_gathered)

    def _flush_gathered(self) -> None:
        self._flush_due = False
        self._flush_events()

    # Celery's own handlers log the whole message.

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._reject(message, unreadable(exc))

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._reject(message, unreadable(exc))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._reject(message, unreadable(exc))

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._reject(message, MalformedEvent("the message has no header `task`", detail={"field": "task"}))

    def _reject(self, message: Any, error: MalformedEvent) -> None:
        guid = message.properties.get("correlation_id")
        logger.error("rejected %.64r (%d bytes): %s", guid, len(message.body or b""), error.message)
        if not message.acknowledged:
            message.reject_log_error(logger, self.connection_errors)
        reply_to = message.properties.get("reply_to")
        if isinstance(guid, str) and isinstance(reply_to, str):
            self.app.backend.reply(reply_to, guid, encode_error(guid, states.FAILURE, error, ""))


def _expire_here(message: Any) -> None:
    """Set Celery's `expires` from the message's TTL: RabbitMQ stops counting the TTL once an event is prefetched."""
    milliseconds = message.properties.get("expiration")
    if isinstance(milliseconds, str) and milliseconds.isdigit() and len(milliseconds) < 10:
        message.headers["expires"] = (datetime.now(UTC) + timedelta(milliseconds=int(milliseconds))).isoformat()


def refuse_compression() -> None:
    """Refuse compressed messages: a few bytes could expand and fill the worker's memory before validation."""

    def refuse(_body: bytes) -> bytes:
        raise ValueError("compressed messages are not taken")

    for content_type in compression.encoders():
        compression.register(lambda body: body, refuse, content_type)

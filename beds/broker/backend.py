"""The result backend: in a worker it sends the reply to where the event asked for it.

Celery's own RPC backend waits for a blocking confirm of each reply, which is half of the time of a short task. A reply
is at-most-once by nature (its receiver may be gone), so it is published on a channel of its own without one.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

import amqp
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.exceptions import TimeLimitExceeded as HardTimeLimitExceeded
from celery import states
from celery.backends.base import BaseBackend

from beds.domain.reply import Page, Response
from beds.errors import BedsError, BodyTooLarge, InternalError, ResultTooLarge, TimeLimitExceeded
from beds.transport import codec

logger = logging.getLogger(__name__)


class ReplyBackend(BaseBackend):
    """Answers over AMQP. It stores nothing."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self._local = threading.local()

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_options: Any
    ) -> Any:
        """Send a final state to `reply_to`. Other states, and tasks that nobody asked to answer, go nowhere."""
        reply_to = getattr(request, "reply_to", None)
        if reply_to and state in states.READY_STATES:
            meta = self._meta(task_id, result, state, request)
            try:
                self._publish(reply_to, task_id, meta)
            except (OSError, amqp.AMQPError) as error:
                # The effect stands, only its caller cannot be told: the event must not be carried out again for that.
                logger.error("the reply to %s could not be sent: %s", task_id, error)
        return result

    def _meta(self, task_id: str, result: Any, state: str, request: Any) -> bytes:
        limit = self.app.settings.amqp.max_body_bytes
        if isinstance(result, BaseException):
            return _encode(task_id, state, failure(result, _event_id(request)))
        try:
            body = _encode(task_id, state, success(result))
            codec.check_size(body, limit, "the result")
        except BodyTooLarge as error:
            too_large = ResultTooLarge(error.message, detail=error.detail)
            return _encode(task_id, states.FAILURE, failure(too_large, _event_id(request)))
        except (BedsError, ValueError) as error:
            return _encode(task_id, states.FAILURE, failure(error, _event_id(request)))
        return body

    def _publish(self, reply_to: str, task_id: str, body: bytes) -> None:
        message = amqp.Message(
            body, content_type="application/json", content_encoding="utf-8", delivery_mode=1, correlation_id=task_id
        )
        try:
            self._channel().basic_publish(message, "", reply_to)
        except (OSError, amqp.AMQPError, AttributeError):
            # The connection went while it was idle. A second copy of a reply does no harm.
            self._local.channel = None
            self._channel().basic_publish(message, "", reply_to)

    def _channel(self) -> Any:
        """A channel of this thread in this process; what a parent opened before the fork is not touched."""
        mine = self._local
        if getattr(mine, "channel", None) is None or mine.pid != os.getpid():
            connection = self.app.connection_for_write(transport_options={"confirm_publish": False})
            connection.connect()
            mine.connection, mine.channel, mine.pid = connection, connection.default_channel, os.getpid()
        return mine.channel


def success(result: Any) -> Any:
    """A task's return value as it goes into a reply."""
    return codec.encode(result.to_wire() if isinstance(result, (Response, Page)) else result)


def failure(error: BaseException, event_id: str) -> Mapping[str, Any]:
    """An error as it goes into a reply: Celery's three keys, and `beds` with the typed error."""
    typed = as_beds_error(error)
    typed.event_id = typed.event_id or event_id
    return {
        "exc_type": type(typed).__name__,
        "exc_module": "beds.errors",
        "exc_message": [typed.message],
        "beds": codec.encode(typed.to_wire()),
    }


def as_beds_error(error: BaseException) -> BedsError:
    """Every error as one of BEDS; a foreign one's words may hold data, so only its type is told."""
    if isinstance(error, BedsError):
        return error
    if isinstance(error, (SoftTimeLimitExceeded, HardTimeLimitExceeded)):
        return TimeLimitExceeded("the operation ran longer than its pool allows")
    return InternalError(f"the worker failed with {type(error).__name__}")


def _encode(task_id: str, state: str, result: Any) -> bytes:
    meta = {"task_id": task_id, "status": state, "result": result, "traceback": None, "children": []}
    return json.dumps(meta, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _event_id(request: Any) -> str:
    header = getattr(request, "beds", None)
    found = header.get("event_id") if isinstance(header, Mapping) else None
    return found if isinstance(found, str) else ""

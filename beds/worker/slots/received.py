"""A message that a slot has received."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import amqp

from beds.services.execution import Attempt, Delivery
from beds.transport.topology import undelayed
from beds.wire.header import HEADER, EventHeader
from beds.wire.reply import is_reply_address
from beds.wire.routes import Route
from beds.worker.slots.board import Work
from beds.worker.validation import expiry_of, wrong


@dataclass
class Received:
    """A delivered message, as `validation.check` takes it.

    Args:
        message: py-amqp's.
        deaths: how many slots died while they executed it.
        arrived: when, in monotonic seconds.
    """

    message: amqp.Message
    deaths: int = 0
    arrived: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.properties: dict[str, Any] = self.message.properties
        self.headers: Any = self.properties.get("application_headers")
        self.delivery_info: dict[str, Any] = self.message.delivery_info
        self.body: bytes = self.message.body or b""
        self.tag: int = self.delivery_info["delivery_tag"]

    @property
    def reply_to(self) -> str:
        """Where its reply goes; empty if it gets none."""
        found = self.properties.get("reply_to")
        return found if is_reply_address(found) else ""

    @property
    def guid(self) -> str:
        """The event's, as its sender wrote it."""
        return str(self.properties.get("correlation_id"))

    @property
    def is_redelivered(self) -> bool:
        """Whether RabbitMQ delivered it before."""
        return bool(self.delivery_info.get("redelivered"))

    @cached_property
    def payload(self) -> Any:
        """The decoded body. Raises MalformedEvent, ValueError."""
        if self.properties.get("content_type") != "application/json":
            raise wrong("content_type", "a body is application/json")
        if str(self.properties.get("content_encoding", "utf-8")).lower() not in ("utf-8", "utf8"):
            raise wrong("content_encoding", "a body is utf-8")
        return json.loads(self.body)

    @property
    def has_expired(self) -> bool:
        """True if its TTL has passed. RabbitMQ does not count the TTL of a delivered event."""
        if (expiry := expiry_of(self.headers)) is not None and datetime.now(UTC) > expiry:
            return True
        milliseconds = self.properties.get("expiration")
        if isinstance(milliseconds, str) and milliseconds.isdigit() and len(milliseconds) < 10:
            return time.monotonic() - self.arrived > int(milliseconds) / 1000
        return False

    def work(self, began: float = 0.0) -> Work:
        """What the board shows of it, before it is validated."""
        headers = self.headers if isinstance(self.headers, dict) else {}
        key = str(self.delivery_info.get("routing_key", ""))
        return Work(str(headers.get("id")), str(headers.get("task")), str(headers.get("kwargsrepr", "")), key, began)

    def attempt(self, route: Route, workers: str, worker: str) -> Attempt:
        """The attempt to execute it, once it is validated.

        Args:
            route: its route.
            workers: the workers' AMQP user.
            worker: the name of the worker that executes it.
        """
        headers = self.headers
        guid = str(headers["id"])
        header = EventHeader.read(headers.get(HEADER), guid)
        waiting_since = header.waits_since(self.properties, workers)
        return Attempt(
            Delivery(
                guid=guid,
                task=route.task,
                route=route,
                header=header,
                user=header.sender(self.properties, workers),
                queue=undelayed(str(self.delivery_info.get("routing_key", ""))),
                worker=worker,
                summary=str(headers.get("kwargsrepr", ""))[1:-1],
                redelivered=self.is_redelivered or waiting_since > 0,
                in_doubt=self.is_redelivered or (waiting_since > 0 and header.in_doubt),
                waiting_since=waiting_since,
                arguments=self.payload[1],
            )
        )

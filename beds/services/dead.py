"""Stores dead-lettered events in msDead, where an operator replays or discards them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from beds.core.namaste import Query
from beds.domain.clock import now
from beds.domain.reply import Record
from beds.errors import MalformedEvent, NotFound, WrongType
from beds.services.audit import described
from beds.services.dispatch import Factory
from beds.wire import codec
from beds.wire.header import HEADER, EventHeader
from beds.wire.routes import QUEUES, ROUTES, exchange_of

TEMPLATE = "msDead"
MAX_IDS = 1000
KEPT_PROPERTIES = ("content_type", "content_encoding", "correlation_id", "priority", "message_id", "type", "app_id")
LARGEST_BODY = 7 * 1024 * 1024
"""Bytes kept of a body, and of the headers; a MongoDB document holds 16 MiB. A valid event is smaller."""
REPLAYED = "x-beds-replay"
"""A replay's id in the headers, so that an event that dies again gets a new `dead_id`."""
EXPIRED = "expired"
"""RabbitMQ's reason for an event whose TTL passed in the queue."""
DELIVERY_LIMIT = "delivery_limit"
"""RabbitMQ's reason for an event that was redelivered too often."""
RABBITMQS = ("x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count")


@dataclass(frozen=True, slots=True)
class Death:
    """Where a message was dead-lettered, and why.

    Args:
        queue, reason: from RabbitMQ's `x-death` header; empty where it has none.
    """

    queue: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """A message as it came out of beds.dead.

    Args:
        body, headers, properties: RabbitMQ's.
        routing_key: the original one. RabbitMQ keeps it when it dead-letters, and has checked that the publisher may
            use it.
        user: the AMQP user whose event it is.
    """

    body: bytes = field(repr=False)
    headers: Mapping[str, Any] = field(repr=False)
    properties: Mapping[str, Any] = field(repr=False)
    routing_key: str = ""
    user: str = ""

    @property
    def death(self) -> Death:
        """The queue and the reason of the latest death.

        RabbitMQ puts the latest `x-death` entry first, and writes its queue and reason itself. A client may have forged
        the rest of this entry and all other entries, because RabbitMQ updates an entry that a client wrote.
        """
        deaths = self.headers.get("x-death")
        latest = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping) else {}
        queue, reason = _word(latest.get("queue")), _word(latest.get("reason"))
        return Death(queue if queue in QUEUES else "", reason)

    @property
    def guid(self) -> str:
        guid = self.headers.get("id")
        return guid if isinstance(guid, str) and guid == self.properties.get("correlation_id") else ""

    @property
    def summary(self) -> str:
        """Template and operation, as monitors show them."""
        return str(self.headers.get("kwargsrepr", ""))[1:-1]

    @property
    def header(self) -> EventHeader:
        return EventHeader.read(self.headers.get(HEADER), self.guid)


class DeadStore:
    """The store of dead events, msDead.

    Args:
        factory: where adapters come from.
        ttl_days: how long a dead event is kept.
    """

    def __init__(self, factory: Factory, ttl_days: int) -> None:
        self._factory = factory
        self._ttl = timedelta(days=ttl_days)

    def bury(self, messages: Sequence[tuple[DeadMessage, str, int]]) -> None:
        """Store messages, each with its reason and its number of deliveries. Storing one twice has no further effect.

        Raises:
            StoreUnavailable: MongoDB cannot be reached.
        """
        documents = [self._document(*each) for each in messages]
        size = 0
        batch: list[dict[str, Any]] = []
        for document in documents:
            size += len(document["body"]) + len(document["headers"])
            if batch and size > LARGEST_BODY:  # MongoDB accepts 48 MB in one command
                self._factory.adapter(TEMPLATE).create_records(batch)
                batch, size = [], 0
            batch.append(document)
        if batch:
            self._factory.adapter(TEMPLATE).create_records(batch)

    def _document(self, message: DeadMessage, last_error: str, deliveries: int) -> dict[str, Any]:
        at = now()
        death, header = message.death, message.header
        record_id, values = self._asked(message)
        text = {
            "guid": message.guid,
            "event_id": header.event_id,
            "root_id": header.lineage.root_id if header.event_id else "",
            "task": message.headers.get("task"),
            "summary": message.summary,
            "queue": death.queue or "?",
            "reason": death.reason or "?",
            "last_error": last_error,
            "user": message.user,
            "record_id": record_id,
            "values": values,
            "exchange": exchange_of(message.routing_key),
            "routing_key": message.routing_key if exchange_of(message.routing_key) else "",
        }
        template = self._factory.registry[TEMPLATE]
        kept = {n: v for n, v in message.headers.items() if not str(n).startswith(RABBITMQS)}
        document = {
            "dead_id": str(_id_of(message)),
            **{name: str(value or "")[: template.fields[name].max_length] for name, value in text.items()},
            "deliveries": deliveries,
            "headers": headers if len(headers := json.dumps(kept, default=str)) <= LARGEST_BODY else "{}",
            "properties": {
                n: v if isinstance(v, int) else str(v)
                for n, v in message.properties.items()
                if n in KEPT_PROPERTIES and v is not None
            },
            "body": message.body if len(message.body) <= LARGEST_BODY else b"",
            "size": len(message.body),
            "state": "dead",
            "at": at,
            "expires_at": at + self._ttl,
        }
        return template.check_create(_as_text(document))

    def replay(self, dead_id: str, by: str, publish: Callable[[Record], None]) -> bool:
        """Publish a dead event again with its guid, so that its ticket and idempotency key still refer to it.

        Args:
            dead_id: of the dead event.
            by: the operator.
            publish: called with the stored record; returns when RabbitMQ has confirmed it.

        Returns:
            False when no such dead event exists, or it was discarded.

        Raises:
            MalformedEvent: it came by a key of none of BEDS's queues.
        """
        page = self._factory.adapter(TEMPLATE).fetch_records(Query("whole", {"dead_id": dead_id}, 1, ""))
        if page and not page[0].get("exchange"):
            raise MalformedEvent(
                "its routing key belongs to no queue of BEDS",
                detail={"field": "routing_key", "dead_id": dead_id},
                hint="discard it",
            )
        if page:
            publish(page[0])
        return self._resolve(dead_id, "replayed", by)

    def discard(self, dead_id: str, by: str) -> bool:
        """Mark a dead event as discarded. False when no such event exists, or it was replayed."""
        return self._resolve(dead_id, "discarded", by)

    def _resolve(self, dead_id: str, state: str, by: str) -> bool:
        changes = {"dead_id": dead_id, "state": state, "resolved_at": now(), "resolved_by": by}
        try:
            self._factory.adapter(TEMPLATE).update_record(changes)
        except NotFound:
            page = self._factory.adapter(TEMPLATE).fetch_records(Query("by_id", {"dead_id": dead_id}, 1, ""))
            return bool(page) and page[0]["state"] == state  # the order was delivered twice
        return True

    def _asked(self, message: DeadMessage) -> tuple[str, str]:
        """The key and the masked values of a write; empty for a read, or for a body that cannot be read."""
        try:
            _, kwargs, _ = codec.loads(message.body)
            route = ROUTES[message.headers["task"]]
            template = self._factory.registry[kwargs["template"]]
            if template.store is not route.queue.store or route.operation is None or route.operation.is_read:
                return "", ""
            record_id, _, values = described(route.operation, template, kwargs)
            return record_id, codec.dumps_plain(values).decode()
        except Exception:  # noqa: BLE001 — a hostile body may raise any error; the body itself is stored
            return "", ""


def check_ids(ids: Any) -> list[str]:
    """Validate the ids of an order. Raises MalformedEvent, WrongType."""
    if not isinstance(ids, list) or not 0 < len(ids) <= MAX_IDS:
        raise MalformedEvent(f"ids: takes a list of 1 to {MAX_IDS}", detail={"field": "ids"})
    for each in ids:
        if not isinstance(each, str) or len(each) > 36:
            raise WrongType("ids: an id is a text of at most 36 characters", detail={"field": "ids"})
    return ids


def _id_of(message: DeadMessage) -> uuid.UUID:
    """An id that is the same when RabbitMQ delivers the message twice; a random one without a guid."""
    if not message.guid:
        return uuid.uuid4()
    try:
        which = (message.user, message.routing_key, message.headers.get(REPLAYED), message.body)
        return uuid.uuid5(uuid.UUID(message.guid), repr(which))
    except ValueError:
        return uuid.uuid4()


def _word(value: Any) -> str:
    return value[:255] if isinstance(value, str) else ""


def _as_text(document: dict[str, Any]) -> dict[str, Any]:
    """Replace lone surrogates and NULs, which hostile texts may hold and no database stores."""
    return {
        name: value.encode(errors="replace").decode().replace("\0", "�") if isinstance(value, str) else value
        for name, value in document.items()
    }

"""Dead events: what a queue gave up on is buried in msDead, and comes back as it was, or never."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from beds.core.namaste import Query
from beds.domain.clock import now
from beds.domain.event import Operation, Store
from beds.domain.reply import Record
from beds.errors import MalformedEvent, NotFound, WrongType
from beds.services.audit import described
from beds.services.dispatch import Factory
from beds.transport import codec

TEMPLATE = "msDead"
MAX_IDS = 1000
KEPT_PROPERTIES = ("content_type", "content_encoding", "correlation_id", "priority", "message_id", "type", "app_id")
LARGEST_BODY = 7 * 1024 * 1024
"""Bytes kept of a body, and of the headers; a document of MongoDB holds 16 MiB. What is larger was no event."""
REPLAYED = "x-beds-replay"
"""The header that tells one death of an event from its next."""
DELIVERY_LIMIT = "delivery_limit"
"""RabbitMQ's reason for an event that came back too often."""
_RABBITMQS = ("x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count")


@dataclass(frozen=True, slots=True)
class Death:
    """Where a message died, and why.

    Args:
        queue, reason, exchange, routing_key: as RabbitMQ has it; empty where it does not say.
        at: when, to the second.
    """

    queue: str = ""
    reason: str = ""
    exchange: str = ""
    routing_key: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """A message as it came out of beds.dead.

    Args:
        body, headers, properties: RabbitMQ's.
    """

    body: bytes = field(repr=False)
    headers: Mapping[str, Any] = field(repr=False)
    properties: Mapping[str, Any] = field(repr=False)

    @property
    def death(self) -> Death:
        """What RabbitMQ says of its end. Whoever may publish to beds.dead can write anything there."""
        deaths = self.headers.get("x-death")
        latest = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping) else {}
        keys = latest.get("routing-keys")
        at = latest.get("time")
        return Death(
            **{name: _word(latest.get(name)) for name in ("queue", "reason", "exchange")},
            routing_key=_word(keys[0]) if isinstance(keys, list) and keys else "",
            at=at if isinstance(at, datetime) else None,
        )

    @property
    def guid(self) -> str:
        guid = self.headers.get("id")
        return guid if isinstance(guid, str) and guid == self.properties.get("correlation_id") else ""

    @property
    def beds_header(self) -> Mapping[str, Any]:
        header = self.headers.get("beds")
        return header if isinstance(header, Mapping) else {}


class DeadStore:
    """msDead.

    Args:
        factory: where adapters come from.
        ttl_days: how long a dead event is kept.
    """

    def __init__(self, factory: Factory, ttl_days: int) -> None:
        self._factory = factory
        self._ttl = timedelta(days=ttl_days)

    def bury(self, message: DeadMessage, last_error: str, deliveries: int) -> None:
        """Write one message down. Written twice it stays one.

        Args:
            message: as it came.
            last_error: why it is dead.
            deliveries: how often it was delivered before.

        Raises:
            StoreUnavailable: MongoDB cannot be reached.
        """
        at = now()
        death, header = message.death, message.beds_header
        record_id, values = self._asked(message)
        text = {
            "guid": message.guid,
            "event_id": header.get("event_id"),
            "root_id": header.get("root_id"),
            "task": message.headers.get("task"),
            "summary": str(message.headers.get("kwargsrepr", ""))[1:-1],
            "queue": death.queue or "?",
            "reason": death.reason or "?",
            "last_error": last_error,
            "user": message.properties.get("user_id"),
            "record_id": record_id,
            "values": values,
            "exchange": death.exchange,
            "routing_key": death.routing_key,
        }
        template = self._factory.registry[TEMPLATE]
        kept = {n: v for n, v in message.headers.items() if not str(n).startswith(_RABBITMQS)}
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
        checked = template.check_create(_as_text(document))
        self._factory.adapter(TEMPLATE).create_records([checked])

    def replay(self, dead_id: str, by: str, publish: Callable[[Record], None]) -> bool:
        """Publish a dead event once more, with its guid, so that its ticket and idempotency key still mean it.

        Args:
            dead_id: which.
            by: who asks.
            publish: sends it, and returns when RabbitMQ has it.

        Returns:
            False when there is no such dead event, or it was discarded.
        """
        page = self._factory.adapter(TEMPLATE).fetch_records(Query("whole", {"dead_id": dead_id}, 1, ""))
        if page:
            publish(page[0])
        return self._resolve(dead_id, "replayed", by)

    def discard(self, dead_id: str, by: str) -> bool:
        """Give a dead event up for good. False when there is no such one, or it was replayed."""
        return self._resolve(dead_id, "discarded", by)

    def _resolve(self, dead_id: str, state: str, by: str) -> bool:
        changes = {"dead_id": dead_id, "state": state, "resolved_at": now(), "resolved_by": by}
        try:
            self._factory.adapter(TEMPLATE).update_record(changes)
        except NotFound:
            page = self._factory.adapter(TEMPLATE).fetch_records(Query("by_id", {"dead_id": dead_id}, 1, ""))
            return bool(page) and page[0]["state"] == state  # the order came twice
        return True

    def _asked(self, message: DeadMessage) -> tuple[str, str]:
        """The key and the values of a write, masked; nothing of what cannot be read as one."""
        try:
            _, kwargs, _ = codec.loads(message.body)
            store, _, verb = str(message.headers.get("task")).partition(".")
            template = self._factory.registry[kwargs["template"]]
            if template.store is not Store(store) or Operation(verb).is_read:
                return "", ""
            record_id, _, values = described(Operation(verb), template, kwargs)
            return record_id, codec.dumps_plain(values).decode()
        except Exception:  # noqa: BLE001 — whatever it is, it is dead, and is kept whole
            return "", ""


def check_ids(ids: Any) -> list[str]:
    """Ids as a command names them. Raises MalformedEvent, WrongType."""
    if not isinstance(ids, list) or not 0 < len(ids) <= MAX_IDS:
        raise MalformedEvent(f"ids: takes a list of 1 to {MAX_IDS}", detail={"field": "ids"})
    for each in ids:
        if not isinstance(each, str) or len(each) > 36:
            raise WrongType("ids: an id is a text of at most 36 characters", detail={"field": "ids"})
    return ids


def _id_of(message: DeadMessage) -> uuid.UUID:
    """The same for the same message, should RabbitMQ deliver it twice; one of its own for what has no guid."""
    if not message.guid:
        return uuid.uuid4()
    try:
        which = (message.death.at, message.headers.get(REPLAYED), message.body)
        return uuid.uuid5(uuid.UUID(message.guid), repr(which))
    except ValueError:
        return uuid.uuid4()


def _word(value: Any) -> str:
    return value[:255] if isinstance(value, str) else ""


def _as_text(document: dict[str, Any]) -> dict[str, Any]:
    """Hostile texts may hold lone surrogates and NULs, which no database keeps."""
    return {
        name: value.encode(errors="replace").decode().replace("\0", "�") if isinstance(value, str) else value
        for name, value in document.items()
    }

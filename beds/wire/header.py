"""The header `beds` of an event: its lineage and its options, written and read by one class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beds.domain.event import Event
from beds.domain.lineage import Lineage

HEADER = "beds"
_FOR_USER = "user"
_WAITING = "waiting_since"
_CALLED = "called"
_DOUBT = "in_doubt"
ACTOR_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class EventHeader:
    """The header's fields, as the publisher wrote them. They may be forged; `sender` uses the user RabbitMQ checked.

    Args:
        lineage: the event's lineage; fields that a foreign client left out get the values of a root.
        event_id: as its publisher wrote it; empty where that is no text.
        ticket: whether its outcome is kept for polling.
        in_doubt: whether an earlier delivery may have written. It is trusted from the workers' user only.
        called: whether its caller waits, so that the event does not wait for a store that is away.
        actor: on whose behalf its application acts.
        submitted_at: when the client made it, in ISO 8601.
        for_user: the user whose event it is, if the workers' user publishes it for another.
        waiting_since: when it first waited for its store, in Unix seconds; 0 for an event that did not. It is trusted
            from the workers' user only.
    """

    lineage: Lineage
    event_id: str = ""
    ticket: bool = False
    actor: str = ""
    submitted_at: str = ""
    for_user: str = ""
    waiting_since: float = 0.0
    called: bool = False
    in_doubt: bool = False

    @classmethod
    def of(cls, event: Event) -> EventHeader:
        lineage = event.lineage
        sent = event.submitted_at.isoformat()
        return cls(lineage, lineage.event_id, event.ticket, event.actor, sent, event.for_user, called=event.is_called)

    @classmethod
    def read(cls, header: Any, guid: str) -> EventHeader:
        """Read a message's header; invalid fields get defaults.

        Args:
            header: the value of the header `beds`.
            guid: of the message.
        """
        found: Mapping[str, Any] = header if isinstance(header, Mapping) else {}
        return cls(
            Lineage.from_header(found, guid),
            _text(found, "event_id"),
            found.get("ticket") is True,
            _text(found, "actor")[:ACTOR_CHARACTERS],
            _text(found, "submitted_at"),
            _text(found, _FOR_USER),
            _seconds(found.get(_WAITING)),
            found.get(_CALLED) is True,
            found.get(_DOUBT) is True,
        )

    def to_wire(self) -> dict[str, Any]:
        lineage = self.lineage
        return {
            **lineage.to_header(),
            "ticket": self.ticket,
            "actor": self.actor,
            "submitted_at": self.submitted_at,
            **({_FOR_USER: self.for_user} if self.for_user else {}),
            **({_CALLED: True} if self.called else {}),
        }

    def sender(self, properties: Any, workers: str) -> str:
        """The AMQP user whose event it is; empty for a message without `user_id`.

        RabbitMQ refuses a message whose `user_id` is not its publisher. Only the workers' user may publish for another
        user, named in `for_user`: when it replays a dead event or retries a task.

        Args:
            properties: the message's.
            workers: the workers' AMQP user.
        """
        user = properties.get("user_id") if isinstance(properties, Mapping) else None
        if not isinstance(user, str):
            return ""
        return self.for_user if user == workers and self.for_user else user

    def waits_since(self, properties: Any, workers: str) -> float:
        """As `waiting_since`, if the workers' user says so; else 0."""
        is_theirs = isinstance(properties, Mapping) and properties.get("user_id") == workers
        return self.waiting_since if is_theirs else 0.0

    def acceptance(self, guid: str, summary: str) -> dict[str, Any]:
        """The ticket of an event whose acceptance has not arrived, for the ticket store.

        Args:
            guid: of the message.
            summary: template and operation, as monitors show them.
        """
        lineage = self.lineage
        found = {
            "event_id": self.event_id,
            "root_id": lineage.root_id,
            "parent_id": lineage.parent_id,
            "actor": self.actor,
        }
        return {name: value for name, value in found.items() if value} | {
            "guid": guid,
            "summary": summary[:300],
        }


def published_for(header: Any, user: str) -> dict[str, Any]:
    """The header of an event that the workers' user publishes again on behalf of its original sender, `user`."""
    found = header if isinstance(header, Mapping) else {}
    # A client may have written that it waits; from the workers' user it would be believed.
    return {**{name: value for name, value in found.items() if name not in (_WAITING, _DOUBT)}, _FOR_USER: user}


def waiting_for(header: Any, user: str, since: float, *, in_doubt: bool) -> dict[str, Any]:
    """The header of an event that waits for its store since a time, and is published again for its sender."""
    return published_for(header, user) | {_WAITING: since} | ({_DOUBT: True} if in_doubt else {})


def _seconds(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < 1e11 else 0.0


def _text(header: Mapping[str, Any], name: str) -> str:
    value = header.get(name)
    return value if isinstance(value, str) else ""

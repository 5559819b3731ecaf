"""Exchanges and queues as values, and their declaration (DESIGN section 3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import amqp
from kombu import Connection, Exchange, Queue

from beds.config.sections import Amqp
from beds.errors import BrokerUnavailable, PermissionDenied, TopologyMismatch
from beds.wire.routes import DEAD, EVENTS, LATER, LOGS, QUEUE_ROUTES, QueueRoute

UNLIMITED = 1_000_000_000
"""Deliveries. RabbitMQ 4 drops a message after 20 if a quorum queue sets no limit; 3.x has no value for no limit."""

LATER_SECONDS = 5.0
"""An event waits this time for its store before it is delivered again."""

_DELAY = re.compile(r"^(?:[01]\.){28}")


def undelayed(key: str) -> str:
    """A routing key without the prefix of Celery's native delayed delivery.

    Only Celery's own exchanges add the prefix, and no client may publish to them.
    """
    return _DELAY.sub("", key)


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """One queue: its name, its bindings and its arguments."""

    name: str
    exchange: str
    keys: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_kombu(self) -> Queue:
        """The queue as Celery consumes it.

        Its routing key has no wildcard, because Celery binds the exchange to its delayed delivery by that key: `#`
        would route a copy of every retried task here.
        """
        return Queue(
            self.name,
            Exchange(self.exchange, type="topic", durable=True),
            routing_key=self.name,
            durable=True,
            queue_arguments=dict(self.arguments),
        )


@dataclass(frozen=True, slots=True)
class Topology:
    """All exchanges and queues of one vhost."""

    exchanges: tuple[str, ...]
    queues: tuple[QueueSpec, ...]

    @classmethod
    def from_settings(cls, amqp_settings: Amqp) -> Topology:
        def arguments(queue: QueueRoute) -> dict[str, Any]:
            kind = amqp_settings.type_of(queue.name)
            found = _kind(kind, amqp_settings.delivery_limit) | {"x-dead-letter-exchange": DEAD}
            if queue.exchange == EVENTS and amqp_settings.max_queue_length:
                # A full queue rejects new messages instead of dropping the oldest.
                found |= {"x-max-length": amqp_settings.max_queue_length, "x-overflow": "reject-publish"}
            return found

        return cls(
            exchanges=(EVENTS, LOGS, LATER, DEAD),
            queues=(
                *(QueueSpec(q.name, q.exchange, q.keys, arguments(q)) for q in QUEUE_ROUTES.values()),
                QueueSpec(LATER, LATER, ("#",), _LATER),
                # The last queue: it is consumed as raw messages, and has no dead-letter exchange.
                QueueSpec(DEAD, DEAD, ("#",), _kind(amqp_settings.queue_type, UNLIMITED)),
            ),
        )

    def queue(self, name: str) -> QueueSpec:
        return next(q for q in self.queues if q.name == name)


def _kind(queue_type: str, deliveries: int) -> dict[str, Any]:
    """The arguments for a queue's type; only a quorum queue counts deliveries."""
    return {"x-queue-type": queue_type} | ({"x-delivery-limit": deliveries} if queue_type == "quorum" else {})


_LATER: Mapping[str, Any] = _kind("quorum", UNLIMITED) | {
    "x-message-ttl": int(LATER_SECONDS * 1000),
    "x-dead-letter-exchange": EVENTS,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
"""The queue whose messages return to beds.events by themselves; nothing consumes it. Always a quorum queue: others, and
it without the strategy, lose a message that they cannot return at once."""


Problems = dict[str, TopologyMismatch | PermissionDenied]
"""The error of each exchange or queue that cannot be declared, by name."""


def declare(topology: Topology, connection: Connection) -> None:
    """Declare everything. Harmless to repeat.

    Args:
        topology: the exchanges and queues.
        connection: a connection whose user may configure `beds.*` and the queues.

    Raises:
        TopologyMismatch: a queue or exchange exists with other arguments; names both sets.
        PermissionDenied: the AMQP user may not configure it.
        BrokerUnavailable: RabbitMQ cannot be reached.
    """
    for problem in declare_each(topology, connection).values():
        raise problem


def declare_each(topology: Topology, connection: Connection) -> Problems:
    """Declare everything that can be declared, exchanges first. Returns the errors of the others by name.

    Raises:
        BrokerUnavailable: RabbitMQ cannot be reached.
    """
    problems: Problems = {}
    vhost = connection.virtual_host
    try:
        connection.connect()
        for name in topology.exchanges:
            asked = {"type": "topic", "durable": True}
            with _explained("exchange", name, asked, vhost, problems), connection.channel() as channel:
                channel.exchange_declare(name, "topic", durable=True, auto_delete=False)
        for queue in topology.queues:
            with _explained("queue", queue.name, queue.arguments, vhost, problems), connection.channel() as channel:
                channel.queue_declare(queue.name, durable=True, auto_delete=False, arguments=dict(queue.arguments))
                for key in queue.keys:
                    channel.queue_bind(queue.name, queue.exchange, key)
    except connection.connection_errors as error:
        raise BrokerUnavailable(f"RabbitMQ at {connection.as_uri()} cannot be reached: {error}") from None
    return problems


@dataclass(frozen=True, slots=True)
class Depth:
    """Messages waiting in a queue, and its number of consumers."""

    messages: int
    consumers: int


def depths(names: Iterable[str], connection: Connection) -> dict[str, Depth | None]:
    """The depth of each queue; None for one that does not exist or is refused. Needs no right but to connect.

    Raises:
        BrokerUnavailable: RabbitMQ cannot be reached.
    """
    found: dict[str, Depth | None] = {}
    try:
        connection.connect()
        for name in names:
            try:
                with connection.channel() as channel:
                    _, messages, consumers = channel.queue_declare(name, passive=True)
                found[name] = Depth(messages, consumers)
            except (amqp.NotFound, amqp.AccessRefused):
                found[name] = None
    except connection.connection_errors as error:
        raise BrokerUnavailable(f"RabbitMQ at {connection.as_uri()} cannot be reached: {error}") from None
    return found


class _explained:
    """Converts RabbitMQ's refusal of a declaration into an error with a hint, and adds it to `problems`."""

    def __init__(self, kind: str, name: str, wanted: Mapping[str, Any], vhost: str, problems: Problems) -> None:
        self._what = f"{kind} {name}"
        self._name = name
        self._wanted = dict(wanted)
        self._vhost = vhost
        self._problems = problems

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, amqp.PreconditionFailed):
            self._problems[self._name] = TopologyMismatch(
                f"{self._what} exists with other arguments; RabbitMQ says: {error.reply_text}",
                detail={"what": self._what, "wanted": self._wanted, "existing": _existing(error.reply_text)},
                hint=f"either set [amqp] in beds.toml to what exists, or empty it and delete it "
                f"(`rabbitmqctl -p {self._vhost} delete_queue {self._name}`, with `beds stack` before it on the local "
                f"stack); wanted were {self._wanted}",
            )
        elif isinstance(error, amqp.AccessRefused):
            self._problems[self._name] = PermissionDenied(
                f"the AMQP user may not declare {self._what}",
                hint="give the worker's user the rights that `beds amqp definitions` prints, or set [amqp] worker_url",
            )
        else:
            return False
        return True


def _existing(reply_text: str) -> dict[str, str]:
    """The existing argument in RabbitMQ's text: "inequivalent arg 'x-delivery-limit' … but current is '7'"."""
    found = re.search(r"inequivalent arg '([^']+)'.*(?:current is|but current is) (.+)$", reply_text)
    return {found[1]: found[2].strip("'\" ")} if found else {}

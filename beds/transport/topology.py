"""Exchanges and queues as values, and the one function that declares them (DESIGN section 3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import amqp
from kombu import Connection, Exchange, Queue

from beds.config import Settings
from beds.config.sections import Amqp, Broker, Services
from beds.domain.event import CALGON, RecordKind
from beds.errors import BrokerUnavailable, PermissionDenied, TopologyMismatch

UNLIMITED = 1_000_000_000
"""Deliveries. RabbitMQ 4 drops a message after 20 where a quorum queue names no limit; 3.x knows no word for none."""

EVENTS = "beds.events"
LOGS = "beds.logs"
DEAD = "beds.dead"

CRUD_QUEUES = ("rec.read", "rec.write", "rel.read", "rel.write")
EVENT_QUEUES = (*CRUD_QUEUES, "job.aggregate", "job.migrate", "job.warehouse", CALGON)
"""Each is bound to beds.events by its own name."""
ADMIN = "admin"
LOG_QUEUES: Mapping[str, tuple[str, ...]] = {
    "beds.logs": ("log.*", "lineage"),
    "beds.audit": ("audit",),
    "beds.metrics": ("metric",),
}
QUEUES = (*EVENT_QUEUES, *LOG_QUEUES)
"""All that a worker may consume."""


def local_pools(services: Services) -> list[tuple[str, ...]]:
    """The pools that a node runs, each by its queues: one for each queue of its stores, one for tickets, one for all
    that comes through beds.logs."""
    found: list[tuple[str, ...]] = [
        (queue,) for queue in CRUD_QUEUES if getattr(services, queue.split(".")[0]).is_local
    ]
    if (services.calgon or services.rec).is_local:
        found.append((CALGON,))
    if services.admin.is_local:
        found.append(tuple(LOG_QUEUES))
    return found


def node_queue(name: str) -> str:
    """The exclusive queue that a running node holds, so that no other takes its name."""
    return f"beds.node.{name}"


def record_queue(kind: RecordKind) -> str:
    """The queue that records of a kind come to."""
    return next(queue for queue, keys in LOG_QUEUES.items() if any(key.split(".")[0] == kind for key in keys))


_DELAY = re.compile(r"^(?:[01]\.){28}")


def undelayed(key: str) -> str:
    """A routing key without what native delayed delivery puts before it, through exchanges of Celery's own, to which no
    client may publish."""
    return _DELAY.sub("", key)


def takes(queue: str, key: str) -> bool:
    """Whether a message with this routing key belongs in that queue."""
    patterns = LOG_QUEUES.get(queue, (queue,))
    return any(
        key == p or (p.endswith(".*") and key.startswith(p[:-1]) and "." not in key[len(p) - 1 :]) for p in patterns
    )


def broker_of(queue: str) -> str:
    """The broker type of `[brokers]` whose pool serves a queue."""
    return ADMIN if queue in LOG_QUEUES else queue


def brokers_of(queues: Iterable[str], settings: Settings) -> list[Broker]:
    """The pool settings of the queues that one worker serves: one for each broker type among them."""
    return [settings.broker(name) for name in dict.fromkeys(map(broker_of, queues))]


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """One queue: its name, its bindings and its arguments."""

    name: str
    exchange: str
    keys: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_kombu(self) -> Queue:
        """The queue as Celery consumes it.

        Its routing key has no wildcard: Celery binds the queue's exchange to its own delayed delivery by that key, and
        `#` would bring a copy of every task that is tried again.
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
        kind = {"x-queue-type": amqp_settings.queue_type}
        is_quorum = amqp_settings.queue_type == "quorum"
        limit = {"x-delivery-limit": amqp_settings.delivery_limit} if is_quorum else {}
        dead_lettered: dict[str, Any] = kind | limit | {"x-dead-letter-exchange": DEAD}
        # A full queue says so to who publishes, instead of dropping what waits longest.
        full = {"x-max-length": amqp_settings.max_queue_length, "x-overflow": "reject-publish"}
        limited = dead_lettered | (full if amqp_settings.max_queue_length else {})
        return cls(
            exchanges=(EVENTS, LOGS, DEAD),
            queues=(
                *(QueueSpec(name, EVENTS, (name,), limited) for name in EVENT_QUEUES),
                *(QueueSpec(name, LOGS, keys, dead_lettered) for name, keys in LOG_QUEUES.items()),
                # The last stop: it is read as raw messages, and never dead-letters further.
                QueueSpec(DEAD, DEAD, ("#",), kind | ({"x-delivery-limit": UNLIMITED} if is_quorum else {})),
            ),
        )

    def queue(self, name: str) -> QueueSpec:
        return next(q for q in self.queues if q.name == name)


Problems = dict[str, TopologyMismatch | PermissionDenied]
"""What cannot be declared, by the name of the exchange or queue."""


def declare(topology: Topology, connection: Connection) -> None:
    """Declare everything. Harmless to repeat.

    Args:
        topology: what is to exist.
        connection: a connection whose user may configure `beds.*` and the queues.

    Raises:
        TopologyMismatch: a queue or exchange exists with other arguments; names both sets.
        PermissionDenied: the AMQP user may not configure it.
        BrokerUnavailable: RabbitMQ cannot be reached.
    """
    for problem in declare_each(topology, connection).values():
        raise problem


def declare_each(topology: Topology, connection: Connection) -> Problems:
    """Declare what can be, in an order in which nothing can be lost, and say what keeps the rest from it, by name.

    Raises:
        BrokerUnavailable: RabbitMQ cannot be reached.
    """
    problems: Problems = {}
    try:
        connection.connect()
        for name in topology.exchanges:
            asked = {"type": "topic", "durable": True}
            with _explained("exchange", name, asked, problems), connection.channel() as channel:
                channel.exchange_declare(name, "topic", durable=True, auto_delete=False)
        for queue in topology.queues:
            with _explained("queue", queue.name, queue.arguments, problems), connection.channel() as channel:
                channel.queue_declare(queue.name, durable=True, auto_delete=False, arguments=dict(queue.arguments))
                for key in queue.keys:
                    channel.queue_bind(queue.name, queue.exchange, key)
    except connection.connection_errors as error:
        raise BrokerUnavailable(f"RabbitMQ at {connection.as_uri()} cannot be reached: {error}") from None
    return problems


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in a queue, and how many consumers it has."""

    messages: int
    consumers: int


def depths(names: Iterable[str], connection: Connection) -> dict[str, Depth | None]:
    """What waits in each queue; None for one that does not exist. Needs no right but to come in.

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
    """Turns RabbitMQ's refusal of a declaration into an error that names both sides and the way out, and notes it."""

    def __init__(self, kind: str, name: str, wanted: Mapping[str, Any], problems: Problems) -> None:
        self._what = f"{kind} {name}"
        self._name = name
        self._wanted = dict(wanted)
        self._problems = problems

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, amqp.PreconditionFailed):
            self._problems[self._name] = TopologyMismatch(
                f"{self._what} exists with other arguments; RabbitMQ says: {error.reply_text}",
                detail={"what": self._what, "wanted": self._wanted, "existing": _existing(error.reply_text)},
                hint=f"either set [amqp] in beds.toml to what exists, or empty it and delete it "
                f"(`rabbitmqctl delete_queue {self._name}`); wanted were {self._wanted}",
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
    """What RabbitMQ says it has: "inequivalent arg 'x-delivery-limit' … received '5' but current is '7'"."""
    found = re.search(r"inequivalent arg '([^']+)'.*(?:current is|but current is) (.+)$", reply_text)
    return {found[1]: found[2].strip("'\" ")} if found else {}

"""What RabbitMQ says to a node before it serves: that it is there, as declared, without alarm, and that both users have
the rights they need and no more.

Rights are found out by trying: the names are made up for the purpose, nothing is consumed, and nothing is left behind.
What a user may read is not tried, since that could take an event.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import amqp
from kombu import Connection

from beds.config import Settings
from beds.errors import BedsError
from beds.node.check import Check, failed, of_error, ok, skipped
from beds.transport.connection import connect_to
from beds.transport.topology import EVENTS, Topology, declare_each, local_pools, node_queue

ALARMS = "RabbitMQ's alarms"
UNROUTABLE = "probe.unroutable"
"""A routing key that no queue is bound to."""
SILENT_SECONDS = 10.0
"""After which a peer that has stopped talking is given up."""
ALARM_SECONDS = 3.0
"""How long RabbitMQ gets to say what becomes of a probe."""
NAME_SECONDS = 5.0
"""How long a name may still be held after its node's end, which RabbitMQ notices a moment later."""
_DEFINITIONS = "give it what `beds amqp definitions` prints, and nothing else"


def amqp_checks(settings: Settings, *, runs_here: bool) -> Iterator[Check]:
    """The workers' side first, since it declares what clients publish to.

    Args:
        settings: which services are local decides what is looked at.
        runs_here: whether this node's own supervisor runs, and holds the node's name.
    """

    def look(connection: Connection) -> Iterator[Check]:
        yield from _worker(connection, settings, runs_here)

    if local_pools(settings.services):
        yield from _connected("RabbitMQ, as worker", settings, settings.amqp.broker_url, "worker_url", look)
    else:
        yield skipped("RabbitMQ, as worker", "no worker runs on this node")
    yield from client_checks(settings)


def client_checks(settings: Settings) -> Iterator[Check]:
    """That the client's user can publish, and can do nothing else."""
    yield from _connected("RabbitMQ, as client", settings, settings.amqp.client_url, "url", _client)


Look = Callable[[Connection], Iterator[Check]]


class Blocked(Exception):
    """RabbitMQ raised an alarm: this connection gets no answer to anything any more, not even to its end."""


def _connected(name: str, settings: Settings, url: str, key: str, look: Look) -> Iterator[Check]:
    """Connect, and look around; one failed check when there is no connection."""
    connection = connect_to(settings.amqp, url, patience=SILENT_SECONDS)
    where = connection.as_uri()
    try:
        connection.connect()
        yield ok(name, f"connected to {where}")
        yield from look(connection)
    except (amqp.AccessRefused, amqp.NotAllowed) as error:
        remedy = f"check user, password and vhost in [amqp] {key}"
        yield failed(name, f"{where} refuses the user: {error.reply_text}", remedy)
    except Blocked as error:
        remedy = "give it memory or disk: `rabbitmqctl status` shows the alarm"
        yield failed(ALARMS, f"it takes no messages: {error}", remedy)
    except ssl.SSLError as error:
        yield failed(name, f"{where}: {error}", "check ca, certificate and key in [amqp.tls], and the name in the URL")
    except (OSError, amqp.AMQPError, ValueError, TypeError, BedsError) as error:  # ValueError, TypeError: an odd URL
        words = error.message if isinstance(error, BedsError) else str(error) or type(error).__name__
        yield failed(name, f"{where} cannot be reached: {words}", f"start RabbitMQ, or mend [amqp] {key}")
    finally:
        connection.collect()  # without waiting for the peer's word


def _worker(connection: Connection, settings: Settings, runs_here: bool) -> Iterator[Check]:
    topology = Topology.from_settings(settings.amqp)
    problems = declare_each(topology, connection)
    for name, problem in problems.items():
        yield of_error(f"topology of {name}", problem)
    if not problems:
        yield ok("topology", f"{len(topology.exchanges)} exchanges and {len(topology.queues)} queues are as declared")
    yield _limits(settings)
    yield _name(connection, settings, runs_here)
    too_much = []
    if _may(connection, _declare_another):
        too_much.append("declare queues of any name")
    if EVENTS not in problems:
        _may(connection, lambda channel: _publish(channel, EVENTS))
        yield ok(ALARMS, "none")
    if _may(connection, lambda channel: _publish(channel, "amq.topic")):
        too_much.append("publish to any exchange")
    yield _rights("worker's AMQP rights", too_much, "declares, consumes and replies")


def _client(connection: Connection) -> Iterator[Check]:
    name = "client's AMQP rights"
    try:
        _on_channel(connection, lambda channel: _publish(channel, EVENTS))
    except amqp.NotFound:
        remedy = "start a node with workers first, or `beds topology declare` with the workers' user"
        yield failed(name, f"there is no exchange {EVENTS} yet", remedy)
        return
    except amqp.AccessRefused as error:
        if "topic" not in error.reply_text:  # a client of a few keys is refused another one, which is as it should be
            yield failed(name, f"it may not publish to {EVENTS}", _DEFINITIONS)
            return
    too_much = []
    if _may(connection, _declare_another):
        too_much.append("declare queues")
    if _may(connection, lambda channel: _publish(channel, "")):
        too_much.append("publish to any queue")
    yield _rights(name, too_much, f"publishes to {EVENTS}")


def _rights(name: str, too_much: list[str], needed: str) -> Check:
    if too_much:
        return failed(name, f"its user may also {' and '.join(too_much)}", _DEFINITIONS)
    return ok(name, f"{needed}, and no more")


def _limits(settings: Settings) -> Check:
    amqp_settings = settings.amqp
    if amqp_settings.queue_type != "quorum":
        return failed("limits", "classic queues count no deliveries: an event that ends its worker comes back for ever",
                      'set queue_type = "quorum" in [amqp]')  # fmt: skip
    longest = max((broker.time_limit for broker in settings.brokers.values()), default=0)
    return ok(
        "limits",
        f"{amqp_settings.delivery_limit} deliveries; longest time limit {longest} s, "
        f"consumer timeout {amqp_settings.consumer_timeout} s",
    )


def _name(connection: Connection, settings: Settings, runs_here: bool) -> Check:
    """Whether another node has this one's name. A running node holds an exclusive queue of its name."""
    name = settings.node.name
    if runs_here:
        return ok("node's name", f"{name} is held by the supervisor that runs here")
    deadline = time.monotonic() + NAME_SECONDS
    while True:
        try:
            _on_channel(connection, lambda channel: channel.queue_declare(node_queue(name), passive=True))
        except amqp.NotFound:
            return ok("node's name", f"no other node is named {name}")
        except amqp.ResourceLocked:
            if time.monotonic() > deadline:
                break
            time.sleep(NAME_SECONDS / 10)
    return failed("node's name", f"another node is named {name}", "give each node a name of its own in [node]")


def _may(connection: Connection, act: Callable[[Any], None]) -> bool:
    try:
        _on_channel(connection, act)
    except amqp.AccessRefused:
        return False
    return True


def _on_channel(connection: Connection, act: Callable[[Any], None]) -> None:
    """Act on a channel. It is closed in order when all went well: a refusal closes it, an alarm lets nothing close."""
    channel = connection.channel()
    act(channel)
    channel.close()


def _declare_another(channel: Any) -> None:
    name = f"surplus.{secrets.token_hex(4)}"
    channel.queue_declare(name, exclusive=True, auto_delete=True)
    channel.queue_delete(name)


def _publish(channel: Any, exchange: str) -> None:
    """Publish a message that no queue takes, and wait until RabbitMQ says that it has it. Raises Blocked."""
    message = amqp.Message("probe", content_type="text/plain")
    reasons: list[str] = []
    channel.connection.on_blocked = reasons.append
    try:
        channel.basic_publish_confirm(
            message, exchange, UNROUTABLE, timeout=ALARM_SECONDS, confirm_timeout=ALARM_SECONDS
        )
    except TimeoutError:
        raise Blocked(reasons[0] if reasons else "it does not say why") from None

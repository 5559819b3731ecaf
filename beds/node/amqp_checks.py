"""The start-up checks of RabbitMQ: its connection, topology and alarms, and its users' missing and surplus rights.

Rights are checked by attempts with random names, which consume nothing and leave nothing behind. Read permissions are
not checked, since an attempt could consume an event.
"""

from __future__ import annotations

import contextlib
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import amqp
from kombu import Connection

from beds.config import Settings
from beds.domain.event import OPERATOR
from beds.errors import BedsError
from beds.node.check import Check, failed, of_error, ok, skipped
from beds.transport.connection import connect_to
from beds.transport.topology import Topology, declare_each
from beds.wire.routes import EVENTS, LOGS, local_pools, node_queue

ALARMS = "RabbitMQ's alarms"
UNROUTABLE = "probe.unroutable"
"""A routing key that no queue is bound to."""
SILENT_SECONDS = 10.0
"""Timeout for a peer that stops sending."""
ALARM_SECONDS = 3.0
"""Timeout for the confirm of a probe."""
NAME_SECONDS = 5.0
"""Time for which a name may be held after its node's end, until RabbitMQ closes the connection."""
_DEFINITIONS = "give it what `beds amqp definitions` prints, and nothing else"


def amqp_checks(settings: Settings, *, runs_here: bool) -> Iterator[Check]:
    """Check the workers' user first, since it declares the exchanges that clients publish to.

    Args:
        settings: its local services decide which users are checked.
        runs_here: whether this node's own supervisor runs and holds the node's name.
    """

    def look(connection: Connection) -> Iterator[Check]:
        yield from _worker(connection, settings, runs_here)

    if local_pools(settings.services):
        yield from _connected("RabbitMQ, as worker", settings, settings.amqp.broker_url, "worker_url", look)
    else:
        yield skipped("RabbitMQ, as worker", "no worker runs on this node")
    yield from client_checks(settings)


def client_checks(settings: Settings) -> Iterator[Check]:
    """Check that the users of clients, the app server and the operator may publish, and nothing else."""
    yield from _connected("RabbitMQ, as client", settings, settings.amqp.client_url, "url", _client)
    if settings.services.app_server.is_local and settings.amqp.http_url is not None:
        url = settings.amqp.http_url.get_secret_value()
        yield from _connected("RabbitMQ, as app server", settings, url, "http_url", _client)
    if settings.amqp.operator_url is not None:
        url = settings.amqp.operator_url.get_secret_value()
        yield from _connected("RabbitMQ, as operator", settings, url, "operator_url", _operator)


Look = Callable[[Connection], Iterator[Check]]


class Blocked(Exception):
    """RabbitMQ raised an alarm: it no longer replies on this connection, not even to a close."""


def _connected(name: str, settings: Settings, url: str, key: str, look: Look) -> Iterator[Check]:
    """Connect, and run the checks of `look`; one failed check if there is no connection."""
    connection = connect_to(settings.amqp, url, patience=SILENT_SECONDS)
    where = connection.where
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
        connection.collect()  # closes the socket without waiting for the peer


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
    too_much = []
    try:
        # No queue is bound to this key and no client needs it, so topic permissions must refuse it.
        _on_channel(connection, lambda channel: _publish(channel, EVENTS))
        too_much.append("publish with any key, an operator's too")
    except amqp.NotFound:
        remedy = "start a node with workers first, or `beds topology declare` with the workers' user"
        yield failed(name, f"there is no exchange {EVENTS} yet", remedy)
        return
    except amqp.AccessRefused as error:
        if "topic" not in error.reply_text:  # a refusal by topic permissions is the expected result
            yield failed(name, f"it may not publish to {EVENTS}", _DEFINITIONS)
            return
    forbidden = {
        f"publish to {EVENTS} with an operator's key": (EVENTS, OPERATOR),
        f"publish to {EVENTS} with a delayed key, which holds a slot": (EVENTS, f"{'0.' * 28}{UNROUTABLE}"),
        f"publish to {LOGS} with any key, audits too": (LOGS, UNROUTABLE),
        f"publish audits to {LOGS}": (LOGS, "audit"),
    }
    too_much += [
        what
        for what, (exchange, key) in forbidden.items()
        if _may(connection, lambda channel, e=exchange, k=key: _try_key(channel, e, k))  # type: ignore[misc]
    ]
    if _may(connection, _declare_another):
        too_much.append("declare queues")
    if _may(connection, lambda channel: _publish(channel, "")):
        too_much.append("publish to any queue")
    yield _rights(name, too_much, f"publishes to {EVENTS}")


def _operator(connection: Connection) -> Iterator[Check]:
    too_much = []
    if _may(connection, lambda channel: _try_key(channel, EVENTS, UNROUTABLE)):
        too_much.append("publish with any key")
    if _may(connection, lambda channel: _try_key(channel, LOGS, "audit")):
        too_much.append(f"publish audits to {LOGS}")
    if _may(connection, _declare_another):
        too_much.append("declare queues")
    if _may(connection, lambda channel: _publish(channel, "")):
        too_much.append("publish to any queue")
    yield _rights("operator's AMQP rights", too_much, f"publishes to {EVENTS}")


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
    """Check that no other node has this one's name. A running node holds an exclusive queue of its name."""
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
    """Act on a channel, and close it on success. A refusal has closed it already, and an alarm prevents a close."""
    channel = connection.channel()
    act(channel)
    channel.close()


def _try_key(channel: Any, exchange: str, key: str) -> None:
    """Test whether the user may publish with a key, without a delivery.

    RabbitMQ checks the key first, and then refuses the message for its foreign user id.
    Raises amqp.AccessRefused: the key is not allowed; Blocked.
    """
    with contextlib.suppress(amqp.PreconditionFailed):
        _publish(channel, exchange, key, user_id=f"nobody.{secrets.token_hex(4)}")


def _declare_another(channel: Any) -> None:
    name = f"surplus.{secrets.token_hex(4)}"
    channel.queue_declare(name, exclusive=True, auto_delete=True)
    channel.queue_delete(name)


def _publish(channel: Any, exchange: str, key: str = UNROUTABLE, **properties: Any) -> None:
    """Publish a message that no queue takes, and wait for its confirm. Raises Blocked."""
    message = amqp.Message("probe", content_type="text/plain", **properties)
    reasons: list[str] = []
    channel.connection.on_blocked = reasons.append
    try:
        channel.basic_publish_confirm(message, exchange, key, timeout=ALARM_SECONDS, confirm_timeout=ALARM_SECONDS)
    except TimeoutError:
        raise Blocked(reasons[0] if reasons else "it does not say why") from None

"""The least rights that each AMQP user needs, as values.

`beds amqp definitions`, the local stack and the start-up checks all use them.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from beds.config.sections import Amqp, Flower
from beds.domain.event import CALGON
from beds.errors import ConfigurationError, nearest
from beds.wire.routes import CRUD_QUEUES, EVENT_QUEUES, EVENTS, JOB_QUEUES, LEVELS, LOGS

NOTHING = "^$"
CELERYS = r"celery|reply\.celery\.|.+\.celery\.pidbox$"
"""Exchanges and queues that Celery's workers declare: monitoring events, pidboxes, delayed delivery."""
WORKERS = rf"^(beds\.|({'|'.join(map(re.escape, EVENT_QUEUES))})$|{CELERYS})"


@dataclass(frozen=True, slots=True)
class Rights:
    """RabbitMQ's three permissions: patterns of the names that a user may configure, write to and read from.

    `topics` pairs an exchange with the pattern of the routing keys that the user may publish with.
    """

    configure: str
    write: str
    read: str
    topics: tuple[tuple[str, str], ...] = ()


WORKER = Rights(WORKERS, rf"{WORKERS}|^amq\.default$", WORKERS)
"""Declares the topology, consumes, and replies through the default exchange."""
CLIENT = Rights(
    NOTHING, rf"^({re.escape(EVENTS)}|{re.escape(LOGS)})$", NOTHING, ((LOGS, rf"^log\.({'|'.join(LEVELS)})$"),)
)
"""Publishes events and its own logs; only workers publish other records. Direct reply-to needs no right."""
DEFAULT_KEYS = (*CRUD_QUEUES, CALGON)
"""Routing keys of an application's client; jobs and the operator's queue are granted by name."""
ADMINISTRATOR = Rights(".*", ".*", ".*")
MONITOR = Rights(NOTHING, NOTHING, NOTHING)
"""Reads queue states through the management API (tag `monitoring`), and no messages."""


def client_for(keys: Sequence[str]) -> Rights:
    """The rights of a client that may use some queues only.

    Args:
        keys: routing keys on beds.events; `DEFAULT_KEYS` when empty.

    Raises:
        ConfigurationError: there is no such key.
    """
    for key in keys:
        if key not in EVENT_QUEUES:
            raise ConfigurationError(
                f"no routing key {key!r}{nearest(key, EVENT_QUEUES)}", hint=f"the keys: {', '.join(EVENT_QUEUES)}"
            )
    # Match whole keys only: kombu also binds each queue by `#.<key>`, for events that a worker delays.
    allowed = (EVENTS, f"^({'|'.join(map(re.escape, keys or DEFAULT_KEYS))})$")
    return Rights(CLIENT.configure, CLIENT.write, CLIENT.read, (*CLIENT.topics, allowed))


@dataclass(frozen=True, slots=True)
class User:
    """One AMQP user, with the password kept out of its `repr`."""

    name: str
    hashed: str
    rights: Rights
    tags: str = ""

    @classmethod
    def of(cls, url: str, rights: Rights, tags: str = "") -> User:
        """The user of an AMQP URL. Raises ConfigurationError: it names none, or no password."""
        parts = urlsplit(url)
        if not parts.username or not parts.password:
            raise ConfigurationError(
                f"the URL of {parts.hostname} has no user and password",
                hint="set BEDS_AMQP__URL, BEDS_AMQP__WORKER_URL and BEDS_FLOWER__BROKER_API with both",
            )
        return cls(unquote(parts.username), _hashed(unquote(parts.password)), rights, tags)


def users_of(amqp: Amqp, keys: Sequence[str] = ()) -> list[User]:
    """The users that beds.toml names: the client's, the workers', and where it names them the app server's and the
    operator's.

    Args:
        amqp: the URLs.
        keys: the client's routing keys; `DEFAULT_KEYS` when empty.

    Raises:
        ConfigurationError: a URL without user or password, two URLs with one user, or different vhosts.
    """
    if vhost_of(amqp.client_url) != vhost_of(amqp.broker_url):
        raise ConfigurationError("[amqp] url and worker_url name different vhosts", hint="a node works in one")
    client, worker = User.of(amqp.client_url, client_for(keys)), User.of(amqp.broker_url, WORKER)
    if client.name == worker.name:
        raise ConfigurationError(
            f"clients and workers share the AMQP user {client.name}, which then has the workers' rights",
            hint="give workers a user of their own in [amqp] worker_url",
        )
    found = [client, worker]
    if amqp.http_url is not None:
        http = User.of(amqp.http_url.get_secret_value(), client_for((*DEFAULT_KEYS, *JOB_QUEUES)))
        if http.name == worker.name:
            raise ConfigurationError(
                f"the app server and workers share the AMQP user {http.name}, which then has the workers' rights",
                hint="give the app server a user of its own in [amqp] http_url",
            )
        found += [http] if http.name != client.name else []
    if amqp.operator_url is None:
        return found
    operator = User.of(amqp.operator_url.get_secret_value(), client_for(EVENT_QUEUES))
    if operator.name in [user.name for user in found]:
        raise ConfigurationError(
            f"the operator's AMQP user {operator.name} is that of others, who then have an operator's rights",
            hint="give operators a user of their own in [amqp] operator_url",
        )
    return [*found, operator]


def monitor_of(flower: Flower) -> list[User]:
    """Flower's user for the management API; empty when `[flower] broker_api` is not set."""
    url = flower.broker_api.get_secret_value()
    return [User.of(url, MONITOR, "monitoring")] if url else []


def definitions(vhost: str, users: Sequence[User]) -> dict[str, Any]:
    """A definitions file as RabbitMQ imports it: https://www.rabbitmq.com/docs/definitions"""
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {
                "name": user.name,
                "password_hash": user.hashed,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": user.tags,
            }
            for user in users
        ],
        "permissions": [
            {
                "user": user.name,
                "vhost": vhost,
                "configure": user.rights.configure,
                "write": user.rights.write,
                "read": user.rights.read,
            }
            for user in users
        ],
        "topic_permissions": [
            {"user": user.name, "vhost": vhost, "exchange": exchange, "write": keys, "read": NOTHING}
            for user in users
            for exchange, keys in user.rights.topics
        ],
    }


def vhost_of(url: str) -> str:
    """The vhost in an AMQP URL; `/` when it names none."""
    return unquote(urlsplit(url).path[1:]) or "/"


def _hashed(password: str) -> str:
    """RabbitMQ's salted SHA-256: https://www.rabbitmq.com/docs/passwords"""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()

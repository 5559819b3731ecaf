"""What each AMQP user may do, as values: the least that its part of the system needs.

`beds amqp definitions`, the local stack and the start-up checks all read it here.
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
from beds.transport.topology import EVENT_QUEUES, EVENTS, LOGS

NOTHING = "^$"
CELERYS = r"celery|reply\.celery\.|.+\.celery\.pidbox$"
"""Exchanges and queues that Celery's workers declare for themselves: monitoring events, pid boxes, delayed delivery."""
_PREFIXES = "|".join(sorted({re.escape(queue.split(".")[0]) for queue in EVENT_QUEUES if "." in queue}))
WORKERS = rf"^(beds\.|({_PREFIXES})\.|{CALGON}$|{CELERYS})"


@dataclass(frozen=True, slots=True)
class Rights:
    """Patterns of the names that a user may configure, write to and read from: RabbitMQ's own three.

    `topics` limits, for an exchange, the routing keys that it may write with.
    """

    configure: str
    write: str
    read: str
    topics: tuple[tuple[str, str], ...] = ()


WORKER = Rights(WORKERS, rf"{WORKERS}|^amq\.default$", WORKERS)
"""Declares the topology, consumes, and replies through the default exchange."""
CLIENT = Rights(NOTHING, rf"^({re.escape(EVENTS)}|{re.escape(LOGS)})$", NOTHING, ((LOGS, r"^log\."),))
"""Publishes events and its own logs; the rest of beds.logs is the workers' word. Direct reply-to needs no right."""
ADMINISTRATOR = Rights(".*", ".*", ".*")
MONITOR = Rights(NOTHING, NOTHING, NOTHING)
"""Looks at queues through the management API (tag `monitoring`), and touches none."""


def client_for(keys: Sequence[str]) -> Rights:
    """The rights of a client that may use some queues only.

    Args:
        keys: routing keys on beds.events; all when empty.

    Raises:
        ConfigurationError: there is no such key.
    """
    for key in keys:
        if key not in EVENT_QUEUES:
            raise ConfigurationError(
                f"no routing key {key!r}{nearest(key, EVENT_QUEUES)}", hint=f"the keys: {', '.join(EVENT_QUEUES)}"
            )
    # Named also when it is everything: an import adds, and would leave an earlier limit in place.
    allowed = (EVENTS, f"^({'|'.join(map(re.escape, keys))})$" if keys else ".*")
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
    """The users that beds.toml names: the client's and the workers'.

    Args:
        amqp: both URLs.
        keys: what the client may publish to; all when empty.

    Raises:
        ConfigurationError: a URL without user or password, or one user for both.
    """
    if vhost_of(amqp.client_url) != vhost_of(amqp.broker_url):
        raise ConfigurationError("[amqp] url and worker_url name different vhosts", hint="a node works in one")
    client, worker = User.of(amqp.client_url, client_for(keys)), User.of(amqp.broker_url, WORKER)
    if client.name == worker.name:
        raise ConfigurationError(
            f"clients and workers share the AMQP user {client.name}, which then has the workers' rights",
            hint="give workers a user of their own in [amqp] worker_url",
        )
    return [client, worker]


def monitor_of(flower: Flower) -> list[User]:
    """The user with whom Flower asks RabbitMQ about queues; none where `[flower] broker_api` is not set."""
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

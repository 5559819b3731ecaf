"""Makes all connections to RabbitMQ, with the same timeouts, and TLS that verifies the server's name.

An address may name several hosts, the nodes of a cluster. A connection tries them in random order, those that
failed lately last.
"""

from __future__ import annotations

import random
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

import amqp
from kombu import Connection
from kombu.utils.url import parse_url

from beds.config.hosts import each_host
from beds.config.sections import Amqp
from beds.transport.frames import limit_calls

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
FIRST_TRY_SECONDS = 1.0
"""The longest attempt at one host while others were not tried."""
AVOID_SECONDS = 15.0
"""A host that failed is tried last for this time."""

_failed_at: dict[str, float] = {}
"""When each host failed last, in monotonic seconds; by its URL."""


class HostsConnection(Connection):  # type: ignore[misc]  # kombu has no types
    """kombu's connection, over the first of several hosts that completes the handshake.

    kombu tries a further host only after a whole timeout of the one before, and only where it retries at all.
    """

    ssl: Any
    transport_options: dict[str, Any]

    def establish(self) -> amqp.Connection:
        """Open a connection of py-amqp, which its caller closes.

        The time limit is that of one attempt, `connect_timeout`, for all hosts together. A host that refuses the user
        ends the attempt, since all of them know the same users.

        Raises:
            OSError, AMQPError: no host can be reached; the error of the last one.
        """
        urls = self._ordered()
        deadline = time.monotonic() + self._initial_params["connect_timeout"]
        slow: list[str] = []
        for number, url in enumerate(urls if len(urls) > 1 else []):
            left = deadline - time.monotonic()
            try:
                return self._open(url, min(FIRST_TRY_SECONDS, left / (len(urls) - number + 1)))
            except (amqp.AccessRefused, amqp.NotAllowed):
                raise
            except TimeoutError:
                slow.append(url)
            except (OSError, amqp.AMQPError, UnicodeError):  # UnicodeError: a name that DNS cannot have
                pass
            _failed_at[url] = time.monotonic()
        # One of those that did not refuse gets all the time that is left: it may only be slow.
        return self._open(random.choice(slow or urls), max(deadline - time.monotonic(), 0.05))

    def _init_params(self, **params: Any) -> None:
        """Use py-amqp without asking for another driver.

        kombu would try to import librabbitmq for each connection. A process that is forked meanwhile would wait for
        ever for that module's lock, which a thread of its parent held.
        """
        named = params["transport"] or "amqp"
        super()._init_params(**params | {"transport": "pyamqp"})
        self.transport_cls = named

    def _establish_connection(self) -> amqp.Connection:
        return self.establish()

    @property
    def where(self) -> str:
        """All hosts, for messages; without the password."""
        if len(self.alt) < 2:
            return str(self.as_uri())
        first = urlsplit(self.alt[0])
        hosts = ",".join(urlsplit(url).netloc.rpartition("@")[2] for url in self.alt)
        user = f"{first.username}:**@" if first.username else ""
        return f"{first.scheme}://{user}{hosts}{first.path}"

    def _open(self, url: str, seconds: float) -> amqp.Connection:
        named = _parameters(url) if url else {}
        self._init_params(**{**self._initial_params, **named, "connect_timeout": seconds})
        if isinstance(self.ssl, dict):
            self.ssl = dict(self.ssl)  # kombu writes the server's name into it
        options = self.transport_options
        patience = {name: options.get(name) for name in ("read_timeout", "write_timeout")}
        # A host that accepts, and then says nothing, must not take the time of the others.
        self.transport_options = options | {name: min(limit or seconds, seconds) for name, limit in patience.items()}
        try:
            opened = self.transport.establish_connection()
        finally:
            self.transport_options = options
            self.connect_timeout = self._initial_params["connect_timeout"]
        limit_calls(opened.sock, patience["read_timeout"] or 0, patience["write_timeout"] or 0)
        return opened

    def _ordered(self) -> list[str]:
        """The URL of each host: those that failed lately last, and otherwise in random order."""
        if len(self.alt) < 2:
            return list(self.alt) or [""]
        urls = list(self.alt)
        random.shuffle(urls)
        soon = time.monotonic() - AVOID_SECONDS
        return sorted(urls, key=lambda url: max(_failed_at.get(url, 0.0), soon))


def _parameters(url: str) -> dict[str, Any]:
    """kombu's parameters of a URL. Where it names no port, kombu would keep that of the host before."""
    found: dict[str, Any] = parse_url(url)
    return found | {"port": found["port"] or DEFAULT_PORTS[found["transport"]]}


def connect_to(settings: Amqp, url: str, *, patience: float | None = None, **options: Any) -> HostsConnection:
    """A connection, opened at its first use.

    Args:
        settings: `[amqp]` of beds.toml.
        url: `settings.client_url` or `settings.broker_url`; it holds the AMQP user.
        patience: read and write timeout in seconds, for a caller that waits; no timeout when absent.
        options: kombu's; they override those that come from the settings.
    """
    defaults: dict[str, Any] = {"heartbeat": settings.heartbeat_seconds, "connect_timeout": settings.connect_timeout}
    if patience is not None:
        defaults["transport_options"] = {"read_timeout": patience, "write_timeout": patience}
    return HostsConnection(each_host(url), ssl=tls_options(settings, url), **defaults | options)


def tls_options(settings: Amqp, url: str) -> dict[str, Any] | bool:
    """py-amqp's TLS options for an `amqps` URL; False for another. By default py-amqp verifies no server name."""
    if not url.startswith("amqps://"):
        return False
    options: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}  # None: the URL's host
    return options | (settings.tls.named("ca_certs", "certfile", "keyfile") if settings.tls else {})

"""Connections to RabbitMQ, all made in one way: the same patience, and TLS with the peer's name checked."""

from __future__ import annotations

import ssl
from typing import Any

from kombu import Connection

from beds.config.sections import Amqp


def connect_to(settings: Amqp, url: str, *, patience: float | None = None, **options: Any) -> Connection:
    """A connection, opened at its first use.

    Args:
        settings: `[amqp]` of beds.toml.
        url: as whom; `settings.client_url` or `settings.broker_url`.
        patience: seconds after which a peer that says nothing is given up, for who asks and waits; none when absent.
        options: kombu's, beside those that come from the settings.
    """
    defaults: dict[str, Any] = {"heartbeat": settings.heartbeat, "connect_timeout": settings.connect_timeout}
    if patience is not None:
        defaults["transport_options"] = {"read_timeout": patience, "write_timeout": patience}
    return Connection(url, ssl=tls_options(settings, url), **defaults | options)


def tls_options(settings: Amqp, url: str) -> dict[str, Any] | bool:
    """How py-amqp is to speak TLS to an `amqps` URL; False for another. It checks no name unless it is told to."""
    if not url.startswith("amqps://"):
        return False
    options: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}  # None: the URL's host
    return options | (settings.tls.named("ca_certs", "certfile", "keyfile") if settings.tls else {})

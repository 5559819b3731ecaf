"""Makes all connections to RabbitMQ, with the same timeouts, and TLS that verifies the server's name."""

from __future__ import annotations

import ssl
from typing import Any

from kombu import Connection

from beds.config.sections import Amqp


def connect_to(settings: Amqp, url: str, *, patience: float | None = None, **options: Any) -> Connection:
    """A connection, opened at its first use.

    Args:
        settings: `[amqp]` of beds.toml.
        url: `settings.client_url` or `settings.broker_url`; it holds the AMQP user.
        patience: read and write timeout in seconds, for a caller that waits; no timeout when absent.
        options: kombu's; they override those that come from the settings.
    """
    defaults: dict[str, Any] = {"heartbeat": settings.heartbeat, "connect_timeout": settings.connect_timeout}
    if patience is not None:
        defaults["transport_options"] = {"read_timeout": patience, "write_timeout": patience}
    return Connection(url, ssl=tls_options(settings, url), **defaults | options)


def tls_options(settings: Amqp, url: str) -> dict[str, Any] | bool:
    """py-amqp's TLS options for an `amqps` URL; False for another. By default py-amqp verifies no server name."""
    if not url.startswith("amqps://"):
        return False
    options: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}  # None: the URL's host
    return options | (settings.tls.named("ca_certs", "certfile", "keyfile") if settings.tls else {})

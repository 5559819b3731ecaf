"""The clients that commands use."""

from __future__ import annotations

from beds.client.client import Client
from beds.config import load_settings


def records_client(config: str | None) -> Client:
    """A client that reads BEDS's own records.

    If beds.toml names an operator, it is the operator's client, which sees the records of all users.
    Otherwise it is the application's client, which sees its own records.
    """
    settings = load_settings(config)
    return Client(settings, operator=settings.amqp.operator_url is not None)


def operator_client(config: str | None) -> Client:
    """A client for operator commands. Raises ConfigurationError: beds.toml names no operator."""
    return Client(load_settings(config), operator=True)

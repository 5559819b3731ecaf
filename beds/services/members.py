"""The members of every cluster that a node reaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from beds.config import Settings
from beds.domain.event import Store
from beds.domain.member import Members
from beds.errors import BedsError
from beds.services.factory import AdapterFactory
from beds.transport.members import rabbitmq_hosts, rabbitmq_nodes

LOOK_SECONDS = 3.0
"""A server has this time to answer a question about its members."""
SERVERS = {Store.REC: "MongoDB", Store.REL: "MariaDB"}


def all_members(settings: Settings, factory: AdapterFactory) -> Iterator[Members]:
    """The members of RabbitMQ, MongoDB and MariaDB, as far as this node knows their addresses.

    Args:
        settings: the addresses.
        factory: asks the databases.
    """
    nodes = rabbitmq_nodes(settings)
    url = settings.amqp.broker_url
    if nodes.members:
        yield nodes
    else:
        hosts = rabbitmq_hosts(settings, url)
        yield replace(hosts, problem=nodes.problem if settings.flower.broker_api.get_secret_value() else "")
    for store, server in SERVERS.items():
        if getattr(settings.databases, store) is None:
            continue
        try:
            health = factory.examine(store)
        except BedsError as error:
            yield Members(server, problem=error.message)
        else:
            yield Members(server, health.members, lag=health.lag)

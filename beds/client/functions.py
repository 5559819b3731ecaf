"""The functions of the package `beds`: the methods of `Client`, called on the default client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beds.client.bound_template import BoundTemplate
from beds.client.call import Call
from beds.client.client import default_client
from beds.client.jobs import JobTicket
from beds.client.lineage import Node
from beds.client.tickets import Ticket
from beds.domain.change import Changes
from beds.domain.description import Description
from beds.domain.reply import Page, Reply, Response


def call(operation: str, template: str, data: Any = None, **options: Any) -> Reply:
    """`Client.call` of the default client."""
    return default_client().call(operation, template, data, **options)


def fetch(template: str, using: str = "", args: Mapping[str, Any] | None = None, **options: Any) -> Page:
    """`Client.fetch` of the default client."""
    return default_client().fetch(template, using, args, **options)


def write(operation: str, template: str, data: Any, **options: Any) -> Response:
    """`Client.write` of the default client."""
    return default_client().write(operation, template, data, **options)


def submit(operation: str, template: str, data: Any = None, **options: Any) -> Ticket:
    """`Client.submit` of the default client."""
    return default_client().submit(operation, template, data, **options)


def submit_job(name: str, args: Mapping[str, Any] | None = None, /, **options: Any) -> JobTicket:
    """`Client.submit_job` of the default client."""
    return default_client().submit_job(name, args, **options)


def job(guid: str, **options: Any) -> JobTicket:
    """`Client.job` of the default client."""
    return default_client().job(guid, **options)


def call_many(calls: Sequence[Call], **options: Any) -> Any:
    """`Client.call_many` of the default client."""
    return default_client().call_many(calls, **options)


def submit_many(calls: Sequence[Call], **options: Any) -> list[Ticket]:
    """`Client.submit_many` of the default client."""
    return default_client().submit_many(calls, **options)


def template(name: str) -> BoundTemplate:
    """`Client.template` of the default client."""
    return default_client().template(name)


def describe(template: str, **options: Any) -> Description:
    """`Client.describe` of the default client."""
    return default_client().describe(template, **options)


def changes(template: str, after: str = "", **options: Any) -> Changes:
    """`Client.changes` of the default client."""
    return default_client().changes(template, after, **options)


def lineage(of: str, **options: Any) -> Node:
    """`Client.lineage` of the default client."""
    return default_client().lineage(of, **options)


def ticket(guid: str, **options: Any) -> Ticket:
    """`Client.ticket` of the default client."""
    return default_client().ticket(guid, **options)

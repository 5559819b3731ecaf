"""BEDS, Back-End Data Services: an AMQP-first data-access framework for teams whose DBA owns the schema.

    beds.call("fetch_records", "Airports", {"faa": "JFK"}, using="by_faa")

The functions use one client per process, made at the first use from beds.toml; `beds.Client` is the explicit form.
`beds.app` is the Celery application of the workers.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from beds.client.bound_template import BoundTemplate
from beds.client.call import Call
from beds.client.client import Client, default_client
from beds.client.jobs import JobTicket
from beds.client.lineage import Node
from beds.client.tickets import Ticket
from beds.config import Settings, load_settings
from beds.domain.change import Change, Changes
from beds.domain.description import Description
from beds.domain.identity import ObjectId
from beds.domain.reply import Page, Reply, Response
from beds.domain.ticket import Progress, TicketState, TicketStatus
from beds.domain.trace import trace_context
from beds.errors import BedsError
from beds.transport.log_handler import LogHandler

__all__ = [
    "BedsError",
    "BoundTemplate",
    "Call",
    "Change",
    "Changes",
    "Client",
    "Description",
    "JobTicket",
    "LogHandler",
    "ObjectId",
    "Page",
    "Progress",
    "Reply",
    "Response",
    "Settings",
    "Ticket",
    "TicketState",
    "TicketStatus",
    "aio",
    "app",
    "call",
    "call_many",
    "changes",
    "describe",
    "fetch",
    "job",
    "lineage",
    "load_settings",
    "submit",
    "submit_job",
    "submit_many",
    "template",
    "ticket",
    "trace_context",
    "write",
]


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


def __getattr__(name: str) -> Any:
    # `celery -A beds` reads beds.app; a client that never reads it does not import Celery.
    if name == "app":
        from beds.worker.app import app

        return app
    if name == "aio":
        return importlib.import_module("beds.client.aio")
    raise AttributeError(f"module 'beds' has no attribute {name!r}")

"""BEDS, Back-End Data Services: an AMQP-first data-access framework for teams whose DBA owns the schema.

    beds.call("fetch_records", "Airports", {"faa": "JFK"}, using="by_faa")

The functions use one client per process, made at the first use from beds.toml; `beds.Client` is the explicit form.
`beds.app` is the Celery application of the workers.

Each public name is imported at its first use, so `import beds` loads neither pydantic nor Celery.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beds.client import aio
    from beds.client.bound_template import BoundTemplate
    from beds.client.call import Call
    from beds.client.client import Client
    from beds.client.functions import (
        call,
        call_many,
        changes,
        describe,
        fetch,
        job,
        lineage,
        submit,
        submit_job,
        submit_many,
        template,
        ticket,
        write,
    )
    from beds.client.jobs import JobTicket
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
    from beds.worker.app import app

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

_HOMES: Mapping[str, str] = {
    "BedsError": "beds.errors",
    "BoundTemplate": "beds.client.bound_template",
    "Call": "beds.client.call",
    "Change": "beds.domain.change",
    "Changes": "beds.domain.change",
    "Client": "beds.client.client",
    "Description": "beds.domain.description",
    "JobTicket": "beds.client.jobs",
    "LogHandler": "beds.transport.log_handler",
    "ObjectId": "beds.domain.identity",
    "Page": "beds.domain.reply",
    "Progress": "beds.domain.ticket",
    "Reply": "beds.domain.reply",
    "Response": "beds.domain.reply",
    "Settings": "beds.config",
    "Ticket": "beds.client.tickets",
    "TicketState": "beds.domain.ticket",
    "TicketStatus": "beds.domain.ticket",
    "app": "beds.worker.app",
    "call": "beds.client.functions",
    "call_many": "beds.client.functions",
    "changes": "beds.client.functions",
    "describe": "beds.client.functions",
    "fetch": "beds.client.functions",
    "job": "beds.client.functions",
    "lineage": "beds.client.functions",
    "load_settings": "beds.config",
    "submit": "beds.client.functions",
    "submit_job": "beds.client.functions",
    "submit_many": "beds.client.functions",
    "template": "beds.client.functions",
    "ticket": "beds.client.functions",
    "trace_context": "beds.domain.trace",
    "write": "beds.client.functions",
}
"""The module of each public name."""
_SUBMODULES: Mapping[str, str] = {
    "aio": "beds.client.aio",
    "client": "beds.client",
    "config": "beds.config",
    "domain": "beds.domain",
    "errors": "beds.errors",
    "templates": "beds.templates",
    "transport": "beds.transport",
    "wire": "beds.wire",
}
"""Modules that are available after `import beds` alone."""


if not TYPE_CHECKING:  # with it, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use (PEP 562). `celery -A beds` reads `beds.app` by this."""
        if name in _HOMES:
            found = getattr(importlib.import_module(_HOMES[name]), name)
        elif name in _SUBMODULES:
            found = importlib.import_module(_SUBMODULES[name])
        else:
            raise AttributeError(f"module 'beds' has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The Celery application: `celery -A beds …` finds it as `beds.app`."""

from __future__ import annotations

import importlib.util
import sys
from functools import cached_property
from typing import Any, NoReturn

import click
from celery import Celery

from beds.broker.telemetry import Telemetry
from beds.config import Settings, load_settings
from beds.errors import BedsError
from beds.services.dead import DeadStore
from beds.services.factory import AdapterFactory
from beds.services.records import RecordStore
from beds.services.tickets import TicketStore
from beds.templates.registry import TemplateRegistry
from beds.transport.connection import tls_options

EX_CONFIG = 78
"""sysexits.h: what a supervisor reads as "do not start it again, it cannot work"."""


class BedsApp(Celery):
    """Celery with what the tasks need: the node's settings, its templates, its adapters."""

    socket_timeout: float | None = None
    """Seconds; the worker sets it by the limits of its pool."""

    @cached_property
    def settings(self) -> Settings:
        return load_settings()

    @cached_property
    def registry(self) -> TemplateRegistry:
        return TemplateRegistry.from_folder(self.settings.schema_path)

    @cached_property
    def factory(self) -> AdapterFactory:
        return AdapterFactory(self.settings, self.registry, self.socket_timeout)

    @cached_property
    def tickets(self) -> TicketStore:
        return TicketStore(self.factory, self.settings.calgon.result_ttl)

    @cached_property
    def telemetry(self) -> Telemetry:
        return Telemetry(self.settings, self.registry)

    @cached_property
    def dead(self) -> DeadStore:
        return DeadStore(self.factory, self.settings.logging.ttl_days)

    @cached_property
    def records(self) -> RecordStore:
        return RecordStore(self.factory, self.settings.logging.ttl_days)

    @cached_property
    def Worker(self) -> Any:
        """The worker that takes its size from beds.toml."""
        return self.subclass_with_self("beds.broker.worker:BedsWorker")


def _celery_settings(settings: Settings) -> Any:
    """celeryconfig.py beside beds.toml; in a client-only environment, which has none, what looking at tasks needs."""
    file = settings.root / "celeryconfig.py"
    spec = importlib.util.spec_from_file_location("celeryconfig", file)
    if not file.is_file() or spec is None or spec.loader is None:
        return {
            "broker_url": settings.amqp.client_url,
            "broker_use_ssl": tls_options(settings.amqp, settings.amqp.client_url),
            "result_backend": "beds.broker.backend:ReplyBackend",
            "task_serializer": "json",
            "accept_content": ["json"],
        }
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refuse_to_start(error: BedsError) -> NoReturn:
    """End a `celery -A beds …` command with words instead of a traceback."""
    print(f"beds: {error}", file=sys.stderr)  # noqa: T201 — logging is not set up yet
    raise SystemExit(EX_CONFIG) from None


app = BedsApp("beds")
try:
    app.config_from_object(_celery_settings(app.settings))
except BedsError as refused:
    if click.get_current_context(silent=True) is None:
        raise  # imported by a program, which may catch it
    refuse_to_start(refused)

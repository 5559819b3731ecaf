"""The Celery application: `celery -A beds …` finds it as `beds.app`."""

from __future__ import annotations

import importlib.util
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import click
from celery import Celery

from beds.broker.process import EX_CONFIG, EX_TEMPFAIL
from beds.broker.telemetry import Telemetry
from beds.config import Settings, load_settings
from beds.errors import BedsError
from beds.services.dead import DeadStore
from beds.services.factory import AdapterFactory
from beds.services.records import RecordStore
from beds.services.tickets import TicketStore
from beds.templates.registry import TemplateRegistry

SHIPPED = Path(__file__).parent.parent / "scaffold" / "celeryconfig.py"
"""What `beds init` copies."""


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
    """celeryconfig.py beside beds.toml; where there is none, the one that BEDS ships."""
    own = settings.root / "celeryconfig.py"
    file = own if own.is_file() else SHIPPED
    spec = importlib.util.spec_from_file_location("celeryconfig", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refuse_to_start(error: BedsError) -> NoReturn:
    """End a `celery -A beds …` command with words instead of a traceback."""
    print(f"beds: {error}", file=sys.stderr)  # noqa: T201 — logging is not set up yet
    raise SystemExit(EX_TEMPFAIL if error.retryable else EX_CONFIG) from None


app = BedsApp("beds")
try:
    app.config_from_object(_celery_settings(app.settings))
except BedsError as refused:
    if click.get_current_context(silent=True) is None:
        raise  # imported by a program, which may catch it
    refuse_to_start(refused)

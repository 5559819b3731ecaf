"""The Celery application: `celery -A beds …` finds it as `beds.app`."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import click
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.app.amqp import AMQP

from beds.config import Settings, load_settings
from beds.config.hosts import each_host, secret_of
from beds.errors import BedsError, ConfigurationError
from beds.services.changes import ChangeLog
from beds.services.dead import DeadStore
from beds.services.execution import Execution
from beds.services.factory import AdapterFactory
from beds.services.jobs.jobs import Jobs
from beds.services.jobs.making import make_work, read_ms
from beds.services.jobs.schedule import Schedule
from beds.services.jobs.store import JobStore
from beds.services.jobs.throttle import Throttle
from beds.services.members import LOOK_SECONDS
from beds.services.records import RecordStore
from beds.services.tickets import TicketStore
from beds.templates.registry import TemplateRegistry
from beds.transport.connection import HostsConnection
from beds.wire.routes import QUEUE_ROUTES
from beds.worker.job_events import JobEvents
from beds.worker.process import EX_CONFIG, EX_TEMPFAIL
from beds.worker.telemetry import Telemetry, kill_process_unacked

SHIPPED = Path(__file__).parent.parent / "scaffold" / "celeryconfig.py"
"""`beds init` copies this file."""


class BedsAmqp(AMQP):
    """Celery's connections, over the first host that can be reached."""

    Connection = HostsConnection


class BedsApp(Celery):
    """Celery, with the objects that tasks need: settings, templates, adapters and stores."""

    amqp_cls = BedsAmqp
    socket_timeout: float | None = None
    """Seconds; the worker derives it from its pool's time limits."""
    prefetch: Mapping[str, int] = {}
    """The most unacknowledged events of a slot, by queue; the worker sets it."""

    def connection_for_read(self, url: Any = None, **options: Any) -> HostsConnection:
        return super().connection_for_read(self._hosts(url), **options)  # type: ignore[no-any-return]

    def connection_for_write(self, url: Any = None, **options: Any) -> HostsConnection:
        return super().connection_for_write(self._hosts(url), **options)  # type: ignore[no-any-return]

    def _hosts(self, url: Any) -> Any:
        """All hosts of the address for workers, in place of its first one."""
        hosts = each_host(self.settings.amqp.broker_url)
        return hosts if url in (None, hosts[0]) else url

    @cached_property
    def settings(self) -> Settings:
        return load_settings()

    @cached_property
    def registry(self) -> TemplateRegistry:
        # In development a broken template file is skipped, and the others are served.
        return TemplateRegistry.from_folder(self.settings.schema_path, strict=self.settings.node.is_production)

    @cached_property
    def factory(self) -> AdapterFactory:
        return AdapterFactory(self.settings, self.registry, self.socket_timeout)

    @cached_property
    def members_factory(self) -> AdapterFactory:
        """Looks at the members of the databases, each of which has a few seconds."""
        return AdapterFactory(self.settings, self.registry, LOOK_SECONDS)

    @cached_property
    def tickets(self) -> TicketStore:
        return TicketStore(self.factory, self.settings.calgon.result_ttl)

    @cached_property
    def telemetry(self) -> Telemetry:
        return Telemetry(self.settings, self.registry)

    @cached_property
    def execution(self) -> Execution:
        return Execution(
            self.factory,
            self.tickets,
            self.telemetry,
            max_body_bytes=self.settings.amqp.max_body_bytes,
            patience=lambda queue: self.settings.broker(QUEUE_ROUTES[queue].pool).soft_limit / 2,
            interrupts=SoftTimeLimitExceeded,
            # The ledger must still know a write that was committed when its event is delivered again.
            longest_wait=min(self.settings.calgon.result_ttl, self.settings.ledger.ttl / 2),
            give_up=kill_process_unacked,
        )

    @cached_property
    def dead(self) -> DeadStore:
        return DeadStore(self.factory, self.settings.logging.ttl_days)

    @cached_property
    def job_events(self) -> JobEvents:
        return JobEvents(self.settings)

    @cached_property
    def job_store(self) -> JobStore:
        return JobStore(self.factory, self.settings.logging.ttl_days, secret_of(self.settings.amqp.broker_url))

    @cached_property
    def jobs(self) -> Jobs:
        read = read_ms(self.factory)
        return Jobs(
            self.settings,
            self.registry,
            self.job_store,
            self.tickets,
            self.job_events,
            make_work(self.factory, self.settings, self.job_store),
            Throttle(self.registry, self.job_events.waiting, read, self.factory.adapter),
            self.telemetry.chunk_ended,
            SoftTimeLimitExceeded,
        )

    @cached_property
    def schedule(self) -> Schedule:
        return Schedule(self.settings.node, self.settings.amqp.workers, self.registry, self.job_store, self.jobs)

    @cached_property
    def records(self) -> RecordStore:
        return RecordStore(self.factory, self.settings.logging.ttl_days)

    @cached_property
    def changes(self) -> ChangeLog:
        return ChangeLog(self.factory, self.settings.logging.ttl_days, self.settings.amqp.max_body_bytes // 2)

    @cached_property
    def Worker(self) -> Any:
        """The worker class that reads its pool size and limits from beds.toml."""
        return self.subclass_with_self("beds.worker.program:BedsWorker")


def _celery_settings(settings: Settings) -> Any:
    """Load the celeryconfig.py beside beds.toml, or the shipped one when there is none."""
    own = settings.root / "celeryconfig.py"
    file = own if own.is_file() else SHIPPED
    spec = importlib.util.spec_from_file_location("celeryconfig", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refuse_to_start(error: BedsError) -> NoReturn:
    """End a `celery -A beds …` command with the error's message instead of a traceback."""
    print(f"beds: {error}", file=sys.stderr)  # noqa: T201 — logging is not set up yet
    raise SystemExit(EX_TEMPFAIL if error.retryable else EX_CONFIG) from None


def _guard_flower(settings: Settings) -> None:
    """Set the environment of `celery -A beds flower`, with its password; Flower reads it after this.

    Without a password, any web page open on the same machine could make Flower shut a pool down.

    Raises:
        ConfigurationError: no password is set.
    """
    if "flower" not in sys.argv[1:] or click.get_current_context(silent=True) is None:
        return
    given = {name.lower() for name in os.environ} | set(sys.argv)
    for name, value in {**settings.flower.environment, "FLOWER_PORT": str(settings.flower.port)}.items():
        os.environ.setdefault(name, value)
    if "FLOWER_BASIC_AUTH" not in os.environ and not any(re.match(r"(--|flower_)(basic[-_])?auth", g) for g in given):
        raise ConfigurationError("Flower has no password", hint="set BEDS_FLOWER__BASIC_AUTH=user:password")


app = BedsApp("beds")
try:
    app.config_from_object(_celery_settings(app.settings))
    _guard_flower(app.settings)
except BedsError as refused:
    if click.get_current_context(silent=True) is None:
        raise  # a program imports this module, and may catch the error
    refuse_to_start(refused)

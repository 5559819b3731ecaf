"""The worker program: Celery's worker, sized by beds.toml; it declares the topology before it consumes."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import amqp
import click
from celery.apps.worker import Worker
from celery.signals import (
    after_setup_logger,
    worker_ready,
    worker_shutdown,
)
from click.core import ParameterSource
from prometheus_client import REGISTRY

from beds.config import Settings
from beds.config.sections import Broker
from beds.domain.event import RecordKind, Store
from beds.domain.job import JobKind
from beds.errors import BedsError, ConfigurationError, PermissionDenied, nearest
from beds.services.factory import AdapterFactory
from beds.transport import topology
from beds.transport.log_handler import LogHandler
from beds.wire import routes
from beds.wire.routes import JOB_QUEUES, QUEUE_ROUTES, RECORD_QUEUES
from beds.worker.admin import PROMETHEUS
from beds.worker.app import app as beds_app
from beds.worker.app import refuse_to_start
from beds.worker.consumer import ValidatingConsumer, refuse_compression
from beds.worker.dead_letters import DeadLetterConsumer
from beds.worker.frames import guard_decoding
from beds.worker.job_events import JobClock
from beds.worker.member_metrics import MembersCollector
from beds.worker.process import READY_FILE, unique_name
from beds.worker.slots import control
from beds.worker.slots.pool import DeclaredOnly, SlotPool

_startup_problems: list[str] = []
"""Problems found before logging is set up; in development the worker starts nevertheless, and logs them."""
logger = logging.getLogger("celery.beds")


class BedsWorker(Worker):
    """A pool of brokers.

    Concurrency, pool, prefetch and time limits come from the command line, else from `[brokers]` of beds.toml for the
    queues in `-Q`. With several queues the slots add up, and the widest limits apply.
    """

    def __init__(self, app: Any = None, hostname: str | None = None, **options: Any) -> None:
        app = app or self.app  # set on the class by Celery.subclass_with_self
        settings: Settings = app.settings
        try:
            queues = _queues(options.get("queues"), settings)
            size = _size(settings, queues)
            with app.connection_for_write() as connection:
                _connect(connection)
                _declare(settings, queues, connection)
            _check_bindings(app, queues)
            _serve_metrics(settings, queues)
        except BedsError as error:
            logger.critical("%s", error)
            refuse_to_start(error)
        given = _given_on_command_line()
        options["queues"] = queues
        from_beds_toml = {
            "loglevel": settings.logging.level,
            "concurrency": size.instances,
            "pool": size.pool,
            "prefetch_multiplier": size.prefetch,
            "time_limit": size.time_limit,
            "soft_time_limit": size.soft_limit,
            "max_tasks_per_child": size.max_tasks_per_child,
            "max_memory_per_child": size.max_memory_per_child,
        }
        options |= {name: value for name, value in from_beds_toml.items() if not given(name)}
        if options["pool"] == "slots":
            options["pool"] = SlotPool
            app.prefetch = {
                queue: int(options["prefetch_multiplier"])
                if given("prefetch_multiplier")
                else settings.broker(QUEUE_ROUTES[queue].pool).prefetch
                for queue in queues
            }
            app.amqp.Consumer = DeclaredOnly
            app.backend.worker_pid = os.getpid()
            control.install()
        options["consumer_cls"] = ValidatingConsumer
        hard = float(options["time_limit"] or size.time_limit)
        app.socket_timeout = max(1.0, min(float(options["soft_time_limit"] or size.soft_limit) + 1, hard - 1))
        refuse_compression()
        guard_decoding()
        # Workers need no news of each other, and thousands of them would exchange many messages.
        options["without_gossip"] = options["without_mingle"] = True
        super().__init__(
            app=app, hostname=hostname if given("hostname") else unique_name(settings.node.name, queues), **options
        )


def _declare(settings: Settings, queues: list[str], connection: Any) -> None:
    """Declare the topology. In development, a mismatch of a queue that this worker does not consume is only logged.

    Raises:
        TopologyMismatch, PermissionDenied: an exchange or a consumed queue cannot be declared; in production, any.
    """
    for name, problem in topology.declare_each(topology.Topology.from_settings(settings.amqp), connection).items():
        if settings.node.is_production or name in queues or name not in routes.QUEUES:
            raise problem
        _startup_problems.append(str(problem))


def _connect(connection: Any) -> None:
    """Connect, and retry for as long as RabbitMQ is away. Raises PermissionDenied: RabbitMQ refuses the user."""
    try:
        connection.ensure_connection(errback=_still_trying, interval_step=1, interval_max=10)
    except (amqp.AccessRefused, amqp.NotAllowed) as error:
        raise PermissionDenied(
            f"RabbitMQ at {connection.as_uri()} refuses the worker: {error.reply_text}",
            hint="check user, password and vhost in [amqp] worker_url",
        ) from None


def _queues(named: Any, settings: Settings) -> list[str]:
    """The queues to consume: those of `-Q`, else those of the node's own services."""
    if isinstance(named, str):
        named = named.split(",")
    if not named:
        named = [queue for pool in routes.local_pools(settings.services) for queue in pool]
    if not named:
        raise ConfigurationError("no queue to consume", hint="give -Q, or set is_local for a service in beds.toml")
    known = routes.QUEUES
    for name in named:
        if name not in known:
            raise ConfigurationError(
                f"no queue {name!r} to consume{nearest(name, known)}",
                hint=f"the queues: {', '.join(known)}"
                if name != routes.DEAD
                else "dead events are read as raw messages; running them again would kill the next worker",
            )
    return list(named)


def _size(settings: Settings, queues: list[str]) -> Broker:
    pools = routes.brokers_of(queues, settings)
    kinds = {pool.pool for pool in pools}
    if len(kinds) > 1:
        raise ConfigurationError(
            f"the queues {', '.join(queues)} are configured for different pools: {', '.join(sorted(kinds))}",
            hint="start one worker for each",
        )
    widest = max(pools, key=lambda pool: pool.time_limit)
    return widest.model_copy(
        update={"instances": sum(p.instances for p in pools), "prefetch": max(p.prefetch for p in pools)}
    )


def _check_bindings(app: Any, queues: list[str]) -> None:
    """Bind every template of the stores served here; the connections are closed before the pool forks."""
    stores = {store for queue in queues for store in stores_of(queue, app.settings)}
    _startup_problems.extend(str(problem) for problem in app.registry.broken)
    with contextlib.closing(AdapterFactory(app.settings, app.registry)) as factory:
        for name, template in app.registry.items():
            if template.store not in stores:
                continue
            try:
                problems: list[BedsError] = list(factory.adapter(name).check_bindings())
            except BedsError as error:
                problems = [error]
            for problem in problems:
                if app.settings.node.is_production:
                    raise problem
                _startup_problems.append(f"template {name} does not work here: {problem}")


def stores_of(queue: str, settings: Settings) -> set[Store]:
    """The stores that a queue's workers use; those of jobs use all that the node has."""
    if queue in JOB_QUEUES:
        return {store for store in Store if getattr(settings.databases, store) is not None}
    store = QUEUE_ROUTES[queue].store
    return {store} if store else set()


def _serve_metrics(settings: Settings, queues: list[str]) -> None:
    """Open the Prometheus endpoint if this worker consumes the metrics and beds.toml names an address."""
    address = settings.metrics.prometheus
    if not address or RECORD_QUEUES[RecordKind.METRIC].name not in queues:
        return
    try:
        PROMETHEUS.serve(address)
        members = MembersCollector(settings, beds_app.registry)
        REGISTRY.register(members)
        members.start()
        worker_shutdown.connect(lambda **_: members.stop(), weak=False)
    except ConfigurationError as error:
        if settings.node.is_production:
            raise
        _startup_problems.append(str(error))


def _given_on_command_line() -> Any:
    context = click.get_current_context(silent=True)

    def given(name: str) -> bool:
        return context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE

    return given


def _still_trying(error: BaseException, interval: float) -> None:
    logger.error("RabbitMQ cannot be reached (%s); trying again in %.0f s", error, interval)


@worker_ready.connect
def _on_ready(sender: Any, **_: Any) -> None:
    for problem in _startup_problems:
        logger.error("%s", problem)
    pool = sender.controller.pool
    if isinstance(pool, SlotPool):
        pool.begin()
    for kind in JobKind:
        if kind.queue in beds_app.amqp.queues.consume_from:
            clock = JobClock(beds_app.settings, beds_app.job_events, kind)
            clock.start()
            worker_shutdown.connect(lambda clock=clock, **_: clock.stop(), weak=False)
            break  # one look is enough for all kinds
    if RECORD_QUEUES[RecordKind.AUDIT].name in beds_app.amqp.queues.consume_from:
        dead_letters = DeadLetterConsumer(beds_app)
        dead_letters.start()
        worker_shutdown.connect(lambda **_: dead_letters.stop(), weak=False)
    if named := os.environ.get(READY_FILE):
        Path(named).touch()


@after_setup_logger.connect
def _send_logs(logger: logging.Logger, **_: Any) -> None:
    """Send the worker's log records to msLogs, in addition to its own output."""
    logger.addHandler(LogHandler(beds_app.settings, beds_app.telemetry.shipper))

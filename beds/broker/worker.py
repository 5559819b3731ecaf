"""The worker program: Celery's, sized by beds.toml, and with the whole topology declared before it consumes."""

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
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
)
from click.core import ParameterSource

from beds.broker.admin import GAUGES
from beds.broker.app import app as beds_app
from beds.broker.app import refuse_to_start
from beds.broker.intake import Intake, refuse_compression, refuse_deep_headers
from beds.broker.process import READY_FILE, unique_name
from beds.broker.undertaker import Undertaker
from beds.config import Settings
from beds.config.sections import Broker
from beds.domain.event import CALGON, RecordKind, Store
from beds.errors import BedsError, ConfigurationError, PermissionDenied, nearest
from beds.services.factory import AdapterFactory
from beds.transport import topology
from beds.transport.log_handler import LogHandler
from beds.transport.topology import record_queue

_told_later: list[str] = []
"""What was found wrong before there was a log; in development the worker starts all the same."""
logger = logging.getLogger("celery.beds")


class BedsWorker(Worker):
    """A pool of brokers.

    What the command line does not say comes from `[brokers]` of beds.toml: concurrency, pool, prefetch and time limits
    of the queues in `-Q`. With several queues the slots add up, and the widest limits hold.
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
            _serve_metrics(settings, queues, size)
        except BedsError as error:
            logger.critical("%s", error)
            refuse_to_start(error)
        if size.pool == "prefork":
            app.backend.worker_pid = os.getpid()
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
        options["consumer_cls"] = Intake
        hard = float(options["time_limit"] or size.time_limit)
        app.socket_timeout = max(1.0, min(float(options["soft_time_limit"] or size.soft_limit) + 1, hard - 1))
        refuse_compression()
        refuse_deep_headers()
        # Nodes do not need to know of each other, and thousands of them would talk a lot.
        options["without_gossip"] = options["without_mingle"] = True
        super().__init__(
            app=app, hostname=hostname if given("hostname") else unique_name(settings.node.name, queues), **options
        )


def _declare(settings: Settings, queues: list[str], connection: Any) -> None:
    """Declare the topology. In development a queue of others that is not as it should be is theirs to mend.

    Raises:
        TopologyMismatch, PermissionDenied: what this worker needs cannot be declared; in production, anything.
    """
    for name, problem in topology.declare_each(topology.Topology.from_settings(settings.amqp), connection).items():
        if settings.node.is_production or name in queues or name not in topology.QUEUES:
            raise problem
        _told_later.append(str(problem))


def _connect(connection: Any) -> None:
    """Connect, however long RabbitMQ is away. Raises PermissionDenied: it refuses the user, which no patience mends."""
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
        named = [queue for pool in topology.local_pools(settings.services) for queue in pool]
    if not named:
        raise ConfigurationError("no queue to consume", hint="give -Q, or set is_local for a service in beds.toml")
    known = topology.QUEUES
    for name in named:
        if name not in known:
            raise ConfigurationError(
                f"no queue {name!r} to consume{nearest(name, known)}",
                hint=f"the queues: {', '.join(known)}"
                if name != topology.DEAD
                else "dead events are read as raw messages; running them again would kill the next worker",
            )
    return list(named)


def _size(settings: Settings, queues: list[str]) -> Broker:
    pools = topology.brokers_of(queues, settings)
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
    """Bind every template of the stores served here, over connections that are closed again before the pool forks."""
    stores = {queue.split(".")[0] for queue in queues} & {str(store) for store in Store}
    if CALGON in queues or topology.LOG_QUEUES.keys() & set(queues):
        stores.add(str(Store.REC))
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
                _told_later.append(f"template {name} does not work here: {problem}")


def _serve_metrics(settings: Settings, queues: list[str], size: Broker) -> None:
    """Open the Prometheus endpoint, where this worker takes the metrics and beds.toml names one."""
    address = settings.metrics.prometheus
    if not address or record_queue(RecordKind.METRIC) not in queues:
        return
    if size.pool == "prefork":
        raise ConfigurationError(
            "[metrics] prometheus needs the metrics in one process, and the admin worker's pool is prefork",
            hint='set pool = "threads" for "admin" in [brokers]',
        )
    try:
        GAUGES.serve(address)
    except ConfigurationError as error:
        if settings.node.is_production:
            raise
        _told_later.append(str(error))


def _given_on_command_line() -> Any:
    context = click.get_current_context(silent=True)

    def given(name: str) -> bool:
        return context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE

    return given


def _still_trying(error: BaseException, interval: float) -> None:
    logger.error("RabbitMQ cannot be reached (%s); trying again in %.0f s", error, interval)


@worker_ready.connect
def _tell_ready(sender: Any, **_: Any) -> None:
    for problem in _told_later:
        logger.error("%s", problem)
    if record_queue(RecordKind.AUDIT) in beds_app.amqp.queues.consume_from:
        undertaker = Undertaker(beds_app)
        undertaker.start()
        worker_shutdown.connect(lambda **_: undertaker.stop(), weak=False)
    if named := os.environ.get(READY_FILE):
        Path(named).touch()


@worker_process_init.connect
def _open_in_child(**_: Any) -> None:
    """Open the child's own factory before the first event: a driver's connection must not cross the fork."""
    beds_app.factory  # noqa: B018 — a cached property; making it is the point


@after_setup_logger.connect
def _send_logs(logger: logging.Logger, **_: Any) -> None:
    """What a worker logs goes to msLogs, beside its own output."""
    logger.addHandler(LogHandler(beds_app.settings, beds_app.telemetry.shipper))


@worker_process_shutdown.connect
def _flush_in_child(**_: Any) -> None:
    """A pool's child ends without Python's own end, at which the parent flushes."""
    beds_app.telemetry.shipper.close()

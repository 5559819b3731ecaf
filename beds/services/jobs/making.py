"""Makes the work of a job from its rule."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Protocol

from beds.adapters.bulk import BulkAdapter
from beds.config import Settings
from beds.core.namaste import Query
from beds.domain.clock import now
from beds.domain.histogram import percentile
from beds.domain.job import Job, JobKind
from beds.errors import ConfigurationError, nearest
from beds.services.jobs.aggregate import Aggregate
from beds.services.jobs.mapping import RecordMap
from beds.services.jobs.move import Move
from beds.services.jobs.store import JobStore
from beds.services.jobs.work import Work
from beds.templates.registry import TemplateRegistry
from beds.templates.rules import JobRule
from beds.wire import codec

METRIC_SECONDS = 30.0


class BulkAdapters(Protocol):
    """Makes adapters; see `AdapterFactory`."""

    registry: TemplateRegistry

    def adapter(self, template_name: str) -> BulkAdapter: ...


def make_work(factory: BulkAdapters, settings: Settings, store: JobStore) -> Callable[[Job, JobRule], Work]:
    """The function that makes a job's work."""

    def make(job: Job, rule: JobRule) -> Work:
        args: Mapping[str, Any] = codec.loads(job.args)
        source = factory.adapter(rule.job.source)
        if rule.kind is JobKind.AGGREGATE:
            return Aggregate(source, rule, args, store, settings.amqp.max_body_bytes // 3)
        if rule.job.cold:
            return _files(settings, store, source, rule, args, job)
        assert rule.job.to is not None
        target = factory.adapter(rule.job.to)
        forward = RecordMap.of(rule, source.template, target.template)
        if job.restore:
            return Move(target, source, forward.reversed(), rule.job.read, args, rule.run, keep_source=False)
        return Move(source, target, forward, rule.job.read, args, rule.run, keep_source=rule.job.keep_source)

    return make


def _files(
    settings: Settings, store: JobStore, source: BulkAdapter, rule: JobRule, args: Mapping[str, Any], job: Job
) -> Work:
    """The work of a job with files.

    Raises:
        ConfigurationError: beds.toml names no such place, or a package is missing.
    """
    name = rule.job.cold or ""
    config = settings.cold.get(name)
    if config is None:
        raise ConfigurationError(
            f"job {rule.name} writes to {name!r}, and beds.toml has no [cold.{name}]{nearest(name, settings.cold)}",
            hint=f'add [cold.{name}] url = "file:///…" to the beds.toml of each jobs node',
        )
    try:
        cold = importlib.import_module("beds.services.jobs.cold")
        storage = importlib.import_module("beds.services.jobs.storage").Storage(config, settings.root, rule.name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"files need {error.name}, which is not installed", hint="pip install 'beds[cold]'"
        ) from None
    if job.restore:
        return cold.FromFiles(source, rule, storage, store, job.restore, job.restored_user)  # type: ignore[no-any-return]
    return cold.ToFiles(source, rule, args, storage, store)  # type: ignore[no-any-return]


def read_ms(factory: BulkAdapters) -> Callable[[str], float | None]:
    """The function that returns p99 of a queue's events in the last half minute, in milliseconds."""

    def read(queue: str) -> float | None:
        since = now() - timedelta(seconds=METRIC_SECONDS)
        buckets: list[int] = []
        for record in factory.adapter("msMetrics").fetch_records(Query("recent", {"since": since}, 1000)):
            if record["meta"]["queue"] == queue:
                found = list(record["buckets"])
                buckets = [a + b for a, b in zip(buckets or [0] * len(found), found, strict=True)]
        return percentile(buckets, 99) if buckets else None

    return read

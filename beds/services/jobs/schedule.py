"""Starts the jobs that are due. Every jobs node looks each minute; the key of msJobs keeps the first of equal runs."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from beds.config.sections import Node
from beds.domain.clock import now
from beds.domain.job import Job, JobState
from beds.errors import BedsError, JobAlreadyRunning
from beds.services.jobs.jobs import Jobs, first_lanes, settings_of
from beds.services.jobs.store import JobStore
from beds.services.jobs.throttle import at
from beds.templates.registry import TemplateRegistry
from beds.templates.rules import JobRule
from beds.wire import codec

logger = logging.getLogger("celery.beds.jobs")

PUNCTUAL = timedelta(minutes=5)
"""A run that starts later counts as missed."""


class Schedule:
    """Starts what is due.

    Args:
        node: of this worker.
        user: the AMQP user that scheduled jobs belong to.
        registry: templates and rules.
        store: msJobs, which also says when a rule was last due.
        jobs: starts a job.
        clock: returns the current time; replaced in tests.
    """

    def __init__(
        self,
        node: Node,
        user: str,
        registry: TemplateRegistry,
        store: JobStore,
        jobs: Jobs,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._node, self._user, self._registry = node, user, registry
        self._store, self._jobs, self._clock = store, jobs, clock

    def start_due(self) -> list[str]:
        """Start each rule whose time has come. Returns their names."""
        started = []
        for name, rule in self._registry.jobs.items():
            if rule.schedule is None:
                continue
            try:
                if (due := self._due(rule)) is not None:
                    self._jobs.start_scheduled(self._job(rule, due), rule)
                    started.append(name)
            except JobAlreadyRunning:
                logger.info("job %s is due while its last run goes on: it is left out", name)
            except BedsError as error:
                logger.error("job %s is due, and does not start: %s", name, error)
        return started

    def _due(self, rule: JobRule) -> datetime | None:
        """When the run is due that has to be started now; None if there is none.

        A run is due at most once: not again after its time, and not when a clock was set back.
        """
        assert rule.schedule is not None
        moment = self._clock().astimezone(UTC)
        due = at(moment, rule.schedule.at)
        if due > moment:
            due -= timedelta(days=1)
        last = self._store.last_due(rule.name)
        if last is not None and due <= last:
            return None
        former = self._store.last_of(rule.name)
        if former is not None and former.covers(due):
            return None  # it was running then, so this run is left out
        is_late = moment - due > PUNCTUAL
        if is_late and (last is None or rule.schedule.missed == "skip"):
            return None  # a new rule begins with its next time
        return due

    def _job(self, rule: JobRule, due: datetime) -> Job:
        """The job of a due run. Its guid follows from the rule and the time, so that every node makes the same one."""
        guid = _guid_at(due, f"{rule.name} {due.isoformat()}")
        event_id = f"{self._node.name}.{self._node.environment}.{guid}"
        args = rule.arguments(self._registry[rule.job.source], {}, due)
        return Job(
            user=self._user,
            guid=guid,
            version=0,
            rule=rule.name,
            kind=rule.kind,
            state=JobState.RUNNING,
            settings=settings_of(rule),
            args=codec.dumps(args).decode(),
            event_id=event_id,
            root_id=event_id,
            lanes=first_lanes(rule),
            due_at=due,
            made_at=now(),
            changed_at=now(),
        )


_NAMESPACE = uuid.UUID("0d0c4f1e-52f3-5d0e-8d61-54b3c3a0c6d4")


def _guid_at(moment: datetime, text: str) -> str:
    """A UUIDv7 of this time whose other bits follow from the text: https://www.rfc-editor.org/rfc/rfc9562"""
    milliseconds = int(moment.timestamp() * 1000)
    rest = uuid.uuid5(_NAMESPACE, text).int & ((1 << 76) - 1)
    value = (milliseconds << 80) | (0x7 << 76) | rest
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return str(uuid.UUID(int=value))

"""The tasks of the job queues: the start of a job, one of its chunks, and the tick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beds.domain.event import CHUNK, TICK
from beds.domain.job import JobKind
from beds.domain.reply import Response
from beds.domain.trace import Trace
from beds.errors import BrokerUnavailable, StoreUnavailable
from beds.services.execution import Postpone, Redeliver
from beds.services.jobs.jobs import Delivered
from beds.wire.routes import Kind
from beds.worker.task import EventTask, register


class JobTask(EventTask):
    """One event of a job."""

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        route = self.route
        delivered = Delivered(trace, route.task, route.queue.name, trace.summary, trace.actor)
        try:
            match route.verb:
                case verb if verb == CHUNK:
                    reply = self.app.jobs.chunk(delivered, body, redelivered=trace.redelivered)
                    trace.calls.clear()  # a chunk is one record of the lineage
                    return reply
                case verb if verb == TICK:
                    started = self.app.schedule.start_due()
                    return Response("", self.app.jobs.sweep() + len(started))
            return self._start(delivered, body)
        except StoreUnavailable as away:
            if route.verb == TICK:
                raise Redeliver(away.message) from None
            raise Postpone(away.message) from None

    def _start(self, delivered: Delivered, body: Mapping[str, Any]) -> Any:
        try:
            return self.app.jobs.start(delivered, JobKind(self.route.queue.name.partition(".")[2]), body)
        except BrokerUnavailable as away:  # the job may be stored, and then runs without this event
            raise Redeliver(away.message) from None


TASKS = register(JobTask, Kind.JOB)

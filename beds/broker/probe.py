"""The doctor's tasks: each pool says that it answers, and that a task which tries again comes back to it."""

from __future__ import annotations

from typing import Any

from celery import Task

from beds.broker.app import app
from beds.broker.crud import arguments_of
from beds.domain.event import probe_for
from beds.transport.topology import EVENT_QUEUES

RETRY_SECONDS = 1
"""RabbitMQ-native delayed delivery counts whole seconds."""


class ProbeTask(Task):
    """Answers with the queue it came through and the worker that took it."""

    abstract = True
    typing = False
    max_retries = 1

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with self.app.telemetry.carrying_out(self.request):
            if arguments_of(kwargs).get("retry") and not self.request.retries:
                raise self.retry(countdown=RETRY_SECONDS)
            return {"worker": self.request.hostname, "retries": self.request.retries}


def _make(queue: str) -> Task:
    name = probe_for(queue)
    return type(name, (ProbeTask,), {"name": name, "__module__": __name__})()


TASKS = [app.register_task(_make(queue)) for queue in EVENT_QUEUES]

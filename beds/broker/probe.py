"""The doctor's tasks: each pool says that it answers, and that a task which tries again comes back to it."""

from __future__ import annotations

from typing import Any

from celery import Task

from beds.broker.app import app
from beds.broker.crud import arguments_of
from beds.domain.event import Store, probe_for
from beds.errors import BedsError
from beds.transport.topology import CRUD_QUEUES, EVENT_QUEUES

RETRY_SECONDS = 1
"""RabbitMQ-native delayed delivery counts whole seconds."""


class ProbeTask(Task):
    """Answers with the worker that took it, when its database answers, too."""

    abstract = True
    typing = False
    max_retries = 1
    throws = (BedsError,)
    queue: str

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with self.app.telemetry.carrying_out(self.request):
            if arguments_of(kwargs).get("retry") and not self.request.retries:
                raise self.retry(countdown=RETRY_SECONDS)
            if self.queue in CRUD_QUEUES:  # a pool that cannot reach its database does not serve
                self.app.factory.examine(Store(self.queue.split(".")[0]))
            return {"worker": self.request.hostname, "retries": self.request.retries}


def _make(queue: str) -> Task:
    name = probe_for(queue)
    return type(name, (ProbeTask,), {"name": name, "queue": queue, "__module__": __name__})()


TASKS = [app.register_task(_make(queue)) for queue in EVENT_QUEUES]

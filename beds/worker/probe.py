"""The doctor's tasks: each probe checks that a pool answers, and that a retried task returns to its queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beds.domain.trace import Trace
from beds.errors import StoreUnavailable
from beds.wire.header import HEADER, published_for
from beds.wire.routes import CRUD_QUEUES, Kind
from beds.worker.task import EventTask, attempt_of, register

RETRY_SECONDS = 1
"""RabbitMQ-native delayed delivery counts whole seconds."""


class ProbeTask(EventTask):
    """Replies with its worker's name; fails when the database of its queue does not answer."""

    abstract = True
    max_retries = 1

    def run(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("retry") is True and not self.request.retries:
            # The worker publishes the retry as its own AMQP user, and names the original sender in the header.
            user = attempt_of(self.app, self.request, kwargs).delivery.user
            mine = published_for(getattr(self.request, HEADER, None), user)
            headers = {**(self.request.headers or {}), HEADER: mine}
            raise self.retry(countdown=RETRY_SECONDS, user_id=self.app.settings.amqp.workers, headers=headers)
        return super().run(*args, **kwargs)

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        queue = self.route.queue
        store = queue.store if queue.name in CRUD_QUEUES else None
        # `examine` raises when the database cannot be reached.
        if store is not None and self.app.factory.examine(store).read_only and queue.writes:
            raise StoreUnavailable(f"the database of {queue.name} takes no writes: it is a replica")
        return {"worker": self.request.hostname, "retries": self.request.retries}


TASKS = register(ProbeTask, Kind.PROBE)

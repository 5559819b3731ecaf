"""The tasks of NamasteCore: one for each store and verb, `rec.create_record` to `rel.delete_record`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Task
from celery.exceptions import Reject

from beds.adapters.store import is_harmless
from beds.broker.app import app
from beds.broker.backend import as_beds_error
from beds.broker.progress import Ended, begin
from beds.domain.event import Operation, Store, task_for
from beds.domain.reply import Reply
from beds.domain.trace import Trace
from beds.errors import BedsError, MalformedEvent, StoreUnavailable
from beds.services.dispatch import carry_out
from beds.transport import codec

logger = logging.getLogger("celery.beds.crud")


class CrudTask(Task):
    """One verb on one store."""

    abstract = True
    typing = False  # the arguments are judged here, with an error that says what is wrong
    throws = (BedsError,)  # expected: answered, not logged with a traceback
    store: Store
    operation: Operation

    def run(self, *args: Any, **kwargs: Any) -> Reply | Ended:
        if args:
            raise MalformedEvent("an operation takes named arguments only", detail={"field": "args"})
        with self.app.telemetry.carrying_out(self.request) as trace:
            body = arguments_of(kwargs)
            template = body.pop("template", None)
            trace.operation, trace.body = self.operation, body
            trace.template = template if isinstance(template, str) else ""
            try:
                if ended := begin(self.app, self.request):
                    return ended
                return carry_out(self.app.factory, self.store, self.operation, template, body)
            except SoftTimeLimitExceeded as interrupted:
                error = as_beds_error(interrupted)
                if (found := self._noted(trace, error)) is not None:
                    return found
                raise error from None
            except StoreUnavailable as error:
                if self.operation.is_read or is_harmless(error):
                    raise
                # It may have happened. Delivered again, the ledger tells; an answer now could only be a guess.
                logger.warning("%s is in doubt: %s; it will be delivered again", self.request.id, error.message)
                raise Reject(error, requeue=True) from None

    def _noted(self, trace: Trace, error: BedsError) -> Reply | None:
        """Remember that a write ran out of time; what it was answered, when it had come to its end after all."""
        if self.operation.is_read or trace.template not in self.app.registry:
            return None
        found: Reply | None = self.app.factory.adapter(trace.template).note_failure(trace.lineage.guid, error)
        return found


def arguments_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A message's arguments, decoded. Raises MalformedEvent."""
    body = codec.decode(dict(kwargs))
    if not isinstance(body, dict):
        raise MalformedEvent("the arguments are a value, not names with values", detail={"field": "body"})
    return body


def _make(store: Store, operation: Operation) -> Task:
    name = task_for(store, operation)
    return type(name, (CrudTask,), {"name": name, "store": store, "operation": operation, "__module__": __name__})()


TASKS = [app.register_task(_make(store, operation)) for store in Store for operation in Operation]

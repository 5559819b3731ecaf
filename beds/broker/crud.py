"""The tasks of NamasteCore: one for each store and verb, `rec.create_record` to `rel.delete_record`."""

from __future__ import annotations

from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Task

from beds.broker.app import app
from beds.broker.backend import as_beds_error
from beds.domain.event import Operation, Store, task_for
from beds.domain.reply import Reply
from beds.errors import BedsError, MalformedEvent
from beds.services.dispatch import carry_out
from beds.transport import codec


class CrudTask(Task):
    """One verb on one store."""

    abstract = True
    Strategy = "beds.broker.intake:checked"
    typing = False  # the arguments are judged here, with an error that says what is wrong
    throws = (BedsError,)  # expected: answered, not logged with a traceback
    store: Store
    operation: Operation

    def run(self, *args: Any, **kwargs: Any) -> Reply:
        if args:
            raise MalformedEvent("an operation takes named arguments only", detail={"field": "args"})
        body = codec.decode(kwargs)
        template = body.pop("template", None)
        try:
            return carry_out(self.app.factory, self.store, self.operation, template, body)
        except SoftTimeLimitExceeded as error:
            raise as_beds_error(error) from None


def _make(store: Store, operation: Operation) -> Task:
    name = task_for(store, operation)
    return type(name, (CrudTask,), {"name": name, "store": store, "operation": operation, "__module__": __name__})()


TASKS = [app.register_task(_make(store, operation)) for store in Store for operation in Operation]

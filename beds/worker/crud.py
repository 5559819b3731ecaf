"""The tasks of the stores, each verb of NamasteCore, and questions about templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beds.domain.trace import Trace
from beds.services.changes import read_changes
from beds.services.dispatch import describe, execute
from beds.wire.routes import Kind
from beds.worker.task import EventTask, register


class CrudTask(EventTask):
    """One operation on one store."""

    abstract = True

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        arguments = {name: value for name, value in body.items() if name != "template"}
        store, operation = self.route.queue.store, self.route.operation
        assert store is not None
        assert operation is not None
        return execute(self.app.factory, store, operation, body.get("template"), arguments, user=trace.user)


class DescribeTask(EventTask):
    """Returns the signatures of one template's objects: `rec.read.describe`, `rel.read.describe`."""

    abstract = True

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        store = self.route.queue.store
        assert store is not None
        found = describe(self.app.factory, store, body)
        trace.template = found.template
        return found.to_wire()


class ChangesTask(EventTask):
    """Returns the committed writes of one template: `rec.read.changes`, `rel.read.changes`."""

    abstract = True

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        store = self.route.queue.store
        assert store is not None
        trace.template = str(body.get("template", ""))
        return read_changes(self.app.changes, self.app.factory, store, body).to_wire()


TASKS = [
    *register(CrudTask, Kind.OPERATION),
    *register(DescribeTask, Kind.DESCRIPTION),
    *register(ChangesTask, Kind.CHANGES),
]

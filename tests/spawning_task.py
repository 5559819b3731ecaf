"""An operation that sets off others, for the tests of lineage: the worker loads it with `-I tests.spawning_task`."""

from __future__ import annotations

import logging
from typing import Any

from beds.broker.app import app
from beds.broker.crud import CrudTask
from beds.client import default_client
from beds.domain.event import Operation, Store
from beds.errors import NotFound

logger = logging.getLogger("tests.spawning")


class SpawningTask(CrudTask):
    """Creates a record, updates it, and deletes one that is not there."""

    name = "rec.spawning"
    store = Store.REC
    operation = Operation.CREATE

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with self.app.telemetry.carrying_out(self.request):
            logger.warning("setting off two more")
            client = default_client()
            known = kwargs["payload"]["id"]
            client.call("update_record", "SampleRows", {"id": known, "whole": 1}, timeout=30)
            try:
                client.call("delete_record", "SampleRows", "none of this name", timeout=30)
            except NotFound:
                logger.info("as expected")
            return super().run(*args, **kwargs)


app.conf.task_routes["rec.spawning"] = {"queue": "rec.write"}
app.register_task(SpawningTask())

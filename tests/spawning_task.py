"""An operation that submits others, for the tests of lineage: the worker loads it with `-I tests.spawning_task`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from beds.client.client import default_client
from beds.domain.trace import Trace
from beds.errors import NotFound
from beds.wire.routes import ROUTES
from beds.worker.app import app
from beds.worker.crud import CrudTask

logger = logging.getLogger("tests.spawning")


ROUTES["rec.spawning"] = replace(ROUTES["rec.create_record"], task="rec.spawning", verb="spawning")  # type: ignore[index]


class SpawningTask(CrudTask):
    """Creates a record, updates it, and deletes one that does not exist."""

    name = "rec.spawning"
    route = ROUTES["rec.spawning"]

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        logger.warning("setting off two more")
        client = default_client()
        client.call("update_record", "SampleRows", {"id": body["payload"]["id"], "whole": 1}, timeout=30)
        try:
            client.call("delete_record", "SampleRows", "none of this name", timeout=30)
        except NotFound:
            logger.info("as expected")
        return super().act(trace, body)


app.register_task(SpawningTask())

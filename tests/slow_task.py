"""A long operation, for the tests of progress and cancellation: the worker loads it with `-I tests.slow_task`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from beds.domain.reply import Response
from beds.domain.trace import Trace
from beds.services.execution import checkpoint
from beds.wire.routes import ROUTES
from beds.worker.app import app
from beds.worker.crud import CrudTask

STEPS = 200


ROUTES["rec.slow"] = replace(ROUTES["rec.create_record"], task="rec.slow")  # type: ignore[index]


class SlowTask(CrudTask):
    """Writes a line to `steps` in the project's folder for each step."""

    name = "rec.slow"
    route = ROUTES["rec.slow"]

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        for step in range(STEPS):
            checkpoint(step, STEPS, "steps")
            with (Path.cwd() / "steps").open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.1)
        return Response("", STEPS)


app.register_task(SlowTask())

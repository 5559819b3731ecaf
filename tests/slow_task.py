"""A long operation, for the tests of progress and cancellation: the worker loads it with `-I tests.slow_task`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from beds.broker.app import app
from beds.broker.crud import CrudTask
from beds.broker.progress import begin, checkpoint
from beds.domain.event import Operation, Store
from beds.domain.reply import Response

STEPS = 200


class SlowTask(CrudTask):
    """Writes a line to `steps` in the project's folder for each step it takes."""

    name = "rec.slow"
    store = Store.REC
    operation = Operation.CREATE

    def run(self, *args: Any, **kwargs: Any) -> Any:
        if ended := begin(self.app, self.request):
            return ended
        for step in range(STEPS):
            checkpoint(step, STEPS, "steps")
            with (Path.cwd() / "steps").open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.1)
        return Response("", STEPS)


app.conf.task_routes["rec.slow"] = {"queue": "rec.write"}
app.register_task(SlowTask())

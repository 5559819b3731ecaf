"""An operation that ends its worker, for the tests of dead events: the worker loads it with `-I tests.poison_task`.

It does so as long as there is a file `poison` in the project's folder.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from beds.broker.app import app
from beds.broker.crud import CrudTask
from beds.domain.event import Operation, Store


class PoisonTask(CrudTask):
    """Kills the process that carries it out; or creates a record, once the poison is gone."""

    name = "rec.poison"
    store = Store.REC
    operation = Operation.CREATE

    def run(self, *args: Any, **kwargs: Any) -> Any:
        poison = Path.cwd() / "poison"
        if poison.exists():
            with poison.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(*args, **kwargs)


app.conf.task_routes["rec.poison"] = {"queue": "rec.write"}
app.register_task(PoisonTask())

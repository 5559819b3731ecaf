"""An operation that ends its worker, for the tests of dead events: the worker loads it with `-I tests.poison_task`.

It kills its process while a file `poison` exists in the project's folder.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from beds.domain.trace import Trace
from beds.wire.routes import ROUTES
from beds.worker.app import app
from beds.worker.crud import CrudTask

ROUTES["rec.poison"] = replace(ROUTES["rec.create_record"], task="rec.poison")  # type: ignore[index]


class PoisonTask(CrudTask):
    """Kills its process while the file exists; otherwise creates a record."""

    name = "rec.poison"
    route = ROUTES["rec.poison"]

    def act(self, trace: Trace, body: Mapping[str, Any]) -> Any:
        poison = Path.cwd() / "poison"
        if poison.exists():
            with poison.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().act(trace, body)


app.register_task(PoisonTask())

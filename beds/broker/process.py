"""What a worker's process and whoever runs it agree on."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

READY_FILE = "NODE_READY_FILE"
"""Environment variable with the path of a file that the worker makes when it consumes."""
EX_CONFIG = 78
"""sysexits.h: it cannot work as things are; somebody has to mend something."""
EX_TEMPFAIL = 75
"""sysexits.h: it cannot work now (a database is away, say), and should be started again."""


def unique_name(node: str, queues: Iterable[str]) -> str:
    """A worker's name, a new one at each start: Celery's control queue is exclusive, and the old one may not be gone
    yet."""
    return f"{'+'.join(queues)}.{secrets.token_hex(3)}@{node}"

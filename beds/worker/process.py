"""The contract between a worker process and its supervisor: ready file, exit codes, names."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

READY_FILE = "NODE_READY_FILE"
"""Environment variable with the path of a file that the worker creates once it consumes."""
EX_CONFIG = 78
"""sysexits.h: the configuration is wrong; a restart does not help."""
EX_TEMPFAIL = 75
"""sysexits.h: a temporary failure, such as a database that is away; restart the process."""


def unique_name(node: str, queues: Iterable[str]) -> str:
    """A worker's name, new at each start: Celery's control queue is exclusive, and the old one may still exist."""
    return f"{'+'.join(queues)}.{secrets.token_hex(3)}@{node}"

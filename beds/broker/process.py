"""What a worker's process and whoever runs it agree on."""

from __future__ import annotations

READY_FILE = "NODE_READY_FILE"
"""Environment variable with the path of a file that the worker makes when it consumes."""
EX_CONFIG = 78
"""sysexits.h: it cannot work as things are; somebody has to mend something."""
EX_TEMPFAIL = 75
"""sysexits.h: it cannot work now (a database is away, say), and should be started again."""

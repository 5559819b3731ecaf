"""Deadlines of calls: converts a caller's `timeout` to monotonic seconds."""

from __future__ import annotations

import time

from beds.errors import OutOfRange

DEFAULT_TIMEOUT = 10.0
"""Seconds; the timeout when the caller gives none."""
LONGEST_TIMEOUT = 86_400.0


def deadline_after(timeout: float) -> float:
    """The deadline in monotonic seconds. Raises OutOfRange."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= LONGEST_TIMEOUT:
        raise OutOfRange("timeout takes seconds, more than 0 and at most a day", detail={"field": "timeout"})
    return time.monotonic() + timeout

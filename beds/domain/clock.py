"""Times in the precision that both databases store, and a clock that tests can replace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Clock:
    """What deadlines and pauses go by.

    Args:
        monotonic: returns monotonic seconds.
        sleep: waits for a number of seconds.
    """

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


SYSTEM_CLOCK = Clock()


def to_millisecond(value: datetime) -> datetime:
    """Cut to milliseconds, which is what MongoDB stores."""
    return value.replace(microsecond=value.microsecond // 1000 * 1000)


def now() -> datetime:
    """The current time in UTC, cut to the millisecond."""
    return to_millisecond(datetime.now(UTC))

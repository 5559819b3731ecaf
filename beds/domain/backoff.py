"""Backoff between attempts: exponential, with jitter, and never past a deadline."""

from __future__ import annotations

import random
from dataclasses import dataclass

from beds.domain.clock import SYSTEM_CLOCK, Clock


@dataclass(slots=True)
class Backoff:
    """The pauses between the attempts of one operation.

    Args:
        deadline: monotonic seconds after which there is no further attempt.
        first: seconds of the first pause; each next one is twice as long.
        longest: seconds of the longest pause.
        clock: what deadline and pauses go by.
    """

    deadline: float
    first: float = 0.05
    longest: float = 1.0
    clock: Clock = SYSTEM_CLOCK

    def next_pause(self) -> float | None:
        """Seconds to wait before the next attempt; None when that would pass the deadline."""
        pause = self.first * random.uniform(0.5, 1.0)
        if self.clock.monotonic() + pause >= self.deadline:
            return None
        self.first = min(self.first * 2, self.longest)
        return pause

    def wait(self) -> bool:
        """Sleep until the next attempt. Returns False at once when that would pass the deadline."""
        pause = self.next_pause()
        if pause is None:
            return False
        self.clock.sleep(pause)
        return True

"""Notices that RabbitMQ has stopped confirming the messages of a queue."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

UNCONFIRMED_SECONDS = 10.0
"""A connection that RabbitMQ does not block is given up after this time without a confirm. It is looked at every half
heartbeat."""
LONGEST_SECONDS = 300.0


class ConfirmWatch:
    """The confirms of a process, over all its connections.

    A channel may go on sending to a queue's leader that was frozen or cut off, also after its return. A new channel
    finds the new leader. But a queue may only be slow: each connection that was given up doubles the patience with its
    queue, until one of its messages is confirmed.
    """

    def __init__(self) -> None:
        self._confirmed_at: dict[str, float] = {}
        self._patience: dict[str, float] = {}

    def confirmed(self, key: str) -> None:
        """Take the news that a message with this routing key was confirmed."""
        self._confirmed_at[key] = time.monotonic()
        self._patience.pop(key, None)

    def overdue(self, unconfirmed: Iterable[tuple[str, float]], free_since: float) -> str:
        """The routing key of which nothing was confirmed for too long; empty if there is none.

        Args:
            unconfirmed: the key of each message in flight and when it was handed over, oldest first.
            free_since: since when RabbitMQ has not blocked the connection.
        """
        oldest: dict[str, float] = {}
        for key, published_at in unconfirmed:
            oldest.setdefault(key, published_at)
        return next((key for key, at in oldest.items() if self.is_overdue(key, at, free_since)), "")

    def is_overdue(self, key: str, published_at: float, free_since: float) -> bool:
        """True if nothing with a key was confirmed for too long. The patience is doubled then.

        Args:
            key: the routing key.
            published_at: when the oldest unconfirmed message with it was handed over; monotonic seconds.
            free_since: since when RabbitMQ has not blocked the connection.
        """
        since = max(published_at, free_since, self._confirmed_at.get(key, 0.0))
        patience = self._patience.get(key, UNCONFIRMED_SECONDS)
        if time.monotonic() - since <= patience:
            return False
        # At random, since after a long alarm all connections begin to wait at the same time.
        self._patience[key] = min(patience * random.uniform(1.5, 2.5), LONGEST_SECONDS)
        return True

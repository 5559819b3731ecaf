"""Reads from replicas, within a bound on their lag.

Each server reports its position in the stream of writes, to every user. A replica that has passed a position which the
primary had at some time has all writes until that time. So no clocks are compared, and no right is needed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from beds.adapters.store import DefinitionChanged, IdempotencyRecord, ObjectStore, Outcome, Position, Verify
from beds.config.sections import ReplicaReads
from beds.domain.member import Lag
from beds.errors import BedsError, SchemaMismatch, StoreDenied, StoreUnavailable
from beds.templates.binding import Binding

OWN_WRITES_SECONDS = 0.2
"""A read that must see all writes before it waits for its replica this long, and then goes to the primary."""
CHECK_SECONDS = 3.0
"""A check waits this long, at most."""
POLL_SECONDS = 0.01
REST_SECONDS = 5.0
"""A replica that failed is not asked for this time."""
STEPS = 4
"""Positions noted within `max_lag`."""


class Replica(Protocol):
    """A session with a replica. Once the connection is lost, only `position` opens another."""

    def position(self) -> Position:
        """The position of the replica. Raises BedsError: it cannot be reached."""
        ...

    def execute(self, binding: Binding, values: Mapping[str, Any]) -> Outcome: ...

    def close(self) -> None: ...


def has_passed(replica: Position, primary: Position) -> bool:
    """True if a replica has all writes that the primary had at its position. False if that is unknown."""
    return bool(primary) and all(replica.get(stream, -1) >= number for stream, number in primary.items())


class ReplicaReader:
    """Calls objects that only read on a replica, if its lag is within the bound, and on the primary otherwise.

    Args:
        primary: the session with the primary.
        replica: the session with a replica.
        config: the bound.
    """

    def __init__(self, primary: ObjectStore, replica: Replica, config: ReplicaReads) -> None:
        self._primary = primary
        self._replica = replica
        self._config = config
        self._noted: deque[tuple[float, Position]] = deque(maxlen=STEPS + 1)
        """Positions of the primary, each with the time before it was asked for."""
        self._complete_at = float("-inf")
        """A time until which the replica has all writes."""
        self._rests_until = float("-inf")

    def execute(
        self,
        binding: Binding,
        values: Mapping[str, Any],
        once: IdempotencyRecord | None = None,
        verify: Verify | None = None,
    ) -> Outcome:
        if once is None and binding.operation.is_read and not binding.target.may_write and self._may_ask():
            try:
                return self._replica.execute(binding, values)
            except (DefinitionChanged, SchemaMismatch):
                pass  # the DBA's change may not have arrived there
            except (StoreUnavailable, StoreDenied):
                self._rest()
        return self._primary.execute(binding, values, once, verify)

    def lag(self) -> Lag:
        """Check whether the replica reaches the primary's present position within `max_lag`, or `CHECK_SECONDS`."""
        bound = self._config.max_lag
        try:
            asked = self._primary.position()
            found = positions(self._replica, min(bound, CHECK_SECONDS))
            return Lag(bound, any(has_passed(position, asked) for position in found))
        except BedsError as error:
            return Lag(bound, False, error.message)

    def close(self) -> None:
        self._replica.close()

    def _may_ask(self) -> bool:
        if time.monotonic() < self._rests_until:
            return False
        try:
            return self._has_own_writes() if self._config.own_writes else self._lags_little()
        except BedsError:
            self._rest()  # if the primary is away, the call itself fails
            return False

    def _has_own_writes(self) -> bool:
        asked = self._primary.position()
        return any(has_passed(found, asked) for found in positions(self._replica, OWN_WRITES_SECONDS))

    def _lags_little(self) -> bool:
        now = time.monotonic()
        if not self._noted or now - self._noted[-1][0] > self._config.max_lag / STEPS:
            self._noted.append((now, self._primary.position()))
            found = self._replica.position()
            passed = [at for at, position in self._noted if has_passed(found, position)]
            self._complete_at = max([self._complete_at, *passed])
        return now - self._complete_at <= self._config.max_lag

    def _rest(self) -> None:
        self._rests_until = time.monotonic() + REST_SECONDS
        self._noted.clear()
        self._complete_at = float("-inf")  # the next connection may lead to another replica


def positions(replica: Replica, seconds: float) -> Iterator[Position]:
    """The position of a replica, again and again for some seconds."""
    deadline = time.monotonic() + seconds
    yield replica.position()
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        yield replica.position()

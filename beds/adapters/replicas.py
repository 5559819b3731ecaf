"""Reads from replicas, within a bound on their lag.

Each server reports its position in the stream of writes, to every user. A replica that has passed a position which the
primary had at some time has all writes until that time. So no clocks are compared, and no right is needed.
"""

from __future__ import annotations

import contextlib
import math
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
"""A check of the lag waits this long, at most."""
POLL_SECONDS = 0.01
REST_SECONDS = 5.0
"""A replica that failed, or that lagged for this time, is left; after this time another one is chosen."""
LONGEST_REST_SECONDS = 60.0
"""The pause is doubled up to this time while no replica serves."""
STEPS = 4
"""Positions noted within `max_lag`."""


class Replica(Protocol):
    """A session with one of several replicas. Only `position` may choose another one."""

    @property
    def server(self) -> str:
        """The replica that `position` reported about; empty if there is none."""
        ...

    def position(self) -> Position:
        """The position of the replica. Raises BedsError: none can be reached."""
        ...

    def execute(self, binding: Binding, values: Mapping[str, Any]) -> Outcome:
        """Call an object on that replica. Raises StoreUnavailable: it was lost."""
        ...

    def leave(self) -> None:
        """Choose another replica at the next `position`, if there is one."""
        ...

    def close(self) -> None: ...


def has_passed(replica: Position, primary: Position) -> bool:
    """True if a replica has all writes that the primary had at its position. False if that is unknown.

    The last writes must come from the same server. After a failover, a former primary may have writes of its own, under
    numbers that the new primary uses for others.
    """

    def passed(stream: str, number: int, writer: str) -> bool:
        reached, from_writer = replica.get(stream, (-1, ""))
        return reached >= number and from_writer == writer

    return bool(primary) and all(passed(stream, *of) for stream, of in primary.items())


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
        self._server = ""
        """The replica that the next two are about."""
        self._complete_at = -math.inf
        """A time until which it has all writes."""
        self._behind_since = math.inf
        """When it was first found to lag too much, since it last did not."""
        self._rests_until = -math.inf
        self._rest_seconds = REST_SECONDS
        self._next_note = -math.inf

    def execute(
        self,
        binding: Binding,
        values: Mapping[str, Any],
        once: IdempotencyRecord | None = None,
        verify: Verify | None = None,
    ) -> Outcome:
        only_reads = once is None and binding.operation.is_read and not binding.target.may_write
        if only_reads and self._may_ask():
            try:
                return self._replica.execute(binding, values)
            except (DefinitionChanged, SchemaMismatch):
                pass  # the DBA's change may not have arrived there
            except (StoreUnavailable, StoreDenied):
                self._rest()
        return self._primary.execute(binding, values, once, verify)

    def lag(self) -> Lag:
        """How long the replica takes to pass the primary's present position, within `CHECK_SECONDS`."""
        bound, began = self._config.max_lag, time.monotonic()
        try:
            asked = self._primary.position()
            passed = any(has_passed(position, asked) for position in positions(self._replica, CHECK_SECONDS))
            return Lag(bound, time.monotonic() - began if passed else None, CHECK_SECONDS)
        except BedsError as error:
            return Lag(bound, None, CHECK_SECONDS, error.message)

    def close(self) -> None:
        self._replica.close()

    def _may_ask(self) -> bool:
        """True if the replica is complete enough for a read that begins now."""
        if self._config.own_writes:
            return self._has_own_writes()
        return time.monotonic() >= self._rests_until and self._lags_little()

    def _has_own_writes(self) -> bool:
        try:
            # Also while the replica rests: this leaves a primary that became a replica meanwhile.
            asked = self._primary.position()
        except BedsError:
            return False  # the call itself fails
        if time.monotonic() < self._rests_until:
            return False
        # One that was behind is not waited for again until it is not.
        patience = OWN_WRITES_SECONDS if self._behind_since == math.inf else 0.0
        try:
            passed = any(has_passed(found, asked) for found in positions(self._replica, patience))
        except BedsError:
            self._rest()
            return False
        return self._is_near(passed)

    def _lags_little(self) -> bool:
        now = time.monotonic()
        if now >= self._next_note:
            with contextlib.suppress(BedsError):  # without the primary, the replica is read until the bound is over
                self._noted.append((now, self._primary.position()))
            self._next_note = time.monotonic() + self._config.max_lag / STEPS
            try:
                found = self._replica.position()
            except BedsError:
                self._rest()
                return False
            if self._server != self._replica.server:
                self._server, self._complete_at = self._replica.server, -math.inf
            passed = [at for at, position in self._noted if has_passed(found, position)]
            self._complete_at = max([self._complete_at, *passed])
        return self._is_near(time.monotonic() - self._complete_at <= self._config.max_lag)

    def _is_near(self, found: bool) -> bool:
        """Take a finding about the lag, and leave a replica that lags for long."""
        if found:
            self._behind_since, self._rest_seconds = math.inf, REST_SECONDS
        elif self._behind_since == math.inf:
            self._behind_since = time.monotonic()
        elif time.monotonic() - self._behind_since > REST_SECONDS:
            self._rest()
        return found

    def _rest(self) -> None:
        self._rests_until = time.monotonic() + self._rest_seconds
        self._rest_seconds = min(2 * self._rest_seconds, LONGEST_REST_SECONDS)
        self._behind_since = math.inf
        self._complete_at = -math.inf
        self._next_note = -math.inf
        self._replica.leave()


def positions(replica: Replica, seconds: float) -> Iterator[Position]:
    """The position of a replica, again and again for some seconds."""
    deadline = time.monotonic() + seconds
    yield replica.position()
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        yield replica.position()

"""Limits of the requests at work: of each caller, and of all together."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from beds.config.http import HttpRole
from beds.http.access import Caller
from beds.http.problems import Problem

CALLERS = 10_000
"""Callers whose requests are counted at once; the one that has been quiet longest is forgotten."""


class _Bucket:
    """A token bucket, and the requests at work, of one caller."""

    __slots__ = ("_at", "_tokens", "at_work", "sleeping", "streams", "waiting")

    def __init__(self, limits: HttpRole) -> None:
        self._tokens = float(limits.burst)
        self._at = time.monotonic()
        self.at_work = 0
        self.streams = 0
        self.sleeping = 0
        """Requests that wait for their turn, or for a token."""
        self.waiting: deque[asyncio.Future[None]] = deque()

    @property
    def tokens(self) -> int:
        return max(0, int(self._tokens))

    def take(self, limits: HttpRole, tokens: int = 1) -> float:
        """Take tokens. Returns the seconds until there are as many, if there are not now; then none is taken."""
        self._refill(limits)
        if self._tokens < tokens:
            return (tokens - self._tokens) / limits.rate
        self._tokens -= tokens
        return 0.0

    def reserve(self, limits: HttpRole) -> float:
        """Take the next token, and return the seconds until it is there."""
        self._refill(limits)
        self._tokens -= 1
        return max(0.0, -self._tokens / limits.rate)

    def give_back(self) -> None:
        """Undo `reserve`."""
        self._tokens += 1

    def _refill(self, limits: HttpRole) -> None:
        now = time.monotonic()
        self._tokens = min(float(limits.burst), self._tokens + (now - self._at) * limits.rate)
        self._at = now


class Limits:
    """Lets requests in, or refuses them at once.

    Args:
        max_in_flight: requests at work, of all callers together.
    """

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.in_flight = 0

    @contextmanager
    def admitted(self, caller: Caller) -> Iterator[dict[str, str]]:
        """Count a request while it is at work. Yields headers with what is left of its limits.

        Raises:
            Problem: 429 if the caller sends too many, 503 if all of them together do.
        """
        bucket, headers = self._enter(caller)
        try:
            yield headers
        finally:
            self._leave(bucket)

    @asynccontextmanager
    async def awaited(self, caller: Caller, patience: float) -> AsyncIterator[None]:
        """As `admitted`, but wait for room. For a connection that reads nothing meanwhile, so its client is slowed.

        Raises:
            Problem: as `admitted`; there is no room within `patience` seconds.
        """
        limits = caller.limits
        bucket = self._bucket(caller.actor, limits)
        if (wait := bucket.reserve(limits)) > patience:
            bucket.give_back()
            raise _too_many("You send too many requests a second.", limits, bucket, wait)
        bucket.sleeping += 1
        try:
            await asyncio.sleep(wait)
            async with asyncio.timeout(patience - wait):
                while (queue := self._full(bucket, limits)) is not None:
                    await _turn_in(queue)
                    if self._full(bucket, limits) not in (None, queue):
                        _wake(queue)  # it has to wait in the other queue, so this turn is another's
        except TimeoutError:
            _wake(bucket.waiting)
            _wake(self._waiting)
            raise self._refusal(bucket, limits) from None
        except asyncio.CancelledError:
            bucket.give_back()
            raise
        finally:
            bucket.sleeping -= 1
        self._begin(bucket)
        try:
            yield
        finally:
            self._leave(bucket)

    def charge(self, caller: Caller, calls: int) -> None:
        """Count further calls of a request against the caller's rate. Raises Problem (429): they are too many."""
        limits = caller.limits
        bucket = self._bucket(caller.actor, limits)
        if wait := bucket.take(limits, min(calls, limits.burst)):  # more than a burst would never be there
            raise _too_many("You send too many calls a second.", limits, bucket, wait)

    @contextmanager
    def streaming(self, caller: Caller) -> Iterator[None]:
        """Count an event stream while it lasts. Raises Problem (429): the caller has as many as it may."""
        limits = caller.limits
        bucket = self._bucket(caller.actor, limits)
        if bucket.streams >= limits.streams:
            raise _too_many(f"You have {limits.streams} event streams open.", limits, bucket, 0.0)
        bucket.streams += 1
        try:
            yield
        finally:
            bucket.streams -= 1

    def _enter(self, caller: Caller) -> tuple[_Bucket, dict[str, str]]:
        limits = caller.limits
        bucket = self._bucket(caller.actor, limits)
        if self._full(bucket, limits) is not None:
            raise self._refusal(bucket, limits)
        if wait := bucket.take(limits):
            raise _too_many("You send too many requests a second.", limits, bucket, wait)
        self._begin(bucket)
        return bucket, {"RateLimit-Policy": _policy(limits), "RateLimit": f'"caller";r={bucket.tokens}'}

    def _full(self, bucket: _Bucket, limits: HttpRole) -> deque[asyncio.Future[None]] | None:
        """Where to wait for room: with the caller's own requests, or with all; None if there is room."""
        if bucket.at_work >= limits.concurrency:
            return bucket.waiting
        return self._waiting if self.in_flight >= self._max_in_flight else None

    def _refusal(self, bucket: _Bucket, limits: HttpRole) -> Problem:
        """Why there is no room."""
        if bucket.at_work >= limits.concurrency:
            return _too_many(f"You send more than {limits.concurrency} requests at the same time.", limits, bucket, 0.0)
        return Problem(503, "overloaded", "This node has as many requests as it can carry; try again.",
                       headers={"Retry-After": "1"}, retryable=True)  # fmt: skip

    def _begin(self, bucket: _Bucket) -> None:
        bucket.at_work += 1
        self.in_flight += 1

    def _leave(self, bucket: _Bucket) -> None:
        bucket.at_work -= 1
        self.in_flight -= 1
        _wake(bucket.waiting)
        _wake(self._waiting)

    def _bucket(self, actor: str, limits: HttpRole) -> _Bucket:
        found = self._buckets.get(actor)
        if found is None:
            found = self._buckets[actor] = _Bucket(limits)
            if len(self._buckets) > CALLERS:
                self._forget_one()
        self._buckets.move_to_end(actor)
        return found

    def _forget_one(self) -> None:
        for actor, bucket in self._buckets.items():
            if not (bucket.at_work or bucket.streams or bucket.sleeping):
                del self._buckets[actor]
                return


async def _turn_in(queue: deque[asyncio.Future[None]]) -> None:
    """Wait in a queue. Cancelled after its turn was given, it passes the turn on."""
    turn = asyncio.get_running_loop().create_future()
    queue.append(turn)
    try:
        await turn
    except asyncio.CancelledError:
        if turn.done() and not turn.cancelled():
            _wake(queue)
        raise


def _wake(queue: deque[asyncio.Future[None]]) -> None:
    """Give the next one in a queue its turn."""
    while queue:
        turn = queue.popleft()
        if not turn.done():
            turn.set_result(None)
            return


def _policy(limits: HttpRole) -> str:
    return f'"caller";q={limits.burst};w={limits.burst / limits.rate:.0f}'


def _too_many(detail: str, limits: HttpRole, bucket: _Bucket, wait: float) -> Problem:
    seconds = max(1, math.ceil(wait))
    headers = {
        "Retry-After": str(seconds),
        "RateLimit-Policy": _policy(limits),
        "RateLimit": f'"caller";r={bucket.tokens};t={seconds}',
    }
    return Problem(429, "too_many_requests", detail, headers=headers, retryable=True)

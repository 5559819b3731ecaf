"""The load generator of bench.http: HTTP/1.1 over raw sockets, in a closed or an open loop, on the measuring process.

One generator serves all sides, so that its own cost is the same for each. A request is bytes that are made beforehand
or cheaply; a response is read as far as its status and its length.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Make = Callable[[], bytes]
"""Returns the next request, with its head."""
Address = tuple[str, int]

WARM_UP_SECONDS = 0.3
TICK_SECONDS = 0.002
"""Interval at which the open loop sends what is due."""
END_SECONDS = 30.0
"""How long the last responses of a run may take."""


@dataclass
class Tally:
    """What came back: the times of the requests in milliseconds, by status."""

    seconds: float = 0.0
    took: dict[int, list[float]] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    """The first response of each status."""
    all_requests: int = 0
    """All that were answered, those of the warm-up included."""
    broken: int = 0
    """Requests whose connection the server closed before the response."""
    good_in_time: int = 0
    """Requests that succeeded before the end of an open loop; the times of later ones count, too."""
    held_back: int = 0
    """Requests of an open loop that were due while all connections waited."""
    connections: int = 0

    def add(self, status: int, milliseconds: float, response: bytes = b"") -> None:
        if status not in self.took:
            self.took[status], self.bodies[status] = [], response
        self.took[status].append(milliseconds)

    @property
    def statuses(self) -> Counter[int]:
        return Counter({status: len(took) for status, took in self.took.items()})

    @property
    def good(self) -> list[float]:
        return [took for status in (200, 201) for took in self.took.get(status, ())]

    @property
    def refused(self) -> list[float]:
        return [took for status in (429, 503) for took in self.took.get(status, ())]

    @property
    def per_second(self) -> float:
        return len(self.good) / self.seconds

    def check(self, what: str) -> None:
        """Raises AssertionError: a request failed."""
        if self.broken or self.took.keys() - {200, 201} or not self.good:
            raise AssertionError(f"{what}: {dict(self.statuses)}, {self.broken} broken: {list(self.bodies.values())}")


def percentile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


class _Connection(asyncio.Protocol):
    """One connection, with at most one request at a time.

    Args:
        ended: called with the connection, the status and the response when a response is complete; status 0 when the
            server closed the connection instead.
    """

    def __init__(self, ended: Callable[[_Connection, int, bytes], None]) -> None:
        self._ended = ended
        self._data = b""
        self.begun = 0.0
        self.is_waiting = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def send(self, request: bytes) -> None:
        self.is_waiting = True
        self.begun = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data = data = self._data + data if self._data else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = data[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].partition(b"\r\n")[0]) if at >= 0 else 0
        if len(data) < end + 4 + length:
            return
        self._data = b""
        self.is_waiting = False
        self._ended(self, int(data[9:12]), data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_waiting:
            self.is_waiting = False
            self._ended(self, 0, b"")


async def _connect(address: Address, ended: Callable[[_Connection, int, bytes], None]) -> _Connection:
    _, made = await asyncio.get_running_loop().create_connection(lambda: _Connection(ended), *address)
    return made


async def closed_loop(
    address: Address, make: Make, connections: int, seconds: float = float("inf"), requests: int | None = None
) -> Tally:
    """Each connection sends its next request when the last one is answered.

    Args:
        address, make: where to send what.
        connections: of the run.
        seconds: time that is measured, after the warm-up.
        requests: ends the run after so many instead, which then has no warm-up.
    """
    tally = Tally(connections=connections)
    over = asyncio.get_running_loop().create_future()
    waiting = connections
    start = end = 0.0

    def ended(connection: _Connection, status: int, response: bytes) -> None:
        nonlocal waiting
        now = time.perf_counter()
        tally.all_requests += 1
        if not status:
            tally.broken += 1
        elif start <= now < end:
            tally.add(status, (now - connection.begun) * 1000, response)
        if status and now < end and (requests is None or tally.all_requests + waiting <= requests):
            connection.send(make())
            return
        waiting -= 1
        if not waiting and not over.done():
            over.set_result(None)

    opened = [await _connect(address, ended) for _ in range(connections)]
    begun = time.perf_counter()
    start = begun + (WARM_UP_SECONDS if requests is None else 0.0)
    end = start + seconds
    for connection in opened:
        connection.send(make())
    try:
        async with asyncio.timeout(None if requests is not None else seconds + END_SECONDS):
            await over
    finally:
        for connection in opened:
            connection.transport.close()
    tally.seconds = seconds if requests is None else time.perf_counter() - begun
    return tally


async def calls_loop(call: Callable[[], Awaitable[object]], in_flight: int, seconds: float) -> Tally:
    """As `closed_loop`, of calls in this process instead of connections."""
    tally = Tally(connections=in_flight)
    start = time.perf_counter() + WARM_UP_SECONDS
    end = start + seconds

    async def repeat() -> None:
        while (begun := time.perf_counter()) < end:
            await call()
            now = time.perf_counter()
            tally.all_requests += 1
            if start <= now < end:
                tally.add(200, (now - begun) * 1000)

    await asyncio.gather(*(repeat() for _ in range(in_flight)))
    tally.seconds = seconds
    return tally


async def open_loop(address: Address, make: Make, rate: float, seconds: float, most: int) -> Tally:
    """Requests leave at a rate, whether or not the earlier ones are answered.

    Args:
        address, make: where to send what.
        rate: requests a second.
        seconds: of the run.
        most: connections; a request that is due while all of them wait is not sent, and counted as held back.
    """
    tally = Tally(seconds=seconds)
    idle: list[_Connection] = []
    opened: list[_Connection] = []
    opening: set[asyncio.Task[None]] = set()

    def ended(connection: _Connection, status: int, response: bytes) -> None:
        now = time.perf_counter()
        tally.all_requests += 1
        if not status:
            tally.broken += 1
            return
        tally.good_in_time += now < end and status in (200, 201)
        tally.add(status, (now - connection.begun) * 1000, response)
        idle.append(connection)

    async def open_and_send() -> None:
        try:
            connection = await _connect(address, ended)
        except OSError:
            tally.broken += 1
            return
        opened.append(connection)
        connection.send(make())

    begun = time.perf_counter()
    end = begun + seconds
    sent = 0
    try:
        while (now := time.perf_counter()) < end:
            due = int((now - begun) * rate)
            while sent < due:
                sent += 1
                while idle and idle[-1].transport.is_closing():
                    idle.pop()
                if idle:
                    idle.pop().send(make())
                elif len(opened) + len(opening) < most:
                    task = asyncio.create_task(open_and_send())
                    opening.add(task)
                    task.add_done_callback(opening.discard)
                else:
                    tally.held_back += due - sent + 1
                    sent = due
            await asyncio.sleep(TICK_SECONDS)
        tally.connections = len(opened)
        async with asyncio.timeout(END_SECONDS):
            await asyncio.gather(*opening)
            while any(connection.is_waiting for connection in opened):
                await asyncio.sleep(TICK_SECONDS)
    finally:
        for connection in opened:
            connection.transport.close()
    return tally

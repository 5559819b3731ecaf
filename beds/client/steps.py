"""The steps of a client's flows, as values: a flow yields them, and a driver executes them, blocking or awaiting.

A flow is a generator, shared by both clients; see `flows.py`. `run` is the blocking driver, and `aio.py` has the
awaiting one.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from beds.domain.event import Event
from beds.transport.pending import Transport

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Publish the event; the step's value is its `Pending`. `deadline` is in monotonic seconds."""

    event: Event
    deadline: float


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for the future's value; raises TimeoutError at `deadline` (monotonic seconds)."""

    future: Future[Any]
    deadline: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Sleep."""

    seconds: float


Step = Send | Await | Pause
Flow = Generator[Step, Any, T]
"""Yields steps, and returns a T."""


@dataclass(frozen=True, slots=True)
class Returned(Generic[T]):
    """The end of a flow, with what it returned."""

    value: T


def advance(flow: Flow[T], given: Any, failed: Exception | None) -> Step | Returned[T]:
    """Resume a flow with the outcome of its last step: a value, or an error. Returns its next step, or its end."""
    try:
        return flow.throw(failed) if failed is not None else flow.send(given)
    except StopIteration as end:
        return Returned(end.value)


def run(flow: Flow[T], transport: Transport) -> T:
    """Run a flow in this thread."""
    given: Any = None
    failed: Exception | None = None
    while True:
        step = advance(flow, given, failed)
        if isinstance(step, Returned):
            return step.value
        given = failed = None
        try:
            given = _blocking(step, transport)
        except Exception as error:  # noqa: BLE001 — the flow handles it
            failed = error


def _blocking(step: Step, transport: Transport) -> Any:
    match step:
        case Send(event, deadline):
            return transport.send(event, deadline)
        case Await(future, deadline):
            return future.result(max(0.0, deadline - time.monotonic()))
        case Pause(seconds):
            time.sleep(seconds)
            return None

"""What happens while one event is carried out, noted as it happens. A collector in a context variable; no I/O."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from beds.domain.event import Operation
from beds.domain.lineage import Lineage

MAX_CALLS = 1000
"""Database calls noted for one event; a job of millions tells of its first ones, and of all by its steps."""
OK = "ok"
"""The outcome of what went well; otherwise it is an error's code."""


@dataclass(frozen=True, slots=True)
class DatabaseCall:
    """One call of a named object.

    Args:
        object, store: which, and where.
        at: when it began, Unix seconds.
        seconds: how long it took.
        rows: how many records it returned or changed.
        outcome: `ok`, or the error's code.
    """

    object: str
    store: str
    at: float
    seconds: float
    rows: int
    outcome: str


@dataclass(slots=True)
class Trace:
    """One event in the hands of a worker.

    Args:
        lineage: the event's place.
        at: when it began, Unix seconds.
        operation, template, body: what it asks for, once that is decoded; `operation` is None for what is none.
        calls: what was called for it.
    """

    lineage: Lineage
    at: float = field(default_factory=time.time)
    operation: Operation | None = None
    template: str = ""
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    calls: list[DatabaseCall] = field(default_factory=list)
    _clock: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._clock

    def note(self, call: DatabaseCall) -> None:
        if len(self.calls) < MAX_CALLS:
            self.calls.append(call)


_current: ContextVar[Trace | None] = ContextVar("beds_trace", default=None)


def current_trace() -> Trace | None:
    """The event that this thread or asyncio task carries out at the moment."""
    return _current.get()


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Whatever is spawned inside is a child of the trace's event."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


def spawn(node: str, env: str) -> Lineage:
    """The lineage of something made here and now: one below the current event, or a root where there is none."""
    trace = _current.get()
    return trace.lineage.child(node, env) if trace else Lineage.root(node, env)

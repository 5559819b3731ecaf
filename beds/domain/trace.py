"""Collects the database calls of the event that is executed, in a context variable. No I/O."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from beds.domain.event import Operation
from beds.domain.lineage import Lineage, is_traceparent
from beds.errors import WrongType

MAX_CALLS = 1000
"""Database calls collected for one event; a long job makes more. `steps` counts all writes."""
OK = "ok"
"""The outcome of a success; otherwise an outcome is an error's code."""


@dataclass(frozen=True, slots=True)
class DatabaseCall:
    """One call of a named object.

    Args:
        object, store: the object's name, and its store.
        at: when it began, Unix seconds.
        seconds: its duration.
        rows: the number of records it returned or changed.
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
    """The execution of one event.

    Args:
        lineage: of the event.
        user: the AMQP user whose event it is.
        redelivered: whether RabbitMQ delivered it before.
        summary: template and operation, as monitors show them.
        actor: on whose behalf its application acts.
        at: when it began, Unix seconds.
        operation, template, body: the event's, once decoded; `operation` is None for an event that is no operation.
        calls: its database calls.
    """

    lineage: Lineage
    user: str = ""
    redelivered: bool = False
    summary: str = ""
    actor: str = ""
    at: float = field(default_factory=time.time)
    operation: Operation | None = None
    template: str = ""
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    calls: list[DatabaseCall] = field(default_factory=list)
    steps: int = 0
    """Number of writes that it has made or begun; each has its own ledger entry."""
    counted: bool = False
    """Whether the metrics include it."""
    checkpoint: Callable[[int, int | None, str], None] | None = None
    """Called with `done`, `total` and `unit` to report progress; None for an event without a ticket."""
    patience: float = math.inf
    """Seconds for which a store that is away is tried; `[retry] deadline` if that is less."""
    _clock: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._clock

    def note(self, call: DatabaseCall) -> None:
        if len(self.calls) < MAX_CALLS:
            self.calls.append(call)


_current: ContextVar[Trace | None] = ContextVar("beds_trace", default=None)
_traceparent: ContextVar[str] = ContextVar("beds_traceparent", default="")


def current_trace() -> Trace | None:
    """The trace of the event that this thread or asyncio task executes."""
    return _current.get()


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Make `trace` the current one, so that events made inside are children of its event."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


@contextmanager
def trace_context(value: str) -> Iterator[None]:
    """Record a W3C trace context in the lineage of all events that are made inside.

    Args:
        value: the header `traceparent` of a request, such as `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`.

    Raises:
        WrongType: it is none.
    """
    if not is_traceparent(value):
        raise WrongType("traceparent takes a W3C trace context of version 00", detail={"field": "traceparent"})
    token = _traceparent.set(value)
    try:
        yield
    finally:
        _traceparent.reset(token)


def spawn(node: str, env: str) -> Lineage:
    """The lineage of a new event: a child of the current event, or a root if there is none."""
    trace = _current.get()
    return trace.lineage.child(node, env) if trace else Lineage.root(node, env, _traceparent.get())

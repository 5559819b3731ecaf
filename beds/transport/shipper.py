"""Sends records to the admin worker: buffered in memory, sent in batches, kept until RabbitMQ confirms them.

The application's threads only append to a buffer. The shipper's thread, one per process, publishes with confirms, and
publishes again when a connection is lost. Records carry ids, so the admin worker stores each once.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any

from beds.config import Settings
from beds.domain.event import Event, RecordKind
from beds.domain.lineage import Lineage
from beds.errors import BedsError, BodyTooLarge, BrokerUnavailable, TransportError
from beds.transport.pending import Pending
from beds.transport.requester import Requester

logger = logging.getLogger(__name__)

Record = dict[str, Any]
LINEAGE_RANK = 35
"""When the buffer is full, lineage is dropped after log records up to WARNING (30), and before errors (40)."""
THREAD_NAME = "beds-shipper"
ATTEMPT_SECONDS = 5.0
"""Timeout of one attempt to publish, and of one wait for a confirm."""
PAUSE_SECONDS = 0.5
"""Pause after a failed attempt."""
FLUSH_SECONDS = 5.0
"""Time to send the remaining records when the process ends."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message with records; `pending` is None while it has not been published."""

    event: Event
    pending: Pending | None = None


class Shipper:
    """Takes records from any thread and sends them. Made once per process tree; each child has its own buffer.

    Args:
        settings: `[amqp]`, `[logging]`, `[metrics]` and `[node]` of beds.toml.
        url: the AMQP URL; `[amqp] url` when empty.
    """

    def __init__(self, settings: Settings, url: str = "") -> None:
        self._settings = settings
        self._limits = settings.logging
        self._requester = Requester(settings.amqp, url)
        self._sources: list[Callable[[], list[Record]]] = []
        self._host = socket.gethostname()
        self._reset()
        _live.add(self)
        atexit.register(self.close)

    def add(self, kind: RecordKind, record: Record, rank: int) -> None:
        """Take one record. Never waits for RabbitMQ, and never raises.

        Args:
            kind: `log` or `lineage`.
            record: plain JSON values.
            rank: the record's importance, as a logging level. When the buffer is full, the newest record of the
                lowest rank is dropped; the next log record that is sent carries the count.
        """
        with self._lock:
            if self._over:
                logger.warning("a record came after the end, and is lost")
                return
            if kind is RecordKind.LOG:
                self._sequence += 1
                record["seq"] = self._sequence
            if self._held >= self._limits.buffer_records and not self._make_room(rank):
                return
            self._buffers.setdefault((rank, kind), deque()).append(record)
            self._held += 1
            if self._held == 1:
                self._oldest = time.monotonic()
            if self._held in (1, self._limits.batch_records):
                self._news.notify()
        self.start()

    def send(self, kind: RecordKind, records: Sequence[Record]) -> Sent:
        """Publish records at once, without the buffer; `settle` waits for RabbitMQ's confirm."""
        event = self.event(kind, records)
        try:
            return Sent(event, self._requester.send(event, time.monotonic() + ATTEMPT_SECONDS))
        except TransportError:
            return Sent(event)

    def settle(self, sent: Sent, deadline: Callable[[], float]) -> None:
        """Wait until RabbitMQ confirms what `send` published; publish it again where needed.

        Args:
            sent: returned by `send`.
            deadline: called after each failed attempt; returns monotonic seconds, which may become earlier.

        Raises:
            TransportError: no confirm by the deadline.
            BodyTooLarge: the message has too many bytes or values.
        """
        pending = sent.pending
        while True:
            try:
                if pending is None:
                    pending = self._requester.send(sent.event, time.monotonic() + ATTEMPT_SECONDS)
                pending.confirmed.result(ATTEMPT_SECONDS)
                return
            except FutureTimeout:
                error: TransportError = BrokerUnavailable("RabbitMQ did not confirm records")
            except TransportError as failed:
                error = failed
            if time.monotonic() >= deadline():
                raise error
            logger.warning("records wait for RabbitMQ: %s", error)
            pending = None
            time.sleep(PAUSE_SECONDS)

    def add_source(self, source: Callable[[], list[Record]]) -> None:
        """Call `source` for metrics every `[metrics] interval` seconds, and when the process ends."""
        self._sources.append(source)

    def start(self) -> None:
        """Start this process's thread, as the first record does."""
        if self._thread is None:
            self._start()

    def flush(self, timeout: float = FLUSH_SECONDS) -> bool:
        """Wait until RabbitMQ has confirmed all buffered records. False after `timeout` seconds."""
        with self._lock:
            self._hurry = True
            self._news.notify()
            return self._idle.wait_for(lambda: not self._held, timeout)

    def close(self, timeout: float = FLUSH_SECONDS) -> None:
        """Flush, and end the thread and its connection. Records not sent within `timeout` seconds are lost."""
        with self._lock:
            self._give_up_at = time.monotonic() + timeout
            self._news.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout + 1)
            if self._held:
                logger.warning("%d records did not reach RabbitMQ by the end", self._held)
        self._over = True
        self._requester.close()

    def after_fork(self) -> None:
        """In a child: start with an empty buffer, because the parent sends its own records."""
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._buffers: dict[tuple[int, RecordKind], deque[Record]] = {}
        self._held = self._dropped = self._sequence = 0
        """Records not confirmed yet; dropped records not reported yet; number of the last log record."""
        self._hurry = self._over = False
        self._oldest = 0.0
        self._give_up_at = float("inf")
        self._next_metrics = time.monotonic() + self._settings.metrics.interval
        self._thread: threading.Thread | None = None
        node = self._settings.node
        self._common = {"node": node.name, "env": node.environment, "host": self._host, "pid": os.getpid()}

    def _start(self) -> None:
        if sys.is_finalizing():
            return  # starting a thread now would hang: Python runs no new threads while it finalizes
        with self._lock:
            if self._thread is not None:
                return
            self._thread = thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        # A multiprocessing child runs no atexit handlers, and drops the finalizers that its parent registered.
        Finalize(None, self.close, exitpriority=0)
        thread.start()

    def _make_room(self, rank: int) -> bool:
        """Drop the newest record of the lowest rank. False if the new record itself must be dropped."""
        self._dropped += 1
        waiting = [key for key, buffer in self._buffers.items() if buffer]
        lowest = min(waiting, default=(rank, RecordKind.LOG))
        if lowest[0] >= rank:
            return False
        self._buffers[lowest].pop()
        self._held -= 1
        return True

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            kind, level, records = batch
            try:
                self._deliver(kind, level, records)
            except Exception:  # a bad record must not stop the next ones
                logger.exception("%d records cannot be sent", len(records))
                with self._lock:
                    self._dropped += len(records)
            if kind is not RecordKind.METRIC:
                with self._lock:
                    self._held -= len(records)
                    if not self._held:
                        self._hurry = False
                        self._idle.notify_all()

    def _next_batch(self) -> tuple[RecordKind, str, list[Record]] | None:
        """Wait for a full or due batch, and take that of the highest rank. None at the end of the process."""
        with self._lock:
            while True:
                now = time.monotonic()
                closing = self._give_up_at < float("inf")
                if self._sources and (closing or now >= self._next_metrics):
                    self._next_metrics = float("inf") if closing else now + self._settings.metrics.interval
                    if closing:
                        sources, self._sources = self._sources, []
                    else:
                        sources = self._sources
                    if records := [record for source in sources for record in source()]:
                        return RecordKind.METRIC, "", records
                due = self._oldest + self._limits.batch_seconds
                if self._held and (self._held >= self._limits.batch_records or self._hurry or closing or now >= due):
                    return self._take()
                if closing:
                    return None
                wake = min(due if self._held else float("inf"), self._next_metrics if self._sources else float("inf"))
                self._news.wait(None if wake == float("inf") else max(0.0, wake - now))

    def _take(self) -> tuple[RecordKind, str, list[Record]]:
        """The next batch of the highest rank, oldest first; its first log record carries the number of dropped ones."""
        rank, kind = max(key for key, buffer in self._buffers.items() if buffer)
        buffer = self._buffers[rank, kind]
        batch = [buffer.popleft() for _ in range(min(len(buffer), self._limits.batch_records))]
        if self._dropped and kind is RecordKind.LOG:
            batch[0]["dropped"] = self._dropped
            self._dropped = 0
        return kind, _word_for(rank), batch

    def _deliver(self, kind: RecordKind, level: str, records: list[Record]) -> None:
        """Publish one batch until RabbitMQ confirms it; split it in halves if it is too large for one message."""
        try:
            self.settle(Sent(self.event(kind, records, level)), lambda: self._give_up_at)
        except BodyTooLarge:
            if len(records) == 1:
                with self._lock:
                    self._dropped += 1 + int(records[0].get("dropped", 0))
                return
            middle = len(records) // 2
            self._deliver(kind, level, records[:middle])
            self._deliver(kind, level, records[middle:])
        except BedsError as error:  # the process ends
            logger.warning("%d records were not sent: %s", len(records), error)

    def event(self, kind: RecordKind, records: Sequence[Record], level: str = "") -> Event:
        """The event that carries records."""
        node = self._settings.node
        lineage = Lineage.root(node.name, node.environment)
        return Event.of_records(kind, level, self._common, records, lineage)


_WORDS = (
    (logging.CRITICAL, "critical"),
    (logging.ERROR, "error"),
    (logging.WARNING, "warning"),
    (logging.INFO, "info"),
)


def _word_for(levelno: int) -> str:
    """The level's name in a routing key; an application's own level gets the next lower of the five names."""
    return next((word for least, word in _WORDS if levelno >= least), "debug")


_live: weakref.WeakSet[Shipper] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for shipper in list(_live):
        shipper.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)

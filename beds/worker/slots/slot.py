"""One slot: a process that consumes its pool's queues and handles one event at a time."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import amqp
from celery import states

from beds.domain.backoff import Backoff
from beds.domain.event import RecordKind
from beds.errors import BedsError, DeadEvent, MalformedEvent
from beds.services.execution import Abandon, Attempt, Ending, Postpone, Redeliver
from beds.transport import topology
from beds.transport.connection import connect_to
from beds.wire.reply import encode_error, reply_message
from beds.wire.routes import LATER, Route
from beds.worker.slots.audits import Batch, SlotAudits
from beds.worker.slots.board import Page, SlotState
from beds.worker.slots.connection import ConnectionLost, QueueMissing, SlotConnection
from beds.worker.slots.executor import SlotExecutor
from beds.worker.slots.monitor import Monitor
from beds.worker.slots.postponed import postponed
from beds.worker.slots.received import Received
from beds.worker.slots.replies import Replies, Reply
from beds.worker.task import shown
from beds.worker.validation import check, unreadable, wrong

logger = logging.getLogger("celery.beds.slot")

KEEPER_SECONDS = 0.5
"""Interval of signs of life, and of heartbeats and monitoring events."""
IDLE_SECONDS = 5.0
LASTING_SECONDS = 5.0
"""A connection that lived this long has lasted: after its loss the pauses between attempts begin anew."""
SHOWN_CHARACTERS = 300
"""Characters of one header that monitors are shown."""
DRAIN_SECONDS = 5.0
"""A slot that ends handles what it has received for this time; the rest returns to its queue."""


@dataclass(frozen=True, slots=True)
class SlotSettings:
    """What a pool gives to each of its slots.

    Args:
        hostname: the worker's name.
        queues: the queues to consume, each with the most events that may be unacknowledged.
        positions: each task's position in the counts of a page.
        soft_limit: seconds after which an event ends with TimeLimitExceeded.
        max_events: events after which the process is replaced; None for no limit.
        max_kib: memory after which it is; None for no limit.
    """

    hostname: str
    queues: Mapping[str, int]
    positions: Mapping[str, int]
    soft_limit: float
    max_events: int | None = None
    max_kib: int | None = None


@dataclass(frozen=True, slots=True)
class Handled:
    """An event that was handled. It is acknowledged once RabbitMQ has confirmed its audit record and its reply.

    Args:
        tag: its delivery tag.
        audit, reply: what it waits for, if anything.
        is_refused: whether it goes to beds.dead.
    """

    tag: int
    audit: Batch | None
    reply: Reply | None
    is_refused: bool = False

    @property
    def is_settled(self) -> bool:
        """True if nothing of it can be lost any more."""
        return (self.audit is None or self.audit.is_confirmed) and (self.reply is None or self.reply.is_settled)


class Slot:
    """The life of one slot process.

    Args:
        app: the Celery application.
        settings: from its pool.
        page: where it shows its parent what it does.
        deaths: called with a guid; how many slots died while they executed the event.
    """

    def __init__(self, app: Any, settings: SlotSettings, page: Page, deaths: Callable[[str], int]) -> None:
        self._app = app
        self._settings = settings
        self._page = page
        self._deaths = deaths
        self._amqp = app.settings.amqp
        self._workers = self._amqp.workers
        self._connection: SlotConnection | None = None
        self._replies = Replies(self._amqp)
        self._received: deque[Received] = deque()
        self._suspects: deque[Received] = deque()
        """Events during which a slot died: each is handled alone, since those beside it would be counted, too."""
        self._is_listed = True
        self._acks_at_once = max(1, min(settings.queues.values()) // 2)
        self._unacknowledged: deque[Handled] = deque()
        self._audits = SlotAudits(
            lambda records: app.telemetry.shipper.event(RecordKind.AUDIT, records),
            self._amqp.max_body_bytes,
            lambda: self._connection,
        )
        self._monitor = Monitor(app, settings.hostname)
        self._executor = SlotExecutor(app, settings.hostname, settings.soft_limit)
        self._afterwards: deque[Callable[[], None]] = deque()
        """What the current event leaves to do after its reply."""
        self._handled = 0
        self._stop_at = math.inf
        self._is_asked_to_stop = False
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Consume until SIGTERM, or until a limit of the process is reached."""
        self._app.telemetry.audits = self._audits
        self._app.telemetry.afterwards = self._afterwards.append
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_term)
        threading.Thread(target=self._keep, name="beds-keeper", daemon=True).start()
        backoff, since = _reconnecting(), math.inf
        while not self._is_over():
            try:
                if self._connection is None:
                    self._connection, since = self._connect(), time.monotonic()
                self._turn(self._connection)
            except ConnectionLost as lost:
                self._lose(lost)
                if time.monotonic() - since > LASTING_SECONDS:
                    backoff, since = _reconnecting(), math.inf
                if isinstance(lost, QueueMissing):
                    self._declare()
                if not self._is_asked_to_stop:
                    backoff.wait()
        self._finish()

    # --- The loop ----------------------------------------------------------------------------------------------------

    def _turn(self, connection: SlotConnection) -> None:
        """Handle the next event, or wait for one."""
        if self._is_asked_to_stop:
            self._drain(connection)
        elif self._suspects:
            connection.stop_consuming()
            if connection.has_stopped and not self._received and not self._unacknowledged:
                self._handle(self._suspects.popleft(), connection)
                return
        else:
            connection.consume()
        if self._replies.is_stuck:
            raise ConnectionLost("RabbitMQ accepts no connection for replies")
        has_next = bool(self._received) and not self._is_late()
        if not has_next:
            self._audits.flush(connection)
            connection.wait(IDLE_SECONDS, other=self._replies.descriptor)
            connection.receive()
            self._replies.receive()
        elif self._unacknowledged:
            if self._audits.is_due:
                self._audits.flush(connection)
            connection.receive()
            self._replies.receive()
        self._acknowledge(connection, at_least=self._acks_at_once if has_next else 1)
        self._list_waiting()
        if self._received and not self._is_late():
            self._handle(self._received.popleft(), connection)

    def _acknowledge(self, connection: SlotConnection, at_least: int = 1) -> None:
        """Acknowledge the settled events, unless there are fewer than `at_least`.

        One acknowledgement may cover several events, and each is an entry in the log of a quorum queue.
        """
        with connection.lock:
            if connection is not self._connection:
                return  # lost meanwhile, so its tags mean nothing
            count = sum(1 for _ in itertools.takewhile(lambda handled: handled.is_settled, self._unacknowledged))
            if count < at_least:
                return
            settled = [self._unacknowledged.popleft() for _ in range(count)]
            # A suspect may have been delivered earlier, and is not handled yet.
            if self._suspects or any(handled.is_refused for handled in settled):
                for handled in settled:
                    self._settle(handled, connection)
            else:
                connection.acknowledge(settled[-1].tag, all_before=count > 1)

    @staticmethod
    def _settle(handled: Handled, connection: SlotConnection) -> None:
        if handled.is_refused:
            connection.reject(handled.tag, requeue=False)
        else:
            connection.acknowledge(handled.tag)

    def _is_over(self) -> bool:
        if not self._is_asked_to_stop:
            return False
        if self._connection is None:
            return True
        if time.monotonic() > self._stop_at + DRAIN_SECONDS:
            # Something is not confirmed. Its event returns to the queue, and the ledger has its answer.
            return True
        return self._stop_at < math.inf and not self._unacknowledged and (not self._received or self._is_late())

    def _is_late(self) -> bool:
        """Whether a slot that ends begins no further event."""
        return time.monotonic() > self._stop_at

    def _drain(self, connection: SlotConnection) -> None:
        """Receive no further events."""
        if self._stop_at == math.inf:
            self._stop_at = time.monotonic() + DRAIN_SECONDS
            self._page.show_state(SlotState.DRAINING)
            connection.stop_consuming()

    def _finish(self) -> None:
        """Close all connections; RabbitMQ returns what was not acknowledged."""
        if self._connection is not None:
            with contextlib.suppress(ConnectionLost):
                self._publish_monitoring(self._connection)
            self._connection.close()
        self._replies.close()
        if "factory" in self._app.__dict__:
            self._app.factory.close()

    def _on_term(self, *_: Any) -> None:
        self._is_asked_to_stop = True

    def _keep(self) -> None:
        """The keeper's thread: heartbeats, deliveries and confirms go on while an event is executed."""
        while True:
            time.sleep(KEEPER_SECONDS)
            self._page.show_alive()
            try:
                self._executor.look_at_limit()
                if (connection := self._connection) is not None:
                    self._keep_up(connection)
            except ConnectionLost:
                pass  # the main thread meets it, too
            except Exception:  # the thread must go on, or RabbitMQ would miss its heartbeats
                logger.exception("the keeper failed")
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake, b"k")

    def _keep_up(self, connection: SlotConnection) -> None:
        connection.tick()
        connection.check()
        self._audits.check(connection)
        self._audits.flush(connection)
        self._replies.tick()
        self._acknowledge(connection)
        self._publish_monitoring(connection)
        self._list_waiting()

    def _list_waiting(self) -> None:
        if not self._is_listed:
            self._is_listed = True
            self._page.show_waiting([each.work() for each in (*self._received, *self._suspects)])

    def _publish_monitoring(self, connection: SlotConnection) -> None:
        if (events := self._monitor.take()) is not None:
            connection.publish(*events)

    # --- The connection ----------------------------------------------------------------------------------------------

    def _connect(self) -> SlotConnection:
        self._page.show_state(SlotState.CONNECTING)
        found = SlotConnection(
            self._amqp,
            self._settings.queues,
            self._woken,
            declare=self._monitor.declare,
            on_delivery=self._take,
            on_confirm=self._audits.on_confirm,
            on_return=self._audits.on_return,
        )
        self._page.show_state(SlotState.CONSUMING)
        return found

    def _declare(self) -> None:
        """Declare the topology again, since a queue is missing."""
        try:
            url, patience = self._amqp.broker_url, self._amqp.connect_timeout
            with connect_to(self._amqp, url, patience=patience) as connection:
                problems = topology.declare_each(topology.Topology.from_settings(self._amqp), connection)
        except (BedsError, OSError, amqp.AMQPError) as error:
            logger.warning("the topology cannot be declared: %s", error)
            return
        for problem in problems.values():
            logger.error("%s", problem)

    def _take(self, message: amqp.Message) -> None:
        received = Received(message)
        if received.is_redelivered:
            received.deaths = self._deaths(received.guid)
        (self._suspects if received.deaths else self._received).append(received)
        self._is_listed = False

    def _lose(self, lost: ConnectionLost) -> None:
        """Forget what the lost connection delivered: RabbitMQ delivers it again."""
        logger.warning("the connection to RabbitMQ is lost (%s)", lost)
        connection, self._connection = self._connection, None
        with connection.lock if connection is not None else contextlib.nullcontext():
            if connection is not None:
                connection.give_up()
            self._received.clear()
            self._suspects.clear()
            self._unacknowledged.clear()
            self._audits.forget()
        self._replies.forget()
        self._page.show_waiting(())
        self._page.show_state(SlotState.CONNECTING)

    # --- One event ---------------------------------------------------------------------------------------------------

    def _handle(self, received: Received, connection: SlotConnection) -> None:
        """Handle an event; an unforeseen error sends it to beds.dead, and the slot goes on."""
        try:
            self._process(received, connection)
        except ConnectionLost:
            raise
        except Exception:
            logger.exception("an event could not be handled")
            connection.reject(received.tag, requeue=False)

    def _process(self, received: Received, connection: SlotConnection) -> None:
        """Validate an event, execute it, and reply. It is acknowledged once RabbitMQ has what comes of it."""
        try:
            route = check(received, self._amqp.max_body_bytes, self._workers)
            # RabbitMQ's headers CC and BCC route a message to queues that its routing key does not name.
            if route.queue.name not in self._settings.queues:
                raise wrong("task", "it belongs to a queue that this worker does not serve")
            attempt = received.attempt(route, self._workers, self._settings.hostname)
            # A classic queue does not count deliveries.
            is_classic = received.deaths and self._amqp.type_of(route.queue.name) == "classic"
            if is_classic and received.deaths > self._amqp.delivery_limit:
                raise DeadEvent(f"it ended its slot {received.deaths} times")
        except (MalformedEvent, DeadEvent) as error:
            self._refuse(received, connection, error)
            return
        except Exception as error:  # noqa: BLE001 — no error that a hostile message causes may end the slot
            self._refuse(received, connection, unreadable(error))
            return
        self._page.begin(received.work(time.monotonic()))
        self._show_begin(received, route)
        try:
            ending = self._executor.execute(received, route, attempt)
        except Postpone as later:
            self._postpone(received, connection, attempt, in_doubt=later.in_doubt)
        except Abandon:
            connection.reject(received.tag, requeue=False)
        except Redeliver:
            connection.reject(received.tag, requeue=True)
        else:
            self._conclude(received, connection, attempt, ending)
        finally:
            self._page.end(self._settings.positions[route.task])
            self._do_afterwards()
        self._handled += 1
        if self._has_lasted():
            self._is_asked_to_stop = True

    def _do_afterwards(self) -> None:
        """Do what the event left to do. The event has its reply, so an error is only logged."""
        while self._afterwards:
            try:
                self._afterwards.popleft()()
            except Exception:  # whatever it is, the event must not be rejected for it
                logger.exception("an event's telemetry failed")

    def _conclude(
        self, received: Received, connection: SlotConnection, attempt: Attempt, ending: Ending | None
    ) -> None:
        """Reply, and acknowledge: at once, or when the audit record and the reply are confirmed."""
        if ending is None:
            connection.acknowledge(received.tag)
            return
        self._afterwards.append(partial(self._show_end, attempt, ending))
        self._finish_event(Handled(received.tag, ending.audit, self._reply(received, ending.reply)), connection)

    def _postpone(self, received: Received, connection: SlotConnection, attempt: Attempt, *, in_doubt: bool) -> None:
        """Let an event wait in beds.later, from which RabbitMQ returns it to its queue."""
        message = postponed(received, attempt.delivery, self._workers, in_doubt=in_doubt)
        later = self._audits.send_message(message, LATER, attempt.delivery.queue)
        self._finish_event(Handled(received.tag, later, None), connection)

    def _finish_event(self, handled: Handled, connection: SlotConnection) -> None:
        if handled.is_settled:
            self._settle(handled, connection)
        else:
            with connection.lock:
                self._unacknowledged.append(handled)

    def _refuse(self, received: Received, connection: SlotConnection, error: BedsError) -> None:
        """Send a message that is not executed to beds.dead, and answer it."""
        guid = received.properties.get("correlation_id")
        logger.error("rejected %.64r (%d bytes): %s", guid, len(received.body), error.message)
        reply = None
        if isinstance(guid, str):
            reply = self._reply(received, encode_error(guid, states.FAILURE, error, ""))
        self._finish_event(Handled(received.tag, None, reply, is_refused=True), connection)

    def _reply(self, received: Received, body: bytes) -> Reply | None:
        guid = received.properties["correlation_id"]
        if received.reply_to and guid.isascii():
            return self._replies.publish(reply_message(guid, body), received.reply_to)
        return None

    def _has_lasted(self) -> bool:
        """True if the process has reached one of its limits."""
        settings = self._settings
        if settings.max_events is not None and self._handled >= settings.max_events:
            return True
        return settings.max_kib is not None and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > settings.max_kib

    # --- What monitors see -------------------------------------------------------------------------------------------

    def _show_begin(self, received: Received, route: Route) -> None:
        headers = received.headers
        self._monitor.add(
            "task-received",
            headers["id"],
            name=route.task,
            args=_text(headers.get("argsrepr")),
            kwargs=_text(headers.get("kwargsrepr")),
            root_id=_text(headers.get("root_id")),
            parent_id=_text(headers.get("parent_id")) or None,
            retries=headers.get("retries") or 0,
            eta=None,
            expires=None,
        )
        self._monitor.add("task-started", headers["id"])

    def _show_end(self, attempt: Attempt, ending: Ending) -> None:
        delivery = attempt.delivery
        if ending.error is None:
            self._monitor.add(
                "task-succeeded", delivery.guid, result=repr(shown(ending.value)), runtime=attempt.trace.seconds
            )
            return
        self._monitor.add("task-failed", delivery.guid, exception=repr(ending.error), traceback="")
        if not isinstance(ending.cause, BedsError):
            logger.error("%s[%s] failed: %s", delivery.task, delivery.guid, ending.error.message, exc_info=ending.cause)


def _text(value: Any) -> str:
    """A header's text for monitors; a client may have sent anything."""
    return value[:SHOWN_CHARACTERS] if isinstance(value, str) else ""


def _reconnecting() -> Backoff:
    return Backoff(math.inf, first=0.2, longest=3.0)

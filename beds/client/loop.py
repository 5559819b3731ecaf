"""The awaiting driver of a client's flows, on an event loop that it never blocks.

An event is published on the loop's own thread where that cannot block, and in a sender thread otherwise. The
connection's reader thread wakes a loop once for all replies that it has read.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from beds.client.flows import Flows
from beds.client.steps import Await, Flow, Pause, Returned, Send, Step, advance
from beds.domain.event import Event
from beds.transport.pending import Pending, Transport

T = TypeVar("T")


async def drive(flow: Flow[T], flows: Flows) -> T:
    """Run a flow on this event loop."""
    given: Any = None
    failed: Exception | None = None
    while True:
        step = advance(flow, given, failed)
        if isinstance(step, Returned):
            return step.value
        given = failed = None
        try:
            given = await _awaited(step, flows.transport)
        except Exception as error:  # noqa: BLE001 — the flow handles it
            failed = error


async def _awaited(step: Step, transport: Transport) -> Any:
    match step:
        case Send(event, deadline):
            return await _sent(event, deadline, transport)
        case Await(future, deadline):
            return await _value(future, deadline)
        case Pause(seconds):
            await asyncio.sleep(seconds)
            return None


async def _sent(event: Event, deadline: float, transport: Transport) -> Pending:
    sender = _sender(transport)
    # Events leave in the order of the calls, so none overtakes those that wait for the sender's thread.
    if not sender.waiting and (pending := transport.send_now(event)) is not None:
        return pending
    # In a thread, because `send` may block: on connecting, on a resource alarm, or on a full socket buffer.
    sending = sender.submit(transport, event, deadline)
    try:
        return await _value(sending, deadline)
    except TimeoutError:
        sending.cancel()
        raise transport.why_late(Pending(event), "RabbitMQ did not confirm") from None
    except BaseException:
        sending.cancel()  # the caller has gone: what is not sent yet must not be
        raise


async def _value(future: Future[T], deadline: float) -> T:
    """The future's value. A timeout does not cancel the future, because a caller may wait for it again."""
    if not future.done():
        done = _done(future)
        await asyncio.wait([done], timeout=max(0.0, deadline - time.monotonic()))
    return future.result(0)


class _Wakeups:
    """Ends futures of one loop from other threads, many in one turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weak, because this is the value of a dictionary whose keys are weak loops.
        self._loop = weakref.ref(loop)
        self._ended: deque[asyncio.Future[None]] = deque()
        self._is_scheduled = False

    def end(self, done: asyncio.Future[None]) -> None:
        """Called in any thread."""
        self._ended.append(done)
        loop = self._loop()
        if not self._is_scheduled and loop is not None:
            self._is_scheduled = True
            try:
                loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop is closed, so no task waits; what refers to it is let go
                self._ended.clear()

    def _drain(self) -> None:
        self._is_scheduled = False  # before the first is taken: one that is added later schedules another turn
        while self._ended:
            done = self._ended.popleft()
            if not done.done():
                done.set_result(None)


_wakeups: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Wakeups] = weakref.WeakKeyDictionary()
_bridges: weakref.WeakKeyDictionary[Future[Any], asyncio.Future[None]] = weakref.WeakKeyDictionary()


def _done(future: Future[Any]) -> asyncio.Future[None]:
    """A future of this event loop that ends with `future`; one for all waits, so that repeated waits leave nothing."""
    loop = asyncio.get_running_loop()
    done = _bridges.get(future)
    if done is not None and done.get_loop() is loop:
        return done
    wakeups = _wakeups.get(loop)
    if wakeups is None:
        wakeups = _wakeups[loop] = _Wakeups(loop)
    bridge = _bridges[future] = loop.create_future()
    future.add_done_callback(lambda _: wakeups.end(bridge))
    return bridge


class _Sender:
    """The one thread of this process that publishes over a transport for event loops, in the order of the calls."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.waiting = 0
        """Events that wait for the thread, or are in its hands."""
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="beds-aio-send")

    def submit(self, transport: Transport, event: Event, deadline: float) -> Future[Pending]:
        with self._lock:
            self.waiting += 1
        sending = self._thread.submit(transport.send, event, deadline)
        sending.add_done_callback(self._ended)
        return sending

    def _ended(self, _sending: Future[Pending]) -> None:
        with self._lock:
            self.waiting -= 1


_senders: weakref.WeakKeyDictionary[Transport, _Sender] = weakref.WeakKeyDictionary()
_senders_lock = threading.Lock()
os.register_at_fork(before=_senders_lock.acquire, after_in_parent=_senders_lock.release,
                    after_in_child=_senders_lock.release)  # fmt: skip


def _sender(transport: Transport) -> _Sender:
    found = _senders.get(transport)
    if found is not None and found.pid == os.getpid():
        return found
    with _senders_lock:
        found = _senders.get(transport)
        if found is None or found.pid != os.getpid():
            found = _senders[transport] = _Sender()
        return found

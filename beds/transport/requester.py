"""Publishing events and matching confirms and replies to them, over one link that is renewed when it is lost."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import weakref
from concurrent.futures import Future, InvalidStateError
from typing import Any

from pydantic import SecretStr

from beds.config.sections import Amqp
from beds.domain.event import Event
from beds.errors import (
    BedsError,
    BrokerBlocked,
    BrokerUnavailable,
    CallTimeout,
    ClientClosed,
    InternalError,
    MalformedEvent,
    Overloaded,
    PermissionDenied,
    Unroutable,
    from_wire,
)
from beds.transport import codec
from beds.transport.link import Link
from beds.transport.message import sealed, to_message

FIRST_DELAY = 0.05
"""Seconds before the second attempt to connect; doubled each time, at most `LONGEST_DELAY`."""
LONGEST_DELAY = 1.0
RETRY_AFTER = 1.0
"""Seconds after which a full queue may have room again."""


class Pending:
    """One published event: `confirmed` when RabbitMQ has it, `reply` when a worker answered.

    Both fail with the same error when the event cannot come through.
    """

    __slots__ = ("__weakref__", "confirmed", "event", "reply")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.confirmed: Future[None] = Future()
        self.reply: Future[Any] = Future()

    def fail(self, error: BedsError) -> None:
        error.event_id = error.event_id or self.event.lineage.event_id
        for future in (self.confirmed, self.reply):
            try:
                future.set_exception(error)
            except InvalidStateError:
                continue  # it ended before

    def confirm(self) -> None:
        try:
            self.confirmed.set_result(None)
        except InvalidStateError:
            return  # returned as unroutable: the confirm that follows means nothing

    def answer(self, body: bytes | str) -> None:
        self.confirm()
        try:
            value = read_reply(_parsed(body))
        except BedsError as error:
            self.fail(error)
            return
        try:
            self.reply.set_result(value)
        except InvalidStateError:
            return  # a second reply, after a redelivery


class Requester:
    """Sends events and hears replies. Safe over threads and forks; one connection per process, opened when needed.

    Args:
        settings: `[amqp]` of beds.toml.
        url: as whom to connect, when it is not `[amqp] url`.
    """

    def __init__(self, settings: Amqp, url: str = "") -> None:
        self._settings = settings.model_copy(update={"url": SecretStr(url)}) if url else settings
        self._closed = False
        self._opening = threading.Lock()
        self._conversation: _Conversation | None = None
        _live.add(self)

    def send(self, event: Event, deadline: float) -> Pending:
        """Publish the event, connecting first where necessary.

        Args:
            event: what to send.
            deadline: monotonic seconds; nothing here takes longer.

        Raises:
            BrokerUnavailable: no connection by the deadline.
            BrokerBlocked: RabbitMQ takes no messages by the deadline.
            PermissionDenied: the user or password is refused.
            InvalidPayload: the event cannot be sent.
        """
        event = sealed(event, self._settings.max_body_bytes)
        conversation = self._open(deadline)
        link = conversation.link
        if link.blocked and not link.wait_unblocked(deadline):
            raise BrokerBlocked(f"RabbitMQ takes no messages: {link.blocked}", event_id=event.lineage.event_id)
        message = to_message(event, link.user)
        pending = Pending(event)
        try:
            link.publish(message, event.exchange, event.queue, lambda tag: conversation.await_answer(tag, pending))
        except PermissionDenied as refusal:
            if _speaks_of(refusal, pending):
                raise
            raise _because_of_another() from None
        return pending

    @property
    def is_ready(self) -> bool:
        """Whether `send` would go out at once."""
        current = self._conversation
        return current is not None and current.link.is_open and not current.link.blocked

    @property
    def blocked(self) -> str:
        """Why RabbitMQ takes no messages at the moment, or empty."""
        return self._conversation.link.blocked if self._conversation else ""

    def why_late(self, pending: Pending, what: str) -> BedsError:
        """Why there was nothing by the deadline; `what` begins the sentence."""
        event = pending.event
        detail = {"guid": event.lineage.guid, "queue": event.queue}
        where: dict[str, Any] = {"detail": detail, "event_id": event.lineage.event_id}
        if self.blocked:
            return BrokerBlocked(f"RabbitMQ takes no messages: {self.blocked}", **where)
        if not pending.confirmed.done():
            return BrokerUnavailable("RabbitMQ did not confirm the event by the deadline", **where)
        return CallTimeout(
            f"{what} to {event.summary} by the deadline",
            hint=f"does a worker consume {event.queue}? `beds node start` starts those of this node"
            + ("" if event.is_read else "; the write may still be carried out"),
            **where,
        )

    def close(self) -> None:
        """End the connection; whoever still waits gets ClientClosed."""
        self._closed = True
        current, self._conversation = self._conversation, None
        if current:
            current.link.close()
            current.fail_all(ClientClosed("the client was closed"))

    def after_fork(self) -> None:
        """In a child: forget the parent's connection, and connect anew at the next use."""
        if self._conversation:
            self._conversation.link.abandon()
        self._opening = threading.Lock()
        self._conversation = None

    def _open(self, deadline: float) -> _Conversation:
        current = self._conversation
        if current is not None and current.link.is_open:
            return current
        delay = FIRST_DELAY
        while True:
            remaining = deadline - time.monotonic()
            if not self._opening.acquire(timeout=max(0.0, remaining)):
                raise BrokerUnavailable("no connection to RabbitMQ by the deadline")
            try:
                if self._closed:
                    raise ClientClosed("this client is closed")
                current = self._conversation
                if current is not None and current.link.is_open:
                    return current
                timeout = max(0.05, min(self._settings.connect_timeout, remaining))
                self._conversation = current = _Conversation(self._settings, timeout)
                return current
            except BrokerUnavailable:
                if time.monotonic() + delay > deadline:
                    raise
            finally:
                self._opening.release()
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, LONGEST_DELAY)


class _Conversation:
    """One link, and who waits for what over it. What is lost with a link never touches those on the next one."""

    def __init__(self, settings: Amqp, timeout: float) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._unconfirmed: dict[int, Pending] = {}
        # Weak: a reply that nobody waits for any more is not kept.
        self._waiting: weakref.WeakValueDictionary[str, Pending] = weakref.WeakValueDictionary()
        self.link = Link(
            settings,
            timeout,
            on_reply=self._on_reply,
            on_confirm=self._on_confirm,
            on_return=self._on_return,
            on_lost=self.fail_all,
        )

    def await_answer(self, tag: int, pending: Pending) -> None:
        """Keep an event that is about to be published with this delivery tag.

        Raises:
            BrokerUnavailable: the link was lost at this very moment, and who waited has been told.
        """
        with self._lock:
            if self._over:
                raise BrokerUnavailable("the connection to RabbitMQ was lost", event_id=pending.event.lineage.event_id)
            self._waiting[pending.event.lineage.guid] = pending
            self._unconfirmed[tag] = pending

    def fail_all(self, why: BedsError) -> None:
        """Tell everybody that the link is of no more use."""
        with self._lock:
            self._over = True
            unconfirmed = set(map(id, self._unconfirmed.values()))
            self._unconfirmed.clear()
            waiting = list(self._waiting.values())
        for pending in waiting:
            known_lost = id(pending) in unconfirmed
            if isinstance(why, PermissionDenied) and not (known_lost and _speaks_of(why, pending)):
                # Another event was refused, and took the channel with it.
                pending.fail(_because_of_another())
            else:
                pending.fail(from_wire(why.to_wire()))

    def _on_reply(self, guid: str, body: bytes | str) -> None:
        pending = self._waiting.get(guid)
        if pending is not None:
            pending.answer(body)

    def _on_confirm(self, tag: int, multiple: bool, accepted: bool) -> None:
        with self._lock:
            # Dictionaries keep their order, so the oldest tag comes first.
            tags = [t for t in self._unconfirmed if t <= tag] if multiple else [tag]
            confirmed = [self._unconfirmed.pop(t) for t in tags if t in self._unconfirmed]
        for pending in confirmed:
            if accepted:
                pending.confirm()
            else:
                detail = {"queue": pending.event.queue, "retry_after": RETRY_AFTER}
                pending.fail(Overloaded(f"the queue {pending.event.queue} is full", detail=detail))

    def _on_return(self, guid: str, key: str) -> None:
        pending = self._waiting.get(guid)
        if pending is not None:
            pending.fail(Unroutable(f"no queue takes the key {key}", detail={"routing_key": key}))


def _because_of_another() -> BrokerUnavailable:
    """What is told of an event that a refusal of another one took with it: it may be sent again."""
    return BrokerUnavailable("the channel was closed because of another event")


def _speaks_of(refusal: PermissionDenied, pending: Pending) -> bool:
    """Whether RabbitMQ's words name this event's key, or no key at all (the whole exchange is refused)."""
    words = str(refusal.detail.get("reply", ""))
    return f"'{pending.event.queue}'" in words or "topic" not in words


def _parsed(body: bytes | str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise MalformedEvent("the worker's reply is not JSON") from None


def read_reply(meta: Any) -> Any:
    """The value in a worker's reply, as JSON has it. Raises the error it carries."""
    try:
        status, result = meta["status"], meta["result"]
    except (KeyError, TypeError):
        raise MalformedEvent("the worker's reply cannot be read") from None
    if status == "SUCCESS":
        return codec.decode(result)
    wire = result.get("beds") if isinstance(result, dict) else None
    if isinstance(wire, dict):
        raise from_wire(codec.decode(wire))
    raise InternalError(f"the worker answered {status}")


_live: weakref.WeakSet[Requester] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for requester in list(_live):
        requester.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)

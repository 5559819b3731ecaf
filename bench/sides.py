"""The sides of bench.operations: for each, its workers, and how the measuring process calls it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psutil

from beds.client.call import Call
from beds.client.client import Client
from beds.config import Settings
from beds.domain.reply import Page
from bench import amqp_peer
from bench.objects import Data, Objects, Samples, is_read
from bench.side import DEADLINE, module, wait_until_answered, worker

BEDS_QUEUES = "rel.read,rel.write,rec.read,rec.write"


@dataclass(frozen=True)
class Side:
    """One way to execute the operations.

    Args:
        one: executes an operation and returns its result.
        many: executes an operation on each data, all of them in flight at once where the side can do that.
        workers: the processes that execute, with their children; none if it is the measuring process.
        watch: surrounds some operations; raises AssertionError if they had not all effects that this side promises.
    """

    one: Callable[[str, Data], Data]
    many: Callable[[str, Sequence[Data]], object]
    workers: Sequence[psutil.Process] = ()
    watch: Callable[[Sequence[str]], AbstractContextManager[None]] = lambda operations: contextlib.nullcontext()


@dataclass(frozen=True)
class Bench:
    """What the sides share.

    Args:
        settings: those of the benchmark's vhost.
        slots: the processes that execute operations, of each side.
        brokers, dba: the drivers of the measuring process.
    """

    settings: Settings
    slots: int
    brokers: Objects
    dba: Objects

    @property
    def pool(self) -> tuple[str, ...]:
        """A Celery worker's options."""
        return ("-c", str(self.slots), "--prefetch-multiplier", str(amqp_peer.PREFETCH))


@contextmanager
def beds_side(bench: Bench) -> Iterator[Side]:
    """BEDS's client and a worker of BEDS."""
    with worker("beds", BEDS_QUEUES, *bench.pool) as process, Client(bench.settings) as client:

        def one(operation: str, data: Data) -> Data:
            call = _call(operation, data)
            reply = client.call(call.operation, call.template, call.data, using=call.using, timeout=DEADLINE)
            return reply[0] if isinstance(reply, Page) else reply.to_wire()

        def many(operation: str, batch: Sequence[Data]) -> object:
            return client.call_many([_call(operation, data) for data in batch], timeout=DEADLINE)

        yield Side(one, many, [process])


@contextmanager
def celery_side(bench: Bench) -> Iterator[Side]:
    """An ordinary Celery application."""
    peer = _celery_peer()
    with worker("bench.celery_peer", peer.PLAIN, *bench.pool, "-n", "plain@%h") as process:
        yield Side(*_celery_calls(peer.plain), [process])


@contextmanager
def celery_duties_side(bench: Bench) -> Iterator[Side]:
    """The same Celery application, whose writes enter the ledger and are audited."""
    peer = _celery_peer()

    def effects() -> tuple[int, int, int]:
        with amqp_peer.connect(bench.settings.amqp.broker_url) as connection:
            declared = {"durable": True, "auto_delete": False, "arguments": amqp_peer.QUORUM}
            audits = connection.channel().queue_declare(peer.AUDIT, **declared).message_count
        return (*bench.dba.ledger_entries(), audits)

    @contextmanager
    def watch(operations: Sequence[str]) -> Iterator[None]:
        before = effects()
        yield
        found = tuple(now - then for now, then in zip(effects(), before, strict=True))
        writes = [operation for operation in operations if not is_read(operation)]
        rel = sum(operation.endswith("rel") for operation in writes)
        if found != (rel, len(writes) - rel, len(writes)):
            raise AssertionError(f"{found} new entries in the ledgers, and audit records, of {writes}")

    with worker("bench.celery_peer", peer.WITH_DUTIES, *bench.pool, "-n", "duties@%h") as process:
        yield Side(*_celery_calls(peer.with_duties), [process], watch)


@contextmanager
def faststream_side(bench: Bench) -> Iterator[Side]:
    """A FastStream service."""
    from bench.faststream_peer import Requester

    url = bench.settings.amqp.broker_url
    with _modules("bench.faststream_peer", bench.slots) as workers, contextlib.closing(Requester(url)) as requester:
        yield Side(requester.one, requester.many, workers)


@contextmanager
def amqp_side(bench: Bench) -> Iterator[Side]:
    """py-amqp alone."""
    requester = amqp_peer.Requester(bench.settings.amqp.broker_url)
    with _modules("bench.amqp_peer", bench.slots) as workers, contextlib.closing(requester):
        yield Side(requester.one, requester.many, workers)


@contextmanager
def driver_side(bench: Bench) -> Iterator[Side]:
    """The drivers in the measuring process, one operation after the other."""
    perform = bench.brokers.perform
    yield Side(perform, lambda operation, batch: [perform(operation, data) for data in batch])


SIDES: dict[str, Callable[[Bench], AbstractContextManager[Side]]] = {
    "beds": beds_side,
    "celery": celery_side,
    "celery-duties": celery_duties_side,
    "faststream": faststream_side,
    "amqp": amqp_side,
    "driver": driver_side,
}


def lacking(side: str) -> str:
    """What to do so that the side can run; empty if it can."""
    if side == "faststream" and importlib.util.find_spec("faststream") is None:
        return "FastStream is not installed, so this side is left out: pip install 'beds[bench]'"
    return ""


def _call(operation: str, data: Data) -> Call:
    """An operation as BEDS's client takes it."""
    match operation:
        case "fetch-rel":
            return Call("fetch_records", "Planes", data, "by_tailnum")
        case "create-rel":
            return Call("create_record", "Planes", data)
        case "update-rel":
            return Call("update_record", "Planes", data)
    typed = {**data, "id": UUID(data["id"])}
    match operation:
        case "fetch-rec":
            return Call("fetch_records", "Notices", typed, "by_id")
        case "create-rec":
            return Call("create_record", "Notices", {**typed, "opened": datetime.fromisoformat(data["opened"])})
    return Call("update_record", "Notices", typed)


def _celery_peer() -> Any:
    """The application, imported only now, since it reads the URL of the benchmark's vhost from the environment."""
    return importlib.import_module("bench.celery_peer")


def _celery_calls(
    tasks: dict[str, Any],
) -> tuple[Callable[[str, Data], Data], Callable[[str, Sequence[Data]], object]]:
    def one(operation: str, data: Data) -> Data:
        answer: Data = tasks[operation].delay(data).get(timeout=DEADLINE)
        return answer

    def many(operation: str, batch: Sequence[Data]) -> object:
        task = tasks[operation]
        return [result.get(timeout=DEADLINE) for result in [task.delay(data) for data in batch]]

    return one, many


@contextmanager
def _modules(name: str, count: int) -> Iterator[list[psutil.Process]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(module(name, log=name)) for _ in range(count)]


def check_side(side: Side, samples: Samples, operations: Sequence[str]) -> None:
    """Wait until the side answers, then compare each operation's effect with what is stored. Raises AssertionError."""
    probe = "fetch-" + operations[0][-3:]
    wait_until_answered(lambda: side.one(probe, samples.next(probe)))
    with side.watch(operations):
        for operation in operations:
            data = samples.next(operation)
            samples.check(operation, data, side.one(operation, data))

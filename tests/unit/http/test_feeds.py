"""One reader for all who follow a template: nothing is missed, nothing comes twice, and nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from beds.domain.change import FROM_NOW, Change, Changes
from beds.errors import BrokerUnavailable, InternalError
from beds.http import feeds, streams
from beds.http.feeds import Feeds
from beds.http.problems import Problem


class Log:
    """A log of changes, one for each number."""

    def __init__(self) -> None:
        self.last = 5
        self.reads = 0
        self.before: Callable[[str], Any] = lambda _: None
        self.failures: list[Exception] = []

    async def read(self, template: str, after: str, limit: int, _actor: str) -> Changes:
        self.reads += 1
        if self.failures:
            raise self.failures.pop()
        last = self.last
        if (waiting := self.before(after)) is not None:
            await waiting
        if after == FROM_NOW:
            return Changes((), f"{last}-1", True)
        first = int(after.partition("-")[0]) + 1
        found = [change(number) for number in range(first, last + 1)][:limit]
        return Changes(tuple(found), found[-1].position if found else after, True)


def change(number: int) -> Change:
    return Change(f"{number}-1", "T", "create_record", str(number), 1, "e", datetime.now(UTC))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setattr(feeds, "LOOK_SECONDS", 0.01)
    return Log()


async def first(count: int, of: Feeds, after: str) -> list[str]:
    found: list[str] = []
    async with aclosing(of.follow("T", after)) as changes, asyncio.timeout(20):
        async for each in changes:
            found.append(each.record_id)
            if len(found) == count:
                break
    return found


def test_followers_from_different_positions_each_get_all_that_follows(log: Log) -> None:
    async def scene() -> None:
        own = Feeds(log.read)
        readers = [asyncio.create_task(first(10 - start, own, f"{start}-1")) for start in range(6)]
        for _ in range(5):
            await asyncio.sleep(0.03)
            log.last += 1
        for start, reader in enumerate(readers):
            assert await reader == [str(number) for number in range(start + 1, 11)]
        assert not own._feeds

    asyncio.run(scene())


def test_a_change_that_the_feed_finds_while_a_follower_reads_wakes_it(log: Log) -> None:
    """The follower's reply was made before the change, and comes after the feed's, which has it."""

    async def scene() -> None:
        goes_on = asyncio.Event()

        def before(after: str) -> Any:
            if after == "5-1" and log.last == 5:  # the follower's own first read
                log.last = 6
                return goes_on.wait()
            return None

        log.before = before
        own = Feeds(log.read)
        reader = asyncio.create_task(first(1, own, "5-1"))
        await asyncio.sleep(0.1)
        goes_on.set()
        assert await reader == ["6"]

    asyncio.run(scene())


def test_errors_that_pass_are_waited_for_and_others_reach_the_follower(log: Log) -> None:
    async def scene() -> None:
        own = Feeds(log.read)
        log.failures = [BrokerUnavailable("away")] * 4
        reader = asyncio.create_task(first(1, own, "4-1"))
        assert await reader == ["5"]
        log.failures = [InternalError("no")] * 2
        with pytest.raises(InternalError):
            await first(1, own, "4-1")

    asyncio.run(scene())


def test_a_feed_that_failed_is_replaced(log: Log) -> None:
    async def scene() -> None:
        own = Feeds(log.read)
        log.failures = [InternalError("for the feed")]
        log.before = lambda after: asyncio.sleep(0)
        early = asyncio.create_task(first(2, own, "5-1"))
        await asyncio.sleep(0)
        with pytest.raises(InternalError):
            await early
        many = [asyncio.create_task(first(1, own, "5-1")) for _ in range(50)]
        await asyncio.sleep(0.05)
        reads = log.reads
        await asyncio.sleep(0.2)
        assert log.reads - reads < 30, "one reader looks for all"
        log.last = 6
        assert await asyncio.gather(*many) == [["6"]] * 50

    asyncio.run(scene())


def test_a_stream_that_is_left_while_it_sends_leaves_no_feed(log: Log) -> None:
    async def scene() -> None:
        own = Feeds(log.read)

        async def events() -> Any:
            async with aclosing(own.follow("T", "0-1")) as changes:
                async for each in changes:
                    yield "change", each.position, {}

        async def verify() -> None:
            return

        async def send(message: Any) -> None:
            if message.get("body"):
                raise asyncio.CancelledError

        async def receive() -> Any:
            return await asyncio.Event().wait()

        response = streams.EventStream(streams._with_beats(events(), verify), {})
        with pytest.raises(asyncio.CancelledError):
            await response({"type": "http", "method": "GET", "asgi": {"spec_version": "2.4"}}, receive, send)
        assert not own._feeds

    gc.disable()
    try:
        asyncio.run(scene())
    finally:
        gc.enable()


def test_a_stream_with_many_events_verifies_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BEAT_SECONDS", 0.05)

    async def scene() -> int:
        async def events() -> Any:
            while True:
                await asyncio.sleep(0.005)
                yield "change", "1", {}

        async def verify() -> None:
            raise Problem(401, "unauthorized", "withdrawn")

        return len([1 async for _ in streams._with_beats(events(), verify)])

    assert 1 < asyncio.run(scene()) < 100

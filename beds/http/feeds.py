"""Follows the log of changes: one reader for all who follow a template on this node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

from beds.domain.change import FROM_NOW, MAX_CHANGES, Change, Changes, Position, parse_position, position_text
from beds.errors import BedsError

LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.5, 5.0
"""Pause between two looks at the log of changes; doubled up to the second while it cannot be read."""
LONGEST_SECONDS = 3600.0
"""The longest time of a stream or a subscription; the client then connects again, with the position that it has."""


class Feeds:
    """The changes of all templates that clients follow on this node.

    Args:
        read: reads changes; takes a template's name, a position, the most changes and the actor.
    """

    def __init__(self, read: Callable[[str, str, int, str], Awaitable[Changes]]) -> None:
        self.read = read
        self._feeds: dict[str, _Feed] = {}

    async def position(self, template: str, after: Any) -> str:
        """The position from which to follow. Raises InvalidCursor, ChangesExpired."""
        parse_position("" if after == FROM_NOW else after)
        found = await self.read(template, after, 1, "")
        return found.position if after == FROM_NOW else str(after)

    async def follow(self, template: str, after: str) -> AsyncGenerator[Change, None]:
        """Each change after a position, as it comes, for `LONGEST_SECONDS`.

        One feed looks at the log for all followers of a template. A follower that is behind the feed reads by itself.

        Raises:
            ChangesExpired: the log no longer has the position.
            BedsError: the log cannot be read, for a reason that does not pass.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST_SECONDS
        with self._joined(template) as feed:
            while loop.time() < end:
                moved = feed.moved  # before reading: what the feed takes meanwhile must not be waited for
                found = feed.following(parse_position(after)) or await self._read_on(template, after)
                for change in found.changes:
                    yield change
                if found.position == after:
                    seconds = LOOK_SECONDS if feed.task.done() else end - loop.time()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(max(seconds, 0)):
                            await moved.wait()
                after = found.position

    async def _read_on(self, template: str, after: str) -> Changes:
        """Changes after a position; waits while the log cannot be read."""
        pause = LOOK_SECONDS
        while True:
            try:
                return await self.read(template, after, MAX_CHANGES, "")
            except BedsError as error:
                if not error.retryable:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_LOOK_SECONDS)

    @contextlib.contextmanager
    def _joined(self, template: str) -> Iterator[_Feed]:
        feed = self._feeds.get(template)
        if feed is None or feed.task.done():
            feed = self._feeds[template] = _Feed()
            feed.task = asyncio.create_task(self._look(template, feed))
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                feed.task.cancel()
                if self._feeds.get(template) is feed:
                    del self._feeds[template]

    async def _look(self, template: str, feed: _Feed) -> None:
        """Look at the log's end again and again. An error ends the feed; its followers then read by themselves."""
        try:
            end = await self._read_on(template, FROM_NOW)
            while True:
                feed.take(end.position, end)
                while (found := await self._read_on(template, end.position)).position == end.position:
                    await asyncio.sleep(LOOK_SECONDS)
                feed.take(end.position, found)
                end = found
        except BedsError:
            return
        finally:
            feed.wake()


class _Feed:
    """The newest changes of one template, as its one reader has found them."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.followers = 0
        self.moved = asyncio.Event()
        """Set when there are further changes, or the feed has ended; then replaced."""
        self._start: Position | None = None
        self._newest: Changes | None = None

    def take(self, after: str, found: Changes) -> None:
        """Take the changes that followed a position."""
        self._start, self._newest = parse_position(after), found
        self.wake()

    def wake(self) -> None:
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    def following(self, position: Position | None) -> Changes | None:
        """The newest changes after a position; None if there were others between, or the feed has ended."""
        if self.task.done() or position is None or self._start is None or self._newest is None:
            return None
        if position < self._start:
            return None
        last = parse_position(self._newest.position)
        if last is None or position >= last:
            return Changes((), position_text(position), complete=True)
        later = [change for change in self._newest.changes if (parse_position(change.position) or (0, 0)) > position]
        return Changes(tuple(later), self._newest.position, complete=True)

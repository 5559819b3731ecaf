"""Follows the log of changes: one reader for all who follow a template on this node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from beds.domain.change import FROM_NOW, MAX_CHANGES, Change, Changes, Position, parse_position, position_text
from beds.errors import BedsError

LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.5, 5.0
"""Pause between two looks at the log of changes; doubled up to the second while it cannot be read."""
LONGEST_SECONDS = 3600.0
"""Nobody follows longer than this; the client connects again, with the position that it has."""


class Feeds:
    """The changes of all templates that somebody follows here.

    Args:
        read: reads changes; takes a template's name, a position and the most changes.
    """

    def __init__(self, read: Callable[[str, str, int], Awaitable[Changes]]) -> None:
        self._read = read
        self._feeds: dict[str, _Feed] = {}

    async def read(self, template: str, after: str, limit: int = MAX_CHANGES) -> Changes:
        """Some changes. Raises InvalidCursor, ChangesExpired."""
        return await self._read(template, after, limit)

    async def position(self, template: str, after: Any) -> str:
        """The position from which to follow. Raises InvalidCursor, ChangesExpired."""
        parse_position("" if after == FROM_NOW else after)
        found = await self.read(template, after, 1)
        return found.position if after == FROM_NOW else after

    async def follow(self, template: str, after: str) -> AsyncIterator[Change]:
        """Each change after a position, as it comes, for `LONGEST_SECONDS`.

        One feed looks at the log for all who follow a template. One who is behind it reads for himself.

        Raises:
            ChangesExpired: he is so far behind that changes are gone.
            BedsError: the log cannot be read, for a reason that does not pass.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST_SECONDS
        place = parse_position(after)
        with self._joined(template) as feed:
            while loop.time() < end:
                found = None if feed.task.done() else feed.after(place)
                if found is None:
                    found = await self._read_on(template, after)
                for change in found.changes:
                    yield change
                moved = found.position != after
                after, place = found.position, parse_position(found.position)
                if not moved:
                    await feed.wait(LOOK_SECONDS if feed.task.done() else end - loop.time())

    async def _read_on(self, template: str, after: str) -> Changes:
        """Changes after a position; waits while the log cannot be read."""
        pause = LOOK_SECONDS
        while True:
            try:
                return await self.read(template, after)
            except BedsError as error:
                if not error.retryable:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_LOOK_SECONDS)

    @contextlib.contextmanager
    def _joined(self, template: str) -> Iterator[_Feed]:
        feed = self._feeds.get(template)
        if feed is None:
            feed = self._feeds[template] = _Feed()
            feed.task = asyncio.create_task(self._look(template, feed))
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                feed.task.cancel()
                self._feeds.pop(template, None)

    async def _look(self, template: str, feed: _Feed) -> None:
        """Look at the log's end again and again. A failure ends the feed, and whoever follows meets it himself."""
        try:
            end = await self._read_on(template, FROM_NOW)
            while True:
                feed.take(end.position, end)
                while (found := await self._read_on(template, end.position)).position == end.position:
                    await asyncio.sleep(LOOK_SECONDS)
                feed.take(end.position, found)
                end = found
        finally:
            feed.end()


class _Feed:
    """The newest changes of one template, as its one reader has found them."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.followers = 0
        self._from: Position | None = None
        self._found: Changes | None = None
        self._moved = asyncio.Event()

    def take(self, after: str, found: Changes) -> None:
        """Take the changes that followed a position, and wake all who wait."""
        self._from, self._found = parse_position(after), found
        self.end()

    def end(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def after(self, place: Position | None) -> Changes | None:
        """The newest changes that follow a place; None if others were between."""
        if place is None or self._from is None or self._found is None or place < self._from:
            return None
        last = parse_position(self._found.position)
        if last is None or place >= last:
            return Changes((), position_text(place), complete=True)
        later = [change for change in self._found.changes if (parse_position(change.position) or (0, 0)) > place]
        return Changes(tuple(later), self._found.position, complete=True)

    async def wait(self, seconds: float) -> None:
        """Wait for further changes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._moved.wait()

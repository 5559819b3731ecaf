"""Shared memory in which each slot shows its parent what it does, without a message or a system call.

The parent reads a slot's page for Celery's `inspect` commands, for the hard time limit, and to find a slot that hangs.
"""

from __future__ import annotations

import mmap
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

PAGE_BYTES = 8192
GUID_BYTES, MOST_SUSPECTS = 36, 256
TASKS = 64
"""The most tasks that a page counts."""
_HEAD = struct.Struct("=QBxxxIdQQ")
"""Version, state, length of the text, begin of the event, ordinals of the event and of the list's first."""
_ALIVE = struct.Struct("=d")
"""The last sign of life; outside of the versioned part, since another thread writes it."""
_COUNT = struct.Struct("=Q")
_COUNTS = struct.Struct(f"={TASKS}Q")
_ALIVE_AT = _HEAD.size
_COUNTS_AT = _ALIVE_AT + _ALIVE.size
_TEXT_AT = _COUNTS_AT + _COUNTS.size
_LIST_AT = _TEXT_AT + 1024
_LIST_LENGTH = struct.Struct("=I")
_LIST_BYTES = PAGE_BYTES - _LIST_AT - _LIST_LENGTH.size
READINGS = 50
"""Attempts to read a page between two of its writer's changes."""
FIELD_CHARACTERS = 200


class SlotState(IntEnum):
    """The states of a slot, in their order."""

    STARTING = 0
    CONNECTING = 1
    CONSUMING = 2
    DRAINING = 3


@dataclass(frozen=True, slots=True)
class Work:
    """An event in a slot.

    Args:
        guid, task, summary, queue: the event's.
        began: when the slot began it, in monotonic seconds; 0 for one that waits.
    """

    guid: str
    task: str
    summary: str
    queue: str
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """One page, as the parent reads it.

    Args:
        state: what the slot does.
        alive_at: its last sign of life, in monotonic seconds.
        active: the event that it executes.
        waiting: the events that it has received and not begun.
        counts: events ended, by the task's position in the list of tasks.
    """

    state: SlotState
    alive_at: float
    active: Work | None
    waiting: tuple[Work, ...]
    counts: tuple[int, ...]


class Board:
    """The pages of all slots of a pool, and the events that ended a slot; made before the slots fork.

    Args:
        slots: the most slots that the pool can have.
    """

    def __init__(self, slots: int) -> None:
        self._memory = mmap.mmap(-1, PAGE_BYTES * slots)
        self._suspects = mmap.mmap(-1, GUID_BYTES * MOST_SUSPECTS)
        self._noted = 0

    def page(self, number: int) -> Page:
        """The page of one slot."""
        return Page(self._memory, number * PAGE_BYTES)

    def suspect(self, guid: str) -> None:
        """Note an event during which its slot died. The oldest of many is forgotten."""
        at = self._noted % MOST_SUSPECTS * GUID_BYTES
        if len(guid) == GUID_BYTES and guid.isascii():
            self._suspects[at : at + GUID_BYTES] = guid.encode()
            self._noted += 1

    def deaths(self, guid: str) -> int:
        """How many slots of this pool died while they executed the event, as far as they are not forgotten."""
        if len(guid) != GUID_BYTES or not guid.isascii():
            return 0
        noted, wanted = bytes(self._suspects), guid.encode()
        return sum(noted[at : at + GUID_BYTES] == wanted for at in range(0, len(noted), GUID_BYTES))


class Page:
    """One slot's page. Only its slot writes to it, from two threads; the version is odd meanwhile."""

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory = memory
        self._at = at
        self._version = 0
        self._writing = threading.Lock()
        self._ordinal = 0
        self._counts = [0] * TASKS
        self._state = SlotState.STARTING
        self._began = 0.0
        self._text = b""
        self._first = 0

    def reset(self) -> None:
        """Begin anew for the next process of this slot; the counts stay."""
        view = self.read()
        self._version = int.from_bytes(self._memory[self._at : self._at + 8], "little") & ~1
        self._counts = list(view.counts)
        self._state, self._began, self._text, self._ordinal = SlotState.STARTING, 0.0, b"", 0
        self.show_alive()
        self.show_waiting(())

    def show_state(self, state: SlotState) -> None:
        with self._writing:
            self._state = state
            self._write()

    def show_alive(self) -> None:
        """Give a sign of life; from any thread."""
        # In one store: `pack_into` clears its target first, and a reader would find a slot that was never alive.
        at = self._at + _ALIVE_AT
        self._memory[at : at + _ALIVE.size] = _ALIVE.pack(time.monotonic())

    def begin(self, work: Work) -> None:
        """Show that the slot executes an event."""
        with self._writing:
            self._ordinal += 1
            self._began = work.began
            self._text = _line(work)
            self._write()

    def end(self, task: int) -> None:
        """Show that the slot has ended its event.

        Args:
            task: the position of the event's task in the list of tasks.
        """
        with self._writing:
            self._began, self._text = 0.0, b""
            self._counts[task] += 1
            _COUNT.pack_into(self._memory, self._at + _COUNTS_AT + task * _COUNT.size, self._counts[task])
            self._write()

    def show_waiting(self, works: Sequence[Work]) -> None:
        """Show the events that wait behind the current one, in order."""
        lines: list[bytes] = []
        room = _LIST_BYTES
        for work in works:
            line = _line(work)
            room -= len(line) + 1
            if room < 0:
                break
            lines.append(line)
        text = b"\n".join(lines)
        at = self._at + _LIST_AT
        with self._writing:
            self._first = self._ordinal
            self._mark()
            _LIST_LENGTH.pack_into(self._memory, at, len(text))
            self._memory[at + _LIST_LENGTH.size : at + _LIST_LENGTH.size + len(text)] = text
            self._write()

    def read(self) -> View:
        """The page's content. A slot that died while it wrote leaves half a change; the last reading is returned."""
        memory, at = self._memory, self._at
        for _ in range(READINGS):
            raw = memory[at : at + PAGE_BYTES]
            version, *_ = _HEAD.unpack_from(raw)
            if not version & 1 and memory[at : at + 8] == raw[:8]:
                break
            time.sleep(0.0001)
        _, state, length, began, ordinal, first = _HEAD.unpack_from(raw)
        (alive,) = _ALIVE.unpack_from(raw, _ALIVE_AT)
        text = raw[_TEXT_AT : _TEXT_AT + min(length, 1024)]
        (list_length,) = _LIST_LENGTH.unpack_from(raw, _LIST_AT)
        listed = raw[_LIST_AT + _LIST_LENGTH.size :][: min(list_length, _LIST_BYTES)]
        waiting = [_work(line) for line in listed.split(b"\n")] if listed else []
        return View(
            SlotState(state),
            alive,
            _work(text, began) if began and text else None,
            tuple(waiting[max(0, ordinal - first) :]),
            _COUNTS.unpack_from(raw, _COUNTS_AT),
        )

    def _mark(self) -> None:
        self._version |= 1
        self._memory[self._at : self._at + 8] = self._version.to_bytes(8, "little")

    def _write(self) -> None:
        self._mark()
        text = self._text
        self._memory[self._at + _TEXT_AT : self._at + _TEXT_AT + len(text)] = text
        head = _HEAD.pack(self._version, self._state, len(text), self._began, self._ordinal, self._first)
        self._memory[self._at : self._at + _HEAD.size] = head
        self._version += 1
        self._memory[self._at : self._at + 8] = self._version.to_bytes(8, "little")


def _line(work: Work) -> bytes:
    fields = (work.guid, work.task, work.queue, work.summary)
    return "\t".join(" ".join(field.split())[:FIELD_CHARACTERS] for field in fields).encode(errors="replace")[:1024]


def _work(line: bytes, began: float = 0.0) -> Work:
    guid, task, queue, summary = (line.decode(errors="replace").split("\t") + [""] * 4)[:4]
    return Work(guid, task, summary, queue, began)

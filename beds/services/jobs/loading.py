"""Loads the records of a chunk into a template: all that the target takes, each refused one by name, nothing twice."""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from beds.adapters.bulk import BulkAdapter, Key
from beds.adapters.store import AlreadyDone
from beds.domain.record_id import id_text
from beds.domain.reply import Record
from beds.errors import (
    BedsError,
    BusinessRule,
    Conflict,
    DuplicateKey,
    InvalidPayload,
    ResultTooLarge,
    StoreError,
)
from beds.services.audit import MASK
from beds.services.jobs.mapping import equal
from beds.services.jobs.store import Reject
from beds.services.jobs.work import Chunk
from beds.templates.rules import Run
from beds.templates.template import Template

T = TypeVar("T")
IN_DOUBT = "in_doubt"
DIFFERS = "differs"
"""Codes of rejects that are no errors of a store."""
REFUSALS = (InvalidPayload, Conflict, BusinessRule, StoreError, ResultTooLarge)
"""Errors that are about a record, and not about the store or its objects."""
_PLACE = re.compile(r"payloads\[(\d+)\]")


class Loader:
    """Loads chunks into one template.

    Args:
        target: of the template.
        run: the rule's `[run]`.
    """

    def __init__(self, target: BulkAdapter, run: Run) -> None:
        self._target, self._run = target, run

    def load(self, chunk: Chunk, wanted: Mapping[Key, Record]) -> tuple[set[Key], set[Key]]:
        """Load what is not there. Returns the keys that this chunk has loaded, and those that were there, equal.

        A refused batch is halved until the bad record stands alone.
        """
        own, number = self.loaded(chunk) if chunk.repeated else (set(), 0)
        there: set[Key] = set()
        queue: deque[Sequence[Key]] = deque([list(wanted)])
        while queue:
            keys = [key for key in queue.popleft() if key not in own and key not in there]
            if not keys:
                continue
            step = chunk.step(f"load {number}")
            try:
                timed(chunk, lambda k=keys, s=step: self._target.load([wanted[key] for key in k], s))  # type: ignore[misc]
                own.update(keys)
                number += 1
            except AlreadyDone:  # a copy of this chunk's event is at work, too
                own.update(map(tuple, self._target.noted(step) or ()))
                number += 1
                queue.appendleft(keys)
            except DuplicateKey as error:
                loaded, number = self.loaded(chunk)
                if loaded <= own:
                    self._sort_out(chunk, wanted, keys, error, there, queue)
                else:  # the copy has loaded them; the stores look at the keys before they look at the ledger
                    own |= loaded
                    queue.appendleft(keys)
            except REFUSALS as error:
                self._sort_out(chunk, wanted, keys, error, there, queue)
        return own, there

    def _sort_out(
        self,
        chunk: Chunk,
        wanted: Mapping[Key, Record],
        keys: Sequence[Key],
        error: BedsError,
        there: set[Key],
        queue: deque[Sequence[Key]],
    ) -> None:
        """Reject what a refused batch was refused for, and queue the rest of it."""
        if isinstance(error, DuplicateKey):
            stored = self._target.read_by_keys(wanted[key] for key in keys)
            # Under a collation, a stored key may have another spelling; its record is rejected when it stands alone.
            found = {key: record for key, record in stored.items() if key in wanted}
            for key, record in found.items():
                if equal(wanted[key], record):
                    there.add(key)
                else:
                    other = DuplicateKey(
                        "the target has another record with this key",
                        detail={"field": self._target.template.key_name},
                    )
                    chunk.rejects.append(self.reject(key, other, IN_DOUBT if chunk.is_old else ""))
            if found:
                queue.appendleft([key for key in keys if key not in found])
                return
        place = _PLACE.match(str(error.detail.get("where", "")))
        if len(keys) == 1 or (place and int(place[1]) < len(keys)):
            bad = int(place[1]) if place and len(keys) > 1 else 0
            chunk.rejects.append(self.reject(keys[bad], error))
            queue.appendleft([*keys[:bad], *keys[bad + 1 :]])
            return
        half = len(keys) // 2
        queue.appendleft(keys[half:])
        queue.appendleft(keys[:half])

    def loaded(self, chunk: Chunk) -> tuple[set[Key], int]:
        """The keys that earlier deliveries of this chunk have loaded, and the number of the next step."""
        own: set[Key] = set()
        number = 0
        while (keys := self._target.noted(chunk.step(f"load {number}"))) is not None:
            own.update(map(tuple, keys))
            number += 1
        return own, number

    def read_back(
        self, chunk: Chunk, wanted: Mapping[Key, Record], own: set[Key], there: set[Key]
    ) -> tuple[list[Key], list[Key]]:
        """Compare the copies with the records. Returns the keys of copies to remove, and of verified ones."""
        keys = [key for key in wanted if key in own or key in there]
        checked = self._selected(chunk, keys)
        back = timed(chunk, lambda: self._target.read_by_keys(wanted[key] for key in checked))
        stale: list[Key] = []
        bad: set[Key] = set()
        for key in checked:
            if key in back and equal(wanted[key], back[key]):
                continue
            bad.add(key)
            if key in own:
                stale.append(key)
            # A copy of an earlier delivery may be older than the record; another one was changed by the target.
            if not (chunk.repeated and key in own):
                chunk.rejects.append(
                    Reject(
                        *self.shown(key),
                        DIFFERS,
                        _differing(wanted[key], back.get(key)),
                        "the copy reads back otherwise",
                    )
                )
        return stale, [key for key in keys if key not in bad]

    def _selected(self, chunk: Chunk, keys: Sequence[Key]) -> Sequence[Key]:
        verify = self._run.verify
        if verify == "all" or chunk.repeated:
            return keys
        return [] if verify == "count" else [key for key in keys if random.random() < verify]

    def shown(self, key: Key) -> tuple[str, str]:
        """The key as text, and as it may be shown."""
        return shown_key(self._target.template, key)

    def reject(self, key: Key, error: BedsError, code: str = "") -> Reject:
        return reject_of(self._target.template, key, error, code)


def shown_key(template: Template, key: Key) -> tuple[str, str]:
    """A key as text, and as it may be shown."""
    text = id_text(key)
    return text, MASK if template.has_sensitive_key else text


def reject_of(template: Template, key: Key, error: BedsError, code: str = "") -> Reject:
    """The reject of a record that was refused with an error; `code` replaces the error's."""
    field = str(error.detail.get("field", ""))
    spec = template.fields.get(field)
    why = "" if spec is not None and spec.sensitive else error.message
    return Reject(*shown_key(template, key), code or error.code, field, why)


def timed(chunk: Chunk, call: Callable[[], T]) -> T:
    """Make a call of a store, and note in the chunk how long it took if it was the slowest."""
    began = time.perf_counter()
    try:
        return call()
    finally:
        chunk.slowest = max(chunk.slowest, time.perf_counter() - began)


def _differing(wanted: Record, found: Record | None) -> str:
    """The name of the first field that differs."""
    if found is None:
        return ""
    return next((name for name, value in wanted.items() if found.get(name) != value), "")

"""Loads the sample data through BEDS. Each batch is one event and one call of a bulk object; several are in flight."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from beds.client.call import Call
from beds.client.client import Client
from beds.demo.data import COUNTS, records
from beds.domain.reply import Page
from beds.errors import BedsError, DuplicateKey

T = TypeVar("T")

BATCH = 1000
"""Records of one event; some 300 kB of JSON."""
IN_FLIGHT = 8
"""Events in flight at once."""
BATCH_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """The load of one template's records. `seconds` is 0 if all existed already."""

    template: str
    records: int
    seconds: float


def count(client: Client, template: str) -> int:
    """The number of a template's records in the database."""
    page = client.call("fetch_records", template, using="count", timeout=60)
    assert isinstance(page, Page)
    return int(next(iter(page[0].values()))) if len(page) else 0


def load(client: Client, template: str, advance: Callable[[int], None]) -> Loaded:
    """Load the missing records of one template. It skips batches that exist, so it can be repeated.

    Args:
        client: publishes the events.
        template: one of `COUNTS`.
        advance: called with the number of further records done.
    """
    if count(client, template) >= COUNTS[template]:
        advance(COUNTS[template])
        return Loaded(template, COUNTS[template], 0.0)
    started = time.monotonic()
    batches = _batches(records(template), BATCH)
    for group in _batches(batches, IN_FLIGHT):
        calls = [Call("create_records", template, batch) for batch in group]
        outcomes = client.call_many(calls, timeout=BATCH_SECONDS, return_errors=True)
        for batch, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, BedsError) and not isinstance(outcome, DuplicateKey):
                raise outcome
            advance(len(batch))
    return Loaded(template, COUNTS[template], time.monotonic() - started)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source: Iterator[Any] = iter(items)
    while batch := list(islice(source, size)):
        yield batch

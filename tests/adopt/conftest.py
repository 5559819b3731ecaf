"""Each database is loaded once for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from beds.config import Settings
from beds.config.sections import RelDatabase
from beds.stack.stack import Stack
from tests.adopt.databases import loaded


@pytest.fixture(scope="session")
def sakila(stack: Stack, settings: Settings) -> Iterator[RelDatabase]:
    with loaded("sakila", stack, settings) as found:
        yield found


@pytest.fixture(scope="session")
def tpcc(stack: Stack, settings: Settings) -> Iterator[RelDatabase]:
    with loaded("tpcc", stack, settings) as found:
        yield found


@pytest.fixture(scope="session")
def kinds(stack: Stack, settings: Settings) -> Iterator[RelDatabase]:
    with loaded("kinds", stack, settings) as found:
        yield found


@pytest.fixture(scope="session")
def hostile(stack: Stack, settings: Settings) -> Iterator[RelDatabase]:
    with loaded("hostile", stack, settings) as found:
        yield found


@pytest.fixture(scope="session")
def legacy(stack: Stack, settings: Settings) -> Iterator[RelDatabase]:
    with loaded("legacy", stack, settings) as found:
        yield found

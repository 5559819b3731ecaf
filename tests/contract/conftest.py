"""The adapters under one suite: each has its own store, and the same template under another name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from beds.config import Settings, load_settings
from beds.core.namaste import NamasteCore
from beds.domain.event import Operation
from beds.domain.identity import uuid7
from beds.domain.reply import Page, Response
from beds.services.dispatch import Factory, execute
from beds.services.factory import AdapterFactory
from beds.templates.registry import TemplateRegistry
from beds.testing import MemoryFactory


@dataclass
class Subject:
    """One adapter, with the workers' rights."""

    factory: Factory
    template: str
    kind: str

    @property
    def adapter(self) -> NamasteCore:
        return self.factory.adapter(self.template)

    def do(self, operation: Operation, **body: Any) -> Any:
        store = self.factory.registry[self.template].store
        return execute(self.factory, store, operation, self.template, body)

    def create(self, **payload: Any) -> Response:
        reply: Response = self.do(Operation.CREATE, payload=payload)
        return reply

    def by_id(self, record_id: str) -> Page:
        reply: Page = self.do(Operation.FETCH, using="by_id", args={"id": record_id})
        return reply


KINDS = ["memory-rel", "memory-rec", "mariadb", "mongo"]


@pytest.fixture(params=KINDS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with subject_of(request, rows="SampleRows", documents="SampleDocs") as found:
        yield found


@contextmanager
def subject_of(request: pytest.FixtureRequest, *, rows: str, documents: str) -> Iterator[Subject]:
    """The adapter of a fixture's kind, for the template of its store."""
    kind: str = request.param
    template = documents if kind in ("memory-rec", "mongo") else rows
    project = request.getfixturevalue("project")
    registry = TemplateRegistry.from_folder(project / "schema")
    if kind.startswith("memory"):
        yield Subject(MemoryFactory(registry), template, kind)
        return
    request.getfixturevalue("stack")
    settings: Settings = load_settings(project / "beds.toml")
    factory = AdapterFactory(settings, registry)
    yield Subject(factory, template, kind)
    factory.close()


@pytest.fixture
def key() -> str:
    """A record id that no other test uses."""
    return str(uuid7())

"""The models of `beds template models` and the databases: signatures, and records as the workers return them."""

from __future__ import annotations

import importlib.util
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from beds.client.client import Client
from beds.domain.identity import uuid7
from beds.templates.declared import declared_objects
from beds.templates.python_models import arguments_in
from beds.templates.registry import TemplateRegistry
from tests.conftest import run


@pytest.fixture(scope="module")
def records(project: Path, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The generated module."""
    file = tmp_path_factory.mktemp("models") / "records_of_tests.py"
    done = run(project, "beds", "template", "models", "--python", "--out", str(file))
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def test_the_files_declare_the_arguments_that_the_databases_have(client: Client, project: Path) -> None:
    registry = TemplateRegistry.from_folder(project / "schema")
    templates = [template for template in registry.values() if not template.system]
    files = arguments_in(templates, declared_objects(project / "schema"))
    compared = 0
    for template in templates:
        for table, operation in client.describe(template.name, timeout=60).operations.items():
            if table.startswith("fetch.") and not operation.problem:
                declared = files[template.name, table.removeprefix("fetch.")]
                assert [(a.name, a.required) for a in declared] == [(a.name, a.required) for a in operation.args], table
                compared += 1
    assert compared > 50


def test_models_with_the_arguments_of_the_workers(client: Client, project: Path) -> None:
    asked = ("beds", "template", "models", "--python", "Flights", "Notices", "SampleRows")
    files, live = run(project, *asked), run(project, *asked, "--live", "--timeout", "60")
    assert files.returncode == live.returncode == 0, live.stderr
    assert len(files.stdout.splitlines()) == len(live.stdout.splitlines())
    differing = [a for a, b in zip(files.stdout.splitlines(), live.stdout.splitlines(), strict=True) if a != b]
    # Only the database has the type of an argument that is no field.
    assert all("Any" in line for line in differing)


@pytest.mark.parametrize("store", ["Rows", "Docs"])
def test_a_typed_record_is_what_was_written(client: Client, records: Any, store: str) -> None:
    samples = getattr(records, f"Sample{store}")(client)
    key = str(uuid7())
    samples.create({"id": key, "text": "a", "whole": 5, "price": 2, "list": ["x"], "flag": True})
    samples.update(key, {"text": "b"})
    (record,) = samples.fetch_by_id(key)
    assert (record.id, record.text, record.whole, record.price, record.flag) == (key, "b", 5, Decimal(2), True)
    assert record.list_ == ["x"]
    assert [found.id for found in samples.iterate_by_text("b", limit=1) if found.id == key] == [key]
    samples.delete(key)
    assert len(samples.fetch_by_id(key)) == 0

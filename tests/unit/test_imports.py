"""`import beds` is quick: its public names are imported at their first use, and are the same as before."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest

import beds
from tests.conftest import ROOT

HEAVY = (
    "MySQLdb", "amqp", "asyncio", "billiard", "bson", "celery", "kombu", "pydantic", "pydantic_core",
    "pydantic_settings", "pymongo", "rich", "vine",
)  # fmt: skip


def printed_by(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import beds",
        "import beds.errors",
        "from beds import BedsError, ObjectId, Page, TicketState",
        "import beds.cli.main",
    ],
)
def test_an_import_loads_nothing_heavy(statement: str) -> None:
    code = f"import sys; before = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - before)"
    assert set(printed_by(code).split()).isdisjoint(HEAVY)


def test_a_client_loads_no_celery() -> None:
    code = "import sys, beds\nbeds.call, beds.aio\nprint(*sys.modules)"
    loaded = set(printed_by(code).split())
    assert "pydantic" in loaded
    assert loaded.isdisjoint({"celery", "MySQLdb", "pymongo", "bson"})


def test_each_public_name_has_the_module_that_type_checkers_see() -> None:
    (block,) = (node for node in ast.parse((ROOT / "beds" / "__init__.py").read_text()).body if isinstance(node, ast.If)
                and any(isinstance(inner, ast.ImportFrom) for inner in node.body))  # fmt: skip
    seen = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert seen.pop("aio") == "beds.client"
    assert seen == beds._HOMES
    assert set(beds.__all__) == {*seen, "aio"}


def test_public_names_are_those_of_their_modules() -> None:
    for name, module in beds._HOMES.items():
        if name != "app":
            assert getattr(beds, name) is getattr(importlib.import_module(module), name)
    for name, module in beds._SUBMODULES.items():
        assert getattr(beds, name) is importlib.import_module(module)
    assert set(beds.__all__) <= set(dir(beds))
    with pytest.raises(AttributeError, match="no attribute 'sumbit'"):
        beds.sumbit  # type: ignore[attr-defined]  # noqa: B018


def test_celery_finds_the_application() -> None:
    code = "from celery.app.utils import find_app; found = find_app('beds'); import beds; print(found is beds.app)"
    assert printed_by(code) == "True"

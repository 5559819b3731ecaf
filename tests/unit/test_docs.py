"""The functions that the pages name exist."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

import beds
from beds.client.deadline import DEFAULT_TIMEOUT
from beds.config.http import Http, HttpJwt, HttpKey, HttpRole
from beds.config.sections import Section
from beds.errors import BY_CODE, BedsError
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_functions_that_exist(page: object) -> None:
    text = page.read_text()  # type: ignore[attr-defined]
    for name in re.findall(r"\bbeds\.((?:aio\.|testing\.)?\w+)\(", text):
        found: object = beds
        for part in name.split("."):
            found = importlib.import_module("beds.testing") if part == "testing" else getattr(found, part)
        assert callable(found), name


def test_the_reference_has_the_functions_as_they_are() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    rows = re.findall(r"`beds\.(\w+)\(([^`]*)\)`", page)
    assert {name for name, _ in rows} >= {"call", "fetch", "write", "submit", "call_many", "submit_many", "lineage"}
    for name, arguments in rows:
        function = getattr(beds.Client, name, None)
        if function is None:
            continue
        known = inspect.signature(function).parameters
        for argument in re.findall(r"(\w+)(=[\w.]+)?", arguments):
            assert argument[0] in known, (name, argument)
            if argument[1]:
                assert argument[1] == f"={known[argument[0]].default}", (name, argument)
    assert f"timeout={DEFAULT_TIMEOUT}" in page


def test_the_reference_has_the_status_of_each_error() -> None:
    page = (ROOT / "docs" / "reference" / "http.md").read_text()
    table = page.partition("come from workers and the client:")[2].partition("These come from the app server")[0]
    found = {
        code: (int(status), retryable) for code, status, retryable in re.findall(r"`(\w+)` \| (\d+) \| (\w*)", table)
    }
    known = {
        code: (cls.status, "yes" if cls.retryable else "") for code, cls in BY_CODE.items() if cls is not BedsError
    }
    assert found == known


@pytest.mark.parametrize(
    ("section", "model"),
    [("http", Http), ("http.jwt[]", HttpJwt), ("http.key[]", HttpKey), ("http.roles.<name>", HttpRole)],
)
def test_the_reference_has_each_key_of_http(section: str, model: type[Section]) -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    for name in model.model_fields.keys() - {"jwt", "key", "roles"}:
        assert re.search(rf"\| (`{re.escape(section)}\.\w+`, )?`({re.escape(section)})?\.{name}`", page), name


def test_the_awaited_client_has_what_the_reference_names() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    (row,) = re.findall(r"^\| `beds\.aio` \| (.*?) \|$", page, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", row):
        assert callable(getattr(beds.aio, name)), name

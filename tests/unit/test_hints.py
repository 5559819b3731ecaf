"""An installed package has no docs/ and no tests/: no text of BEDS refers to them."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

ONLY_IN_A_CLONE = re.compile(r"(?<![\w./-])(docs|tests|bench|tools|\.github)/|README\.md|CONTRIBUTING|CHANGELOG")
PROJECTS_OWN = {"beds/cli/init.py"}
"""Names the README that it has copied."""


def shown_texts(file: Path) -> Iterator[tuple[int, str]]:
    """A module's strings, without docstrings; those of the command line are its help."""
    tree = ast.parse(file.read_text())
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and "cli" not in file.parts}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value


@pytest.mark.parametrize("text", ["see docs/reference/templates.md", "docs/x", "run tests/unit"])
def test_a_path_of_the_repository_is_found(text: str) -> None:
    assert ONLY_IN_A_CLONE.search(text)
    assert not ONLY_IN_A_CLONE.search(f"https://www.mongodb.com/{text}".replace(" ", ""))


def test_no_file_of_a_new_project_refers_to_documents_that_it_lacks() -> None:
    for folder, _, names in os.walk(ROOT / "beds" / "scaffold", followlinks=True):
        for name in names:
            assert "docs/" not in Path(folder, name).read_text(), name


def test_no_text_refers_to_a_file_that_only_a_clone_has() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text}"
        for file in sorted((ROOT / "beds").rglob("*.py"))
        if "scaffold" not in file.parts and str(file.relative_to(ROOT)) not in PROJECTS_OWN
        for line, text in shown_texts(file)
        if ONLY_IN_A_CLONE.search(text)
    ]
    assert not found

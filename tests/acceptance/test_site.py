"""The documentation as a site: each link of its pages leads somewhere, and the reference has each public name."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import beds
from beds.client import aio
from beds.errors import BY_CODE
from tests.conftest import ROOT, run

ELSEWHERE = {"aio", "app", "BedsError"}
"""Names of `beds` that the page has as beds.client.aio and beds.errors.BedsError, or not: `app` is Celery's."""


def build(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs."""
    arguments = ["-W", "--keep-going", "-q", "-d", str(out / "doctrees"), "-c", "docs", ".", str(out / "site")]
    return run(source, sys.executable, "-m", "sphinx", *options, *arguments, env={"PYTHONPATH": ""})


@pytest.fixture(scope="module", autouse=True)
def sphinx() -> None:
    if importlib.util.find_spec("furo") is None and not os.environ.get("CI"):
        pytest.skip("Sphinx is not installed: `make setup` installs it")


@pytest.fixture(scope="module")
def site(sphinx: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out / "site"


def test_each_page_is_there(site: Path) -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        assert (site / page.relative_to(ROOT).with_suffix(".html")).exists(), page
    assert "An AMQP-first data-access framework" in (site / "index.html").read_text()
    decisions = (site / "docs" / "decisions" / "README.html").read_text()
    assert 'href="0001-lean-client.html"' in decisions


def test_the_reference_has_each_public_name(site: Path) -> None:
    page = (site / "docs" / "reference" / "modules.html").read_text()
    names = {f"beds.{name}" for name in beds.__all__ if name not in ELSEWHERE}
    names |= {f"beds.errors.{error.__name__}" for error in BY_CODE.values()}
    methods = [name for name, _ in inspect.getmembers(aio, inspect.isfunction) if name in beds.__all__]
    names |= {f"beds.client.aio.{name}" for name in methods}
    assert {name for name in names if f'id="{name}"' not in page} == set()
    assert 'href="#beds.Client.call"' in page


SMALL_SITE = {
    "README.md": "# Top\n\n",
    "CHANGELOG.md": "# Changes\n",
    "CONTRIBUTING.md": "# Contributing\n",
    "SECURITY.md": "# Security\n",
    "docs/quickstart.md": "# Start\n",
    "docs/reliability.md": "# Reliability\n",
    "docs/howto/page.md": "# Page\n\n## A heading\n",
    "docs/explanation/architecture.md": "# Why\n",
    "docs/explanation/page.md": "# Explanation\n",
    "docs/reference/page.md": "# Reference\n",
    "docs/decisions/README.md": "# Decisions\n",
    "docs/decisions/0001-page.md": "# 1. A decision\n",
    "beds.toml": "",
}


def build_with(folder: Path, *links: str) -> subprocess.CompletedProcess[str]:
    """Build a small site, whose first page has the links, with the configuration of the real one."""
    for name, content in SMALL_SITE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    with (folder / "README.md").open("a") as page:
        page.write("\n\n".join(links))
    shutil.copy(ROOT / "docs" / "conf.py", folder / "docs")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return build(folder, folder / "out")


def test_broken_links_fail(tmp_path: Path) -> None:
    broken = ["docs/missing.md", "docs/howto/page.md#nowhere", "#nowhere", "docs/howto/", "beds.tom"]
    done = build_with(tmp_path, *(f"[text]({link})" for link in broken), "![image](docs/missing.svg)")
    assert done.returncode == 1
    warnings = done.stderr.strip().splitlines()
    assert len(warnings) == 6, done.stderr
    for what in ("missing.md", "nowhere", "docs/howto/", "beds.tom", "missing.svg"):
        assert any(what in line for line in warnings), (what, warnings)


def test_links_of_all_kinds_work(tmp_path: Path) -> None:
    links = ["docs/howto/page.md", "docs/howto/page.md#a-heading", "#top", "docs/decisions/", "beds.toml"]
    done = build_with(tmp_path, *(f"[text]({link})" for link in links))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "site" / "index.html").read_text()
    for target in ("docs/howto/page.html", "docs/howto/page.html#a-heading", "#top", "docs/decisions/README.html"):
        assert f'href="{target}"' in page, target
    assert any((tmp_path / "out" / "site" / "_downloads").rglob("beds.toml"))

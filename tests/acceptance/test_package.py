"""The package as users install it: an sdist, a wheel built from it, and that wheel in an environment of its own."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from beds.cli.init import DOT
from tests.conftest import ROOT, run

SOURCES = (
    "pyproject.toml", "README.md", "LICENSE", ".dockerignore", "beds.toml", "celeryconfig.py", "docker", "beds",
)  # fmt: skip
"""What a build reads: the package, and what the scaffold's links lead to."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Built:
    """A wheel, and its contents by name."""

    wheel: Path
    files: Mapping[str, bytes]

    @property
    def metadata(self) -> Message:
        (name,) = (name for name in self.files if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(self.files[name].decode())


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel and what it requires, and a folder that is no clone."""

    python: Path
    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        return run(self.folder, *command, env={"PATH": path, "PYTHONPATH": ""})

    def install(self, requirement: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "-q"]
        command = [*pip, "--disable-pip-version-check", requirement]
        # A PYTHONPATH with a clone would count as an installation.
        done = run(self.folder, *command, seconds=200, env={"PYTHONPATH": ""})
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built as for PyPI: first the sdist, then the wheel from what the sdist holds."""
    if not any(importlib.metadata.distributions(name="build")) and not os.environ.get("CI"):
        pytest.skip("build is not installed: `make setup` installs it")
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    done = run(source, sys.executable, "-m", "build", "-o", str(out), str(source), seconds=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.glob("beds-*.tar.gz"))) == 1
    (wheel,) = out.glob("beds-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Built(wheel, {name: archive.read(name) for name in archive.namelist()})


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    made = run(folder, sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    assert made.returncode == 0, made.stderr
    found = Installed(folder / "venv" / "bin" / "python", folder)
    found.install(str(built.wheel))
    assert found.run("beds", "init", "fresh").returncode == 0
    return found


def test_the_wheel_has_each_file_of_the_package(built: Built) -> None:
    """The scaffold's files are links into the repository; a wheel must hold their text."""
    expected = {
        str(file.relative_to(ROOT)): file.read_bytes()
        for folder, _, names in os.walk(ROOT / "beds", followlinks=True)
        for file in (Path(folder) / name for name in names)
        if "__pycache__" not in file.parts
    }
    held = {name: text for name, text in built.files.items() if ".dist-info/" not in name}
    assert held.keys() == expected.keys()
    assert [name for name in expected if held[name] != expected[name]] == []


def test_the_metadata_names_each_extra(built: Built) -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(built.metadata.get_all("Provides-Extra", [])) == set(extras)
    required = built.metadata.get_all("Requires-Dist", [])
    for extra, names in extras.items():
        assert sum(f'extra == "{extra}"' in line for line in required) == len(names), extra
    assert sum("extra ==" not in line for line in required) == len(PROJECT["dependencies"])


def test_a_bare_installation_is_a_client(installed: Installed) -> None:
    version = installed.run("beds", "--version")
    assert version.stdout.strip().endswith(PROJECT["version"]), version.stderr
    assert "Usage" in installed.run("beds", "--help").stdout
    code = "import beds, beds.client.aio, beds.worker.app; print(beds.__file__)"
    imported = installed.run("python", "-c", code)
    assert imported.stdout.startswith(str(installed.folder / "venv")), imported.stderr


def test_a_bare_installation_makes_a_project(installed: Installed) -> None:
    project = installed.folder / "fresh"
    scaffold = ROOT / "beds" / "scaffold"
    for folder, _, names in os.walk(scaffold, followlinks=True):
        for name in set(names) - {"beds.toml"}:
            source = Path(folder, name)
            copy = project / source.relative_to(scaffold).with_name(name.replace(DOT, ".", 1))
            assert not copy.is_symlink()
            assert copy.read_bytes() == source.read_bytes(), copy
    assert 'name = "fresh"' in (project / "beds.toml").read_text()
    listed = installed.run("beds", "--config", str(project / "beds.toml"), "template", "list")
    assert "Books" in listed.stdout, listed.stderr


def test_a_bare_installation_names_the_extra_that_a_command_needs(installed: Installed) -> None:
    for command, extra in {"node": "demo", "http": "http"}.items():
        done = installed.run("beds", "--config", str(installed.folder / "fresh" / "beds.toml"), command)
        assert done.returncode == 78, done.stderr
        assert f"pip install 'beds[{extra}]'" in done.stderr


def test_the_app_server_needs_its_extra_alone(built: Built, installed: Installed) -> None:
    installed.install(f"{built.wheel}[http]")
    code = "import beds.http.application, beds.http.server; print(beds.http.application.__file__)"
    imported = installed.run("python", "-c", code)
    assert imported.stdout.startswith(str(installed.folder / "venv")), imported.stderr

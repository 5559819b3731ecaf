"""`beds init`: a new project, ready to run."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from beds.errors import ConfigurationError

NODE_NAME = 'name = "ms"'
"""The line of the copied beds.toml that is replaced: the new node is named after its folder."""
DOT = "dot."
"""Prefix of the names of files that begin with a dot, since packaging leaves dot files out."""


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def init(folder: Path) -> None:
    """Make a new project in DIR: beds.toml, celeryconfig.py, a schema with two domains, docker/, and a test.

    \b
    Example:
      beds init library && cd library && beds up
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} is not empty", hint="name a folder that is new or empty")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name)[:32].strip("-") or "ms"
    copied = _copy(files("beds") / "scaffold", folder)
    settings = folder / "beds.toml"
    settings.write_text(settings.read_text().replace(NODE_NAME, f'name = "{name}"', 1))
    click.echo(f"{copied} files in {folder}, described in {folder / 'README.md'}; next:")
    click.echo(f"  cd -- {shlex.quote(str(folder))}\n  beds up")


def _copy(source: Traversable, target: Path) -> int:
    """Copy a folder of the package. Returns the number of files."""
    target.mkdir(parents=True, exist_ok=True)
    copied = 0
    for entry in source.iterdir():
        if entry.name.startswith("__"):
            continue
        to = target / entry.name.replace(DOT, ".", 1) if entry.name.startswith(DOT) else target / entry.name
        if entry.is_dir():
            copied += _copy(entry, to)
        else:
            to.write_bytes(entry.read_bytes())
            copied += 1
    return copied

"""`beds init`: a new project, ready to run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Set
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
@click.option("--empty", is_flag=True, help="Leave out the two domains and their test, as for a database that exists.")
def init(folder: Path, empty: bool) -> None:
    """Make a new project in DIR: beds.toml, celeryconfig.py, a schema with two domains, docker/, and a test.

    \b
    Examples:
      beds init library && cd library && beds up
      beds init shop --empty && cd shop && beds stack load ../shop.sql && beds schema draft
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} is not empty", hint="name a folder that is new or empty")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name)[:32].strip("-") or "ms"
    copied = _copy(
        files("beds") / "scaffold", folder, leave_out=frozenset({"schema", "tests", "README.md"} if empty else ())
    )
    if empty:
        (folder / "schema" / "templates").mkdir(parents=True)
    settings = folder / "beds.toml"
    settings.write_text(settings.read_text().replace(NODE_NAME, f'name = "{name}"', 1))
    described = "" if empty else f", described in {folder / 'README.md'}"
    click.echo(f"{copied} files in {folder}{described}; next:")
    click.echo(f"  cd -- {shlex.quote(str(folder))}\n  {'beds stack load DUMP' if empty else 'beds up'}")


def _copy(source: Traversable, target: Path, leave_out: Set[str] = frozenset()) -> int:
    """Copy a folder of the package, without some of its entries. Returns the number of files."""
    target.mkdir(parents=True, exist_ok=True)
    copied = 0
    for entry in source.iterdir():
        if entry.name.startswith("__") or entry.name in leave_out:
            continue
        to = target / entry.name.replace(DOT, ".", 1) if entry.name.startswith(DOT) else target / entry.name
        if entry.is_dir():
            copied += _copy(entry, to)
        else:
            to.write_bytes(entry.read_bytes())
            copied += 1
    return copied

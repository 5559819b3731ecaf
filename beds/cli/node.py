"""`beds node run`."""

from __future__ import annotations

import click

from beds.config import load_settings
from beds.node import supervisor


@click.group()
def node() -> None:
    """Run this node's workers."""


@node.command()
@click.pass_obj
def run(config: str | None) -> None:
    """One worker for each queue whose service is local in beds.toml, until Ctrl-C or SIGTERM.

    The same by hand, one queue a terminal: celery -A beds worker -Q rec.write
    """
    raise SystemExit(supervisor.run(load_settings(config), lambda line: click.echo(line, err=True)))

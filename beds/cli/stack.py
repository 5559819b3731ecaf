"""`beds stack`: the local servers."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from beds.cli.output import print_json, print_table
from beds.config.settings import CONFIG_VARIABLE, no_file_at
from beds.node.daemon import node_daemons
from beds.stack.dump import load_dump
from beds.stack.stack import Stack

CLUSTER_HELP = "Start three RabbitMQ nodes, three members of MongoDB, and a MariaDB pair."
EX_DOWN = 3
"""The exit code of LSB `status` for "not running"."""


def folder_for(config: str | None) -> Path:
    """`.beds` beside the configuration file. The stack does not read that file, so it need not be valid yet."""
    named = config or os.environ.get(CONFIG_VARIABLE)
    if named and not Path(named).is_file():
        raise no_file_at(named)
    return (Path(named).resolve().parent if named else Path.cwd()) / ".beds"


@click.group()
def stack() -> None:
    """Start and stop a local RabbitMQ, MariaDB and MongoDB: private, on loopback, under .beds/."""


@stack.command()
@click.option("--port-base", type=int, help="First port of a new stack (23000 when absent).")
@click.option("--cluster", is_flag=True, help=CLUSTER_HELP)
@click.pass_obj
def up(config: str | None, port_base: int | None, cluster: bool) -> None:
    """Start the servers that do not run; create them first in a new project.

    With --cluster a stack of single servers becomes a cluster, and keeps its data. Nodes that run go on with the old
    addresses; `beds node restart` makes them use all.
    """
    found = Stack(folder_for(config), port_base, cluster=cluster)
    found.up(click.echo)
    click.echo(f"passwords and ports are in {found.plan.env_file}, which beds.toml names as env_file")


@stack.command()
@click.pass_obj
def promote(config: str | None) -> None:
    """Make the replica of MariaDB the primary, as in a failover drill. It gets all writes first.

    If the primary runs, it refuses writes meanwhile, and is a replica afterwards.
    """
    primary = Stack(folder_for(config)).promote()
    click.echo(f"{primary.label} takes writes, on port {primary.plan.mariadb_port}")


@stack.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--port-base", type=int, help="First port of a new stack (23000 when absent).")
@click.pass_obj
def load(config: str | None, file: Path, port_base: int | None) -> None:
    """Load the dump of a MariaDB or MySQL database into the stack, whose servers it starts.

    FILE is what mariadb-dump or mysqldump wrote, packed with gzip or not. Its CREATE DATABASE, USE and DEFINER are left
    out: the stack has one database, beds, and other users.

    \b
    Example:
      mariadb-dump --routines --triggers shop > shop.sql
      beds stack load shop.sql
      beds schema draft
    """
    found = Stack(folder_for(config), port_base)
    found.up(click.echo)
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(file.name, total=file.stat().st_size)
        tables = load_dump(found, file, lambda more: progress.advance(task, more))
    click.echo(f"{len(tables)} tables: {', '.join(tables)}")
    click.echo("next: beds schema draft")


@stack.command()
@click.option("--wipe", is_flag=True, help="Delete all data and passwords as well.")
@click.pass_obj
def down(config: str | None, wipe: bool) -> None:
    """Stop the three servers, and the workers that `beds node start` or `beds demo` started."""
    folder = folder_for(config)
    existed = folder.is_dir()
    stopped = Stack.down(folder, wipe=wipe, report=lambda name: click.echo(f"stopped: {name}"))
    if not stopped:
        click.echo(f"nothing was running under {folder}")
    if wipe and existed:
        click.echo(f"deleted: {folder}")


@stack.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(config: str | None, as_json: bool) -> None:
    """Show the servers, their ports, and the workers in the background. Exit code 3 when a server does not run."""
    stack = Stack(folder_for(config))
    found = stack.status()
    nodes = [
        f"{daemon.name} (pid {process.pid})" for daemon in node_daemons(stack.folder) if (process := daemon.process())
    ]
    if as_json:
        print_json([asdict(server) for server in found])
    else:
        print_table(
            ["server", "state", "pid", "ports"],
            (
                [s.name, "ready" if s.ready else "starting" if s.pid else "down", s.pid, ", ".join(map(str, s.ports))]
                for s in found
            ),
        )
        click.echo(f"workers: {', '.join(nodes) or 'none; start them with `beds node start`'}")
    if not all(server.ready for server in found):
        raise SystemExit(EX_DOWN)


@stack.command()
@click.pass_obj
def env(config: str | None) -> None:
    """Print the BEDS_… variables as shell commands, with their passwords: eval "$(beds stack env)"."""
    plan = Stack(folder_for(config)).plan
    for name, value in {**plan.environment(), **plan.flower_environment()}.items():
        click.echo(f"export {name}={shlex.quote(value)}")


_AS = click.option(
    "--as", "role", type=click.Choice(["dba", "worker", "root"]), default="dba", show_default=True, help="As whom."
)


@stack.command(context_settings={"ignore_unknown_options": True})
@_AS
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def sql(config: str | None, role: str, arguments: tuple[str, ...]) -> None:
    """Open MariaDB's shell on this stack; further arguments go to the shell.

    \b
    Examples:
      beds stack sql
      beds stack sql --as worker -e "CALL airlines_count()"
    """
    _run(*Stack(folder_for(config)).sql_shell(role), arguments)


@stack.command(context_settings={"ignore_unknown_options": True})
@_AS
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def mongosh(config: str | None, role: str, arguments: tuple[str, ...]) -> None:
    """Open MongoDB's shell on this stack; further arguments go to the shell. mongosh must be installed."""
    _run(*Stack(folder_for(config)).mongo_shell(role), arguments)


def _run(command: list[str], environment: dict[str, str], arguments: tuple[str, ...]) -> None:
    """Become a program. Its password is in the environment, which other users cannot read."""
    sys.stdout.flush()
    os.execvpe(command[0], [*command, *arguments], {**os.environ, **environment})


@stack.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def rabbitmqctl(config: str | None, arguments: tuple[str, ...]) -> None:
    """Run rabbitmqctl on this stack's RabbitMQ.

    \b
    Example:
      beds stack rabbitmqctl list_queues -p beds name messages
    """
    click.echo(Stack(folder_for(config)).rabbitmq.control(*(arguments or ("help",))), nl=False)

"""`beds node run | start | stop | restart | status`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from beds.cli.stack import EX_DOWN, folder_for
from beds.config import Settings, load_settings
from beds.errors import StackError
from beds.node import supervisor
from beds.stack.process import Daemon, lock_holder
from beds.stack.stack import NODE

START_SECONDS = 60.0


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


@node.command()
@click.pass_obj
def start(config: str | None) -> None:
    """Run this node's workers in the background, and return when they serve. The log is .beds/run/node.log.

    \b
    Example:
      beds stack up && beds schema apply && beds node start
    """
    daemon = _daemon(config)
    started = start_node(daemon, load_settings(config), config)
    click.echo(f"{'started' if started else 'was running'}; log: {daemon.log}")


@node.command()
@click.pass_obj
def status(config: str | None) -> None:
    """Whether this node's workers run. Exit code 3 when they do not.

    Workers that were started by hand are known to RabbitMQ: celery -A beds status
    """
    if process := _daemon(config).process():
        click.echo(f"running in the background (pid {process.pid})")
    elif pid := lock_holder(supervisor.lock_file(load_settings(config))):
        click.echo(f"running in a terminal (pid {pid})")
    else:
        click.echo("not running; start them with `beds node start`")
        raise SystemExit(EX_DOWN)


@node.command()
@click.pass_obj
def stop(config: str | None) -> None:
    """Drain and stop the workers that run in the background."""
    click.echo("stopped" if _daemon(config).stop() else "nothing was running")


@node.command()
@click.pass_obj
def restart(config: str | None) -> None:
    """Stop and start: new templates, new settings."""
    settings, daemon = load_settings(config), _daemon(config)
    stopped = daemon.stop()
    start_node(daemon, settings, config)
    click.echo(f"{'stopped and started' if stopped else 'was not running; started'}; log: {daemon.log}")


def start_node(daemon: Daemon, settings: Settings, config: str | None) -> bool:
    """Start this node's workers in the background and wait until they serve. False when they ran already.

    Raises:
        ConfigurationError: the node has nothing to run.
        StackError: they ended, or did not come up; shows the end of their log.
    """
    if daemon.process():
        return False
    if lock_holder(supervisor.lock_file(settings)) is not None:
        raise supervisor.already_runs(settings)
    files = [supervisor.ready_file(settings, queues) for queues in supervisor.pools_of(settings)]
    for file in files:
        file.unlink(missing_ok=True)
    option = ["--config", str(Path(config).resolve())] if config else []
    daemon.start([sys.executable, "-m", "beds.cli", *option, "node", "run"], cwd=settings.root)
    try:
        daemon.wait_until(lambda: all(file.exists() for file in files), START_SECONDS)
    except StackError:
        daemon.stop()  # what never served is not left behind, to try for ever
        raise
    return True


def _daemon(config: str | None) -> Daemon:
    return Daemon(NODE, folder_for(config) / "run")

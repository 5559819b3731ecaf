"""`beds node run | check | start | stop | restart | status`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from beds.cli.output import print_json, print_table, printable
from beds.cli.stack import EX_DOWN, folder_for
from beds.config import Settings, load_settings
from beds.errors import ConfigurationError, StackError
from beds.node import status, supervisor
from beds.node.check import Check, Verdict, of_error
from beds.node.checks import EX_CONFIG, initial_program_load
from beds.stack.process import Daemon, lock_holder
from beds.stack.stack import node_daemon

START_SECONDS = 60.0
LINE_CHARACTERS = 1000


@click.group()
def node() -> None:
    """Run this node's workers."""


@node.command()
@click.pass_obj
def run(config: str | None) -> None:
    """One worker for each queue whose service is local in beds.toml, until Ctrl-C or SIGTERM.

    It checks the node first (`beds node check`), starts again what dies, and drains all at the end. It serves as first
    process of a container, and under systemd with Type=notify and a watchdog.

    The same by hand, one queue a terminal: celery -A beds worker -Q rec.write
    """
    raise SystemExit(supervisor.run(load_settings(config), lambda line: click.echo(line, err=True)))


@node.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(config: str | None, as_json: bool) -> None:
    """Everything a node looks at before it serves, each line with its remedy. Exit code 78 when one fails.

    \b
    Example:
      beds --config node-2.toml node check
    """
    checks: list[Check] = []
    try:
        settings = load_settings(config)
        runs = lock_holder(supervisor.lock_file(settings)) is not None
        checks.extend(initial_program_load(settings, runs_here=runs))
    except ConfigurationError as error:
        checks.append(of_error("configuration", error))
    print_checks(checks, as_json=as_json)
    if any(found.failed for found in checks):
        raise SystemExit(EX_CONFIG)


def print_checks(checks: Iterable[Check], *, as_json: bool) -> None:
    """A line for each, and its remedy below it; or JSON."""
    if as_json:
        print_json([found.to_wire() for found in checks])
        return
    colours = {Verdict.OK: "green", Verdict.FAILED: "red", Verdict.SKIPPED: "yellow"}
    for found in checks:
        verdict = click.style(f"{found.verdict:8}", fg=colours[found.verdict])
        click.echo(f"{verdict} {found.name:24} {printable(found.found, LINE_CHARACTERS)}")
        if found.remedy:
            click.echo(f"{'':8} {'':24} → {printable(found.remedy, LINE_CHARACTERS)}")


@node.command()
@click.pass_obj
def start(config: str | None) -> None:
    """Run this node's workers in the background, and return when they serve. The log is .beds/run/node.NAME.log.

    \b
    Example:
      beds stack up && beds schema apply && beds node start
    """
    daemon = _daemon(config)
    started = start_node(daemon, load_settings(config), config)
    click.echo(f"{'started' if started else 'was running'}; log: {daemon.log}")


@node.command("status")
@click.option("--ready", is_flag=True, help="Exit code 3 as well when a pool is not ready; for a health check.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show_status(config: str | None, ready: bool, as_json: bool) -> None:
    """This node's pools: slots, processes, restarts, events done. Exit code 3 when it does not run.

    Workers that were started by hand are known to RabbitMQ: celery -A beds status
    """
    settings = load_settings(config)
    pid = lock_holder(supervisor.lock_file(settings))
    pools = status.pools(settings) if pid else []
    if as_json:
        print_json({"node": settings.node.name, "pid": pid, "pools": [asdict(found) for found in pools]})
    elif pid:
        where = "in the background" if _daemon(config).process() else "in a terminal"
        click.echo(f"node {settings.node.name} runs {where} (pid {pid})")
        print_table(
            ["pool", "state", "pid", "slots", "processes of slots", "restarts", "done"],
            (
                [p.pool, p.state, p.pid, p.slots or None, " ".join(map(str, p.slot_pids)), p.restarts, p.done]
                for p in pools
            ),
        )
    else:
        click.echo("not running; start them with `beds node start`")
    if not pid or (ready and any(found.state != "ready" for found in pools)):
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
    state = supervisor.state_file(settings)
    state.unlink(missing_ok=True)
    option = ["--config", str(Path(config).resolve())] if config else []
    daemon.start([sys.executable, "-m", "beds.cli", *option, "node", "run"], cwd=settings.root)
    try:
        daemon.wait_until(lambda: status.is_serving(settings), START_SECONDS)
    except StackError:
        daemon.stop()  # what never served is not left behind, to try for ever
        raise
    return True


def _daemon(config: str | None) -> Daemon:
    return node_daemon(folder_for(config), load_settings(config).node.name)

"""`beds node run | check | start | stop | restart | status`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict

import click

from beds.cli.output import print_json, print_table, printable
from beds.cli.stack import EX_DOWN, folder_for
from beds.config import Settings, load_settings
from beds.config.settings import no_file_at
from beds.errors import ConfigurationError
from beds.node import status, supervisor
from beds.node.background import start_node
from beds.node.check import Check, Verdict, of_error
from beds.node.checks import startup_checks
from beds.node.daemon import Daemon, lock_holder, node_daemon, node_daemons
from beds.worker.process import EX_CONFIG

LINE_CHARACTERS = 1000


@click.group()
def node() -> None:
    """Run this node's workers."""


@node.command()
@click.pass_obj
def run(config: str | None) -> None:
    """Run one worker for each queue whose service is local in beds.toml, until Ctrl-C or SIGTERM.

    It checks the node first (`beds node check`), restarts workers that end, and drains all at the end. It can be the
    first process of a container, and runs under systemd with Type=notify and a watchdog.

    The same by hand, one queue a terminal: celery -A beds worker -Q rec.write
    """
    raise SystemExit(supervisor.run(settings_of(config), lambda line: click.echo(line, err=True)))


@node.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(config: str | None, as_json: bool) -> None:
    """Run the start-up checks, each with its remedy. Exit code 78 when one fails.

    \b
    Example:
      beds --config node-2.toml node check
    """
    if not print_checks(_checks(config), as_json=as_json):
        raise SystemExit(EX_CONFIG)


def _checks(config: str | None) -> Iterator[Check]:
    try:
        settings = settings_of(config)
    except ConfigurationError as error:
        yield of_error("configuration", error)
        return
    runs = lock_holder(supervisor.lock_file(settings)) is not None
    yield from startup_checks(settings, runs_here=runs)


def settings_of(config: str | None) -> Settings:
    """The settings of a node. Its file must exist, since the defaults name no local service."""
    settings = load_settings(config)
    if not settings.file.is_file():
        raise no_file_at(settings.file)
    return settings


def print_checks(checks: Iterable[Check], *, as_json: bool) -> bool:
    """Print each check as it arrives, with its remedy below it, or all as JSON. False if one failed."""
    done: list[Check] = []
    colours = {Verdict.OK: "green", Verdict.WARNING: "magenta", Verdict.FAILED: "red", Verdict.SKIPPED: "yellow"}
    for found in checks:
        done.append(found)
        if as_json:
            continue
        verdict = click.style(f"{found.verdict:8}", fg=colours[found.verdict])
        click.echo(f"{verdict} {found.name:24} {printable(found.found, LINE_CHARACTERS)}")
        if found.remedy:
            click.echo(f"{'':8} {'':24} → {printable(found.remedy, LINE_CHARACTERS)}")
    if as_json:
        print_json([found.to_wire() for found in done])
    return not any(found.failed for found in done)


@node.command()
@click.pass_obj
def start(config: str | None) -> None:
    """Run this node's workers in the background, and return when they serve. The log is .beds/run/node.NAME.log.

    \b
    Example:
      beds stack up && beds schema apply && beds node start
    """
    daemon = _daemon(config)
    started = start_node(daemon, settings_of(config), config)
    click.echo(f"{'started' if started else 'was running'}; log: {daemon.log}")
    _end_if_refused(settings_of(config), daemon)


@node.command("status")
@click.option(
    "--ready",
    is_flag=True,
    help="Exit code 3 as well when a pool is not ready, or a database refuses writes; for a health check.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show_status(config: str | None, ready: bool, as_json: bool) -> None:
    """Show this node's pools: slots, processes, restarts, events done. Exit code 3 when it does not run.

    For workers that were started by hand: celery -A beds status
    """
    settings = settings_of(config)
    pid = lock_holder(supervisor.lock_file(settings))
    pools = status.pools(settings, counted=not ready) if pid else []
    if as_json:
        print_json({"node": settings.node.name, "pid": pid, "pools": [asdict(found) for found in pools]})
    elif pid and not pools:
        click.echo(f"node {settings.node.name} runs (pid {pid}): clients only, no worker")
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
        option = f"--config {config} " if config else ""
        click.echo(f"node {settings.node.name} does not run; start it with `beds {option}node start`")
    if not pid or (ready and not status.is_ready(settings)):
        raise SystemExit(EX_DOWN)
    if ready and (problems := status.stores_without_writes(settings)):
        click.echo(f"not ready: {'; '.join(problems)}", err=True)
        raise SystemExit(EX_DOWN)


@node.command()
@click.option("--name", help="The node of this name, whatever beds.toml says now.")
@click.pass_obj
def stop(config: str | None, name: str | None) -> None:
    """Drain and stop the workers that run in the background."""
    folder = folder_for(config)
    name = name or settings_of(config).node.name
    if node_daemon(folder, name).stop():
        click.echo("stopped")
        return
    others = [daemon.name.removeprefix("node.") for daemon in node_daemons(folder) if daemon.process()]
    hint = f"; running: {', '.join(others)} (`beds node stop --name NAME`)" if others else ""
    click.echo(f"node {name} was not running in the background{hint}")


@node.command()
@click.pass_obj
def restart(config: str | None) -> None:
    """Stop and start the workers, which then use new templates and settings."""
    settings, daemon = settings_of(config), _daemon(config)
    stopped = daemon.stop()
    start_node(daemon, settings, config)
    click.echo(f"{'stopped and started' if stopped else 'was not running; started'}; log: {daemon.log}")
    _end_if_refused(settings, daemon)


def _end_if_refused(settings: Settings, daemon: Daemon) -> None:
    """Exit with `EX_DOWN` if a pool refuses to start while others serve."""
    if pools := status.refused(settings):
        click.echo(
            f"refused to start: {', '.join(pools)}; the log says why, and `beds node check` checks again", err=True
        )
        raise SystemExit(EX_DOWN)


def _daemon(config: str | None) -> Daemon:
    return node_daemon(folder_for(config), settings_of(config).node.name)

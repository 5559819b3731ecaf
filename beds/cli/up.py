"""`beds up` and `beds down`: a whole system on one machine, for a first look and for development."""

from __future__ import annotations

from collections.abc import Callable

import click

from beds.cli.http import print_address
from beds.cli.stack import CLUSTER_HELP, EX_DOWN, folder_for
from beds.cli.stack import down as stack_down
from beds.config import Settings, load_settings
from beds.config.settings import no_file_at
from beds.node.background import start_node
from beds.node.daemon import Daemon, node_daemon
from beds.node.status import refused
from beds.schema_tools.apply import changes
from beds.stack.stack import Stack


def bring_up(
    config: str | None, say: Callable[[str], None], port_base: int | None = None, *, cluster: bool = False
) -> tuple[Settings, Daemon]:
    """Start the servers that do not run, apply the schema, then start this node's workers.

    Args:
        config: as `--config`.
        say: called with a line for each step.
        port_base: first port of a new stack.
        cluster: whether the stack gets further members.

    Returns:
        The node's settings, and the daemon of its workers.

    Raises:
        ConfigurationError: there is no beds.toml.
        StackError: something did not come up.
    """
    if not (folder := folder_for(config)).with_name("beds.toml").is_file() and not config:
        raise no_file_at(folder.with_name("beds.toml"))
    say("— servers")
    Stack(folder, port_base, cluster=cluster).up(say)
    settings = load_settings(config)
    say("— schema (with the DBA's credentials)")
    with changes(settings) as pending:
        for change in pending:
            change.apply()
    say(f"{len(pending)} changes applied")
    say("— workers")
    workers = node_daemon(folder, settings.node.name)
    say("started" if start_node(workers, settings, config) else "were running")
    return settings, workers


@click.command()
@click.option("--port-base", type=int, help="First port of a new stack (23000 when absent).")
@click.option("--cluster", is_flag=True, help=CLUSTER_HELP)
@click.pass_obj
def up(config: str | None, port_base: int | None, cluster: bool) -> None:
    """Start a local RabbitMQ, MariaDB and MongoDB, apply the schema, and start this node's workers.

    It may be repeated: servers and workers that run keep running. In production the servers exist already, the DBA runs
    `beds schema apply`, and `beds node run` starts a node.
    """
    settings, daemon = bring_up(config, click.echo, port_base, cluster=cluster)
    if pools := refused(settings):
        click.echo(f"refused to start: {', '.join(pools)}; the end of {daemon.log}:\n{daemon.tail()}", err=True)
        raise SystemExit(EX_DOWN)
    if settings.services.app_server.is_local:
        print_address(settings)
    click.echo("next: beds template list; beds call TEMPLATE.OPERATION …; beds doctor; beds down")


@click.command()
@click.option("--wipe", is_flag=True, help="Delete all data and passwords as well.")
@click.pass_context
def down(ctx: click.Context, wipe: bool) -> None:
    """Stop the workers and the three servers."""
    ctx.invoke(stack_down, wipe=wipe)

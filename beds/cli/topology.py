"""`beds topology declare | show`."""

from __future__ import annotations

import click

from beds.cli.output import print_json, print_table
from beds.config import load_settings
from beds.transport.connection import connect_to
from beds.transport.topology import Topology, declare


@click.group()
def topology() -> None:
    """Declare and show exchanges and queues."""


@topology.command("declare")
@click.pass_obj
def declare_all(config: str | None) -> None:
    """Declare every exchange and queue. Workers also do this when they start; it may be repeated."""
    settings = load_settings(config)
    wanted = Topology.from_settings(settings.amqp)
    with connect_to(settings.amqp, settings.amqp.broker_url) as connection:
        declare(wanted, connection)
    click.echo(f"{len(wanted.exchanges)} exchanges and {len(wanted.queues)} queues are as declared")


@topology.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(config: str | None, as_json: bool) -> None:
    """The exchanges and queues that this configuration asks for."""
    wanted = Topology.from_settings(load_settings(config).amqp)
    rows = [
        {"queue": q.name, "exchange": q.exchange, "keys": list(q.keys), "arguments": dict(q.arguments)}
        for q in wanted.queues
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(["queue", "exchange", "keys", "arguments"], (r.values() for r in rows))

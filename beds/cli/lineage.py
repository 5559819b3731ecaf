"""`beds lineage`: what a request set off, as a tree."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from beds.cli.clients import records_client
from beds.cli.output import CELL_CHARACTERS, print_json, printable
from beds.client.lineage import Node
from beds.domain.trace import OK


@click.command()
@click.argument("event")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def lineage(config: str | None, event: str, timeout: float, as_json: bool) -> None:
    """Print the tree that EVENT belongs to: events, database calls, log lines and audit records, with how long each
    took, how it ended and where it ran. EVENT is an event id, a guid, or a ticket.

    \b
    Example:
      beds lineage $(beds submit Airlines.create_record carrier=ZZ name='Zed Air')
    """
    with records_client(config) as client:
        root = client.lineage(event, timeout=timeout)
    if as_json:
        print_json(root.to_wire())
        return
    color = False if os.environ.get("NO_COLOR") else None
    click.echo(_line(root), color=color)
    for line in _below(root):
        click.echo(line, color=color)


def _below(node: Node, indent: str = "") -> Iterator[str]:
    """The lines under a node. A job has thousands: rich would take longer to draw them than the client to read them."""
    for number, child in enumerate(node.children, 1):
        is_last = number == len(node.children)
        yield _dim(indent + ("└── " if is_last else "├── ")) + _line(child)
        yield from _below(child, indent + ("    " if is_last else "│   "))


def _line(node: Node) -> str:
    name = printable(node.name, 100)
    guid = printable(node.event_id.rsplit(".", 1)[-1], CELL_CHARACTERS)
    match node.kind:
        case "event":
            place = _dim(f"{_of(node, 'queue')} {_where(node)} {guid}")
            return f"{click.style(name or '?', bold=True)}  {_ending(node)}  {place}"
        case "call":
            rows = _dim(f"{_of(node, 'rows') or 0} rows")
            return f"{_of(node, 'store')} {name}  {_ending(node)}  {rows}"
        case "log":
            place = _dim(f"{_of(node, 'logger')} {_where(node)}")
            return f"{_of(node, 'level')} {name}  {place}"
        case "audit":
            who = _of(node, "actor") or _of(node, "user") or "?"
            return f"audit {name} {_of(node, 'record_id')} by {who}  {_ending(node)}"
        case _:
            return _dim(f"{guid}: no record of it (yet)")


def _of(node: Node, field: str) -> str:
    """A field of the node's record, without escape sequences; empty where the record lacks it."""
    value = node.record.get(field)
    return printable("" if value is None else str(value), CELL_CHARACTERS)


def _where(node: Node) -> str:
    return "@".join(filter(None, (_of(node, "pid"), _of(node, "host"))))


def _ending(node: Node) -> str:
    took = node.record.get("duration_ms")
    took_ms = f" {took:.1f} ms" if isinstance(took, (int, float)) else ""
    return click.style(printable(node.outcome, CELL_CHARACTERS), fg="green" if node.outcome == OK else "red") + took_ms


def _dim(text: str) -> str:
    return click.style(text, dim=True)

"""`beds lineage`: what a request set off, as a tree."""

from __future__ import annotations

import click
from rich.console import Console
from rich.tree import Tree

from beds.cli.clients import records_client
from beds.cli.output import print_json, shown
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
    tree = Tree(_line(root), guide_style="dim")
    _grow(tree, root)
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 500
    console.print(tree)


def _grow(branch: Tree, node: Node) -> None:
    for child in node.children:
        _grow(branch.add(_line(child)), child)


def _line(node: Node) -> str:
    record = node.record
    name = shown(node.name, 100)
    guid = shown(node.event_id.rsplit(".", 1)[-1])
    where = shown("@".join(str(record[key]) for key in ("pid", "host") if key in record))
    match node.kind:
        case "event":
            return f"[bold]{name or '?'}[/]  {_ending(node)}  [dim]{shown(record.get('queue'))} {where} {guid}[/]"
        case "call":
            return f"{shown(record.get('store'))} {name}  {_ending(node)}  [dim]{shown(record.get('rows', 0))} rows[/]"
        case "log":
            return f"{shown(record.get('level'))} {name}  [dim]{shown(record.get('logger'))} {where}[/]"
        case "audit":
            who = shown(record.get("actor") or record.get("user") or "?")
            return f"audit {name} {shown(record.get('record_id'))} by {who}  {_ending(node)}"
        case _:
            return f"[dim]{guid}: no record of it (yet)[/]"


def _ending(node: Node) -> str:
    color = "green" if node.outcome == OK else "red"
    took = node.record.get("duration_ms")
    took_ms = f" {took:.1f} ms" if isinstance(took, (int, float)) else ""
    return f"[{color}]{shown(node.outcome)}[/]{took_ms}"

"""How values look: tables for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from beds.domain.reply import Page, Reply
from beds.transport import codec

CELL_CHARACTERS = 60


def print_json(value: Any) -> None:
    """One JSON value, in the codec's form."""
    click.echo(json.dumps(codec.encode(value), ensure_ascii=False, indent=2))


def print_reply(reply: Reply, *, as_json: bool) -> None:
    if as_json:
        print_json(reply.to_wire())
    elif isinstance(reply, Page):
        print_records(reply.records)
        click.echo(how_many(reply, "record"))
    else:
        if reply.record:
            print_records([reply.record])
        key = f" {reply.record_id}" if reply.record_id else ""
        click.echo(f"ok:{key} ({reply.affected} affected)")


def how_many(page: Page, noun: str, which: str = "") -> str:
    """The line under a page: how many there are, and how to see the next ones."""
    more = f"; next page: --cursor {page.cursor}" if page.cursor else ""
    return f"{len(page)} {noun}{'' if len(page) == 1 else 's'}{which}{more}"


def print_records(records: Sequence[Mapping[str, Any]]) -> None:
    columns: dict[str, None] = {}
    for record in records:
        columns |= dict.fromkeys(record)
    if columns:
        print_table(columns, [[record.get(name) for name in columns] for record in records])


def print_table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table; wide enough for its content when it is not a terminal that reads it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 500
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S%z")
    text = json.dumps(codec.encode(value), ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return printable(text, CELL_CHARACTERS)


def printable(text: str, characters: int) -> str:
    """`text`, cut to size, and without escape sequences for a person's terminal."""
    cut = text if len(text) <= characters else text[: characters - 1] + "…"
    return "".join(c if c.isprintable() else "\ufffd" for c in cut)

"""The output of values: as tables or as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from beds.domain.reply import Page, Reply
from beds.wire import codec

CELL_CHARACTERS = 60


def print_json(value: Any, *, wire: bool = False) -> None:
    """Print one JSON value: plain, or with the tags of the wire format."""
    click.echo(json_text(codec.encode(value) if wire else value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """Plain JSON in which characters are escaped that could control a terminal."""
    text = json.dumps(codec.plain(value), ensure_ascii=False, indent=indent)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def print_reply(reply: Reply, *, as_json: bool, wire: bool = False) -> None:
    if as_json:
        print_json(reply.to_wire(), wire=wire)
    elif isinstance(reply, Page):
        print_records(reply.records)
        click.echo(how_many(reply, "record"))
    else:
        if reply.record:
            print_records([reply.record])
        key = f" {printable(reply.record_id, 500)}" if reply.record_id else ""
        click.echo(f"ok:{key} ({reply.affected} affected)")


def how_many(page: Page, noun: str, which: str = "") -> str:
    """The line under a page: the number of its records, and whether and how more are shown."""
    more = f"; next page: --cursor {page.cursor}" if page.cursor else "; there may be more" if page.is_cut else ""
    return f"{len(page)} {noun}{'' if len(page) == 1 else 's'}{which}{more}"


def print_records(records: Sequence[Mapping[str, Any]], characters: int = CELL_CHARACTERS) -> None:
    columns: dict[str, None] = {}
    for record in records:
        columns |= dict.fromkeys(record)
    if columns:
        print_table(columns, [[record.get(name) for name in columns] for record in records], characters)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[Any]], characters: int = CELL_CHARACTERS) -> None:
    """Print a table. Without a terminal it is wide enough for its content; a cell has so many characters at most."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(printable(name, CELL_CHARACTERS), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value, characters) for value in row))
    table_console(max(500, 2 * characters), markup=False).print(table)


def table_console(characters: int = 500, *, markup: bool = True) -> Console:
    """The console for a table: as wide as the terminal, or so many characters where the output is a file or a pipe."""
    console = Console(highlight=False, markup=markup, emoji=False)
    if not console.is_terminal:
        console.width = characters
    return console


def _cell(value: Any, characters: int) -> str:
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, timedelta):
        return codec.duration_text(value)
    if isinstance(value, bytes):
        return printable(base64.b64encode(value).decode(), characters)
    text = json.dumps(codec.plain(value), ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return printable(text, characters)


def shown(value: Any, characters: int = CELL_CHARACTERS) -> str:
    """A foreign value for a line with markup: its escape sequences are removed and its markup is escaped."""
    return escape(printable("" if value is None else str(value), characters))


def printable(text: str, characters: int) -> str:
    """`text`, cut to size and without escape sequences."""
    cut = text if len(text) <= characters else text[: characters - 1] + "…"
    return "".join(c if c.isprintable() else "\ufffd" for c in cut)

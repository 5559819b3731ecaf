"""`beds logs` and `beds audit`: the log records and audited changes of all nodes, over AMQP."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from beds.cli.clients import records_client
from beds.cli.output import how_many, json_text, print_json, print_table, printable
from beds.client.client import Client
from beds.domain.event import Operation
from beds.domain.lineage import guid_of
from beds.domain.reply import Page, Record
from beds.errors import NotFound
from beds.wire import codec

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
FOLLOW_SECONDS = 1.0
LATE_SECONDS = 10.0
"""The delay with which a record may arrive and still be shown by --follow."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Since(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A time (ISO 8601, in UTC when it has no zone) or an age: 90s, 15m, 2h, 7d."""

    name = "time|age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if found := re.fullmatch(r"(\d{1,9})([smhd])", value):
                return datetime.now(UTC) - timedelta(seconds=int(found[1]) * _UNITS[found[2]])
            parsed = datetime.fromisoformat(value)
            return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a time, as in 2026-01-31T12:00, nor an age, as in 15m", param, ctx)


@click.command()
@click.option("--since", type=Since(), help="From this time on: 2026-01-31T12:00 (UTC), or an age: 90s, 15m, 2h, 7d.")
@click.option("--level", type=click.Choice(LEVELS, case_sensitive=False), default="DEBUG", help="This level and above.")
@click.option("--node", help="Of this node only.")
@click.option("--event", help="What was logged in the course of this event: its id, guid or ticket.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many, at most.")
@click.option("--follow", is_flag=True, help="Go on showing what comes, until Ctrl-C.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds for each question.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def logs(
    config: str | None, since: datetime | None, level: str, node: str | None, event: str | None, limit: int,
    follow: bool, timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Show log records of all nodes, oldest first: the latest, or those from a time on.

    \b
    Examples:
      beds logs --level WARNING --since 1h
      beds logs --follow --node ms
      beds logs --event 01a20d9f-cec8-76f3-8b35-c900cdc2ad61
    """
    if event and (since or follow or node):
        raise click.UsageError("--event stands alone, with --level")
    least = logging.getLevelNamesMapping()[level.upper()]
    with records_client(config) as client:

        def fetch(using: str, **args: Any) -> Page:
            return _page(client, "msLogs", using, args | {"least": least}, limit, "", timeout)

        if event:
            found = list(fetch("by_event", parent_id=_event_id(client, event, timeout)))
            _show(found, as_json)
            _say_none(found, as_json)
            return
        of_node = {"node": node} if node else {}
        shown: dict[str, datetime] = {}
        start = since or datetime.now(UTC)
        first = list(fetch("since", since=since, **of_node) if since else fetch("latest", **of_node)[::-1])
        while True:
            new = [record for record in first if record["event_id"] not in shown]
            _show(new, as_json)
            if not follow:
                _say_none(new, as_json)
                return
            shown |= {record["event_id"]: record["at"] for record in new}
            last = min(max([start, *shown.values()]), datetime.now(UTC)) - timedelta(seconds=LATE_SECONDS)
            shown = {event_id: at for event_id, at in shown.items() if at >= last}
            time.sleep(FOLLOW_SECONDS)
            first = list(_all(client, "msLogs", "since", {"since": last, "least": least, **of_node}, timeout))


@click.command()
@click.option("--template", help="Changes of this data domain.")
@click.option("--record", help="Of the record with this key; needs --template.")
@click.option("--since", type=Since(), help="From this time on: 2026-01-31T12:00 (UTC), or an age: 90s, 15m, 2h, 7d.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many, at most.")
@click.option("--cursor", default="", help="The cursor of the page before.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def audit(
    config: str | None, template: str | None, record: str | None, since: datetime | None, limit: int, cursor: str,
    timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Show who changed what, newest first. Values of sensitive fields are masked where they were recorded.

    \b
    Examples:
      beds audit --template Airlines --record ZZ
      beds audit --since 2h
    """
    if record and not template:
        raise click.UsageError("--record needs --template: keys are those of one data domain")
    with records_client(config) as client:
        if template:
            client.templates[template]  # an unknown name raises an error with the nearest name
        using = "newest_of_record" if record else "all_newest" if client.is_operator else "newest"
        given = {"template": template, "record_id": record, "since": since}
        args = {name: value for name, value in given.items() if value}
        page = _page(client, "msAudit", using, args, limit, cursor, timeout)
    # A cursor is valid with the same arguments only, and an age means another time with each call.
    from_time = since.isoformat(timespec="milliseconds") if since else None
    if as_json:
        records = [{**r, "values": _values(r)} for r in page]
        print_json({**page.to_wire(), "records": records} | ({"since": from_time} if from_time else {}))
        return
    columns = ("at", "template", "operation", "record_id", "outcome", "user", "actor", "values")
    print_table(columns, [[_values(r) if name == "values" else r.get(name) or None for name in columns] for r in page])
    click.echo(how_many(page, "change") + (f" --since {from_time}" if from_time and page.cursor else ""))


def _page(
    client: Client, template: str, using: str, args: dict[str, Any], limit: int, cursor: str, timeout: float
) -> Page:
    page = client.call(Operation.FETCH, template, args, using=using, limit=limit, cursor=cursor, timeout=timeout)
    assert isinstance(page, Page)
    return page


def _all(client: Client, template: str, using: str, args: dict[str, Any], timeout: float) -> Iterator[Record]:
    cursor = ""
    while True:
        page = _page(client, template, using, args, 1000, cursor, timeout)
        yield from page
        cursor = page.cursor
        if not cursor:
            return


def _event_id(client: Client, event: str, timeout: float) -> str:
    """The full id of an event; `event` may be its guid alone."""
    found = _page(client, "msLineage", "by_guid", {"guid": guid_of(event)}, 1, "", timeout)
    if found:
        return str(found[0]["event_id"])
    if "." in event:
        return event  # it has no lineage record yet: it may still run
    raise NotFound(f"nothing is known of {event}", hint="give the whole event id, node.env.guid")


def _values(record: Record) -> Any:
    return codec.decode(json.loads(record.get("values") or "{}"))


def _say_none(records: Sequence[Record], as_json: bool) -> None:
    if not records and not as_json:
        click.echo("0 records")


_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}


def _show(records: Iterable[Record], as_json: bool) -> None:
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for record in records:
        if as_json:
            click.echo(json_text(record))
            continue
        at = record["at"].strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        level = printable(str(record.get("level", "")), 20)
        where = printable(f"{record.get('node', '')}/{record.get('host', '')}/{record.get('pid', '')}", 200)
        console.print(
            Text.assemble(
                f"{at} ",
                (f"{level:8}", _STYLES.get(level, "")),
                (f" {where} {printable(str(record.get('logger', '')), 300)} ", "dim"),
                printable(str(record.get("message", "")), 10_000),
                (f"  {printable(str(record['extra']), 2000)}" if record.get("extra") else "", "dim"),
                (
                    f"  [{int(record['dropped'])} records before this were dropped]" if record.get("dropped") else "",
                    "red",
                ),
            )
        )
        if record.get("exception"):
            for line in str(record["exception"]).splitlines():
                console.print(f"    {printable(line, 1000)}")

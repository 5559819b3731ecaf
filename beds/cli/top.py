"""`beds top`: waiting events, rates and latencies of the queues."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click
from kombu import Connection
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from beds.cli.clients import records_client
from beds.cli.output import print_json, table_console
from beds.client.client import Client
from beds.client.overview import PERCENTS, members, queue_rates, running_jobs
from beds.domain.member import Members
from beds.transport.connection import connect_to


@click.command()
@click.option("--window", type=click.FloatRange(5, 3600), default=30.0, show_default=True, help="Seconds to look back.")
@click.option("--once", is_flag=True, help="Print once, instead of each two seconds.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds for each question.")
@click.option("--json", "as_json", is_flag=True, help="Print once, as JSON.")
@click.pass_obj
def top(config: str | None, window: float, once: bool, timeout: float, as_json: bool) -> None:
    """Watch the queues: waiting events, events per second, latencies, errors, and how many slots are busy.

    Rates and latencies come from msMetrics, which workers write every few seconds; an admin worker must run. Latency is
    a worker's time for one event, without its wait in the queue. Without [amqp] operator_url only waiting events are
    shown.
    """
    with records_client(config) as client:
        settings = client.settings
        connection = connect_to(settings.amqp, settings.amqp.client_url, patience=timeout)
        _watch(client, connection, window, timeout, once=once, as_json=as_json)


def _watch(client: Client, connection: Connection, window: float, timeout: float, *, once: bool, as_json: bool) -> None:
    with connection:

        def look() -> dict[str, dict[str, Any]]:
            return queue_rates(client, connection, window, timeout)

        def show() -> Group:
            jobs, clusters = running_jobs(client, timeout), members(client, timeout)
            parts: list[Any] = [_table(look(), window)]
            if jobs:
                parts += [Text(), _jobs_table(jobs)]
            if any(len(found.members) > 1 or found.problem for found in clusters):
                parts += [Text(), _members_table(clusters)]
            return Group(*parts)

        if as_json:
            clusters = [found.to_wire() for found in members(client, timeout)]
            jobs = running_jobs(client, timeout)
            print_json({"window_seconds": window, "queues": look(), "jobs": jobs, "members": clusters})
            return
        console = table_console()
        if once:
            console.print(show())
            return
        with Live(show(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(2)
                live.update(show(), refresh=True)


def _jobs_table(jobs: list[dict[str, Any]]) -> Table:
    """The running jobs: `lanes` are at work on a chunk, and `lag` is the time since the last progress."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("job")
    for name in ("state", "done", "of", "records/s", "lanes", "lag s"):
        table.add_column(name, justify="right")
    for job in jobs:
        table.add_row(
            f"{job['job']} {job['guid']}",
            job["state"],
            _shown(job["done"], ","),
            _shown(job["total"], ","),
            _shown(job["records_per_second"], ",.0f"),
            str(job["lanes"]),
            _shown(job["lag_seconds"], ".1f"),
        )
    return table


def _members_table(clusters: list[Members]) -> Table:
    """The members of each cluster. Faults are red."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("server", "members", "state"):
        table.add_column(name)
    for found in clusters:
        whole, away = len(found.members), len(found.away)
        up = f"[red]{whole - away} of {whole}[/]" if away else f"{whole} of {whole}"
        table.add_row(found.server, up if whole else "–", "; ".join(_states(found)))
    return table


def _states(found: Members) -> Iterator[str]:
    if found.problem:
        yield f"[red]{escape(found.problem)}[/]"
    if found.away:
        yield f"[red]away: {', '.join(found.away)}[/]"
    if cut_off := [member.address for member in found.members if member.is_cut_off]:
        yield f"[red]cut off: {', '.join(cut_off)}[/]"
    if found.short_queues:
        yield f"[red]{len(found.short_queues)} queues lack a member[/]"
    if leads := [f"{member.address} {member.leads}" for member in found.members if member.leads is not None]:
        yield f"leads: {', '.join(leads)}"
    if len(found.writable) > 1:
        yield f"[red]several take writes: {', '.join(found.writable)}[/]"
    elif found.writable:
        yield f"{found.writable[0]} takes writes"
    elif found.members and found.server != "RabbitMQ":
        yield "[red]none takes writes[/]"
    if found.lag:
        seconds, waited = found.lag.seconds, found.lag.waited
        yield f"[red]replica lags more than {waited:g} s[/]" if seconds is None else f"replica lags {seconds:.2f} s"


def _table(rows: dict[str, dict[str, Any]], window: float) -> Table:
    caption = f"the last {window:.0f} s"
    if not any(row["per_second"] is not None for row in rows.values()):
        caption = "rates are read with \\[amqp] operator_url, from a running worker for `operator`"
    table = Table(box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
    table.add_column("queue", no_wrap=True)
    for name in ("waiting", "workers", "events/s", "errors", *(f"p{p} ms" for p in PERCENTS), "busy"):
        table.add_column(name, justify="right")
    has_jobs = any(row["records_per_second"] for row in rows.values())
    if has_jobs:
        table.add_column("records/s", justify="right")
    for queue, row in rows.items():
        errors = f"[red]{row['errors']}[/]" if row["errors"] else _shown(row["errors"], "")
        table.add_row(
            queue,
            _shown(row["waiting"], ","),
            str(row["consumers"]),
            _shown(row["per_second"], ".1f"),
            errors,
            *(_shown(row[f"p{p}_ms"], ".1f") for p in PERCENTS),
            _shown(row["busy"], ".2f"),
            *([_shown(row["records_per_second"] or None, ",.0f")] if has_jobs else ()),
        )
    return table


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)

"""`beds ticket GUID`, `beds ticket cancel GUID` and `beds tickets`."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from beds.cli.clients import records_client
from beds.cli.output import how_many, print_json, print_reply, print_table
from beds.domain.reply import Page, reply_from_wire
from beds.domain.ticket import TicketState, TicketStatus
from beds.wire import codec
from beds.wire.reply import read_reply


class _DefaultToShow(click.Group):
    """`beds ticket GUID` means `beds ticket show GUID`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_DefaultToShow)
def ticket() -> None:
    """Show a ticket, wait for it, cancel it: over AMQP, from any node.

    \b
    Examples:
      beds ticket 01a20d9f-cec8-76f3-8b35-c900cdc2ad61
      beds ticket 01a20d9f-cec8-76f3-8b35-c900cdc2ad61 --wait --timeout 600
      beds ticket cancel 01a20d9f-cec8-76f3-8b35-c900cdc2ad61
    """


@ticket.command()
@click.argument("guid")
@click.option("--wait", is_flag=True, help="Wait for the end, then print the reply, or fail as the operation did.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(config: str | None, guid: str, wait: bool, timeout: float, as_json: bool) -> None:
    """Print a ticket's state; the guid may be an event id, too."""
    with records_client(config) as client:
        found = client.ticket(guid)
        status = _wait(found, timeout) if wait else found.status(timeout)
    if as_json:
        print_json(_plain(status))
    else:
        _print(status)
    if wait:
        reply = reply_from_wire(read_reply(status.result))
        if not as_json:
            print_reply(reply, as_json=False)


@ticket.command()
@click.argument("guid")
@click.option("--by", default="", help="Who cancels, as the ticket will show (else this user and host).")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def cancel(config: str | None, guid: str, by: str, timeout: float, as_json: bool) -> None:
    """Ask to cancel a ticket: it never begins, or stops at its next checkpoint."""
    with records_client(config) as client:
        status = client.ticket(guid).cancel(timeout, by=by)
    if as_json:
        print_json(_plain(status))
    else:
        _print(status)
        if status.ready and status.state is not TicketState.REVOKED:
            click.echo("it had ended before")


@click.command()
@click.option("--state", type=click.Choice([str(s) for s in TicketState]), help="In this state only, oldest first.")
@click.option("--limit", type=int, default=100, show_default=True, help="Tickets of a page.")
@click.option("--cursor", default="", help="The cursor of the page before.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def tickets(config: str | None, state: str | None, limit: int, cursor: str, timeout: float, as_json: bool) -> None:
    """List the newest tickets, or those in one state: one's own, and everybody's with [amqp] operator_url."""
    with records_client(config) as client:
        using = ("all_" if client.is_operator else "") + ("by_state" if state else "newest")
        page = client.call(
            "fetch_records", "msTickets", {"state": state} if state else {},
            using=using, limit=limit, cursor=cursor, timeout=timeout,
        )  # fmt: skip
    assert isinstance(page, Page)
    if as_json:
        print_json(page.to_wire())
        return
    columns = ("guid", "summary", "state", "accepted_at", "started_at", "ended_at", "cancelled_by")
    print_table(columns, [[record.get(name) for name in columns] for record in page])
    click.echo(how_many(page, "ticket", f" in state {state}" if state else ""))


def _plain(status: TicketStatus) -> dict[str, Any]:
    """A status for JSON; the values of its result have no tags."""
    found: dict[str, Any] = codec.decode(status.to_wire())
    return {**found, "ready": status.ready}


def _wait(found: Any, timeout: float) -> TicketStatus:
    """Wait for the ticket, with a progress bar on a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[how_far]}", markup=False),
        TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("PENDING", total=None, how_far="")

        def show_progress(status: TicketStatus) -> None:
            progress = status.progress
            of = f" of {progress.total:,}" if progress and progress.total else ""
            bar.update(
                task,
                description=str(status.state),
                total=progress.total if progress else None,
                completed=progress.done if progress else 0,
                how_far=f"{progress.done:,}{of} {progress.unit}" if progress else "",
            )

        return found.wait(timeout, show_progress)  # type: ignore[no-any-return]


def _print(status: TicketStatus) -> None:
    progress = status.progress
    rows = [
        ("ticket", status.guid),
        ("event", status.event_id),
        ("operation", status.summary),
        ("state", str(status.state)),
        ("progress", f"{progress.done} of {progress.total or '?'} {progress.unit}" if progress else None),
        ("accepted", status.accepted_at),
        ("started", status.started_at),
        ("ended", status.ended_at),
        ("worker", status.worker or None),
        ("cancelled by", status.cancelled_by or None),
    ]
    error = (status.result or {}).get("result", {}) if status.state is not TicketState.SUCCESS else {}
    if isinstance(error, dict) and isinstance(error.get("beds"), dict):
        rows.append(("error", f"{error['beds'].get('code')}: {error['beds'].get('message')}"))
    print_table(["", ""], [row for row in rows if row[1] is not None])

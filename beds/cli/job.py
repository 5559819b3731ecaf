"""`beds job …` and `beds jobs`: start jobs, watch them, steer them, and read what they did."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from beds.cli.clients import records_client
from beds.cli.output import how_many, print_json, print_records, print_table, printable
from beds.cli.values import given_fields
from beds.client.jobs import JobTicket
from beds.domain.job import JobKind, JobState
from beds.domain.reply import Page, Response
from beds.domain.ticket import TicketState, TicketStatus
from beds.errors import JobNotResumable
from beds.templates.rules import JobRule

LOOK_SECONDS = 1.0
BEGIN_SECONDS = 3.0
"""How long `start` waits for a refusal; a job whose pool is away begins later."""
WIDE = 1000
"""Characters of a cell with a path or a reason."""
_TIMEOUT = click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds for each request.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def job() -> None:
    """Start jobs, watch them, steer them, and read what they did.

    A job is described by a rule, a file in schema/jobs/. The AMQP user needs the keys job.*; with [amqp] operator_url
    the operator's user is taken.

    \b
    Examples:
      beds job list                                      the rules
      beds job start weather_cool --dry-run              what would be moved, and what refused
      beds job start weather_cool before=2013-07-01T00:00:00Z --wait
      beds job pause GUID
      beds job rejects GUID
    """


@job.command("list")
@_JSON
@click.pass_obj
def list_rules(config: str | None, as_json: bool) -> None:
    """List the rules in schema/jobs/."""
    with records_client(config) as client:
        rules = client.templates.jobs
    rows = [
        {
            "job": rule.name,
            "kind": str(rule.kind),
            "from": rule.job.source,
            "to": rule.job.to or (f"files in {rule.job.cold}" if rule.job.cold else "pages"),
            "due": f"{rule.schedule.at} UTC" if rule.schedule else None,
            "description": rule.job.description,
        }
        for rule in rules.values()
    ]
    if as_json:
        print_json({"rules": rows, "broken": {name: error.message for name, error in rules.broken.items()}})
        return
    print_records(rows)
    click.echo(f"{len(rows)} rule{'' if len(rows) == 1 else 's'}; `beds jobs` lists the runs")
    for error in rules.broken.values():
        click.echo(f"not a rule: {error.message}")


@job.command()
@click.argument("name")
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Move nothing: show a sample, and what would be refused.")
@click.option("--wait", is_flag=True, help="Show a bar until the end. Ctrl-C leaves the job running.")
@click.option("--idempotency-key", help="Started again with the same key and arguments: the same job.")
@_TIMEOUT
@_JSON
@click.pass_obj
def start(
    config: str | None, name: str, arguments: tuple[str, ...], dry_run: bool, wait: bool,
    idempotency_key: str | None, timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Start a job, and print its guid.

    \b
    Examples:
      beds job start weather_cold --dry-run
      beds job start weather_cold before=2013-07-01T00:00:00Z --wait
    """
    with records_client(config) as client:
        rule = client.templates.jobs[name]
        fields = rule.reads(client.templates[rule.job.source]).args
        args = given_fields(arguments, lambda field: fields.get(field))
        ticket = client.submit_job(name, args, dry_run=dry_run, idempotency_key=idempotency_key, timeout=timeout)
        if dry_run:
            _print_preview(ticket.result(max(timeout, 60.0)), as_json=as_json)
            return
        _after_start(ticket, rule, wait=wait, timeout=timeout, as_json=as_json)


@job.command()
@click.argument("guid")
@click.option("--wait", is_flag=True, help="Show a bar until the end.")
@_TIMEOUT
@_JSON
@click.pass_obj
def restore(config: str | None, guid: str, wait: bool, timeout: float, as_json: bool) -> None:
    """Bring the records of a warehouse job back to where they came from. This is a job of its own.

    Files are compared with the SHA-256 that was noted when they were written; one that was changed stops the job.
    """
    with records_client(config) as client:
        name = client.job(guid).report(timeout)["job"]
        ticket = client.submit_job(name, restore=guid, timeout=timeout)
        _after_start(ticket, client.templates.jobs[name], wait=wait, timeout=timeout, as_json=as_json)


@job.command()
@click.argument("guid")
@click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds.")
@_JSON
@click.pass_obj
def verify(config: str | None, guid: str, timeout: float, as_json: bool) -> None:
    """Read the files of a warehouse job again, and compare them with what was noted when they were written."""
    with records_client(config) as client:
        name = client.job(guid).report(timeout)["job"]
        reply = client.submit_job(name, verify=guid, timeout=timeout).result(timeout)
    assert isinstance(reply, Response)
    if as_json:
        print_json(reply.record)
    else:
        for problem in reply.record["problems"]:
            click.echo(problem)
        click.echo(
            f"{reply.record['job']}: {reply.record['looked_at']:,} looked at, {len(reply.record['problems'])} wrong"
        )
    if reply.record["problems"]:
        raise SystemExit(1)


@job.command()
@click.argument("guid")
@click.option("--wait", is_flag=True, help="Show a bar until the end.")
@_TIMEOUT
@_JSON
@click.pass_obj
def show(config: str | None, guid: str, wait: bool, timeout: float, as_json: bool) -> None:
    """Show how far a job is, and what became of its records."""
    with records_client(config) as client:
        ticket = client.job(guid)
        if wait:
            _watch(ticket, timeout)
        _print_report(ticket.report(timeout), as_json=as_json)


@job.command()
@click.argument("guid")
@_TIMEOUT
@_JSON
@click.pass_obj
def pause(config: str | None, guid: str, timeout: float, as_json: bool) -> None:
    """Let the chunks at work finish, and rest."""
    with records_client(config) as client:
        _print_report(client.job(guid).pause(timeout), as_json=as_json)


@job.command()
@click.argument("guid")
@_TIMEOUT
@_JSON
@click.pass_obj
def resume(config: str | None, guid: str, timeout: float, as_json: bool) -> None:
    """Let a paused or stalled job go on where it was."""
    with records_client(config) as client:
        _print_report(client.job(guid).resume(timeout), as_json=as_json)


@job.command()
@click.argument("guid")
@_TIMEOUT
@_JSON
@click.pass_obj
def cancel(config: str | None, guid: str, timeout: float, as_json: bool) -> None:
    """End a job after the chunks at work. Moved records stay moved; both sides stay consistent."""
    with records_client(config) as client:
        ticket = client.job(guid)
        ticket.cancel(timeout)
        _print_report(ticket.report(timeout), as_json=as_json)


@job.command()
@click.argument("guid")
@_TIMEOUT
@_JSON
@click.pass_obj
def rejects(config: str | None, guid: str, timeout: float, as_json: bool) -> None:
    """List the records that a job did not move, with the reason for each."""
    with records_client(config) as client:
        client.job(guid).report(timeout)  # raises what is wrong with the guid
        found = [
            {name: record.get(name) for name in ("key", "code", "field", "why")}
            for record in client.job(guid).rejects(timeout)
        ]
    if as_json:
        print_json(found)
        return
    print_records(found, WIDE)
    click.echo(f"{len(found)} record{'' if len(found) == 1 else 's'}")


@job.command()
@click.argument("guid")
@_TIMEOUT
@_JSON
@click.pass_obj
def pages(config: str | None, guid: str, timeout: float, as_json: bool) -> None:
    """Print the result of an aggregation."""
    with records_client(config) as client:
        kind = client.job(guid).report(timeout).get("kind", "")
        if kind and kind != JobKind.AGGREGATE:
            raise JobNotResumable(f"a {kind} job has no pages", hint="see `beds job show`, `rejects` and `files`")
        records = [record for page in client.job(guid).pages(timeout) for record in page]
    if as_json:
        print_json(records)
        return
    print_records(records)
    click.echo(f"{len(records)} record{'' if len(records) == 1 else 's'}")


@job.command()
@click.argument("guid")
@_TIMEOUT
@_JSON
@click.pass_obj
def files(config: str | None, guid: str, timeout: float, as_json: bool) -> None:
    """List the files that a warehouse job wrote."""
    with records_client(config) as client:
        client.job(guid).report(timeout)
        found = list(client.job(guid).files(timeout))
    if as_json:
        print_json(found)
        return
    columns = ("path", "rows", "bytes", "state", "sha256")
    print_table(columns, [[file["id"], *(file.get(name) for name in columns[1:])] for file in found], WIDE)
    click.echo(f"{len(found)} file{'' if len(found) == 1 else 's'}")


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Jobs of a page.")
@click.option("--cursor", default="", help="Where the page before ended.")
@_TIMEOUT
@_JSON
@click.pass_obj
def jobs(config: str | None, limit: int, cursor: str, timeout: float, as_json: bool) -> None:
    """List jobs, newest first: with [amqp] operator_url those of all users, else this user's own."""
    with records_client(config) as client:
        using = "all" if client.is_operator else "of_user"
        page = client.fetch("msJobs", using, {}, limit=limit, cursor=cursor, timeout=timeout)
    if as_json:
        print_json(page.to_wire())
        return
    print_table(
        ("guid", "job", "state", "done", "of", "rejected", "made_at", "why"),
        [
            [r["guid"], r["rule"], r["state"], r["tally"].get("read"), r.get("total"), r["tally"].get("rejected"),
             r.get("made_at"), r.get("why")]
            for r in page
        ],
    )  # fmt: skip
    click.echo(how_many(page, "job"))


def _after_start(ticket: JobTicket, rule: JobRule, *, wait: bool, timeout: float, as_json: bool) -> None:
    """Print the guid, or wait for the end."""
    if not wait:
        _await_begin(ticket, timeout)
        if as_json:
            print_json({"guid": ticket.guid, "event_id": ticket.event_id, "job": rule.name})
        else:
            click.echo(ticket.guid)
        return
    click.echo(f"{rule.name}: {ticket.guid}", err=True)
    try:
        _watch(ticket, timeout)
    except KeyboardInterrupt:
        click.echo(f"the job goes on: beds job show {ticket.guid} --wait", err=True)
        raise
    ticket.result(timeout)  # raises what ended the job
    _print_report(ticket.report(timeout), as_json=as_json)


def _await_begin(ticket: JobTicket, timeout: float) -> None:
    """Wait a moment until the job has begun, and raise the error if it was refused."""
    deadline = time.monotonic() + min(BEGIN_SECONDS, timeout)
    while time.monotonic() < deadline:
        status = ticket.status(timeout)
        if status.ready:
            ticket.result(timeout)
        if status.state is not TicketState.PENDING and (status.ready or status.progress):
            return
        if status.state is not TicketState.PENDING and ticket.report(timeout)["state"] != "QUEUED":
            return
        time.sleep(0.1)


def _watch(ticket: JobTicket, timeout: float) -> None:
    """Show a bar until the job has ended.

    Raises:
        JobNotResumable: it is paused or stalled, so it does not go on by itself.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[how_far]}", markup=False),
        TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("QUEUED", total=None, how_far="")
        while not (status := ticket.status(timeout)).ready:
            _advance(bar, task, status)
            if status.progress and status.progress.note.split(":")[0] in (JobState.PAUSED, JobState.STALLED):
                raise JobNotResumable(
                    f"job {ticket.guid} does not go on: {status.progress.note}",
                    detail={"guid": ticket.guid},
                    hint=f"see `beds job rejects {ticket.guid}`; `beds job resume {ticket.guid}` lets it go on",
                )
            time.sleep(LOOK_SECONDS)


def _advance(bar: Progress, task: Any, status: TicketStatus) -> None:
    progress = status.progress
    if progress is None:
        return
    of = f" of {progress.total:,}" if progress.total else ""
    rate = f", {progress.rate:,.0f}/s" if progress.rate else ""
    bar.update(
        task,
        description=printable(progress.note.split(":")[0] or "RUNNING", 12),
        total=progress.total,
        completed=min(progress.done, progress.total or progress.done),
        how_far=f"{progress.done:,}{of} {progress.unit}{rate}",
    )


def _print_preview(reply: Page | Response, *, as_json: bool) -> None:
    assert isinstance(reply, Response)
    report = reply.record
    if as_json:
        print_json(report)
        return
    unit = report["unit"]
    total = f" of about {report['total']:,}" if report["total"] is not None else ""
    click.echo(f"{report['job']}: looked at {report['looked_at']:,}{total} {unit}; nothing was moved")
    if report["sample"]:
        click.echo("\nas the target would get them:")
        print_records(report["sample"])
    if report["rejects"]:
        click.echo("\nwould be refused:")
        print_records(report["rejects"])
    click.echo(f"\n{report['refused']:,} of those looked at would be refused")


def _print_report(report: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    print_table(["", ""], [[name, value] for name, value in report.items() if _says_something(value)], WIDE)


def _says_something(value: Any) -> bool:
    return value not in (None, "", 0)

"""`beds schema`: the DBA's commands."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import click

from beds.cli.output import print_json
from beds.config import load_settings
from beds.schema_tools import apply as tools
from beds.schema_tools.draft import drafting

EX_DIFFERS = 1


@click.group()
def schema() -> None:
    """Apply, compare and check the databases' schema (with the DBA's credentials)."""


@schema.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def apply(config: str | None, as_json: bool) -> None:
    """Bring both databases to the state of schema/.

    Versioned files are applied once; procedures, views, validators, indexes and stored commands when they changed.
    """
    settings = load_settings(config)
    with tools.changes(settings) as changes:
        for number, change in enumerate(changes, 1):
            change.apply()
            if not as_json:
                click.echo(f"[{number}/{len(changes)}] {change}")
    if as_json:
        print_json([{"store": c.store, "action": c.action, "name": c.name} for c in changes])
    else:
        click.echo(f"{len(changes)} changes applied" if changes else "nothing to do: both databases are up to date")
        if changes:
            click.echo("workers that run already: restart them when a template came with it (`beds node restart`)")
    _report(tools.problems(settings), as_json=False)


@schema.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def diff(config: str | None, as_json: bool) -> None:
    """Show the changes that `apply` would make. Exit code 1 when there are any."""
    with tools.changes(load_settings(config)) as changes:
        if as_json:
            print_json([{"store": c.store, "action": c.action, "name": c.name} for c in changes])
        else:
            for change in changes:
                click.echo(str(change))
            click.echo(f"{len(changes)} changes" if changes else "no difference")
    if changes:
        raise SystemExit(EX_DIFFERS)


@schema.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(config: str | None, as_json: bool) -> None:
    """Bind every template against the live objects, as a broker sees them. Exit code 78 when something does not fit."""
    found = tools.problems(load_settings(config))
    if as_json:
        print_json(found)
    elif not found:
        click.echo("every template fits")
    _report(found, as_json=as_json)


@schema.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def grants(config: str | None, as_json: bool) -> None:
    """Print the least rights that the brokers' users need: SQL, then the role for mongosh.

    `apply` grants them as well. This is for a DBA who reads them first, or creates the users elsewhere.
    """
    found = tools.grants(load_settings(config))
    if as_json:
        print_json(asdict(found))
        return
    if found.rel:
        click.echo("-- MariaDB; the account must exist: CREATE USER … IDENTIFIED BY …")
    for statement in found.rel:
        click.echo(f"{statement};")
    if found.rec:
        role = {"createRole": found.role, "privileges": found.rec, "roles": []}
        click.echo("-- MongoDB, in mongosh on the same database (updateRole where the role exists):")
        click.echo(f"-- db.runCommand({json.dumps(role)})")


@schema.command()
@click.option("--again", metavar="FILE", help="You have undone what the file did: `apply` runs it again.")
@click.option("--done", metavar="FILE", help="You have completed the file by hand: it counts as applied.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def repair(config: str | None, again: str | None, done: str | None, as_json: bool) -> None:
    """Show the versioned files that failed half-way, and how far each came; or settle one of them.

    MariaDB commits each CREATE, ALTER and DROP at once, so a file that fails leaves its first statements behind.

    \b
    Examples:
      beds schema repair
      beds stack sql                                   (undo the statements by hand)
      beds schema repair --again V0003__orders.sql
      beds schema apply
    """
    if again and done:
        raise click.UsageError("give either --again or --done")
    found = tools.rel_schema(load_settings(config))
    if file := again or done:
        found.settle(file, applied=bool(done))
        click.echo(f"{file} counts as applied" if done else f"{file} runs again at the next `beds schema apply`")
        return
    halves = found.half_applied()
    if as_json:
        print_json([asdict(each) for each in halves])
    for each in [] if as_json else halves:
        known = "an unknown number of" if each.statements is None else each.statements
        click.echo(f"{each.file}: {known} statements were executed, from {each.begun_at} on")
        click.echo(
            f"  the next one failed: {each.error}" if each.error else "  then the connection was lost, or still runs"
        )
        click.echo("  undo them, for example with `beds stack sql`, mend the file, and: "
                   f"beds schema repair --again {each.file}")  # fmt: skip
        click.echo(f"  or complete the rest by hand, and: beds schema repair --done {each.file}")
    if halves:
        raise SystemExit(EX_DIFFERS)
    if not as_json:
        click.echo("nothing to repair")


@schema.command()
@click.option(
    "--rel", multiple=True, metavar="NAME", help="A table, view, procedure or function of MariaDB; repeatable."
)
@click.option("--rec", multiple=True, metavar="COLLECTION", help="A collection of MongoDB; repeatable.")
@click.option("--prefix", default="", help="Prefix of the new objects' names.")
@click.option("--jobs", is_flag=True, help="Draft what only jobs call, too: range, load, by_keys, remove_many.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write into this folder, also what schema/ has files for.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@click.option("--check", "checks", is_flag=True, help="Show what changed in the databases since the draft.")
@click.option("--accept", "accepts", is_flag=True, help="Compare with the databases of now from here on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def draft(
    config: str | None,
    rel: tuple[str, ...],
    rec: tuple[str, ...],
    prefix: str,
    jobs: bool,
    out: Path | None,
    dry_run: bool,
    checks: bool,
    accepts: bool,
    as_json: bool,
) -> None:
    """Write objects and templates for tables, routines and collections that exist already.

    It reads the databases with the DBA's credentials, and writes what schema/ lacks: for a table its procedures and a
    template, for a collection its stored commands and a template, for an existing procedure, function or view a
    template. It applies nothing and overwrites nothing. Exit code 1 of --check: something changed.

    \b
    Examples:
      beds schema draft                          everything in both databases
      beds schema draft --rel film --rel actor --jobs
      beds schema draft --check                  later: new columns, other types, lost indexes
    """
    if checks and accepts:
        raise click.UsageError("give either --check or --accept")
    if (checks or accepts) and (rel or rec or prefix or jobs or out or dry_run):
        raise click.UsageError("--check and --accept are for all that was drafted, and take no other option but --json")
    if prefix and not re.fullmatch(r"[A-Za-z]\w{0,19}", prefix, re.ASCII):
        raise click.UsageError("--prefix takes up to 20 letters, digits and _, beginning with a letter")
    settings = load_settings(config)
    if accepts:
        click.echo(f"{drafting.accept(settings)} sources noted as they are now")
    elif checks:
        _show_drift(drafting.drift(settings), as_json)
    else:
        found = drafting.draft(settings, drafting.Choice(rel, rec, prefix, jobs, again=out is not None))
        files = 0 if dry_run else found.write(out or settings.schema_path, record=out is None)
        _show_draft(found, files, out or settings.schema_path, as_json)


def _show_draft(found: drafting.Draft, files: int, folder: Path, as_json: bool) -> None:
    if as_json:
        print_json({
            "drafted": [{"source": each.source, "template": each.template, "files": list(each.files),
                         "objects": each.objects, "remarks": list(each.remarks)} for each in found.drafted],
            "refused": found.refused, "present": found.present, "files": files,
        })  # fmt: skip
        return
    for each in found.drafted:
        made = f", {each.objects} objects" if each.objects else ""
        click.echo(f"{each.source}: template {each.template}{made}")
        for remark in each.remarks:
            click.echo(f"  {remark}")
    for source, reason in found.refused.items():
        click.echo(f"{source}: not drafted: {reason}")
    objects = sum(each.objects for each in found.drafted)
    summary = f"{len(found.drafted)} templates and {objects} objects drafted, {len(found.refused)} not"
    present = f"; schema/ has files for {len(found.present)} more" if found.present else ""
    click.echo(f"{summary}{present}; {files} files written below {folder}")
    if files and folder.name == "schema":
        click.echo("next: read them, then beds schema apply, and beds up or beds node restart")


def _show_drift(found: list[drafting.Drift], as_json: bool) -> None:
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        for each in found:
            click.echo(str(each))
        click.echo(f"{len(found)} differences" if found else "nothing changed since the draft")
        if found:
            click.echo(
                "beds schema draft --out FOLDER drafts anew, to compare; after your change: beds schema draft --accept"
            )
    if found:
        raise SystemExit(EX_DIFFERS)


def _report(problems: list[str], *, as_json: bool) -> None:
    if not problems:
        return
    if not as_json:
        for problem in problems:
            click.echo(problem, err=True)
    raise SystemExit(78)

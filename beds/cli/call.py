"""`beds call` and `beds submit`: one operation from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from beds.cli.formats import Csv, Ndjson
from beds.cli.output import print_json, print_reply
from beds.cli.values import convert, given_fields
from beds.client.client import Client
from beds.client.deadline import DEFAULT_TIMEOUT
from beds.config import load_settings
from beds.domain.event import Operation
from beds.domain.reply import Page, Reply
from beds.errors import MalformedEvent
from beds.templates.fields import FieldSpec
from beds.templates.template import EXPECTED_VERSION, Template
from beds.wire import codec

F = TypeVar("F", bound=Callable[..., Any])

EXIT_HELP = """\b
Exit codes:
  0   done
  1   refused because of existing data or a rule
  2   wrong usage
  64  unknown template, operation or fetch
  65  the data is wrong
  66  not found
  69  RabbitMQ or a database is unavailable
  70  a defect
  75  no reply by the deadline
  77  permission denied
  78  beds.toml, a template or the schema is wrong
"""


def _options(command: F) -> F:
    for decorate in reversed(
        (
            click.argument("what", metavar="TEMPLATE.OPERATION"),
            click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]..."),
            click.option("--using", default="", help="Which fetch of the template."),
            click.option("--limit", type=int, help="Records of a page."),
            click.option("--cursor", default="", help="Where the page before ended."),
            click.option("--data", metavar="JSON|@FILE|-", help="The record, list of records or arguments as JSON."),
            click.option("--expected-version", metavar="VERSION", help="Write only if the record has this version."),
            click.option("--timeout", type=float, default=DEFAULT_TIMEOUT, show_default=True, help="Seconds."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        )
    ):
        command = decorate(command)
    return command


@click.command(epilog=EXIT_HELP)
@_options
@click.option("--idempotency-key", help="Called again with the same key and data: the first call's reply.")
@click.option("--wire", is_flag=True, help="With --json: values with their types, as on the wire.")
@click.option("--ndjson", "form", flag_value="ndjson", help="Print each record of a fetch as JSON on one line.")
@click.option("--csv", "form", flag_value="csv", help="Print the records of a fetch as CSV with a header.")
@click.option("--all", "all_pages", is_flag=True, help="Fetch all pages, not only the first.")
@click.pass_obj
def call(
    config: str | None,
    /,
    what: str,
    fields: tuple[str, ...],
    as_json: bool,
    wire: bool,
    form: str | None,
    all_pages: bool,
    timeout: float,
    **options: Any,
) -> None:
    """Execute one operation and print the reply.

    JSON has times in ISO 8601, and decimals and UUIDs as text.

    \b
    Examples:
      beds call Airports.fetch_records --using by_faa faa=JFK
      beds call Flights.fetch_records --using by_route origin=JFK dest=BOS --limit 5 --json
      beds call Flights.fetch_records --using by_route origin=JFK dest=BOS --all --csv > flights.csv
      beds call Airlines.create_record carrier=ZZ name='Zed Air'
      beds call Notices.create_record --data '{"airport": "JFK", "title": "Snow", "status": "open"}'
      beds call Airlines.delete_record carrier=ZZ
      beds call Notices.update_record id=0190a0b0-0000-7000-8000-000000000000 severity=4 --expected-version 0
    """
    with Client(load_settings(config)) as client:
        operation, template, data = _arguments(client, what, fields, options.pop("data"))
        if (form or all_pages) and operation != Operation.FETCH:
            raise click.UsageError("--ndjson, --csv and --all are for fetch_records")
        if as_json and form:
            raise click.UsageError(f"give either --json or --{form}")
        version = _version(client.templates[template], options.pop("expected_version"))

        def one(cursor: str) -> Reply:
            return client.call(
                operation, template, data, expected_version=version, timeout=timeout, **{**options, "cursor": cursor}
            )

        if not form and not all_pages:
            print_reply(one(options["cursor"]), as_json=as_json, wire=wire)
            return
        found = _pages(one, options["cursor"], all_pages=all_pages)
        if form:
            writer = Csv() if form == "csv" else Ndjson()
            for page in found:
                writer.write(page.records)
        else:
            records = tuple(record for page in found for record in page)
            print_reply(Page(records), as_json=as_json, wire=wire)


def _pages(fetch: Callable[[str], Reply], cursor: str, *, all_pages: bool) -> Iterator[Page]:
    """One page, or all from a cursor on, with the number of records on a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.completed:,.0f} records"), TimeElapsedColumn(),
        console=console, transient=True, disable=not (all_pages and console.is_terminal),
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None)
        while True:
            page = fetch(cursor)
            assert isinstance(page, Page)
            yield page
            bar.advance(task, len(page))
            cursor = page.cursor
            if not cursor or not all_pages:
                if page.is_cut:
                    click.echo("there may be more: this fetch has no cursor, and its limit was reached", err=True)
                return


@click.command()
@_options
@click.option("--idempotency-key", help="Submitted again with the same key and data: the same ticket.")
@click.pass_obj
def submit(
    config: str | None, /, what: str, fields: tuple[str, ...], as_json: bool, timeout: float, **options: Any
) -> None:
    """Submit one operation and print its ticket as soon as RabbitMQ has confirmed the event.

    \b
    Example:
      beds submit Airlines.create_record carrier=ZZ name='Zed Air'
      beds ticket GUID --wait
    """
    with Client(load_settings(config)) as client:
        operation, template, data = _arguments(client, what, fields, options.pop("data"))
        version = _version(client.templates[template], options.pop("expected_version"))
        ticket = client.submit(operation, template, data, expected_version=version, timeout=timeout, **options)
    if as_json:
        print_json({"guid": ticket.guid, "event_id": ticket.event_id})
    else:
        click.echo(ticket.guid)


def _arguments(client: Client, what: str, fields: tuple[str, ...], data: str | None) -> tuple[str, str, Any]:
    name, dot, operation = what.partition(".")
    if not dot:
        raise click.UsageError(f"{what!r} is not of the form TEMPLATE.OPERATION, as in Airports.fetch_records")
    if data is not None and fields:
        raise click.UsageError("give either FIELD=VALUE or --data, not both")
    template = client.templates[name]
    if data is not None:
        return operation, name, _from_json(template, data)
    given = given_fields(fields, lambda field: _spec(template, field))
    if operation == Operation.DELETE:
        if set(given) - set(template.keys):
            wanted = " ".join(f"{key}=VALUE" for key in template.keys)
            raise click.UsageError(f"delete_record takes the key only: {wanted}")
        return operation, name, given if len(template.keys) > 1 else given.get(template.keys[0])
    return operation, name, given


def _version(template: Template, text: str | None) -> Any:
    """The expected version as a value of the version's field."""
    version = None if text is None else convert(EXPECTED_VERSION, text, template.expected_version)
    if text is not None and version is None:
        raise click.UsageError("--expected-version null would compare nothing: leave the option out")
    return version


def _spec(template: Template, name: str) -> FieldSpec | None:
    return template.fields.get(name) or next((f.args[name] for f in template.fetch.values() if name in f.args), None)


def _from_json(template: Template, data: str) -> Any:
    """JSON from the command line, a file or standard input. Text is converted to its field's type."""
    try:
        if data == "-":
            text = sys.stdin.read()
        elif data.startswith("@"):
            with click.open_file(data[1:], encoding="utf-8") as file:
                text = file.read()
        else:
            text = data
        value = codec.decode(json.loads(text))
    except OSError as error:
        raise click.UsageError(f"--data: {error}") from None
    except (ValueError, RecursionError, MalformedEvent) as error:
        raise click.UsageError(f"--data is not JSON: {error}") from None
    if isinstance(value, list):
        return [_convert_record(template, record) for record in value]
    return _convert_record(template, value)


def _convert_record(template: Template, record: Any) -> Any:
    if not isinstance(record, dict):
        return record
    return {
        name: convert(name, value, _spec(template, name)) if isinstance(value, str) else value
        for name, value in record.items()
    }

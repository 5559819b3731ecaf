"""`beds call` and `beds submit`: one operation from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import InvalidOperation
from typing import Any, TypeVar
from uuid import UUID

import click

from beds.cli.output import print_json, print_reply
from beds.client.client import Client
from beds.client.deadline import DEFAULT_TIMEOUT
from beds.config import load_settings
from beds.domain.event import Operation
from beds.domain.identity import ObjectId
from beds.errors import BedsError, MalformedEvent, WrongType
from beds.templates.fields import FieldSpec
from beds.templates.template import Template
from beds.wire import codec

F = TypeVar("F", bound=Callable[..., Any])


def _options(command: F) -> F:
    for decorate in reversed(
        (
            click.argument("what", metavar="TEMPLATE.OPERATION"),
            click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]..."),
            click.option("--using", default="", help="Which fetch of the template."),
            click.option("--limit", type=int, help="Records of a page."),
            click.option("--cursor", default="", help="Where the page before ended."),
            click.option("--data", metavar="JSON|@FILE|-", help="The record, list of records or arguments as JSON."),
            click.option("--timeout", type=float, default=DEFAULT_TIMEOUT, show_default=True, help="Seconds."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        )
    ):
        command = decorate(command)
    return command


@click.command(epilog="See docs/reference/cli.md for the exit codes.")
@_options
@click.pass_obj
def call(
    config: str | None, /, what: str, fields: tuple[str, ...], as_json: bool, timeout: float, **options: Any
) -> None:
    """Execute one operation and print the reply.

    \b
    Examples:
      beds call Airports.fetch_records --using by_faa faa=JFK
      beds call Flights.fetch_records --using by_route origin=JFK dest=BOS --limit 5 --json
      beds call Airlines.create_record carrier=ZZ name='Zed Air'
      beds call Notices.create_record --data '{"airport": "JFK", "title": "Snow", "status": "open"}'
      beds call Airlines.delete_record carrier=ZZ
    """
    with Client(load_settings(config)) as client:
        operation, template, data = _arguments(client, what, fields, options.pop("data"))
        reply = client.call(operation, template, data, timeout=timeout, **options)
    print_reply(reply, as_json=as_json)


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
        ticket = client.submit(operation, template, data, timeout=timeout, **options)
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
    given = {}
    for pair in fields:
        field, equals, text = pair.partition("=")
        if not equals:
            raise click.UsageError(f"{pair!r} is not of the form FIELD=VALUE")
        if field in given:
            raise click.UsageError(f"{field} is given twice")
        given[field] = _convert(field, text, _spec(template, field))
    if operation == Operation.DELETE:
        if set(given) - set(template.keys):
            wanted = " ".join(f"{key}=VALUE" for key in template.keys)
            raise click.UsageError(f"delete_record takes the key only: {wanted}")
        return operation, name, given if len(template.keys) > 1 else given.get(template.keys[0])
    return operation, name, given


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
        name: _convert(name, value, _spec(template, name)) if isinstance(value, str) else value
        for name, value in record.items()
    }


_READERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "integer": lambda text: int(_digits(text)),
    "number": lambda text: float(_digits(text)),
    "decimal": codec.parse_decimal,
    "boolean": lambda text: {"true": True, "false": False}[text.lower()],
    "datetime": lambda text: _zoned(datetime.fromisoformat(text)),
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "duration": codec.parse_duration,
    "uuid": UUID,
    "object_id": ObjectId,
    "bytes": lambda text: codec.decode({"$bytes": text}),
    "object": json.loads,
    "array": json.loads,
}


_EXAMPLES = {
    "datetime": "as in 2013-07-01T12:00Z",
    "date": "as in 2013-07-01",
    "time": "as in 05:15:00",
    "duration": "in seconds, as in PT3600.5S",
    "boolean": "true or false",
    "bytes": "Base64",
    "object": """JSON, as in '{"a": 1}'""",
    "array": "JSON, as in '[1, 2]'",
}


def _convert(name: str, text: str, spec: FieldSpec | None) -> Any:
    """Text from the command line as a value of the field's type. `null` is null unless the field is a string."""
    if spec is None:
        return text
    if text == "null" and spec.type != "string":
        return None
    try:
        return _READERS[spec.type](text)
    except (ValueError, KeyError, InvalidOperation, RecursionError, BedsError):
        shown = "the given text" if spec.sensitive else repr(text[:40])
        raise WrongType(
            f"field {name} takes {spec.type}, which {shown} is not",
            detail={"field": name, "expected": spec.type},
            hint=_EXAMPLES.get(spec.type),
        ) from None


def _digits(text: str) -> str:
    """The text of a number in JSON's form, unlike Python's 1_000. Raises ValueError."""
    if "_" in text or text != text.strip():
        raise ValueError("not a number")
    return text


def _zoned(value: datetime) -> datetime:
    """A command line's time without a zone is UTC."""
    return value if value.tzinfo else value.replace(tzinfo=UTC)

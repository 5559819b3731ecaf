"""Text from the command line as values of fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time
from decimal import InvalidOperation
from typing import Any
from uuid import UUID

import click

from beds.domain.identity import ObjectId
from beds.errors import BedsError, WrongType
from beds.templates.fields import FieldSpec
from beds.wire import codec


def given_fields(pairs: Iterable[str], spec_of: Callable[[str], FieldSpec | None]) -> dict[str, Any]:
    """The values of `FIELD=VALUE` arguments.

    Args:
        pairs: the arguments.
        spec_of: called with a field's name; its value is converted to that type, or stays text.

    Raises:
        UsageError: an argument has another form, or a field is given twice.
        WrongType: a text is no value of its field.
    """
    given: dict[str, Any] = {}
    for pair in pairs:
        field, equals, text = pair.partition("=")
        if not equals:
            raise click.UsageError(f"{pair!r} is not of the form FIELD=VALUE")
        if field in given:
            raise click.UsageError(f"{field} is given twice")
        given[field] = convert(field, text, spec_of(field))
    return given


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


def convert(name: str, text: str, spec: FieldSpec | None) -> Any:
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

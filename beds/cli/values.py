"""Text from the command line as values of fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from beds.templates.fields import FieldSpec
from beds.templates.text import value_of


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


def convert(name: str, text: str, spec: FieldSpec | None) -> Any:
    """Text from the command line as a value of the field's type. `null` is null unless the field is a string."""
    if spec is None:
        return text
    if text == "null" and spec.type != "string":
        return None
    return value_of(name, text, spec.type, sensitive=spec.sensitive)

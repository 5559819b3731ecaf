"""Text as values of fields, for the command line and for HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from typing import Any
from uuid import UUID

from beds.domain.identity import ObjectId
from beds.errors import BedsError, WrongType
from beds.wire import codec


def _digits(text: str) -> str:
    """The text of a number in JSON's form, unlike Python's 1_000. Raises ValueError."""
    if "_" in text or text != text.strip():
        raise ValueError("not a number")
    return text


def _zoned(value: datetime) -> datetime:
    """A time without a zone is UTC."""
    return value if value.tzinfo else value.replace(tzinfo=UTC)


_READERS: Mapping[str, Callable[[str], Any]] = {
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


_EXAMPLES: Mapping[str, str] = {
    "datetime": "as in 2013-07-01T12:00Z",
    "date": "as in 2013-07-01",
    "time": "as in 05:15:00",
    "duration": "in seconds, as in PT3600.5S",
    "boolean": "true or false",
    "bytes": "Base64",
    "object": """JSON, as in '{"a": 1}'""",
    "array": "JSON, as in '[1, 2]'",
}


def value_of(name: str, text: str, type_name: str, *, sensitive: bool = False) -> Any:
    """A text as a value of a field's type.

    Args:
        name: of the field, for the error.
        text: a number in JSON's notation; a time in ISO 8601, in UTC if it has no zone; bytes in Base64; …
        type_name: the field's type.
        sensitive: whether the error leaves out the text.

    Raises:
        WrongType: it is none.
    """
    try:
        return _READERS[type_name](text)
    except (ValueError, KeyError, ArithmeticError, RecursionError, BedsError):
        shown = "the given text" if sensitive else repr(text[:40])
        raise WrongType(
            f"field {name} takes {type_name}, which {shown} is not",
            detail={"field": name, "expected": type_name},
            hint=_EXAMPLES.get(type_name),
        ) from None

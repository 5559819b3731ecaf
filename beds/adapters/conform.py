"""Converts a column's value to its field's type without loss, or refuses it.

A result's type may differ from the template's: SUM of integers is a DECIMAL, a BIT is bytes, a document may hold
anything. Callers rely on the template's type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from beds.domain.identity import ObjectId
from beds.errors import InvalidPayload, StoreError
from beds.templates.fields import INTEGER_MAX, INTEGER_MIN, check_plain

Conversion = Callable[[Any], Any]


class Misfit(ValueError):
    """A stored value does not fit its field. The message continues the words "column x "."""


def conform(type_name: str, value: Any) -> Any:
    """Convert a value that is not null to the field type. Raises Misfit."""
    return _CONVERSIONS[type_name](value)


def store_error(column: str, problem: str) -> StoreError:
    """The error for a stored value that BEDS cannot return."""
    return StoreError(
        f"column {column} {problem}",
        detail={"field": column},
        hint="mend the stored value, or let the object convert or leave out that column",
    )


def _integer(value: Any) -> int:
    whole = value
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        whole = int(value)
    if not isinstance(whole, int) or isinstance(whole, bool):
        raise _holds(value, "an integer")
    if not INTEGER_MIN <= whole <= INTEGER_MAX:
        raise Misfit("holds an integer beyond 64 bits")
    return int(whole)


def _number(value: Any) -> float:
    if isinstance(value, (int, float, Decimal)):
        found = float(value)
        if not math.isfinite(found):
            raise Misfit("holds no finite number")
        if found == value or (isinstance(value, Decimal) and Decimal(repr(found)) == value):
            return found
        raise Misfit("holds a number with more digits than a double keeps; give it a field of type decimal")
    raise _holds(value, "a number")


def _decimal(value: Any) -> Decimal:
    if isinstance(value, float):
        value = Decimal(repr(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if not isinstance(value, Decimal):
        raise _holds(value, "a decimal")
    if not value.is_finite():
        raise Misfit("holds no finite number")
    return value


def _boolean(value: Any) -> bool:
    if isinstance(value, (bool, int, Decimal)) and value in (0, 1):
        return bool(value)
    raise _holds(value, "a boolean (0 or 1)")


def _string(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Misfit("holds text that is not UTF-8") from None
    return _only(str, "text")(value)  # type: ignore[no-any-return]


def _time(value: Any) -> time:
    if isinstance(value, timedelta):
        if not timedelta(0) <= value < timedelta(days=1):
            raise Misfit("holds a TIME that is no time of day; give it a field of type duration")
        return (datetime.min + value).time()
    return _only(time, "a time of day")(value)  # type: ignore[no-any-return]


def _date(value: Any) -> date:
    if isinstance(value, datetime) or not isinstance(value, date):
        raise _holds(value, "a date")
    return value


def _uuid(value: Any) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(bytes=value) if isinstance(value, bytes) else UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise Misfit("holds no UUID") from None


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else _only(bytes, "bytes")(value)


def _object_id(value: Any) -> ObjectId:
    if isinstance(value, ObjectId):
        return value
    try:
        return ObjectId(value)
    except ValueError:
        raise Misfit("holds no ObjectId") from None


def _structure(kind: type, name: str) -> Conversion:
    def convert(value: Any) -> Any:
        if isinstance(value, (str, bytes)):
            value = _from_json(value)
            if value is None:
                return None  # JSON's own null, as JSON_TABLE writes it
        if not isinstance(value, kind):
            raise _holds(value, name)
        return value

    return convert


def _from_json(text: str | bytes) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_exact, object_pairs_hook=_once_each)
        check_plain("value", value)
    except Misfit:
        raise
    except InvalidPayload as error:
        raise Misfit(f"holds JSON that cannot travel: {error.message}") from None
    except (ValueError, RecursionError):
        raise Misfit("holds text that is not JSON") from None
    return value


def _no_number(_word: str) -> Any:
    raise ValueError


def _exact(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or Decimal(text) != Decimal(repr(value)):
        raise Misfit("holds a JSON number with more digits than a number keeps; keep it as text in the JSON")
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Misfit("holds a JSON object with one name twice")
    return found


def _only(kind: type, name: str) -> Conversion:
    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise _holds(value, name)
        return value

    return convert


def _holds(value: Any, wanted: str) -> Misfit:
    return Misfit(f"holds a {type(value).__name__}; its field wants {wanted}")


_CONVERSIONS: Mapping[str, Conversion] = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "decimal": _decimal,
    "boolean": _boolean,
    "datetime": _only(datetime, "an instant"),
    "date": _date,
    "time": _time,
    "duration": _only(timedelta, "a duration"),
    "uuid": _uuid,
    "bytes": _bytes,
    "object_id": _object_id,
    "object": _structure(dict, "an object"),
    "array": _structure(list, "an array"),
}

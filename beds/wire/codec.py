"""The codec: Python values to plain JSON and back, without loss.

A type that JSON lacks becomes an object with one key that starts with `$`:

    {"$datetime": "2013-01-01T05:00:00+00:00"}   {"$decimal": "1.10"}   {"$bytes": "aGk="}
    {"$date": "2013-01-01"}   {"$time": "05:15:00"}   {"$duration": "-PT3600.5S"}   {"$uuid": "…"}   {"$oid": "…"}

A caller's object with a key that starts with `$` or `__` is written as `{"$pairs": [[key, value], …]}`. Data is
therefore never read as a tag, neither one of these nor one of kombu's (`{"__type__": …, "__value__": …}`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from beds.domain.identity import ObjectId
from beds.errors import BodyTooLarge, InvalidCursor, InvalidPayload, MalformedEvent, OutOfRange, WrongType

_PLAIN = (str, int, float, bool, type(None))
_PLAIN_KINDS = frozenset(_PLAIN)


MAX_VALUES = 100_000
"""Values in one body. A slot needs more than half a second to parse a megabyte of tiny values."""


def _aware(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError("a datetime without a zone")
    return value


_DURATION = re.compile(r"(-?)PT(\d{1,14})(?:\.(\d{1,6}))?S")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|-?NaN|-?Infinity")


def duration_text(value: timedelta) -> str:
    """ISO 8601 in seconds: `-PT3600.5S`."""
    micros = value // timedelta(microseconds=1)
    seconds, rest = divmod(abs(micros), 1_000_000)
    fraction = f".{rest:06}".rstrip("0") if rest else ""
    return f"{'-' if micros < 0 else ''}PT{seconds}{fraction}S"


def parse_duration(text: str) -> timedelta:
    """The inverse of `duration_text`. Raises ValueError, OverflowError."""
    found = _DURATION.fullmatch(text)
    if not found:
        raise ValueError("not a duration in seconds")
    sign, seconds, fraction = found.groups()
    value = timedelta(seconds=int(seconds), microseconds=int((fraction or "").ljust(6, "0")))
    return -value if sign else value


def parse_decimal(text: str) -> Decimal:
    """Parse a decimal in JSON's notation: no underscores, no spaces. Raises ValueError."""
    if not _NUMBER.fullmatch(text):
        raise ValueError("not a decimal number")
    return Decimal(text)


_ENCODERS: tuple[tuple[type, str, Callable[[Any], str]], ...] = (
    (datetime, "$datetime", datetime.isoformat),  # before date: a datetime is a date, too
    (date, "$date", date.isoformat),
    (time, "$time", time.isoformat),
    (timedelta, "$duration", duration_text),
    (Decimal, "$decimal", str),
    (UUID, "$uuid", str),
    (ObjectId, "$oid", str),
    (bytes, "$bytes", lambda value: base64.b64encode(value).decode("ascii")),
)
_DECODERS: Mapping[str, Callable[[str], Any]] = {
    "$datetime": _aware,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$duration": parse_duration,
    "$decimal": parse_decimal,
    "$uuid": UUID,
    "$oid": ObjectId,
    "$bytes": lambda text: base64.b64decode(text, validate=True),
}


def encode(value: Any) -> Any:
    """Convert `value` to plain JSON values.

    Raises:
        WrongType: a type that the codec does not support.
    """
    kind = type(value)
    if kind in _PLAIN_KINDS:
        return value
    if kind is dict or isinstance(value, Mapping):
        is_data = False
        for key in value:
            if not isinstance(key, str):
                raise WrongType(
                    f"a key of type {type(key).__name__} cannot be sent", detail={"got": type(key).__name__}
                )
            is_data = is_data or key.startswith(("$", "__"))
        if is_data:
            return {"$pairs": [[key, encode(inner)] for key, inner in value.items()]}
        return {key: inner if type(inner) in _PLAIN_KINDS else encode(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(inner) for inner in value]
    for cls, tag, encoder in _ENCODERS:
        if isinstance(value, cls):
            return {tag: encoder(value)}
    if isinstance(value, _PLAIN):  # a subclass, such as a StrEnum
        return value
    raise WrongType(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be sent", detail={"got": kind.__name__}
    )


def plain(value: Any) -> Any:
    """Convert `value` to JSON values without tags, for readers that know the types.

    Times are ISO 8601, durations too; decimals and UUIDs are text, bytes are Base64. `decode` cannot reverse this.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    encoder = next((encoder for cls, _, encoder in _ENCODERS if isinstance(value, cls)), None)
    return encoder(value) if encoder else value


def decode(value: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        MalformedEvent: an unknown tag, a tag whose text cannot be parsed, or nesting beyond Python's recursion limit.
    """
    try:
        return _decode(value)
    except RecursionError:
        raise MalformedEvent("the body is nested too deep") from None


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        tag = next(iter(value)) if len(value) == 1 else ""
        if tag == "$pairs":
            return _decode_pairs(value[tag])
        if tag in _DECODERS:
            return _decode_tag(tag, value[tag])
        for key in value:
            if key.startswith("$"):
                raise MalformedEvent(f"unknown type tag {key!r}", hint="write objects with such keys as $pairs")
        return {key: _decode(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_decode(inner) for inner in value]
    return value


def _decode_pairs(pairs: Any) -> dict[str, Any]:
    if not isinstance(pairs, list):
        raise MalformedEvent("$pairs takes a list of [key, value]")
    found = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise MalformedEvent("$pairs takes a list of [key, value]")
        found[pair[0]] = _decode(pair[1])
    return found


def _decode_tag(tag: str, text: Any) -> Any:
    try:
        if not isinstance(text, str):
            raise TypeError(type(text).__name__)
        return _DECODERS[tag](text)
    except (ValueError, TypeError, ArithmeticError, InvalidOperation, binascii.Error):
        raise MalformedEvent(f"a {tag} value that cannot be read") from None


_COMPACT = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
"""Kept, because `json.dumps` makes one for each call."""


def dumps(value: Any) -> bytes:
    """`value` as UTF-8 JSON text.

    Raises:
        WrongType: a type that the codec does not support, or a lone surrogate.
        OutOfRange: NaN and infinities, which JSON does not have.
        InvalidPayload: nesting beyond Python's recursion limit.
    """
    try:
        return _COMPACT.encode(encode(value)).encode()
    except RecursionError:
        raise InvalidPayload("a value is nested too deep", hint="flatten it") from None
    except UnicodeEncodeError:
        raise WrongType("a lone surrogate is not text", hint="send it as bytes") from None
    except ValueError:
        raise OutOfRange("NaN and infinities cannot be sent", hint="send null instead") from None


def dumps_plain(value: Any) -> bytes:
    """`value`, which is plain JSON already, as UTF-8 text; a lone surrogate becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def loads(body: bytes | str) -> Any:
    """Raises MalformedEvent."""
    try:
        return decode(json.loads(body))
    except (ValueError, RecursionError):
        raise MalformedEvent("the body is not JSON") from None


def digest(value: Any) -> str:
    """SHA-256 of `value` in hexadecimal; independent of the order of keys and of the time zones of datetimes."""
    return hashlib.sha256(_CANONICAL.encode(encode(_in_utc(value))).encode()).hexdigest()


def _in_utc(value: Any) -> Any:
    """The same data with its datetimes in UTC, so that equal instants have equal text."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, datetime) and value.utcoffset() is not None:
        try:
            return value.astimezone(UTC)
        except OverflowError:
            return value
    if isinstance(value, Mapping):
        return {key: _in_utc(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_utc(inner) for inner in value]
    return value


def check_values(body: bytes, what: str) -> None:
    """Raises BodyTooLarge: a JSON text has more than MAX_VALUES values, so its worker would reject it."""
    if sum(map(body.count, (b",", b"[", b"{"))) < MAX_VALUES:
        return  # an upper bound without parsing; true for nearly all bodies
    level, count = [json.loads(body)], 0
    while level:
        inside = [i for outer in level for i in (outer.values() if isinstance(outer, dict) else outer)]
        count += len(inside)
        level = [i for i in inside if isinstance(i, (dict, list))]
    if count > MAX_VALUES:
        raise BodyTooLarge(
            f"{what} has {count:,} values, {MAX_VALUES:,} are allowed",
            detail={"field": "payload", "values": count, "max_values": MAX_VALUES},
            hint="send fewer records at once",
        )


def check_size(body: bytes, limit: int, what: str) -> None:
    """Raises BodyTooLarge: `body` has more than `limit` bytes."""
    if len(body) > limit:
        raise BodyTooLarge(
            f"{what} has {len(body):,} bytes, {limit:,} are allowed",
            detail={"field": "payload", "bytes": len(body), "max_body_bytes": limit},
        )


def pack_cursor(parts: list[Any]) -> str:
    return base64.urlsafe_b64encode(dumps(parts)).decode("ascii").rstrip("=")


def unpack_cursor(cursor: str) -> Any:
    """Raises InvalidCursor."""
    try:
        return loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (MalformedEvent, ValueError, binascii.Error):
        raise InvalidCursor("this is not a cursor of a page", detail={"field": "cursor"}) from None

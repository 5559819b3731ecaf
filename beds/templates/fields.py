"""The types and limits of template fields. Values are checked before anything is published or written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from beds.domain.clock import now, to_millisecond
from beds.domain.identity import ObjectId, uuid7
from beds.errors import InvalidPayload, MissingField, OutOfRange, TooLong, WrongType

FieldType = Literal[
    "string", "integer", "number", "decimal", "boolean", "datetime", "date", "time", "duration",
    "uuid", "bytes", "object_id", "object", "array",
]  # fmt: skip
FIELD_TYPES: tuple[str, ...] = get_args(FieldType)

MAX_DEPTH = 64
"""Levels of nesting in a value. MongoDB allows 100, and JSON parsers have limits of their own."""
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**64 - 1
"""From the smallest signed to the largest unsigned integer of 64 bits; a store may allow less."""

_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "decimal": (Decimal, int),
    "boolean": (bool,),
    "datetime": (datetime,),
    "date": (date,),
    "time": (time,),
    "duration": (timedelta,),
    "uuid": (UUID,),
    "bytes": (bytes,),
    "object_id": (ObjectId,),
    "object": (dict,),
    "array": (list, tuple),
}
_GENERATORS: Mapping[str, Callable[[], Any]] = {
    "uuid7": uuid7,
    "object_id": ObjectId.generate,
    "now": now,
    "zero": int,
}


class FieldSpec(BaseModel):
    """One `[fields.<name>]` table of a template, or one argument of a fetch.

    Raises (from `check`):
        MissingField, WrongType, TooLong, OutOfRange: the value does not fit; names the field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: FieldType
    required: bool = False
    """A create must include the field, and its value may not be null."""
    max_length: Annotated[int | None, Field(ge=1)] = None
    """Characters of a string, bytes of a bytes value, items of an array."""
    min: int | Decimal | None = None
    max: int | Decimal | None = None
    values: tuple[str, ...] | None = None
    """The only strings allowed."""
    digits: Annotated[int | None, Field(ge=1, le=65)] = None
    """Significant digits of a decimal."""
    scale: Annotated[int | None, Field(ge=0, le=30)] = None
    """Digits after the point of a decimal."""
    precision: Literal["microsecond", "millisecond"] = "microsecond"
    """`millisecond` cuts a datetime to what MongoDB can store; otherwise MongoDB's adapter refuses finer values."""
    generate: Literal["uuid7", "object_id", "now", "zero"] | None = None
    """The client generates the value when a create omits the field."""
    sensitive: bool = False
    """The field's values appear in no log, audit, lineage or error."""
    description: str = ""

    @field_validator("min", "max", mode="before")
    @classmethod
    def _as_written(cls, limit: Any) -> Any:
        """A float limit as the decimal that its text shows: the float 99.99 is slightly less than 99.99."""
        exact = Decimal(repr(limit)) if isinstance(limit, float) else limit
        if isinstance(exact, Decimal) and not exact.is_finite():
            raise ValueError("a limit is no finite number")
        return exact

    @model_validator(mode="after")
    def _generator_fits(self) -> FieldSpec:
        makes = {"uuid7": "uuid", "object_id": "object_id", "now": "datetime", "zero": "integer"}
        if self.generate and makes[self.generate] != self.type:
            made = makes[self.generate]
            raise ValueError(f"generate = {self.generate!r} makes values of type {made}, the type is {self.type}")
        if self.generate == "zero" and not (self.min or 0) <= 0 <= (self.max or 0):
            raise ValueError("generate = 'zero' makes a value that lies outside min and max")
        return self

    @model_validator(mode="after")
    def _limits_make_sense(self) -> FieldSpec:
        for name in ("min", "max"):
            limit = getattr(self, name)
            if limit is not None and self.type not in ("integer", "number", "decimal"):
                raise ValueError(f"{name} is for numbers, the type is {self.type}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")
        if self.values is not None and not self.values:
            raise ValueError("values is empty: nothing could be stored")
        if self.scale is not None and self.digits is not None and self.scale > self.digits:
            raise ValueError("scale is above digits")
        return self

    @cached_property
    def _is_open_text(self) -> bool:
        return self.type == "string" and self.values is None

    @cached_property
    def _is_open_integer(self) -> bool:
        return self.type == "integer" and self.min is None and self.max is None

    def make(self) -> Any:
        """A new value from the generator."""
        assert self.generate is not None
        return _GENERATORS[self.generate]()

    def check(self, name: str, value: Any, *, nullable: bool = True) -> Any:
        """Check the value, and return it as it is sent: a datetime in UTC (cut to `precision`), a tuple as a list."""
        if value is None:
            if self.required or not nullable:
                raise MissingField(f"field {name} is required and may not be null", detail=_where(name))
            return None
        if type(value) is str and self._is_open_text and len(value) <= (self.max_length or len(value)):
            if value.isascii():
                return value  # none of the following checks could fail
        elif type(value) is int and self._is_open_integer and INTEGER_MIN <= value <= INTEGER_MAX:
            return value
        elif type(value) is datetime and self.type == "datetime" and value.tzinfo is UTC:
            return to_millisecond(value) if self.precision == "millisecond" else value
        self._check_type(name, value)
        if isinstance(value, (str, bytes, list, tuple)) and self.max_length and len(value) > self.max_length:
            raise TooLong(
                f"field {name} has {len(value)} {_unit(value)}, {self.max_length} are allowed",
                detail=_where(name, length=len(value), max_length=self.max_length),
                hint="shorten the value",
            )
        check_plain(name, value)
        if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
            self._check_number(name, value)
        if isinstance(value, str) and self.values and value not in self.values:
            raise OutOfRange(
                f"field {name} must be one of {', '.join(self.values)}", detail=_where(name, allowed=list(self.values))
            )
        if isinstance(value, datetime):
            try:
                instant = value.astimezone(UTC)
            except OverflowError:
                raise OutOfRange(f"field {name} lies outside the years 1 to 9999 in UTC", detail=_where(name)) from None
            return to_millisecond(instant) if self.precision == "millisecond" else instant
        return list(value) if isinstance(value, tuple) else value

    def keeps_all(self, values: Sequence[Any]) -> bool:
        """True if `check` returns each of many values as it is. False leaves that open: then `check` has to decide.

        It saves the calls for whole columns of a bulk write, whose values are mostly of one type and without limits.
        """
        kinds = set(map(type, values))
        if type(None) in kinds:
            if self.required:
                return False
            values = [value for value in values if value is not None]
            kinds.remove(type(None))
        if not values:
            return True
        if kinds == {str} and self._is_open_text:
            return all(map(str.isascii, values)) and (not self.max_length or max(map(len, values)) <= self.max_length)
        if kinds == {int} and self.type == "integer":
            least = INTEGER_MIN if self.min is None else max(self.min, INTEGER_MIN)
            most = INTEGER_MAX if self.max is None else min(self.max, INTEGER_MAX)
            return bool(min(values) >= least and max(values) <= most)
        if kinds == {datetime} and self.type == "datetime":
            step = 1000 if self.precision == "millisecond" else 1
            return all(value.tzinfo is UTC and value.microsecond % step == 0 for value in values)
        return kinds == {bool} and self.type == "boolean"

    def _check_type(self, name: str, value: Any) -> None:
        if not fits(self.type, value):
            allowed = _PYTHON_TYPES[self.type]
            raise WrongType(
                f"field {name} takes {self.type}, not {type(value).__name__}",
                detail=_where(name, expected=self.type, got=type(value).__name__),
                hint=f"send {' or '.join(t.__name__ for t in allowed)}",
            )

    def _check_number(self, name: str, value: int | float | Decimal) -> None:
        # A float is compared with the limit as a float, other numbers with the exact limit.
        exact = float if isinstance(value, float) else Decimal
        if self.min is not None and value < exact(self.min):
            raise OutOfRange(f"field {name} must be at least {self.min}", detail=_where(name, min=_plain(self.min)))
        if self.max is not None and value > exact(self.max):
            raise OutOfRange(f"field {name} must be at most {self.max}", detail=_where(name, max=_plain(self.max)))
        if self.type == "decimal":
            check_decimal(name, Decimal(value), self.digits, self.scale)


def fits(type_name: str, value: Any) -> bool:
    """Whether a value has a field's type; its limits are not checked."""
    if isinstance(value, bool):
        return type_name == "boolean"  # bool is a subclass of int
    if isinstance(value, datetime):
        return type_name == "datetime"
    return isinstance(value, _PYTHON_TYPES[type_name])


def check_decimal(name: str, value: Decimal, digits: int | None, scale: int | None) -> None:
    """Refuse a decimal that a store would round.

    Raises:
        OutOfRange: it is not finite, or has more digits than `digits`, or more than `scale` after the point.
    """
    if not value.is_finite():
        raise OutOfRange(f"field {name} must be a finite number", detail=_where(name))
    _, digit_tuple, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # only non-finite values have a letter as exponent
    after_point = max(0, -exponent)
    before_point = max(0, len(digit_tuple) + exponent) if value else 0
    if scale is not None and after_point > scale:
        raise OutOfRange(
            f"field {name} has {after_point} digits after the point, {scale} are kept",
            detail=_where(name, scale=scale),
            hint="round the value yourself",
        )
    if digits is not None and before_point + (scale or 0) > digits:
        raise OutOfRange(f"field {name} has more digits than the {digits} allowed", detail=_where(name, digits=digits))


def check_plain(path: str, value: Any, depth: int = 0) -> None:
    """Refuse values that cannot be encoded without loss, at any depth of `value`.

    Raises:
        InvalidPayload: NaN, an infinity, a naive datetime, nanoseconds, an integer beyond 64 bits, a lone surrogate,
            a key that is not text, nesting deeper than `MAX_DEPTH`, or a type that the codec does not support.
    """
    if depth > MAX_DEPTH:
        raise InvalidPayload(
            f"field {path.split('.')[0]} is nested deeper than {MAX_DEPTH} levels",
            detail=_where(path.split(".")[0], max_depth=MAX_DEPTH),
            hint="flatten the value, or store it as a string",
        )
    if isinstance(value, str):
        _check_text(path, value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise OutOfRange(f"field {path} must be a finite number", detail=_where(path), hint="send null instead")
    elif isinstance(value, int) and not isinstance(value, bool):
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise OutOfRange(
                f"field {path} does not fit 64 bits", detail=_where(path), hint="use a decimal field for larger numbers"
            )
    elif isinstance(value, Decimal):
        check_decimal(path, value, None, None)
    elif isinstance(value, datetime):
        if getattr(value, "nanosecond", 0):
            raise OutOfRange(
                f"field {path} has nanoseconds; microseconds are kept",
                detail=_where(path),
                hint="round it yourself: timestamp.floor('us')",
            )
        if value.tzinfo is None or value.utcoffset() is None:
            raise WrongType(
                f"field {path} is a datetime without a zone", detail=_where(path), hint="add one: .replace(tzinfo=UTC)"
            )
        try:
            value.astimezone(UTC)
        except OverflowError:
            raise OutOfRange(f"field {path} lies outside the years 1 to 9999 in UTC", detail=_where(path)) from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise WrongType(f"field {path} has a key that is not text: {type(key).__name__}", detail=_where(path))
            _check_text(path, key)
            check_plain(f"{path}.{key}", inner, depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            check_plain(f"{path}.{index}", inner, depth + 1)
    elif value is not None and not isinstance(value, (bool, date, time, timedelta, UUID, bytes, ObjectId)):
        raise WrongType(
            f"field {path} is of type {type(value).__module__}.{type(value).__name__}, which BEDS does not carry",
            detail=_where(path, got=type(value).__name__),
            hint="convert it to one of: " + ", ".join(FIELD_TYPES),
        )


def _check_text(path: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise WrongType(
            f"field {path} holds a lone surrogate, which is not text", detail=_where(path), hint="send it as bytes"
        ) from None


def _plain(limit: int | Decimal) -> int | str:
    return limit if isinstance(limit, int) else str(limit)


def _where(name: str, **more: Any) -> dict[str, Any]:
    return {"field": name, **more}


def _unit(value: str | bytes | list[Any] | tuple[Any, ...]) -> str:
    if isinstance(value, str):
        return "characters"
    return "bytes" if isinstance(value, bytes) else "items"

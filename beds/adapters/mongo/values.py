"""BEDS values to BSON and back."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal, localcontext
from typing import Any
from uuid import UUID

import bson
from bson.dbref import DBRef
from bson.decimal128 import Decimal128, create_decimal128_context

from beds.domain.identity import ObjectId
from beds.errors import OutOfRange, StoreError, WrongType
from beds.templates.fields import FieldSpec

_DECIMAL128 = create_decimal128_context()


def to_bson(path: str, value: Any) -> Any:
    """`value` as pymongo takes it, unchanged in meaning.

    Raises:
        WrongType, OutOfRange: BSON has no such value; names the field.
    """
    if isinstance(value, (int, str)) or value is None:
        return value
    if isinstance(value, dict):
        for key in value:
            if "\x00" in key:
                raise WrongType(f"field {path} has a key with a NUL byte", detail={"field": path})
        return {key: to_bson(f"{path}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_bson(f"{path}.{index}", inner) for index, inner in enumerate(value)]
    if isinstance(value, ObjectId):
        return bson.ObjectId(value.hex)
    if isinstance(value, Decimal):
        return _to_decimal128(path, value)
    if isinstance(value, datetime):
        if value.microsecond % 1000:
            raise OutOfRange(
                f"field {path} has microseconds, MongoDB keeps milliseconds",
                detail={"field": path},
                hint='cut the value yourself, or set precision = "millisecond" for the field in the template',
            )
        return value.astimezone(UTC)
    if isinstance(value, (date, time)):
        raise WrongType(
            f"field {path} is a {type(value).__name__}, which BSON does not have",
            detail={"field": path},
            hint="send a datetime or text",
        )
    return value


def document_to_bson(
    fields: dict[str, FieldSpec], document: dict[str, Any], key: str, where: str = ""
) -> dict[str, Any]:
    """A record as a document: its key becomes `_id`, and a whole `number` becomes a double."""
    found = {}
    for name, value in document.items():
        if not (value is None or type(value) is str):  # most are, and bulk loads and log records have many
            spec = fields.get(name)
            if spec and spec.type == "number" and isinstance(value, int):
                value = float(value)
            value = to_bson(where + name, value)
        found["_id" if name == key else name] = value
    return found


def from_bson(value: Any) -> Any:
    """A value of a result as BEDS carries it.

    Raises:
        StoreError: a BSON type that BEDS does not carry.
    """
    if isinstance(value, dict):
        return {name: from_bson(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [from_bson(inner) for inner in value]
    if isinstance(value, bson.ObjectId):
        return ObjectId(str(value))
    if isinstance(value, Decimal128):
        return value.to_decimal()
    if isinstance(value, DBRef):
        return from_bson(dict(value.as_doc()))  # a caller's object with $ref and $id; the driver thinks it means one
    if isinstance(value, bson.Int64):
        return int(value)
    if value is None or isinstance(value, (str, bool, int, float, datetime, bytes, UUID)):
        return value
    raise StoreError(
        f"the object returned a {type(value).__name__}, which BEDS does not carry",
        hint="let the stored command convert or leave out that field",
    )


def document_from_bson(document: dict[str, Any], key: str) -> dict[str, Any]:
    """A document as a record: `_id` becomes the key."""
    return {(key if name == "_id" else name): from_bson(value) for name, value in document.items()}


def _to_decimal128(path: str, value: Decimal) -> Decimal128:
    with localcontext(_DECIMAL128) as context:
        context.clear_flags()
        kept = context.create_decimal(value)
        if kept != value or kept.as_tuple() != value.as_tuple():
            raise OutOfRange(
                f"field {path} has more digits than the 34 MongoDB keeps",
                detail={"field": path},
                hint="round it yourself, or send it as text",
            )
    return Decimal128(value)

"""BEDS values to BSON and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, localcontext
from typing import Any
from uuid import UUID

import bson
from bson.dbref import DBRef
from bson.decimal128 import Decimal128, create_decimal128_context

from beds.adapters.conform import Misfit, conform, store_error
from beds.domain.identity import ObjectId
from beds.errors import OutOfRange, TooLong, WrongType
from beds.templates.fields import FieldSpec

_DECIMAL128 = create_decimal128_context()
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

_UNCHANGED: Mapping[str, type] = {"string": str, "integer": int, "boolean": bool, "uuid": UUID}
"""The types whose values are the driver's and BEDS's alike, by field type."""

Shape = Mapping[str, Any]
"""The BSON types of a validator's `$jsonSchema`, or a part of it."""


def to_bson(path: str, value: Any, wanted: Any = None, shape: Shape | None = None) -> Any:
    """`value` as pymongo takes it, unchanged in meaning.

    Args:
        path: for messages.
        value: as it came over the wire.
        wanted: the declared BSON type or types of its place; BSON has several types for a whole number.
        shape: the declared types inside an object or array.

    Raises:
        WrongType, OutOfRange: BSON has no such value; names the field.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return _integer(path, value, wanted)
    if isinstance(value, Mapping):
        for key in value:
            if "\x00" in key:
                raise WrongType(f"field {path} has a key with a NUL byte", detail={"field": path})
        inside = (shape or {}).get("properties") or {}
        return {
            key: to_bson(f"{path}.{key}", inner, (inside.get(key) or {}).get("bsonType"), inside.get(key))
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = (shape or {}).get("items")
        each = items if isinstance(items, Mapping) else {}
        return [to_bson(f"{path}.{index}", inner, each.get("bsonType"), each) for index, inner in enumerate(value)]
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
    if isinstance(value, (date, time, timedelta)):
        raise WrongType(
            f"field {path} is a {type(value).__name__}, which BSON does not have",
            detail={"field": path},
            hint="send a datetime, a number of seconds, or text",
        )
    return value


def documents_to_bson(
    fields: Mapping[str, FieldSpec], records: Sequence[Mapping[str, Any]], keys: tuple[str, ...], shape: Shape
) -> list[dict[str, Any]]:
    """`document_to_bson` of each record of a bulk write; by columns if all have the same fields in one order."""
    plain = plain_integers(fields, shape)
    names = list(records[0]) if records else []
    if len(keys) > 1 or any(list(record) != names for record in records):
        return [
            document_to_bson(fields, record, keys, shape, f"payloads[{i}].", plain) for i, record in enumerate(records)
        ]
    inside = shape.get("properties") or {}
    columns = []
    stored = ["_id" if name in keys else name for name in names]
    for name, kept in zip(names, stored, strict=True):
        column = [record[name] for record in records]
        kinds = set(map(type, column)) - {type(None)}
        if kinds - {str} and not (kinds == {int} and name in plain and _fits_int32(column)):
            spec, declared = fields.get(name), inside.get(kept) or {}
            column = [
                field_to_bson(spec, f"payloads[{i}].{name}", value, declared.get("bsonType"), declared)
                for i, value in enumerate(column)
            ]
        columns.append(column)
    return [dict(zip(stored, values, strict=True)) for values in zip(*columns, strict=True)]


def _fits_int32(column: Sequence[int | None]) -> bool:
    return all(value is None or -INT32_MAX <= value <= INT32_MAX for value in column)


def plain_integers(fields: Mapping[str, FieldSpec], shape: Shape) -> frozenset[str]:
    """The integer fields whose values the driver writes as they are, for `document_to_bson`."""
    inside = shape.get("properties") or {}
    found = set()
    for name, spec in fields.items():
        declared = (inside.get(name) or {}).get("bsonType")
        names = {declared} if isinstance(declared, str) else set(declared or ())
        if spec.type == "integer" and "int" in names:
            found.add(name)
    return frozenset(found)


def document_to_bson(
    fields: Mapping[str, FieldSpec],
    document: Mapping[str, Any],
    keys: tuple[str, ...],
    shape: Shape,
    where: str = "",
    plain: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """A record as a document. Its key becomes `_id`; a composite key becomes an object with the parts in order.

    Args:
        fields, keys: the template's.
        document: the record.
        shape: the declared types of the collection.
        where: the document's place, for messages.
        plain: `plain_integers`, if many documents are written.
    """
    inside = shape.get("properties") or {}
    found: dict[str, Any] = {}
    composite = len(keys) > 1
    if composite:
        inside = {**inside, **((inside.get("_id") or {}).get("properties") or {})}
    for name, value in document.items():
        stored = "_id" if name in keys and not composite else name
        kind = type(value)
        # Saves calls for most values of bulk loads and log records.
        is_plain = value is None or kind is str or (kind is int and name in plain and -INT32_MAX <= value <= INT32_MAX)
        if not is_plain:
            declared = inside.get(stored) or {}
            value = field_to_bson(fields.get(name), where + name, value, declared.get("bsonType"), declared)
        found[stored] = value
    if composite and all(name in found for name in keys):
        found = {"_id": {name: found.pop(name) for name in keys}, **found}
    return found


def field_to_bson(spec: FieldSpec | None, path: str, value: Any, wanted: Any, shape: Shape | None) -> Any:
    """Convert a value to its field's type: a whole `number` becomes a double, a whole `decimal` a Decimal128."""
    if spec is not None and isinstance(value, int) and not isinstance(value, bool):
        if spec.type == "number":
            value = _exact_double(path, value)
        elif spec.type == "decimal":
            value = Decimal(value)
    return to_bson(path, value, wanted, shape)


def check_bson(field: str, value: Any, *, declared: str, max_length: int | None, most: Any) -> None:
    """Refuse a value that a parameter of a stored command does not take.

    Raises:
        TooLong, OutOfRange: names the field.
    """
    detail = {"field": field, "declared": declared}
    if isinstance(value, (str, bytes)) and max_length is not None and len(value) > max_length:
        raise TooLong(
            f"field {field} has {len(value)} characters, the store takes {max_length}",
            detail=detail | {"max_length": max_length},
        )
    if isinstance(most, Decimal128):
        most = most.to_decimal()
    if isinstance(value, (int, float, Decimal)) and most is not None:
        least = -most - 1 if most == INT32_MAX else None
        if value > most or (least is not None and value < least):
            raise OutOfRange(f"field {field} is beyond what {declared} holds", detail=detail | {"max": most})


def from_bson(path: str, value: Any) -> Any:
    """Convert a BSON value of a result to a value of BEDS.

    Raises:
        StoreError: BEDS has no such value; names the column.
    """
    if value is None or type(value) is str or isinstance(value, (bool, UUID)):
        return value
    if isinstance(value, bson.Int64):
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise store_error(path, "holds no finite number")
        return value
    if isinstance(value, dict):
        return {name: from_bson(f"{path}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [from_bson(f"{path}.{index}", inner) for index, inner in enumerate(value)]
    if isinstance(value, datetime):
        return value
    if isinstance(value, bson.ObjectId):
        return ObjectId(str(value))
    if isinstance(value, Decimal128):
        decimal = value.to_decimal()
        if not decimal.is_finite():
            raise store_error(path, "holds no finite number")
        return decimal
    if isinstance(value, DBRef):
        # A caller's object with $ref and $id, which the driver decodes as a reference.
        return from_bson(path, dict(value.as_doc()))
    if type(value) is bytes:
        return value
    if isinstance(value, bson.Binary):
        raise store_error(path, f"holds binary of subtype {value.subtype}, which would be lost")
    raise store_error(path, f"holds a BSON {type(value).__name__}, which BEDS does not carry")


def document_from_bson(
    document: Mapping[str, Any], keys: tuple[str, ...], fields: Mapping[str, FieldSpec]
) -> dict[str, Any]:
    """A document as a record: `_id` becomes the key, and each field has its template's type.

    Raises:
        StoreError: a value does not fit its field; names the column.
    """
    found: dict[str, Any] = {}
    for name, value in document.items():
        spec, kind = fields.get(name), type(value)
        if spec is not None and (value is None or kind is _UNCHANGED.get(spec.type)):
            found[name] = value  # saves calls for most values
            continue
        if name == "_id":
            if len(keys) > 1 and isinstance(value, Mapping):
                for part, inner in value.items():
                    found[part] = _conformed(part, inner, fields.get(part))
                continue
            name = keys[0] if len(keys) == 1 else name
        spec = fields.get(name)
        found[name] = value if kind is str and _is_text(spec) else _conformed(name, value, spec)
    return found


def _is_text(spec: FieldSpec | None) -> bool:
    return spec is None or spec.type == "string"


def _conformed(name: str, value: Any, spec: FieldSpec | None) -> Any:
    found = from_bson(name, value)
    if found is None or spec is None:
        return found
    if isinstance(found, str) and spec.type != "string":
        raise store_error(name, f"holds text; its field is of type {spec.type}")
    try:
        return conform(spec.type, found)
    except Misfit as misfit:
        raise store_error(name, str(misfit)) from None


def _integer(path: str, value: int, wanted: Any) -> Any:
    names = [wanted] if isinstance(wanted, str) else list(wanted or ())
    if "long" in names and "int" not in names and "number" not in names:
        if not INT64_MIN <= value <= INT64_MAX:
            raise _beyond(path, "a long")
        return bson.Int64(value)
    if "decimal" in names and not {"int", "long", "double", "number"} & set(names):
        return _to_decimal128(path, Decimal(value))
    if names == ["double"]:
        return _exact_double(path, value)
    if not INT64_MIN <= value <= INT64_MAX:
        raise _beyond(path, "64 bits with a sign")
    return value


def _exact_double(path: str, value: int) -> float:
    try:
        found = float(value)
    except OverflowError:
        raise _beyond(path, "a double") from None
    if found != value:
        raise OutOfRange(
            f"field {path} has more digits than a double keeps",
            detail={"field": path},
            hint="give it the type integer or decimal in the template",
        )
    return found


def _beyond(path: str, what: str) -> OutOfRange:
    return OutOfRange(f"field {path} is beyond {what}, which is what MongoDB holds", detail={"field": path})


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

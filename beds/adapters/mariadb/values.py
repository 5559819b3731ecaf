"""BEDS values to MariaDB parameters, and columns back to BEDS values."""

from __future__ import annotations

import base64
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from beds.domain.identity import ObjectId
from beds.errors import StoreError, WrongType
from beds.templates.fields import FieldSpec


def to_sql(name: str, value: Any, declared: str) -> Any:
    """One parameter, as mysqlclient takes it.

    Args:
        name: for messages.
        value: as it came over the wire.
        declared: the parameter's SQL type; a UUID goes as 16 bytes into a BINARY(16).
    """
    if isinstance(value, datetime):
        return _utc_text(value)
    if isinstance(value, UUID):
        return value.bytes if declared.startswith(("binary", "varbinary")) else str(value)
    if isinstance(value, ObjectId):
        return value.hex
    if isinstance(value, (dict, list)):
        return json.dumps(_json(name, value), ensure_ascii=False, allow_nan=False)
    return value


def bulk_to_json(records: list[dict[str, Any]]) -> str:
    """The records of a bulk create as the JSON text that the object opens with JSON_TABLE.

    Datetimes are UTC text, decimals and UUIDs text, bytes Base64; what JSON has a word for stays as it is.
    """
    rows = [
        {name: _bulk_value(f"payloads[{i}].{name}", value) for name, value in record.items()}
        for i, record in enumerate(records)
    ]
    return json.dumps(rows, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def from_sql(spec: FieldSpec | None, value: Any) -> Any:
    """One column of a result, as BEDS carries it; the field's type decides where SQL has no type of its own."""
    if value is None:
        return None
    match spec.type if spec else "":
        case "object" | "array":
            return json.loads(value)
        case "boolean":
            return bool(value)
        case "uuid":
            return UUID(bytes=value) if isinstance(value, bytes) else UUID(value)
        case "object_id":
            return ObjectId(value)
        case "number":
            return float(value)
        case "bytes":
            return value if isinstance(value, bytes) else value.encode()
        case "string" if isinstance(value, bytes):
            return value.decode()
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)  # the session's time zone is UTC
    if isinstance(value, timedelta):
        return _time_of_day(value)
    if isinstance(value, (str, int, float, Decimal, date, bytes)):
        return value
    raise StoreError(f"the object returned a {type(value).__name__}, which BEDS does not carry")


def _time_of_day(value: timedelta) -> time:
    if not timedelta(0) <= value < timedelta(days=1):
        raise StoreError("the object returned a TIME that is no time of day", hint="return it as seconds")
    return (datetime.min + value).time()


def _utc_text(value: datetime) -> str:
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")  # strftime writes year 99 as 99


def _bulk_value(path: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return _utc_text(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID, ObjectId)):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return _json(path, value)


def _json(path: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(f"{path}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(f"{path}.{index}", inner) for index, inner in enumerate(value)]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise WrongType(
        f"field {path} is a {type(value).__name__}, which JSON in MariaDB does not keep",
        detail={"field": path},
        hint="send it as text, or give it a field of its own",
    )

"""BEDS values to MariaDB parameters."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from beds.domain.identity import ObjectId
from beds.errors import WrongType
from beds.templates.named_object import Param

_SAME_IN_JSON = frozenset({str, int, float, bool, type(None)})
"""The Python types of values that JSON has, and MariaDB reads from it, unchanged."""


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
    if isinstance(value, Decimal):
        return format(value, "f")  # 1E+2 would be a double to MariaDB
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, list) and declared.startswith("set"):
        return ",".join(value)
    if isinstance(value, (dict, list)):
        return json.dumps(_json(name, value), ensure_ascii=False, allow_nan=False)
    return value


def bulk_to_json(records: list[dict[str, Any]], columns: Mapping[str, Param]) -> str:
    """The records of a bulk create as the JSON text that the object opens with JSON_TABLE.

    Datetimes become UTC text, durations TIME's text, decimals and UUIDs text, bytes Base64. Values that JSON has stay
    unchanged. A list that JSON_TABLE reads as text holds the members of a SET.

    Args:
        records: the payloads, checked.
        columns: the columns that JSON_TABLE reads, by field.
    """
    as_text = {name for name, column in columns.items() if "array" not in column.types}
    kinds: dict[str, set[type]] = {}
    for name in dict.fromkeys(name for record in records for name in record):
        kinds[name] = {type(record[name]) for record in records if name in record}
    converted = [name for name, found in kinds.items() if not found <= _SAME_IN_JSON]
    rows = [dict(record) for record in records]
    for i, row in enumerate(rows):
        for name in converted:
            if name in row:
                value = row[name]
                is_set = name in as_text and isinstance(value, list)
                row[name] = ",".join(value) if is_set else _bulk_value(f"payloads[{i}].{name}", value)
    return json.dumps(rows, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def duration_text(value: timedelta) -> str:
    """A duration in TIME's form: `-838:59:59.000000`."""
    seconds, micros = divmod(abs(value) // timedelta(microseconds=1), 1_000_000)
    sign = "-" if value < timedelta(0) else ""
    return f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{micros:06}"


def _utc_text(value: datetime) -> str:
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")  # strftime writes year 99 as 99


def _bulk_value(path: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return _utc_text(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, (UUID, ObjectId)):
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

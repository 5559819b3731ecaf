"""Records as Parquet files, without loss: the schema follows from the template.

A document may lack a field that another one holds as null. The column `_missing` keeps the difference.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from beds.domain.identity import ObjectId
from beds.domain.reply import Record
from beds.errors import InvalidPayload, OutOfRange, UnknownField
from beds.templates.fields import FieldSpec
from beds.templates.template import Template
from beds.wire import codec

MISSING = "_missing"
"""The names of a record's missing fields, with commas; null if it has them all."""
MOST_DIGITS = 38
"""Digits of a Parquet decimal that all readers know; a decimal without `digits` and `scale` is kept as text."""
MICROSECOND = timedelta(microseconds=1)
HASH_BITS = 64

_TYPES: Mapping[str, Any] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "datetime": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "duration": pa.int64(),
    "uuid": pa.binary(16),
    "object_id": pa.binary(12),
    "bytes": pa.binary(),
    "object": pa.string(),
    "array": pa.string(),
}
_TO_ARROW: Mapping[str, Callable[[Any], Any]] = {
    "number": float,
    "datetime": lambda value: value.astimezone(UTC),
    "duration": lambda value: value // MICROSECOND,
    "uuid": lambda value: value.bytes,
    "object_id": lambda value: bytes.fromhex(value.hex),
    "object": lambda value: codec.dumps(value).decode(),
    "array": lambda value: codec.dumps(value).decode(),
}
_FROM_ARROW: Mapping[str, Callable[[Any], Any]] = {
    "datetime": lambda value: value.astimezone(UTC),
    "duration": lambda value: value * MICROSECOND,
    "uuid": lambda value: UUID(bytes=value),
    "object_id": lambda value: ObjectId(value.hex()),
    "object": codec.loads,
    "array": codec.loads,
}


class ParquetFormat:
    """Writes and reads the records of one template."""

    def __init__(self, template: Template) -> None:
        self._template = template
        fields = [(name, _type(spec)) for name, spec in template.fields.items()]
        self.schema = pa.schema([*(pa.field(name, kind) for name, kind in fields), pa.field(MISSING, pa.string())])

    @property
    def columns(self) -> list[dict[str, str]]:
        """Names and types, for the manifest."""
        return [{"name": field.name, "type": str(field.type)} for field in self.schema]

    def doubtful_fields(self, records: Sequence[Record]) -> Set[str]:
        """The fields of many records whose values have to be checked one by one."""
        return frozenset(name for name in self._template.fields if not self._keeps_all(name, records))

    def _keeps_all(self, name: str, records: Sequence[Record]) -> bool:
        values = [record.get(name) for record in records]
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            return False
        with contextlib.suppress(pa.ArrowException, ValueError, TypeError, OverflowError, InvalidPayload):
            pa.array([self._to_arrow(name, value) for value in values], self.schema.field(name).type)
            return True
        return False

    def check(self, record: Record, doubtful: Set[str]) -> None:
        """Refuse a record that a file would not keep.

        Args:
            record: the record.
            doubtful: the fields to look at; see `doubtful_fields`.

        Raises:
            UnknownField, OutOfRange: names the field.
        """
        if not record.keys() <= self._template.fields.keys():
            name = min(record.keys() - self._template.fields.keys())
            raise UnknownField(
                f"the record has the field {name}, which is no field of template {self._template.name}",
                detail={"field": name},
            )
        for name, value in record.items():
            if name not in doubtful:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise OutOfRange(f"field {name} holds no finite number", detail={"field": name})
            try:
                pa.array([self._to_arrow(name, value)], self.schema.field(name).type)
            except (pa.ArrowException, ValueError, TypeError, OverflowError):
                raise OutOfRange(
                    f"field {name} holds a value that a file of {self.schema.field(name).type} does not keep",
                    detail={"field": name},
                ) from None

    def write(self, records: Sequence[Record]) -> bytes:
        """A file. Raises ArrowException, ValueError, OverflowError: a record does not fit; see `check`."""
        columns: dict[str, Any] = {
            name: pa.array([self._to_arrow(name, record.get(name)) for record in records], self.schema.field(name).type)
            for name in self._template.fields
        }
        missing = [",".join(name for name in self._template.fields if name not in record) for record in records]
        columns[MISSING] = pa.array([text or None for text in missing], pa.string())
        sink = io.BytesIO()
        pq.write_table(pa.table(columns, schema=self.schema), sink, compression="zstd")
        return sink.getvalue()

    def read(self, data: bytes) -> list[Record]:
        """The records of a file. Raises ArrowException: it is none."""
        found = []
        kinds = {name: _FROM_ARROW.get(spec.type) for name, spec in self._template.fields.items()}
        texts = {name for name, spec in self._template.fields.items() if spec.type == "decimal" and _is_text(spec)}
        for row in pq.read_table(io.BytesIO(data)).to_pylist():
            missing = set(filter(None, (row.pop(MISSING, None) or "").split(",")))
            record: Record = {}
            for name, value in row.items():
                if name in missing:
                    continue
                convert = Decimal if name in texts else kinds.get(name)
                record[name] = convert(value) if convert is not None and value is not None else value
            found.append(record)
        return found

    def _to_arrow(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        spec = self._template.fields[name]
        if spec.type == "decimal":
            return str(value) if _is_text(spec) else Decimal(value)
        convert = _TO_ARROW.get(spec.type)
        return convert(value) if convert else value


def _type(spec: FieldSpec) -> Any:
    if spec.type != "decimal":
        return _TYPES[spec.type]
    return pa.string() if _is_text(spec) else pa.decimal128(spec.digits or MOST_DIGITS, spec.scale or 0)


def _is_text(spec: FieldSpec) -> bool:
    return spec.digits is None or spec.scale is None or spec.digits > MOST_DIGITS


def content_sum(records: Sequence[Record]) -> str:
    """A sum of the records' hashes, in hexadecimal. It does not depend on their order, nor on nulls."""
    total = 0
    for record in records:
        known = {name: value for name, value in sorted(record.items()) if value is not None}
        digest = hashlib.blake2b(codec.digest(known).encode(), digest_size=HASH_BITS // 8).digest()
        total += int.from_bytes(digest)
    return f"{total % 2**HASH_BITS:016x}"


def folder_of(parts: Sequence[str], record: Record) -> str:
    """A record's folder in Hive's form: `origin=JFK/year_of_time_hour=2013`."""
    found = []
    for part in parts:
        unit, _, rest = part.partition("(")
        name = rest.rstrip(")") or unit
        value = record.get(name)
        label = f"{unit}_of_{name}" if rest else name
        if value is None:
            text = "__HIVE_DEFAULT_PARTITION__"
        elif rest:
            text = str(getattr(value, unit))
        else:
            text = value.isoformat() if isinstance(value, datetime) else str(value)
        found.append(f"{label}={quote(text, safe='')}")
    return "/".join(found)

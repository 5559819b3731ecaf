"""Values in requests and responses: plain JSON without type tags, read and written by the types of the fields."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from beds.errors import BedsError, WrongType
from beds.http.problems import Problem
from beds.templates.fields import MAX_DEPTH, FieldSpec
from beds.templates.json_schema import LARGEST
from beds.templates.text import value_of
from beds.wire.codec import MAX_VALUES

_AS_TEXT = frozenset({"datetime", "date", "time", "duration", "uuid", "object_id", "bytes", "decimal", "integer"})
"""Types whose JSON form is, or may be, a text."""
_decoder = msgspec.json.Decoder(float_hook=Decimal)
"""Numbers with a point stay exact, for fields of the type decimal."""
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)")


def read_json(body: bytes) -> Any:
    """A request's body. Raises Problem (400, 413)."""
    found = _decode(body)
    _counted(found, MAX_VALUES)
    return found


def _decode(body: bytes) -> Any:
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, InvalidOperation):
        raise Problem(400, "unreadable", "The body is not JSON in UTF-8.") from None


def _counted(value: Any, most: int) -> int:
    """The number of values in a value. No event holds more than `MAX_VALUES`, and reading millions would block others.

    Raises:
        Problem (413): there are more than `most`.
    """
    count, left = 1, [value]
    while left and count <= most:
        inner = left.pop()
        if isinstance(inner, (dict, list)):
            count += len(inner)
            if count <= most:
                left.extend(inner.values() if isinstance(inner, dict) else inner)
    if count > most:
        raise _too_many()
    return count


def _too_many() -> Problem:
    return Problem(413, "body_too_large", f"The body may have {MAX_VALUES:,} values; send it in parts.")


def from_text(name: str, text: str, types: Iterable[str], *, sensitive: bool = False) -> Any:
    """A text of the address or of a CSV file as a value of one of the types. Raises WrongType."""
    kinds = list(types)
    failure: WrongType | None = None
    for kind in kinds:
        try:
            if kind == "datetime":
                return _moment(name, text)
            return _floats(value_of(name, text, kind, sensitive=sensitive), kind)
        except WrongType as error:
            failure = failure or error
    if failure is None:
        return text
    failure.detail["field"] = name
    raise failure


def from_json(name: str, value: Any, spec: FieldSpec | None) -> Any:
    """A JSON value as a value of a field. Another value stays as it is, for the field's own check."""
    if spec is None:
        return _floats(value, "object")
    if isinstance(value, str) and spec.type in _AS_TEXT:
        return (
            _moment(name, value)
            if spec.type == "datetime"
            else value_of(name, value, spec.type, sensitive=spec.sensitive)
        )
    if spec.type == "number" and isinstance(value, Decimal):
        return float(value)
    return value if spec.type == "decimal" else _floats(value, spec.type)


def record_from_json(value: Any, fields: Mapping[str, FieldSpec], where: str = "") -> Any:
    """A JSON object as a record; each value by the type of its field. Raises WrongType."""
    if not isinstance(value, dict):
        return _floats(value, "object")
    try:
        return {name: from_json(name, inner, fields.get(name)) for name, inner in value.items()}
    except BedsError as error:
        if where:
            error.message = f"{where}: {error.message}"
        raise


def _moment(name: str, text: str) -> datetime:
    if not _RFC3339.fullmatch(text):
        raise WrongType(
            f"field {name} takes a time of RFC 3339 with its zone, as 2013-07-01T12:00:00Z", detail={"field": name}
        )
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError:
        raise WrongType(f"field {name} takes a time that exists", detail={"field": name}) from None


def _floats(value: Any, kind: str, depth: int = 0) -> Any:
    """Numbers with a point as floats, in a value that is no decimal."""
    if kind == "decimal":
        return value
    if isinstance(value, Decimal):
        return float(value)
    if depth > MAX_DEPTH:
        return value  # the field's check refuses it
    if isinstance(value, dict):
        return {name: _floats(inner, kind, depth + 1) for name, inner in value.items()}
    if isinstance(value, list):
        return [_floats(inner, kind, depth + 1) for inner in value]
    return value


def plain(value: Any) -> Any:
    """A value as the codec encodes it, without its type tags."""
    kind = type(value)
    if kind is int:
        return value if -LARGEST <= value <= LARGEST else str(value)
    if kind is dict:
        if len(value) == 1:
            ((tag, inner),) = value.items()
            if tag == "$pairs":
                return {name: plain(each) for name, each in inner}
            if tag[:1] == "$":
                return inner
        return {name: plain(inner) for name, inner in value.items()}
    if kind is list:
        return [plain(inner) for inner in value]
    return value


_PLAIN_KINDS = (str, float, bool, type(None))


def plain_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """As `plain`, for a record, whose values are scalars for the most part."""
    return {name: inner if type(inner) in _PLAIN_KINDS else plain(inner) for name, inner in record.items()}


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value)


Placed = list[tuple[str, Any]]
"""Records, each with its place in the body: `line 3`, or `records[2]` of a JSON list."""


def read_records(body: bytes, media_type: str, fields: Mapping[str, FieldSpec]) -> Placed:
    """The records of a bulk request: a JSON list, NDJSON, or CSV with a header. Raises Problem, WrongType."""
    if media_type in ("application/x-ndjson", "application/jsonl"):
        return _json_lines(body, fields)
    if media_type == "text/csv":
        return _csv_records(body, fields)
    found = read_json(body)
    if not isinstance(found, list):
        raise Problem(400, "unreadable", "The body is no list of records.")
    return [
        (place := f"records[{index}]", record_from_json(record, fields, place)) for index, record in enumerate(found)
    ]


def _json_lines(body: bytes, fields: Mapping[str, FieldSpec]) -> Placed:
    left = MAX_VALUES
    if body.count(b"\n") > left:
        raise _too_many()
    found = []
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip():
            record = _line(number, line)
            left -= _counted(record, left)
            found.append((f"line {number}", record_from_json(record, fields, f"line {number}")))
    return found


def _line(number: int, line: bytes) -> Any:
    try:
        return _decode(line)
    except Problem:
        raise Problem(400, "unreadable", f"Line {number} is not JSON in UTF-8; nothing was written.") from None


def _csv_records(body: bytes, fields: Mapping[str, FieldSpec]) -> Placed:
    """An empty cell leaves its field out."""
    try:
        reader = csv.DictReader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        found, left = [], MAX_VALUES
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise Problem(400, "unreadable", "The header of the table names a column twice.")
        for row in reader:
            left -= 1 + len(row)
            if left < 0:
                raise _too_many()
            if None in row or None in row.values():
                raise Problem(400, "unreadable", f"Line {reader.line_num} has another number of cells than the header.")
            record = {}
            for name, text in row.items():
                if text != "":
                    record[name] = _cell(name, text, fields.get(name), reader.line_num)
            found.append((f"line {reader.line_num}", record))
        return found
    except (UnicodeDecodeError, csv.Error):
        raise Problem(400, "unreadable", "The body is not CSV in UTF-8 with a header.") from None


def _cell(name: str, text: str, spec: FieldSpec | None, line: int) -> Any:
    try:
        return from_text(name, text, (spec.type,) if spec else (), sensitive=bool(spec and spec.sensitive))
    except BedsError as error:
        error.message = f"line {line}: {error.message}"
        raise


def csv_writer() -> Callable[[Iterable[Mapping[str, Any]]], bytes]:
    """A function that writes records as CSV; the first call writes the header, with the first record's names."""
    names: list[str] = []

    def write(records: Iterable[Mapping[str, Any]]) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\r\n")
        for record in records:
            if not names:
                names.extend(record)
                writer.writerow(names)
            writer.writerow([_cell_text(record.get(name)) for name in names])
        return out.getvalue().encode()

    return write


def _cell_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return msgspec.json.encode(value).decode()
    return str(value)

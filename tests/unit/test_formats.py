"""The records of fetches as lines and as CSV."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import click
import pytest

from beds.cli.formats import Csv, Ndjson

ODD: list[dict[str, Any]] = [
    {"id": 1, "text": 'two\nlines, a "quote" and\ra return', "price": Decimal("1.10"), "gone": None},
    {"id": 2, "text": "\x1b[31mred", "price": Decimal("-0.5"), "gone": {"a": [1, None]}},
    {"id": 3, "text": "", "price": None, "gone": datetime(2026, 1, 2, tzinfo=UTC)},
]


def test_csv_is_read_back_as_it_was(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    writer = Csv()
    writer.write(ODD[:2])
    writer.write(ODD[2:])
    rows = list(csv.DictReader(io.StringIO(capfdbinary.readouterr().out.decode(), newline="")))
    assert [row["text"] for row in rows] == [record["text"] for record in ODD]
    assert [row["price"] for row in rows] == ["1.10", "-0.5", ""]
    assert [row["gone"] for row in rows] == ["", '{"a": [1, null]}', "2026-01-02T00:00:00+00:00"]


def test_a_column_that_comes_later_is_refused() -> None:
    writer = Csv()
    writer.write([{"id": 1}])
    with pytest.raises(click.UsageError, match="--ndjson"):
        writer.write([{"id": 2, "more": 3}])


def test_lines_are_one_object_each(capsys: pytest.CaptureFixture[str]) -> None:
    Ndjson().write(ODD)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["text"] for each in found] == [record["text"] for record in ODD]
    assert found[0]["price"] == "1.10"

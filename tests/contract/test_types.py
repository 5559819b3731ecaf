"""Each type of MariaDB and BSON, single and in bulk: a value comes back unchanged, or is refused.

The rows here are those of docs/reference/types.md, which a test below compares with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from beds.config import load_settings
from beds.domain.event import Operation
from beds.domain.identity import ObjectId, uuid7
from beds.errors import BedsError, OutOfRange, TooLong, WrongType
from beds.services.dispatch import execute
from beds.services.factory import AdapterFactory
from beds.templates.registry import TemplateRegistry
from tests.conftest import ROOT

NOON = datetime(2024, 2, 29, 12, 0, 1, tzinfo=UTC)
SOME_UUID = UUID("12345678-1234-4678-9234-567812345678")
POINT = bytes(4) + b"\x01\x01\x00\x00\x00" + bytes(8) + b"\x00\x00\x00\x00\x00\x00\xf0?"
UTF8_255 = "ä" * 127

MARIADB: dict[str, tuple[list[Any], list[tuple[Any, type[BedsError]]]]] = {
    "bit1": ([True, False], [(1, WrongType)]),
    "bits": ([0, 5, 2**20 - 1, 49, 0x313131 & 0xFFFFF], [(2**20, OutOfRange), (-1, OutOfRange)]),
    "tiny": ([-128, 127, 0], [(128, OutOfRange), (-129, OutOfRange)]),
    "utiny": ([0, 255], [(256, OutOfRange), (-1, OutOfRange)]),
    "flag": ([True, False], [(2, WrongType), ("true", WrongType)]),
    "small": ([-(2**15), 2**15 - 1], [(2**15, OutOfRange)]),
    "medium": ([-(2**23), 2**23 - 1], [(2**23, OutOfRange)]),
    "whole": ([-(2**31), 2**31 - 1], [(2**31, OutOfRange), (1.5, WrongType)]),
    "uwhole": ([0, 2**32 - 1], [(2**32, OutOfRange), (-1, OutOfRange)]),
    "big": ([-(2**63), 2**63 - 1], [(2**63, OutOfRange)]),
    "ubig": ([0, 2**63, 2**64 - 1], [(2**64, OutOfRange), (-1, OutOfRange)]),
    "yr": ([0, 1901, 2155], [(24, OutOfRange), (70, OutOfRange), (2156, OutOfRange)]),
    "price": (
        [Decimal("-99999999.99"), Decimal("0.10"), Decimal("1E+2"), Decimal(7)],
        [(Decimal("1.005"), OutOfRange), (Decimal("1E8"), OutOfRange), (Decimal("NaN"), OutOfRange)],
    ),
    "ratio": ([Decimal("9999.9"), Decimal("0.0")], [(Decimal("-0.1"), OutOfRange), (Decimal("0.05"), OutOfRange)]),
    "counted": ([-(2**63), 2**64 - 1, 10**18], [(2**64, OutOfRange)]),
    "fl": ([0.1, -1.5, 0.0, 1e30, 123456.0], [(16777217.0, OutOfRange), (0.1234567, OutOfRange), (1e39, OutOfRange)]),
    "db": (
        [0.1, 5e-324, -1.7976931348623157e308, 1 / 3],
        [(2**53 + 1, OutOfRange), (float("inf"), OutOfRange), (float("nan"), OutOfRange)],
    ),
    "ch": (["", "abcde", " ab", "ä€😀"], [("ab ", OutOfRange), ("abcdef", TooLong), ("      ", TooLong)]),
    "vc": (["", "ab ", " ", "x" * 20, "😀" * 20], [("x" * 21, TooLong)]),
    "ci": (["Ä", "ä", "A "], [("x" * 21, TooLong)]),
    "tinytxt": (["", UTF8_255, "ab "], [("ä" * 128, TooLong)]),
    "txt": (["", "ä" * 32767], [("x" * 65536, TooLong)]),
    "longtxt": (["", "x" * 70_000, "null"], [(5, WrongType)]),
    "en": (
        ["a", "B", "c d", "1"],
        [("A", OutOfRange), ("a ", OutOfRange), ("2", OutOfRange), ("", OutOfRange), (1, WrongType)],
    ),
    "st": (["", "x", "x,z"], [("z,x", OutOfRange), ("x,x", OutOfRange), ("w", OutOfRange), ("3", OutOfRange)]),
    "sta": ([[], ["y"], ["x", "y", "z"]], [(["z", "x"], OutOfRange), (["w"], OutOfRange), ([1], OutOfRange)]),
    "uu": ([SOME_UUID], [(str(SOME_UUID), WrongType)]),
    "uuc": ([SOME_UUID, UUID(int=0)], [(5, WrongType)]),
    "uub": ([SOME_UUID, UUID(int=2**128 - 1)], [(bytes(16), WrongType)]),
    "oid": ([ObjectId("0123456789abcdef01234567")], [("0123456789abcdef01234567", WrongType)]),
    "i4": (["1.2.3.4", "0.0.0.0"], [("1.2.3", WrongType), ("01.2.3.4", WrongType)]),
    "i6": (
        ["::1", "fe80::1", "::ffff:1.2.3.4", "::1.2.3.4", "2001:db8::", "1:2::1:0:1:0:1"],
        [("FE80::1", OutOfRange), ("2001:db8:0::", OutOfRange), ("1:2:0:1:0:1:0:1", OutOfRange), ("x", WrongType)],
    ),
    "bin": ([b"\0\1\2\3", b"    "], [(b"ab", OutOfRange), (b"abcde", TooLong)]),
    "vb": ([b"", b"a\0 ", bytes(20)], [(bytes(21), TooLong)]),
    "blb": ([b"", bytes(range(256))], [(bytes(65536), TooLong), ("text", WrongType)]),
    "geo": ([POINT], [(b"nonsense", WrongType)]),
    "js": (
        [{}, {"a": [1, 2.5, None, True, 2**64 - 1, -(2**63)]}, {"": "\u2028"}],
        [({"a": NOON}, WrongType), ({"a": float("nan")}, OutOfRange), ({"a": 2**64}, OutOfRange)],
    ),
    "ja": ([[], [[]], [1, "two"]], [([Decimal(1)], WrongType), ({}, WrongType)]),
    "dt": ([NOON, datetime(1, 1, 1, tzinfo=UTC)], [(NOON.replace(microsecond=600_000), OutOfRange)]),
    "dt6": (
        [NOON.replace(microsecond=1), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)],
        [(date(2024, 1, 1), WrongType)],
    ),
    "ts": (
        [NOON.replace(microsecond=1000)],
        [(NOON.replace(microsecond=1), OutOfRange), (datetime(2050, 1, 1, tzinfo=UTC), WrongType)],
    ),
    "da": ([date(2024, 2, 29), date(1, 1, 1), date(9999, 12, 31)], [(NOON, WrongType)]),
    "tm": (
        [time(0), time(23, 59, 59)],
        [(time(12, microsecond=500_000), OutOfRange), (time(1, tzinfo=UTC), WrongType)],
    ),
    "tm6": ([time(12, 0, 0, 1)], [(timedelta(1), WrongType)]),
    "du": (
        [timedelta(0), timedelta(hours=838, minutes=59, seconds=59), timedelta(hours=-838), timedelta(milliseconds=-1)],
        [(timedelta(hours=839), OutOfRange), (timedelta(microseconds=1), OutOfRange), (time(1), WrongType)],
    ),
}
"""By column: values that come back unchanged, and refused values with their errors."""

MONGODB: dict[str, tuple[list[Any], list[tuple[Any, type[BedsError]]]]] = {
    "lng": ([0, 5, 2**63 - 1, -(2**63)], [(2**63, OutOfRange), (1.5, WrongType)]),
    "int32": ([0, 2**31 - 1, -(2**31)], []),
    "whole": ([1, 2**31, -(2**63)], [(2**64, OutOfRange)]),
    "dbl": ([0.1, 5e-324, 7, 2**53], [(2**53 + 1, OutOfRange), (float("inf"), OutOfRange)]),
    "dec": (
        [Decimal("1.10"), Decimal("0.00"), Decimal("1E+2"), 5, Decimal("1234567890123456789012345678901234")],
        [(Decimal("1" * 35), OutOfRange), (Decimal("NaN"), OutOfRange), (Decimal("Infinity"), OutOfRange)],
    ),
    "flag": ([True, False], [(1, WrongType)]),
    "text": (["", " ", "a\0b", "x" * 100_000], [("\ud800", WrongType)]),
    "moment": ([NOON, datetime(1, 1, 1, tzinfo=UTC)], [(NOON.replace(microsecond=1), OutOfRange)]),
    "raw": ([b"", bytes(range(256))], [("text", WrongType)]),
    "uu": ([SOME_UUID], [(str(SOME_UUID), WrongType)]),
    "oid": ([ObjectId("0123456789abcdef01234567")], [("0123456789abcdef01234567", WrongType)]),
    "obj": (
        [{}, {"n": 5, "d": 7}, {"a": [1, Decimal("1.5"), NOON, SOME_UUID, b"\xff"]}, {"$gt": 1, "a.b": {"": None}}],
        [({"a": date(2024, 1, 1)}, WrongType), ({"a": time(1)}, WrongType), ({"a": timedelta(1)}, WrongType)],
    ),
    "list": ([[], [1, 2**40], ["a"]], [([float("nan")], OutOfRange)]),
}
TEMPLATES = {"Kinds": MARIADB, "KindsDocs": MONGODB}


@pytest.fixture(scope="module")
def factory(project: Any, stack: Any) -> Iterator[AdapterFactory]:
    loaded = load_settings(project / "beds.toml")
    found = AdapterFactory(loaded, TemplateRegistry.from_folder(loaded.schema_path))
    yield found
    found.close()


def write(factory: AdapterFactory, template: str, payloads: list[dict[str, Any]], *, bulk: bool) -> None:
    store = factory.registry[template].store
    if bulk:
        execute(factory, store, Operation.CREATE_MANY, template, {"payloads": payloads})
        return
    for payload in payloads:
        execute(factory, store, Operation.CREATE, template, {"payload": payload})


def read(factory: AdapterFactory, template: str, record_id: str, using: str = "by_id") -> list[dict[str, Any]]:
    body = {"using": using, "args": {"id": record_id}}
    return list(execute(factory, factory.registry[template].store, Operation.FETCH, template, body))  # type: ignore[arg-type]


def same(found: Any, given: Any) -> bool:
    """Equal and of the same type; an integer may come back as another number type."""
    return found == given and (type(found) is type(given) or isinstance(given, int))


CASES = [(template, column) for template, table in TEMPLATES.items() for column in table]


@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
@pytest.mark.parametrize(("template", "column"), CASES)
def test_a_value_comes_back_as_it_was(factory: AdapterFactory, template: str, column: str, bulk: bool) -> None:
    values, _ = TEMPLATES[template][column]
    payloads = [{"id": str(uuid7()), column: value} for value in [*values, None]]
    write(factory, template, payloads, bulk=bulk)
    for payload in payloads:
        (record,) = read(factory, template, payload["id"])
        assert same(record[column], payload[column]), (column, payload[column], record[column])


@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
@pytest.mark.parametrize(("template", "column"), CASES)
def test_what_a_column_would_change_is_refused(factory: AdapterFactory, template: str, column: str, bulk: bool) -> None:
    _, refused = TEMPLATES[template][column]
    for value, error in refused:
        payload = {"id": str(uuid7()), column: value}
        with pytest.raises(error) as caught:
            write(factory, template, [payload], bulk=bulk)
        assert str(caught.value.detail["field"]).split(".")[0] in (column, "payloads[0]", "geo", ""), (column, value)
        assert read(factory, template, payload["id"]) == []


WIDE = [
    "bits",
    "tiny",
    "utiny",
    "small",
    "whole",
    "price",
    "ratio",
    "fl",
    "ch",
    "vc",
    "en",
    "st",
    "bin",
    "vb",
    "dt",
    "ts",
    "tm",
    "du",
    "yr",
]


@pytest.mark.parametrize("column", WIDE)
def test_a_parameter_wider_than_its_column_hides_nothing(factory: AdapterFactory, column: str) -> None:
    values, refused = MARIADB[column]
    for value in values:
        payload = {"id": str(uuid7()), column: value}
        write(factory, "KindsWide", [payload], bulk=False)
        (record,) = read(factory, "KindsWide", payload["id"])
        assert same(record[column], value), (column, value, record[column])
    for value, error in refused:
        payload = {"id": str(uuid7()), column: value}
        with pytest.raises(error):
            write(factory, "KindsWide", [payload], bulk=False)
        assert read(factory, "KindsWide", payload["id"]) == []


@pytest.mark.parametrize("column", [name for name in MARIADB if name != "geo"])
def test_an_out_parameter_has_the_type_of_its_field(factory: AdapterFactory, column: str) -> None:
    values, _ = MARIADB[column]
    for value in values:
        payload = {"id": str(uuid7()), column: value}
        write(factory, "Kinds", [payload], bulk=False)
        (record,) = read(factory, "Kinds", payload["id"], "outs")
        assert same(record[column], value), (column, value, record[column])


def test_the_page_of_types_has_each_row() -> None:
    page = (ROOT / "docs" / "reference" / "types.md").read_text()
    first_cells = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    named = {word for cell in first_cells for word in re.findall(r"`(\w+)", cell)}
    schema = (ROOT / "tests" / "schema" / "rel" / "V0898__kinds.sql").read_text()
    table = schema[schema.index("CREATE TABLE kinds") : schema.index("doubled")]
    assert {kind for _, kind in re.findall(r"^  (\w+) ([A-Z]\w+)", table, re.MULTILINE)} - named == set()
    bson = ("int", "long", "double", "decimal", "bool", "string", "date", "binData", "objectId", "object", "array")
    assert set(bson) - named == set()

"""Every value comes back unchanged or is refused with a typed error: every type, both real adapters.

`PROPERTY_EXAMPLES=10000 pytest tests/integration/test_properties.py` runs more examples than the default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beds.config import Settings
from beds.domain.event import Operation
from beds.domain.identity import ObjectId, uuid7
from beds.errors import InvalidPayload
from beds.services.dispatch import execute
from beds.services.factory import AdapterFactory
from beds.templates.registry import TemplateRegistry

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "100"))
TEXT = st.text(max_size=60) | st.sampled_from(["$gt", "a.b", "__type__", "\x00", "'", "${x}", "$$NOW", "a ", " ", "1"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
WHOLE = st.integers(-(2**66), 2**66) | st.integers(-300, 300) | st.sampled_from([2**n - 1 for n in (7, 15, 31, 63, 64)])
NUMBER = st.floats() | st.floats(width=32) | st.integers(-(2**70), 2**70) | st.sampled_from([0.1, 1e30, -0.0, 123456.0])
DECIMAL = st.decimals() | st.decimals(min_value=-10000, max_value=10000, places=2) | st.integers(-(10**9), 10**9)
MOMENT = st.datetimes(timezones=st.just(UTC)) | st.datetimes(timezones=st.just(UTC)).map(
    lambda at: at.replace(microsecond=0)
)
TIME = st.times() | st.times().map(lambda at: at.replace(microsecond=0))
DURATION = st.timedeltas(timedelta(hours=-900), timedelta(hours=900))
DURATION |= st.integers(-(10**9), 10**9).map(lambda n: timedelta(milliseconds=n))
MEMBERS = st.lists(st.sampled_from(["x", "y", "z", "w", "X"]), max_size=3)
OBJECT_ID = st.binary(min_size=12, max_size=12).map(lambda raw: ObjectId(raw.hex()))
ADDRESS4, ADDRESS6 = st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str)
MARIADB: dict[str, st.SearchStrategy[Any]] = {
    "bit1": st.booleans(),
    "flag": st.booleans(),
    **dict.fromkeys(("bits", "tiny", "utiny", "small", "medium", "whole", "uwhole", "big", "ubig", "counted"), WHOLE),
    "yr": st.integers(0, 2200),
    "price": DECIMAL,
    "ratio": DECIMAL,
    "fl": NUMBER,
    "db": NUMBER,
    **dict.fromkeys(("ch", "vc", "ci", "tinytxt", "txt", "longtxt"), TEXT),
    "en": st.sampled_from(["a", "B", "c d", "1", "A", "a ", "2", ""]),
    "st": MEMBERS.map(",".join),
    "sta": MEMBERS,
    **dict.fromkeys(("uu", "uuc", "uub"), st.uuids()),
    "oid": OBJECT_ID,
    "i4": ADDRESS4 | TEXT,
    "i6": ADDRESS6 | TEXT,
    "bin": st.binary(max_size=6),
    "vb": st.binary(max_size=25),
    "blb": st.binary(max_size=300),
    "js": st.dictionaries(TEXT, JSON, max_size=4),
    "ja": st.lists(JSON, max_size=4),
    **dict.fromkeys(("dt", "dt6", "ts"), MOMENT),
    "da": st.dates(),
    "tm": TIME,
    "tm6": TIME,
    "du": DURATION,
}
MONGODB: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("lng", "int32", "whole"), WHOLE),
    "dbl": NUMBER,
    "dec": DECIMAL,
    "flag": st.booleans(),
    "text": TEXT,
    "moment": MOMENT,
    "raw": st.binary(max_size=300),
    "uu": st.uuids(),
    "oid": OBJECT_ID,
    "obj": st.dictionaries(TEXT, JSON | MOMENT | st.decimals() | st.uuids() | st.binary(max_size=9), max_size=4),
    "list": st.lists(st.integers() | TEXT, max_size=5),
}
TEMPLATES = {"Kinds": MARIADB, "KindsDocs": MONGODB}


@pytest.fixture(scope="module")
def factory(project: Any, stack: Any) -> Iterator[AdapterFactory]:
    from beds.config import load_settings

    loaded: Settings = load_settings(project / "beds.toml")
    found = AdapterFactory(loaded, TemplateRegistry.from_folder(loaded.schema_path))
    yield found
    found.close()


@st.composite
def records(draw: st.DrawFn, columns: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """A record of a few fields: with all fields, nearly every example would contain a refused value."""
    names = draw(st.lists(st.sampled_from(sorted(columns)), min_size=1, max_size=3, unique=True))
    return {name: draw(columns[name] | st.none()) for name in names}


def _same(found: Any, given: Any) -> bool:
    """Equal, and of the same type: in Python True == 1 and 1.0 == Decimal(1). An integer may become the
    column's number type."""
    if isinstance(given, dict):
        return type(found) is dict and found.keys() == given.keys() and all(_same(found[k], given[k]) for k in given)
    if isinstance(given, list):
        return type(found) is list and len(found) == len(given) and all(map(_same, found, given))
    numbers = (int, float, Decimal)
    is_same_type = type(found) is type(given) or (type(given) is int and type(found) in numbers)
    return is_same_type and bool(found == given)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
def test_a_record_survives_or_is_refused(factory: AdapterFactory, template: str, bulk: bool) -> None:
    store = factory.registry[template].store

    def read(record_id: str) -> Any:
        body = {"using": "by_id", "args": {"id": record_id}}
        return execute(factory, store, Operation.FETCH, template, body).records  # type: ignore[union-attr]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(some=st.lists(records(TEMPLATES[template]), min_size=1, max_size=3 if bulk else 1))
    def round_trip(some: list[dict[str, Any]]) -> None:
        payloads = [{"id": str(uuid7()), **record} for record in some]
        try:
            if bulk:
                execute(factory, store, Operation.CREATE_MANY, template, {"payloads": payloads})
            else:
                execute(factory, store, Operation.CREATE, template, {"payload": payloads[0]})
        except InvalidPayload as refused:
            assert "field" in refused.detail
            assert not any(read(payload["id"]) for payload in payloads)
            return
        for payload in payloads:
            (found,) = read(payload["id"])
            for name, value in payload.items():
                assert _same(found[name], value), (name, found[name], value)
                assert not isinstance(value, datetime) or found[name].tzinfo is UTC

    round_trip()

"""The codec: it preserves every value, and never reads data as a tag."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import kombu.utils.json as kombu_json
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.domain.identity import ObjectId
from beds.errors import BedsError, BodyTooLarge, InvalidCursor, InvalidPayload, MalformedEvent, OutOfRange, WrongType
from beds.wire import codec

KEYS = st.text(max_size=8) | st.sampled_from(
    ["$gt", "$datetime", "$pairs", "__type__", "__value__", "a.b", "", "$", "_id"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.uuids()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.just(UTC))
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.binary(min_size=12, max_size=12).map(lambda raw: ObjectId(raw.hex()))
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=20)


@given(VALUES)
def test_every_value_survives_the_round_trip(value: Any) -> None:
    assert codec.loads(codec.dumps(value)) == value


@given(VALUES)
def test_kombus_own_hook_sees_nothing_to_decode(value: Any) -> None:
    """A Celery worker first decodes the body with kombu's JSON, which must not change it."""
    body = codec.dumps(value)
    assert codec.decode(kombu_json.loads(body)) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda i: st.lists(i) | st.dictionaries(KEYS, i)
    )
)
def test_any_json_decodes_or_is_malformed(value: Any) -> None:
    try:
        codec.decode(json.loads(json.dumps(value)))
    except BedsError as error:
        assert isinstance(error, MalformedEvent)


@given(st.binary())
def test_any_bytes_decode_or_are_malformed(body: bytes) -> None:
    try:
        codec.loads(body)
    except BedsError as error:
        assert isinstance(error, MalformedEvent)


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (datetime(2013, 1, 1, 5, tzinfo=UTC), {"$datetime": "2013-01-01T05:00:00+00:00"}),
        (date(2013, 1, 1), {"$date": "2013-01-01"}),
        (time(5, 15), {"$time": "05:15:00"}),
        (Decimal("1.10"), {"$decimal": "1.10"}),
        (UUID(int=1), {"$uuid": "00000000-0000-0000-0000-000000000001"}),
        (ObjectId("0" * 24), {"$oid": "0" * 24}),
        (b"hi", {"$bytes": "aGk="}),
        ({"$gt": ""}, {"$pairs": [["$gt", ""]]}),
        ({"__type__": 1}, {"$pairs": [["__type__", 1]]}),
        ({"a": 1}, {"a": 1}),
    ],
)
def test_the_wire_form_is_what_the_reference_says(value: Any, wire: Any) -> None:
    assert codec.encode(value) == wire
    assert codec.decode(wire) == value


@pytest.mark.parametrize(
    "wire",
    [
        {"$datetime": "2013-01-01"},
        {"$datetime": 5},
        {"$decimal": "one"},
        {"$bytes": "***"},
        {"$oid": "zz"},
        {"$nonsense": 1},
        {"$gt": 1, "a": 2},
        {"$pairs": {"a": 1}},
        {"$pairs": [["a"]]},
        {"$pairs": [[1, 2]]},
    ],
)
def test_what_is_no_tag_is_malformed(wire: Any) -> None:
    with pytest.raises(MalformedEvent):
        codec.decode(wire)


def test_foreign_types_are_refused() -> None:
    with pytest.raises(WrongType):
        codec.encode({"a": object()})
    with pytest.raises(WrongType):
        codec.dumps({1: 2})
    with pytest.raises(OutOfRange):
        codec.dumps(float("nan"))
    deep: list[Any] = []
    deep.append(deep)
    with pytest.raises(InvalidPayload):
        codec.dumps(deep)


def test_a_body_over_the_limit_says_by_how_much() -> None:
    codec.check_size(b"x" * 10, 10, "this")
    with pytest.raises(BodyTooLarge) as caught:
        codec.check_size(b"x" * 11, 10, "this")
    assert caught.value.detail["bytes"] == 11


def test_a_body_of_too_many_values_is_refused_before_it_is_sent() -> None:
    codec.check_values(codec.dumps({"text": "," * 200_000}), "this")
    with pytest.raises(BodyTooLarge, match="values") as caught:
        codec.check_values(codec.dumps({"list": [[1, 2]] * 50_000}), "this")
    assert caught.value.detail["values"] > codec.MAX_VALUES


def test_a_digest_is_of_what_is_said_and_not_of_how() -> None:
    one = {"a": datetime(2026, 1, 1, 12, tzinfo=UTC), "b": [1, {"x": 1, "y": 2}]}
    other = {"b": [1, {"y": 2, "x": 1}], "a": datetime(2026, 1, 1, 14, tzinfo=timezone(timedelta(hours=2)))}
    assert codec.digest(one) == codec.digest(other)
    assert codec.digest(one) != codec.digest({**one, "b": [1, {"x": 1, "y": 3}]})


def test_cursors_are_opaque_and_checked() -> None:
    assert codec.unpack_cursor(codec.pack_cursor(["T", "o", [Decimal("1.5")]])) == ["T", "o", [Decimal("1.5")]]
    for bad in ("x", "é", "e30=e30", "!!!"):
        with pytest.raises(InvalidCursor):
            codec.unpack_cursor(bad)

"""The validating consumer: every message is either a valid event or raises MalformedEvent."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.errors import MalformedEvent
from beds.worker.validation import check

GUID = "01a20d9f-cec8-76f3-8b35-c900cdc2ad61"
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NAMES = ("task", "id", "beds", "timelimit", "retries", "expires", "eta", "callbacks", "chain", "reply_to", "x-death")


def message(headers: Any, properties: Any, body: Any, key: str) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body, default=str).encode()

    class Message(SimpleNamespace):
        @property
        def payload(self) -> Any:
            return json.loads(raw)

    return Message(headers=headers, properties=properties, body=raw, delivery_info={"routing_key": key})


@given(
    headers=anything | st.dictionaries(st.sampled_from(NAMES), anything),
    properties=st.dictionaries(st.sampled_from(["correlation_id", "reply_to", "user_id"]), anything),
    body=anything,
    key=st.sampled_from(["rel.write", "beds.logs", "log.info", "", "x" * 300]),
)
def test_any_message_is_judged(headers: Any, properties: Any, body: Any, key: str) -> None:
    try:
        check(message(headers, properties, body, key), 10_000, "workers")
    except MalformedEvent as error:
        assert error.detail["field"]


@given(kwargs=st.dictionaries(st.text(min_size=1, max_size=10), anything, max_size=3))
def test_only_what_has_the_form_of_an_event_passes(kwargs: Any) -> None:
    headers = {"task": "rel.create_record", "id": GUID, "lang": "py"}
    kwargs.pop("self", None)
    good = message(headers, {"correlation_id": GUID, "user_id": "somebody"}, [[], kwargs, {}], "rel.write")
    check(good, 1_000_000, "workers")


def event(body: bytes, **headers: Any) -> Any:
    return message(
        {"task": "rel.create_record", "id": GUID, "lang": "py"} | headers,
        {"correlation_id": GUID, "user_id": "somebody"},
        body,
        "rel.write",
    )


@pytest.mark.parametrize(
    "value", ["NaN", "-Infinity", "1e999", "-1E+400", "1" + "0" * 400 + ".0", r'"\ud800"', r'{"\uDFFF": 1}']
)
def test_a_value_that_no_json_has_is_refused(value: str) -> None:
    with pytest.raises(MalformedEvent, match="half a character"):
        check(event(f'[[], {{"payload": [{value}]}}, {{}}]'.encode()), 10_000, "workers")


@pytest.mark.parametrize("value", ['"NaN"', "1e99", '"Infinity"', r'"\ud83d\ude00"', r'"\\ud800"', "1" * 400])
def test_what_only_looks_like_one_passes(value: str) -> None:
    check(event(f'[[], {{"payload": {value}}}, {{}}]'.encode()), 10_000, "workers")


def test_what_is_nested_reaches_no_slot() -> None:
    """Pickle handles a few hundred levels; deeper nesting would block the slot that shall receive it."""
    deep: Any = json.loads("[" * 600 + "]" * 600)
    for body, headers, field in (
        ([deep, {}, {}], {}, "args"),
        ([[], {"a": deep}, {}], {}, "body"),
        ([[], {}, {}], {"x-deep": deep}, "headers"),
    ):
        with pytest.raises(MalformedEvent) as caught:
            check(event(json.dumps(body).encode(), **headers), 10_000, "workers")
        assert caught.value.detail["field"] == field


def test_commas_in_a_text_are_no_values() -> None:
    check(event(json.dumps([[], {"payload": "," * 300_000}, {}]).encode()), 1_000_000, "workers")
    with pytest.raises(MalformedEvent, match="send fewer records"):
        check(event(json.dumps([[], {"payload": [1] * 300_000}, {}]).encode()), 1_000_000, "workers")

"""The judge of messages: whatever comes, it is an event or MalformedEvent, and nothing else happens."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from beds.broker.intake import check
from beds.errors import MalformedEvent

ROUTES = {"rel.create_record": {"queue": "rel.write"}, "admin.write_logs": {"queue": "beds.logs"}}
GUID = "01a20d9f-cec8-76f3-8b35-c900cdc2ad61"
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
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
    properties=st.dictionaries(st.sampled_from(["correlation_id", "reply_to"]), anything),
    body=anything,
    key=st.sampled_from(["rel.write", "beds.logs", "log.info", "", "x" * 300]),
)
def test_any_message_is_judged(headers: Any, properties: Any, body: Any, key: str) -> None:
    try:
        check(message(headers, properties, body, key), ROUTES, 10_000)
    except MalformedEvent as error:
        assert error.detail["field"]


@given(kwargs=st.dictionaries(st.text(min_size=1, max_size=10), anything, max_size=3))
def test_only_what_has_the_form_of_an_event_passes(kwargs: Any) -> None:
    headers = {"task": "rel.create_record", "id": GUID, "lang": "py"}
    kwargs.pop("self", None)
    good = message(headers, {"correlation_id": GUID}, [[], kwargs, {}], "rel.write")
    check(good, ROUTES, 1_000_000)

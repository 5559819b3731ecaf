"""Whatever a caller sends comes back as it was, or is refused with a typed error: both real adapters."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beds.config import Settings
from beds.domain.event import Operation
from beds.domain.identity import uuid7
from beds.errors import InvalidPayload
from beds.services.dispatch import carry_out
from beds.services.factory import AdapterFactory
from beds.templates.registry import TemplateRegistry

TEXT = st.text(max_size=60) | st.sampled_from(["$gt", "a.b", "__type__", "\x00", "'", "${x}", "$$NOW"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(max_size=210),
        "whole": st.integers(),
        "ratio": st.floats() | st.integers(-(2**70), 2**70),
        "price": st.decimals(),
        "flag": st.booleans(),
        "moment": st.datetimes(timezones=st.just(UTC)),
        "token": st.uuids(),
        "raw": st.binary(max_size=1010),
        "extra": st.dictionaries(TEXT, JSON, max_size=4),
        "list": st.lists(JSON, max_size=4),
    },
)


@pytest.fixture(scope="module")
def factory(project: Any, stack: Any) -> Iterator[AdapterFactory]:
    from beds.config import load_settings

    loaded: Settings = load_settings(project / "beds.toml")
    found = AdapterFactory(loaded, TemplateRegistry.from_folder(loaded.schema_path))
    yield found
    found.close()


@pytest.mark.parametrize("template", ["SampleRows", "SampleDocs"])
@pytest.mark.parametrize("bulk", [False, True])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=RECORDS)
def test_a_record_survives_or_is_refused(
    factory: AdapterFactory, template: str, bulk: bool, record: dict[str, Any]
) -> None:
    store = factory.registry[template].store
    payload = {"id": str(uuid7()), **record}
    try:
        if bulk:
            carry_out(factory, store, Operation.CREATE_MANY, template, {"payloads": [payload]})
        else:
            carry_out(factory, store, Operation.CREATE, template, {"payload": payload})
    except InvalidPayload as refused:
        assert refused.detail["field"]
        refused_too = carry_out(
            factory, store, Operation.FETCH, template, {"using": "by_id", "args": {"id": payload["id"]}}
        )
        assert not refused_too.records  # type: ignore[union-attr]
        return
    page = carry_out(factory, store, Operation.FETCH, template, {"using": "by_id", "args": {"id": payload["id"]}})
    found = page.records[0]  # type: ignore[union-attr]
    for name, value in record.items():
        expected = value.replace(microsecond=value.microsecond // 1000 * 1000) if name == "moment" else value
        assert found[name] == expected, name

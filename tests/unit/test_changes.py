"""The log of changes: one order, each change once, and no gap that a reader would not see."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from beds import testing
from beds.adapters.memory import MemoryAdapter, MemoryStore
from beds.domain.change import parse_position
from beds.domain.event import Operation, Store
from beds.domain.lineage import Lineage
from beds.domain.trace import Trace, tracing
from beds.errors import ChangesExpired, DuplicateKey, InvalidCursor, MalformedEvent, OutOfRange, UnknownOperation
from beds.services.changes import EXPIRE_EVERY, READ_AT_ONCE, ChangeLog, read_changes
from beds.templates.registry import TemplateRegistry

SCHEMA = Path("tests/schema")


@pytest.fixture
def factory() -> testing.MemoryFactory:
    return testing.MemoryFactory(TemplateRegistry.from_folder(SCHEMA), testing.CHANGES)


@pytest.fixture
def log(factory: testing.MemoryFactory) -> ChangeLog:
    return ChangeLog(factory, ttl_days=1)


def audit(guid: str, template: str = "SampleDocs", **more: Any) -> dict[str, Any]:
    return {
        "event_id": guid,
        "parent_id": f"node.test.{guid}",
        "template": template,
        "operation": "create_record",
        "record_id": guid,
        "affected": 1,
        "outcome": "ok",
        "at": datetime(2026, 1, 1, tzinfo=UTC),
        **more,
    }


def documents(factory: testing.MemoryFactory) -> dict[Any, Any]:
    store = factory.adapter("msChanges")._store
    assert isinstance(store, MemoryStore)
    return store.records


def keys(log: ChangeLog, after: str = "", limit: int = 1000) -> list[str]:
    return [change.record_id for change in log.read("SampleDocs", parse_position(after), limit).changes]


def test_changes_are_read_once_in_their_order_from_any_position(log: ChangeLog) -> None:
    log.append([audit("a"), audit("b")])
    log.append([audit("c")])
    found = log.read("SampleDocs", None, 10)
    assert [(change.position, change.record_id) for change in found.changes] == [
        ("1-1", "a"),
        ("1-2", "b"),
        ("2-1", "c"),
    ]
    assert found.complete
    assert keys(log, "1-1") == ["b", "c"]
    assert keys(log, found.position) == []
    log.append([audit("d")])
    assert keys(log, found.position) == ["d"]


def test_a_limit_leaves_the_rest_for_the_next_read(log: ChangeLog) -> None:
    log.append([audit(name) for name in "abc"])
    first = log.read("SampleDocs", None, 2)
    assert ([c.record_id for c in first.changes], first.complete) == (["a", "b"], False)
    second = log.read("SampleDocs", parse_position(first.position), 2)
    assert ([c.record_id for c in second.changes], second.complete) == (["c"], True)


@pytest.mark.parametrize(
    "record",
    [
        audit("x", outcome="conflict"),
        audit("x", template="AccountDocs"),
        audit("x", template="no template"),
        audit("x", operation="migrate"),
    ],
)
def test_only_committed_writes_of_templates_that_keep_changes_are_kept(log: ChangeLog, record: dict[str, Any]) -> None:
    log.append([record])
    assert log.end().position == "0-0"


def test_a_record_that_comes_again_is_passed_over(log: ChangeLog, factory: testing.MemoryFactory) -> None:
    adapter = factory.adapter("msChanges")
    create = adapter.create_record

    def once(payload: Any) -> Any:  # as the unique index on entries.id
        ids = {entry["id"] for entry in payload["entries"]}
        for document in documents(factory).values():
            if ids & {entry["id"] for entry in document["entries"]}:
                raise DuplicateKey("once")
        return create(payload)

    adapter.create_record = once  # type: ignore[method-assign]
    log.append([audit("a"), audit("b")])
    log.append([audit("b"), audit("c"), audit("c")])
    log.append([audit("a")])
    assert keys(log) == ["a", "b", "c"]


def test_the_loser_of_a_race_takes_the_next_number(log: ChangeLog, factory: testing.MemoryFactory) -> None:
    log.append([audit("a")])
    ChangeLog(factory, ttl_days=1).append([audit("b")])
    log.append([audit("c")])
    assert [change.position for change in log.read("SampleDocs", None, 9).changes] == ["1-1", "2-1", "3-1"]


def test_a_position_that_the_log_no_longer_has_is_refused(log: ChangeLog, factory: testing.MemoryFactory) -> None:
    for name in "abc":
        log.append([audit(name)])
    records = documents(factory)
    del records[1]
    with pytest.raises(ChangesExpired):
        keys(log, "1-1")
    with pytest.raises(ChangesExpired):
        keys(log, "0-0")  # the end of the log, when it was empty
    assert keys(log, "2-1") == ["c"]
    assert keys(log) == ["b", "c"]
    with pytest.raises(ChangesExpired):
        keys(log, "7-1")  # of a log that was restored from a backup


def test_documents_get_an_end_of_life_but_the_newest(log: ChangeLog, factory: testing.MemoryFactory) -> None:
    updates = []
    adapter = factory.adapter("msChanges")
    adapter.update_record = lambda payload, *_: updates.append(payload)  # type: ignore[method-assign,assignment]
    for n in range(EXPIRE_EVERY):
        log.append([audit(str(n))])
    assert [update["number"] for update in updates] == [EXPIRE_EVERY]


def test_a_reader_passes_over_what_is_not_its_own_and_reads_on(log: ChangeLog) -> None:
    for n in range(READ_AT_ONCE + 5):
        log.append([audit(f"other{n}", "SampleRows")])
    log.append([audit("mine")])
    first = log.read("SampleDocs", None, 10)
    assert (first.changes, first.complete) == ((), False)
    assert keys(log, first.position) == ["mine"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"template": "AccountDocs"}, UnknownOperation),
        ({"template": "SampleDocs", "after": "1"}, InvalidCursor),
        ({"template": "SampleDocs", "after": 7}, InvalidCursor),
        ({"template": "SampleDocs", "limit": 0}, OutOfRange),
        ({"template": "SampleDocs", "limit": True}, OutOfRange),
        ({"template": "SampleDocs", "limit": 1001}, OutOfRange),
        ({"template": "SampleDocs", "user": "x"}, MalformedEvent),
    ],
)
def test_a_wrong_question_has_a_typed_error(
    log: ChangeLog, factory: testing.MemoryFactory, body: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        read_changes(log, factory, Store.REC, body)


def test_changes_over_memory(tmp_path: Path) -> None:
    with testing.memory(SCHEMA) as client:
        start = client.changes("SampleDocs", "$").position
        client.call("create_record", "SampleDocs", {"id": "a", "text": "x"})
        client.call("update_record", "SampleDocs", {"id": "a", "text": "y"})
        client.call("delete_record", "SampleDocs", "a")
        found = client.changes("SampleDocs", start)
    assert [(c.operation, c.record_id) for c in found.changes] == [
        ("create_record", "a"),
        ("update_record", "a"),
        ("delete_record", "a"),
    ]


def test_a_log_with_a_hole_is_not_read_over_it(log: ChangeLog, factory: testing.MemoryFactory) -> None:
    """A failover may take back a document that no majority had."""
    for name in "abcd":
        log.append([audit(name)])
    del documents(factory)[3]
    with pytest.raises(ChangesExpired):
        keys(log, "1-1")


def test_a_reply_has_no_more_bytes_than_a_message_may_have(factory: testing.MemoryFactory) -> None:
    small = ChangeLog(factory, ttl_days=1, max_bytes=2000)
    small.append([audit(str(n), record_id="é" * 100) for n in range(10)])
    found = small.read("SampleDocs", None, 1000)
    assert (len(found.changes), found.complete) == (3, False)
    assert len(small.read("SampleDocs", parse_position(found.position), 1000).changes) == 3


def test_a_template_with_changes_has_a_ledger_entry_for_each_delete(tmp_path: Path) -> None:
    """A delete that is repeated without one fails with not_found, and would be no change."""
    registry = TemplateRegistry.from_folder(SCHEMA)
    template = registry["SampleDocs"]
    assert template.delete is not None
    repeatable = template.model_copy(update={"delete": template.delete.model_copy(update={"idempotent": True})})
    adapter = MemoryAdapter(repeatable)
    adapter.create_record({"id": "a"})
    trace = Trace(Lineage.root("n", "test"), "user", operation=Operation.DELETE, template="SampleDocs")
    for _ in range(2):
        trace.steps = 0
        with tracing(trace):
            assert adapter.delete_record("a").affected == 1

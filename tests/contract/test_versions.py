"""Expected versions: each adapter compares them, and a lost update is an error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson.binary import Binary

from beds.domain.event import Operation
from beds.domain.lineage import Lineage
from beds.domain.reply import Record
from beds.domain.trace import Trace, tracing
from beds.errors import (
    InvalidPayload,
    MalformedEvent,
    NotFound,
    OutOfRange,
    PreconditionFailed,
    StoreUnavailable,
    UnknownField,
    WrongType,
)
from tests.contract.conftest import KINDS, Subject, subject_of


@pytest.fixture(params=KINDS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with subject_of(request, rows="VersionedRows", documents="VersionedDocs") as found:
        yield found


@pytest.fixture(params=KINDS)
def others(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Versions that are no numbers: a UUID in MariaDB, a datetime in MongoDB."""
    with subject_of(request, rows="VersionedTokens", documents="VersionedMoments") as found:
        yield found


@pytest.fixture(params=KINDS)
def samples(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Templates without a version."""
    with subject_of(request, rows="SampleRows", documents="SampleDocs") as found:
        yield found


def stored(subject: Subject, key: str) -> Record:
    (record,) = subject.by_id(key)
    return record


def made(subject: Subject, key: str) -> int:
    """Create a record; returns its version."""
    subject.create(id=key, text="first")
    version: int = stored(subject, key)["revision"]
    return version


def update(subject: Subject, key: str, text: str, **more: Any) -> Any:
    return subject.do(Operation.UPDATE, payload={"id": key, "text": text}, **more)


def test_a_new_record_has_a_version(subject: Subject, key: str) -> None:
    assert isinstance(made(subject, key), int)
    ids = [f"{key[-20:]}-{n}" for n in range(3)]
    subject.do(Operation.CREATE_MANY, payloads=[{"id": each} for each in ids])
    assert len({stored(subject, each)["revision"] for each in ids}) == 1
    assert stored(subject, ids[0])["revision"] is not None


def test_the_second_of_two_updates_of_one_version_fails(subject: Subject, key: str) -> None:
    version = made(subject, key)
    assert update(subject, key, "mine", expected_version=version).affected == 1
    after = stored(subject, key)
    assert (after["text"], after["revision"]) == ("mine", version + 1)
    with pytest.raises(PreconditionFailed) as caught:
        update(subject, key, "theirs", expected_version=version)
    assert caught.value.detail == {"template": subject.template, "record_id": key, "field": "revision"}
    assert "fetch the record again" in caught.value.hint
    assert not caught.value.retryable
    assert stored(subject, key) == after
    assert update(subject, key, "again", expected_version=version + 1).affected == 1


def test_a_delete_compares_too(subject: Subject, key: str) -> None:
    version = made(subject, key)
    update(subject, key, "second")
    with pytest.raises(PreconditionFailed):
        subject.do(Operation.DELETE, record_id=key, expected_version=version)
    assert stored(subject, key)["text"] == "second"
    assert subject.do(Operation.DELETE, record_id=key, expected_version=version + 1).affected == 1
    assert not subject.by_id(key)


def test_a_missing_record_has_no_version(subject: Subject, key: str) -> None:
    with pytest.raises(PreconditionFailed):
        update(subject, key, "x", expected_version=0)
    with pytest.raises(PreconditionFailed):
        subject.do(Operation.DELETE, record_id=key, expected_version=0)
    for nothing in ({}, {"expected_version": None}):
        with pytest.raises(NotFound):
            update(subject, key, "x", **nothing)
        with pytest.raises(NotFound):
            subject.do(Operation.DELETE, record_id=key, **nothing)


def test_without_an_expected_version_nothing_is_compared(subject: Subject, key: str) -> None:
    version = made(subject, key)
    update(subject, key, "second")
    update(subject, key, "third", expected_version=None)
    assert stored(subject, key)["revision"] == version + 2
    assert subject.do(Operation.DELETE, record_id=key, expected_version=None).affected == 1


@pytest.mark.parametrize("value", ["1", True, 1.0, [1], {"$gt": -1}, b"1"])
def test_a_version_of_another_type_is_refused(subject: Subject, key: str, value: Any) -> None:
    made(subject, key)
    with pytest.raises(WrongType) as caught:
        update(subject, key, "x", expected_version=value)
    assert caught.value.detail["field"] == "expected_version"
    with pytest.raises(WrongType):
        subject.do(Operation.DELETE, record_id=key, expected_version=value)
    assert stored(subject, key)["text"] == "first"


def test_a_version_beyond_the_stores_type_is_refused(subject: Subject, key: str) -> None:
    made(subject, key)
    with pytest.raises(PreconditionFailed if subject.kind.startswith("memory") else OutOfRange) as caught:
        update(subject, key, "x", expected_version=2**63)
    if not subject.kind.startswith("memory"):
        assert caught.value.detail["field"] == "expected_version"


def test_an_update_does_not_set_the_version(subject: Subject, key: str) -> None:
    version = made(subject, key)
    with pytest.raises(UnknownField, match="expected_version") as caught:
        subject.do(Operation.UPDATE, payload={"id": key, "text": "x", "revision": version})
    assert caught.value.detail["field"] == "revision"
    assert stored(subject, key)["revision"] == version


def test_an_operation_that_compares_nothing_takes_no_version(subject: Subject, key: str) -> None:
    made(subject, key)
    for operation, body in (
        (Operation.CREATE, {"payload": {"id": key + "2"}}),
        (Operation.CREATE_MANY, {"payloads": [{"id": key + "2"}]}),
        (Operation.FETCH, {"using": "by_id", "args": {"id": key}}),
    ):
        with pytest.raises(UnknownField, match="update_record") as caught:
            subject.do(operation, **body, expected_version=0)
        assert caught.value.detail["field"] == "expected_version"
    assert not subject.by_id(key + "2")
    with pytest.raises(MalformedEvent):
        update(subject, key, "x", expected=0)


def test_a_template_without_a_version_takes_none(samples: Subject, key: str) -> None:
    samples.create(id=key, whole=1)
    for act in (
        lambda: samples.do(Operation.UPDATE, payload={"id": key, "whole": 2}, expected_version=1),
        lambda: samples.do(Operation.DELETE, record_id=key, expected_version=1),
        lambda: samples.adapter.update_record({"id": key, "whole": 2}, 1),
        lambda: samples.adapter.delete_record(key, 1),
    ):
        with pytest.raises(UnknownField) as caught:
            act()
        assert caught.value.detail["field"] == "expected_version"
        assert isinstance(caught.value, InvalidPayload)
    assert stored(samples, key)["whole"] == 1


def test_a_repeated_write_gets_its_first_answer(subject: Subject, key: str) -> None:
    version = made(subject, key)
    done, refused = Lineage.root("test", "contract"), Lineage.root("test", "contract")
    answers = []
    for _ in range(2):
        with tracing(Trace(done)):
            answers.append(update(subject, key, "mine", expected_version=version))
    assert answers[0] == answers[1]
    assert stored(subject, key)["revision"] == version + 1
    for _ in range(2):
        with tracing(Trace(refused)), pytest.raises(PreconditionFailed) as caught:
            update(subject, key, "theirs", expected_version=version + 2)
        update(subject, key, "a third one's")  # from here on the record has the version that was refused
    assert caught.value.detail["record_id"] == key
    assert stored(subject, key)["text"] == "a third one's"
    gone = Lineage.root("test", "contract")
    for _ in range(2):
        with tracing(Trace(gone)):
            assert subject.do(Operation.DELETE, record_id=key, expected_version=version + 3).affected == 1


def test_a_version_need_be_no_number(others: Subject, key: str) -> None:
    others.create(id=key, text="first")
    field, kind = ("changed", datetime) if others.template == "VersionedMoments" else ("token", UUID)
    version = stored(others, key)[field]
    assert isinstance(version, kind)
    time.sleep(0.005)  # the next write has another millisecond
    once = Lineage.root("test", "contract")
    for _ in range(2):  # also where the template calls the update idempotent
        with tracing(Trace(once)):
            assert update(others, key, "mine", expected_version=version).affected == 1
    after = stored(others, key)
    assert after["text"] == "mine"
    assert after[field] != version
    with pytest.raises(PreconditionFailed) as caught:
        update(others, key, "theirs", expected_version=version)
    assert caught.value.detail["field"] == field
    assert stored(others, key) == after
    if others.kind == "mariadb":
        with pytest.raises(UnknownField, match="versioned_drop"):
            others.do(Operation.DELETE, record_id=key, expected_version=after[field])
    else:
        with pytest.raises(PreconditionFailed):
            others.do(Operation.DELETE, record_id=key, expected_version=version)
    assert stored(others, key) == after
    assert others.do(Operation.DELETE, record_id=key).affected == 1


def test_a_write_in_doubt_is_not_repeated_without_a_ledger_entry(
    others: Subject, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt may have been committed, and the second would then fail."""
    others.create(id=key, text="first")
    version = stored(others, key)[others.factory.registry[others.template].version or ""]
    store = others.adapter._store  # type: ignore[attr-defined]
    attempts = []

    def broken(*_arguments: Any, **_more: Any) -> Any:
        attempts.append(1)
        raise StoreUnavailable("the connection broke")

    monkeypatch.setattr(store, "execute", broken)
    with pytest.raises(StoreUnavailable):
        others.adapter.update_record({"id": key, "text": "mine"}, version)
    assert len(attempts) == 1


@pytest.fixture(params=["memory-rec", "mongo"])
def notices(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """The sample's own domain with a version."""
    with subject_of(request, rows="", documents="Notices") as found:
        yield found


def test_a_notice_counts_its_amendments(notices: Subject) -> None:
    def revision(of: UUID) -> int | None:
        (notice,) = notices.do(Operation.FETCH, using="by_id", args={"id": of})
        found: int | None = notice.get("revision")
        return found

    snow = {"airport": "JFK", "title": "Snow", "status": "open"}
    key = UUID(notices.create(**snow).record_id)
    many = [uuid4(), uuid4()]
    notices.do(Operation.CREATE_MANY, payloads=[{"id": each, **snow} for each in many])
    assert [revision(each) for each in (key, *many)] == [0, 0, 0]
    amended = notices.do(Operation.UPDATE, payload={"id": key, "severity": 4}, expected_version=0)
    if notices.kind == "mongo":
        assert (amended.record["severity"], amended.record["revision"]) == (4, 1)
    with pytest.raises(PreconditionFailed):
        notices.do(Operation.UPDATE, payload={"id": key, "severity": 5}, expected_version=0)
    with pytest.raises(PreconditionFailed):
        notices.do(Operation.DELETE, record_id=key, expected_version=0)
    assert revision(key) == 1
    assert notices.do(Operation.UPDATE, payload={"id": key, "severity": 5}).affected == 1
    assert notices.do(Operation.DELETE, record_id=key, expected_version=2).affected == 1
    for each in many:
        assert notices.do(Operation.DELETE, record_id=each).affected == 1


def test_a_notice_of_before_has_its_first_revision_after_an_amendment(notices: Subject, database: Any) -> None:
    if notices.kind != "mongo":
        return  # memory has no data of before
    key = uuid4()
    database.notices.insert_one({"_id": Binary.from_uuid(key), "airport": "JFK", "title": "Old", "status": "open"})
    with pytest.raises(PreconditionFailed):
        notices.do(Operation.UPDATE, payload={"id": key, "severity": 1}, expected_version=0)
    amended = notices.do(Operation.UPDATE, payload={"id": key, "severity": 1})
    assert amended.record["revision"] == 1
    assert notices.do(Operation.DELETE, record_id=key, expected_version=1).affected == 1

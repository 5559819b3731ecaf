"""One behaviour for every adapter."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from beds.domain.event import Operation
from beds.domain.identity import ObjectId
from beds.domain.lineage import Lineage
from beds.domain.trace import Trace, tracing
from beds.errors import (
    BedsError,
    BusinessRule,
    DuplicateKey,
    ForeignKeyViolation,
    InvalidCursor,
    InvalidPayload,
    MissingField,
    NotFound,
    OutOfRange,
    TimeLimitExceeded,
    TooLong,
    UnknownFetch,
    UnknownField,
    UnknownOperation,
    UnknownTemplate,
    WrongType,
)
from tests.contract.conftest import Subject

FULL = {
    "text": "Größe 😀 ' \" \\ ; --",
    "whole": 2**63 - 1,
    "ratio": 0.1 + 0.2,
    "price": Decimal("1234567890123456.7891"),
    "flag": True,
    "moment": datetime(2013, 7, 1, 12, 30, 15, 123000, tzinfo=UTC),
    "token": UUID("12345678-1234-5678-1234-567812345678"),
    "raw": bytes(range(256)),
    "extra": {"a": [1, 2.5, None, True, {"b": "c"}]},
    "list": [1, "two", None, [3]],
    "parent": None,
}


def test_a_record_comes_back_as_it_was_written(subject: Subject, key: str) -> None:
    response = subject.create(id=key, **FULL)
    assert (response.record_id, response.affected) == (key, 1)
    (record,) = subject.by_id(key)
    assert record == {"id": key, **FULL}
    for name, value in FULL.items():
        assert type(record[name]) is type(value), name


def test_the_extremes_of_each_type_come_back(subject: Subject, key: str) -> None:
    extremes: dict[str, list[Any]] = {
        "whole": [-(2**63), 0, 1],
        "ratio": [5e-324, -1.7976931348623157e308, 0.0, 1e22],
        "price": [Decimal("-9999999999999999.9999"), Decimal("0.0001"), Decimal("0.0000")],
        "moment": [
            datetime(1970, 1, 1, tzinfo=UTC),
            datetime(99, 1, 1, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
        ],
        "raw": [b"", b"\x00", b"\xff" * 1000],
        "text": ["", "\x00", "\u2028", " trailing ", "x" * 200, "null"],
        "extra": [{}, {"": ""}, {"k" * 300: "v"}],
        "list": [[], [[]], list(range(500))],
        "flag": [False],
    }
    for name, values in extremes.items():
        for number, value in enumerate(values):
            record_id = f"{key[-12:]}-{name}-{number}"
            subject.create(id=record_id, **{name: value})
            (record,) = subject.by_id(record_id)
            assert record[name] == value, (name, value)


def test_a_zone_is_kept_as_an_instant(subject: Subject, key: str) -> None:
    local = datetime(2013, 7, 1, 8, 30, tzinfo=timezone(timedelta(hours=-4)))
    subject.create(id=key, moment=local)
    (record,) = subject.by_id(key)
    assert record["moment"] == local
    assert record["moment"].utcoffset() == timedelta(0)


def test_a_field_left_out_is_null(subject: Subject, key: str) -> None:
    subject.create(id=key, text="only")
    (record,) = subject.by_id(key)
    assert record["text"] == "only"
    assert record.get("whole") is None


def test_update_changes_what_is_given_and_nothing_else(subject: Subject, key: str) -> None:
    subject.create(id=key, text="before", whole=1)
    response = subject.do(Operation.UPDATE, payload={"id": key, "whole": 2})
    assert response.affected == 1
    (record,) = subject.by_id(key)
    assert (record["text"], record["whole"]) == ("before", 2)


def test_an_update_to_the_same_value_finds_its_record(subject: Subject, key: str) -> None:
    subject.create(id=key, whole=1)
    assert subject.do(Operation.UPDATE, payload={"id": key, "whole": 1}).affected == 1


def test_update_and_delete_of_nothing_are_not_found(subject: Subject, key: str) -> None:
    with pytest.raises(NotFound):
        subject.do(Operation.UPDATE, payload={"id": key, "whole": 1})
    with pytest.raises(NotFound) as caught:
        subject.do(Operation.DELETE, record_id=key)
    assert caught.value.detail["record_id"] == key


def test_delete_removes_one_record(subject: Subject, key: str) -> None:
    subject.create(id=key)
    assert subject.do(Operation.DELETE, record_id=key).affected == 1
    assert len(subject.by_id(key)) == 0


def test_a_second_record_under_one_key_is_refused(subject: Subject, key: str) -> None:
    subject.create(id=key, text="first")
    with pytest.raises(DuplicateKey) as caught:
        subject.create(id=key, text="second")
    assert caught.value.detail["field"] == "id"
    assert not caught.value.retryable
    assert subject.by_id(key)[0]["text"] == "first"


def test_bulk_create_keeps_every_type(subject: Subject, key: str) -> None:
    ids = [f"{key[-20:]}-{n}" for n in range(50)]
    response = subject.do(Operation.CREATE_MANY, payloads=[{"id": i, **FULL} for i in ids])
    assert response.affected == 50
    for record_id in ids:
        assert subject.by_id(record_id)[0] == {"id": record_id, **FULL}


def test_a_bulk_create_with_one_bad_record_names_it(subject: Subject, key: str) -> None:
    with pytest.raises(WrongType) as caught:
        subject.do(Operation.CREATE_MANY, payloads=[{"id": key}, {"id": key + "2", "whole": "x"}])
    assert caught.value.detail["where"] == "payloads[1]"
    assert len(subject.by_id(key)) == 0


def test_a_bulk_create_over_an_existing_key_adds_nothing(subject: Subject, key: str) -> None:
    subject.create(id=key[-30:])
    fresh = key[-30:] + "-fresh"
    with pytest.raises(DuplicateKey):
        subject.do(Operation.CREATE_MANY, payloads=[{"id": fresh}, {"id": key[-30:]}])
    assert len(subject.by_id(fresh)) == 0


def test_pages_follow_each_other_without_gap_or_overlap(subject: Subject, key: str) -> None:
    ids = [f"{key[-20:]}-{n:03}" for n in range(25)]
    subject.do(Operation.CREATE_MANY, payloads=[{"id": i, "text": key} for i in ids])
    seen: list[str] = []
    cursor, sizes = "", []
    while True:
        page = subject.do(Operation.FETCH, using="by_text", args={"text": key}, limit=10, cursor=cursor)
        seen += [record["id"] for record in page]
        sizes.append(len(page))
        cursor = page.cursor
        if not cursor:
            break
    assert seen == ids
    assert sizes == [10, 10, 5]


def test_a_cursor_of_elsewhere_is_refused(subject: Subject, key: str) -> None:
    for cursor in ("nonsense", "e30", "AAAA", "=", "W10"):
        with pytest.raises(InvalidCursor):
            subject.do(Operation.FETCH, using="by_text", args={"text": key}, cursor=cursor)


def test_unknown_names_are_told_with_the_nearest(subject: Subject) -> None:
    with pytest.raises(UnknownFetch, match="did you mean 'by_id'"):
        subject.do(Operation.FETCH, using="by_idd", args={})
    with pytest.raises(UnknownFetch):
        subject.do(Operation.FETCH, args={})
    with pytest.raises(UnknownTemplate, match="did you mean 'Flights'"):
        subject.factory.registry["Flight"]
    with pytest.raises(UnknownOperation):
        subject.factory.registry["Flights"].model_copy(update={"delete": None}).object_for(Operation.DELETE)


@pytest.mark.parametrize(
    ("payload", "error", "field"),
    [
        ({"text": "no key"}, MissingField, "id"),
        ({"id": None}, MissingField, "id"),
        ({"id": "K", "colour": 1}, UnknownField, "colour"),
        ({"id": "K", "": 1}, UnknownField, ""),
        ({"id": "K", "$set": 1}, UnknownField, "$set"),
        ({"id": "K", "whole": "1"}, WrongType, "whole"),
        ({"id": "K", "whole": True}, WrongType, "whole"),
        ({"id": "K", "whole": 1.0}, WrongType, "whole"),
        ({"id": "K", "whole": 2**64}, OutOfRange, "whole"),
        ({"id": "K", "ratio": math.nan}, OutOfRange, "ratio"),
        ({"id": "K", "ratio": math.inf}, OutOfRange, "ratio"),
        ({"id": "K", "text": "x" * 201}, TooLong, "text"),
        ({"id": "K", "text": "\ud800"}, WrongType, "text"),
        ({"id": "K", "text": {"$gt": ""}}, WrongType, "text"),
        ({"id": "K", "raw": b"x" * 1001}, TooLong, "raw"),
        ({"id": "K", "raw": "text"}, WrongType, "raw"),
        ({"id": "K", "price": 1.5}, WrongType, "price"),
        ({"id": "K", "price": Decimal("0.00001")}, OutOfRange, "price"),
        ({"id": "K", "price": Decimal("1e17")}, OutOfRange, "price"),
        ({"id": "K", "price": Decimal("NaN")}, OutOfRange, "price"),
        ({"id": "K", "moment": datetime(2013, 1, 1)}, WrongType, "moment"),
        ({"id": "K", "moment": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))}, OutOfRange, "moment"),
        ({"id": "K", "token": "12345678-1234-5678-1234-567812345678"}, WrongType, "token"),
        ({"id": "K", "token": ObjectId("0" * 24)}, WrongType, "token"),
        ({"id": "K", "extra": [1]}, WrongType, "extra"),
        ({"id": "K", "extra": {1: 2}}, WrongType, "extra"),
        ({"id": "K", "extra": {"a": {"b": math.nan}}}, OutOfRange, "extra.a.b"),
        ({"id": "K", "extra": {"a": object()}}, WrongType, "extra.a"),
        ({"id": "K", "list": [datetime(2013, 1, 1)]}, WrongType, "list.0"),
        ("not a record", WrongType, "payload"),
        (None, WrongType, "payload"),
        ([1], WrongType, "payload"),
    ],
)
def test_bad_data_is_refused_with_the_field(
    subject: Subject, key: str, payload: Any, error: type[BedsError], field: str
) -> None:
    if isinstance(payload, dict) and payload.get("id") == "K":
        payload = {**payload, "id": key}
    with pytest.raises(error) as caught:
        subject.do(Operation.CREATE, payload=payload)
    assert caught.value.detail["field"] == field
    assert isinstance(caught.value, InvalidPayload)
    assert len(subject.by_id(key)) == 0


def test_deep_nesting_is_refused(subject: Subject, key: str) -> None:
    deep: Any = "bottom"
    for _ in range(200):
        deep = {"d": deep}
    with pytest.raises(InvalidPayload, match="nested deeper"):
        subject.create(id=key, extra=deep)


def test_a_fetch_tells_missing_and_surplus_arguments(subject: Subject) -> None:
    with pytest.raises(UnknownField) as caught:
        subject.do(Operation.FETCH, using="by_id", args={"id": "x", "colour": 1})
    assert caught.value.detail["field"] == "colour"
    for limit in (0, -1, 1001):
        with pytest.raises(OutOfRange):
            subject.do(Operation.FETCH, using="by_id", args={"id": "x"}, limit=limit)


def test_a_missing_argument_is_told_by_the_stores_that_know_the_signature(subject: Subject) -> None:
    if subject.kind.startswith("memory"):
        return  # in memory every field is an optional argument
    with pytest.raises(MissingField) as caught:
        subject.do(Operation.FETCH, using="by_text", args={})
    assert caught.value.detail["field"] == "text"


def test_a_rule_of_the_store_comes_with_its_words(subject: Subject, key: str) -> None:
    if subject.kind == "mariadb":
        with pytest.raises(BusinessRule, match="this text is forbidden") as caught:
            subject.create(id=key, text="forbidden")
        assert caught.value.detail["sqlstate"] == "45007"
    elif subject.kind == "mongo":
        with pytest.raises(InvalidPayload) as refused:
            subject.create(id=key, text="forbidden")
        assert refused.value.detail["field"] == "text"
    assert len(subject.by_id(key)) == 0


def test_a_missing_parent_breaks_the_foreign_key(subject: Subject, key: str) -> None:
    if subject.kind != "mariadb":
        return  # only tables have foreign keys
    with pytest.raises(ForeignKeyViolation) as caught:
        subject.create(id=key, parent="nobody")
    assert caught.value.detail["field"] == "parent"
    subject.create(id=key[-20:])
    subject.create(id=key, parent=key[-20:])
    with pytest.raises(ForeignKeyViolation):
        subject.do(Operation.DELETE, record_id=key[-20:])


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE samples; --",
        '" OR 1=1 --',
        "\\'; SELECT 1; #",
        '{"$gt": ""}',
        "$where",
        "$password",
        "$$ROOT",
        "%s %(name)s {0}",
        "a\x00b",
        "`samples`",
        "${jndi:ldap://x}",
        "<script>",
    ],
)
def test_text_that_looks_like_code_is_stored_as_text(subject: Subject, key: str, text: str) -> None:
    subject.create(id=key, text=text, extra={"inside": text}, list=[text])
    (record,) = subject.by_id(key)
    assert (record["text"], record["extra"], record["list"]) == (text, {"inside": text}, [text])
    page = subject.do(Operation.FETCH, using="by_text", args={"text": text}, limit=1000)
    assert key in [found["id"] for found in page]


@pytest.mark.parametrize(
    "extra",
    [
        {"$gt": ""},
        {"$set": {"id": "other"}},
        {"$param": "id"},
        {"$where": "sleep(1000)"},
        {"a.b": 1, ".": 2, "a": {"b": 3}},
        {"$ref": "samples", "$id": 1},
        {"__type__": "datetime", "__value__": "nonsense"},
        {"$decimal": "not a decimal"},
        {"$pairs": [["a", 1]]},
        {"_id": 1},
        {"": {"": {"": 0}}},
    ],
)
def test_keys_that_look_like_operators_are_stored_as_keys(subject: Subject, key: str, extra: dict[str, Any]) -> None:
    subject.create(id=key, extra=extra)
    assert subject.by_id(key)[0]["extra"] == extra


def test_typed_values_inside_objects_survive_or_are_refused(subject: Subject, key: str) -> None:
    extra = {"when": datetime(2013, 1, 1, tzinfo=UTC), "who": uuid4(), "oid": ObjectId.generate(), "raw": b"\xff"}
    if subject.kind == "mariadb":
        with pytest.raises(WrongType, match=r"extra\.when"):
            subject.create(id=key, extra=extra)
        return
    subject.create(id=key, extra=extra)
    assert subject.by_id(key)[0]["extra"] == extra


def test_an_operator_as_argument_is_refused(subject: Subject) -> None:
    for value in ({"$gt": ""}, {"$ne": None}, ["x"]):
        with pytest.raises(WrongType):
            subject.do(Operation.FETCH, using="by_text", args={"text": value})
        with pytest.raises(WrongType):
            subject.do(Operation.DELETE, record_id=value)


def test_an_event_has_its_effect_once_however_often_it_is_carried_out(subject: Subject, key: str) -> None:
    lineage = Lineage.root("test", "contract")
    payload = {"id": key, "text": "once"}
    answers = []
    for _ in range(3):
        with tracing(Trace(lineage)):
            answers.append(subject.create(**payload))
    assert answers[0] == answers[1] == answers[2]
    assert len(subject.by_id(key)) == 1
    with tracing(Trace(Lineage.root("test", "contract"))), pytest.raises(DuplicateKey):
        subject.create(**payload)  # another event with the same data is another event


def test_a_refusal_is_remembered_too(subject: Subject, key: str) -> None:
    lineage = Lineage.root("test", "contract")
    with tracing(Trace(lineage)), pytest.raises(NotFound):
        subject.do(Operation.DELETE, record_id=key)
    subject.create(id=key)
    with tracing(Trace(lineage)), pytest.raises(NotFound):
        subject.do(Operation.DELETE, record_id=key)
    assert len(subject.by_id(key)) == 1


def test_a_failed_write_leaves_nothing_behind_but_its_answer(subject: Subject, key: str) -> None:
    subject.create(id=key)
    lineage = Lineage.root("test", "contract")
    rows = [{"id": f"{key[:30]}-{n}"} for n in range(3)] + [{"id": key}]
    for _ in range(2):
        with tracing(Trace(lineage)), pytest.raises(DuplicateKey):
            subject.do(Operation.CREATE_MANY, payloads=rows)
    assert not any(len(subject.by_id(row["id"])) for row in rows[:3])


def test_an_event_that_ran_out_of_time_does_not_succeed_later(subject: Subject, key: str) -> None:
    lineage = Lineage.root("test", "contract")
    adapter = subject.factory.adapter(subject.template)
    # It was interrupted before its write began; redelivered, it requests the same write.
    assert adapter.note_failure(Trace(lineage), TimeLimitExceeded("too long")) is None  # type: ignore[attr-defined]
    with tracing(Trace(lineage)), pytest.raises(TimeLimitExceeded):
        subject.create(id=key)
    assert not subject.by_id(key)

"""Stored commands: the allowed positions of a parameter; its value never becomes an operator."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.adapters.mongo.stored_commands import fill, parse
from beds.errors import SchemaMismatch

P = {"$param": "p"}
EVIL: list[Any] = [
    {"$gt": ""},
    {"$where": "1"},
    "$password",
    "$$ROOT",
    {"$each": [1]},
    [{"$ne": None}],
    {"$function": {}},
]


def command(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"name": "c", "kind": kind, "params": {"p": {"bsonType": "object"}}, "command": body}


def filled(kind: str, body: dict[str, Any], value: Any) -> Any:
    return fill(parse(command(kind, body)), {"p": value})


@pytest.mark.parametrize("value", EVIL)
def test_a_filter_compares(value: Any) -> None:
    assert filled("find", {"find": "c", "filter": {"a": P}}, value)["filter"] == {"a": {"$eq": value}}
    nested = {"$or": [{"a": P}, {"b": {"$lt": P}}], "c": {"$not": {"$gt": P}}}
    assert filled("find", {"find": "c", "filter": nested}, value)["filter"] == {
        "$or": [{"a": {"$eq": value}}, {"b": {"$lt": value}}],
        "c": {"$not": {"$gt": value}},
    }


@pytest.mark.parametrize("value", EVIL)
def test_an_expression_takes_a_literal(value: Any) -> None:
    pipeline = [{"$match": {"a": P}}, {"$set": {"b": P}}, {"$group": {"_id": {"$concat": ["$x", P]}}}]
    assert filled("aggregate", {"aggregate": "c", "pipeline": pipeline}, value)["pipeline"] == [
        {"$match": {"a": {"$eq": value}}},
        {"$set": {"b": {"$literal": value}}},
        {"$group": {"_id": {"$concat": ["$x", {"$literal": value}]}}},
    ]
    by_expr = filled("find", {"find": "c", "filter": {"$expr": {"$eq": ["$a", P]}}}, value)
    assert by_expr["filter"] == {"$expr": {"$eq": ["$a", {"$literal": value}]}}


@pytest.mark.parametrize("value", EVIL)
def test_an_update_stores(value: Any) -> None:
    body = {
        "update": "c",
        "updates": [{"q": {"_id": P}, "u": {"$set": {"a": P}, "$push": {"b": P}, "$pull": {"c": P}}}],
    }
    assert filled("update", body, value)["updates"] == [
        {
            "q": {"_id": {"$eq": value}},
            "u": {"$set": {"a": value}, "$push": {"b": {"$each": [value]}}, "$pull": {"c": {"$eq": value}}},
        }
    ]
    as_pipeline = {"update": "c", "updates": [{"q": {"_id": P}, "u": [{"$set": {"a": P}}]}]}
    assert filled("update", as_pipeline, value)["updates"][0]["u"] == [{"$set": {"a": {"$literal": value}}}]


@given(st.recursive(st.text(), lambda i: st.dictionaries(st.text(), i) | st.lists(i)))
def test_no_value_changes_the_shape_of_a_command(value: Any) -> None:
    body = {"find": "c", "filter": {"a": P, "b": {"$gte": P}}, "sort": {"a": 1}}
    result = filled("find", body, value)
    assert list(result) == ["find", "filter", "sort"]
    assert result["filter"] == {"a": {"$eq": value}, "b": {"$gte": value}}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("find", {"find": P, "filter": {"a": P}}),
        ("find", {"find": "c", "filter": P}),
        ("find", {"find": "c", "filter": {"$or": [P]}}),
        ("find", {"find": "c", "filter": {"a": {"$not": P}}}),
        ("find", {"find": "c", "filter": {"a": {"$elemMatch": P}}}),
        ("find", {"find": "c", "filter": {"a": {"$regex": P}}}),
        ("find", {"find": "c", "filter": {"a": {"b": P}}}),
        ("find", {"find": "c", "filter": {"$where": "1", "a": P}}),
        ("find", {"find": "c", "filter": {"a": P}, "sort": P}),
        ("find", {"find": "c", "filter": {"a": P}, "projection": {"x": P}}),
        ("aggregate", {"aggregate": "c", "pipeline": [P]}),
        ("aggregate", {"aggregate": "c", "pipeline": [{"$match": P}]}),
        ("aggregate", {"aggregate": "c", "pipeline": [{"$match": {"a": P}}, {"$out": "x"}]}),
        ("aggregate", {"aggregate": "c", "pipeline": [{"$set": {"a": {"$function": {"body": P}}}}]}),
        ("update", {"update": "c", "updates": [{"q": {"a": 1}, "u": P}]}),
        ("update", {"update": "c", "updates": [{"q": {"a": 1}, "u": {"$push": P}}]}),
        ("update", {"update": "c", "updates": [{"q": {"a": 1}, "u": {"$rename": {"a": P}}}]}),
        ("update", {"update": "c", "updates": [{"q": P, "u": {"$set": {"a": 1}}}]}),
        ("delete", {"delete": "c", "deletes": [{"q": P, "limit": 1}]}),
        ("find", {"find": "c", "filter": {"a": {"$param": "undeclared"}, "b": P}}),
        ("find", {"find": "c", "filter": {}}),
        ("find", {"aggregate": "c", "pipeline": []}),
        ("drop", {"drop": "c"}),
        ("insert", {"drop": "c", "x": P}),
    ],
)
def test_a_command_with_a_parameter_in_a_dangerous_place_is_refused(kind: str, body: dict[str, Any]) -> None:
    with pytest.raises(SchemaMismatch, match="stored command c"):
        parse(command(kind, body))


@pytest.mark.parametrize(
    "spec",
    [5, {}, {"bsonType": "null"}, {"bsonType": "timestamp"}, {"bsonType": "string", "pattern": "x"}],
)
def test_a_parameter_needs_a_known_type_and_known_rules(spec: Any) -> None:
    source = command("find", {"find": "c", "filter": {"a": P}}) | {"params": {"p": spec}}
    with pytest.raises(SchemaMismatch, match="parameter p"):
        parse(source)

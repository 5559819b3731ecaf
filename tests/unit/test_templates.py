"""Template files, and binding them to objects."""

from __future__ import annotations

import math
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.adapters.bound import _is_cut
from beds.core.namaste import Query
from beds.domain.event import Operation
from beds.errors import ConfigurationError, InvalidPayload, SchemaMismatch, TemplateError, UnknownField, WrongType
from beds.templates.binding import bind, reserved_type
from beds.templates.fields import FieldSpec
from beds.templates.named_object import NamedObject, ObjectKind, Param
from beds.templates.registry import TemplateRegistry
from beds.templates.template import Template, load_template
from tests.conftest import ROOT

MINIMAL = """
[template]
name = "Things"
store = "rel"
key = "id"
[create]
object = "things_create"
[create_many]
object = "things_create_many"
[delete]
object = "things_delete"
[fetch.by_id]
object = "things_by_id"
cursor = ["id"]
[fields.id]
type = "integer"
required = true
[fields.name]
type = "string"
max_length = 10
"""
VERSIONED = (
    MINIMAL.replace('key = "id"', 'key = "id"\nversion = "revision"', 1)
    + """
[fields.revision]
type = "integer"
[update]
object = "things_update"
"""
)


def template(tmp_path: Path, text: str = MINIMAL) -> Template:
    file = tmp_path / "things.toml"
    file.write_text(text)
    return load_template(file)


def param(name: str, field_type: str = "integer", **more: object) -> Param:
    return Param(name, frozenset({field_type}), f"sql {field_type}", **more)  # type: ignore[arg-type]


def procedure(name: str, *params: Param) -> NamedObject:
    return NamedObject(name, ObjectKind.PROCEDURE, params)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('store = "rel"', 'store = "xml"', "template.store"),
        ('key = "id"', 'key = "nope"', "'nope' is not one of the fields"),
        ('type = "integer"', 'type = "int"', "fields.id.type"),
        ("max_length = 10", "max_lenght = 10", "did you mean 'max_length'?"),
        ('cursor = ["id"]', 'cursor = ["x"]', "'x' is not one of the fields"),
        ('cursor = ["id"]', "limit = 5000", "limit is above its max_limit"),
        ('object = "things_create"', 'object = "things; DROP"', "create.object"),
        ('store = "rel"', 'store = "rec"\n', None),
        ("required = true", 'generate = "uuid7"', "makes values of type uuid"),
        ("[create]", "[creat]", "did you mean 'create'?"),
        ("[template]", "template", "cannot be read"),
        ("[template]", f"x = {'[' * 3000}\n[template]", "cannot be read"),
        ('type = "integer"', 'type = "integer"\nmin = 5\nmax = 1', "min is above max"),
        ('type = "integer"', 'type = "integer"\nmin = nan', "no finite number"),
        ("max_length = 10", "min = 1", "min is for numbers"),
        ("max_length = 10", "values = []", "values is empty"),
        ("max_length = 10", "digits = 2\nscale = 5", "scale is above digits"),
        ('cursor = ["id"]', 'optional = ["nope"]', "'nope' is no field and no argument"),
        ('cursor = ["id"]', "internal = true", "for BEDS's own templates"),
        ('key = "id"', 'key = "id"\nversion = "nope"', "template.version 'nope' is not one of the fields"),
        ('key = "id"', 'key = "id"\nversion = "id"', "template.version 'id' is a part of the key"),
        ('key = "id"', 'key = "id"\nversion = "a b"', "template.version"),
        ('key = "id"', 'key = "id"\nverson = "name"', "did you mean 'version'?"),
        ("max_length = 10", 'generate = "zero"', "makes values of type integer, the type is string"),
        ("required = true", 'generate = "zero"\nmin = 1', "outside min and max"),
    ],
)
def test_a_wrong_file_is_told_by_file_and_key(tmp_path: Path, old: str, new: str, words: str | None) -> None:
    text = MINIMAL.replace(old, new, 1)
    if words is None:
        template(tmp_path, text)
        return
    with pytest.raises(TemplateError) as caught:
        template(tmp_path, text)
    assert words in str(caught.value)
    assert "things.toml" in str(caught.value)


@pytest.mark.parametrize("kind", ["integer", "string", "datetime", "uuid", "bytes", "object_id"])
def test_a_version_is_of_a_type_that_both_stores_compare(tmp_path: Path, kind: str) -> None:
    text = VERSIONED.replace('type = "integer"\n[update]', f'type = "{kind}"\n[update]')
    things = template(tmp_path, text)
    assert things.version == "revision"
    assert things.expected_version is things.fields["revision"]
    for wrong in ("number", "decimal", "boolean", "date", "object", "array"):
        with pytest.raises(TemplateError, match=f"'revision' is of type {wrong}; a version is integer, string"):
            template(tmp_path, text.replace(f'type = "{kind}"\n[update]', f'type = "{wrong}"\n[update]'))


def test_a_zero_lies_between_the_fields_limits() -> None:
    for more in ({}, {"min": 0}, {"max": 0}, {"min": -1, "max": 1}):
        assert FieldSpec(type="integer", generate="zero", **more).make() == 0
    for beyond in ({"min": 1}, {"max": -1}):
        with pytest.raises(ValueError, match="outside min and max"):
            FieldSpec(type="integer", generate="zero", **beyond)


def test_an_expected_version_is_checked_by_the_versions_type(tmp_path: Path) -> None:
    things = template(tmp_path, VERSIONED)
    for operation in (Operation.UPDATE, Operation.DELETE):
        assert things.check_expected_version(operation, 3) == 3
        for wrong in ("3", True, 3.0, {"$gt": 0}):
            with pytest.raises(WrongType) as caught:
                things.check_expected_version(operation, wrong)
            assert caught.value.detail["field"] == "expected_version"
    for operation in Operation:
        assert things.check_expected_version(operation, None) is None
        assert template(tmp_path).check_expected_version(operation, None) is None


@pytest.mark.parametrize(
    ("text", "operation", "remedy"),
    [
        (VERSIONED, Operation.CREATE, "only delete_record and update_record"),
        (VERSIONED, Operation.CREATE_MANY, "only delete_record and update_record"),
        (VERSIONED, Operation.FETCH, "only delete_record and update_record"),
        (MINIMAL, Operation.UPDATE, 'version = "<field>" to [template] of things.toml'),
        (VERSIONED + '[fields.expected_version]\ntype = "integer"\n', Operation.UPDATE, "another name"),
    ],
)
def test_where_nothing_is_compared_no_version_is_taken(
    tmp_path: Path, text: str, operation: Operation, remedy: str
) -> None:
    with pytest.raises(UnknownField) as caught:
        template(tmp_path, text).check_expected_version(operation, 3)
    assert caught.value.detail["field"] == "expected_version"
    assert remedy in caught.value.hint


def test_the_objects_change_the_version_and_nobody_else(tmp_path: Path) -> None:
    things = template(tmp_path, VERSIONED)
    with pytest.raises(UnknownField, match="expected_version") as caught:
        things.check_update({"id": 1, "name": "a", "revision": 2})
    assert caught.value.detail["field"] == "revision"
    assert things.check_create({"id": 1, "revision": 2}) == {"id": 1, "revision": 2}
    # A create need not take it: the column has a default.
    bind(things, "create", procedure("things_create", param("id"), param("name", "string")))


def test_the_parameter_of_the_expected_version_has_the_versions_type(tmp_path: Path) -> None:
    things = template(tmp_path, VERSIONED)
    for table in ("update", "delete"):
        bind(things, table, procedure(f"things_{table}", param("id"), param("expected_version")))
        bind(things, table, procedure(f"things_{table}", param("id")))
        with pytest.raises(SchemaMismatch, match="parameter expected_version: is sql string, but BEDS fills it with"):
            bind(things, table, procedure(f"things_{table}", param("id"), param("expected_version", "string")))


def test_a_field_of_the_parameters_name_takes_precedence(tmp_path: Path) -> None:
    things = template(tmp_path, VERSIONED + '[fields.expected_version]\ntype = "string"\n')
    target = procedure("things_update", param("id"), param("expected_version", "string"))
    assert bind(things, "update", target).target is target
    assert reserved_type(things, Operation.UPDATE, things.refs()["update"][1], target.params[1]) is None


def test_without_a_version_the_parameter_is_one_like_others(tmp_path: Path) -> None:
    text = VERSIONED.replace('version = "revision"\n', "")
    given = param("expected_version")
    bind(template(tmp_path, text), "delete", procedure("things_delete", param("id"), given))
    documents = template(tmp_path, text.replace('"rel"', '"rec"'))
    for target, fits in ((given, False), (param("expected_version", optional=True), True)):
        changing = NamedObject("things_update", ObjectKind.UPDATE, (param("id"), target))
        if fits:
            bind(documents, "update", changing)
        else:
            with pytest.raises(SchemaMismatch, match="parameter expected_version: is surplus"):
                bind(documents, "update", changing)


def test_a_documents_key_must_come_from_somewhere(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="required = true, or has generate"):
        template(tmp_path, MINIMAL.replace('"rel"', '"rec"').replace("required = true", ""))


def test_two_templates_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    for name in ("a.toml", "b.toml"):
        (folder / name).write_text(MINIMAL)
    with pytest.raises(TemplateError, match="two templates are named Things"):
        TemplateRegistry.from_folder(tmp_path)


def test_a_missing_folder_says_which_key_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        TemplateRegistry.from_folder(tmp_path / "none")


def test_the_sample_templates_load() -> None:
    registry = TemplateRegistry.from_folder(ROOT / "schema")
    assert sorted(registry) == [
        "Airlines",
        "Airports",
        "FlightDocuments",
        "Flights",
        "Notices",
        "Planes",
        "Weather",
        "WeatherCool",
        "WeatherRows",
        "msAudit",
        "msChanges",
        "msDead",
        "msFiles",
        "msJobPages",
        "msJobRejects",
        "msJobs",
        "msLineage",
        "msLogs",
        "msMetrics",
        "msTickets",
        "msTicketsBegin",
        "msTicketsReopen",
        "msTicketsRetry",
    ]


def test_what_fits_is_bound(tmp_path: Path) -> None:
    things = template(tmp_path)
    bound = bind(things, "create", procedure("things_create", param("id"), param("name", "string", max_length=10)))
    assert bound.operation is Operation.CREATE


def test_a_parameter_that_the_dba_added_is_null_with_older_templates(tmp_path: Path) -> None:
    things = template(tmp_path)
    bind(things, "create", procedure("things_create", param("id"), param("name", "string"), param("colour")))
    bind(things, "delete", procedure("things_delete", param("id"), param("name", "string")))


@pytest.mark.parametrize(
    ("table", "target", "words"),
    [
        ("create", None, "object things_create: does not exist"),
        ("create", NamedObject("things_create", ObjectKind.VIEW), "is a view; create_record needs a procedure"),
        ("create", procedure("things_create", param("id")), "parameter name: is missing"),
        (
            "create",
            procedure("things_create", param("id", "string"), param("name", "string")),
            "parameter id: is sql string, but the template's field is integer",
        ),
        (
            "create",
            procedure("things_create", param("id"), param("name", "string", max_length=5)),
            "parameter name: holds 5, but the template allows max_length = 10",
        ),
        ("create_many", procedure("things_create_many", param("rows", "array")), "exactly one parameter"),
        ("create_many", procedure("things_create_many", param("records")), "JSON or array type"),
        ("delete", procedure("things_delete", param("name", "string")), "parameter id: is missing"),
        ("fetch.by_id", procedure("things_by_id", param("id")), "parameter after_id: is missing"),
        (
            "fetch.by_id",
            procedure("things_by_id", param("id"), param("after_id", "string"), param("limit")),
            "BEDS fills it with integer",
        ),
    ],
)
def test_what_does_not_fit_names_file_object_and_parameter(
    tmp_path: Path, table: str, target: NamedObject | None, words: str
) -> None:
    with pytest.raises(SchemaMismatch) as caught:
        bind(template(tmp_path), table, target)
    message = str(caught.value)
    assert words in message
    assert f"things.toml [{table}]" in message


SPECS = [
    FieldSpec(type="string"),
    FieldSpec(type="string", max_length=3, required=True),
    FieldSpec(type="string", values=("a", "b")),
    FieldSpec(type="integer"),
    FieldSpec(type="integer", min=0, max=10),
    FieldSpec(type="number"),
    FieldSpec(type="decimal", digits=3, scale=1),
    FieldSpec(type="boolean"),
    FieldSpec(type="datetime"),
    FieldSpec(type="datetime", precision="millisecond"),
    FieldSpec(type="array"),
]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.integers(-3, 12), st.floats(), st.text(max_size=5),
    st.sampled_from(["a", "\ud800", "é", "abcd"]), st.decimals(), st.datetimes(), st.datetimes(timezones=st.just(UTC)),
    st.datetimes(timezones=st.just(timezone(timedelta(hours=2)))), st.just([math.nan]),
)  # fmt: skip


@given(spec=st.sampled_from(SPECS), column=st.one_of(st.lists(VALUES, max_size=4), st.lists(st.integers(-1, 11))))
def test_a_column_that_is_kept_is_what_each_check_returns(spec: FieldSpec, column: list[Any]) -> None:
    if spec.keeps_all(column):
        for value in column:
            checked = spec.check("field", value)
            assert checked is value or (type(checked) is type(value) and checked == value)


def test_a_page_is_cut_only_by_the_limit_of_beds(tmp_path: Path) -> None:
    fetches = """
[fetch.few]
object = "few"
limit = 2
[fetch.own]
object = "own"
limit = 2
args = {limit = {type = "integer"}}
[fetch.sets]
object = "sets"
limit = 2
results = ["head", "lines"]
"""
    things = template(tmp_path, MINIMAL.replace("[fields.id]", fetches + "[fields.id]", 1))
    limit = Param("limit", frozenset({"integer"}), "int")
    row: dict[str, Any] = {"id": 1}

    def cut(using: str, *rows: dict[str, Any], params: tuple[Param, ...] = (limit,)) -> bool:
        binding = bind(things, f"fetch.{using}", NamedObject(using, ObjectKind.PROCEDURE, params))
        return _is_cut(binding, Query(using, {}, 2), rows)

    assert [cut("few", *[row] * n) for n in (0, 1, 2)] == [False, False, True]
    assert not cut("few", row, row, params=())
    assert not cut("own", row, row)  # the caller's own argument, of whose meaning nothing is known
    assert cut("sets", {"head": [row], "lines": [row, row], "total": 7})
    assert not cut("sets", {"head": [row], "lines": [row]})


def test_a_bulk_is_checked_as_each_of_its_records(tmp_path: Path) -> None:
    things = template(tmp_path)
    assert things.doubtful_fields([{"id": 1, "name": "a"}, {"id": 2}]) == frozenset()
    assert things.doubtful_fields([{"id": 1, "name": "a"}, {"id": 2, "name": "x" * 11}]) == {"name"}
    assert things.doubtful_fields([{"id": 1}, ("id", 2)]) == things.fields.keys()


RECORDS = st.lists(
    st.fixed_dictionaries(
        {"id": st.one_of(st.integers(0, 5), st.just(2**65), st.none(), st.booleans())},
        optional={"name": st.one_of(st.text(max_size=12), st.none(), st.integers())},
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return template(tmp_path_factory.mktemp("things"))


@given(records=RECORDS)
def test_many_records_are_accepted_as_each_alone(things: Template, records: Any) -> None:
    def told(check: Any) -> Any:
        try:
            return check()
        except InvalidPayload as error:
            return type(error), error.message, error.detail

    alone = told(lambda: [things.check_create(record, f"payloads[{i}]") for i, record in enumerate(records)])
    assert told(lambda: things.check_create_many(records)) == alone

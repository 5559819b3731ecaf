"""`beds template models` and `beds template new`: typed Python, JSON Schema, and the first version of a template."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from beds.cli.models import MARK
from beds.cli.template import template as command
from beds.client.aio import AsyncClient
from beds.client.typed import RecordModel
from beds.domain.event import Store
from beds.errors import ConfigurationError, SchemaMismatch, TemplateError, UnknownTemplate
from beds.http.openapi import SCHEMAS
from beds.templates.declared import declared_objects
from beds.templates.json_schema import DEFS, DIALECT, document, schemas_of
from beds.templates.python_models import arguments_in, module, text_of
from beds.templates.registry import TemplateRegistry
from beds.templates.template import load_template
from beds.testing import MemoryClient
from tests.conftest import ROOT

ODD = '''
[template]
name = "None"
store = "rel"
key = ["class", "changes"]
version = "schema"
description = """two lines \\\\ of
text with \\"\\"\\"quotes\\"\\"\\" and ü"""
[create]
object = "odd_create"
[create_many]
object = "odd_create_many"
[update]
object = "odd_update"
[delete]
object = "odd_delete"
[fetch.class]
object = "odd_class"
args = {limit_ = {type = "integer"}, self = {type = "string", values = ["a"]}, "import" = {type = "date"}}
optional = ["self", "schema"]
[fetch.all]
object = "odd_all"
cursor = ["class", "changes"]
[fetch.two]
object = "odd_two"
results = ["head", "lines"]
[fetch.unknown]
object = "odd_unknown"
[fields.class]
type = "string"
required = true
[fields.changes]
type = "decimal"
min = 0.01
max = 99.99
digits = 4
scale = 2
required = true
[fields.price]
type = "decimal"
max = 10
scale = 1
[fields.class_]
type = "integer"
min = -1.5
max = 7.5
[fields.schema]
type = "integer"
[fields.model_config]
type = "string"
max_length = 5
[fields.copy]
type = "object"
[fields.id]
type = "uuid"
generate = "uuid7"
[fields.str]
type = "array"
max_length = 3
description = 'a "quoted" word, and a \\ too'
[fields.dt]
type = "datetime"
[fields.date]
type = "date"
[fields.time]
type = "time"
[fields.wait]
type = "duration"
[fields.cls]
type = "object_id"
[fields.raw]
type = "bytes"
sensitive = true
[fields.of_row]
type = "boolean"
[fields.size]
type = "number"
min = 0
max = 1e300
[fields.self]
type = "string"
values = ["it's", 'say "x"', "a\\\\b", "line\\nbreak", "", "ü", "another rather long one", "it's"]
required = true
'''
TWINS = """
[template]
name = "{name}"
store = "rec"
key = "id"
[create]
object = "x_create"
[update]
object = "x_update"
[fetch.by_id]
object = "x_by_id"
[fields.id]
type = "object_id"
generate = "object_id"
"""
OBJECTS = """
-- CREATE PROCEDURE odd_class(IN p_wrong INT) is only a comment
/* CREATE PROCEDURE odd_all(IN p_wrong INT) */
CREATE OR REPLACE DEFINER=`root`@`localhost` PROCEDURE `odd_class` (
  IN p_self ENUM('a', 'b)', "c,"), INOUT `p_import` DATE, -- when, and why
  p_limit_ DECIMAL(10, 2), IN p_class VARCHAR(10), OUT p_total INT, IN p_schema INT, IN p_more INT)
SELECT 'CREATE PROCEDURE odd_all(IN p_wrong INT)';
CREATE PROCEDURE IF NOT EXISTS beds.odd_all(
  IN p_after_class VARCHAR(10), IN p_after_changes DECIMAL(4, 2), IN p_limit INT)
SELECT 1;
CREATE OR REPLACE ALGORITHM = MERGE SQL SECURITY DEFINER VIEW odd_two AS SELECT 1;
"""


def schema_with(folder: Path, *templates: str, rel: str = "", **rec: str) -> Path:
    schema = folder / "schema"
    (schema / "templates").mkdir(parents=True)
    (schema / "rel").mkdir()
    (schema / "rec" / "things").mkdir(parents=True)
    for number, text in enumerate(templates):
        (schema / "templates" / f"t{number}.toml").write_text(text)
    (schema / "rel" / "R__odd.sql").write_text(rel)
    for name, text in rec.items():
        (schema / "rec" / "things" / f"{name}.json").write_text(text)
    return schema


def generated(schema: Path, *, with_async: bool = False) -> str:
    templates = [t for t in TemplateRegistry.from_folder(schema).values() if not t.system]
    return module(
        templates,
        arguments_in(templates, declared_objects(schema)),
        first_line=f"# {MARK}",
        reserved=frozenset(dir(RecordModel)),
        with_async=with_async,
    )


def load(folder: Path, text: str) -> ModuleType:
    file = folder / "records.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(f"records_{abs(hash(text))}", file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # pydantic looks up the types there
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    twins = (TWINS.format(name=name) for name in ("Gates", "NewGates", "GatesRecord", "AsyncGates", "Literal", "print"))
    return schema_with(tmp_path, ODD, *twins, rel=OBJECTS)


def test_a_models_text_is_the_same_each_time_and_a_change_shows_up(odd: Path) -> None:
    before = generated(odd)
    assert generated(odd) == before
    file = odd / "templates" / "t0.toml"
    file.write_text(file.read_text().replace("max_length = 5", "max_length = 6"))
    changed = [(a, b) for a, b in zip(before.splitlines(), generated(odd).splitlines(), strict=True) if a != b]
    assert [(a.strip(), b.strip()) for a, b in changed] == [("max_length=5,", "max_length=6,")]


@pytest.mark.parametrize("width", [79, 88, 120])
def test_the_text_is_formatted(odd: Path, tmp_path: Path, width: int) -> None:
    files = [tmp_path / "a.py", tmp_path / "b.py", tmp_path / "c.py"]
    for file, schema in zip(files, (odd, ROOT / "schema", ROOT / "tests" / "schema"), strict=True):
        file.write_text(generated(schema, with_async=True))
    ruff = [sys.executable, "-m", "ruff"]
    done = subprocess.run(
        [*ruff, "format", "--isolated", "--diff", "--line-length", str(width), *map(str, files)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    done = subprocess.run(
        [*ruff, "check", "--isolated", "--select", "E9,F,I", "--target-version", "py311", *map(str, files)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


USE = """
from typing import assert_type

from beds import Page
from sample import (
    Airlines, AirlinesRecord, Airports, AsyncAirlines, Flights, Notices, NoticesRecord, NewAirlines
)
from odd import Gates, NewGates, NewGates_, None_
from beds.client.typed import RecordPage


def use() -> None:
    airlines = Airlines()
    new: NewAirlines = {"carrier": "ZZ", "name": "Zed"}
    assert_type(airlines.create(new).affected, int)
    airlines.create({"carrier": "ZZ"})  # type: ignore[typeddict-item]
    airlines.create({"carrier": "ZZ", "name": "Zed", "nam": 1})  # type: ignore[typeddict-unknown-key]
    airlines.update("ZZ", {"name": "Zet"})
    airlines.update("ZZ", {"name": None})  # type: ignore[typeddict-item]
    page = airlines.fetch_by_carrier("ZZ", limit=1)
    assert_type(page, RecordPage[AirlinesRecord])
    assert_type(page[0].name, str)
    assert_type([record.carrier for record in page], list[str])
    airlines.fetch_by_carrier(5)  # type: ignore[arg-type]
    for flight in Flights().iterate_by_route("JFK", dest="BOS"):
        assert_type(flight.tailnum, str | None)
    airports = Airports()
    airports.fetch_by_zone("America/New_York", cursor="x")
    notices = Notices()
    notices.create({"airport": "JFK", "title": "Snow", "status": "open"})
    notices.create({"airport": "JFK", "title": "Snow", "status": "shut"})  # type: ignore[typeddict-item]
    (notice,) = notices.fetch_open()
    assert_type(notice, NoticesRecord)
    notices.update(notice.id, {"severity": 2}, expected_version=notice.revision)
    odd = None_()
    assert_type(odd.fetch_two(), Page)
    odd.update("a", 1, {"class_": 3})
    (first,) = odd.fetch_class(1, "a", self_="a")
    assert_type(first.class__, str)
    gate: NewGates_ = {}
    Gates().create(gate)
    NewGates().create({})


async def use_async() -> None:
    airlines = AsyncAirlines()
    await airlines.create({"carrier": "ZZ", "name": "Zed"})
    page = await airlines.fetch_all()
    assert_type(page[0].name, str)
"""


def test_generated_modules_pass_a_strict_type_check_with_their_use(odd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checked"
    folder.mkdir()
    (folder / "odd.py").write_text(generated(odd, with_async=True))
    (folder / "sample.py").write_text(generated(ROOT / "schema", with_async=True))
    (folder / "of_tests.py").write_text(generated(ROOT / "tests" / "schema"))
    (folder / "use.py").write_text(USE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache' / 'models'}",
         "--follow-imports=silent", "odd.py", "sample.py", "of_tests.py", "use.py"],
        cwd=folder, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


SNOW = {"airport": "JFK", "title": "Snow", "status": "open"}


def test_records_are_written_and_fetched_by_their_types(tmp_path: Path) -> None:
    found = load(tmp_path, generated(ROOT / "schema", with_async=True))
    client = MemoryClient(ROOT / "schema")
    notices = found.Notices(client)
    key = UUID(notices.create(SNOW).record_id)
    assert notices.create_many([SNOW, SNOW]).affected == 2
    assert notices.update(key, {"severity": 2}, expected_version=0).affected == 1
    page = notices.fetch_by_id(key)
    (record,) = page
    assert isinstance(record, found.NoticesRecord)
    assert (record.id, record.title, record.severity, record.tags, record.revision) == (key, "Snow", 2, None, 1)
    assert (len(page), page[0], page[:1], page.complete) == (1, record, (record,), True)
    assert page.untyped[0]["severity"] == 2
    first = notices.fetch_open_at("JFK", limit=2)
    assert not first.complete
    rest = notices.fetch_open_at("JFK", limit=2, cursor=first.cursor)
    every = [*first, *rest]
    assert len(every) == 3
    assert list(notices.iterate_open_at("JFK", limit=1)) == every
    assert notices.delete(key).affected == 1

    async def story() -> None:
        awaited = found.AsyncNotices(AsyncClient(client))
        made = UUID((await awaited.create(SNOW)).record_id)
        assert [record.id for record in await awaited.fetch_by_id(made)] == [made]
        assert made in [record.id async for record in awaited.iterate_open_at("JFK", limit=1)]

    asyncio.run(story())


def test_names_that_python_does_not_allow_are_the_same_on_the_way(odd: Path, tmp_path: Path) -> None:
    found = load(tmp_path, generated(odd))
    every = found.None_(MemoryClient(odd))
    record = {
        "class": "a",
        "changes": 1,
        "self": "it's",
        "schema": 0,
        "cls": None,
        "str": [1],
        "raw": b"secret",
        "price": 3,
    }
    every.create(record)
    every.update("a", 1, {"model_config": "x", "class_": 7})
    (got,) = every.fetch_all()
    assert (got.class__, got.class_, got.changes, got.schema_, got.model_config_) == ("a", 7, 1, 1, "x")
    assert [type(value) for value in (got.changes, got.price)] == [Decimal, Decimal]
    assert (got.self, got.str_, got.cls, got.of_row_) == ("it's", [1], None, None)
    assert "secret" not in repr(got)
    assert found.NoneRecord.of_row({"price": Decimal("99.99")}).price == Decimal("99.99")
    with pytest.raises(SchemaMismatch, match="price"):
        found.NoneRecord.of_row({"price": True})
    assert every.delete("a", 1).affected == 1


def test_a_fetch_may_return_less_or_other_than_a_record(tmp_path: Path) -> None:
    found = load(tmp_path, generated(ROOT / "schema"))
    rows: list[dict[str, Any]] = []
    client = MemoryClient(ROOT / "schema", {"airlines_all": lambda _records, _args: rows})
    airlines = found.Airlines(client)
    rows.append({"carrier": "ZZ", "flights": 7, "cls": 1})
    (record,) = airlines.fetch_all()
    assert (record.carrier, record.model_extra) == ("ZZ", {"flights": 7, "cls": 1})
    with pytest.raises(AttributeError, match="the fetch did not return name of AirlinesRecord"):
        _ = record.name
    with pytest.raises(AttributeError, match="nam"):
        _ = record.nam
    rows[:] = [{"carrier": "longer than the limit", "name": "Zed"}]
    assert airlines.fetch_all()[0].carrier == "longer than the limit"
    for wrong in (None, 5):
        rows[:] = [{"carrier": "ZZ", "name": wrong}]
        with pytest.raises(SchemaMismatch, match="AirlinesRecord: the field name") as caught:
            airlines.fetch_all()
        assert caught.value.detail["field"] == "name"
    assert airlines.untyped.fetch_records("all")[0]["name"] == 5


def test_arguments_stand_in_the_schemas_files(odd: Path) -> None:
    found = declared_objects(odd)
    params = {p.name: (p.mode, p.declared) for p in found[Store.REL, "odd_class"]}
    assert params == {
        "self": ("in", "enum('', '', '')"), "import": ("inout", "date"), "limit_": ("in", "decimal(10, 2)"),
        "class": ("in", "varchar(10)"), "total": ("out", "int"), "schema": ("in", "int"), "more": ("in", "int"),
    }  # fmt: skip
    assert [p.name for p in found[Store.REL, "odd_all"]] == ["after_class", "after_changes", "limit"]
    assert [p.name for p in found[Store.REL, "odd_two"]] == ["limit"]
    text = generated(odd)
    _, _, rest = text.partition("    def fetch_class(\n")
    assert rest.splitlines()[:9] == [
        "        self,",
        "        limit_: int,",
        "        class_: str,",
        "        *,",
        '        self_: Literal["a"] | None = None,',
        "        import_: dt.date | None = None,",
        "        schema: int | None = None,",
        "        more: Any = None,",
        "        limit: int | None = None,",
    ]
    assert '{"self": self_, "import": import_, ' in text.replace("\n                ", " ").replace("{ ", "{")
    assert "args: Mapping[str, Any] | None = None" in text.partition("    def fetch_unknown(\n")[2]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ({"name": "x", "kind": "find", "params": {"at": {"bsonType": "date"}, "n": {"bsonType": ["int", "null"]},
          "limit": {"bsonType": "int"}}, "command": {"find": "c", "limit": {"$param": "limit"}}},
         [("at", False, False), ("n", True, False), ("limit", False, True)]),
        ({"name": "x", "kind": "view", "pipeline": []}, [("limit", False, True)]),
        ({"name": "x", "params": {"y": 5}}, None),
        ([], None),
    ],
)  # fmt: skip
def test_stored_commands_declare_theirs(
    tmp_path: Path, source: Any, wanted: list[tuple[str, bool, bool]] | None
) -> None:
    schema = schema_with(tmp_path, x=json.dumps(source), broken="{", collection="{}")
    found = declared_objects(schema).get((Store.REC, "x"))
    assert (None if found is None else [(p.name, p.optional, p.whole) for p in found]) == wanted


def test_the_files_declare_what_a_worker_reads_from_the_databases() -> None:
    """Of the sample; the names and what is required are compared with the databases in tests/integration."""
    registry = TemplateRegistry.from_folder(ROOT / "schema")
    found = arguments_in([t for t in registry.values() if not t.system], declared_objects(ROOT / "schema"))
    assert {(a.name, a.required) for a in found["Flights", "by_route"]} == {("origin", True), ("dest", False)}
    missing = [
        (t.name, using) for t in registry.values() for using in t.fetch if not t.system and (t.name, using) not in found
    ]
    assert missing == []


@pytest.mark.parametrize("text", ["", "a", "it's", 'say "x"', 'it\'s "x"', "a\\b", "a\nb", "ü", "\x00", '"'])
def test_a_text_is_written_as_it_is_read(text: str) -> None:
    assert eval(text_of(text)) == text


# The command.


Invoke = Callable[..., Result]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    schema_with(tmp_path, TWINS.format(name="Gates"), TWINS.format(name="Cranes"))
    (tmp_path / "beds.toml").write_text('[schema]\npath = "schema"\n')
    return tmp_path


@pytest.fixture
def typed(project: Path) -> Invoke:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(command, arguments, obj=str(project / "beds.toml"))

    return invoke


@pytest.mark.parametrize("form", ["--python", "--json-schema"])
def test_a_file_is_written_checked_and_written_again(typed: Invoke, project: Path, form: str) -> None:
    file = project / "app" / "records.py"
    assert typed("models", form, "--check", str(file)).exit_code == 1
    shown = typed("models", form)
    assert shown.exit_code == 0, shown.output
    assert typed("models", form, "--out", str(file)).exit_code == 0
    assert file.read_text() == shown.stdout
    assert typed("models", form, "--check", str(file)).exit_code == 0
    assert typed("models", form, "Gates", "--check", str(file)).exit_code == 1
    assert typed("models", form, "Gates", "--out", str(file)).exit_code == 0
    assert "Cranes" not in file.read_text()
    file.write_text("mine = 1\n")
    refused = typed("models", form, "--out", str(file))
    assert isinstance(refused.exception, ConfigurationError)
    assert file.read_text() == "mine = 1\n"


def test_a_model_is_of_an_application_template(typed: Invoke) -> None:
    assert isinstance(typed("models", "--python", "Gate").exception, UnknownTemplate)
    assert isinstance(typed("models", "--json-schema", "msAudit").exception, TemplateError)
    assert typed("models").exit_code == 2
    assert typed("models", "--json-schema", "--async").exit_code == 2
    assert typed("models", "--python", "--out", "a", "--check", "b").exit_code == 2
    for name in ("models", "new"):
        assert "Example" in typed(name, "--help").output


def test_the_schema_is_one_document_that_the_app_server_shares(typed: Invoke, project: Path) -> None:
    found = json.loads(typed("models", "--json-schema").stdout)
    assert found["$schema"] == DIALECT
    assert sorted(found["$defs"]) == sorted(
        f"{before}{name}{after}"
        for name in ("Gates", "Cranes")
        for before, after in (("", ""), ("New", ""), ("", "Changes"), ("", "Page"))
    )
    template = load_template(ROOT / "schema" / "templates" / "notices.toml")
    ours = json.dumps(schemas_of(template, DEFS)).replace(DEFS, SCHEMAS)
    assert json.loads(ours) == schemas_of(template, SCHEMAS)
    new = schemas_of(template, DEFS)["NewNotices"]
    assert new["required"] == ["airport", "title", "status"]
    assert new["properties"]["status"] == {"type": "string", "enum": ["open", "closed"]}
    assert new["properties"]["severity"] == {"type": ["integer", "null"], "minimum": 1, "maximum": 5}


def test_the_schema_is_valid_and_refuses_what_a_template_refuses(odd: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    templates = [*TemplateRegistry.from_folder(odd).values(), load_template(ROOT / "schema/templates/notices.toml")]
    whole = document([t for t in templates if not t.system], "")
    jsonschema.Draft202012Validator.check_schema(whole)
    new = jsonschema.Draft202012Validator({**whole, "$ref": "#/$defs/NewNotices"})
    assert new.is_valid(SNOW)
    for wrong in ({"airport": "JFKX"}, {"status": "shut"}, {"severity": 6}, {"more": 1}, {"title": None}):
        assert not new.is_valid({**SNOW, **wrong})


def test_a_new_template_is_valid_and_names_the_next_steps(typed: Invoke, project: Path) -> None:
    done = typed(
        "new", "OrderLines", "--store", "rel", "--key", "order_id:integer", "--key", "line:integer",
        "--field", "article:string:60:required", "--field", "price:decimal",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "order_lines_create" in done.output
    assert "beds schema apply" in done.output
    file = project / "schema" / "templates" / "order_lines.toml"
    made = load_template(file)
    assert (made.name, made.store, made.keys, list(made.fetch)) == (
        "OrderLines", "rel", ("order_id", "line"), ["by_order_id_line"],
    )  # fmt: skip
    article = made.fields["article"]
    assert (article.type, article.max_length, article.required) == ("string", 60, True)
    assert not made.fields["price"].required
    commented = "\n".join(line.removeprefix("# ") for line in file.read_text().splitlines()[5:])
    for key in ("description", "version", "changes", "[create_many]", "cursor", "optional", "idempotent"):
        assert key in commented
    before = file.read_text()
    assert isinstance(typed("new", "OrderLines", "--store", "rec", "--key", "id:uuid").exception, ConfigurationError)
    assert isinstance(typed("new", "order_lines", "--store", "rec", "--key", "id:uuid").exception, ConfigurationError)
    assert file.read_text() == before
    assert typed("new", "Documents", "--store", "rec", "--key", "id:uuid").exit_code == 0
    assert load_template(project / "schema" / "templates" / "documents.toml").fields["id"].generate == "uuid7"


@pytest.mark.parametrize(
    "arguments",
    [
        ("1st", "--store", "rel", "--key", "id:integer"),
        ("../x", "--store", "rel", "--key", "id:integer"),
        ("X", "--store", "rel"),
        ("X", "--key", "id:integer"),
        ("X", "--store", "rel", "--key", "id"),
        ("X", "--store", "rel", "--key", "id:int"),
        ("X", "--store", "rel", "--key", "id:integer:5"),
        ("X", "--store", "rel", "--key", "id:string:0"),
        ("X", "--store", "rel", "--key", "id:string:5:5"),
        ("X", "--store", "rel", "--key", "i d:string"),
        ("X", "--store", "rel", "--key", "id:string", "--field", "id:string"),
        ("X" * 60, "--store", "rel", "--key", "id:string"),
    ],
)
def test_a_new_template_with_a_wrong_name_or_field_is_refused(
    typed: Invoke, project: Path, arguments: tuple[str, ...]
) -> None:
    assert typed("new", *arguments).exit_code == 2
    assert len(list((project / "schema" / "templates").iterdir())) == 2

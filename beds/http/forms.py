"""The form of each operation on the page: its inputs, and the call that its texts mean."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

from beds.client.call import Call
from beds.domain.event import Operation
from beds.http.access import Caller
from beds.http.node import Node
from beds.http.operations import with_bound
from beds.http.values import from_text
from beds.templates.roles import WRITES
from beds.templates.template import EXPECTED_VERSION, Template


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a form: its name, its field type, whether it is required, and what it is for."""

    name: str
    kind: str
    required: bool = False
    description: str = ""
    sensitive: bool = False
    """Whether the page never shows its text again."""


@dataclass(frozen=True, slots=True)
class Form:
    """The form of one operation or fetch, `what`."""

    what: str
    inputs: tuple[Input, ...]

    @property
    def is_write(self) -> bool:
        return self.what in WRITES


async def form_of(node: Node, caller: Caller, template: Template, what: str) -> Form:
    """The form of an operation, without the inputs that the caller's role fills."""
    bound = {name for role in caller.roles.values() for name in role.bind}
    inputs = [each async for each in _fetch_inputs(node, template, what)] if what in template.fetch else []
    return Form(what, tuple(each for each in inputs or _write_inputs(template, what) if each.name not in bound))


async def _fetch_inputs(node: Node, template: Template, using: str) -> AsyncIterator[Input]:
    spec = template.fetch[using]
    if described := await node.signatures.operation(template, f"fetch.{using}"):
        for argument in described.args:
            kind = argument.types[0] if argument.types else "string"
            yield Input(argument.name, kind, argument.required, argument.description, argument.sensitive)
    else:
        for name, field in spec.args.items():
            yield Input(name, field.type, name not in spec.optional, field.description, field.sensitive)
    yield Input("limit", "integer", description="records of the page")
    if spec.cursor:
        yield Input("cursor", "string", description="where the page before ended")


def _write_inputs(template: Template, what: str) -> Iterator[Input]:
    if what == "create_many":
        yield Input("records", "array", True, "a list of records, as JSON")
        return
    for name in template.keys if what == "delete" else template.fields:
        field = template.fields[name]
        if what == "update" and name == template.version:
            continue  # the object changes it
        required = (field.required and not field.generate) if what == "create" else name in template.keys
        yield Input(name, field.type, required, field.description, field.sensitive)
    if what != "create" and (version := template.expected_version) is not None:
        yield Input(EXPECTED_VERSION, version.type, description="the version that the record must have")


async def call_of_form(node: Node, caller: Caller, template: Template, what: str, texts: Mapping[str, str]) -> Call:
    """The call that a form means; an empty input is left out.

    Raises:
        Problem: the caller may not do it.
        WrongType: a text is no value of its type.
    """
    caller.check(template, what)
    bound, given = caller.bound(template, what), {name: text for name, text in texts.items() if text != ""}
    if what in template.fetch:
        limit, cursor = given.pop("limit", ""), given.pop("cursor", "")
        types = await node.signatures.types_of(template, what, given)
        args = {name: from_text(name, text, types[name].types if name in types else ()) for name, text in given.items()}
        size = from_text("limit", limit, ("integer",)) if limit else None
        return Call(Operation.FETCH, template.name, with_bound(args, bound), what, size, cursor, caller.actor)
    operation = WRITES[what]
    if operation is Operation.CREATE_MANY:
        rows = from_text("records", given.get("records", ""), ("array",))
        rows = [with_bound(row, bound) if isinstance(row, dict) else row for row in rows]
        return Call(operation, template.name, rows, actor=caller.actor)
    expected, version = None, template.expected_version
    if version is not None and (text := given.pop(EXPECTED_VERSION, "")):
        expected = from_text(EXPECTED_VERSION, text, (version.type,))
    record = {name: from_text(name, text, _types(template, name)) for name, text in given.items()}
    record = with_bound(record, bound)
    data = record.get(template.keys[0]) if operation is Operation.DELETE and len(template.keys) == 1 else record
    return Call(operation, template.name, data, actor=caller.actor, expected_version=expected)


def _types(template: Template, name: str) -> tuple[str, ...]:
    field = template.fields.get(name)
    return (field.type,) if field else ()

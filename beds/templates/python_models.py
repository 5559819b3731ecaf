"""Python for a template: a model of its records, payloads, and a class with a typed method for each operation.

The text depends only on the templates and on the arguments of their fetches. Therefore its diff shows what changed in a
template. It is laid out as `ruff format` does at any line length from `WIDTH` on.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal

from beds.domain.description import Argument
from beds.templates.binding import arguments_of, spec_of
from beds.templates.declared import Declared
from beds.templates.fields import FieldSpec
from beds.templates.template import FetchSpec, Template

WIDTH = 79
INDENT = "    "
LONGEST_LITERAL = 40
"""Characters of a `Literal` that stands where it is used; a longer one gets a name."""
Arguments = Mapping[tuple[str, str], tuple[Argument, ...]]
"""The arguments of fetches, by template and fetch. A fetch that is missing takes any."""

_PYTHON: Mapping[str, str] = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "decimal": "Decimal",
    "boolean": "bool",
    "datetime": "dt.datetime",
    "date": "dt.date",
    "time": "dt.time",
    "duration": "dt.timedelta",
    "uuid": "UUID",
    "bytes": "bytes",
    "object_id": "ObjectId",
    "object": "dict[str, Any]",
    "array": "list[Any]",
}
_TYPE_NAMES = frozenset(
    {
        "str", "int", "float", "bool", "bytes", "dict", "list", "type", "dt", "Decimal", "DecimalValue", "UUID",
        "ObjectId", "Any", "Literal", "Field", "NotRequired",
    }
)  # fmt: skip
"""Names in annotations: an attribute of such a name would hide the type from the attributes after it."""
_IMPORTED = _TYPE_NAMES | {
    "AsyncIterator", "AsyncTypedTemplate", "DEFAULT_TIMEOUT", "Iterator", "Mapping", "Page", "RecordModel",
    "RecordPage", "Response", "Sequence", "TypedDict", "TypedTemplate", "annotations",
}  # fmt: skip
_OPTIONS = frozenset({"self", "limit", "cursor", "timeout", "expected_version", "idempotency_key"})
"""Parameters of the generated methods: an argument of such a name gets an underscore."""


def arguments_in(templates: Iterable[Template], declared: Declared) -> Arguments:
    """The arguments of all fetches whose objects the schema's files declare."""
    return {
        (template.name, using): arguments_of(template, spec, params)
        for template in templates
        for using, spec in template.fetch.items()
        if (params := declared.get((template.store, spec.object))) is not None
    }


def module(
    templates: Iterable[Template],
    arguments: Arguments,
    *,
    first_line: str,
    reserved: Set[str],
    with_async: bool = False,
) -> str:
    """The text of a module.

    Args:
        templates: whose records and operations.
        arguments: what their fetches take.
        first_line: a comment that marks the file as generated.
        reserved: names that a record's attribute may not have: those of the class `RecordModel`.
        with_async: whether the module also has classes with awaitable methods.
    """
    ordered = sorted(templates, key=lambda template: template.name)
    taken = set(_IMPORTED) | set(dir(builtins))
    # The classes that an application names come first: no other template can take their names.
    own = {template.name: _unused(template.name, taken) for template in ordered}
    body = "".join(
        _Writer(template, own[template.name], arguments, taken, reserved).text(with_async=with_async)
        for template in ordered
    )
    title = '"""Typed records and operations of the templates."""'
    return "\n".join([first_line, title, "", "from __future__ import annotations", "", *_imports(body)]) + "\n" + body


_SOURCES = (
    ("", "import datetime as dt", "dt"),
    ("collections.abc", "", "AsyncIterator Iterator Mapping Sequence"),
    ("decimal", "", "Decimal"),
    ("typing", "", "Any Literal NotRequired TypedDict"),
    ("uuid", "", "UUID"),
    None,
    ("beds", "", "ObjectId Page Response"),
    ("beds.client.deadline", "", "DEFAULT_TIMEOUT"),
    ("beds.client.typed", "", "AsyncTypedTemplate DecimalValue RecordModel RecordPage TypedTemplate"),
    ("pydantic", "", "Field"),
)
"""The imports in their order; None between two groups."""


def _imports(body: str) -> list[str]:
    """Those that the text needs."""
    nodes = ast.walk(ast.parse(body))
    words = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    lines: list[str] = []
    for source in _SOURCES:
        if source is None:
            lines += [""] if lines and lines[-1] else []
            continue
        name, whole, names = source
        used = [each for each in names.split() if each in words]
        if used:
            one = f"from {name} import {', '.join(used)}"
            many = [f"from {name} import (", *(f"{INDENT}{each}," for each in used), ")"]
            lines += [whole] if whole else [one] if len(one) <= WIDTH else many
    return lines


def _unused(wanted: str, taken: set[str]) -> str:
    """A name that is not taken, and now is: the wanted one, or with underscores at its end."""
    name = re.sub(r"\W", "_", wanted)
    name = name if name.isidentifier() and not name.startswith("_") else f"a_{name.lstrip('_')}"
    while name in taken or keyword.iskeyword(name):
        name += "_"
    taken.add(name)
    return name


def text_of(value: str) -> str:
    """A text as `ruff format` writes it: with double quotes, unless it contains some and no single ones."""
    shown = repr(value)
    return f'"{shown[1:-1]}"' if shown[0] == "'" and '"' not in value else shown


def _sentence(text: str) -> str:
    """A description in one line, safe inside a docstring."""
    plain = "".join(c if c.isprintable() else " " for c in text).replace("\\", "\\\\").replace('"', "'")
    return " ".join(plain.split())


Item = str | list[str]
"""One item of a call: its text, or the entries of a dictionary."""


def _bracketed(before: str, items: Sequence[Item], after: str, brackets: str = "()", indent: str = "") -> list[str]:
    """Items in brackets: in one line if they fit, or else one item a line with a comma after each."""
    line = f"{indent}{before}{brackets[0]}{', '.join(map(_flat, items))}{brackets[1]}{after}"
    if len(line) <= WIDTH or not items:
        return [line]
    lines = [f"{indent}{before}{brackets[0]}"]
    inner = indent + INDENT
    for item in items:
        lines += [f"{inner}{item},"] if isinstance(item, str) else _bracketed("", item, ",", "{}", inner)
    return [*lines, f"{indent}{brackets[1]}{after}"]


def _flat(item: Item) -> str:
    return item if isinstance(item, str) else "{" + ", ".join(item) + "}"


class _Writer:
    """Writes the classes of one template."""

    def __init__(
        self, template: Template, name: str, arguments: Arguments, taken: set[str], reserved: Set[str]
    ) -> None:
        self.template = template
        self.name = name
        self.record = _unused(f"{template.name}Record", taken)
        self.new = _unused(f"New{template.name}", taken)
        self.changes = _unused(f"{template.name}Changes", taken)
        self.awaited = _unused(f"Async{template.name}", taken)
        self._arguments = arguments
        self._taken = taken
        self._reserved = {*reserved, *_TYPE_NAMES, *keyword.kwlist}
        self._choices: dict[str, str] = {}
        """The names of long `Literal`s."""

    def text(self, *, with_async: bool) -> str:
        template = self.template
        blocks = [self._record()]
        if template.create or template.create_many:
            title = f"A new record of {template.name}, as a create takes it."
            blocks.append(self._payload(self.new, title, template.fields, is_new=True))
        if template.update:
            left_out = {*template.keys, template.version}
            fields = {name: spec for name, spec in template.fields.items() if name not in left_out}
            title = f"The fields that an update of {template.name} changes."
            blocks.append(self._payload(self.changes, title, fields, is_new=False))
        blocks.append(self._class(self.name, "TypedTemplate", is_async=False))
        if with_async:
            blocks.append(self._class(self.awaited, "AsyncTypedTemplate", is_async=True))
        choices = [line for literal, name in self._choices.items() for line in _choice(name, literal)]
        named = ["\n\n" + "\n".join(choices) + "\n"] if choices else []
        return "".join([*named, *("\n\n" + "\n".join(block) + "\n" for block in blocks)])

    def _type(self, name: str, spec: FieldSpec, *, written: bool = False) -> str:
        """The type of a field or argument in Python; `written` for what a caller may send."""
        if spec.type == "string" and spec.values is not None:
            literal = f"Literal[{', '.join(map(text_of, dict.fromkeys(spec.values)))}]"
            if len(literal) <= LONGEST_LITERAL:
                return literal
            if literal not in self._choices:
                wanted = f"{self.template.name}{''.join(part.capitalize() for part in name.split('_'))}"
                while wanted in self.template.fields:
                    wanted += "_"
                self._choices[literal] = _unused(wanted, self._taken)
            return self._choices[literal]
        if spec.type == "decimal":
            return "Decimal | int" if written else "DecimalValue"
        return _PYTHON[spec.type]

    def _record(self) -> list[str]:
        title = _sentence(self.template.template.description)
        lines = [
            f"class {self.record}(RecordModel):",
            f'{INDENT}"""A record of {self.template.name}{f": {title}" if title else ""}."""',
            "",
        ]
        taken = self._reserved | self.template.fields.keys()
        for field, spec in self.template.fields.items():
            name = _unused(field, taken) if field in self._reserved else field
            is_present = spec.required or field in self.template.keys
            rules = [] if is_present else ["default=None"]
            rules += [f"alias={text_of(field)}"] if name != field else []
            rules += _limits(spec)
            rules += ["repr=False"] if spec.sensitive else []
            rules += [f"description={text_of(spec.description)}"] if spec.description else []
            before = f"{name}: {self._type(field, spec)}{'' if is_present else ' | None'}"
            if rules in ([], ["default=None"]):
                lines.append(f"{INDENT}{before}{' = None' if rules else ''}")
            else:
                lines += _bracketed(f"{before} = Field", rules, "", indent=INDENT)
        return lines

    def _payload(self, name: str, title: str, fields: Mapping[str, FieldSpec], *, is_new: bool) -> list[str]:
        kinds = {}
        for field, spec in fields.items():
            kind = self._type(field, spec, written=True) + ("" if spec.required else " | None")
            kinds[field] = kind if is_new and spec.required and not spec.generate else f"NotRequired[{kind}]"
        if any(keyword.iskeyword(field) or field in _TYPE_NAMES for field in fields):
            entries = [f"{text_of(field)}: {kind}" for field, kind in kinds.items()]
            return [f"# {title}", *_bracketed(f"{name} = TypedDict", [text_of(name), entries], "")]
        body = [f"{INDENT}{field}: {kind}" for field, kind in kinds.items()]
        return [f"class {name}(TypedDict):", f'{INDENT}"""{title}"""', *([""] if body else []), *body]

    def _class(self, name: str, base: str, *, is_async: bool) -> list[str]:
        title = f"The operations of {self.template.name}{', awaited' if is_async else ''}."
        lines = [
            f"class {name}({base}[{self.record}]):",
            f'{INDENT}"""{title}"""',
            "",
            f"{INDENT}template_name = {text_of(self.template.name)}",
            f"{INDENT}record_model = {self.record}",
        ]
        for method in (*self._writes(), *self._fetches()):
            lines += ["", *method.lines(is_async=is_async)]
        return lines

    def _writes(self) -> Iterator[_Method]:
        template = self.template
        options = ["idempotency_key: str | None = None", "timeout: float = DEFAULT_TIMEOUT"]
        passed = ["idempotency_key=idempotency_key", "timeout=timeout"]

        def write(name: str, title: str, call: str, signature: list[str], value: Item) -> _Method:
            return _Method(name, title, signature, options, "Response", f"untyped.{call}", [value, *passed])

        if template.create:
            yield write("create", "Create a record.", "create_record", [f"record: {self.new}"], "record")
        if template.create_many:
            signature = [f"records: Sequence[{self.new}]"]
            yield write("create_many", "Create all of the records, or none.", "create_records", signature, "records")
        if template.expected_version is not None:
            kind = self._type(str(template.version), template.expected_version)
            options = [f"expected_version: {kind} | None = None", *options]
            passed = ["expected_version=expected_version", *passed]
        taken = {*_OPTIONS, "changes"}
        keys = {field: _unused(field, taken) for field in template.keys}
        entries = [f"{text_of(field)}: {name}" for field, name in keys.items()]
        signature = [
            f"{name}: {self._type(field, template.fields[field], written=True)}" for field, name in keys.items()
        ]
        if template.update:
            title = "Change fields of the record with this key."
            changed = [*signature, f"changes: {self.changes}"]
            yield write("update", title, "update_record", changed, [*entries, "**changes"])
        if template.delete:
            record_id: Item = entries if len(keys) > 1 else next(iter(keys.values()))
            yield write("delete", "Delete the record with this key.", "delete_record", signature, record_id)

    def _fetches(self) -> Iterator[_Method]:
        for using, spec in self.template.fetch.items():
            required, optional, args = self._signature(using, spec)
            cursor = ['cursor: str = ""'] if spec.cursor else []
            named = [*optional, "limit: int | None = None", *cursor, "timeout: float = DEFAULT_TIMEOUT"]
            passed = ["limit=limit", *(["cursor=cursor"] if spec.cursor else []), "timeout=timeout"]
            values = [text_of(using), args, *passed]
            if spec.results:
                title = f"Fetch `{using}`: one record, which has lists of records: {', '.join(spec.results)}."
                yield _Method(f"fetch_{using}", title, required, named, "Page", "_fetch_page", values)
                continue
            title = f"Fetch `{using}`: a page of at most {spec.max_limit:,} records."
            page = f"RecordPage[{self.record}]"
            yield _Method(f"fetch_{using}", title, required, named, page, "_fetch", values)
            if spec.cursor:
                title = f"All records of `{using}`, in pages of `limit` records."
                named, values = [*optional, "limit: int | None = None"], [text_of(using), args, "limit=limit"]
                yield _Method(
                    f"iterate_{using}", title, required, named, f"Iterator[{self.record}]", "_iterate", values
                )

    def _signature(self, using: str, spec: FetchSpec) -> tuple[list[str], list[str], Item]:
        """The required and the optional parameters of a fetch, and the arguments that it passes on."""
        arguments = self._arguments.get((self.template.name, using))
        if arguments is None:
            return ["args: Mapping[str, Any] | None = None"], [], "args or {}"
        taken = set(_OPTIONS)
        required, optional, entries = [], [], []
        for argument in arguments:
            own = spec_of(self.template, spec, argument.name)
            kind = self._type(argument.name, own, written=True) if own else _any_of(argument.types)
            name = _unused(argument.name, taken)
            entries.append(f"{text_of(argument.name)}: {name}")
            if argument.required:
                required.append(f"{name}: {kind}")
            else:
                optional.append(f"{name}: {kind if kind == 'Any' else f'{kind} | None'} = None")
        return required, optional, entries


@dataclass(frozen=True, slots=True)
class _Method:
    """A generated method, which passes its arguments on.

    Args:
        name, title: of the method.
        positional, named: its parameters.
        result: their type.
        call: what it calls, on `self`.
        values: what it passes on.
    """

    name: str
    title: str
    positional: Sequence[str]
    named: Sequence[str]
    result: str
    call: str
    values: Sequence[Item]

    def lines(self, *, is_async: bool) -> list[str]:
        iterates = self.result.startswith("Iterator")
        result = f"Async{self.result}" if iterates and is_async else self.result
        define, wait = ("async def", "await ") if is_async and not iterates else ("def", "")
        body = INDENT * 2
        return [
            *_bracketed(
                f"{define} {self.name}", ["self", *self.positional, "*", *self.named], f" -> {result}:", indent=INDENT
            ),
            f'{body}"""{self.title}"""',
            *_bracketed(f"return {wait}self.{self.call}", self.values, "", indent=body),
        ]


def _choice(name: str, literal: str) -> list[str]:
    """The definition of a type for a long `Literal`."""
    values = ast.literal_eval(literal.removeprefix("Literal"))
    return _bracketed(f"{name} = Literal", list(map(text_of, values)), "", "[]")


def _any_of(types: Sequence[str]) -> str:
    """The type of an argument that is no field: that which the database declares, or anything."""
    found = dict.fromkeys(_PYTHON[name] for name in types)
    return " | ".join(found) if 0 < len(found) <= 2 else "Any"


def _limits(spec: FieldSpec) -> list[str]:
    """A field's limits, as arguments of `Field`."""
    found: list[str] = []
    if spec.max_length is not None and spec.type in ("string", "bytes", "array") and spec.values is None:
        found.append(f"max_length={spec.max_length}")
    for name, limit, whole in (("ge", spec.min, math.ceil), ("le", spec.max, math.floor)):
        if limit is None:
            continue
        match spec.type:
            case "integer":
                found.append(f"{name}={whole(limit)}")
            case "number":
                found.append(f"{name}={repr(float(limit)).replace('e+', 'e')}")
            case _:
                found.append(f"{name}=Decimal({text_of(str(Decimal(limit)))})")
    if spec.type == "decimal":
        found += [f"max_digits={spec.digits}"] if spec.digits is not None else []
        found += [f"decimal_places={spec.scale}"] if spec.scale is not None else []
    return found

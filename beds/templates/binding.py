"""Binds an event's values to the parameters of a named object, and checks that they fit.

Parameters are matched by name, to the template's fields, to a fetch's arguments, or to these reserved names:

    document   the whole record of a create or update
    changes    an update without its key
    documents  the records of a bulk create (also `records`, for procedures)
    limit      the number of records of a page
    after_<f>  field f of the last record of the previous page
    until_<f>  field f of the last record of a range (fetches with range = true)
    keys       the keys of records, for by_keys and remove_many
    expected_version   the version that the record of an update or delete must have; null if the caller names none
    given_fields       the names of the fields that the caller sent with a create or update, so that the object can
                       tell a null from a field that was left out

A field or an argument with a reserved name usually takes precedence; see `reserved_type`. A parameter of MariaDB
without a value gets null, so the DBA may add one while older templates are in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from beds.domain.description import Argument
from beds.domain.event import Operation, Store
from beds.errors import SchemaMismatch
from beds.templates.fields import FieldSpec
from beds.templates.named_object import NamedObject, ObjectKind, Param
from beds.templates.template import COMPARING, EXPECTED_VERSION, FetchSpec, ObjectRef, Template

_REC_KINDS: Mapping[Operation, frozenset[ObjectKind]] = {
    Operation.CREATE: frozenset({ObjectKind.INSERT}),
    Operation.CREATE_MANY: frozenset({ObjectKind.INSERT_MANY}),
    Operation.UPDATE: frozenset({ObjectKind.UPDATE, ObjectKind.FIND_AND_MODIFY}),
    Operation.DELETE: frozenset({ObjectKind.DELETE, ObjectKind.FIND_AND_MODIFY}),
    Operation.FETCH: frozenset({ObjectKind.FIND, ObjectKind.AGGREGATE, ObjectKind.VIEW}),
}
_REL_KINDS: Mapping[Operation, frozenset[ObjectKind]] = {
    op: frozenset({ObjectKind.PROCEDURE}) for op in Operation if op is not Operation.FETCH
} | {Operation.FETCH: frozenset({ObjectKind.PROCEDURE, ObjectKind.FUNCTION, ObjectKind.VIEW})}

BULK_NAMES = frozenset({"documents", "records"})
GIVEN_FIELDS = "given_fields"
KEYS = "keys"
BY_KEYS = frozenset({"by_keys", "remove_many"})
"""The tables whose objects take `keys`."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One mismatch between a template and a named object."""

    file: str
    table: str
    object: str
    param: str
    problem: str

    def __str__(self) -> str:
        param = f", parameter {self.param}" if self.param else ""
        return f"{self.file} [{self.table}] object {self.object}{param}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Binding:
    """A template's operation, bound to the object that executes it."""

    template: Template
    operation: Operation
    ref: ObjectRef
    target: NamedObject
    table: str = ""

    @property
    def by_keys(self) -> bool:
        """Whether the object takes the keys of records."""
        return self.table in BY_KEYS

    @property
    def fetch(self) -> FetchSpec:
        assert isinstance(self.ref, FetchSpec)
        return self.ref

    @property
    def pages(self) -> bool:
        return self.operation is Operation.FETCH and bool(self.fetch.cursor)


def bind(template: Template, table: str, target: NamedObject | None) -> Binding:
    """Bind the operation of one TOML table (`create`, `fetch.by_faa`, …).

    Raises:
        SchemaMismatch: the object is missing or does not fit; `detail["mismatches"]` lists each mismatch.
    """
    operation, ref = template.refs()[table]
    problems = list(_problems(template, table, operation, ref, target))
    if problems:
        file = template.file.name or template.name
        mismatches = [Mismatch(file, table, ref.object, param, problem) for param, problem in problems]
        raise SchemaMismatch(
            "; ".join(str(m) for m in mismatches),
            detail={"template": template.name, "object": ref.object, "mismatches": [str(m) for m in mismatches]},
        )
    assert target is not None
    return Binding(template, operation, ref, target, table)


def _problems(
    template: Template, table: str, operation: Operation, ref: ObjectRef, target: NamedObject | None
) -> list[tuple[str, str]]:
    if target is None:
        return [("", f"does not exist in the {template.store} store, or its broker may not use it")]
    kinds = (_REC_KINDS if template.store is Store.REC else _REL_KINDS)[operation]
    if target.kind not in kinds:
        wanted = " or ".join(sorted(kinds))
        return [("", f"is a {target.kind}; {operation} needs a {wanted}")]
    problems: list[tuple[str, str]] = []
    if isinstance(ref, FetchSpec) and (uncertain := template.uncertain_cursor(ref)):
        return [("", uncertain)]
    if not target.strict and target.several and operation is not Operation.FETCH:
        return [
            ("", "was made without strict mode and has several statements: it would cut what does not fit in silence")
        ]
    inputs = [p for p in target.params if p.takes_value]
    if operation is Operation.CREATE_MANY:
        return _bulk_problems(inputs) or (_load_problems(template, target) if table == "load" else [])
    if table in BY_KEYS:
        return _keys_problems(inputs)
    for param in inputs:
        problem = _param_problem(template, operation, ref, param)
        if problem:
            problems.append((param.name, problem))
    names = {p.name for p in inputs}
    for missing in sorted(_wanted(template, operation, ref, target) - names):
        problems.append((missing, "is missing: the template needs it"))
    return problems


def _bulk_problems(inputs: list[Param]) -> list[tuple[str, str]]:
    if len(inputs) != 1 or inputs[0].name not in BULK_NAMES:
        return [("", "a bulk object takes exactly one parameter, named records or documents")]
    if not inputs[0].types & {"array", "object"}:
        return [(inputs[0].name, f"is {inputs[0].declared}; the records of a bulk create need a JSON or array type")]
    return []


def _load_problems(template: Template, target: NamedObject) -> list[tuple[str, str]]:
    if target.reads_all:
        return []
    left = [name for name in template.keys if name not in target.columns]
    return [(name, "is not read from the records; a load keeps the keys") for name in left]


def _keys_problems(inputs: list[Param]) -> list[tuple[str, str]]:
    if len(inputs) != 1 or inputs[0].name != KEYS:
        return [("", f"takes exactly one parameter, named {KEYS}")]
    if not inputs[0].types & {"array", "object"}:
        return [(KEYS, f"is {inputs[0].declared}; the keys of records need a JSON or array type")]
    return []


def _param_problem(template: Template, operation: Operation, ref: ObjectRef, param: Param) -> str | None:
    reserved = reserved_type(template, operation, ref, param)
    if reserved:
        if reserved not in param.types:
            return f"is {param.declared}, but BEDS fills it with {reserved}"
        return param.cannot_page or None
    if is_unfilled(template, operation, ref, param):
        # All parameters of MariaDB may be null.
        if template.store is Store.REL or param.optional or param.mode == "inout":
            return None
        return "is surplus: it is no field of the template, no argument of the fetch and no reserved name"
    spec = spec_of(template, ref, param.name)
    assert spec is not None
    if spec.type not in param.types:
        return f"is {param.declared}, but the template's field is {spec.type}"
    if spec.max_length and param.max_length and spec.type in ("string", "bytes") and spec.max_length > param.max_length:
        return f"holds {param.max_length}, but the template allows max_length = {spec.max_length}"
    return None


def spec_of(template: Template, ref: ObjectRef, name: str) -> FieldSpec | None:
    """The argument or field for a parameter or column of this name; an argument takes precedence."""
    own = ref.args.get(name) if isinstance(ref, FetchSpec) else None
    return own or template.fields.get(name)


def bounded_field(name: str) -> str:
    """The field of a parameter `after_<field>` or `until_<field>`; another name stays as it is."""
    return name.removeprefix("after_").removeprefix("until_")


def field_behind(template: Template, name: str) -> str:
    """The field whose type a parameter's value has: that of `bounded_field`, or the version."""
    if name == EXPECTED_VERSION and template.expected_version is not None and template.version is not None:
        return template.version
    return bounded_field(name)


def is_unfilled(template: Template, operation: Operation, ref: ObjectRef, param: Param) -> bool:
    """Whether no value of an event fills the parameter, so that it gets null or keeps its default."""
    if operation is Operation.DELETE:
        return param.name not in template.keys and not reserved_type(template, operation, ref, param)
    return spec_of(template, ref, param.name) is None and not reserved_type(template, operation, ref, param)


def may_be_left_out(template: Template, fetch: FetchSpec, param: Param) -> bool:
    """True if a fetch may leave out an argument: its parameter then has its default."""
    return (
        is_unfilled(template, Operation.FETCH, fetch, param)
        or param.optional
        or param.name in fetch.optional
        or param.mode == "inout"
    )


def arguments_of(template: Template, fetch: FetchSpec, params: Iterable[Param]) -> tuple[Argument, ...]:
    """The arguments that a fetch takes from its caller, by the parameters of its object."""
    found = []
    for param in params:
        if not param.takes_value or reserved_type(template, Operation.FETCH, fetch, param):
            continue
        spec = spec_of(template, fetch, param.name)
        found.append(
            Argument(
                param.name,
                (spec.type,) if spec else tuple(sorted(param.types)),
                param.declared,
                not may_be_left_out(template, fetch, param),
                bool(spec and spec.sensitive),
                spec.description if spec else "",
            )
        )
    return tuple(found)


def reserved_type(template: Template, operation: Operation, ref: ObjectRef, param: Param) -> str | None:
    """The type of a parameter that BEDS fills itself, or None when its name is a field or an argument."""
    name = param.name
    if not isinstance(ref, FetchSpec):
        if name == EXPECTED_VERSION and operation in COMPARING and template.expected_version is not None:
            return template.expected_version.type
        if name == GIVEN_FIELDS and operation in (Operation.CREATE, Operation.UPDATE) and name not in template.fields:
            return "array"
        takes_record = name == "document" and operation in (Operation.CREATE, Operation.UPDATE)
        takes_changes = name == "changes" and operation is Operation.UPDATE
        return "object" if (takes_record or takes_changes) and (param.whole or name not in template.fields) else None
    if name in ref.args:
        return None
    if name == "limit":
        # A field of that name takes precedence, unless the fetch needs the parameter for its pages.
        return "integer" if param.whole or ref.cursor or name not in template.fields else None
    bound, _, of = name.partition("_")
    if of in ref.cursor and (bound == "after" or (bound == "until" and ref.range)):
        return template.fields[of].type
    return None


def _wanted(template: Template, operation: Operation, ref: ObjectRef, target: NamedObject) -> set[str]:
    """Required parameters: without them data would be lost silently, or paging would never end."""
    if isinstance(ref, FetchSpec):
        paging = {f"after_{name}" for name in ref.cursor} | ({"limit"} if ref.cursor else set())
        if ref.range:
            paging |= {f"until_{name}" for name in ref.cursor}
        return paging | set(ref.args) | set(ref.optional)
    if operation is not Operation.CREATE:
        return set(template.keys)
    if any(p.name != GIVEN_FIELDS and reserved_type(template, operation, ref, p) for p in target.params):
        return set()
    # A key that is not required may be generated by the store (AUTO_INCREMENT), and so may the first version.
    made_by_store = {name for name in (*template.keys, template.version) if name and not template.fields[name].required}
    return set(template.fields) - made_by_store

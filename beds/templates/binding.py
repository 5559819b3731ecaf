"""Binding: which value of an event goes into which parameter of a named object, and whether all of them fit.

Parameters are matched by name. Besides the template's fields and a fetch's arguments there are a few names that BEDS
fills in:

    document   the whole record of a create or update      changes    an update without its key
    documents  the records of a bulk create (also `records`, for procedures)
    limit      the number of records a fetch asks for       after_<f>  field f of the last record of the page before
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from beds.domain.event import Operation, Store
from beds.errors import SchemaMismatch
from beds.templates.named_object import NamedObject, ObjectKind, Param
from beds.templates.template import FetchSpec, ObjectRef, Template

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


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing that does not fit, for a person to mend."""

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
    """A template's operation, bound to the object that carries it out."""

    template: Template
    operation: Operation
    ref: ObjectRef
    target: NamedObject

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
        SchemaMismatch: the object is missing or does not fit; `detail["mismatches"]` names each thing.
    """
    operation, ref = template.refs()[table]
    problems = list(_problems(template, operation, ref, target))
    if problems:
        file = template.file.name or template.name
        mismatches = [Mismatch(file, table, ref.object, param, problem) for param, problem in problems]
        raise SchemaMismatch(
            "; ".join(str(m) for m in mismatches),
            detail={"template": template.name, "object": ref.object, "mismatches": [str(m) for m in mismatches]},
        )
    assert target is not None
    return Binding(template, operation, ref, target)


def _problems(
    template: Template, operation: Operation, ref: ObjectRef, target: NamedObject | None
) -> list[tuple[str, str]]:
    if target is None:
        return [("", f"does not exist in the {template.store} store, or its broker may not use it")]
    kinds = (_REC_KINDS if template.store is Store.REC else _REL_KINDS)[operation]
    if target.kind not in kinds:
        wanted = " or ".join(sorted(kinds))
        return [("", f"is a {target.kind}; {operation} needs a {wanted}")]
    problems: list[tuple[str, str]] = []
    inputs = [p for p in target.params if p.mode == "in"]
    if operation is Operation.CREATE_MANY:
        return _bulk_problems(inputs)
    for param in inputs:
        problem = _param_problem(template, operation, ref, param)
        if problem:
            problems.append((param.name, problem))
    names = {p.name for p in inputs}
    for missing in _wanted(template, operation, ref, target) - names:
        problems.append((missing, "is missing: the template needs it"))
    return problems


def _bulk_problems(inputs: list[Param]) -> list[tuple[str, str]]:
    if len(inputs) != 1 or inputs[0].name not in BULK_NAMES:
        return [("", "a bulk object takes exactly one parameter, named records or documents")]
    if not inputs[0].types & {"array", "object"}:
        return [(inputs[0].name, f"is {inputs[0].declared}; the records of a bulk create need a JSON or array type")]
    return []


def _param_problem(template: Template, operation: Operation, ref: ObjectRef, param: Param) -> str | None:
    reserved = reserved_type(template, operation, ref, param.name)
    if reserved:
        return None if reserved in param.types else f"is {param.declared}, but BEDS fills it with {reserved}"
    spec = template.fields.get(param.name)
    if isinstance(ref, FetchSpec):
        spec = ref.args.get(param.name) or spec
    if operation is Operation.DELETE and param.name != template.key:
        return f"is surplus: delete_record knows only the key {template.key}"
    if spec is None:
        return "is surplus: it is no field of the template, no argument of the fetch and no reserved name"
    if spec.type not in param.types:
        return f"is {param.declared}, but the template's field is {spec.type}"
    if spec.max_length and param.max_length and spec.type in ("string", "bytes") and spec.max_length > param.max_length:
        return f"holds {param.max_length}, but the template allows max_length = {spec.max_length}"
    return None


def reserved_type(template: Template, operation: Operation, ref: ObjectRef, name: str) -> str | None:
    """The field type of a parameter that BEDS fills in itself, or None when the name is not reserved here."""
    if name == "document" and operation in (Operation.CREATE, Operation.UPDATE):
        return "object"
    if name == "changes" and operation is Operation.UPDATE:
        return "object"
    if isinstance(ref, FetchSpec):
        if name == "limit":
            return "integer"
        if name.removeprefix("after_") in ref.cursor and name.startswith("after_"):
            return template.fields[name.removeprefix("after_")].type
    return None


def _wanted(template: Template, operation: Operation, ref: ObjectRef, target: NamedObject) -> set[str]:
    """Parameters without which data would be lost silently, or a page would not end."""
    if isinstance(ref, FetchSpec):
        paging = {f"after_{name}" for name in ref.cursor} | ({"limit"} if ref.cursor else set())
        return paging | set(ref.args) | set(ref.optional)
    if operation is not Operation.CREATE:
        return {template.key}
    if target.param("document"):
        return set()
    # The store may make the key itself (AUTO_INCREMENT): then the template's create does not require it.
    made_by_store = set() if template.fields[template.key].required else {template.key}
    return set(template.fields) - made_by_store

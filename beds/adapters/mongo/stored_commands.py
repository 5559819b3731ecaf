"""Stored commands: parses one, checks the places of its parameters, and fills in values.

The place of a `{"$param": name}` decides how it is replaced, so that a value never becomes an operator. A filter
compares the value (`$eq`), an expression holds it as a `$literal`, and a document holds it as data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from beds.adapters.mongo.values import check_bson
from beds.errors import SchemaMismatch, WrongType
from beds.templates.named_object import NamedObject, ObjectKind, Param

_BSON_TO_FIELD: Mapping[str, frozenset[str]] = {
    "string": frozenset({"string"}),
    "int": frozenset({"integer"}),
    "long": frozenset({"integer"}),
    "double": frozenset({"number"}),
    "decimal": frozenset({"decimal"}),
    "number": frozenset({"integer", "number", "decimal"}),
    "bool": frozenset({"boolean"}),
    "date": frozenset({"datetime"}),
    "objectId": frozenset({"object_id"}),
    "binData": frozenset({"bytes", "uuid"}),
    "object": frozenset({"object"}),
    "array": frozenset({"array"}),
}
_RULES = frozenset({"bsonType", "default", "description", "maximum", "maxLength"})
_INT32_MAX = 2**31 - 1

# Operators of a filter that compare any operand as a value.
_VALUE_OPERATORS = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$size", "$exists", "$mod"})
_LIST_OPERATORS = frozenset({"$in", "$nin", "$all"})
"""Operators with a list of values. MongoDB runs some objects in it: `$elemMatch` in `$all`, regular expressions in
`$in`. An object with a key that begins with $ is therefore refused there."""
_LOGICAL = frozenset({"$and", "$or", "$nor"})
# Operators of an update whose operand is data.
_STORING = frozenset({"$set", "$setOnInsert", "$inc", "$mul", "$min", "$max", "$unset", "$pop"})
# Stages whose operand is a bare number.
_COUNT_STAGES = frozenset({"$limit", "$skip"})
_FORBIDDEN = frozenset({"$where", "$function", "$accumulator", "$out", "$merge"})
_COMMANDS: Mapping[ObjectKind, str] = {
    ObjectKind.INSERT: "insert",
    ObjectKind.INSERT_MANY: "insert",
    ObjectKind.FIND: "find",
    ObjectKind.VIEW: "find",
    ObjectKind.AGGREGATE: "aggregate",
    ObjectKind.UPDATE: "update",
    ObjectKind.DELETE: "delete",
    ObjectKind.FIND_AND_MODIFY: "findAndModify",
}

ABSENT = object()
"""Stands for the missing value of an update's parameter: the update then leaves the field unchanged."""


class Fill:
    """The values of one call. A missing one is the parameter's default, or `ABSENT` where an update would store it."""

    def __init__(self, target: NamedObject, values: Mapping[str, Any]) -> None:
        self._target = target
        self._values = values

    def __call__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        param = self._target.param(name)
        return param.default if param is not None else None

    def stored(self, name: str) -> Any:
        return self._values.get(name, ABSENT)


def parse(source: Mapping[str, Any]) -> NamedObject:
    """A `beds_objects` document as a named object, with every rule of stored commands checked.

    Raises:
        SchemaMismatch: names the object and what is wrong with it.
    """
    name = str(source.get("name", "?"))
    try:
        kind = ObjectKind(source.get("kind", ""))
        command_name = _COMMANDS[kind]
    except (ValueError, KeyError):
        raise _wrong(name, f"kind {source.get('kind')!r} is none of: {', '.join(_COMMANDS)}") from None
    command = source.get("command")
    if not isinstance(command, Mapping) or next(iter(command), "") != command_name:
        raise _wrong(name, f"a {kind} needs a command that begins with {command_name!r}")
    params = source.get("params", {})
    if not isinstance(params, Mapping):
        raise _wrong(name, "params takes an object of parameter names")
    whole = set(_whole_records(command))
    target = NamedObject(
        name=name,
        kind=kind,
        params=tuple(_parse_param(name, key, spec, whole) for key, spec in params.items()),
        command=command,
        description=str(source.get("description", "")),
    )
    used = set(_params_used(command))
    for param in target.params:
        if param.name not in used:
            raise _wrong(name, f"parameter {param.name} is declared but stands nowhere in the command")
    for missing in used - {p.name for p in target.params}:
        raise _wrong(name, f"the command uses the undeclared parameter {missing}")
    fill(target, {p.name: None for p in target.params})  # checks the place of every parameter
    return target


def fill(target: NamedObject, values: Mapping[str, Any]) -> dict[str, Any]:
    """The command with its parameters filled in, ready to run.

    Raises:
        SchemaMismatch: a parameter stands where a value could become an operator.
    """
    return {key: _part(target, key, part, Fill(target, values)) for key, part in target.command.items()}


def _part(target: NamedObject, key: str, part: Any, value_of: Fill) -> Any:
    match key:
        case "filter" | "query" | "q":
            return _filter(target, part, value_of)
        case "pipeline":
            return [_stage(target, stage, value_of) for stage in part]
        case "let":
            return _expression(target, part, value_of)
        case "documents" | "limit" | "skip" | "batchSize":
            return _data(target, part, value_of)
        case "updates" | "deletes":
            return [{k: _part(target, k, v, value_of) for k, v in statement.items()} for statement in part]
        case "u" | "update" if isinstance(part, list):
            return [_stage(target, stage, value_of) for stage in part]
        case "u" | "update" if isinstance(part, Mapping) and not _is_param(part):
            return {op: _update(target, op, operand, value_of) for op, operand in part.items()}
        case _:
            # collection names, sort, projection, hint, collation, upsert, multi, new, …
            return _fixed(target, part, key)


def _filter(target: NamedObject, node: Any, value_of: Fill) -> Any:
    if not isinstance(node, Mapping) or _is_param(node):
        raise _unsafe(target, "a whole filter")
    found: dict[str, Any] = {}
    for key, inner in node.items():
        if key in _FORBIDDEN:
            raise _wrong(target.name, f"{key} is not allowed in a stored command")
        if key in _LOGICAL:
            found[key] = [_filter(target, clause, value_of) for clause in inner]
        elif key == "$expr":
            found[key] = _expression(target, inner, value_of)
        elif key.startswith("$"):
            found[key] = _fixed(target, inner, key)
        elif _is_param(inner):
            found[key] = {"$eq": value_of(inner["$param"])}
        elif isinstance(inner, Mapping) and any(k.startswith("$") for k in inner):
            found[key] = {op: _operand(target, op, operand, value_of) for op, operand in inner.items()}
        else:
            found[key] = _fixed(target, inner, key)
    return found


def _operand(target: NamedObject, op: str, operand: Any, value_of: Fill) -> Any:
    if op in _VALUE_OPERATORS:
        return _data(target, operand, value_of)
    if op in _LIST_OPERATORS:
        filled = _data(target, operand, value_of)
        for value in filled if isinstance(filled, list) else []:
            if isinstance(value, Mapping) and any(str(key).startswith("$") for key in value):
                raise WrongType(
                    f"a value in the list of {op} is an object with a key that begins with $, which MongoDB would run",
                    detail={"field": next(iter(_params_used(operand)), ""), "object": target.name},
                    hint="compare with plain values",
                )
        return filled
    if op == "$not" and isinstance(operand, Mapping) and not _is_param(operand):
        return {inner: _operand(target, inner, value, value_of) for inner, value in operand.items()}
    if op == "$elemMatch" and isinstance(operand, Mapping) and not _is_param(operand):
        if any(key.startswith("$") and key not in _LOGICAL for key in operand):
            return {inner: _operand(target, inner, value, value_of) for inner, value in operand.items()}
        return _filter(target, operand, value_of)
    return _fixed(target, operand, op)


def _stage(target: NamedObject, stage: Any, value_of: Fill) -> Any:
    if not isinstance(stage, Mapping) or len(stage) != 1 or _is_param(stage):
        raise _unsafe(target, "a whole pipeline stage")
    ((name, body),) = stage.items()
    if name in _FORBIDDEN:
        raise _wrong(target.name, f"{name} is not allowed in a stored command")
    if name == "$match":
        return {name: _filter(target, body, value_of)}
    if name in _COUNT_STAGES:
        return {name: _data(target, body, value_of)}
    if name == "$facet":
        return {name: {k: [_stage(target, s, value_of) for s in stages] for k, stages in body.items()}}
    if name in ("$lookup", "$unionWith") and isinstance(body, Mapping):
        return {
            name: {
                k: _part(target, k, v, value_of) if k == "pipeline" else _fixed(target, v, k) for k, v in body.items()
            }
        }
    return {name: _expression(target, body, value_of)}


def _expression(target: NamedObject, node: Any, value_of: Fill) -> Any:
    if _is_param(node):
        return {"$literal": value_of(node["$param"])}
    if isinstance(node, Mapping):
        for key in node:
            if key in _FORBIDDEN:
                raise _wrong(target.name, f"{key} is not allowed in a stored command")
        return {key: _expression(target, inner, value_of) for key, inner in node.items()}
    if isinstance(node, list):
        return [_expression(target, inner, value_of) for inner in node]
    return node


def _update(target: NamedObject, op: str, operand: Any, value_of: Fill) -> Any:
    if op in _STORING:
        if _is_param(operand) or not isinstance(operand, Mapping):
            return _data(target, operand, value_of)
        given = {
            path: inner
            for path, inner in operand.items()
            if not (_is_param(inner) and value_of.stored(inner["$param"]) is ABSENT)
        }
        return _data(target, given, value_of)
    if op in ("$push", "$addToSet") and isinstance(operand, Mapping) and not _is_param(operand):
        # MongoDB would read a bare object as modifiers ($each, $slice, …).
        return {
            path: {"$each": [value_of(v["$param"])]} if _is_param(v) else _data(target, v, value_of)
            for path, v in operand.items()
        }
    if op == "$pull" and isinstance(operand, Mapping) and not _is_param(operand):
        return {
            path: {"$eq": value_of(v["$param"])} if _is_param(v) else _fixed(target, v, op)
            for path, v in operand.items()
        }
    return _fixed(target, operand, op)


def _data(target: NamedObject, node: Any, value_of: Fill) -> Any:
    """Fill a place where any value is data."""
    if _is_param(node):
        return value_of(node["$param"])
    if isinstance(node, Mapping):
        return {key: _data(target, inner, value_of) for key, inner in node.items()}
    if isinstance(node, list):
        return [_data(target, inner, value_of) for inner in node]
    return node


def _fixed(target: NamedObject, node: Any, where: str) -> Any:
    """Return a part that may hold no parameter. Raises SchemaMismatch: it holds one."""
    for _ in _params_used(node):
        raise _unsafe(target, where)
    return node


def _params_used(node: Any) -> Iterator[str]:
    if _is_param(node):
        yield node["$param"]
    elif isinstance(node, Mapping):
        for inner in node.values():
            yield from _params_used(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _params_used(inner)


def _whole_records(command: Mapping[str, Any]) -> Iterator[str]:
    """The parameters that hold a whole record: an inserted document, a replacement, or an update's whole `$set`."""
    documents, updates = command.get("documents"), command.get("updates")
    for document in documents if isinstance(documents, list) else []:
        if _is_param(document):
            yield document["$param"]
    for statement in updates if isinstance(updates, list) else [command]:
        change = statement.get("u", statement.get("update")) if isinstance(statement, Mapping) else None
        if not isinstance(change, Mapping):
            continue
        if _is_param(change):
            yield change["$param"]
        else:
            yield from (
                change[op]["$param"] for op in ("$set", "$setOnInsert") if op in change and _is_param(change[op])
            )


def _is_param(node: Any) -> bool:
    return isinstance(node, Mapping) and len(node) == 1 and isinstance(node.get("$param"), str)


def _parse_param(object_name: str, name: str, spec: Any, whole: set[str]) -> Param:
    if not isinstance(spec, Mapping):
        raise _wrong(object_name, f"parameter {name} takes an object with bsonType")
    for key in spec:
        if key not in _RULES:
            raise _wrong(
                object_name, f"parameter {name} has the unknown rule {key!r}; known: {', '.join(sorted(_RULES))}"
            )
    declared = spec.get("bsonType")
    names = [declared] if isinstance(declared, str) else list(declared or [])
    types: set[str] = set()
    for bson_type in names:
        if bson_type == "null":
            continue
        if bson_type not in _BSON_TO_FIELD:
            raise _wrong(object_name, f"parameter {name} has the unknown bsonType {bson_type!r}")
        types |= _BSON_TO_FIELD[bson_type]
    if not types:
        raise _wrong(object_name, f"parameter {name} needs a bsonType")
    most = spec.get("maximum", _INT32_MAX if "int" in names and "long" not in names else None)
    return Param(
        name=name,
        types=frozenset(types),
        declared=" or ".join(names),
        optional="null" in names or "default" in spec,
        default=spec.get("default"),
        max_length=spec.get("maxLength"),
        checks=(partial(check_bson, declared=" or ".join(names), max_length=spec.get("maxLength"), most=most),),
        whole=name in whole,
    )


def _unsafe(target: NamedObject, where: str) -> SchemaMismatch:
    return _wrong(target.name, f"a parameter stands in {where}, where its value could become an operator")


def _wrong(name: str, problem: str) -> SchemaMismatch:
    return SchemaMismatch(
        f"stored command {name}: {problem}",
        detail={"object": name},
        hint="mend its file in schema/rec/, then run `beds schema apply`",
    )

"""Stored commands: reading one, judging where its parameters stand, and filling them in.

A `{"$param": name}` is replaced by a value in a way that depends on where it stands, so that a value can never become
an operator: in a filter it is compared (`$eq`), in an expression it is a `$literal`, in a document it is data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from beds.errors import SchemaMismatch
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

# Operators of a filter whose operand is compared as a value, whatever it looks like.
_VALUE_OPERATORS = frozenset(
    {"$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$all", "$size", "$exists", "$mod"}
)
_LOGICAL = frozenset({"$and", "$or", "$nor"})
# Operators of an update that store their operand as it is.
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

Fill = Callable[[str], Any]


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
    target = NamedObject(
        name=name,
        kind=kind,
        params=tuple(_parse_param(name, key, spec) for key, spec in params.items()),
        command=command,
        description=str(source.get("description", "")),
    )
    used = set(_params_used(command))
    for param in target.params:
        if param.name not in used:
            raise _wrong(name, f"parameter {param.name} is declared but stands nowhere in the command")
    for missing in used - {p.name for p in target.params}:
        raise _wrong(name, f"the command uses the undeclared parameter {missing}")
    fill(target, {p.name: None for p in target.params})  # walks every place a parameter stands in
    return target


def fill(target: NamedObject, values: Mapping[str, Any]) -> dict[str, Any]:
    """The command with its parameters filled in, ready to run.

    Raises:
        SchemaMismatch: a parameter stands where a value could become an operator.
    """
    return {key: _part(target, key, part, values.__getitem__) for key, part in target.command.items()}


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
        return _data(target, operand, value_of)
    if op in ("$push", "$addToSet") and isinstance(operand, Mapping) and not _is_param(operand):
        # A bare object would be read as modifiers ($each, $slice, …).
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
    """A place where any value is just data."""
    if _is_param(node):
        return value_of(node["$param"])
    if isinstance(node, Mapping):
        return {key: _data(target, inner, value_of) for key, inner in node.items()}
    if isinstance(node, list):
        return [_data(target, inner, value_of) for inner in node]
    return node


def _fixed(target: NamedObject, node: Any, where: str) -> Any:
    """A place where no parameter may stand."""
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


def _is_param(node: Any) -> bool:
    return isinstance(node, Mapping) and len(node) == 1 and isinstance(node.get("$param"), str)


def _parse_param(object_name: str, name: str, spec: Any) -> Param:
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
    return Param(
        name=name,
        types=frozenset(types),
        declared=" or ".join(names),
        optional="null" in names or "default" in spec,
        default=spec.get("default"),
        max_length=spec.get("maxLength"),
        max=spec.get("maximum", _INT32_MAX if "int" in names and "long" not in names else None),
        fraction=3,
    )


def _unsafe(target: NamedObject, where: str) -> SchemaMismatch:
    return _wrong(target.name, f"a parameter stands in {where}, where its value could become an operator")


def _wrong(name: str, problem: str) -> SchemaMismatch:
    return SchemaMismatch(
        f"stored command {name}: {problem}",
        detail={"object": name},
        hint="see docs/reference/stored-commands.md",
    )

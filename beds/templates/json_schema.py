"""JSON Schema (2020-12) of records: plain JSON, as the app server reads and writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from beds.templates.fields import FieldSpec
from beds.templates.template import Template

Json = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
DEFS = "#/$defs/"
LARGEST = 2**53
"""Integers beyond it are written as text, since JavaScript would round them."""
_TYPES: Mapping[str, Json] = {
    "string": {"type": "string"},
    "number": {"type": "number"},
    "decimal": {"type": "string", "format": "decimal"},
    "boolean": {"type": "boolean"},
    "datetime": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string"},
    "duration": {"type": "string", "description": "seconds in ISO 8601, as PT3600.5S"},
    "uuid": {"type": "string", "format": "uuid"},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "object_id": {"type": "string", "pattern": "^[0-9a-f]{24}$"},
    "object": {"type": "object"},
    "array": {"type": "array", "items": {}},
}


def document(templates: Iterable[Template], comment: str) -> Json:
    """One document with the schemas of several templates in its `$defs`."""
    found: Json = {"$schema": DIALECT, "$comment": comment, "$defs": {}}
    for template in templates:
        found["$defs"] |= schemas_of(template, DEFS)
    return found


def schema_of(spec: FieldSpec, *, nullable: bool) -> Json:
    """A field as a JSON schema."""
    if spec.type == "integer":
        is_small = spec.min is not None and spec.max is not None and -LARGEST <= spec.min <= spec.max <= LARGEST
        found: Json = {"type": "integer"} if is_small else {"type": ["integer", "string"], "pattern": "^-?[0-9]{1,20}$"}
    else:
        found = dict(_TYPES[spec.type])
    if spec.values is not None:
        found["enum"] = [*spec.values, None] if nullable else list(spec.values)
    if spec.max_length is not None:
        found["maxItems" if spec.type == "array" else "maxLength"] = spec.max_length
        if spec.type == "bytes":
            del found["maxLength"]  # it counts bytes, and not letters of Base64
    if spec.type in ("integer", "number"):
        found |= {
            key: float(limit) if spec.type == "number" else int(limit)
            for key, limit in (("minimum", spec.min), ("maximum", spec.max))
            if limit is not None
        }
    if spec.description:
        found["description"] = spec.description
    if nullable:
        kinds = found["type"]
        found["type"] = [*(kinds if isinstance(kinds, list) else [kinds]), "null"]
    return found


def schemas_of(template: Template, at: str) -> dict[str, Json]:
    """The schemas of a template's records, by name: `T`, `NewT` for a create, `TChanges` for an update, `TPage`.

    Args:
        template: whose.
        at: the place of the schemas in the document, to which references lead: `#/$defs/`.
    """
    name = template.name
    record: Json = {
        "type": "object",
        "properties": {n: schema_of(s, nullable=True) for n, s in template.fields.items()},
    }
    if template.template.description:
        record["description"] = template.template.description
    required = [n for n, spec in template.fields.items() if spec.required and not spec.generate]
    new: Json = {
        "type": "object",
        "properties": {n: schema_of(s, nullable=not s.required) for n, s in template.fields.items()},
        "additionalProperties": False,
    }
    if required:
        new["required"] = required
    changes = {
        "type": "object",
        "properties": {
            n: schema_of(s, nullable=not s.required) for n, s in template.fields.items() if n not in template.keys
        },
        "additionalProperties": False,
        "minProperties": 1,
    }
    page = page_of({"$ref": f"{at}{name}"})
    return {name: record, f"New{name}": new, f"{name}Changes": changes, f"{name}Page": page}


def page_of(record: Json) -> Json:
    """The schema of a page of such records."""
    return {
        "type": "object",
        "required": ["records", "cursor", "complete"],
        "properties": {
            "records": {"type": "array", "items": record},
            "cursor": {"type": ["string", "null"]},
            "complete": {"type": "boolean", "description": "whether these are the last records"},
        },
    }

"""The OpenAPI 3.1 description of what a caller may do, from the templates and the DBA's objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version

from beds.domain.change import MAX_CHANGES
from beds.domain.description import Description
from beds.http.access import Caller
from beds.http.requests import CSV, NDJSON
from beds.templates.fields import FieldSpec
from beds.templates.json_schema import Json, page_of, schema_of, schemas_of
from beds.templates.template import FetchSpec, Template

SCHEMAS = "#/components/schemas/"
"""Where the document has its schemas."""
_PROBLEM: Json = {
    "description": "The request failed",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def document(caller: Caller, templates: Mapping[str, Template], known: Mapping[str, Description]) -> Json:
    """The description of a caller's operations.

    Args:
        caller: whose.
        templates: those that it may see.
        known: the descriptions of templates, as far as workers have replied.
    """
    paths: dict[str, Json] = {}
    schemas: dict[str, Json] = dict(_SCHEMAS)
    for template in templates.values():
        schemas |= schemas_of(template, SCHEMAS)
        for path, methods in _paths_of(caller, template, known.get(template.name)).items():
            paths[path] = methods
        if caller.may_follow(template):
            paths[f"/v1/changes/{template.name}"] = {"get": _changes_of(template)}
    paths |= _COMMON
    return {
        "openapi": "3.1.0",
        "info": {"title": "BEDS", "version": version("beds"), "description": "Generated from the templates."},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "parameters": _PARAMETERS,
        },
    }


def _paths_of(caller: Caller, template: Template, known: Description | None) -> dict[str, Json]:
    name, found = template.name, dict[str, Json]()
    for using, spec in template.fetch.items():
        if spec.internal or not caller.may(template, using):
            continue
        arguments = list(_arguments(caller, template, using, spec, known))
        described = known.operations.get(f"fetch.{using}") if known else None
        found[f"/v1/{name}:{using}"] = {
            "get": {
                "operationId": f"{name}_{using}",
                "tags": [name],
                "summary": (described.description if described else "") or f"{using} of {name}",
                "parameters": [*arguments, *_paging(spec, template), _parameter("Prefer")],
                "responses": {
                    "200": {
                        "description": f"A page; with Accept: {NDJSON} or {CSV}, all pages from this one on",
                        "headers": {"Link": {"schema": {"type": "string"}, "description": "the next page"}},
                        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}Page"}}},
                    },
                    "202": _ACCEPTED,
                    "default": _PROBLEM,
                },
            }
        }
    is_versioned = template.expected_version is not None
    record = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    text = {"type": "string", "minLength": 1, "pattern": "^[^\\x00-\\x1f\\x7f]+$"}
    key: Json = {"name": "key", "in": "path", "required": True, "schema": text}
    item: Json = {}
    if template.item_fetch and caller.may(template, template.item_fetch):
        item["get"] = {
            "operationId": f"{name}_item",
            "tags": [name],
            "summary": f"One record of {name}",
            "responses": {
                "200": {"description": "The record", "content": record},
                "304": {"description": "It has the version of If-None-Match"},
                "default": _PROBLEM,
            },
        }
    if template.update and caller.may(template, "update"):
        summary = f"Change a record of {name}"
        item["patch"] = _write(f"{name}_update", name, summary, f"{name}Changes", "200", is_versioned=is_versioned)
    if template.delete and caller.may(template, "delete"):
        summary = f"Delete a record of {name}"
        item["delete"] = _write(f"{name}_delete", name, summary, "", "204", is_versioned=is_versioned)
    if item:
        found[f"/v1/{name}/{{key}}"] = {"parameters": [key], **item}
    if template.create and caller.may(template, "create"):
        found[f"/v1/{name}"] = {
            "post": _write(f"{name}_create", name, f"Create a record of {name}", f"New{name}", "201")
        }
    if template.create_many and caller.may(template, "create_many"):
        write = _write(f"{name}_create_many", name, f"Create records of {name}: all, or none", "", "200")
        rows = {"type": "array", "items": {"$ref": f"#/components/schemas/New{name}"}, "minItems": 1}
        write["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {"schema": rows},
                NDJSON: {"schema": {"type": "string"}},
                CSV: {"schema": {"type": "string"}},
            },
        }
        found[f"/v1/{name}:batch"] = {"post": write}
    return found


def _parameter(name: str) -> Json:
    return {"$ref": f"#/components/parameters/{name}"}


def _write(operation: str, tag: str, summary: str, schema: str, status: str, *, is_versioned: bool = False) -> Json:
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/Written"}}}
    done: Json = {"description": "Done"} if status == "204" else {"description": "Done", "content": body}
    responses: Json = {status: done, "202": _ACCEPTED, "default": _PROBLEM}
    if status == "200":
        responses["204"] = {"description": "Done, with Prefer: return=minimal"}
    found: Json = {
        "operationId": operation,
        "tags": [tag],
        "summary": summary,
        "parameters": [_parameter("IdempotencyKey"), _parameter("Prefer")],
        "responses": responses,
    }
    if is_versioned:
        found["parameters"].append(_parameter("IfMatch"))
    if schema:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _arguments(
    caller: Caller, template: Template, using: str, spec: FetchSpec, known: Description | None
) -> Iterable[Json]:
    """The arguments of a fetch that the caller gives itself."""
    described = known.operations.get(f"fetch.{using}") if known else None
    bound = caller.bindings(template, using)
    arguments = described.args if described else ()
    for argument in arguments:
        own = spec.args.get(argument.name) or template.fields.get(argument.name)
        if argument.name in bound:
            continue
        schema = schema_of(own, nullable=False) if own else _any_of(argument.types)
        yield {
            "name": argument.name,
            "in": "query",
            "required": argument.required,
            "schema": schema,
            **({"description": argument.description} if argument.description else {}),
        }


def _any_of(types: tuple[str, ...]) -> Json:
    found = [schema_of(FieldSpec(type=kind), nullable=False) for kind in types]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _paging(spec: FetchSpec, template: Template) -> list[Json]:
    limit: Json = {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": spec.max_limit, "default": spec.limit},
    }
    cursor: Json = {"name": "cursor", "in": "query", "schema": {"type": "string"}}
    return [limit, cursor] if spec.cursor else [limit] if "limit" not in template.fields else []


_ACCEPTED: Json = {
    "description": "Accepted, with Prefer: respond-async",
    "headers": {"Location": {"schema": {"type": "string"}}},
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}},
}
_TEXT: Json = {"type": ["string", "null"]}
_SCHEMAS: dict[str, Json] = {
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code", "retryable"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string"},
            "retryable": {"type": "boolean"},
            "field": {"type": "string"},
            "event_id": {"type": "string"},
        },
    },
    "Written": {
        "type": "object",
        "required": ["record_id", "affected", "record"],
        "properties": {
            "record_id": {"type": "string"},
            "affected": {"type": "integer"},
            "record": {"type": "object"},
        },
    },
    "Accepted": {
        "type": "object",
        "required": ["ticket", "event_id"],
        "properties": {"ticket": {"type": "string"}, "event_id": {"type": "string"}},
    },
    "Changes": {
        "type": "object",
        "required": ["changes", "position", "complete"],
        "properties": {
            "changes": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["position", "template", "operation", "key", "affected", "event_id", "at"],
                    "properties": {
                        "position": {"type": "string"},
                        "template": {"type": "string"},
                        "operation": {"enum": ["create_record", "create_records", "update_record", "delete_record"]},
                        "key": _TEXT,
                        "affected": {"type": "integer"},
                        "event_id": {"type": "string"},
                        "at": {"type": "string", "format": "date-time"},
                    },
                },
            },
            "position": {"type": "string"},
            "complete": {"type": "boolean"},
        },
    },
    "Ticket": {
        "type": "object",
        "required": ["ticket", "state", "ready"],
        "properties": {
            "ticket": {"type": "string"},
            "event_id": {"type": "string"},
            "state": {"enum": ["PENDING", "STARTED", "PROGRESS", "SUCCESS", "FAILURE", "REVOKED"]},
            "summary": {"type": "string"},
            "ready": {"type": "boolean"},
            "progress": {"type": ["object", "null"]},
            "accepted_at": _TEXT,
            "started_at": _TEXT,
            "ended_at": _TEXT,
            "cancelled_by": _TEXT,
            "error": {"anyOf": [{"$ref": "#/components/schemas/Problem"}, {"type": "null"}]},
        },
    },
}
_PARAMETERS: dict[str, Json] = {
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
        "description": "Sent again with the same body: the first response, and no second effect.",
    },
    "IfMatch": {
        "name": "If-Match",
        "in": "header",
        "required": True,
        "schema": {"type": "string"},
        "description": "The ETag of the record as it was read, or `*`.",
    },
    "Prefer": {
        "name": "Prefer",
        "in": "header",
        "schema": {"type": "string"},
        "description": "`respond-async`, `wait=SECONDS`, `return=minimal`",
    },
}


_ID: Json = {"type": "string", "pattern": "^[0-9A-Za-z._-]{1,120}$"}


def _get(summary: str, schema: Json, *parameters: str, media: str = "application/json") -> Json:
    return {
        "summary": summary,
        "tags": ["tickets, jobs and lineage"],
        "parameters": [{"name": name, "in": "path", "required": True, "schema": _ID} for name in parameters],
        "responses": {
            "200": {"description": "Found", "content": {media: {"schema": schema}}},
            "202": _ACCEPTED_TICKET,
            "default": _PROBLEM,
        },
    }


def _changes_of(template: Template) -> Json:
    name = f"What was written to {template.name}"
    found = _get(name, {"$ref": "#/components/schemas/Changes"})
    found["tags"] = [template.name]
    found["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    del found["responses"]["202"]
    after = {"type": "string", "pattern": "^([0-9]{1,15}-[0-9]{1,6}|[$])?$"}
    found["parameters"] = [
        {
            "name": "after",
            "in": "query",
            "schema": after,
            "description": "a position; absent for the oldest change that is kept, $ for the end",
        },
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": MAX_CHANGES}},
    ]
    return found


_TICKET: Json = {"$ref": "#/components/schemas/Ticket"}
_PAGE: Json = page_of({"type": "object"})
_CALL: Json = {
    "type": "object",
    "required": ["template", "operation"],
    "properties": {
        "template": {"type": "string"},
        "operation": {"type": "string", "description": "create, create_many, update, delete, or a fetch"},
        "record": {"type": "object"},
        "records": {"type": "array", "items": {"type": "object"}},
        "key": {},
        "args": {"type": "object"},
        "limit": {"type": "integer", "minimum": 1},
        "cursor": {"type": "string"},
        "expected_version": {},
        "idempotency_key": {"type": "string", "minLength": 1, "maxLength": 200},
    },
    "additionalProperties": False,
}
_OUTCOME: Json = {
    "type": "object",
    "required": ["status", "body"],
    "properties": {"status": {"type": "integer"}, "body": {}},
}
_ACCEPTED_TICKET: Json = {"description": "It has not ended", "content": {"application/json": {"schema": _TICKET}}}
_COMMON: dict[str, Json] = {
    "/v1:batch": {
        "post": {
            "summary": "Several calls, each of which succeeds or fails by itself",
            "tags": ["many at once"],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"type": "array", "items": _CALL, "minItems": 1, "maxItems": 100}}
                },
            },
            "responses": {
                "200": {
                    "description": "The outcome of each call",
                    "content": {"application/json": {"schema": {"type": "array", "items": _OUTCOME}}},
                },
                "default": _PROBLEM,
            },
        }
    },
    "/v1/tickets/{ticket}": {
        "get": _get("The state of a ticket", _TICKET, "ticket"),
        "delete": _get("Cancel a ticket", _TICKET, "ticket"),
    },
    "/v1/tickets/{ticket}/result": {"get": _get("The reply to a ticket's event", {}, "ticket")},
    "/v1/tickets/{ticket}/events": {
        "get": _get("Each change of a ticket", {"type": "string"}, "ticket", media="text/event-stream")
    },
    "/v1/jobs": {"get": _get("The jobs that you may start", {"type": "object"})},
    "/v1/jobs/{job}": {
        "get": _get("The report of a job", {"type": "object"}, "job"),
        "delete": _get("Cancel a job", _TICKET, "job"),
        "post": {
            **_get("Start a job, by the name of its rule", {"type": "object"}, "job"),
            "requestBody": {
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {
                                "args": {"type": "object"},
                                "dry_run": {"type": "boolean"},
                                "restore": {"type": "string"},
                                "verify": {"type": "string"},
                            },
                            "additionalProperties": False,
                        }
                    }
                }
            },
        },
    },
    "/v1/jobs/{job}:pause": {"post": _get("Pause a job", {"type": "object"}, "job")},
    "/v1/jobs/{job}:resume": {"post": _get("Resume a job", {"type": "object"}, "job")},
    "/v1/jobs/{job}/rejects": {"get": _get("The records that a job refused", _PAGE, "job")},
    "/v1/jobs/{job}/pages": {"get": _get("The result of an aggregation", _PAGE, "job")},
    "/v1/jobs/{job}/files": {"get": _get("The files that a job wrote", _PAGE, "job")},
    "/v1/lineage/{event}": {"get": _get("All that an event set off", {"type": "object"}, "event")},
}

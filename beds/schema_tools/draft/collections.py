"""A collection's stored commands and its template."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from bson import Binary, Decimal128, Int64, json_util
from bson import ObjectId as BsonId
from pymongo.database import Database

from beds.schema_tools.draft.naming import field_name, is_plain, shortened, stem
from beds.schema_tools.draft.template import MAX_RECORDS, CannotDraft, FetchDraft, FieldDraft, TemplateDraft, one_line

Document = dict[str, Any]
SAMPLE_DOCUMENTS = 500
_INDEX_OPTIONS = ("name", "unique", "sparse", "expireAfterSeconds", "partialFilterExpression")
_LEFT_OUT = frozenset({"v", "ns", "background", "key", *_INDEX_OPTIONS})
_TYPES = {
    "string": "string", "int": "integer", "long": "integer", "double": "number", "decimal": "decimal",
    "number": "number", "bool": "boolean", "date": "datetime", "objectId": "object_id", "object": "object",
    "array": "array", "binData": "bytes", "uuid": "uuid",
}  # fmt: skip
"""Field types by BSON type; `uuid` is binary data of subtype 4."""
_BSON = {
    "string": "string", "integer": "number", "number": "number", "decimal": "decimal", "boolean": "bool",
    "datetime": "date", "object_id": "objectId", "object": "object", "array": "array", "bytes": "binData",
    "uuid": "binData",
}  # fmt: skip
_ORDERED = frozenset({"string", "integer", "number", "decimal", "datetime", "object_id", "uuid", "bytes"})
_LEAST, _MOST = {"$minKey": 1}, {"$maxKey": 1}


@dataclass(frozen=True)
class Collection:
    """A collection as MongoDB describes it.

    Args:
        name: its name.
        options: from listCollections: validator, timeseries, expireAfterSeconds; viewOn and pipeline of a view.
        indexes: as listIndexes gives them.
        types: the BSON types of each field, by the validator and by a sample.
        required: the fields that the validator requires.
        limits: the limits that the validator sets, by field.
        sampled: how many documents were read.
    """

    name: str
    options: Document
    indexes: list[Document]
    types: Mapping[str, set[str]]
    required: frozenset[str] = frozenset()
    limits: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    sampled: int = 0

    @property
    def is_view(self) -> bool:
        return "viewOn" in self.options


def read_collection(database: Database[Document], name: str) -> Collection:
    """Read a collection's options and indexes, and a sample of its documents."""
    (described,) = database.list_collections(filter={"name": name})
    options = dict(described.get("options", {}))
    indexes = [] if "viewOn" in options else [dict(index) for index in database[name].list_indexes()]
    types: dict[str, set[str]] = defaultdict(set)
    schema = (options.get("validator") or {}).get("$jsonSchema") or {}
    limits: dict[str, dict[str, Any]] = {}
    for each, spec in (schema.get("properties") or {}).items():
        if isinstance(spec, Mapping):
            types[each] |= _declared(spec)
            limits[each] = _limits(spec)
    documents = list(database[name].aggregate([{"$sample": {"size": SAMPLE_DOCUMENTS}}]))
    for document in documents:
        for each, value in document.items():
            types[each].add(_bson_type(value))
    # MongoDB orders by type first, so the two ends say whether all keys have one type.
    for end in () if "viewOn" in options else (1, -1):
        for document in database[name].find({}, {"_id": 1}).sort("_id", end).limit(1):
            types["_id"].add(_bson_type(document["_id"]))
    required = frozenset(schema.get("required") or ())
    return Collection(name, options, indexes, types, required, limits, len(documents))


@dataclass(frozen=True)
class CollectionDraft:
    """Args:
    files: the text of each file below `schema/rec/<collection>/`, by name.
    template: the template.
    remarks: what was left out, and why.
    """

    files: dict[str, str]
    template: TemplateDraft
    remarks: tuple[str, ...]


def draft_collection(collection: Collection, name: str, prefix: str, *, jobs: bool) -> CollectionDraft:
    """Draft a collection's stored commands and template.

    Args:
        collection: from `read_collection`.
        name: of the template.
        prefix: of the commands' names.
        jobs: whether to draft what only jobs call, too.

    Raises:
        CannotDraft: BEDS cannot name it, or has no type for its `_id`.
    """
    return _CollectionDrafter(collection, prefix).draft(name, jobs=jobs)


class _CollectionDrafter:
    def __init__(self, collection: Collection, prefix: str) -> None:
        self.collection = collection
        self.base = f"{prefix}{stem(collection.name)}"
        self.remarks: list[str] = []
        self.files: dict[str, str] = {}
        self.fields: dict[str, FieldDraft] = {}
        for each, found in collection.types.items():
            if each == "_id":
                continue
            kinds = found - {"null"}
            kind = _one_type(kinds)
            if not is_plain(each):
                self.remarks.append(
                    f"field {each} has no place in the template: letters, digits and _, beginning with a letter"
                )
            elif not kind:
                self.remarks.append(
                    f"field {each} has no place in the template: it is {', '.join(sorted(kinds)) or 'null'}"
                )
            else:
                keys = _fitting(collection.limits.get(each, {}), kind)
                keys |= {"precision": "millisecond"} if kind == "datetime" else {}
                keys |= {"required": True} if each in collection.required and "null" not in found else {}
                self.fields[each] = FieldDraft(kind, keys)
        self.key = next(
            name for name in ("id", f"{field_name(collection.name)}_id", "document_id") if name not in self.fields
        )
        kind = _one_type(collection.types.get("_id", ()))
        if not kind and not collection.sampled and "_id" not in collection.types:
            kind = "object_id"
        if kind not in _ORDERED:
            found_types = ", ".join(sorted(collection.types.get("_id", ())))
            raise CannotDraft(f"its _id is {found_types}; a template's key has one simple type")
        self.key_field = FieldDraft(
            kind,
            {"generate": "object_id"}
            if kind == "object_id"
            else {"generate": "uuid7"}
            if kind == "uuid"
            else {"required": True},
            ["_id"],
        )

    def draft(self, name: str, *, jobs: bool) -> CollectionDraft:
        if not is_plain(self.collection.name):
            raise CannotDraft(
                "a stored command's folder cannot have its name: letters, digits and _, beginning with a letter"
            )
        if self.collection.is_view:
            return self._view(name)
        self._collection_file()
        target, key = self.collection.name, {"_id": {"$param": self.key}}
        key_param = {self.key: {"bsonType": _BSON[self.key_field.type]}}
        writes = {
            "create": self._command("create", "insert", "Add a document.", {"document": {"bsonType": "object"}},
                                    {"insert": target, "documents": [{"$param": "document"}]}),
            "create_many": self._command("create_many", "insert_many", "Add many documents.",
                                         {"documents": {"bsonType": "array"}},
                                         {"insert": target, "documents": {"$param": "documents"}, "ordered": True}),
            "update": self._command("update", "update", "Change the given fields.",
                                    key_param | {"changes": {"bsonType": "object"}},
                                    {"update": target, "updates": [{"q": key, "u": {"$set": {"$param": "changes"}}}]}),
            "delete": self._command("delete", "delete", "Remove a document.", key_param,
                                    {"delete": target, "deletes": [{"q": key, "limit": 1}]}),
        }  # fmt: skip
        fetches = {
            f"by_{self.key}": FetchDraft(
                self._command(f"by_{self.key}", "find", "One document.", key_param, {"find": target, "filter": key})
            ),
            "all": self._paged("all", {}, {}, "All documents, by their _id."),
        }
        for index in self.collection.indexes:
            self._of_index(index, fetches)
        if fixed := [each for each in ("timeseries", "capped") if each in self.collection.options]:
            self.remarks.append(f"no writes: MongoDB takes none in a transaction for a {fixed[0]} collection")
            self.files = {file: text for file, text in self.files.items() if file[:-5] not in writes.values()}
            writes, jobs = {}, False
        count = self._command("count", "aggregate", "How many documents there are.", {},
                              {"aggregate": target, "pipeline": [{"$count": "records"}]})  # fmt: skip
        fetches["count"] = FetchDraft(count)
        by_keys = estimate = ""
        if jobs:
            chosen = {"_id": {"$in": {"$param": "keys"}}}
            keys = {"keys": {"bsonType": "array"}}
            fetches["range"] = self._range()
            by_keys = self._command("by_keys", "find", "Some documents.", keys, {"find": target, "filter": chosen})
            writes["load"] = writes["create_many"]
            writes["remove_many"] = self._command(
                "remove_many", "delete", "Remove some documents.", keys,
                {"delete": target, "deletes": [{"q": chosen, "limit": 0}]},
            )  # fmt: skip
            estimate = count
        return self._done(name, writes, fetches, by_keys, estimate)

    def _view(self, name: str) -> CollectionDraft:
        view = self.collection.name
        source = {"name": view, "kind": "view", "description": "", "view_on": self.collection.options["viewOn"],
                  "pipeline": self.collection.options.get("pipeline", [])}  # fmt: skip
        self.files[f"{view}.json"] = _json(source)
        return self._done(name, {}, {"all": FetchDraft(view, max_limit=MAX_RECORDS)})

    def _done(
        self,
        name: str,
        writes: Mapping[str, str],
        fetches: Mapping[str, FetchDraft],
        by_keys: str = "",
        estimate: str = "",
    ) -> CollectionDraft:
        kind = "view" if self.collection.is_view else "collection"
        remarks = (
            []
            if self.collection.is_view
            else [f"Types come from the validator and {self.collection.sampled} documents."]
        )
        template = TemplateDraft(
            name,
            "rec",
            [self.key],
            f"{kind} {one_line(self.collection.name)}",
            writes=writes,
            fetches=fetches,
            by_keys=by_keys,
            estimate=estimate,
            fields={self.key: self.key_field, **self.fields},
            remarks=remarks,
        )
        if problem := template.problem():
            raise CannotDraft(problem)
        return CollectionDraft(self.files, template, tuple(self.remarks))

    def _collection_file(self) -> None:
        """The collection as it is, so that `apply` changes nothing of it."""
        found: Document = {"description": f"Drafted by `beds schema draft` from {self.collection.name}."}
        for key in ("validator", "timeseries", "expireAfterSeconds"):
            if key in self.collection.options:
                found[key] = self.collection.options[key]
        indexes = []
        for index in self.collection.indexes:
            if set(index["key"]) == {"_id"}:
                continue
            if surplus := sorted(set(index) - _LEFT_OUT):
                self.remarks.append(
                    f"index {index['name']} stays as it is, and is in no file: it has {', '.join(surplus)}"
                )
                continue
            indexes.append({"key": dict(index["key"]), **{key: index[key] for key in _INDEX_OPTIONS if key in index}})
        if indexes:
            found["indexes"] = indexes
        self.files["collection.json"] = _json(found)

    def _of_index(self, index: Document, fetches: dict[str, FetchDraft]) -> None:
        """Add the fetch that an index serves: by all its fields if it is unique, else by the first."""
        parts = list(index["key"])
        if parts == ["_id"] or any(part not in self.fields for part in parts):
            return
        if any(direction not in (1, -1, 1.0, -1.0) for direction in index["key"].values()):
            self.remarks.append(
                f"no fetch for index {index['name']}, which is {', '.join(map(str, index['key'].values()))}"
            )
            return
        if index.get("unique") and not index.get("partialFilterExpression"):
            name = f"by_{'_'.join(parts)}"
            if name not in fetches:
                one: Document = {part: {"bsonType": _BSON[self.fields[part].type]} for part in parts}
                matched: Document = {part: {"$param": part} for part in parts}
                fetches[name] = FetchDraft(
                    self._command(name, "find", "One document.", one, {"find": self.collection.name, "filter": matched})
                )
            return
        first = parts[0]
        name = f"by_{first}"
        if name in fetches:
            return
        if first in ("limit", f"after_{self.key}"):
            self.remarks.append(f"no fetch for index {index['name']}: a parameter of pages is named {first}")
            return
        params: Document
        if self.fields[first].type == "datetime":
            since, before = f"from_{first}", f"before_{first}"
            params = {since: {"bsonType": "date", "default": _LEAST}, before: {"bsonType": "date", "default": _MOST}}
            times = {first: {"$gte": {"$param": since}, "$lt": {"$param": before}}}
            paged = self._paged(name, params, times, f"Documents from one {first} on, and before another.")
            argument = FieldDraft("datetime", {"precision": "millisecond"})
            fetches[name] = FetchDraft(paged.object, paged.cursor, {since: argument, before: argument}, (since, before))
        else:
            params = {first: {"bsonType": _BSON[self.fields[first].type]}}
            fetches[name] = self._paged(name, params, {first: {"$param": first}}, f"The documents of one {first}.")

    def _paged(self, name: str, params: Document, matched: Document, says: str) -> FetchDraft:
        key = _BSON[self.key_field.type]
        found = self._command(
            name, "find", says,
            {**params, f"after_{self.key}": {"bsonType": key, "default": _LEAST}, "limit": {"bsonType": "int"}},
            {"find": self.collection.name, "filter": {**matched, "_id": {"$gt": {"$param": f"after_{self.key}"}}},
             "sort": {"_id": 1}, "limit": {"$param": "limit"}},
        )  # fmt: skip
        return FetchDraft(found, [self.key])

    def _range(self) -> FetchDraft:
        key = _BSON[self.key_field.type]
        after, until = f"after_{self.key}", f"until_{self.key}"
        found = self._command(
            "range", "find", "Documents by their _id.",
            {after: {"bsonType": key, "default": _LEAST}, until: {"bsonType": key, "default": _MOST},
             "limit": {"bsonType": "int"}},
            {"find": self.collection.name, "filter": {"_id": {"$gt": {"$param": after}, "$lte": {"$param": until}}},
             "sort": {"_id": 1}, "limit": {"$param": "limit"}},
        )  # fmt: skip
        return FetchDraft(found, [self.key], max_limit=MAX_RECORDS, range=True)

    def _command(self, operation: str, kind: str, says: str, params: Document, command: Document) -> str:
        name = shortened(f"{self.base}_{operation}", 64)
        self.files[f"{name}.json"] = _json(
            {"name": name, "kind": kind, "description": says, "params": params, "command": command}
        )
        return name


def _json(value: Any) -> str:
    return json_util.dumps(value, indent=2, ensure_ascii=False, json_options=json_util.RELAXED_JSON_OPTIONS) + "\n"


def _one_type(kinds: Iterable[str]) -> str:
    """The field type of values of some BSON types; empty if there is none."""
    found = {_TYPES.get(kind, "") for kind in kinds}
    if found == {"integer", "number"}:
        return "number"
    return found.pop() if len(found) == 1 else ""


def _declared(spec: Mapping[str, Any]) -> set[str]:
    """The BSON types that a validator allows for a field; empty if it does not say."""
    declared = spec.get("bsonType")
    return {declared} if isinstance(declared, str) else set(declared or ())


def _limits(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A validator's limits as keys of a template's field."""
    found: dict[str, Any] = {}
    for theirs, ours in (
        ("minimum", "min"),
        ("maximum", "max"),
        ("maxLength", "max_length"),
        ("maxItems", "max_length"),
    ):
        if isinstance(limit := spec.get(theirs), (int, float)) and not isinstance(limit, bool):
            found[ours] = limit
    values = spec.get("enum")
    if isinstance(values, Sequence) and values and all(isinstance(value, str) for value in values):
        found["values"] = list(values)
    if isinstance(spec.get("description"), str):
        found["description"] = one_line(spec["description"])
    return found


def _fitting(limits: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The limits that a field of this type can have."""
    numeric = kind in ("integer", "number", "decimal")
    kinds = {
        "min": numeric,
        "max": numeric,
        "max_length": kind in ("string", "array") and limits.get("max_length", 0) >= 1,
    }
    return {name: limit for name, limit in limits.items() if kinds.get(name, True)}


def _bson_type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case Int64():
            return "long"
        case int():
            return "int"
        case float():
            return "double"
        case str():
            return "string"
        case datetime():
            return "date"
        case Decimal128():
            return "decimal"
        case BsonId():
            return "objectId"
        case UUID():
            return "uuid"
        case Binary():
            return "uuid" if value.subtype == 4 else "binData"
        case bytes():
            return "binData"
        case Mapping():
            return "object"
        case list():
            return "array"
    return type(value).__name__

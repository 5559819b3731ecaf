"""MongoDB: collections with validators and indexes, views, stored commands, and the broker's role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bson import json_util
from bson.errors import BSONError
from pymongo.database import Database

from beds.adapters.mongo import stored_commands
from beds.adapters.mongo.errors import translated
from beds.adapters.mongo.health import rights_on
from beds.adapters.mongo.session import OBJECTS, SHAPES, connect
from beds.config.sections import RecDatabase
from beds.errors import SchemaError
from beds.schema_tools.change import HISTORY, Action, Change, checksum
from beds.schema_tools.rel import DDL_SECONDS

BROKER_ROLE = "beds_broker"
_COLLECTION_KEYS = frozenset({"description", "validator", "indexes", "timeseries", "expireAfterSeconds"})
_INDEX_KEYS = frozenset({"key", "name", "unique", "sparse", "expireAfterSeconds", "partialFilterExpression"})
_OPTIONS = json_util.JSONOptions(json_mode=json_util.JSONMode.RELAXED, tz_aware=True, uuid_representation=4)

Document = dict[str, Any]


class RecSchema:
    """The MongoDB side of `schema/`.

    Args:
        folders: `schema/rec`, and that of BEDS's own schema.
        dba: the DBA's credentials.
    """

    def __init__(self, folders: Sequence[Path], dba: RecDatabase) -> None:
        self._collections: dict[str, Document] = {}
        self._objects: dict[str, Document] = {}
        self._texts: dict[str, str] = {}
        for file in [file for folder in folders for file in sorted(folder.glob("*/*.json"))]:
            self._read(file)
        self._database: Database[Document] = connect(dba, DDL_SECONDS)[dba.database]

    def close(self) -> None:
        self._database.client.close()

    def changes(self) -> list[Change]:
        """The changes that `beds schema apply` would make, in their order. Raises SchemaError: a file is wrong."""
        with translated():
            existing = set(self._database.list_collection_names())
            applied = {row["_id"]: row["checksum"] for row in self._database[HISTORY].find()}
            shapes = {row["_id"] for row in self._database[OBJECTS].find({"shape": {"$exists": True}}, {"_id": 1})}
            found = [
                self._change("create", name, self._make_internal) for name in (OBJECTS, HISTORY) if name not in existing
            ]
        for name, wanted in self._collections.items():
            key = f"{name}/collection.json"
            is_new = name not in existing or applied.get(key) != checksum(self._texts[key])
            if is_new or SHAPES + name not in shapes:
                action: Action = "change" if name in existing else "create"
                found.append(self._noted(action, key, lambda n=name, w=wanted: self._apply_collection(n, w)))  # type: ignore[misc]
        for name, source in self._objects.items():
            key = source["file"]
            if applied.get(key) != checksum(self._texts[key]):
                action = "change" if key in applied else "create"
                found.append(self._noted(action, key, lambda n=name: self._apply_object(n)))  # type: ignore[misc]
        for key in sorted(applied.keys() - self._texts.keys()):
            if not key.endswith("/collection.json"):  # a command without its file is removed, a collection never is
                found.append(self._change("remove", key, self._remove_object))
        if found:
            found.append(self._change("grant", f"collections and views to role {BROKER_ROLE}", self._grant))
        return found

    def _read(self, file: Path) -> None:
        key = f"{file.parent.name}/{file.name}"
        try:
            text = self._texts[key] = file.read_text(encoding="utf-8-sig")
            source = json_util.loads(text, json_options=_OPTIONS)
        except (OSError, ValueError, TypeError, BSONError, RecursionError) as error:
            raise SchemaError(f"schema/rec/{key}: {error}", detail={"file": key}, hint="mend the JSON") from None
        if not isinstance(source, Mapping):
            raise SchemaError(f"schema/rec/{key}: a JSON object is wanted", detail={"file": key})
        if file.name == "collection.json":
            _check_collection(key, source)
            self._collections[file.parent.name] = dict(source)
            return
        name = str(source.get("name", ""))
        if name != file.stem:
            raise SchemaError(f"schema/rec/{key}: name is {name!r}, the file's is {file.stem!r}", detail={"file": key})
        if name in self._objects:
            raise SchemaError(f"schema/rec/{key}: another object is named {name}", detail={"file": key})
        if source.get("kind") == "view":
            source = {"params": {"limit": {"bsonType": "int"}}, "command": _find_in(name), **source}
        try:
            stored_commands.parse(source)
        except SchemaError as error:
            error.message = f"schema/rec/{key}: {error.message}"
            raise
        except (TypeError, AttributeError, ValueError, RecursionError):
            raise _malformed(key, "a part of it has the wrong type") from None
        self._objects[name] = {**source, "file": key}

    def _change(self, action: Action, key: str, apply: Callable[[str], None]) -> Change:
        return Change("rec", action, key, lambda: _guarded(lambda: apply(key)))

    def _noted(self, action: Action, key: str, apply: Callable[[], None]) -> Change:
        def apply_and_note(_key: str) -> None:
            apply()
            row = {"checksum": checksum(self._texts[key]), "applied_at": datetime.now(UTC)}
            self._database[HISTORY].update_one({"_id": key}, {"$set": row}, upsert=True)

        return self._change(action, key, apply_and_note)

    def _make_internal(self, name: str) -> None:
        self._database.create_collection(name)

    def _apply_collection(self, name: str, wanted: Mapping[str, Any]) -> None:
        options = {key: wanted[key] for key in ("validator", "expireAfterSeconds") if key in wanted}
        shape = (wanted.get("validator") or {}).get("$jsonSchema") or {}
        # Workers need the number types of a collection's validator, but may not read the validator itself.
        self._database[OBJECTS].replace_one({"_id": SHAPES + name}, {"shape": _types_in(shape)}, upsert=True)
        if name not in self._database.list_collection_names():
            if "timeseries" in wanted:  # cannot be changed after the collection is created
                options["timeseries"] = wanted["timeseries"]
            self._database.create_collection(name, **options)
        elif options:
            self._database.command("collMod", name, **options)
        collection = self._database[name]
        present = collection.index_information()
        for index in wanted.get("indexes", []):
            options = {k: v for k, v in index.items() if k != "key"}
            keys = list(index["key"].items())
            index_name = options.setdefault("name", "_".join(f"{k}_{v}" for k, v in keys))
            if (old := present.get(index_name)) and not _is_same_index(old, keys, options):
                collection.drop_index(index_name)
            collection.create_index(keys, **options)

    def _apply_object(self, name: str) -> None:
        source = {k: v for k, v in self._objects[name].items() if k != "name"}
        if source["kind"] == "view":
            self._apply_view(name, source.pop("view_on"), source.pop("pipeline"))
        self._database[OBJECTS].replace_one({"_id": name}, source, upsert=True)

    def _apply_view(self, name: str, view_on: str, pipeline: list[Document]) -> None:
        if name in self._database.list_collection_names():
            self._database.command("collMod", name, viewOn=view_on, pipeline=pipeline)
        else:
            self._database.command("create", name, viewOn=view_on, pipeline=pipeline)

    def _remove_object(self, key: str) -> None:
        self._database[OBJECTS].delete_many({"file": key})
        self._database[HISTORY].delete_one({"_id": key})

    def privileges(self) -> list[Document]:
        """The privileges of the brokers' role, in the form of MongoDB's createRole."""

        def on(collection: str, *actions: str) -> Document:
            return {"resource": {"db": self._database.name, "collection": collection}, "actions": list(actions)}

        views = [name for name, source in self._objects.items() if source["kind"] == "view"]
        return [
            on(OBJECTS, "find"),
            *(on(name, *rights_on(name)) for name in self._collections),
            *(on(name, "find") for name in views),
        ]

    def _grant(self, _key: str) -> None:
        privileges = self.privileges()
        # updateRole needs rights on every database of the server; granting and revoking need them on this one only.
        (role,) = self._database.command("rolesInfo", BROKER_ROLE, showPrivileges=True)["roles"] or [None]
        if role is None:
            self._database.command("createRole", BROKER_ROLE, privileges=privileges, roles=[])
            return
        self._database.command("grantPrivilegesToRole", BROKER_ROLE, privileges=privileges)
        if surplus := _surplus(role["privileges"], privileges):
            self._database.command("revokePrivilegesFromRole", BROKER_ROLE, privileges=surplus)


def _surplus(granted: list[Document], wanted: list[Document]) -> list[Document]:
    """The granted actions that are not wanted, resource by resource."""
    keep = {tuple(w["resource"].values()): set(w["actions"]) for w in wanted}
    found = [
        {
            "resource": g["resource"],
            "actions": sorted(set(g["actions"]) - keep.get(tuple(g["resource"].values()), set())),
        }
        for g in granted
    ]
    return [privilege for privilege in found if privilege["actions"]]


def _types_in(schema: Any) -> Document:
    """The BSON types of a `$jsonSchema`, without its other rules."""
    if not isinstance(schema, Mapping):
        return {}
    found: Document = {"bsonType": schema["bsonType"]} if "bsonType" in schema else {}
    if isinstance(properties := schema.get("properties"), Mapping):
        found["properties"] = {name: _types_in(inner) for name, inner in properties.items()}
    if isinstance(items := schema.get("items"), Mapping):
        found["items"] = _types_in(items)
    return found


def _is_same_index(old: Mapping[str, Any], keys: list[Any], options: Mapping[str, Any]) -> bool:
    """True if an index equals that of the file. MongoDB leaves out options that are false."""
    named = _INDEX_KEYS - {"key", "name"}
    wanted = {name: options[name] for name in named if options.get(name) not in (None, False)}
    return list(old["key"]) == keys and {n: old[n] for n in named if old.get(n) not in (None, False)} == wanted


def _find_in(view: str) -> Document:
    return {"find": view, "limit": {"$param": "limit"}}


def _guarded(action: Callable[[], None]) -> None:
    with translated():
        action()


def _check_collection(key: str, source: Mapping[str, Any]) -> None:
    _refuse_unknown(key, source, _COLLECTION_KEYS)
    if not isinstance(source.get("validator", {}), Mapping):
        raise _malformed(key, "validator takes an object")
    indexes = source.get("indexes", [])
    if not isinstance(indexes, list):
        raise _malformed(key, "indexes takes a list")
    for index in indexes:
        if not isinstance(index, Mapping) or not isinstance(index.get("key"), Mapping) or not index["key"]:
            raise _malformed(key, "an index takes an object with a key, which is an object of at least one field")
        if not isinstance(index.get("name", ""), str):
            raise _malformed(key, "the name of an index is text")
        _refuse_unknown(key, index, _INDEX_KEYS)


def _malformed(key: str, problem: str) -> SchemaError:
    return SchemaError(
        f"schema/rec/{key}: {problem}",
        detail={"file": key},
        hint="compare with schema/rec/ of a project that `beds init` makes",
    )


def _refuse_unknown(key: str, source: Mapping[str, Any], known: frozenset[str]) -> None:
    for name in source:
        if name not in known:
            raise SchemaError(
                f"schema/rec/{key}: unknown key {name!r}; known: {', '.join(sorted(known))}", detail={"file": key}
            )

"""Translates pymongo's errors to errors of BEDS; the only place that does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bson.errors import BSONError
from pymongo import errors as mongo

from beds.adapters.store import harmless
from beds.errors import (
    BedsError,
    BodyTooLarge,
    DuplicateKey,
    InvalidPayload,
    MissingField,
    SchemaMismatch,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    TimeLimitExceeded,
    UnknownField,
    WrongType,
)

# Server codes: https://github.com/mongodb/mongo, src/mongo/base/error_codes.yml
_BY_CODE: Mapping[int, Callable[[str, Mapping[str, Any]], BedsError]] = {
    # MongoDB's message may contain a value, so it is not forwarded. The DBA finds it in MongoDB's log.
    2: lambda m, d: SchemaMismatch("MongoDB refuses the stored command (BadValue)"),
    9: lambda m, d: SchemaMismatch("MongoDB refuses the stored command (FailedToParse)"),
    13: lambda m, d: StoreDenied("the broker's MongoDB user may not do this"),
    14: lambda m, d: InvalidPayload("a value has a type that the operation cannot take"),
    18: lambda m, d: StoreDenied(
        "MongoDB refuses the user or password", hint="check [databases.rec] uri, or [schema.dba.rec] for `beds schema`"
    ),
    20: lambda m, d: harmless(StoreUnavailable("MongoDB is no replica set", hint="start mongod with --replSet")),
    26: lambda m, d: SchemaMismatch(f"the collection does not exist: {m}"),
    50: lambda m, d: TimeLimitExceeded("the operation ran longer than MongoDB was told to allow"),
    52: lambda m, d: InvalidPayload("MongoDB refuses the name of a key", hint="rename it"),
    59: lambda m, d: SchemaMismatch(f"MongoDB does not know the command: {m}"),
    112: lambda m, d: harmless(StoreUnavailable("another operation writes the same document")),
    121: lambda m, d: _validation(d),
    10334: lambda m, d: BodyTooLarge("the document is larger than MongoDB allows (16 MiB)"),
    11000: lambda m, d: _duplicate(d),
    14031: lambda m, d: harmless(StoreUnavailable("MongoDB has no disk space left")),
}
_IN_DOUBT = ("UnknownTransactionCommitResult", "RetryableWriteError")
# Not primary, shutting down, stepping down: the command was not run.
_NOT_RUN = frozenset({91, 189, 10058, 10107, 11600, 11602, 13435, 13436})
# Another member cannot be reached in time; or this one has just started, and has no keys (211) or majority (134) yet.
# A driver repeats such commands, so it may have run one of them before.
_PASSING = frozenset({6, 7, 89, 134, 202, 211, 262, 9001})


@contextmanager
def translated() -> Iterator[None]:
    """Translate each driver error raised inside to an error of BEDS."""
    try:
        yield
    except (mongo.PyMongoError, BSONError, OverflowError) as error:
        raise translate(error) from None


def translate(error: Exception) -> BedsError:
    """The error of BEDS for a driver's error. It keeps the driver's message only where that holds no data."""
    if isinstance(error, (mongo.ServerSelectionTimeoutError, mongo.WaitQueueTimeoutError)):
        return harmless(StoreUnavailable("no MongoDB server can be reached"))
    if isinstance(error, mongo.PyMongoError) and error.has_error_label("TransientTransactionError"):
        # The transaction was rolled back, whatever the code. A commit in doubt has another label (_IN_DOUBT).
        found = harmless(StoreUnavailable("MongoDB gave a transaction up; it may be tried again"))
        found.detail["store_code"] = getattr(error, "code", None) or 0
        return found
    if isinstance(error, mongo.WriteConcernError) or (
        isinstance(error, mongo.PyMongoError) and any(map(error.has_error_label, _IN_DOUBT))
    ):
        # With an unmet write concern the primary has the write, but may still lose it.
        return StoreUnavailable(
            "MongoDB did not say whether it wrote", detail={"store_code": getattr(error, "code", None) or 0}
        )
    if isinstance(error, mongo.OperationFailure):
        return from_server(
            error.code or 0, str(error.details.get("errmsg", "")) if error.details else "", error.details
        )
    if isinstance(error, (mongo.DocumentTooLarge,)):
        return BodyTooLarge("the document is larger than MongoDB allows (16 MiB)")
    if isinstance(error, mongo.ConnectionFailure):
        return StoreUnavailable("the connection to MongoDB broke")
    if isinstance(error, mongo.ConfigurationError):
        return StoreUnavailable(f"MongoDB: {error}", hint="check [databases.rec] uri")
    if isinstance(error, (BSONError, OverflowError)):
        return InvalidPayload(f"MongoDB cannot keep a value ({type(error).__name__})")
    return StoreError(f"MongoDB: {type(error).__name__}")


def from_server(code: int, message: str, details: Mapping[str, Any] | None) -> BedsError:
    """The error for a code of the server; also for a `writeErrors` entry, which the driver does not raise."""
    if code in _NOT_RUN:
        return harmless(StoreUnavailable("MongoDB is changing its primary"))
    if code in _PASSING:
        return StoreUnavailable("MongoDB is starting, or misses a member", detail={"store_code": code})
    make = _BY_CODE.get(code)
    found = (
        make(message, details or {})
        if make
        else StoreError(f"MongoDB error {code} ({(details or {}).get('codeName', 'unknown')})")
    )
    found.detail.setdefault("store_code", code)
    return found


def _duplicate(details: Mapping[str, Any]) -> DuplicateKey:
    fields = list(details.get("keyPattern") or re.findall(r"dup key: \{ ([\w.-]+):", str(details.get("errmsg", ""))))
    names = "" if fields == ["_id"] else ", ".join(fields)
    return DuplicateKey(f"a record with this {names or 'key'} exists", detail={"field": names})


def _validation(details: Mapping[str, Any]) -> InvalidPayload:
    """The first broken rule of a collection's validator, from `errInfo.details.schemaRulesNotSatisfied`."""
    rules = (details.get("errInfo") or {}).get("details", {}).get("schemaRulesNotSatisfied", [])
    for rule in rules:
        match rule:
            case {"operatorName": "required", "missingProperties": [name, *_]}:
                return MissingField(f"the collection requires the field {name}", detail={"field": name})
            case {"operatorName": "additionalProperties", "additionalProperties": [name, *_]}:
                return UnknownField(f"the collection does not know the field {name}", detail={"field": name})
            case {
                "propertiesNotSatisfied": [
                    {"propertyName": name, "details": [{"operatorName": broken, **_rest}, *_]},
                    *_,
                ]
            }:
                cls = WrongType if broken == "bsonType" else InvalidPayload
                return cls(
                    f"field {name} breaks the collection's rule {broken}", detail={"field": name, "rule": broken}
                )
    return InvalidPayload("the document breaks the collection's validator", detail={"field": ""})

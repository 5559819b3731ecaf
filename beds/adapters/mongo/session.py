"""One process's connection to MongoDB, over which it runs stored commands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import InvalidBSON
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from beds.adapters.mongo import health, stored_commands
from beds.adapters.mongo.errors import from_server, translated
from beds.adapters.mongo.values import document_from_bson, document_to_bson, documents_to_bson, field_to_bson
from beds.adapters.store import (
    AlreadyDone,
    DefinitionChanged,
    Health,
    IdempotencyRecord,
    Outcome,
    Position,
    ResultLimit,
    Verify,
    Work,
    harmless,
)
from beds.config.sections import RecDatabase
from beds.domain.event import Operation
from beds.errors import StoreError, StoreUnavailable
from beds.templates.binding import BULK_NAMES, KEYS, Binding, field_behind, spec_of
from beds.templates.named_object import NamedObject, ObjectKind, Param

OBJECTS = "beds_objects"
"""The collection of stored commands, which brokers may only read."""

LEDGER = "msLedger"
"""The collection of idempotency records."""
DUPLICATE = 11000
"""MongoDB's code for a key that exists."""

Document = dict[str, Any]
# Raw commands do not use the client's codec options. DATETIME_AUTO decodes a date beyond year 9999 to its own type, so
# that the error names its column; otherwise the whole reply would fail to decode.
_CODEC: CodecOptions[Document] = CodecOptions(
    tz_aware=True,
    tzinfo=UTC,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
_READS = (ObjectKind.FIND, ObjectKind.AGGREGATE, ObjectKind.VIEW)
LOOK_SECONDS = 1.0
"""A secondary has this time to report its position."""
SHAPES = "shape of "
"""Prefix of a collection's name in the `_id` of a document in `beds_objects`: the BSON types of its validator."""


Address = tuple[str, int | None]


class Pin:
    """While an address is set, a client uses only the server there. The driver calls it to select among servers."""

    def __init__(self) -> None:
        self.address: Address | None = None

    def __call__(self, servers: Sequence[Any]) -> list[Any]:
        """Raises StoreUnavailable: the server is none of them. The driver would wait for it."""
        if self.address is None:
            return list(servers)
        if found := [server for server in servers if server.address == self.address]:
            return found
        raise harmless(StoreUnavailable("MongoDB's secondary does not answer"))


def connect(config: RecDatabase, timeout: float, pin: Pin | None = None) -> MongoClient[Document]:
    """A client for one process: PyMongo is not fork-safe, so it is opened in the child that uses it.

    Args:
        config: where to connect.
        timeout: of the socket, in seconds.
        pin: selects among servers.
    """
    tls: dict[str, Any] = {"tls": True, **config.tls.named("tlsCAFile", "tlsCertificateKeyFile")} if config.tls else {}
    with translated():
        return MongoClient(
            config.uri.get_secret_value(),
            tz_aware=True,
            uuidRepresentation="standard",
            serverSelectionTimeoutMS=int(config.connect_timeout * 1000),
            connectTimeoutMS=int(config.connect_timeout * 1000),
            socketTimeoutMS=int(timeout * 1000),
            maxPoolSize=1,
            server_selector=pin,
            appname="beds",
            **tls,
        )


class MongoSession:
    """An `ObjectStore` over MongoDB. `timeout` is in seconds."""

    def __init__(self, config: RecDatabase, timeout: float) -> None:
        self._pin = Pin()
        self._client = connect(config, timeout, self._pin)
        # Whatever the URI says: a secondary may lack what was just written, and one member alone may lose it.
        self._concern = _majority_at_least(self._client.write_concern)
        self._database: Database[Document] = self._client.get_database(
            config.database, read_preference=ReadPreference.PRIMARY, write_concern=self._concern
        )
        self._session: ClientSession | None = None

    def describe(self, names: Iterable[str]) -> dict[str, NamedObject]:
        with translated():
            objects = self._database[OBJECTS]
            found = {
                str(source["_id"]): stored_commands.parse({**source, "name": source["_id"]})
                for source in objects.find({"_id": {"$in": list(names)}})
            }
            wanted = {SHAPES + _collection(target) for target in found.values()}
            shapes = {str(shape["_id"]): shape["shape"] for shape in objects.find({"_id": {"$in": sorted(wanted)}})}
        return {
            name: replace(target, shape=shapes.get(SHAPES + _collection(target), {})) for name, target in found.items()
        }

    def has_changed(self, target: NamedObject) -> bool:
        return False  # parameters go by name, so an outdated signature cannot swap them

    def execute(
        self,
        binding: Binding,
        values: Mapping[str, Any],
        once: IdempotencyRecord | None = None,
        verify: Verify | None = None,
    ) -> Outcome:
        command = stored_commands.fill(binding.target, self._to_bson(binding, values))
        with translated():
            if binding.target.kind in _READS:
                return Outcome(self._rows(binding, command))
            many = binding.target.kind is ObjectKind.INSERT_MANY and command.get("ordered") is not False
            if once is None and not many and verify is None:
                return outcome_of(binding, self._run(command))
            # An ordered bulk insert is all or nothing. Without a transaction, those before a bad one would stay.
            with self._transaction() as session:
                outcome = outcome_of(binding, self._run(command, session))
                if once is not None:
                    self._insert_noted(once.guid, once.ttl, once.answer(outcome), session)
                elif verify is not None:
                    verify(outcome)
                return outcome

    def transact(self, work: Work, once: IdempotencyRecord) -> None:
        with translated(), self._transaction() as session:

            def call(binding: Binding, values: Mapping[str, Any]) -> Outcome:
                command = stored_commands.fill(binding.target, self._to_bson(binding, values))
                if binding.operation.is_read:
                    return Outcome(self._rows(binding, command, session))
                return outcome_of(binding, self._run(command, session))

            self._insert_noted(once.guid, once.ttl, once.answer(work(call)), session)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[ClientSession]:
        """A transaction. Its session is kept for the next one, until an error leaves it in an unknown state."""
        if self._session is None:
            self._session = self._client.start_session(causal_consistency=False)
        session = self._session
        try:
            with session.start_transaction(write_concern=self._concern, read_preference=ReadPreference.PRIMARY):
                yield session
        except BaseException:
            self._session = None
            session.end_session()
            raise

    def _rows(
        self,
        binding: Binding,
        command: Document,
        session: ClientSession | None = None,
        server: Any = ReadPreference.PRIMARY,
    ) -> list[Document]:
        if binding.target.kind is ObjectKind.AGGREGATE:
            command.setdefault("cursor", {})
        keys, fields = binding.template.keys, {**binding.template.fields, **binding.fetch.args}
        limit = ResultLimit(binding)
        found: list[Document] = []
        try:
            with self._database.cursor_command(
                command, read_preference=server, codec_options=_CODEC, session=session
            ) as cursor:
                for row in cursor:
                    limit.take(row)
                    found.append(document_from_bson(row, keys, fields))
        except InvalidBSON as error:
            raise StoreError(
                "a document of the result holds what is no BSON, such as text that is not UTF-8",
                detail={"object": binding.target.name},
                hint="find it with mongosh, and mend the stored value",
            ) from error
        return found

    def _run(self, command: Document, session: ClientSession | None = None) -> Document:
        return self._database.command(command, codec_options=_CODEC, session=session)

    def recall(self, guid: str) -> str | None:
        with translated():
            found = self._database[LEDGER].find_one({"_id": guid})
        return str(found["answer"]) if found else None

    def note(self, guid: str, ttl: int, answer: str) -> None:
        with translated():
            self._insert_noted(guid, ttl, answer)

    def _insert_noted(self, guid: str, ttl: int, answer: str, session: ClientSession | None = None) -> None:
        """Insert an idempotency record. Raises AlreadyDone."""
        entry = {"_id": guid, "answer": answer, "expires_at": datetime.now(UTC) + timedelta(seconds=ttl)}
        try:
            self._database[LEDGER].insert_one(entry, session=session)
        except DuplicateKeyError:
            raise AlreadyDone from None

    def position(self) -> Position:
        with translated():
            return position_in(self._database.command("ping", read_preference=ReadPreference.PRIMARY))

    def secondaries(self) -> list[Address]:
        """The secondaries that answer, as the driver sees them."""
        seen = self._client.topology_description.server_descriptions()
        return [address for address, each in seen.items() if each.server_type_name == "RSSecondary"]

    def position_of(self, secondary: Address) -> Position:
        """The position of a secondary. Raises StoreUnavailable."""
        with self._pinned(secondary), translated(), pymongo.timeout(LOOK_SECONDS):
            return position_in(self._database.command("ping", read_preference=ReadPreference.SECONDARY))

    def fetch_from(self, secondary: Address, binding: Binding, values: Mapping[str, Any]) -> Outcome:
        """Call an object that only reads, on a secondary. Raises StoreUnavailable: that is lost."""
        if binding.target.kind not in _READS:
            raise DefinitionChanged
        command = stored_commands.fill(binding.target, self._to_bson(binding, values))
        with self._pinned(secondary), translated():
            return Outcome(self._rows(binding, command, server=ReadPreference.SECONDARY))

    @contextlib.contextmanager
    def _pinned(self, address: Address) -> Iterator[None]:
        self._pin.address = address
        try:
            yield
        finally:
            self._pin.address = None

    def takes_writes(self) -> bool:
        with translated():
            hello = self._database.command("hello")
        return bool(hello.get("isWritablePrimary", hello.get("msg") == "isdbgrid"))

    def examine(self) -> Health:
        with translated():
            return health.examine(self._database, OBJECTS)

    def close(self) -> None:
        if self._session is not None:
            self._session.end_session()
        self._client.close()

    def _to_bson(self, binding: Binding, values: Mapping[str, Any]) -> dict[str, Any]:
        template, shape = binding.template, binding.target.shape
        converted: dict[str, Any] = {}
        for name, value in values.items():
            param = binding.target.param(name)
            if name in BULK_NAMES and binding.operation is Operation.CREATE_MANY:
                converted[name] = documents_to_bson(template.fields, value, template.keys, shape)
            elif name == KEYS and binding.by_keys:
                documents = [document_to_bson(template.fields, key, template.keys, shape) for key in value]
                converted[name] = [document["_id"] for document in documents]
            elif param is not None and param.whole and isinstance(value, dict):
                converted[name] = document_to_bson(template.fields, value, template.keys, shape)
            elif param is not None and value is param.default:
                converted[name] = value  # the DBA's own BSON: MinKey, MaxKey, …
            else:
                declared = _declared(binding, param, name)
                spec = spec_of(template, binding.ref, field_behind(template, name)) or spec_of(
                    template, binding.ref, name
                )
                converted[name] = field_to_bson(spec, name, value, declared.get("bsonType"), declared)
        return converted


def position_in(reply: Mapping[str, Any]) -> Position:
    """The server's place in its oplog, as each reply of a replica set names it."""
    found = reply.get("operationTime")
    return {"oplog": (found.time << 32 | found.inc, "")} if found is not None else {}


def _majority_at_least(given: WriteConcern) -> WriteConcern:
    """The write concern of the URI; a majority if that is less, or absent."""
    weak = given.document.get("w", 1) in (0, 1)
    return WriteConcern(**{**given.document, "w": "majority"}) if weak else given


def _collection(target: NamedObject) -> str:
    """The collection that a stored command works on: the value of its first key."""
    return str(next(iter(target.command.values())))


def _declared(binding: Binding, param: Param | None, name: str) -> Mapping[str, Any]:
    """The BSON types of a parameter: its own if they name exactly one number type, else those of the stored field."""
    names = param.declared.split(" or ") if param is not None else []
    field = field_behind(binding.template, name)
    stored = "_id" if binding.template.keys == (field,) else field
    column = (binding.target.shape.get("properties") or {}).get(stored) or {}
    numbers = {"int", "long", "double", "decimal", "number"} & set(names)
    return {**column, "bsonType": names} if len(numbers) == 1 else {"bsonType": names, **column}


def outcome_of(binding: Binding, reply: Mapping[str, Any]) -> Outcome:
    """Read a write's reply, and raise the errors in it, which the driver returns as data."""
    each_for_itself = binding.target.command.get("ordered") is False and binding.ref.idempotent
    for problem in reply.get("writeErrors", []):
        if each_for_itself and problem.get("code") == DUPLICATE and problem.get("keyPattern") == {"_id": 1}:
            continue  # an earlier run of this event inserted the document
        raise from_server(problem.get("code", 0), problem.get("errmsg", ""), problem)
    if concern := reply.get("writeConcernError"):
        # The primary has the write, but may still lose it, since no majority has confirmed it.
        code = concern.get("code", 0)
        raise StoreUnavailable("MongoDB did not say whether a majority has the write", detail={"store_code": code})
    if binding.target.kind is ObjectKind.FIND_AND_MODIFY:
        value = reply.get("value")
        changed = int((reply.get("lastErrorObject") or {}).get("n", 1 if value else 0))
        template = binding.template
        rows = [document_from_bson(value, template.keys, template.fields)] if value else []
        return Outcome(rows, changed)
    return Outcome([], int(reply.get("n", 0)))

"""One process's connection to MongoDB, and how a stored command is run over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from beds.adapters.mongo import health, stored_commands
from beds.adapters.mongo.errors import from_server, translated
from beds.adapters.mongo.values import document_from_bson, document_to_bson, to_bson
from beds.adapters.store import AlreadyDone, Health, Once, Outcome
from beds.config.sections import RecDatabase
from beds.domain.event import Operation
from beds.templates.binding import BULK_NAMES, Binding
from beds.templates.named_object import NamedObject, ObjectKind

OBJECTS = "beds_objects"
"""The collection of stored commands. Brokers can read it, and no more."""

LEDGER = "msLedger"
"""The collection of events that were carried out."""
DUPLICATE = 11000
"""MongoDB's code for a key that exists."""

Document = dict[str, Any]
# Raw commands do not take over the client's options.
_CODEC: CodecOptions[Document] = CodecOptions(
    tz_aware=True, tzinfo=UTC, uuid_representation=UuidRepresentation.STANDARD
)


def connect(config: RecDatabase, timeout: float) -> MongoClient[Document]:
    """A client for one process: PyMongo is not fork-safe, so it is opened in the child that uses it.

    Args:
        config: where to connect.
        timeout: seconds after which a silent socket is given up.
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
            appname="beds",
            **tls,
        )


class MongoSession:
    """An `ObjectStore` over MongoDB. `timeout` is in seconds."""

    def __init__(self, config: RecDatabase, timeout: float) -> None:
        self._client = connect(config, timeout)
        self._database: Database[Document] = self._client[config.database]

    def describe(self, names: Iterable[str]) -> dict[str, NamedObject]:
        with translated():
            found = list(self._database[OBJECTS].find({"_id": {"$in": list(names)}}))
        return {str(source["_id"]): stored_commands.parse({**source, "name": source["_id"]}) for source in found}

    def execute(self, binding: Binding, values: Mapping[str, Any], once: Once | None = None) -> Outcome:
        command = stored_commands.fill(binding.target, self._to_bson(binding, values))
        with translated():
            if binding.target.kind in (ObjectKind.FIND, ObjectKind.AGGREGATE, ObjectKind.VIEW):
                if binding.target.kind is ObjectKind.AGGREGATE:
                    command.setdefault("cursor", {})
                rows = list(self._database.cursor_command(command, codec_options=_CODEC))
                return Outcome([document_from_bson(row, binding.template.key) for row in rows])
            many = binding.target.kind is ObjectKind.INSERT_MANY and command.get("ordered") is not False
            if once is None and not many:
                return _outcome(binding, self._run(command))
            # Many: all of them or none, for without a transaction those before the first bad one would stay.
            with self._client.start_session() as session, session.start_transaction():
                outcome = _outcome(binding, self._run(command, session))
                if once is not None:
                    self._insert_noted(once.guid, once.ttl, once.answer(outcome), session)
                return outcome

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
        """Note an event's answer. Raises AlreadyDone."""
        entry = {"_id": guid, "answer": answer, "expires_at": datetime.now(UTC) + timedelta(seconds=ttl)}
        try:
            self._database[LEDGER].insert_one(entry, session=session)
        except DuplicateKeyError:
            raise AlreadyDone from None

    def examine(self) -> Health:
        with translated():
            return health.examine(self._database, OBJECTS)

    def close(self) -> None:
        self._client.close()

    def _to_bson(self, binding: Binding, values: Mapping[str, Any]) -> dict[str, Any]:
        template = binding.template
        converted: dict[str, Any] = {}
        for name, value in values.items():
            if name in BULK_NAMES and binding.operation is Operation.CREATE_MANY:
                converted[name] = [
                    document_to_bson(template.fields, doc, template.key, f"payloads[{i}].")
                    for i, doc in enumerate(value)
                ]
            elif isinstance(value, dict) and name not in template.fields:
                converted[name] = document_to_bson(template.fields, value, template.key)
            else:
                param = binding.target.param(name)
                whole = isinstance(value, int) and not isinstance(value, bool)
                is_double = whole and param is not None and param.types == {"number"}
                default = param is not None and value is param.default
                # A default is the DBA's own BSON (MinKey, MaxKey, …).
                converted[name] = value if default else to_bson(name, float(value) if is_double else value)
        return converted


def _outcome(binding: Binding, reply: Mapping[str, Any]) -> Outcome:
    """Read a write's reply. Errors in it are data to the driver, so they are raised here."""
    each_for_itself = binding.target.command.get("ordered") is False and binding.ref.idempotent
    for problem in reply.get("writeErrors", []):
        if each_for_itself and problem.get("code") == DUPLICATE and problem.get("keyPattern") == {"_id": 1}:
            continue  # it is there already, since this was carried out before
        raise from_server(problem.get("code", 0), problem.get("errmsg", ""), problem)
    if concern := reply.get("writeConcernError"):
        raise from_server(concern.get("code", 0), concern.get("errmsg", ""), concern)
    if binding.target.kind is ObjectKind.FIND_AND_MODIFY:
        value = reply.get("value")
        return Outcome([document_from_bson(value, binding.template.key)] if value else [], 1 if value else 0)
    return Outcome([], int(reply.get("n", 0)))

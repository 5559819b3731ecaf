"""The six operations of bench.operations over the bare drivers, for every peer of BEDS: the same objects, by name.

Their data and their results are plain JSON, so that each peer can send them as they are.
"""

from __future__ import annotations

import itertools
import string
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

import MySQLdb
import MySQLdb.cursors
from MySQLdb.constants import CLIENT
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.database import Database

from beds.config import Settings
from beds.config.sections import RecDatabase, RelDatabase
from beds.domain.identity import uuid7

Data = dict[str, Any]

OPERATIONS = ("fetch-rel", "create-rel", "update-rel", "fetch-rec", "create-rec", "update-rec")
PLANE = ("tailnum", "year", "type", "manufacturer", "model", "engines", "seats", "speed", "engine")
"""The parameters of planes_create, in their order."""
SEEDED, CREATED = "ZY", "ZZ"
"""How the tail number of a plane, and the airport of a notice, begins: of records to read, and of those created."""
SEEDS = 200
"""Records to read and to change. Operations in flight at the same time have different records."""
_DIGITS = string.digits + string.ascii_uppercase
LEDGER_SECONDS = 3600
"""How long an entry in the ledger is kept."""


def is_read(operation: str) -> bool:
    return operation.startswith("fetch")


class Objects:
    """Calls the named objects of both stores, over connections that it opens at the first use.

    A pool that forks may therefore make it before the fork.
    """

    def __init__(self, rel: RelDatabase | None, rec: RecDatabase | None) -> None:
        assert rel is not None
        assert rec is not None
        self._rel_config, self._rec_config = rel, rec

    @classmethod
    def of_brokers(cls, settings: Settings) -> Objects:
        """With the rights of BEDS's workers."""
        return cls(settings.databases.rel, settings.databases.rec)

    @classmethod
    def of_dba(cls, settings: Settings) -> Objects:
        """With the rights to clear the tables."""
        return cls(settings.schema_.dba.rel, settings.schema_.dba.rec)

    def perform(self, operation: str, data: Data) -> Data:
        """Execute one operation. A fetch returns the record, a write what the store reports."""
        if operation.endswith("rel"):
            return self._call(self.rel, operation, data)
        return self._command(operation, data)

    def perform_once(self, operation: str, data: Data, event_id: str) -> Data:
        """Execute one write, and insert its event's id into the ledger in the same transaction.

        Raises:
            MySQLdb.IntegrityError, pymongo.errors.DuplicateKeyError: the event was executed before.
        """
        if operation.endswith("rel"):
            try:
                answer = self._call(self._rel_transactions, operation, data)
                with self._rel_transactions.cursor() as cursor:
                    cursor.execute("CALL beds_ledger_commit(%s, %s, %s)", [event_id, str(answer), LEDGER_SECONDS])
                return answer
            except MySQLdb.Error:
                self._rel_transactions.rollback()
                raise
        with self._client.start_session() as session, session.start_transaction():
            answer = self._command(operation, data, session)
            self._note(event_id, answer, session)
            return answer

    def ledger_entries(self) -> tuple[int, int]:
        """Count the entries in the ledgers of MariaDB and MongoDB. Takes the DBA's rights."""
        with self.rel.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) AS entries FROM beds_ledger")
            return cursor.fetchone()["entries"], self.rec.msLedger.count_documents({})

    def clear(self, prefix: str) -> None:
        """Delete the records that begin with a prefix. Takes the DBA's rights."""
        with self.rel.cursor() as cursor:
            cursor.execute("DELETE FROM planes WHERE tailnum LIKE %s", [f"{prefix}%"])
        self.rec.notices.delete_many({"airport": prefix + "Z"})

    def close(self) -> None:
        for name in ("rel", "_rel_transactions", "_client"):
            if name in self.__dict__:
                getattr(self, name).close()

    @cached_property
    def rel(self) -> Any:
        return self._connect(autocommit=True)

    @cached_property
    def _rel_transactions(self) -> Any:
        return self._connect(autocommit=False)

    @cached_property
    def _client(self) -> MongoClient[Data]:
        return MongoClient(self._rec_config.uri.get_secret_value(), tz_aware=True, uuidRepresentation="standard")

    @cached_property
    def rec(self) -> Database[Data]:
        return self._client[self._rec_config.database]

    def _connect(self, *, autocommit: bool) -> Any:
        config = self._rel_config
        return MySQLdb.connect(
            host=config.host,
            port=config.port,
            user=config.user,
            passwd=config.password.get_secret_value(),
            db=config.database,
            charset="utf8mb4",
            autocommit=autocommit,
            client_flag=CLIENT.FOUND_ROWS,
            cursorclass=MySQLdb.cursors.DictCursor,
        )

    @staticmethod
    def _call(connection: Any, operation: str, data: Data) -> Data:
        with connection.cursor() as cursor:  # closing it reads the remaining results of the CALL
            match operation:
                case "fetch-rel":
                    cursor.execute("CALL planes_by_tailnum(%s)", [data["tailnum"]])
                    (row,) = cursor.fetchall()
                    return dict(row)
                case "create-rel":
                    cursor.execute(f"CALL planes_create({', '.join(['%s'] * 9)})", [data[name] for name in PLANE])
                case _:
                    cursor.execute("CALL planes_update(%s, %s, %s)", [data["tailnum"], data["seats"], data["engine"]])
            return {"affected": cursor.rowcount}

    def _command(self, operation: str, data: Data, session: ClientSession | None = None) -> Data:
        # A raw command does not use the codec options of its database by itself.
        codec = self.rec.codec_options
        return _answer_of(self.rec.command(_filled(operation, data), codec_options=codec, session=session))

    def _note(self, event_id: str, answer: Data, session: ClientSession) -> None:
        expires_at = datetime.now(UTC) + timedelta(seconds=LEDGER_SECONDS)
        self.rec.msLedger.insert_one(
            {"_id": event_id, "answer": str(answer), "expires_at": expires_at}, session=session
        )


_ANY_REVISION = {"$or": [{"$eq": [{"$literal": None}, None]}, {"$eq": ["$revision", {"$literal": None}]}]}
"""The comparison of `notices_amend` without an expected version."""


def _filled(operation: str, data: Data) -> Data:
    """The stored command of that name in schema/rec/notices, filled."""
    match operation:
        case "fetch-rec":
            return {"find": "notices", "filter": {"_id": UUID(data["id"])}}
        case "create-rec":
            rest = {name: value for name, value in data.items() if name != "id"}
            document = {"_id": UUID(data["id"]), **rest, "opened": datetime.fromisoformat(data["opened"])}
            return {"insert": "notices", "documents": [document]}
    changes = {name: value for name, value in data.items() if name != "id"}
    return {
        "findAndModify": "notices",
        "query": {"_id": UUID(data["id"]), "$expr": _ANY_REVISION},
        "update": {"$set": changes, "$inc": {"revision": 1}},
        "new": True,
    }


def _answer_of(reply: Data) -> Data:
    document = reply["cursor"]["firstBatch"][0] if "cursor" in reply else reply.get("value")
    if document is None:
        return {"affected": reply["n"]}
    record = {"id": str(document["_id"]), **document, "opened": document["opened"].isoformat()}
    del record["_id"]
    return record


class Samples:
    """The data of the operations: each create gets a new key, and fetches and updates go through the seeds by turns."""

    def __init__(self, brokers: Objects, dba: Objects) -> None:
        self._brokers, self._dba = brokers, dba
        self._numbers = itertools.count()
        self._planes = [_plane(SEEDED, number) for number in range(SEEDS)]
        self._notices = [_notice(SEEDED, number) for number in range(SEEDS)]
        self._turns = itertools.cycle(range(SEEDS))

    def seed(self) -> None:
        """Insert the records to read, after those that an interrupted run left are deleted."""
        self.clear()
        for plane, notice in zip(self._planes, self._notices, strict=True):
            self._brokers.perform("create-rel", plane)
            self._brokers.perform("create-rec", notice)

    def clear(self) -> None:
        for prefix in (SEEDED, CREATED):
            self._dba.clear(prefix)

    def clear_created(self) -> None:
        """Delete what the creates inserted, so that all sides work on tables of the same size."""
        self._dba.clear(CREATED)

    def next(self, operation: str) -> Data:
        """The data of one operation."""
        number, turn = next(self._numbers), next(self._turns)
        match operation:
            case "fetch-rel":
                return {"tailnum": self._planes[turn]["tailnum"]}
            case "create-rel":
                return _plane(CREATED, number)
            case "update-rel":
                return {"tailnum": self._planes[turn]["tailnum"], "seats": number % 30_000, "engine": "Turbo-fan"}
            case "fetch-rec":
                return {"id": self._notices[turn]["id"]}
            case "create-rec":
                return _notice(CREATED, number)
        return {"id": self._notices[turn]["id"], "title": f"Amended {number} times"}

    def several(self, operation: str, count: int) -> list[Data]:
        return [self.next(operation) for _ in range(count)]

    def check(self, operation: str, data: Data, answer: Data) -> None:
        """Compare an operation's result with what is stored. Raises AssertionError."""
        store = operation[-3:]
        key = {name: value for name, value in data.items() if name in ("tailnum", "id")}
        stored = self._brokers.perform(f"fetch-{store}", key)
        expected = answer if is_read(operation) else data
        different = {name for name, value in expected.items() if _shown(value) != _shown(stored.get(name))}
        if different or not answer:
            raise AssertionError(f"{operation} of {data}: {', '.join(sorted(different))} differ in {stored}")


def _plane(prefix: str, number: int) -> Data:
    details = ("Fixed wing multi engine", "AIRBUS", "A320-214", 2, number % 400, None, "Turbo-fan")
    return dict(zip(PLANE, (f"{prefix}{_base36(number)}", 2004, *details), strict=True))


def _notice(prefix: str, number: int) -> Data:
    opened = datetime(2013, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    return {
        "id": str(uuid7()),
        "airport": prefix + "Z",
        "title": f"Runway 4L closed for inspection {number}",
        "status": "open",
        "severity": 1 + number % 5,
        "tags": ["runway", "inspection"],
        "details": {"runway": "4L", "length": 3682},
        "opened": opened.isoformat(),
        "revision": 0,
    }


def _base36(number: int) -> str:
    """Four digits, of which there are 1,679,616."""
    return "".join(_DIGITS[number // 36**place % 36] for place in (3, 2, 1, 0))


def _shown(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)

"""MariaDB: versioned and repeatable SQL files, and the broker's grants.

File names follow Flyway's convention: `V0001__tables.sql` once and forward only,
`R__procedures.sql` whenever its text changes.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import MySQLdb

from beds.adapters.mariadb import definition, health
from beds.adapters.mariadb.definition import NOT_CODE
from beds.adapters.mariadb.errors import is_client_side, translated
from beds.adapters.mariadb.session import connect
from beds.config.sections import RelDatabase
from beds.errors import BedsError, SchemaDrift, SchemaError
from beds.schema_tools.change import HISTORY, Change, checksum

DDL_SECONDS = 600.0
"""Timeout for DDL, which is slow on a large table."""
LOCK_SECONDS = 10
"""How long a file waits for the lock: the server may still be ending the connection of the file before."""
_VERSIONED = re.compile(r"V(\d+)__\w+\.sql\Z")
_REPEATABLE = re.compile(r"R__\w+\.sql\Z")
_DELIMITER = re.compile(r"^\s*DELIMITER\b", re.IGNORECASE | re.MULTILINE)
# Statements that end the caller's transaction: https://mariadb.com/kb/en/sql-statements-that-cause-an-implicit-commit/
_ENDS_TRANSACTION = re.compile(
    r"\b(COMMIT|ROLLBACK(?!\s+(WORK\s+)?TO\b)|START\s+TRANSACTION|SET\b[^;]*\bautocommit\b|(UN)?LOCK\s+TABLES?"
    r"|CREATE\s+(OR\s+REPLACE\s+)?(?!TEMPORARY\b|OR\b)\w+|DROP\s+(?!TEMPORARY\b)\w+"
    r"|((ALTER|RENAME|TRUNCATE|ANALYZE|OPTIMIZE|GRANT|REVOKE|FLUSH)\s+|(CHECK|REPAIR)\s+(?=TABLE\b|VIEW\b))\w+"
    # Dynamic SQL cannot be checked before it runs.
    r"|EXECUTE\s+IMMEDIATE|PREPARE\s+\w+)\b",
    re.IGNORECASE,
)
_CREATED = re.compile(
    r"\bCREATE\b[^;]*?\b(?:PROCEDURE|FUNCTION|VIEW)\s+(?:IF\s+NOT\s+EXISTS\s+)?(?:(?:`[^`]+`|\w+)\.)?(`[^`]+`|\w+)",
    re.IGNORECASE,
)
_QUOTED_NAME = re.compile(r"`[^`]*`")

OWN = "beds/"
"""Prefix of the names of BEDS's own files in the history."""
OWN_PROCEDURES = frozenset({"beds_ledger_commit", "beds_definition", "beds_columns"})
"""BEDS's own procedures, which may do this. The first commits BEDS's own transaction; the others run fixed SQL."""

_BINARY_LOG = (
    "MariaDB writes a binary log, and takes functions and triggers of the DBA only with "
    "`log_bin_trust_function_creators = 1` under [mysqld]"
)
_SETTING_REMEDIES = {1418: _BINARY_LOG, 1419: _BINARY_LOG}
"""For errors that no change of the file repairs: https://mariadb.com/kb/en/binary-logging-of-stored-routines/"""

_CREATES_LOGGED = re.compile(r"\bCREATE\b[^;]*?\b(FUNCTION|TRIGGER)\b", re.IGNORECASE)

CREATE_HISTORY = f"""
CREATE TABLE IF NOT EXISTS {HISTORY} (
  file VARCHAR(200) NOT NULL PRIMARY KEY,
  checksum CHAR(64) NOT NULL,
  applied_at DATETIME(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3),
  seconds DOUBLE NOT NULL,
  success BOOLEAN NOT NULL,
  statements INT NULL,
  error TEXT NULL
) COMMENT 'What `beds schema apply` applied'"""


GROW_HISTORY = (
    f"ALTER TABLE {HISTORY} ADD COLUMN IF NOT EXISTS statements INT NULL, ADD COLUMN IF NOT EXISTS error TEXT NULL"
)
"""For a history of an earlier version."""


@dataclass(frozen=True, slots=True)
class HalfApplied:
    """A versioned file that failed, of which MariaDB cannot roll back what it did.

    Args:
        file: its name.
        statements: how many of its statements were executed; None if the process was killed.
        error: MariaDB's message for the next one; empty if the connection or the process was lost.
        begun_at: in UTC.
    """

    file: str
    statements: int | None
    error: str
    begun_at: str


class RelSchema:
    """The MariaDB side of `schema/`.

    Args:
        folder: `schema/rel`.
        own: the folder of BEDS's own files, which are applied first.
        dba: the DBA's credentials.
        broker: the brokers' credentials; only the account's name is used.
        broker_host: the host part of the brokers' account.
    """

    def __init__(self, folder: Path, own: Path, dba: RelDatabase, broker: RelDatabase | None, broker_host: str) -> None:
        self._files = {f"{OWN}{name}": text for name, text in _read_folder(own).items()} | _read_folder(folder)
        self._dba = dba
        self._broker_login = broker
        self._broker = f"'{broker.user}'@'{broker_host}'" if broker else ""

    def changes(self) -> list[Change]:
        """The changes that `beds schema apply` would make, in their order.

        Raises:
            SchemaDrift: a versioned file was changed or lost after it was applied, or one failed half-way.
        """
        with self._connected() as cursor:
            applied = self._history(cursor)
        self._refuse_drift(applied)
        pending = [
            Change("rel", "change" if name in applied else "create", name, lambda n=name: self._apply_file(n))  # type: ignore[misc]
            for name, text in self._files.items()
            if applied.get(name, {}).get("checksum") != checksum(text) or not applied[name]["success"]
        ]
        if not self._broker:
            return pending
        missing, surplus = self._rights_to_change()
        revoked = [
            Change("rel", "revoke", f"{right} from {self._broker}", lambda r=right: self._revoke([r]))  # type: ignore[misc]
            for right in surplus
        ]
        if not (pending or missing):
            return revoked
        name = f"procedures, functions and views to {self._broker}"
        return [*pending, *revoked, Change("rel", "grant", name, self._grant)]

    @cached_property
    def _created(self) -> set[str]:
        return created_in(self._files.values())

    def creates(self, name: str) -> bool:
        """Whether a file of `schema/rel` creates a routine or view of this name."""
        return name.casefold() in self._created

    def procedures_that_commit(self) -> list[str]:
        """Procedures that would end the broker's transaction, or that run dynamic SQL. They are never granted.

        A procedure that calls one of them counts as well.
        """
        with self._connected() as cursor:
            return sorted(_that_commit(_routines(cursor)))

    def not_strict(self) -> list[str]:
        """Routines that truncate values, since they were created without strict mode and keep that mode."""
        with self._connected() as cursor:
            return [row["name"] for row in _routines(cursor) if not definition.is_strict(str(row["mode"]))]

    def grants(self) -> list[str]:
        """The statements that give the brokers' account what it needs, and no more."""
        with self._connected() as cursor:
            return [f"GRANT {right} TO {self._broker}" for right in self._grantable(cursor)]

    def _refuse_drift(self, applied: dict[str, dict[str, Any]]) -> None:
        for name, row in applied.items():
            if not _VERSIONED.match(name.removeprefix(OWN)):
                continue
            if not row["success"]:
                raise SchemaDrift(
                    f"{name} failed half-way; MariaDB cannot roll DDL back",
                    detail={"file": name},
                    hint="`beds schema repair` shows how far it came, and what to do",
                )
            if name not in self._files:
                raise SchemaDrift(
                    f"{name} was applied, but is no longer in schema/rel",
                    detail={"file": name},
                    hint="restore the file",
                )
            if checksum(self._files[name]) != row["checksum"]:
                raise SchemaDrift(
                    f"{name} was changed after it was applied",
                    detail={"file": name, "applied": row["checksum"], "now": checksum(self._files[name])},
                    hint="restore the file, and put the change into a new V file",
                )

    def _apply_file(self, name: str) -> None:
        text = self._files[name]
        started = time.monotonic()
        with self._connected() as cursor:
            if _CREATES_LOGGED.search(NOT_CODE.sub(" ", text)) and _binary_log_refuses(cursor):
                raise SchemaError(
                    f"{name}: MariaDB would refuse its functions or triggers; nothing of it was applied",
                    detail={"file": name},
                    hint=_BINARY_LOG,
                )
            if not self._lock(cursor, f"GET_LOCK(%s, {LOCK_SECONDS})"):
                raise SchemaError("another `beds schema apply` is at work", hint="wait until it is done")
            self._note(cursor, name, text, 0.0, success=False)
            done = 0
            try:
                cursor.execute(text)
                done += 1
                while cursor.nextset():
                    done += 1
            except MySQLdb.Error as error:
                message = str(error.args[1]) if len(error.args) > 1 else str(error)
                self._note_failure(name, done, "" if is_client_side(error) else message)
                remedy = _SETTING_REMEDIES.get(error.args[0], "mend the file")
                raise SchemaError(f"{name}: {message}", detail={"file": name}, hint=remedy) from None
            self._note(cursor, name, text, time.monotonic() - started, success=True)

    def _note_failure(self, name: str, done: int, message: str) -> None:
        """Note how far a file came, over another connection: its own may have results left."""
        with contextlib.suppress(BedsError), self._connected() as cursor:
            cursor.execute(
                f"UPDATE {HISTORY} SET statements = %s, error = %s WHERE file = %s", [done, message[:2000], name]
            )

    def half_applied(self) -> list[HalfApplied]:
        """The versioned files that failed half-way. Raises SchemaError: `beds schema apply` is at work."""
        with self._connected() as cursor:
            if not self._lock(cursor, "IS_FREE_LOCK(%s)"):
                raise SchemaError("`beds schema apply` is at work", hint="wait until it is done")
            self._history(cursor)
            cursor.execute(f"SELECT file, statements, error, applied_at FROM {HISTORY} WHERE NOT success ORDER BY file")
            return [
                HalfApplied(row["file"], row["statements"], row["error"] or "", str(row["applied_at"]))
                for row in cursor.fetchall()
                if _VERSIONED.match(row["file"].removeprefix(OWN))
            ]

    def _lock(self, cursor: Any, asked: str) -> bool:
        """The answer to a question about the lock of `apply`, which lasts as long as its connection."""
        cursor.execute(f"SELECT {asked} AS answer", [f"beds schema of {self._dba.database}"[:60]])
        return bool(cursor.fetchall()[0]["answer"])

    def settle(self, name: str, *, applied: bool) -> None:
        """Note that a person has undone a half-applied file, or completed it.

        Args:
            name: of the file.
            applied: True if it was completed; otherwise the next `apply` runs it again.

        Raises:
            SchemaError: it did not fail half-way.
        """
        if name not in {each.file for each in self.half_applied()}:
            raise SchemaError(f"{name} did not fail half-way", detail={"file": name}, hint="`beds schema repair`")
        if applied and name not in self._files:
            raise SchemaError(f"{name} is no longer in schema/rel", detail={"file": name}, hint="restore the file")
        with self._connected() as cursor:
            if applied:
                self._note(cursor, name, self._files.get(name, ""), 0.0, success=True)
            else:
                cursor.execute(f"DELETE FROM {HISTORY} WHERE file = %s", [name])

    def _note(self, cursor: Any, name: str, text: str, seconds: float, *, success: bool) -> None:
        cursor.execute(
            f"REPLACE INTO {HISTORY} (file, checksum, seconds, success) VALUES (%s, %s, %s, %s)",
            [name, checksum(text), seconds, success],
        )
        cursor.connection.commit()

    def _history(self, cursor: Any) -> dict[str, dict[str, Any]]:
        cursor.execute(CREATE_HISTORY)
        cursor.execute(GROW_HISTORY)
        cursor.execute(f"SELECT file, checksum, success FROM {HISTORY}")
        return {row["file"]: row for row in cursor.fetchall()}

    def _grantable(self, cursor: Any) -> list[str]:
        """The broker's rights, in GRANT's words."""
        known = _routines(cursor)
        forbidden = _that_commit(known)
        routines = [
            f"EXECUTE ON {r['kind']} `{r['name']}`"
            for r in known
            if not (r["kind"] == "PROCEDURE" and r["name"] in forbidden)
        ]
        cursor.execute("SELECT TABLE_NAME AS name FROM information_schema.VIEWS WHERE TABLE_SCHEMA = DATABASE()")
        rights = routines + [f"SELECT ON `{row['name']}`" for row in cursor.fetchall()]
        return [right.replace("`", f"`{self._dba.database}`.`", 1) for right in rights]

    def _rights_to_change(self) -> tuple[list[str], list[str]]:
        """The broker's missing and surplus rights on this database. Both are empty if its login fails.

        `beds node check` finds its rights on other databases.
        """
        with self._connected() as cursor:
            wanted = {_spelled(right): right for right in self._grantable(cursor)}
        try:
            assert self._broker_login is not None
            with translated(), contextlib.closing(connect(self._broker_login, DDL_SECONDS)) as login:
                has = {_spelled(right): right for right in health.granted(login.cursor())}
        except BedsError:
            return [], []
        here = f"`{self._dba.database}`."
        surplus = [has[each] for each in sorted(has.keys() - wanted.keys()) if f" {here}" in has[each]]
        return [wanted[each] for each in sorted(wanted.keys() - has.keys())], surplus

    def _grant(self) -> None:
        statements = self.grants()
        with self._connected() as cursor:
            for statement in statements:
                cursor.execute(statement)
        # CREATE OR REPLACE keeps a procedure's grant, even if the new text has a COMMIT.
        self._revoke(self._rights_to_change()[1])

    def _revoke(self, rights: list[str]) -> None:
        with self._connected() as cursor:
            for right in rights:
                cursor.execute(f"REVOKE {right} FROM {self._broker}")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        with translated():
            connection = connect(self._dba, DDL_SECONDS, multi_statements=True)
            with contextlib.closing(connection), connection.cursor() as cursor:
                yield cursor
                connection.commit()


def created_in(texts: Iterable[str]) -> set[str]:
    """The names of the routines and views that SQL files create, in lower case."""
    return {name.strip("`").casefold() for text in texts for name in _CREATED.findall(NOT_CODE.sub(" ", text))}


def _spelled(right: str) -> str:
    """A right as MariaDB keeps it: a routine's name in lower case."""
    words, dot, name = right.rpartition(".")
    is_routine = words.startswith(("EXECUTE ON PROCEDURE ", "EXECUTE ON FUNCTION "))
    return f"{words}{dot}{name.lower() if is_routine else name}"


def ends_transaction(body: str, sql_mode: str = "") -> bool:
    """True if a routine's body commits, rolls back or runs DDL. Text in quotes and comments does not count."""
    return bool(_ENDS_TRANSACTION.search(_QUOTED_NAME.sub(" q ", definition.code_of(body, sql_mode))))


def _routines(cursor: Any) -> list[dict[str, Any]]:
    cursor.execute(
        "SELECT ROUTINE_TYPE AS kind, ROUTINE_NAME AS name, ROUTINE_DEFINITION AS body, SQL_MODE AS mode "
        "FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = DATABASE() ORDER BY 1, 2"
    )
    return list(cursor.fetchall())


def _that_commit(routines: list[dict[str, Any]]) -> set[str]:
    bodies = {
        row["name"]: definition.code_of(str(row["body"] or ""), str(row["mode"] or ""))
        for row in routines
        if row["kind"] == "PROCEDURE"
    }
    calls = {name: {each.casefold() for each in definition.called(code)} for name, code in bodies.items()}
    found = {name for name, code in bodies.items() if ends_transaction(code)}
    while more := {n for n in bodies if n not in found and {name.casefold() for name in found} & calls[n]}:
        found |= more
    return found - OWN_PROCEDURES


def _binary_log_refuses(cursor: Any) -> bool:
    """Whether MariaDB takes no functions and triggers of this user, because it writes a binary log."""
    cursor.execute("SELECT @@global.log_bin AND NOT @@global.log_bin_trust_function_creators AS refuses")
    if not cursor.fetchone()["refuses"]:
        return False
    cursor.execute("SHOW GRANTS FOR CURRENT_USER")
    grants = [str(value) for row in cursor.fetchall() for value in row.values()]
    return not any(" ON *.*" in grant and re.search(r"\bSUPER\b|\bALL PRIVILEGES\b", grant) for grant in grants)


def _read_folder(folder: Path) -> dict[str, str]:
    """The SQL files in the order in which they are applied: versioned by number, then repeatable by name.

    Raises:
        SchemaError: a name fits neither form, or two files have one version.
    """
    versioned: dict[int, Path] = {}
    repeatable: list[Path] = []
    for file in sorted(folder.glob("*.sql")) if folder.is_dir() else []:
        if found := _VERSIONED.match(file.name):
            twin = versioned.setdefault(int(found[1]), file)
            if twin is not file:
                raise SchemaError(f"{twin.name} and {file.name} have the same version", hint="renumber the newer one")
        elif _REPEATABLE.match(file.name):
            repeatable.append(file)
        else:
            raise SchemaError(
                f"{file}: this is no name of a schema file", hint="V0002__what_it_does.sql or R__what_it_holds.sql"
            )
    ordered = [versioned[number] for number in sorted(versioned)] + repeatable
    texts = {file.name: _read(file) for file in ordered}
    for name, text in texts.items():
        if _DELIMITER.search(NOT_CODE.sub(" ", text)):
            raise SchemaError(
                f"{name}: DELIMITER belongs to the command-line client",
                detail={"file": name},
                hint="leave it out: the whole file is sent to the server, which knows where a routine ends",
            )
    return texts


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(
            f"schema/rel/{file.name} cannot be read: {error}", detail={"file": file.name}, hint="mend the file"
        ) from None

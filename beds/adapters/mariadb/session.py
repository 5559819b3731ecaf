"""One process's connection to MariaDB, and how a named object is called over it."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import MySQLdb
import MySQLdb.cursors
from MySQLdb.constants import CLIENT, ER

from beds.adapters.mariadb import health, signatures
from beds.adapters.mariadb.errors import is_client_side, translate, translated
from beds.adapters.mariadb.values import bulk_to_json, from_sql, to_sql
from beds.adapters.store import AlreadyDone, Health, Once, Outcome
from beds.config.sections import RelDatabase
from beds.domain.event import Operation
from beds.domain.reply import Record
from beds.errors import BedsError
from beds.templates.binding import BULK_NAMES, Binding
from beds.templates.named_object import NamedObject, ObjectKind

PURGE_SECONDS, PURGE_ROWS = 10.0, 5000
"""How often a process looks for ledger entries past their time, and how many it deletes at once: more than it adds."""
SESSION_SETUP = (
    "SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'"
)


def connect(config: RelDatabase, timeout: float, *, multi_statements: bool = False) -> Any:
    """A connection: strict, in UTC, with transactions.

    Args:
        config: where to connect.
        timeout: seconds after which a silent socket is given up.
        multi_statements: whether one query may hold several; for schema files only.
    """
    tls = {"ssl": config.tls.named("ca", "cert", "key"), "ssl_mode": "VERIFY_IDENTITY"} if config.tls else {}
    with translated():
        return MySQLdb.connect(
            **tls,
            host=config.host,
            port=config.port,
            user=config.user,
            passwd=config.password.get_secret_value(),
            db=config.database,
            charset="utf8mb4",
            connect_timeout=max(1, int(config.connect_timeout)),
            read_timeout=max(1, int(timeout)),
            write_timeout=max(1, int(timeout)),
            # The server ends a statement, and gives its locks back, before the driver gives up on the socket.
            init_command=f"{SESSION_SETUP}, max_statement_time = {max(1.0, timeout - 1):.1f}",
            autocommit=False,
            client_flag=CLIENT.FOUND_ROWS,  # an update that finds a record but changes nothing counts it
            local_infile=0,
            multi_statements=multi_statements,
            cursorclass=MySQLdb.cursors.DictCursor,
        )


class MariaDBSession:
    """An `ObjectStore` over MariaDB. A connection that broke is opened anew at the next use."""

    def __init__(self, config: RelDatabase, timeout: float) -> None:
        self._config = config
        self._timeout = timeout
        self._connection: Any = None
        self._next_purge = time.monotonic() + PURGE_SECONDS * random.random()

    def describe(self, names: Iterable[str]) -> dict[str, NamedObject]:
        arguments = {"database": self._config.database, "names": tuple(names)}
        with self._transaction() as cursor:
            found = []
            for query in (signatures.ROUTINES, signatures.PARAMETERS, signatures.VIEWS):
                cursor.execute(query, arguments)
                found.append(cursor.fetchall())
        return signatures.build(*found)

    def execute(self, binding: Binding, values: Mapping[str, Any], once: Once | None = None) -> Outcome:
        target = binding.target
        if binding.operation is Operation.CREATE_MANY:
            (name,) = BULK_NAMES & values.keys()
            arguments = [bulk_to_json(values[name])]
        else:
            arguments = [to_sql(p.name, values.get(p.name), p.declared) for p in target.params if p.mode == "in"]
        with self._transaction(commit=once is None) as cursor:
            match target.kind:
                case ObjectKind.PROCEDURE:
                    rows, affected = _call_procedure(cursor, target, arguments)
                case ObjectKind.FUNCTION:
                    marks = ", ".join(["%s"] * len(arguments))
                    cursor.execute(f"SELECT `{target.name}`({marks}) AS `{target.name}`", arguments)
                    rows, affected = list(cursor.fetchall()), 0
                case _:
                    cursor.execute(f"SELECT * FROM `{target.name}` LIMIT %s", arguments)
                    rows, affected = list(cursor.fetchall()), 0
            fields = binding.template.fields
            outcome = Outcome([{n: from_sql(fields.get(n), v) for n, v in row.items()} for row in rows], affected)
            if once is not None:
                self._commit_noted(cursor, once.guid, once.ttl, once.answer(outcome))
        if once is not None:
            self._purge_ledger()
        return outcome

    def recall(self, guid: str) -> str | None:
        with self._transaction() as cursor:
            cursor.execute("CALL beds_ledger_find(%s)", [guid])
            row = cursor.fetchone()
            while cursor.nextset():
                pass
        return str(row["answer"]) if row else None

    def note(self, guid: str, ttl: int, answer: str) -> None:
        with self._transaction(commit=False) as cursor:
            self._commit_noted(cursor, guid, ttl, answer)

    def examine(self) -> Health:
        with self._transaction() as cursor:
            return health.examine(cursor)

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(MySQLdb.Error):  # it may be gone already, which is what is wanted
                connection.close()

    @staticmethod
    def _commit_noted(cursor: Any, guid: str, ttl: int, answer: str) -> None:
        """Note an event's answer and commit, in one round trip. Raises AlreadyDone."""
        try:
            cursor.execute("CALL beds_ledger_commit(%s, %s, %s)", [guid, answer, ttl])
            while cursor.nextset():
                pass
        except MySQLdb.IntegrityError as error:
            if error.args[0] == ER.DUP_ENTRY:
                raise AlreadyDone from None
            raise

    def _purge_ledger(self) -> None:
        """Now and then, delete what is older than any event that may come again."""
        if time.monotonic() < self._next_purge:
            return
        self._next_purge = time.monotonic() + PURGE_SECONDS * random.uniform(0.5, 1.5)
        with self._transaction() as cursor:
            cursor.execute("CALL beds_ledger_purge(%s)", [PURGE_ROWS])
            while cursor.nextset():
                pass

    @contextlib.contextmanager
    def _transaction(self, *, commit: bool = True) -> Iterator[Any]:
        """A cursor in a transaction: committed at the end (unless that is done by then), rolled back on an error, and
        the connection dropped when nobody can tell what state it is in."""
        if self._connection is None:
            self._connection = connect(self._config, self._timeout)
        cursor = self._connection.cursor()
        try:
            yield cursor
            cursor.close()
            if commit:
                self._connection.commit()
        except MySQLdb.Error as error:
            raise self._give_up(error) from None
        except (AlreadyDone, BedsError):
            self._roll_back()
            raise
        except BaseException:
            self.close()
            raise

    def _give_up(self, error: MySQLdb.Error) -> BedsError:
        """Undo what the transaction did, and say what went wrong."""
        if is_client_side(error):
            self.close()
            return translate(error)
        found = translate(error, self._connection.sqlstate())  # before another command overwrites it
        self._roll_back()
        return found

    def _roll_back(self) -> None:
        try:
            self._connection.rollback()
        except MySQLdb.Error:
            self.close()  # which rolls back as well


def _call_procedure(cursor: Any, target: NamedObject, arguments: list[Any]) -> tuple[list[Record], int]:
    """CALL it, drain every result set (a later statement fails otherwise), then read the OUT parameters."""
    given = iter(arguments)
    marks, passed, outs = [], [], []
    for param in target.params:
        if param.mode == "in":
            marks.append("%s")
            passed.append(next(given))
        else:
            marks.append(f"@beds_{param.name}")
            outs.append(param.name)
    cursor.execute(f"CALL `{target.name}`({', '.join(marks)})", passed)
    rows = list(cursor.fetchall()) if cursor.description else []
    affected = cursor.rowcount if not rows else 0
    while cursor.nextset():
        if cursor.description is None:
            affected = cursor.rowcount
        else:
            cursor.fetchall()
    if outs:
        cursor.execute("SELECT " + ", ".join(f"@beds_{name} AS `{name}`" for name in outs))
        (values,) = cursor.fetchall()
        affected = int(values.pop("affected", None) or affected)
        if values:
            rows = [{**(rows[0] if rows else {}), **values}]
    return rows, max(affected, 0)

"""One process's connection to MariaDB, over which it calls named objects."""

from __future__ import annotations

import contextlib
import logging
import random
import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import MySQLdb
import MySQLdb.cursors
from MySQLdb.constants import CLIENT, ER
from MySQLdb.converters import conversions

from beds.adapters.conform import store_error
from beds.adapters.mariadb import definition, health, signatures
from beds.adapters.mariadb.columns import CONVERTERS, out_reader, read_rows, reader
from beds.adapters.mariadb.errors import (
    column_in,
    ends_connection,
    is_client_side,
    refused_by_warning,
    translate,
    translated,
)
from beds.adapters.mariadb.hosts import Open, connect_to_primary, is_on, is_read_only
from beds.adapters.mariadb.signatures import Column, Source
from beds.adapters.mariadb.types import SqlType
from beds.adapters.mariadb.values import bulk_to_json, to_sql
from beds.adapters.store import (
    RESULT_BYTES,
    AlreadyDone,
    DefinitionChanged,
    Health,
    IdempotencyRecord,
    Outcome,
    Position,
    ResultLimit,
    Verify,
    Work,
)
from beds.config.sections import RelDatabase
from beds.domain.event import Operation
from beds.domain.member import Member
from beds.domain.reply import Record
from beds.errors import BedsError, ResultTooLarge, SchemaMismatch, StoreError, StoreUnavailable
from beds.templates.binding import BULK_NAMES, KEYS, Binding, spec_of
from beds.templates.fields import FieldSpec
from beds.templates.named_object import NamedObject, ObjectKind, Param

logger = logging.getLogger(__name__)

PURGE_SECONDS, PURGE_ROWS = 10.0, 5000
"""Interval between a process's purges of expired ledger entries, and the rows of one purge: more than it inserts."""
ANSWER_CHARACTERS = 4_000_000
"""Limit of a write's reply, which the ledger stores (MEDIUMTEXT: 16 MiB)."""
ROWS_AT_ONCE = 200
CLOSING: int = getattr(select, "POLLRDHUP", 0)  # of Linux; elsewhere only a reset connection shows
SESSION_SETUP = (
    "SET time_zone = '+00:00', max_error_count = 65535, "
    "sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'"
)


# All of mysqlclient's conversions for parameters, but only those of numbers for results.
_CONVERSIONS = {kind: convert for kind, convert in conversions.items() if isinstance(kind, type)} | CONVERTERS


def connect(
    config: RelDatabase,
    timeout: float,
    *,
    multi_statements: bool = False,
    to: Callable[[RelDatabase, Open], Any] = connect_to_primary,
) -> Any:
    """Open a connection in strict mode, in UTC, with transactions.

    Args:
        config: where to connect.
        timeout: of the socket, in seconds.
        multi_statements: whether one query may hold several statements.
        to: chooses among several hosts.
    """
    tls = {"ssl": config.tls.named("ca", "cert", "key"), "ssl_mode": "VERIFY_IDENTITY"} if config.tls else {}

    def connect_to(host: str, port: int, seconds: float) -> Any:
        with translated():
            return MySQLdb.connect(
                **tls,
                host=host,
                port=port,
                user=config.user,
                passwd=config.password.get_secret_value(),
                db=config.database,
                charset="utf8mb4",
                connect_timeout=max(1, int(seconds)),
                read_timeout=max(1, int(timeout)),
                write_timeout=max(1, int(timeout)),
                # The server ends a statement and releases its locks before the driver's socket timeout.
                init_command=f"{SESSION_SETUP}, max_statement_time = {max(1.0, timeout - 1):.1f}",
                autocommit=False,
                client_flag=CLIENT.FOUND_ROWS,  # an update counts a record that it finds, even if it stays the same
                local_infile=0,
                multi_statements=multi_statements,
                conv=_CONVERSIONS,
                cursorclass=MySQLdb.cursors.DictCursor,
            )

    return to(config, connect_to)


def gtid_position(text: str | bytes) -> Position:
    """A GTID position, `0-1-42,1-1-7`: the last sequence number of each domain, with its server."""
    shown = text.decode() if isinstance(text, bytes) else text
    parts = [each.split("-") for each in shown.split(",") if each]
    return {domain: (int(number), server) for domain, server, number in parts}


class MariaDBSession:
    """An `ObjectStore` over MariaDB. It reopens a broken connection at the next use."""

    def __init__(self, config: RelDatabase, timeout: float) -> None:
        self._config = config
        self._timeout = timeout
        self._connection: Any = None
        self._ending = select.poll()
        """Becomes ready when the server has closed the connection."""
        self._writers: set[tuple[str, str]] = set()
        """The names and stamps of objects that wrote although their text does not say so."""
        self._next_purge = time.monotonic() + PURGE_SECONDS * random.random()

    def describe(self, names: Iterable[str]) -> dict[str, NamedObject]:
        arguments = {"database": self._config.database, "names": tuple(names)}
        if self._is_read_only():
            self.close()  # after a failover the host name leads to another server; this replica's reads may be stale
        with self._transaction(cursors=MySQLdb.cursors.DictCursor) as cursor:
            cursor.execute(signatures.ROUTINES, arguments)
            routines = cursor.fetchall()
            # Definitions come first: if a routine is replaced meanwhile, the first call finds that its definition is
            # outdated. Parameters read before their definition could belong to its predecessor, unnoticed.
            sources = {row["name"]: _source(cursor, row["kind"], row["name"]) for row in routines}
            cursor.execute(signatures.PARAMETERS, arguments)
            parameters = cursor.fetchall()
            cursor.execute(signatures.VIEWS, arguments)
            return signatures.build(routines, sources, parameters, cursor.fetchall())

    def execute(
        self,
        binding: Binding,
        values: Mapping[str, Any],
        once: IdempotencyRecord | None = None,
        verify: Verify | None = None,
    ) -> Outcome:
        only_reads = binding.operation.is_read and not self._writes(binding)
        with self._transaction(commit=False) as cursor:
            try:
                outcome = _call(cursor, binding, values, only_reads=only_reads)
            except UnicodeDecodeError:
                raise self._not_utf8(binding, values) from None
            except MySQLdb.OperationalError as error:
                if not only_reads or error.args[0] != ER.CANT_EXECUTE_IN_READ_ONLY_TRANSACTION:
                    raise
                self._writers.add((binding.target.name, binding.target.stamp))
                raise DefinitionChanged from None  # the caller repeats it
            if once is not None:
                self._commit_noted(cursor, once.guid, once.ttl, once.answer(outcome))
            elif not only_reads:
                if verify is not None:
                    verify(outcome)
                self._connection.commit()
        if once is not None:
            self._purge_ledger()
        return outcome

    @property
    def writers(self) -> set[tuple[str, str]]:
        """The names and stamps of objects that wrote although their text does not say so; grows."""
        return self._writers

    def _writes(self, binding: Binding) -> bool:
        """Whether an object writes: by its text, or by what it did before."""
        target = binding.target
        return target.may_write or (target.name, target.stamp) in self._writers

    def transact(self, work: Work, once: IdempotencyRecord) -> None:
        with self._transaction(commit=False) as cursor:

            def call(binding: Binding, values: Mapping[str, Any]) -> Outcome:
                try:
                    return _call(cursor, binding, values, only_reads=False)
                except UnicodeDecodeError:
                    raise _TooMuch(store_error("of its result", "holds text that is not UTF-8")) from None

            self._commit_noted(cursor, once.guid, once.ttl, once.answer(work(call)))

    def has_changed(self, target: NamedObject) -> bool:
        try:
            with self._transaction() as cursor:
                return not _is_current(cursor, target)
        except SchemaMismatch:
            return True  # dropped

    def recall(self, guid: str) -> str | None:
        with self._transaction() as cursor:
            cursor.execute("CALL beds_ledger_find(%s)", [guid])
            rows = cursor.fetchall()
            _drain(cursor)
        return str(rows[0][0]) if rows else None

    def note(self, guid: str, ttl: int, answer: str) -> None:
        with self._transaction(commit=False) as cursor:
            self._commit_noted(cursor, guid, ttl, answer)

    def takes_writes(self) -> bool:
        return not self._is_read_only()

    def examine(self) -> Health:
        if self._is_read_only():
            self.close()
        with self._transaction(cursors=MySQLdb.cursors.DictCursor) as cursor:
            found = health.examine(cursor)
        return replace(found, members=tuple(self._members()))

    def _members(self) -> Iterator[Member]:
        """The state of each host, where there are several."""
        if len(self._config.addresses) == 1:
            return
        for host, port in self._config.addresses:
            alone = self._config.model_copy(update={"host": host, "port": port, "hosts": (), "connect_timeout": 1.0})
            try:
                with contextlib.closing(connect(alone, self._timeout)) as connection:
                    yield Member(f"{host}:{port}", is_up=True, takes_writes=not is_read_only(connection))
            except BedsError as error:
                yield Member(f"{host}:{port}", is_up=not isinstance(error, StoreUnavailable))

    def position(self) -> Position:
        with self._transaction() as cursor:
            cursor.execute("SELECT @@global.read_only, @@global.gtid_current_pos")
            ((read_only, found),) = cursor.fetchall()
        if is_on(read_only):  # after a failover this is a replica
            self.close()
            return {}
        return gtid_position(found)

    def _is_read_only(self) -> bool:
        """True if the connected server is read-only. A new connection may reach another server."""
        with self._transaction() as cursor:
            cursor.execute("SELECT @@global.read_only")
            return is_on(cursor.fetchall()[0][0])

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(MySQLdb.Error):  # it may be closed already
                connection.close()

    @staticmethod
    def _commit_noted(cursor: Any, guid: str, ttl: int, answer: str) -> None:
        """Insert the idempotency record and commit, in one round trip. Raises AlreadyDone, ResultTooLarge."""
        if len(answer) > ANSWER_CHARACTERS:
            raise ResultTooLarge(f"the answer has {len(answer):,} characters, {ANSWER_CHARACTERS:,} are kept")
        try:
            cursor.execute("CALL beds_ledger_commit(%s, %s, %s)", [guid, answer, ttl])
            _drain(cursor)
        except MySQLdb.IntegrityError as error:
            if error.args[0] == ER.DUP_ENTRY:
                raise AlreadyDone from None
            raise

    def _purge_ledger(self) -> None:
        """Delete expired ledger entries about every `PURGE_SECONDS`. No event that old is redelivered."""
        if time.monotonic() < self._next_purge:
            return
        self._next_purge = time.monotonic() + PURGE_SECONDS * random.uniform(0.5, 1.5)
        try:
            with self._transaction() as cursor:
                cursor.execute("CALL beds_ledger_purge(%s)", [PURGE_ROWS])
                _drain(cursor)
        except BedsError as error:  # the write before is committed, so its reply must not become an error
            logger.warning("the ledger could not be purged: %s", error.message)

    @contextlib.contextmanager
    def _transaction(self, *, commit: bool = True, cursors: Any = MySQLdb.cursors.SSCursor) -> Iterator[Any]:
        """A cursor in a transaction. It is committed at the end if `commit`, and rolled back on an error.

        If the connection's state is unknown after an error, the connection is closed. By default rows stay on the
        server until they are read, so that a large result does not fill this process's memory.
        """
        if self._connection is not None and self._ending.poll(0):
            self.close()  # the server ended it meanwhile: a statement sent there would be in doubt, for nothing
        if self._connection is None:
            self._connection = self._open()
            self._ending = select.poll()
            self._ending.register(self._connection.fileno(), CLOSING)
        cursor = self._connection.cursor(cursors)
        try:
            yield cursor
            cursor.close()
            if commit:
                self._connection.commit()
        except MySQLdb.Error as error:
            try:
                problem = self._give_up(error)
            except BaseException:  # the soft limit struck meanwhile
                self.close()
                raise
            raise problem from None
        except _TooMuch as much:
            self.close()  # a rollback would first have to read the rest of the result
            raise much.error from None
        except (AlreadyDone, DefinitionChanged, BedsError):
            self._roll_back()
            raise
        except BaseException:
            self.close()
            raise

    def _open(self) -> Any:
        return connect(self._config, self._timeout, multi_statements=True)

    def _give_up(self, error: MySQLdb.Error) -> BedsError:
        """Roll the transaction back, or close the connection. Returns the translated error."""
        if is_client_side(error):
            self.close()
            return translate(error)
        if ends_connection(error):
            # The server became a replica: the next connection may lead to the new primary.
            self.close()
            return translate(error)
        found = translate(error, self._connection.sqlstate())  # before another command overwrites it
        self._roll_back()
        return found

    def _not_utf8(self, binding: Binding, values: Mapping[str, Any]) -> StoreError:
        """The error for text that is not UTF-8. A read is repeated with bytes, since the driver names no column."""
        problem = "holds text that is not UTF-8"
        if not binding.operation.is_read:
            return store_error("of its result", problem)
        self.close()
        try:
            with self._transaction() as cursor:
                converter = self._connection.converter
                texts = [kind for kind, convert in converter.items() if isinstance(convert, (list, tuple))]
                converter.update(dict.fromkeys(texts, bytes))
                if given := [param for param in binding.target.params if param.mode == "inout"]:
                    cursor.execute(*_setting(given, values))
                cursor.execute(*_statement(binding, values))
                while True:
                    names = [column[0] for column in cursor.description or ()]
                    while names and (row := cursor.fetchone()):
                        for name, value in zip(names, row, strict=True):
                            if isinstance(value, bytes) and not _is_utf8(value):
                                raise _TooMuch(store_error(name, problem))
                    if not cursor.nextset():
                        return store_error("of its result", problem)
        finally:
            self.close()  # its converters now return bytes for all text

    def _roll_back(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.rollback()
        except MySQLdb.Error:
            self.close()  # the server rolls back when the connection closes


class _TooMuch(Exception):
    """Ends a call with rows left to read. Carries the error for the caller."""

    def __init__(self, error: BedsError) -> None:
        super().__init__(error)
        self.error = error


def _statement(binding: Binding, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """The statement that calls an object, and its arguments."""
    target = binding.target
    if binding.operation is Operation.CREATE_MANY:
        (name,) = BULK_NAMES & values.keys()
        arguments = [bulk_to_json(values[name], target.columns)]
    elif binding.by_keys:
        arguments = [bulk_to_json(values[KEYS], target.columns)]
    else:
        arguments = [to_sql(p.name, values.get(p.name), p.declared) for p in target.params if p.mode == "in"]
    match target.kind:
        case ObjectKind.PROCEDURE:
            marks = ", ".join("%s" if p.mode == "in" else f"@`beds_{p.name}`" for p in target.params)
            return f"CALL `{target.name}`({marks})", arguments
        case ObjectKind.FUNCTION:
            marks = ", ".join(["%s"] * len(arguments))
            return f"SELECT `{target.name}`({marks}) AS `{target.name}`", arguments
    return f"SELECT * FROM `{target.name}` LIMIT %s", arguments


def _call(cursor: Any, binding: Binding, values: Mapping[str, Any], *, only_reads: bool) -> Outcome:
    """Call the object, and read its result sets, MariaDB's warnings, its OUT parameters and its definition.

    All are asked for in one query, since each query costs a round trip.

    Args:
        cursor: in a transaction, which `only_reads` commits.
        binding, values: what to call.
        only_reads: whether the object changes no data. If it does, the read-only transaction ends with an error.

    Raises:
        DefinitionChanged: the object was replaced since its signature was read.
    """
    target, is_read = binding.target, binding.operation.is_read
    given = [param for param in target.params if param.mode == "inout"]
    back = [param for param in target.params if param.mode != "in"]
    statements = [
        *([("START TRANSACTION READ ONLY", [])] if only_reads else ()),
        *([_setting(given, values)] if given else ()),
        _statement(binding, values),
        *([] if is_read else [("SHOW WARNINGS", [])]),
        *([("SELECT " + ", ".join(f"@`beds_{param.name}`" for param in back), [])] if back else ()),
        *([] if target.kind is ObjectKind.VIEW else [_asking_definition(target.kind, target.name)]),
        *([("COMMIT", [])] if only_reads else ()),
    ]
    cursor.execute("; ".join(text for text, _ in statements), [value for _, of in statements for value in of])
    for _ in range(only_reads + bool(given)):
        cursor.nextset()
    sets, affected = _read_sets(cursor, binding)
    if not is_read:
        cursor.nextset()
        if refusal := _refusal(cursor, binding):
            _drain(cursor)
            raise refusal
    outs: Record = {}
    if back:
        cursor.nextset()
        outs = _out_values(cursor, back, binding)
    if target.kind is not ObjectKind.VIEW:
        cursor.nextset()
        read = _read_definition(cursor, target.name)
        _drain(cursor)
        if definition.stamp(read.sql_mode, read.text) != target.stamp:
            raise DefinitionChanged
    may_report = not is_read and "affected" not in binding.template.fields
    reported = outs.pop("affected", None) if may_report else None
    return Outcome(_joined(binding, sets, outs), affected if reported is None else int(reported), reported is not None)


def _setting(params: Iterable[Param], values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """The statement that sets the user variables of INOUT parameters, which keep the values of the previous call."""
    given = list(params)
    return (
        "SET " + ", ".join(f"@`beds_{p.name}` = %s" for p in given),
        [to_sql(p.name, values.get(p.name), p.declared) for p in given],
    )


def _refusal(cursor: Any, binding: Binding) -> BedsError | None:
    """The error for a value that a write has changed, of which MariaDB only warned."""
    for level, code, message in cursor.fetchall():
        if level == "Note" and not _is_ours(binding.target, message):
            continue  # about a value that the DBA's own expression computed
        if refusal := refused_by_warning(code, message, lambda name: spec_of(binding.template, binding.ref, name)):
            return refusal
    return None


def _is_ours(target: NamedObject, message: str) -> bool:
    """True if a note is about a column that a parameter goes into unchanged. The DBA may round computed values."""
    return column_in(message).lower() in target.fields_of


def _read_sets(cursor: Any, binding: Binding) -> tuple[list[list[Record]], int]:
    """All result sets of one statement, and the number of records changed by the last one that changed any."""
    wanted = len(binding.fetch.results) or 1 if binding.operation is Operation.FETCH else 1
    sets: list[list[Record]] = []
    left = ResultLimit(binding)
    while cursor.description is not None:
        if len(sets) == wanted:
            raise _TooMuch(_surplus_sets(binding, wanted))
        sets.append(_read_set(cursor, binding, left))
        if binding.target.kind is not ObjectKind.PROCEDURE:
            return sets, 0
        cursor.nextset()
    return sets, max(0, cursor.rowcount)  # a CALL ends with this number


def _read_set(cursor: Any, binding: Binding, left: ResultLimit) -> list[Record]:
    names = [column[0] for column in cursor.description]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        problem = f"object {binding.target.name} returns two columns named {twice}; give one another name"
        raise _TooMuch(SchemaMismatch(problem, detail={"object": binding.target.name, "column": twice}))
    columns = [
        reader(name, kind, length, spec_of(binding.template, binding.ref, name), flags)
        for (name, kind, _, length, *_rest), flags in zip(cursor.description, cursor.description_flags, strict=True)
    ]
    found: list[Record] = []
    rows_at_once = 1
    while rows := cursor.fetchmany(rows_at_once):
        try:
            largest = max(map(left.take, rows))
            found += read_rows(names, columns, rows)
        except (ResultTooLarge, StoreError) as error:
            raise _TooMuch(error) from None
        rows_at_once = max(1, min(ROWS_AT_ONCE, RESULT_BYTES // 8 // max(1, largest)))
    return found


def _surplus_sets(binding: Binding, wanted: int) -> SchemaMismatch:
    return SchemaMismatch(
        f"object {binding.target.name} returns more result sets than the {wanted} that its template names",
        detail={"object": binding.target.name, "template": binding.template.name},
        hint='name them in the fetch: results = ["head", "lines"]',
    )


def _out_values(cursor: Any, params: list[Param], binding: Binding) -> Record:
    (row,) = cursor.fetchall()
    specs: list[FieldSpec | None] = [spec_of(binding.template, binding.ref, p.name) for p in params]
    return {
        param.name: None if value is None else out_reader(param.name, SqlType.parse(param.declared), spec)(value)
        for param, spec, value in zip(params, specs, row, strict=True)
    }


def _joined(binding: Binding, sets: list[list[Record]], outs: Record) -> list[Record]:
    """The records of a page: those of the one set, or one record that holds all named sets.

    OUT parameters are added to the first record.
    """
    taken = set(binding.fetch.results) if binding.operation is Operation.FETCH else set()
    if taken or (sets and sets[0]):
        first = dict.fromkeys(taken) or sets[0][0]
        for name in outs.keys() & first.keys():
            if taken or outs[name] != first[name]:
                raise SchemaMismatch(
                    f"object {binding.target.name} returns {name} twice: as a result and as an OUT parameter",
                    detail={"object": binding.target.name, "param": name},
                    hint="give one of them another name",
                )
    if binding.operation is Operation.FETCH and binding.fetch.results:
        named = dict(
            zip(binding.fetch.results, [*sets, *([[]] * (len(binding.fetch.results) - len(sets)))], strict=True)
        )
        return [{**named, **outs}]
    rows = sets[0] if sets else []
    if outs and not (sets and not rows):  # an empty result set stays empty
        rows = [{**(rows[0] if rows else {}), **outs}, *rows[1:]]
    return rows


def _asking_definition(kind: str, name: str) -> tuple[str, list[Any]]:
    return "CALL beds_definition(%s, %s)", [str(kind).upper(), name]


def _definition(cursor: Any, kind: str, name: str) -> Source:
    """A routine's SQL mode and text as they are now."""
    cursor.execute(*_asking_definition(kind, name))
    found = _read_definition(cursor, name)
    _drain(cursor)
    return found


def _read_definition(cursor: Any, name: str) -> Source:
    rows = cursor.fetchall()
    # A row is a dictionary or a tuple, by the cursor's class: the name, the SQL mode, the text.
    (row,) = (tuple(row.values()) if isinstance(row, dict) else row for row in rows)
    if row[2] is None:
        raise SchemaMismatch(
            f"the definition of {name} cannot be read",
            detail={"object": name},
            hint="let the account that runs `beds schema apply` own it, or GRANT SELECT ON mysql.proc to that account",
        )
    return Source(str(row[1]), str(row[2]))


def _is_current(cursor: Any, target: NamedObject) -> bool:
    """True if a routine still has the definition that `target` was read from. A view has no parameters to swap."""
    if target.kind is ObjectKind.VIEW:
        return True
    read = _definition(cursor, target.kind, target.name)
    return definition.stamp(read.sql_mode, read.text) == target.stamp


def _source(cursor: Any, kind: str, name: str) -> Source:
    found = _definition(cursor, kind, name)
    columns: list[Column] = []
    for table in dict.fromkeys([*definition.target_tables(found.code), *definition.source_tables(found.code)]):
        cursor.execute("CALL beds_columns(%s)", [table])
        for place, row in enumerate(cursor.fetchall()):
            declared, collation = SqlType.parse(row["declared"]), str(row["collation"] or "")
            columns.append(Column(table, place, row["name"], declared, collation))
        _drain(cursor)
    return Source(found.sql_mode, found.text, tuple(columns))


def _drain(cursor: Any) -> None:
    """Read the remaining results of a CALL. Otherwise the next statement fails."""
    while cursor.nextset():
        pass


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True

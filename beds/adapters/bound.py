"""The code that all adapters share: binding, parameter values, paging and retries.

Each store implements only `ObjectStore`: it describes named objects and calls one.
"""

from __future__ import annotations

import contextlib
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar

from beds.adapters.ledger import LedgerEntry
from beds.adapters.paging import check_advance, next_cursor, read_cursor
from beds.adapters.store import (
    AlreadyDone,
    CallObject,
    CallsObjects,
    DefinitionChanged,
    IdempotencyRecord,
    ObjectStore,
    Outcome,
    Verify,
    harmless,
    is_harmless,
)
from beds.config.sections import Ledger, Retry
from beds.core.namaste import NamasteCore, Payload, Query
from beds.domain.backoff import Backoff
from beds.domain.description import Description, OperationDescription
from beds.domain.event import Operation
from beds.domain.reply import Page, Record, Response, reply_from_wire
from beds.domain.trace import OK, DatabaseCall, Trace, current_trace
from beds.errors import (
    BedsError,
    DuplicateKey,
    InvalidPayload,
    MissingField,
    NotFound,
    PreconditionFailed,
    SchemaMismatch,
    StoreUnavailable,
    UnknownField,
    WrongType,
    from_wire,
    nearest,
)
from beds.templates.binding import (
    BULK_NAMES,
    GIVEN_FIELDS,
    Binding,
    arguments_of,
    bind,
    is_unfilled,
    may_be_left_out,
    reserved_type,
    spec_of,
)
from beds.templates.fields import fits
from beds.templates.named_object import NamedObject, ObjectKind, Param
from beds.templates.template import EXPECTED_VERSION, ROLES, Template
from beds.wire import codec

T = TypeVar("T")
READINGS = 5
"""Attempts of a call whose object is replaced meanwhile, before it fails."""


class BoundAdapter(NamasteCore):
    """NamasteCore for one template over an `ObjectStore`.

    Args:
        template: the data domain.
        store: the session; shared with the other templates of the store.
        retry: how long transient errors are retried.
        refresh: seconds before signatures are read again, so that the DBA can change an object while workers run.
        ledger_ttl: seconds a ledger entry is kept.
        reads: calls the objects of an application's fetches, such as on a replica; `store` when absent.
    """

    def __init__(
        self,
        template: Template,
        store: ObjectStore,
        retry: Retry,
        refresh: float,
        ledger_ttl: int = Ledger().ttl,
        reads: CallsObjects | None = None,
    ) -> None:
        self._ledger_ttl = ledger_ttl
        self.template = template
        self._store = store
        self._reads = store if reads is None or template.system else reads
        self._retry = retry
        self._refresh = refresh
        self._objects: dict[str, NamedObject] = {}
        self._bindings: dict[str, Binding] = {}
        self._read_at = float("-inf")

    def create_record(self, payload: Payload) -> Response:
        def answer(outcome: Outcome) -> Response:
            record = outcome.rows[0] if outcome.rows else {}
            # A returned record counts as one, unless the object reports a count: INSERT IGNORE may add nothing.
            affected = outcome.affected if outcome.reported else max(outcome.affected, int(bool(record)))
            return Response(self.template.id_of({**payload, **record}), max(affected, 0), record)

        return self._write("create", Operation.CREATE, lambda binding: self._record_values(binding, payload), answer)

    def create_records(self, payloads: Sequence[Payload]) -> Response:
        def answer(outcome: Outcome) -> Response:
            return Response("", min(max(outcome.affected, 0), len(payloads)))

        return self._write("create_many", Operation.CREATE_MANY, lambda b: bulk_values(b, payloads), answer)

    def fetch_records(self, query: Query) -> Page:
        return self._page(query, self._reads)

    def _page(self, query: Query, store: CallsObjects) -> Page:
        binding, outcome = self._call(
            f"fetch.{query.using}", Operation.FETCH, lambda binding: self._query_values(binding, query), store=store
        )
        rows = outcome.rows
        if not binding.pages:
            return Page(tuple(rows), is_cut=_is_cut(binding, query, rows))
        check_advance(binding, query, rows)
        return Page(tuple(rows), next_cursor(binding, query, rows) if len(rows) >= query.limit else "")

    def update_record(self, payload: Payload, expected_version: Any = None) -> Response:
        compares = expected_version is not None
        stored = self._stored_key("update", Operation.UPDATE, payload)
        return self._write(
            "update",
            Operation.UPDATE,
            lambda binding: self._record_values(binding, payload, expected_version),
            lambda outcome: self._changed(outcome, stored, compares=compares),
            compares=compares,
        )

    def delete_record(self, record_id: Any, expected_version: Any = None) -> Response:
        compares = expected_version is not None
        key = self.template.key_values(record_id)
        stored = self._stored_key("delete", Operation.DELETE, key)
        return self._write(
            "delete",
            Operation.DELETE,
            lambda binding: self._key_parameters(binding, key) | self._compared(binding, expected_version),
            lambda outcome: self._changed(outcome, stored, compares=compares),
            compares=compares,
        )

    def check_bindings(self) -> list[SchemaMismatch]:
        """Bind every operation of the template to the live signatures. Returns the mismatches."""
        found = []
        for table, (operation, _) in self.template.refs().items():
            try:
                self._binding(table, operation)
            except SchemaMismatch as mismatch:
                found.append(mismatch)
        return found

    def describe(self) -> Description:
        """What the object of each operation takes, by the live signatures."""
        operations = {}
        for table, (operation, ref) in self.template.refs().items():
            if table in ROLES:
                continue  # only jobs use it
            try:
                operations[table] = _described(self._binding(table, operation))
            except SchemaMismatch as mismatch:
                operations[table] = OperationDescription(str(operation), ref.object, problem=mismatch.message)
        described = {name: asdict(found) for name, found in operations.items()}
        return Description(self.template.name, codec.digest(described), operations)

    def objects_not_strict(self) -> list[str]:
        """The template's objects that truncate values, since they were created without strict mode."""
        if self.template.refs():
            with contextlib.suppress(SchemaMismatch):  # `check_bindings` reports it
                self._binding(*next((table, op) for table, (op, _) in self.template.refs().items()))
        return sorted(name for name, target in self._objects.items() if not target.strict)

    def _binding(self, table: str, operation: Operation) -> Binding:
        if table in ROLES:
            self.template.require(table)
        else:
            self.template.object_for(operation, table.removeprefix("fetch."))  # an unknown name raises its own error
        if time.monotonic() - self._read_at >= self._refresh:
            names = {ref.object for _, ref in self.template.refs().values()}
            self._objects = self._try(lambda: self._store.describe(names), repeatable=True)
            self._bindings = {}
            self._read_at = time.monotonic()
        if table not in self._bindings:
            _, ref = self.template.refs()[table]
            self._bindings[table] = bind(self.template, table, self._objects.get(ref.object))
        return self._bindings[table]

    def _write(
        self,
        table: str,
        operation: Operation,
        values: Callable[[Binding], Mapping[str, Any]],
        answer: Callable[[Outcome], Response],
        *,
        compares: bool = False,
    ) -> Response:
        """Execute a write. Within an event it takes effect once, however often the event is delivered.

        `compares` if it has an expected version: repeated, it would fail, whatever `idempotent` says.
        """
        trace = current_trace()
        ref = self.template.object_for(operation)
        repeatable = ref.idempotent and not compares and not self.template.keeps_changes  # a repeated delete fails
        if trace is None or self.template.system or repeatable:
            # A system template (tickets, telemetry) guards its writes in the command, so it needs no transaction.
            verify = None if self.template.system else answer
            return answer(self._call(table, operation, values, verify=verify)[1])
        entry = LedgerEntry.of(trace)
        once = IdempotencyRecord(entry.key, self._ledger_ttl, lambda outcome: entry.answered(answer(outcome)))
        if trace.redelivered and (earlier := self._recall(entry.before_owners)) is not None:
            return earlier  # stored by a worker of the previous version, whose ledger keys had no owner
        try:
            return answer(self._call(table, operation, values, once)[1])
        except AlreadyDone:
            found = self._recall(entry)
            if found is None:
                raise StoreUnavailable("the ledger changed under a write") from None
            return found
        except StoreUnavailable:
            raise
        except Exception as error:
            # Another delivery of this event may have run first, so this one met a duplicate key or a missing record.
            # The time limit may also have struck after the commit.
            if (found := self._recall(entry)) is not None:
                return found
            if isinstance(error, BedsError) and (found := self._note(entry, error)) is not None:
                return found
            raise

    def _recall(self, entry: LedgerEntry) -> Response | None:
        """The stored reply of an earlier run of the write; None when there is none.

        Raises:
            IdempotencyConflict: the event's guid was used for another write.
            BedsError: the stored reply is this error.
        """
        text = self._try(lambda: self._store.recall(entry.key), repeatable=True)
        if text is None:
            return None
        noted = codec.loads(text)
        if not entry.digest and "digest" in noted:
            return None  # the guid equals the key of a newer entry, which belongs to another event
        entry.check(noted)
        if "error" in noted:
            raise from_wire(noted["error"])
        reply = reply_from_wire(noted["ok"])
        assert isinstance(reply, Response)
        return reply

    def note_failure(self, trace: Trace, error: BedsError) -> Response | None:
        """Store an error as the reply of the write that an event has begun, or was about to begin.

        A redelivery then fails with the same error. It must not succeed after the caller received the error.

        Returns:
            The stored reply, when this write or that of another delivery of the event had committed; else None.
        """
        return self._note(LedgerEntry.of(trace, step=max(1, trace.steps)), error)

    def _note(self, entry: LedgerEntry, error: BedsError) -> Response | None:
        try:
            self._try(lambda: self._store.note(entry.key, self._ledger_ttl, entry.failed(error)), repeatable=True)
        except AlreadyDone:
            return self._recall(entry)  # another delivery of the event stored its reply first
        return None

    def _call(
        self,
        table: str,
        operation: Operation,
        values_for: Callable[[Binding], Mapping[str, Any]],
        once: IdempotencyRecord | None = None,
        verify: Verify | None = None,
        store: CallsObjects | None = None,
    ) -> tuple[Binding, Outcome]:
        """Bind the operation, call its object, and return binding and outcome.

        If the object was replaced since its signature was read, both steps are repeated with the new signature.
        Values are passed by name, so a new order of parameters does no harm.

        Args:
            table, operation: which.
            values_for: called with the binding; returns the value of each parameter that takes one.
            once: the idempotency record of the write.
            verify: called before the commit of a write without `once`.
            store: calls the object; the adapter's own session when absent.
        """
        execute = partial((store or self._store).execute, once=once, verify=verify)
        for _ in range(READINGS):
            fresh = time.monotonic() - self._read_at >= self._refresh
            try:
                binding = self._binding(table, operation)
                return binding, self._call_bound(binding, values_for(binding), execute, once_only=once is not None)
            except DefinitionChanged:
                self._read_at = float("-inf")
            except SchemaMismatch:
                self._read_at = float("-inf")
                if fresh:
                    raise
        raise harmless(StoreUnavailable(f"the object of {table} is being replaced again and again"))

    def _call_bound(
        self, binding: Binding, values: Mapping[str, Any], execute: CallObject, *, once_only: bool
    ) -> Outcome:
        for param in binding.target.params:
            if param.takes_value and not param.whole and values.get(param.name) is not None:
                param.check(param.name, values[param.name])
        idempotent = binding.ref.idempotent and values.get(EXPECTED_VERSION) is None
        try:
            return self._try(
                lambda: self._execute(binding, values, execute),
                repeatable=binding.operation.is_read or idempotent or once_only,
            )
        except (StoreUnavailable, SchemaMismatch):
            raise
        except BedsError as error:
            # After the DBA swapped two parameters, a valid value may break the rule of the other one.
            if binding.target.stamp and self._store.has_changed(binding.target):
                raise DefinitionChanged from None
            field = error.detail.get("field")
            if (isinstance(error, DuplicateKey) and not field) or field == "_id":
                error.detail["field"] = self.template.key_name  # the stores call it PRIMARY, _id
            elif isinstance(error, InvalidPayload) and isinstance(field, str):
                # The database names its column; the caller needs the field whose value went into it.
                own = binding.target.fields_of.get(field.lower(), field)
                error.message = error.message.replace(f"field {field} ", f"field {own} ")
                error.detail["field"] = own
            raise

    def _stored_key(self, table: str, operation: Operation, payload: Payload) -> Record:
        """The stored spelling of the key of the record that a write with `payload` changes.

        A collation may treat another spelling as the same key. If the template has a fetch whose only arguments are
        the key, that fetch looks the spelling up.
        """
        key = {name: payload[name] for name in self.template.keys}
        ignored: set[str] = set()
        for param in self._binding(table, operation).target.params:
            if isinstance(text := key.get(param.name), str):
                # If only trailing spaces are ignored, a key without them is taken as the stored spelling.
                ignored |= param.ignores - (set() if text.endswith(" ") else {"spaces"})
        if not ignored:
            return key
        for name, spec in self.template.fetch.items():
            if spec.cursor or spec.results or spec.internal:
                continue
            try:
                found = self._binding(f"fetch.{name}", Operation.FETCH).target
            except SchemaMismatch:
                continue
            if {p.name for p in found.params if p.takes_value} - {"limit"} == set(self.template.keys):
                try:
                    rows = self._page(Query(name, key, 1), self._store).records
                except BedsError:
                    continue  # BEDS cannot return another column of the record, but may still change the record
                if len(rows) == 1 and all(_may_be(rows[0].get(part), given) for part, given in key.items()):
                    return {part: rows[0][part] for part in key}
        return {
            name: value.rstrip(" ") if isinstance(value, str) and "spaces" in ignored else value
            for name, value in key.items()
        }

    def _execute(self, binding: Binding, values: Mapping[str, Any], execute: CallObject) -> Outcome:
        """Call the object, and record the call in the trace of the current event."""
        trace = None if self.template.system else current_trace()
        if trace is None:
            return execute(binding, values)
        at, clock, rows, outcome = time.time(), time.perf_counter(), 0, OK
        try:
            found = execute(binding, values)
            rows = len(found.rows) if binding.operation.is_read else found.affected
            return found
        except BedsError as error:
            outcome = error.code
            raise
        except AlreadyDone:
            outcome = "repeated"
            raise
        except BaseException:
            outcome = "interrupted"  # by the soft time limit
            raise
        finally:
            seconds = time.perf_counter() - clock
            trace.note(DatabaseCall(binding.target.name, str(self.template.store), at, seconds, rows, outcome))

    def _try(self, action: Callable[[], T], *, repeatable: bool) -> T:
        """Run `action`. Retry it after transient errors, with backoff, until the deadline."""
        trace = current_trace()
        patience = min(self._retry.deadline, trace.patience) if trace else self._retry.deadline
        backoff = Backoff(time.monotonic() + patience, first=self._retry.first_delay)
        in_doubt = False
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                # An attempt whose connection broke may have committed, so later attempts leave the write in doubt.
                in_doubt = in_doubt or not is_harmless(error)
                error.detail["nothing_written"] = not in_doubt
                if (in_doubt and not repeatable) or not backoff.wait():
                    raise

    @staticmethod
    def _key_parameters(binding: Binding, key: Record) -> dict[str, Any]:
        return {p.name: key.get(p.name, p.default) for p in binding.target.params if p.takes_value}

    def _compared(self, binding: Binding, expected_version: Any) -> dict[str, Any]:
        """The value of the parameter `expected_version`, where the object has it. Raises UnknownField: it has not."""
        param = binding.target.param(EXPECTED_VERSION)
        takes = param is not None and param.takes_value
        if param is not None and takes and reserved_type(self.template, binding.operation, binding.ref, param):
            return {EXPECTED_VERSION: param.default if expected_version is None else expected_version}
        if expected_version is not None:
            raise UnknownField(
                f"{binding.operation} of {self.template.name} does not compare versions",
                detail={"field": EXPECTED_VERSION, "template": self.template.name, "object": binding.target.name},
                hint=f"ask the DBA to give {binding.target.name} a parameter {EXPECTED_VERSION}, and to compare it",
            )
        return {}

    def _record_values(self, binding: Binding, payload: Payload, expected_version: Any = None) -> dict[str, Any]:
        values = self._compared(binding, expected_version)
        taken: set[str] = set()
        for param in binding.target.params:
            if not param.takes_value or param.name in values:
                continue
            if reserved_type(self.template, binding.operation, binding.ref, param):
                if param.name == GIVEN_FIELDS:
                    values[param.name] = list(payload)
                    continue
                rest = {k: v for k, v in payload.items() if k not in self.template.keys or param.name == "document"}
                values[param.name] = rest
                taken |= rest.keys()
            elif is_unfilled(self.template, binding.operation, binding.ref, param):
                values[param.name] = param.default
            else:
                if param.name in payload or not self._may_be_left(binding):
                    values[param.name] = payload.get(param.name, param.default)
                taken.add(param.name)
        for name in payload:
            if name not in taken:
                raise UnknownField(
                    f"{binding.operation} of {self.template.name} does not take the field {name}",
                    detail={"field": name, "object": binding.target.name},
                    hint="leave it out, or ask the DBA to give the object a parameter for it",
                )
        return values

    @staticmethod
    def _may_be_left(binding: Binding) -> bool:
        """True for an update by a stored command, which sets only the fields it receives."""
        return binding.operation is Operation.UPDATE and bool(binding.target.command)

    def _query_values(self, binding: Binding, query: Query) -> dict[str, Any]:
        after = {f"after_{name}": value for name, value in read_cursor(binding, query).items()}
        return self._fetch_values(binding, query, {"limit": query.limit, **after})

    def _fetch_values(self, binding: Binding, query: Query, reserved: Mapping[str, Any]) -> dict[str, Any]:
        """The value of each parameter of a fetch; `reserved` has those of reserved names."""
        values: dict[str, Any] = {}
        for param in binding.target.params:
            if reserved_type(self.template, Operation.FETCH, binding.ref, param):
                values[param.name] = reserved.get(param.name, param.default)
            elif not param.takes_value:
                continue
            elif param.name in query.args:
                values[param.name] = self._argument(binding, param, query.args[param.name])
            elif may_be_left_out(self.template, binding.fetch, param):
                values[param.name] = param.default
            else:
                raise MissingField(
                    f"fetch {query.using} of {self.template.name} needs the argument {param.name}",
                    detail={"field": param.name, "using": query.using},
                )
        own = [
            param.name
            for param in binding.target.params
            if param.name in values and not reserved_type(self.template, Operation.FETCH, binding.ref, param)
        ]
        for name in query.args:
            if name not in own:
                raise UnknownField(
                    f"fetch {query.using} of {self.template.name} has no argument {name!r}{nearest(name, own)}",
                    detail={"field": name, "using": query.using, "known": own},
                    hint=f"its arguments: {', '.join(own) or '(none)'}",
                )
        return values

    def _argument(self, binding: Binding, param: Param, value: Any) -> Any:
        """Check an argument that the template does not declare against the type of the object's parameter."""
        known = spec_of(self.template, binding.ref, param.name)
        if value is not None and known is None and not any(fits(name, value) for name in param.types):
            raise WrongType(
                f"argument {param.name} takes {param.declared}, not {type(value).__name__}",
                detail={"field": param.name, "declared": param.declared},
            )
        return value

    def _changed(self, outcome: Outcome, key: Record, *, compares: bool) -> Response:
        """The response to an update or delete of the record with this key. A key that the object returns wins."""
        # A row with a field of the template proves that the record was found; a count or a message does not. It does
        # not prove that the record had the expected version: a procedure may update, and then select.
        known = self.template.fields.keys()
        returned = not (outcome.reported or compares) and any(
            row.get(name) is not None for row in outcome.rows for name in known & row.keys()
        )
        if outcome.affected <= 0 and not returned:
            shown = self.template.shown_id(key)
            missing = f"{self.template.name} has no record with {self.template.key_name} = {shown}"
            detail = {"template": self.template.name, "record_id": shown}
            if compares:
                raise PreconditionFailed(
                    f"{missing} and the expected version", detail={**detail, "field": self.template.version}
                )
            raise NotFound(missing, detail=detail)
        record = outcome.rows[0] if outcome.rows else {}
        own_key = {name: record[name] for name in key if record.get(name) is not None}
        return Response(self.template.id_of({**key, **own_key}), max(outcome.affected, 1), record)


def _is_cut(binding: Binding, query: Query, rows: Sequence[Record]) -> bool:
    """True if the object returned as many records as BEDS's limit lets it, in one of its result sets at least."""
    limit = binding.target.param("limit")
    if limit is None or not reserved_type(binding.template, Operation.FETCH, binding.ref, limit):
        return False
    results = binding.fetch.results
    sets = [row[name] for row in rows for name in results if row.get(name)] if results else [rows]
    return any(len(found) >= query.limit for found in sets)


def _described(binding: Binding) -> OperationDescription:
    target = binding.target
    found = OperationDescription(str(binding.operation), target.name, str(target.kind), target.description)
    if binding.operation is not Operation.FETCH:
        return found
    fetch = binding.fetch
    return replace(
        found,
        args=arguments_of(binding.template, fetch, target.params),
        pages=binding.pages,
        limit=fetch.limit,
        max_limit=fetch.max_limit,
        results=_results(binding),
    )


def _results(binding: Binding) -> tuple[str, ...]:
    """What a fetch returns, where the database declares it."""
    target = binding.target
    if target.kind not in (ObjectKind.FIND, ObjectKind.VIEW) or "projection" in target.command:
        return target.results
    stored = target.shape.get("properties") or {}
    keys = binding.template.keys if "_id" in stored else ()
    return target.results or (*keys, *(name for name in stored if name not in ("_id", *keys)))


def bulk_values(binding: Binding, payloads: Sequence[Payload]) -> dict[str, Any]:
    """The value of a bulk object's parameter: the records, checked."""
    (bulk,) = (p.name for p in binding.target.params if p.name in BULK_NAMES)
    _check_bulk(binding.target, payloads)
    return {bulk: [dict(p) for p in payloads]}


def _check_bulk(target: NamedObject, payloads: Sequence[Payload]) -> None:
    """Refuse values that the bulk object would change, and fields that it does not read."""
    kept = {
        name
        for name, param in target.columns.items()
        if param.keeps_all([payload[name] for payload in payloads if name in payload])
    }
    for index, payload in enumerate(payloads):
        for name, value in payload.items():
            if value is None or name in kept:
                continue
            if (param := target.columns.get(name)) is None:
                if target.reads_all:
                    continue
                raise UnknownField(
                    f"payloads[{index}]: object {target.name} does not read the field {name}",
                    detail={"field": name, "where": f"payloads[{index}]", "object": target.name},
                    hint="leave it out, or ask the DBA to read it in JSON_TABLE",
                )
            try:
                param.check(name, value)
            except InvalidPayload as error:
                error.detail["where"] = f"payloads[{index}]"
                error.message = f"payloads[{index}]: {error.message}"
                raise


def _may_be(stored: Any, given: Any) -> bool:
    """True when both are spellings of one key. A collation ignores case, accents and trailing spaces at most."""
    if isinstance(stored, str) and isinstance(given, str):
        return _plainest(stored) == _plainest(given)
    return stored is not None and bool(stored == given)


def _plainest(text: str) -> str:
    parts = unicodedata.normalize("NFKD", text.rstrip(" ").casefold())
    return "".join(c for c in parts if not unicodedata.combining(c))

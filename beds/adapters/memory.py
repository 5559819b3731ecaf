"""NamasteCore without a server, for unit tests of code that uses BEDS."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from beds.adapters.bulk import BulkAdapter
from beds.adapters.store import AlreadyDone, Health, IdempotencyRecord, Outcome, Position, Verify, Work
from beds.config.sections import Retry
from beds.domain.clock import now, to_millisecond
from beds.domain.event import Operation, Store
from beds.domain.identity import ObjectId, uuid7
from beds.domain.reply import Record
from beds.errors import DuplicateKey
from beds.templates.binding import BY_KEYS, KEYS, Binding
from beds.templates.fields import FIELD_TYPES
from beds.templates.named_object import NamedObject, ObjectKind, Param
from beds.templates.template import COMPARING, EXPECTED_VERSION, FetchSpec, Template

Stub = Callable[[dict[Any, Record], Mapping[str, Any]], Iterable[Record]]
"""Replaces a named object. Called with the template's records by key and the arguments; returns records."""

_KINDS = {
    Store.REC: {
        Operation.CREATE: ObjectKind.INSERT,
        Operation.CREATE_MANY: ObjectKind.INSERT_MANY,
        Operation.UPDATE: ObjectKind.UPDATE,
        Operation.DELETE: ObjectKind.DELETE,
        Operation.FETCH: ObjectKind.FIND,
    },
    Store.REL: dict.fromkeys(Operation, ObjectKind.PROCEDURE),
}
_ANY = frozenset(FIELD_TYPES)


class MemoryStore:
    """An `ObjectStore` over a dictionary of one template's records.

    Every object that the template names exists. A fetch returns the records whose fields equal its arguments, in the
    order of its cursor fields or else of the key. A stub replaces this for one fetch. Updates and deletes compare the
    expected version, and each write changes the version.

    Args:
        template: the data domain.
        stubs: by object name, functions that replace named objects of fetches.
    """

    def __init__(self, template: Template, stubs: Mapping[str, Stub] | None = None) -> None:
        self.records: dict[Any, Record] = {}
        self._template = template
        self._stubs = dict(stubs or {})
        self._next_id = 1
        self._writes = 0
        self._ledger: dict[str, str] = {}

    def position(self) -> Position:
        return {}

    def takes_writes(self) -> bool:
        return True

    def describe(self, names: Iterable[str]) -> dict[str, NamedObject]:
        wanted = set(names)
        return {
            ref.object: NamedObject(
                ref.object, _KINDS[self._template.store][operation], self._params(table, operation, ref)
            )
            for table, (operation, ref) in self._template.refs().items()
            if ref.object in wanted
        }

    def execute(
        self,
        binding: Binding,
        values: Mapping[str, Any],
        once: IdempotencyRecord | None = None,
        verify: Verify | None = None,
    ) -> Outcome:
        if once is None and verify is None:
            return self._execute(binding, values)
        before = copy.deepcopy(self.records)
        try:
            outcome = self._execute(binding, values)
            if once is not None:
                self._note_once(once, outcome)
            elif verify is not None:
                verify(outcome)
        except BaseException:
            self.records = before
            raise
        return outcome

    def transact(self, work: Work, once: IdempotencyRecord) -> None:
        before = copy.deepcopy(self.records)
        try:
            self._note_once(once, work(self._execute))
        except BaseException:
            self.records = before
            raise

    def _note_once(self, once: IdempotencyRecord, outcome: Outcome) -> None:
        """Note the entry after the write, as both databases do."""
        answer = once.answer(outcome)
        if once.guid in self._ledger:
            raise AlreadyDone
        self._ledger[once.guid] = answer

    def recall(self, guid: str) -> str | None:
        return self._ledger.get(guid)

    def note(self, guid: str, ttl: int, answer: str) -> None:
        if self._ledger.setdefault(guid, answer) is not answer:
            raise AlreadyDone

    def _execute(self, binding: Binding, values: Mapping[str, Any]) -> Outcome:
        if binding.by_keys:
            return self._by_keys(binding, values[KEYS])
        match binding.operation:
            case Operation.FETCH:
                return Outcome(self._fetch(binding, values))
            case Operation.CREATE:
                return Outcome([self._insert([values["document"]])], 1)
            case Operation.CREATE_MANY:
                self._insert(values["documents"])
                return Outcome([], len(values["documents"]))
            case Operation.UPDATE:
                record = self._expected(self._key(values["document"]), values)
                if record is not None:
                    record.update(copy.deepcopy(values["document"]))
                    self._count_version(record)
                return Outcome([], int(record is not None))
            case Operation.DELETE:
                key = self._key(values)
                if self._expected(key, values) is None:
                    return Outcome([], 0)
                del self.records[key]
                return Outcome([], 1)

    def _expected(self, key: Any, values: Mapping[str, Any]) -> Record | None:
        """The record with this key; None if there is none, or if it has not the expected version."""
        record, expected, version = self.records.get(key), values.get(EXPECTED_VERSION), self._template.version
        if record is None or version is None or expected is None:
            return record
        return record if record.get(version) == expected else None

    def _count_version(self, record: Record) -> None:
        """Give a written record its next version, or a new record its first one."""
        name = self._template.version
        if name is None:
            return
        before = record.get(name)
        self._writes += 1
        match self._template.fields[name].type:
            case "integer":
                record[name] = 0 if before is None else before + 1
            case "string":
                record[name] = str(self._writes)
            case "bytes":
                record[name] = self._writes.to_bytes(8)
            case "uuid":
                record[name] = uuid7()
            case "object_id":
                record[name] = ObjectId.generate()
            case _:
                at = to_millisecond(now())
                record[name] = at if before is None else max(at, before + timedelta(milliseconds=1))

    def _by_keys(self, binding: Binding, keys: Iterable[Record]) -> Outcome:
        found = [key for key in map(self._key, keys) if key in self.records]
        if binding.operation.is_read:
            return Outcome([copy.deepcopy(self.records[key]) for key in found])
        for key in found:
            del self.records[key]
        return Outcome([], len(found))

    def examine(self) -> Health:
        return Health(datetime.now(UTC), transactions=True, surplus=())

    def close(self) -> None:
        self.records.clear()

    def has_changed(self, target: NamedObject) -> bool:
        return False

    def _key(self, record: Mapping[str, Any]) -> Any:
        """A record's key in `records`: the key field's value, or a tuple for a composite key."""
        parts = self._template.key_of(record)
        return parts[0] if len(parts) == 1 else parts

    def _insert(self, documents: Iterable[Record]) -> Record:
        """Add all documents or none. Returns the key fields of the last one."""
        new: dict[Any, Record] = {}
        made: Record = {}
        for document in documents:
            record = {**dict.fromkeys(self._template.fields), **copy.deepcopy(document)}
            (first, *_) = self._template.keys
            if record[first] is None:
                record[first], self._next_id = self._next_id, self._next_id + 1
            if self._template.version is not None and record[self._template.version] is None:
                self._count_version(record)
            key = self._key(record)
            if key in self.records or key in new:
                name = self._template.key_name
                raise DuplicateKey(f"a record with this {name} exists", detail={"field": name})
            new[key] = record
            made = {name: record[name] for name in self._template.keys}
        self.records |= new
        return made

    def _fetch(self, binding: Binding, values: Mapping[str, Any]) -> list[Record]:
        order = binding.fetch.cursor or self._template.keys
        stub = self._stubs.get(binding.target.name)
        bounds = {f"{bound}_{name}" for bound in ("after", "until") for name in binding.fetch.cursor}
        asked = {k: v for k, v in values.items() if k != "limit" and k not in bounds and v is not None}
        found = stub(self.records, asked) if stub else self._matching(asked)
        rows = sorted(found, key=lambda r: tuple(r[name] for name in order))
        if binding.pages and values[f"after_{order[0]}"] is not None:
            after = tuple(values[f"after_{name}"] for name in order)
            rows = [r for r in rows if tuple(r[name] for name in order) > after]
        if binding.fetch.range and values[f"until_{order[0]}"] is not None:
            until = tuple(values[f"until_{name}"] for name in order)
            rows = [r for r in rows if tuple(r[name] for name in order) <= until]
        return copy.deepcopy(rows[: values["limit"]])

    def _matching(self, asked: Mapping[str, Any]) -> Iterable[Record]:
        return [r for r in self.records.values() if all(r.get(name) == value for name, value in asked.items())]

    def _params(self, table: str, operation: Operation, ref: Any) -> tuple[Param, ...]:
        if table in BY_KEYS:
            return (Param(KEYS, _ANY, "any"),)
        match operation:
            case Operation.CREATE | Operation.UPDATE:
                names = ["document"] if operation is Operation.CREATE else [*self._template.keys, "document"]
            case Operation.CREATE_MANY:
                names = ["documents"]
            case Operation.DELETE:
                names = list(self._template.keys)
            case Operation.FETCH:
                assert isinstance(ref, FetchSpec)
                names = [*self._template.fields, *ref.args, *(f"after_{name}" for name in ref.cursor), "limit"]
                if ref.range:
                    names += [f"until_{name}" for name in ref.cursor]
        if operation in COMPARING and self._template.expected_version is not None:
            names.append(EXPECTED_VERSION)
        whole = {"document"} if operation in (Operation.CREATE, Operation.UPDATE) else set()
        return tuple(Param(name, _ANY, "any", optional=True, whole=name in whole) for name in dict.fromkeys(names))


class MemoryAdapter(BulkAdapter):
    """NamasteCore over a `MemoryStore`."""

    def __init__(self, template: Template, stubs: Mapping[str, Stub] | None = None) -> None:
        super().__init__(template, MemoryStore(template, stubs), Retry(), refresh=float("inf"))

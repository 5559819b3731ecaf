"""What jobs do with many records of one template: read a range, load, read by keys, and remove what is unchanged.

Each write notes its answer under a ledger key in its own transaction, so that a repeated step finds what it did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from beds.adapters.bound import READINGS, BoundAdapter, bulk_values
from beds.adapters.store import CallObject, DefinitionChanged, IdempotencyRecord, Outcome, harmless
from beds.core.namaste import Query
from beds.domain.event import Operation
from beds.domain.reply import Record
from beds.errors import SchemaMismatch, StoreError, StoreUnavailable
from beds.templates.binding import KEYS, Binding
from beds.wire import codec

Key = tuple[Any, ...]
"""The values of a record's key, in the template's order."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of records that were to be removed.

    Args:
        removed: how many were removed.
        changed: keys of records that another client changed meanwhile; they stay.
        gone: keys of records that another client deleted meanwhile.
    """

    removed: int
    changed: tuple[Key, ...] = ()
    gone: tuple[Key, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        changed, gone = [list(key) for key in self.changed], [list(key) for key in self.gone]
        return {"removed": self.removed, "changed": changed, "gone": gone}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Removal:
        return cls(wire["removed"], _keys(wire["changed"]), _keys(wire["gone"]))


class BulkAdapter(BoundAdapter):
    """NamasteCore, and the bulk operations of jobs."""

    def read_range(
        self, using: str, args: Mapping[str, Any], after: Sequence[Any] | None, until: Sequence[Any] | None, limit: int
    ) -> list[Record]:
        """Records of a range, in the order of the cursor.

        Args:
            using: a fetch with `range = true`.
            args: its arguments, by name.
            after, until: the cursor fields' values of the records before the range and at its end; None for no bound.
            limit: the most records.
        """
        cursor = self.template.fetch_spec(using).cursor
        reserved: dict[str, Any] = {"limit": limit}
        for bound, values in (("after", after), ("until", until)):
            if values is not None:
                reserved |= {f"{bound}_{name}": value for name, value in zip(cursor, values, strict=True)}
        query = Query(using, args, limit)
        return self._call(f"fetch.{using}", Operation.FETCH, lambda b: self._fetch_values(b, query, reserved))[1].rows

    def read_once(self, table: str, args: Mapping[str, Any]) -> list[Record]:
        """The records that `[estimate]`, `[digest]`, `[job_load]` or a fetch returns."""
        query = Query(table, args, 1)
        return self._call(table, Operation.FETCH, lambda b: self._fetch_values(b, query, {}))[1].rows

    def read_by_keys(self, records: Iterable[Record]) -> dict[Key, Record]:
        """The stored records with the keys of `records`, by key."""
        keys = self.template.keys
        wanted = [{name: record[name] for name in keys} for record in records]
        if not wanted:
            return {}
        rows = self._call("by_keys", Operation.FETCH, lambda _: {KEYS: wanted})[1].rows
        return self._by_key(rows)

    def load(self, records: Sequence[Record], step: str) -> None:
        """Insert records with their keys: all of them, or none and an error. The ledger notes the keys.

        Args:
            records: checked against the template.
            step: the ledger key.

        Raises:
            AlreadyDone: the ledger has the step.
            DuplicateKey, InvalidPayload, …: a record was refused.
        """

        def answer(outcome: Outcome) -> str:
            if outcome.affected != len(records):
                raise StoreError(
                    f"the load object of {self.template.name} inserted {outcome.affected} of {len(records)} records",
                    hint="let it be a plain INSERT, without IGNORE, REPLACE or a condition",
                )
            return codec.dumps([list(self.template.key_of(record)) for record in records]).decode()

        once = IdempotencyRecord(step, self._ledger_ttl, answer)
        self._call("load", Operation.CREATE_MANY, lambda binding: bulk_values(binding, records), once)

    def remove_unchanged(
        self, expected: Mapping[Key, Record], others: Iterable[Key], step: str, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Remove the records that are as expected, in one transaction that locks them first.

        Args:
            expected: what each record must be, by key; any other content counts as changed.
            others: keys of records that are not removed; they count as changed, or as gone.
            step: the ledger key.
            more: noted beside the removal.

        Returns:
            What was noted: `more`, and the removal's `to_wire`.

        Raises:
            AlreadyDone: the ledger has the step.
        """
        names = self.template.keys
        wanted = [dict(zip(names, key, strict=True)) for key in dict.fromkeys([*expected, *others])]
        found: dict[str, Any] = {}

        def work(call: Callable[[str, Mapping[str, Any]], Outcome]) -> Outcome:
            stored = self._by_key(call("by_keys", {KEYS: wanted}).rows) if wanted else {}
            same = [key for key, record in expected.items() if stored.get(key) == record]
            changed = tuple(key for key in stored if key not in expected or stored[key] != expected[key])
            gone = tuple(key for key in (tuple(k[name] for name in names) for k in wanted) if key not in stored)
            removed = 0
            if same:
                outcome = call("remove_many", {KEYS: [dict(zip(names, key, strict=True)) for key in same]})
                removed = outcome.affected
                if removed != len(same):
                    raise StoreError(
                        f"the remove_many object of {self.template.name} removed {removed} of {len(same)} records",
                        hint="let it delete each record whose key it is given",
                    )
            found.clear()
            found.update(more, **Removal(removed, changed, gone).to_wire())
            return Outcome([], removed)

        self._transact(("by_keys", "remove_many"), work, step, lambda _: codec.dumps(found).decode())
        return found

    def remove(self, keys: Sequence[Key], step: str) -> None:
        """Remove the records of some keys; a missing one does no harm. Raises AlreadyDone."""
        names = self.template.keys
        wanted = [dict(zip(names, key, strict=True)) for key in keys]
        once = IdempotencyRecord(step, self._ledger_ttl, lambda outcome: str(outcome.affected))
        self._call("remove_many", Operation.DELETE, lambda _: {KEYS: wanted}, once)

    def noted(self, step: str) -> Any:
        """The ledger's entry of a step; None if there is none."""
        text = self._try(lambda: self._store.recall(step), repeatable=True)
        return None if text is None else codec.loads(text)

    def note(self, step: str, value: Any) -> None:
        """Note a step that changed nothing. Raises AlreadyDone: the ledger has it."""
        text = codec.dumps(value).decode()
        self._try(lambda: self._store.note(step, self._ledger_ttl, text), repeatable=True)

    def check_tables(self, tables: Iterable[str]) -> None:
        """Bind the tables that a job needs. Raises TemplateError, SchemaMismatch."""
        for table in tables:
            if table.startswith("fetch."):
                self._binding(table, Operation.FETCH)
            else:
                self._binding(table, self.template.require(table))

    def _by_key(self, rows: Iterable[Record]) -> dict[Key, Record]:
        return {self.template.key_of(row): row for row in rows}

    def _transact(
        self,
        tables: Sequence[str],
        work: Callable[[Callable[[str, Mapping[str, Any]], Outcome]], Outcome],
        step: str,
        answer: Callable[[Outcome], str],
    ) -> None:
        """Call several objects in one transaction; repeat it when an object was replaced meanwhile."""
        once = IdempotencyRecord(step, self._ledger_ttl, answer)
        for _ in range(READINGS):
            try:
                bindings: dict[str, Binding] = {t: self._binding(t, self.template.require(t)) for t in tables}

                def run(call: CallObject, bindings: dict[str, Binding] = bindings) -> Outcome:
                    return work(lambda table, values: call(bindings[table], values))

                self._try(lambda run=run: self._store.transact(run, once), repeatable=True)  # type: ignore[misc]
                return
            except DefinitionChanged:
                self._read_at = float("-inf")
            except SchemaMismatch:
                if time.monotonic() - self._read_at < 1:
                    raise
                self._read_at = float("-inf")
        raise harmless(StoreUnavailable(f"the objects of {self.template.name} are being replaced again and again"))


def _keys(wire: Iterable[Iterable[Any]]) -> tuple[Key, ...]:
    return tuple(tuple(key) for key in wire)

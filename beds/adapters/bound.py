"""What all adapters share: binding, filling parameters, paging, and trying again.

A store's own adapter says only how to describe objects and how to call one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from beds.adapters.paging import next_cursor, read_cursor
from beds.adapters.store import AlreadyDone, ObjectStore, Once, Outcome, check_param, is_harmless
from beds.config.sections import Ledger, Retry
from beds.core.namaste import NamasteCore, Payload, Query
from beds.domain.event import Operation
from beds.domain.reply import Page, Response, reply_from_wire
from beds.domain.trace import OK, DatabaseCall, current_trace
from beds.errors import (
    BedsError,
    DuplicateKey,
    MissingField,
    NotFound,
    SchemaMismatch,
    StoreUnavailable,
    UnknownField,
    from_wire,
    nearest,
)
from beds.templates.binding import BULK_NAMES, Binding, bind, reserved_type
from beds.templates.named_object import NamedObject
from beds.templates.template import Template
from beds.transport import codec

T = TypeVar("T")


class BoundAdapter(NamasteCore):
    """NamasteCore for one template over an `ObjectStore`.

    Args:
        template: the data domain.
        store: the session; shared with the other templates of the store.
        retry: how long transient errors are tried again.
        refresh: seconds a signature is trusted before it is read again, so that the DBA may change an object
            while workers run.
        ledger_ttl: seconds it is remembered that an event was carried out.
    """

    def __init__(
        self, template: Template, store: ObjectStore, retry: Retry, refresh: float, ledger_ttl: int = Ledger().ttl
    ) -> None:
        self._ledger_ttl = ledger_ttl
        self.template = template
        self._store = store
        self._retry = retry
        self._refresh = refresh
        self._objects: dict[str, NamedObject] = {}
        self._read_at = float("-inf")

    def create_record(self, payload: Payload) -> Response:
        binding = self._binding("create", Operation.CREATE)

        def answer(outcome: Outcome) -> Response:
            record = outcome.rows[0] if outcome.rows else {}
            key = record.get(self.template.key, payload.get(self.template.key))
            return Response("" if key is None else str(key), max(outcome.affected, 1), record)

        return self._write(binding, self._record_values(binding, payload), answer)

    def create_records(self, payloads: Sequence[Payload]) -> Response:
        binding = self._binding("create_many", Operation.CREATE_MANY)
        (bulk,) = (p.name for p in binding.target.params if p.name in BULK_NAMES)
        return self._write(binding, {bulk: [dict(p) for p in payloads]}, lambda _: Response("", len(payloads)))

    def fetch_records(self, query: Query) -> Page:
        binding = self._binding(f"fetch.{query.using}", Operation.FETCH)
        rows = self._call(binding, self._query_values(binding, query)).rows
        if not binding.pages:
            return Page(tuple(rows))
        return Page(tuple(rows), next_cursor(binding, query, rows) if len(rows) >= query.limit else "")

    def update_record(self, payload: Payload) -> Response:
        binding = self._binding("update", Operation.UPDATE)
        values = self._record_values(binding, payload)
        return self._write(binding, values, lambda outcome: self._changed(outcome, payload[self.template.key]))

    def delete_record(self, record_id: Any) -> Response:
        binding = self._binding("delete", Operation.DELETE)
        return self._write(binding, {self.template.key: record_id}, lambda outcome: self._changed(outcome, record_id))

    def check_bindings(self) -> list[SchemaMismatch]:
        """Bind every operation of the template against the live signatures; what does not fit."""
        found = []
        for table, (operation, _) in self.template.refs().items():
            try:
                self._binding(table, operation)
            except SchemaMismatch as mismatch:
                found.append(mismatch)
        return found

    def _binding(self, table: str, operation: Operation) -> Binding:
        self.template.object_for(operation, table.removeprefix("fetch."))  # an unknown name gets its own error
        if time.monotonic() - self._read_at >= self._refresh:
            names = {ref.object for _, ref in self.template.refs().values()}
            self._objects = self._try(lambda: self._store.describe(names), repeatable=True)
            self._read_at = time.monotonic()
        _, ref = self.template.refs()[table]
        return bind(self.template, table, self._objects.get(ref.object))

    def _write(self, binding: Binding, values: Mapping[str, Any], answer: Callable[[Outcome], Response]) -> Response:
        """Carry out a write; in the course of an event once, however often the event is delivered."""
        trace = current_trace()
        if trace is None or self.template.system or binding.ref.idempotent:
            return answer(self._call(binding, values))
        guid = trace.lineage.guid
        once = Once(guid, self._ledger_ttl, lambda outcome: _noted(answer(outcome)))
        try:
            return answer(self._call(binding, values, once))
        except AlreadyDone:
            found = self._recall(guid)
            if found is None:
                raise StoreUnavailable("the ledger changed under a write") from None
            return found
        except StoreUnavailable:
            raise
        except Exception as error:
            # A copy of this event may have gone before, and taken the key or the record that was missed here; or the
            # time was up after the commit.
            if (found := self._recall(guid)) is not None:
                return found
            if isinstance(error, BedsError) and (found := self.note_failure(guid, error)) is not None:
                return found
            raise

    def _recall(self, guid: str) -> Response | None:
        """What an event was answered before. Raises the error that it was answered with."""
        text = self._try(lambda: self._store.recall(guid), repeatable=True)
        if text is None:
            return None
        noted = codec.loads(text)
        if "error" in noted:
            raise from_wire(noted["error"])
        reply = reply_from_wire(noted["ok"])
        assert isinstance(reply, Response)
        return reply

    def note_failure(self, guid: str, error: BedsError) -> Response | None:
        """A refusal is an answer, too: delivered again, the event must not succeed after its caller was told of it.

        Returns:
            What another copy of the event was answered, when that came first.
        """
        text = codec.dumps({"error": error.to_wire()}).decode()
        try:
            self._try(lambda: self._store.note(guid, self._ledger_ttl, text), repeatable=True)
        except AlreadyDone:
            return self._recall(guid)  # a copy of the same event had its end at the same moment
        return None

    def _call(self, binding: Binding, values: Mapping[str, Any], once: Once | None = None) -> Outcome:
        for param in binding.target.params:
            if param.mode == "in" and values.get(param.name) is not None:
                check_param(param, values[param.name])
        try:
            return self._try(
                lambda: self._execute(binding, values, once),
                repeatable=binding.operation.is_read or binding.ref.idempotent or once is not None,
            )
        except DuplicateKey as error:
            error.detail["field"] = error.detail.get("field") or self.template.key  # the stores call it PRIMARY, _id
            raise
        except SchemaMismatch:
            self._read_at = float("-inf")  # the object changed under us: look again at the next call
            raise

    def _execute(self, binding: Binding, values: Mapping[str, Any], once: Once | None) -> Outcome:
        """Call the object, and note the call in the trace of the event that asks for it."""
        trace = None if self.template.system else current_trace()
        if trace is None:
            return self._store.execute(binding, values, once)
        at, clock, rows, outcome = time.time(), time.perf_counter(), 0, OK
        try:
            found = self._store.execute(binding, values, once)
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
        """Run `action`; after a transient error again, with backoff, until the deadline."""
        deadline = time.monotonic() + self._retry.deadline
        delay = self._retry.first_delay
        in_doubt = False
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                # An attempt whose connection broke may have had its effect, whatever the later ones say.
                in_doubt = in_doubt or not is_harmless(error)
                error.detail["nothing_written"] = not in_doubt
                if (in_doubt and not repeatable) or time.monotonic() + delay > deadline:
                    raise
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, 1.0)

    def _record_values(self, binding: Binding, payload: Payload) -> dict[str, Any]:
        values: dict[str, Any] = {}
        taken: set[str] = set()
        for param in binding.target.params:
            if param.mode == "out":
                continue
            if reserved_type(self.template, binding.operation, binding.ref, param.name):
                rest = {k: v for k, v in payload.items() if k != self.template.key or param.name == "document"}
                values[param.name] = rest
                taken |= rest.keys()
            else:
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

    def _query_values(self, binding: Binding, query: Query) -> dict[str, Any]:
        after = read_cursor(binding, query)
        values: dict[str, Any] = {}
        for param in binding.target.params:
            if param.name == "limit" and "limit" not in binding.fetch.args:
                values["limit"] = query.limit
            elif reserved_type(self.template, Operation.FETCH, binding.ref, param.name):
                values[param.name] = after.get(param.name.removeprefix("after_"), param.default)
            elif param.name in query.args:
                values[param.name] = query.args[param.name]
            elif param.optional or param.name in binding.fetch.optional:
                values[param.name] = param.default
            elif param.mode == "in":
                raise MissingField(
                    f"fetch {query.using} of {self.template.name} needs the argument {param.name}",
                    detail={"field": param.name, "using": query.using},
                )
        own = [n for n in values if not reserved_type(self.template, Operation.FETCH, binding.ref, n)]
        for name in query.args:
            if name not in own:
                raise UnknownField(
                    f"fetch {query.using} of {self.template.name} has no argument {name!r}{nearest(name, own)}",
                    detail={"field": name, "using": query.using, "known": own},
                    hint=f"its arguments: {', '.join(own) or '(none)'}",
                )
        return values

    def _changed(self, outcome: Outcome, key: Any) -> Response:
        if not outcome.affected and not outcome.rows:
            shown = "•••" if self.template.fields[self.template.key].sensitive else str(key)
            raise NotFound(
                f"{self.template.name} has no record with {self.template.key} = {shown}",
                detail={"template": self.template.name, "record_id": shown},
            )
        return Response(str(key), max(outcome.affected, 1), outcome.rows[0] if outcome.rows else {})


def _noted(response: Response) -> str:
    return codec.dumps({"ok": response.to_wire()}).decode()

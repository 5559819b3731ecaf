"""What all adapters share: binding, filling parameters, paging, and trying again.

A store's own adapter says only how to describe objects and how to call one.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol, TypeVar

from beds.config.sections import Retry
from beds.core.namaste import NamasteCore, Payload, Query
from beds.domain.event import Operation
from beds.domain.reply import Page, Record, Response
from beds.domain.trace import OK, DatabaseCall, current_trace
from beds.errors import (
    BedsError,
    DuplicateKey,
    InvalidCursor,
    MissingField,
    NotFound,
    OutOfRange,
    SchemaMismatch,
    StoreUnavailable,
    TooLong,
    UnknownField,
    nearest,
)
from beds.templates.binding import BULK_NAMES, Binding, bind, reserved_type
from beds.templates.fields import check_decimal
from beds.templates.named_object import NamedObject, Param
from beds.templates.template import Template
from beds.transport import codec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a named object gave back: its rows, OUT parameters among them, and how many records it changed."""

    rows: list[Record] = field(default_factory=list)
    affected: int = 0


class ObjectStore(Protocol):
    """A session with one database: it describes named objects and calls them. Used by one thread at a time."""

    def describe(self, names: Iterable[str]) -> dict[str, NamedObject]:
        """The signatures of those objects that exist and that this user may call."""
        ...

    def execute(self, binding: Binding, values: Mapping[str, Any]) -> Outcome:
        """Call the bound object with a value for each of its input parameters."""
        ...

    def close(self) -> None: ...


class BoundAdapter(NamasteCore):
    """NamasteCore for one template over an `ObjectStore`.

    Args:
        template: the data domain.
        store: the session; shared with the other templates of the store.
        retry: how long transient errors are tried again.
        refresh: seconds a signature is trusted before it is read again, so that the DBA may change an object
            while workers run.
    """

    def __init__(self, template: Template, store: ObjectStore, retry: Retry, refresh: float) -> None:
        self.template = template
        self._store = store
        self._retry = retry
        self._refresh = refresh
        self._objects: dict[str, NamedObject] = {}
        self._read_at = float("-inf")

    def create_record(self, payload: Payload) -> Response:
        binding = self._binding("create", Operation.CREATE)
        outcome = self._call(binding, self._record_values(binding, payload))
        record = outcome.rows[0] if outcome.rows else {}
        key = record.get(self.template.key, payload.get(self.template.key))
        return Response("" if key is None else str(key), max(outcome.affected, 1), record)

    def create_records(self, payloads: Sequence[Payload]) -> Response:
        binding = self._binding("create_many", Operation.CREATE_MANY)
        (bulk,) = (p.name for p in binding.target.params if p.name in BULK_NAMES)
        self._call(binding, {bulk: [dict(p) for p in payloads]})
        return Response("", len(payloads))

    def fetch_records(self, query: Query) -> Page:
        binding = self._binding(f"fetch.{query.using}", Operation.FETCH)
        rows = self._call(binding, self._query_values(binding, query)).rows
        if not binding.pages:
            return Page(tuple(rows))
        return Page(tuple(rows), _next_cursor(binding, query, rows) if len(rows) >= query.limit else "")

    def update_record(self, payload: Payload) -> Response:
        binding = self._binding("update", Operation.UPDATE)
        values = self._record_values(binding, payload)
        return self._changed(self._call(binding, values), payload[self.template.key])

    def delete_record(self, record_id: Any) -> Response:
        binding = self._binding("delete", Operation.DELETE)
        return self._changed(self._call(binding, {self.template.key: record_id}), record_id)

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

    def _call(self, binding: Binding, values: Mapping[str, Any]) -> Outcome:
        for param in binding.target.params:
            if param.mode == "in" and values.get(param.name) is not None:
                check_param(param, values[param.name])
        try:
            return self._try(
                lambda: self._execute(binding, values),
                repeatable=binding.operation.is_read or binding.ref.idempotent,
            )
        except DuplicateKey as error:
            error.detail["field"] = error.detail.get("field") or self.template.key  # the stores call it PRIMARY, _id
            raise
        except SchemaMismatch:
            self._read_at = float("-inf")  # the object changed under us: look again at the next call
            raise

    def _execute(self, binding: Binding, values: Mapping[str, Any]) -> Outcome:
        """Call the object, and note the call in the trace of the event that asks for it."""
        trace = None if self.template.system else current_trace()
        if trace is None:
            return self._store.execute(binding, values)
        at, clock, rows, outcome = time.time(), time.perf_counter(), 0, OK
        try:
            found = self._store.execute(binding, values)
            rows = len(found.rows) if binding.operation.is_read else found.affected
            return found
        except BedsError as error:
            outcome = error.code
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
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                # A write whose connection broke may have happened: only the caller can know whether to repeat it.
                if not (repeatable or is_harmless(error)) or time.monotonic() + delay > deadline:
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
        after = _read_cursor(binding, query)
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


def harmless(error: StoreUnavailable) -> StoreUnavailable:
    """Mark an error after which nothing was written, so that even a write may be tried again."""
    error.detail["nothing_written"] = True
    return error


def is_harmless(error: BedsError) -> bool:
    return bool(error.detail.get("nothing_written"))


def check_param(param: Param, value: Any) -> None:
    """Refuse a value that the parameter's type would cut, round or reject.

    Raises:
        TooLong, OutOfRange: names the field.
    """
    detail = {"field": param.name, "declared": param.declared}
    if isinstance(value, (str, bytes)) and param.max_length is not None and len(value) > param.max_length:
        raise TooLong(
            f"field {param.name} has {len(value)} characters, the store takes {param.max_length}",
            detail=detail | {"max_length": param.max_length},
        )
    if isinstance(value, datetime) and param.fraction is not None and value.microsecond % 10 ** (6 - param.fraction):
        raise OutOfRange(
            f"field {param.name} has a finer time than the {param.fraction} digits of a second the store keeps",
            detail=detail,
            hint='cut it yourself, or set precision = "millisecond" for the field in the template',
        )
    if isinstance(value, Decimal):
        check_decimal(param.name, value, param.digits, param.scale)
    if isinstance(value, (int, float)) and param.max is not None and not -param.max - 1 <= value <= param.max:
        raise OutOfRange(
            f"field {param.name} is beyond what {param.declared} holds", detail=detail | {"max": param.max}
        )


def _next_cursor(binding: Binding, query: Query, rows: list[Record]) -> str:
    last = rows[-1]
    missing = [name for name in binding.fetch.cursor if name not in last]
    if missing:
        raise SchemaMismatch(
            f"object {binding.target.name} returns no column {missing[0]}, which the template names in its cursor",
            detail={"object": binding.target.name, "template": binding.template.name},
        )
    return codec.pack_cursor([*_asked(binding, query), [last[n] for n in binding.fetch.cursor]])


def _asked(binding: Binding, query: Query) -> tuple[str, str, str]:
    """What a cursor belongs to: the template, the object, and the arguments in a few characters."""
    text = codec.dumps(sorted(query.args.items()))
    return binding.template.name, binding.target.name, hashlib.sha256(text).hexdigest()[:16]


def _read_cursor(binding: Binding, query: Query) -> dict[str, Any]:
    if not query.cursor:
        return {}
    template, target, args = _asked(binding, query)
    names = binding.fetch.cursor
    match codec.unpack_cursor(query.cursor):
        case [*asked, [*values]] if asked == [template, target, args] and len(values) == len(names):
            for name, value in zip(names, values, strict=True):
                binding.template.fields[name].check(name, value)
            return dict(zip(names, values, strict=True))
    raise InvalidCursor("this cursor belongs to another fetch, or to other arguments", detail={"field": "cursor"})

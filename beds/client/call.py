"""A caller's operation, validated against its template before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from beds.domain.event import Operation
from beds.errors import TooLong, UnknownOperation, WrongType, nearest
from beds.templates.fields import check_plain
from beds.templates.template import EXPECTED_VERSION, Template
from beds.wire import codec

MAX_NAME = 200
"""Characters of an actor's name, and of an idempotency key."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operation for `call_many` and `submit_many`; the arguments are those of `Client.call`."""

    operation: str
    template: str
    data: Any = field(default=None, repr=False)
    using: str = ""
    limit: int | None = None
    cursor: str = ""
    actor: str = ""
    expected_version: Any = field(default=None, repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the call in hexadecimal, without generated fields; equal calls have equal digests."""
        compared = [] if self.expected_version is None else [self.expected_version]
        asked = [str(self.operation), self.template, self.data, self.using, self.limit, self.cursor]
        return codec.digest(asked + compared)


@dataclass(frozen=True, slots=True)
class JobCall:
    """The start of a job; the arguments are those of `Client.submit_job`."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict, repr=False)
    dry_run: bool = False
    restore: str = ""
    verify: str = ""
    actor: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the call in hexadecimal; equal calls have equal digests."""
        return codec.digest(["job", self.name, dict(self.args), self.dry_run, self.restore, self.verify])


def body_of(template: Template, operation: Operation, call: Call) -> dict[str, Any]:
    """Validate a call's data, and return the event's body. Raises InvalidPayload or a subclass."""
    expected_version = template.check_expected_version(operation, call.expected_version)
    # An older worker refuses the name, so it is sent only where it is given.
    compared = {} if expected_version is None else {EXPECTED_VERSION: expected_version}
    match operation:
        case Operation.FETCH:
            using, args, limit, cursor = template.check_fetch(call.using, call.data, call.limit, call.cursor)
            return {"using": using, "args": args, "limit": limit, "cursor": cursor}
    template.object_for(operation)
    match operation:
        case Operation.CREATE:
            return {"payload": template.check_create(call.data)}
        case Operation.CREATE_MANY:
            return {"payloads": template.check_create_many(call.data)}
        case Operation.UPDATE:
            return {"payload": template.check_update(call.data), **compared}
        case _:
            return {"record_id": template.check_record_id(call.data), **compared}


def parse_operation(name: str) -> Operation:
    """Raises UnknownOperation."""
    try:
        return Operation(name)
    except (ValueError, TypeError):
        known = [str(o) for o in Operation]
        raise UnknownOperation(
            f"no operation {name!r}{nearest(str(name), known)}",
            detail={"operation": str(name), "known": known},
            hint=f"the operations: {', '.join(known)}",
        ) from None


def as_calls(calls: Any) -> list[Any]:
    """Raises WrongType."""
    if not isinstance(calls, Iterable):
        raise WrongType(f"calls takes a list of beds.Call, not {type(calls).__name__}", detail={"field": "calls"})
    return list(calls)


def check_name(field: str, value: Any, *, empty: bool = True) -> str:
    """Validate a name that the caller chose, such as an actor or an idempotency key. Raises WrongType, TooLong."""
    if not isinstance(value, str) or not (value or empty):
        raise WrongType(f"{field} takes a text{'' if empty else ', and not an empty one'}", detail={"field": field})
    if len(value) > MAX_NAME:
        raise TooLong(f"{field} has {len(value)} characters, {MAX_NAME} are allowed", detail={"field": field})
    check_plain(field, value)
    return value

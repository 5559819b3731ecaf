"""One operation as a caller asks for it, checked against its template before anything is sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from beds.domain.event import Operation
from beds.errors import TooLong, UnknownOperation, WrongType, nearest
from beds.templates.fields import check_plain
from beds.templates.template import Template
from beds.transport import codec

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

    @property
    def digest(self) -> str:
        """What is asked, in 64 characters: the same for the same data, before generated fields are filled in."""
        parts = [str(self.operation), self.template, self.data, self.using, self.limit, self.cursor]
        text = json.dumps(codec.encode(parts), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def body_of(template: Template, operation: Operation, call: Call) -> dict[str, Any]:
    """A call's data, checked and laid out as the event's body. Raises InvalidPayload and its kin."""
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
            return {"payload": template.check_update(call.data)}
        case _:
            return {"record_id": template.check_record_id(call.data)}


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
    """A text of the caller's own, such as an actor's name or an idempotency key. Raises WrongType, TooLong."""
    if not isinstance(value, str) or not (value or empty):
        raise WrongType(f"{field} takes a text{'' if empty else ', and not an empty one'}", detail={"field": field})
    if len(value) > MAX_NAME:
        raise TooLong(f"{field} has {len(value)} characters, {MAX_NAME} are allowed", detail={"field": field})
    check_plain(field, value)
    return value

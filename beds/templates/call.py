"""One operation as a caller asks for it, checked against its template before anything is sent."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from beds.domain.event import Operation
from beds.errors import UnknownOperation, nearest
from beds.templates.template import Template
from beds.transport import codec


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

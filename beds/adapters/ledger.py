"""The key and the content of a write's ledger entry.

The key is derived from the user, the event's guid and the number of the write within the event. A user with the guid of
another user therefore neither finds nor blocks the other's entry. The entry holds a digest of the request, so that a
guid used for two different writes is refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beds.domain.reply import Response
from beds.domain.trace import Trace
from beds.errors import BedsError, IdempotencyConflict
from beds.wire import codec

_NAMESPACE = uuid.UUID("6f0f4d3e-7c1b-5a53-9c59-3c1f0c6a8f11")


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """Args:
    key: of the entry, 36 characters.
    guid: the event's.
    digest: of the user, the template, the operation and the body.
    """

    key: str
    guid: str
    digest: str

    @classmethod
    def of(cls, trace: Trace, step: int = 0) -> LedgerEntry:
        """The entry of the next write of an event, or of its write number `step`."""
        if not step:
            trace.steps += 1
            step = trace.steps
        guid = trace.lineage.guid
        key = uuid.uuid5(_NAMESPACE, f"{guid} {step} {trace.user}")
        asked = [trace.user, trace.template, str(trace.operation or ""), dict(trace.body)]
        return cls(str(key), guid, codec.digest(asked))

    @property
    def before_owners(self) -> LedgerEntry:
        """The entry of an earlier version: its key is the guid alone, and it has no digest."""
        return LedgerEntry(self.guid, self.guid, "")

    def answered(self, response: Response) -> str:
        return codec.dumps({"ok": response.to_wire(), "digest": self.digest}).decode()

    def failed(self, error: BedsError) -> str:
        return codec.dumps({"error": error.to_wire(), "digest": self.digest}).decode()

    def check(self, noted: Mapping[str, Any]) -> None:
        """Raises IdempotencyConflict: the entry was made for another write."""
        if self.digest and noted.get("digest", "") != self.digest:
            raise IdempotencyConflict(
                "this event's guid was used for another write before",
                detail={"field": "guid", "guid": self.guid},
                hint="give each event a guid of its own, and repeat an event with the same data",
            )


def step_key(user: str, guid: str, step: str) -> str:
    """The key of the entry of one step of a job.

    Args:
        user, guid: the job's.
        step: the lane, the chunk and the step's name.
    """
    return str(uuid.uuid5(_NAMESPACE, f"job {guid} {step} {user}"))

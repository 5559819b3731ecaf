"""One difference between `schema/` and a database."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Action = Literal["create", "change", "remove", "grant", "revoke"]
HISTORY = "beds_schema_history"
"""The table, and the collection, of the applied files with their checksums."""


@dataclass(frozen=True)
class Change:
    """Args:
    store: `rel` or `rec`.
    action: the kind of change.
    name: file or object.
    apply: called to make the change.
    """

    store: str
    action: Action
    name: str
    apply: Callable[[], None] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.store}  {self.action:7} {self.name}"


def checksum(text: str) -> str:
    """SHA-256 of a file's text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()

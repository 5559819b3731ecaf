"""Identifiers: UUIDv7 for events, ObjectId for documents."""

from __future__ import annotations

import os
import re
import time
import uuid
from dataclasses import dataclass

_NOT_FIXED = ~(0xF << 76 | 0x3 << 62)
_FIXED = 0x7 << 76 | 0x2 << 62
"""Version 7 and the variant."""
_HEX24 = re.compile(r"[0-9a-f]{24}\Z")


def uuid7() -> uuid.UUID:
    """A time-ordered UUID (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random bits.

    The time in it distinguishes an expired ticket from one that never existed.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(os.urandom(10), "big")
    return uuid.UUID(int=value & _NOT_FIXED | _FIXED)


@dataclass(frozen=True, slots=True, order=True)
class ObjectId:
    """A MongoDB ObjectId for clients, without pymongo.

    Args:
        hex: 24 lower-case hexadecimal digits.

    Raises:
        ValueError: `hex` is anything else.
    """

    hex: str

    def __post_init__(self) -> None:
        if not isinstance(self.hex, str) or not _HEX24.match(self.hex):
            raise ValueError(f"an ObjectId has 24 lower-case hexadecimal digits, not {self.hex!r}")

    def __str__(self) -> str:
        return self.hex

    @classmethod
    def generate(cls) -> ObjectId:
        """A new ObjectId: four bytes of Unix seconds, then random bytes."""
        return cls(int(time.time()).to_bytes(4, "big").hex() + os.urandom(8).hex())

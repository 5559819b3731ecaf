"""Times as both databases keep them."""

from __future__ import annotations

from datetime import UTC, datetime


def to_millisecond(value: datetime) -> datetime:
    """Cut to what MongoDB keeps."""
    return value.replace(microsecond=value.microsecond // 1000 * 1000)


def now() -> datetime:
    """In UTC, to the millisecond."""
    return to_millisecond(datetime.now(UTC))

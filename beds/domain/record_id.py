"""A record's key as text: the record id in replies, audit and lineage."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import date, time
from typing import Any


def id_text(parts: Sequence[Any]) -> str:
    """The text of a key.

    A single part is written unchanged. The parts of a composite key are joined by commas; a comma or percent sign in a
    part is percent-encoded, so that two keys never share a text. Bytes are Base64, dates and times ISO 8601.
    """
    if len(parts) == 1:
        return _text(parts[0])
    return ",".join(_text(part).replace("%", "%25").replace(",", "%2C") for part in parts)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (date, time)):
        return value.isoformat()
    return str(value)

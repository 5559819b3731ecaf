"""Decodes frames that py-amqp cannot decode as far as possible, so that they do not end a worker.

py-amqp raises on a property that is no UTF-8, on a table nested beyond Python's recursion limit, and on a timestamp
beyond year 9999. Celery treats the error as a lost connection or as its own, and the same message ends the next
worker. Here the message is delivered with its readable part and a mark, and `worker.validation` rejects it.
https://github.com/celery/py-amqp/blob/main/amqp/serialization.py
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import amqp.abstract_channel
from amqp import serialization
from amqp.serialization import GenericContent

UNREADABLE = "x-beds-unreadable"
"""The header that marks a message whose properties could not be decoded; its value is the error's type."""
_TEXT, _TABLE = 0, -1
_PROPERTIES = (
    (0x8000, "content_type", _TEXT), (0x4000, "content_encoding", _TEXT), (0x2000, "application_headers", _TABLE),
    (0x1000, "delivery_mode", 1), (0x0800, "priority", 1), (0x0400, "correlation_id", _TEXT),
    (0x0200, "reply_to", _TEXT), (0x0100, "expiration", _TEXT), (0x0080, "message_id", _TEXT), (0x0040, "timestamp", 8),
    (0x0020, "type", _TEXT), (0x0010, "user_id", _TEXT), (0x0008, "app_id", _TEXT), (0x0004, "cluster_id", _TEXT),
)  # fmt: skip
"""The properties of AMQP 0-9-1 in wire order: flag, name, and a number's width in bytes (or `_TEXT`, `_TABLE`)."""
_installed = False


def guard_decoding() -> None:
    """Patch py-amqp in this process so that it decodes broken frames as far as possible. Harmless to repeat."""
    global _installed
    if _installed:
        return
    _installed = True
    GenericContent._load_properties = _guarded_properties(GenericContent._load_properties)
    amqp.abstract_channel.loads = _guarded_arguments(amqp.abstract_channel.loads)


def _guarded_properties(load: Callable[..., int]) -> Callable[..., int]:
    def guarded(self: Any, class_id: int, buffer: bytes, offset: int = 0) -> int:
        try:
            return int(load(self, class_id, buffer, offset) or 0)
        except Exception as error:  # noqa: BLE001 — a hostile frame may make the decoder raise any error
            self.properties = readable_properties(bytes(buffer[offset:]))
            self.properties["application_headers"] |= {UNREADABLE: type(error).__name__}
            return len(buffer)

    return guarded


def readable_properties(buffer: bytes) -> dict[str, Any]:
    """The readable properties of a content header, up to the frame's end.

    Bytes that are no UTF-8 become replacement characters. Headers after the first unreadable one are left out.
    """
    found: dict[str, Any] = {"application_headers": {}}
    try:
        (flags,) = struct.unpack_from(">H", buffer, 0)
        offset = 2
        for flag, name, width in _PROPERTIES:
            if not flags & flag:
                continue
            if width == _TABLE:
                (length,) = struct.unpack_from(">I", buffer, offset)
                found[name] = _readable_table(buffer, offset + 4, min(length, len(buffer)))
                offset += 4 + length
            elif width == _TEXT:
                length = buffer[offset]
                found[name] = buffer[offset + 1 : offset + 1 + length].decode(errors="replace")
                offset += 1 + length
            else:
                offset += width  # numbers are not needed to reject and report the message
    except (struct.error, IndexError):
        pass  # the frame ends here
    return found


def _readable_table(buffer: bytes, offset: int, length: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    end = offset + length
    try:
        while offset < end:
            size = buffer[offset]
            name = buffer[offset + 1 : offset + 1 + size].decode(errors="replace")
            found[name], offset = serialization._read_item(buffer, offset + 1 + size)
    except Exception:  # noqa: BLE001 — after a broken field, the start of the next one is unknown
        return found
    return found


def _guarded_arguments(load: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(format_: Any, buffer: bytes, offset: int) -> Any:
        try:
            return load(format_, buffer, offset)
        except UnicodeDecodeError:
            return _readable_arguments(str(format_), buffer, offset)

    return guarded


def _readable_arguments(format_: str, buffer: bytes, offset: int) -> tuple[list[Any], int]:
    """A method's arguments, with replacement characters for invalid UTF-8: a routing key may hold any bytes."""
    values: list[Any] = []
    bits = 0
    position = 8
    for kind in format_:
        if kind == "b":
            if position == 8:
                bits, position, offset = buffer[offset], 0, offset + 1
            values.append(bool(bits >> position & 1))
            position += 1
            continue
        position = 8
        if kind in "sS":
            width = 1 if kind == "s" else 4
            length = int.from_bytes(buffer[offset : offset + width], "big")
            values.append(bytes(buffer[offset + width : offset + width + length]).decode(errors="replace"))
            offset += width + length
        elif kind in "oBlL":
            width = {"o": 1, "B": 2, "l": 4, "L": 8}[kind]
            values.append(int.from_bytes(buffer[offset : offset + width], "big"))
            offset += width
        else:
            raise UnicodeError(f"an argument of kind {kind} cannot be read")
    return values, offset

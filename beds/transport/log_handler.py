"""A `logging.Handler` that sends log records to msLogs, each with the event during which it was written.

    logging.getLogger().addHandler(beds.LogHandler())

It never waits for RabbitMQ, never raises into the application, and skips log records about its own sending.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from typing import Any

from beds.config import Settings, load_settings
from beds.domain.event import RecordKind
from beds.domain.identity import uuid7
from beds.domain.trace import current_trace
from beds.transport.shipper import THREAD_NAME, Shipper

OWN_LOGGERS = ("amqp.", "kombu.", "pymongo.", "vine.", "beds.transport.")
"""These log while records are sent or stored; sending their log records would loop."""
ROUTINE_LOGGERS = ("celery.worker.strategy.", "celery.app.trace.")
"""They log two INFO lines per event, which lineage covers; only their warnings and errors are sent."""
LAST_SECOND = 2**32
"""Unix seconds; a later time of a record is invalid, and replaced by the current one."""
MESSAGE_CHARACTERS, TRACEBACK_CHARACTERS, EXTRA_CHARACTERS = 8_000, 32_000, 1_000
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogHandler(logging.Handler):
    """Sends log records to the admin worker.

    Args:
        settings: beds.toml; `load_settings()` when absent.
        shipper: sends the records; a new one with the client's AMQP user when absent.
    """

    def __init__(self, settings: Settings | None = None, shipper: Shipper | None = None) -> None:
        settings = settings or load_settings()
        super().__init__(settings.logging.level)
        self._place = f"{settings.node.name}.{settings.node.environment}."
        self.shipper = shipper or Shipper(settings)

    def filter(self, record: logging.LogRecord) -> bool:
        name = f"{record.name}."
        if threading.current_thread().name == THREAD_NAME or name.startswith(OWN_LOGGERS):
            return False
        if record.levelno < logging.WARNING and name.startswith(ROUTINE_LOGGERS):
            return False
        return bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            trace = current_trace()
            event_id = f"{self._place}{uuid7()}"
            wire: dict[str, Any] = {
                "event_id": event_id,
                "parent_id": trace.lineage.event_id if trace else "",
                "root_id": trace.lineage.root_id if trace else event_id,
                "depth": trace.lineage.depth + 1 if trace else 0,
                **({"user": trace.user} if trace and trace.user else {}),
                "at": record.created if 0 < record.created < LAST_SECOND else time.time(),
                "level": _text(str(record.levelname), 20),
                "levelno": (levelno := min(max(int(record.levelno), 0), 1000)),
                "logger": _text(str(record.name), 300),
                "message": _text(record.getMessage(), MESSAGE_CHARACTERS),
            }
            if record.exc_info and record.exc_info[0]:
                wire["exception"] = _text("".join(traceback.format_exception(*record.exc_info)), TRACEBACK_CHARACTERS)
            if more := vars(record).keys() - _STANDARD:
                wire["extra"] = {_text(name, 100): _plain(getattr(record, name)) for name in sorted(more)}
            self.shipper.add(RecordKind.LOG, wire, levelno)
        except Exception:  # noqa: BLE001 — as in logging's own handlers, a log line never breaks the application
            self.handleError(record)

    def flush(self) -> None:
        """Do nothing: `shipper.flush()` would wait, and a handler's flush must not."""


def _plain(value: Any) -> Any:
    """Convert a value of `extra` to a plain JSON value."""
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value if not isinstance(value, int) or -(2**63) <= value < 2**63 else str(value)
    return _text(str(value), EXTRA_CHARACTERS)


def _text(text: str, characters: int) -> str:
    """Cut to size, and replace lone surrogates and NULs, which MongoDB does not accept in names."""
    if len(text) > characters:
        text = f"{text[:characters]}… ({len(text):,} characters)"
    return text if text.isascii() and "\0" not in text else text.encode(errors="replace").decode().replace("\0", "�")

"""A delivered message, judged before Celery unpacks it: a malformed one is rejected and lies in beds.dead.

Celery takes the body's shape for granted; a body of another shape ends the whole worker, and the next one after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default


def checked(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Celery's execution strategy, for messages from anybody. `Task.Strategy` names it."""
    handle = default(task, app, consumer, **options)

    def on_message(message: Any, *arguments: Any, **more: Any) -> Any:
        try:
            _check(message)
            return handle(message, *arguments, **more)
        except InvalidTaskError:
            raise
        except Exception as error:  # noqa: BLE001 — whatever a hostile message makes Celery raise, the worker lives on
            raise InvalidTaskError(f"not an event: {type(error).__name__}") from None

    return on_message


def _check(message: Any) -> None:
    """Raises InvalidTaskError, on which Celery's consumer rejects the message."""
    body = message.payload
    if not (isinstance(body, (list, tuple)) and len(body) == 3):
        raise InvalidTaskError("the body is not [args, kwargs, embed]")
    args, kwargs, embed = body
    if not (isinstance(args, (list, tuple)) and isinstance(kwargs, Mapping) and isinstance(embed, Mapping)):
        raise InvalidTaskError("the body is not [list, object, object]")
    if any(embed.get(name) for name in ("callbacks", "errbacks", "chain", "chord")):
        raise InvalidTaskError("an event has no callbacks: whoever publishes must not choose what runs next")
    headers = message.headers
    limits = headers.get("timelimit") or [None, None]
    if not (isinstance(limits, (list, tuple)) and len(limits) == 2):
        raise InvalidTaskError("the header timelimit is not [hard, soft]")
    for limit in limits:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit <= 0):
            raise InvalidTaskError("the header timelimit holds something that is no number of seconds")
    if not isinstance(headers.get("id"), str):
        raise InvalidTaskError("the header id is not text")

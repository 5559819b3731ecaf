"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

import msgspec

from beds.errors import BedsError, PermissionDenied

MEDIA_TYPE = "application/problem+json"
_UNEXPLAINED: Mapping[int, str] = {
    500: "This is a fault of the service; its log has the reason under the event id.",
    502: "The service behind this node replied in a form that this version does not know.",
    503: "The service cannot do this now; try again.",
    504: "There was no reply in time.",
}
"""What a client reads instead of an error's own words, which may name objects, files and servers."""
_MAY_HAPPEN = " The write may still happen: ask again with the same Idempotency-Key, or look at its lineage."
RETRY_SECONDS = 1
"""Retry-After of errors that may pass by themselves."""


class Problem(Exception):
    """A request that this node answers with an error, without an event.

    Args:
        status: of the response.
        code: stable, for programs.
        detail: one sentence for people.
        field: the field or header that is wrong.
        headers: further headers of the response.
        retryable: whether the same request may succeed later.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        field: str = "",
        headers: Mapping[str, str] | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})
        self.retryable = retryable


def not_found() -> Problem:
    """There is no such thing, or the caller may not see it."""
    return Problem(404, "not_found", "There is nothing under this address, or you may not see it.")


def forbidden(what: str) -> Problem:
    return Problem(403, "forbidden", f"You may not {what}.")


def problem_of(error: BedsError, *, is_write: bool = False) -> tuple[Problem, str]:
    """A BEDS error as a problem, and the id of its event.

    Args:
        error: the error.
        is_write: whether the request writes, so that a missing reply leaves it open.
    """
    detail = _UNEXPLAINED.get(error.status) or error.message
    if isinstance(error, PermissionDenied):
        detail = "This node's own rights on RabbitMQ do not allow this."
    if error.status == 504 and is_write:
        detail += _MAY_HAPPEN
    field = error.detail.get("field")
    headers = {}
    if error.status == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    found = Problem(
        error.status,
        error.code,
        detail,
        field=field if isinstance(field, str) else "",
        headers=headers,
        retryable=error.retryable,
    )
    return found, error.event_id


def body_of(problem: Problem, event_id: str = "") -> dict[str, Any]:
    """The members of a problem."""
    try:
        title = http.HTTPStatus(problem.status).phrase
    except ValueError:
        title = "Error"
    found = {
        "type": f"urn:beds:error:{problem.code}",
        "title": title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "retryable": problem.retryable,
    }
    if problem.field:
        found["field"] = problem.field
    if event_id:
        found["event_id"] = event_id
    return found


def encode_problem(problem: Problem, event_id: str = "") -> bytes:
    return msgspec.json.encode(body_of(problem, event_id))

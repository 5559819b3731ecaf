"""Every error that BEDS raises, with its code and its form on the wire.

BedsError
├── ConfigurationError            beds.toml, the environment, celeryconfig.py
├── TemplateError                 a template file is wrong
│   ├── UnknownTemplate
│   ├── UnknownOperation
│   ├── UnknownFetch
│   └── RuleError                 a rule file of a job is wrong
│       └── UnknownRule
├── InvalidPayload                the caller's data; nothing was written
│   ├── MissingField
│   ├── UnknownField
│   ├── WrongType
│   ├── TooLong
│   ├── OutOfRange
│   ├── BodyTooLarge
│   ├── InvalidCursor
│   └── ChangesExpired            the log of changes does not reach back that far
├── MalformedEvent                a message that is not an event of this contract
├── NotFound                      no record under that id
├── PreconditionFailed            the record has not the expected version, or there is none
├── Conflict                      the write would violate a key
│   ├── DuplicateKey
│   └── ForeignKeyViolation
├── BusinessRule                  SIGNAL '45xxx' of a procedure, with the DBA's words
├── SchemaError                   an object or a right is missing in the database
│   ├── SchemaMismatch            an object is missing, or its parameters do not fit the template
│   ├── SchemaDrift               a versioned file was changed after it was applied
│   └── StoreDenied               the broker's user may not do this
├── StoreError                    any other error of the store
├── StoreUnavailable              (retryable) the database cannot be reached, or aborted the operation
├── TimeLimitExceeded             the operation ran longer than its pool allows
├── DeadEvent                     the event ended its worker each time it was delivered
├── ResultTooLarge                the reply is too large; fetch it in pages
├── TransportError
│   ├── BrokerUnavailable         (retryable) RabbitMQ cannot be reached
│   ├── BrokerBlocked             (retryable) RabbitMQ blocks publishing because of a resource alarm
│   ├── Overloaded                (retryable) the queue is full
│   ├── Unroutable                no queue is bound to the key
│   ├── PermissionDenied          the AMQP user may not publish there
│   ├── TopologyMismatch          a queue exists with other arguments
│   └── CallTimeout               (retryable) no reply by the deadline
├── TicketError
│   ├── UnknownTicket             the ticket was never accepted
│   ├── TicketExpired             its outcome is no longer kept
│   ├── TicketRevoked             it was cancelled
│   └── IdempotencyConflict       the key belongs to another event
├── JobError
│   ├── JobAlreadyRunning         a rule has one job at a time
│   ├── JobNotResumable           the job is not in the state that the request needs
│   └── FileDamaged               a file of the warehouse is not what was written
├── ClientClosed                  the client was closed while it was in use
├── StackError                    the local stack
├── InternalError                 a defect in BEDS or in the worker's surroundings
└── RemoteError                   an error code of a newer version
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class BedsError(Exception):
    """Root of all errors of BEDS.

    Args:
        message: one sentence for people; never holds a secret.
        detail: facts for programs, by name (`field`, `template`, `object`, …); JSON values only.
        hint: the remedy, in one sentence.
        event_id: `node.env.guid` of the failed event, or empty.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    """Of the HTTP response; see beds/http."""
    retryable: bool = False
    default_hint: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        detail: Mapping[str, Any] | None = None,
        hint: str | None = None,
        event_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail: dict[str, Any] = dict(detail or {})
        self.hint = self.default_hint if hint is None else hint
        self.event_id = event_id

    def __str__(self) -> str:
        """Message, hint, code and event id, for tracebacks and logs."""
        hint = f" ({self.hint})" if self.hint else ""
        event = f", event {self.event_id}" if self.event_id else ""
        return f"{self.message}{hint} [{self.code}{event}]"

    def __repr__(self) -> str:
        """Without the message, which may hold a value: Celery writes the `repr` to logs and monitors."""
        return f"{type(self).__name__}({self.event_id!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.detail, self.hint, self.event_id, self.__dict__.copy())

    def to_wire(self) -> dict[str, Any]:
        """The error as plain JSON values; `from_wire` is the inverse."""
        return {
            "code": self.code,
            "message": self.message,
            "detail": self.detail,
            "hint": self.hint,
            "retryable": self.retryable,
            "event_id": self.event_id,
        }


def _rebuild(
    cls: type[BedsError], message: str, detail: dict[str, Any], hint: str, event_id: str, state: dict[str, Any]
) -> BedsError:
    error = cls(message, detail=detail, hint=hint, event_id=event_id)
    error.__dict__.update(state)
    return error


class ConfigurationError(BedsError):
    code = "configuration"


class TemplateError(BedsError):
    code = "template"


class UnknownTemplate(TemplateError):
    code = "unknown_template"
    status = 404
    default_hint = "list the templates with `beds template list`"


class UnknownOperation(TemplateError):
    code = "unknown_operation"
    status = 404


class UnknownFetch(TemplateError):
    code = "unknown_fetch"
    status = 404


class RuleError(TemplateError):
    code = "rule"


class UnknownRule(RuleError):
    code = "unknown_rule"
    status = 404


class InvalidPayload(BedsError):
    code = "invalid_payload"
    status = 422


class MissingField(InvalidPayload):
    code = "missing_field"


class UnknownField(InvalidPayload):
    code = "unknown_field"


class WrongType(InvalidPayload):
    code = "wrong_type"


class TooLong(InvalidPayload):
    code = "too_long"


class OutOfRange(InvalidPayload):
    code = "out_of_range"


class BodyTooLarge(InvalidPayload):
    code = "body_too_large"
    status = 413
    default_hint = "send fewer records per event, or raise [amqp] max_body_bytes on every node"


class InvalidCursor(InvalidPayload):
    code = "invalid_cursor"
    status = 400
    default_hint = "pass the cursor of the previous page unchanged, to the same fetch"


class ChangesExpired(InvalidPayload):
    code = "changes_expired"
    status = 410
    default_hint = "read the records themselves, and follow the changes from now on (`$`)"


class MalformedEvent(BedsError):
    code = "malformed_event"
    status = 502
    default_hint = "publish with BEDS's client, or send what it sends"


class NotFound(BedsError):
    code = "not_found"
    status = 404


class PreconditionFailed(BedsError):
    code = "precondition_failed"
    status = 412
    default_hint = "fetch the record again, and decide again"


class Conflict(BedsError):
    code = "conflict"
    status = 409


class DuplicateKey(Conflict):
    code = "duplicate_key"
    default_hint = "update that record instead, or use another key"


class ForeignKeyViolation(Conflict):
    code = "foreign_key_violation"
    default_hint = "create the record that is referred to first, or delete what refers to this one"


class BusinessRule(BedsError):
    code = "business_rule"
    status = 422
    default_hint = "the rule belongs to the schema; the DBA can tell what it asks for"


class SchemaError(BedsError):
    code = "schema"


class SchemaMismatch(SchemaError):
    code = "schema_mismatch"
    default_hint = "run `beds schema check`, then change the object or the template"


class SchemaDrift(SchemaError):
    code = "schema_drift"


class StoreDenied(SchemaError):
    code = "store_denied"
    default_hint = "grant the broker's user what the object needs (`beds schema apply` does it)"


class StoreError(BedsError):
    code = "store_error"


class StoreUnavailable(BedsError):
    code = "store_unavailable"
    status = 503
    retryable = True
    default_hint = "the database cannot be reached or is overloaded; try again later"


class TimeLimitExceeded(BedsError):
    code = "time_limit_exceeded"
    status = 504
    default_hint = "ask for less at a time, or raise time_limit of this pool in beds.toml"


class DeadEvent(BedsError):
    code = "dead_event"
    default_hint = "it lies in msDead: `beds dead show`, then `beds dead replay` or `discard`"


class ResultTooLarge(BedsError):
    code = "result_too_large"
    status = 422
    default_hint = "ask for fewer records with limit=…, and follow the page's cursor"


class TransportError(BedsError):
    code = "transport"
    status = 503


class BrokerUnavailable(TransportError):
    code = "broker_unavailable"
    retryable = True
    default_hint = "check that RabbitMQ runs and that [amqp] url names it"


class BrokerBlocked(TransportError):
    code = "broker_blocked"
    retryable = True
    default_hint = "RabbitMQ is short of memory or disk; free some, publishing then goes on by itself"


class Overloaded(TransportError):
    code = "overloaded"
    retryable = True
    default_hint = "the queue is full; wait and try again, or give the pool more instances"


class Unroutable(TransportError):
    code = "unroutable"
    default_hint = "no queue is bound to this key; start a worker once, or run `beds topology declare`"


class PermissionDenied(TransportError):
    code = "permission_denied"
    status = 403
    default_hint = "the AMQP user lacks this right; see `rabbitmqctl list_topic_permissions`"


class TopologyMismatch(TransportError):
    code = "topology_mismatch"
    status = 500


class CallTimeout(TransportError):
    code = "call_timeout"
    status = 504
    retryable = True


class TicketError(BedsError):
    code = "ticket"


class UnknownTicket(TicketError):
    code = "unknown_ticket"
    status = 404
    default_hint = "check the guid; a ticket is known from its submit on"


class TicketExpired(TicketError):
    code = "ticket_expired"
    status = 410
    default_hint = "outcomes are kept for [calgon] result_ttl seconds"


class TicketRevoked(TicketError):
    code = "ticket_revoked"
    status = 409


class IdempotencyConflict(TicketError):
    code = "idempotency_conflict"
    status = 422
    default_hint = "use a new key for a new event; repeat an event with the same data"


class JobError(BedsError):
    code = "job"


class JobAlreadyRunning(JobError):
    code = "job_already_running"
    status = 409
    default_hint = "wait for it, or cancel it: `beds jobs` lists the runs"


class JobNotResumable(JobError):
    code = "job_not_resumable"
    status = 409
    default_hint = "`beds job show GUID` says in which state it is"


class FileDamaged(JobError):
    code = "file_damaged"
    default_hint = "restore the file from a backup, and resume the job"


class ClientClosed(BedsError):
    code = "client_closed"
    status = 503
    default_hint = "make a new beds.Client"


class StackError(BedsError):
    code = "stack"


class InternalError(BedsError):
    code = "internal"
    default_hint = "this is a defect; the worker's log has the traceback under the event id"


class RemoteError(BedsError):
    """An error whose code is unknown in this version; `remote_code` holds the code."""

    code = "remote"
    status = 502
    remote_code: str = ""


def _all_classes(root: type[BedsError]) -> dict[str, type[BedsError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_all_classes(child))
    return found


BY_CODE: Mapping[str, type[BedsError]] = _all_classes(BedsError)


def from_wire(wire: Mapping[str, Any]) -> BedsError:
    """The inverse of `BedsError.to_wire`; an unknown code becomes `RemoteError`."""
    code = str(wire.get("code", ""))
    cls = BY_CODE.get(code, RemoteError)
    detail = wire.get("detail")
    error = cls(
        str(wire.get("message", "")),
        detail=detail if isinstance(detail, Mapping) else {},
        hint=str(wire.get("hint", "")),
        event_id=str(wire.get("event_id", "")),
    )
    error.retryable = bool(wire.get("retryable", cls.retryable))
    if isinstance(error, RemoteError):
        error.remote_code = code
    return error


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""

"""The blocking client: publishes events over AMQP and waits for replies. It needs no access to a database.

import beds
page = beds.call("fetch_records", "Flights", {"origin": "JFK"}, using="by_route", limit=100)
ticket = beds.submit("create_record", "Notices", {"airport": "JFK", "title": "Snow", "status": "open"})
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from beds.client.bound_template import BoundTemplate
from beds.client.call import Call, JobCall
from beds.client.deadline import DEFAULT_TIMEOUT
from beds.client.flows import Flows, handle_of
from beds.client.jobs import JobTicket
from beds.client.lineage import Node
from beds.client.steps import Flow, run
from beds.client.tickets import Ticket
from beds.config import Settings, load_settings
from beds.domain.change import MAX_CHANGES, Changes
from beds.domain.description import Description
from beds.domain.event import Event, Operation
from beds.domain.reply import Page, Reply, Response
from beds.errors import BedsError, ConfigurationError, MalformedEvent, WrongType
from beds.templates.registry import TemplateRegistry
from beds.transport.pending import Pending, Transport
from beds.transport.requester import Requester

T = TypeVar("T")


class Client:
    """Publishes operations and receives their replies.

    Args:
        settings: the configuration; `load_settings()` when absent.
        operator: whether to connect as an operator with `[amqp] operator_url`, and see the records of all users.
        transport: carries the events; RabbitMQ when absent.
        templates: validate the calls; those of `[schema] path` when absent.

    Threads may share it, and it reconnects. After a fork each process has its own connection. Every wait has a
    deadline.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        operator: bool = False,
        transport: Transport | None = None,
        templates: TemplateRegistry | None = None,
    ) -> None:
        self.settings = settings or load_settings()
        self.templates = templates or TemplateRegistry.from_folder(
            self.settings.schema_path, strict=self.settings.node.is_production
        )
        url = self.settings.amqp.operator_url if operator else None
        if operator and url is None:
            raise ConfigurationError(
                "[amqp] operator_url is not set: nobody comes in as an operator here",
                hint="name a user that may use the key operator; `beds amqp definitions` prints its rights",
            )
        self.is_operator = operator
        self.transport: Transport = transport or Requester(self.settings.amqp, url.get_secret_value() if url else "")
        self.flows = Flows(self.settings, self.templates, self.transport, is_operator=operator)
        self.restore = _restored

    def call(
        self,
        operation: str,
        template: str,
        data: Any = None,
        *,
        using: str = "",
        limit: int | None = None,
        cursor: str = "",
        actor: str = "",
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Reply:
        """Execute one operation and wait for its reply.

        Args:
            operation: `create_record`, `create_records`, `fetch_records`, `update_record` or `delete_record`.
            template: the data domain.
            data: the record; the list of records; a fetch's arguments by name; or the key of the record to delete.
            using: which fetch of the template.
            limit: records of a page.
            cursor: `Page.cursor` of the page before.
            actor: on whose behalf the application acts; stored in the audit.
            expected_version: the version that the record of an update or a delete must have, as a fetch returned it;
                None for any.
            idempotency_key: a name of your own for this event, as in `submit`. A second call with the same key and
                data gets the reply of the first, also while that is still executed, and after a `CallTimeout`. The
                call becomes a ticket, so it costs a further round trip.
            timeout: seconds. RabbitMQ drops a fetch that no worker has begun by then.

        Returns:
            A `Response` to a write, a `Page` to a fetch.

        Raises:
            InvalidPayload: the data is invalid; nothing was sent.
            PreconditionFailed: no record has the key and the expected version; nothing was changed.
            IdempotencyConflict: the key belongs to another event.
            CallTimeout: no reply in time. A write may still be executed.
            BrokerUnavailable, BrokerBlocked: RabbitMQ cannot be reached, or blocks publishing.
            BedsError: the error that the worker replied.
        """
        call = Call(operation, template, data, using, limit, cursor, actor, expected_version)
        return self._run(self.flows.call(call, timeout, idempotency_key))

    def fetch(
        self,
        template: str,
        using: str = "",
        args: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        cursor: str = "",
        actor: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Page:
        """`call` of a fetch, whose reply is a `Page`.

        Args:
            template: the data domain.
            using: which fetch of the template.
            args: its arguments by name.
            limit, cursor, actor, timeout: as in `call`.
        """
        return as_page(self.call(Operation.FETCH, template, args, using=using, limit=limit, cursor=cursor,
                                 actor=actor, timeout=timeout))  # fmt: skip

    def write(
        self,
        operation: str,
        template: str,
        data: Any,
        *,
        actor: str = "",
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Response:
        """`call` of a create, an update or a delete, whose reply is a `Response`. The arguments are those of `call`.

        Raises:
            WrongType: the operation is a fetch.
        """
        return as_response(self.call(check_write(operation), template, data, actor=actor,
                                     expected_version=expected_version, idempotency_key=idempotency_key,
                                     timeout=timeout))  # fmt: skip

    def submit(
        self,
        operation: str,
        template: str,
        data: Any = None,
        *,
        using: str = "",
        limit: int | None = None,
        cursor: str = "",
        actor: str = "",
        expected_version: Any = None,
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Ticket:
        """Publish one operation, and return when RabbitMQ has confirmed it. The arguments are those of `call`.

        Args:
            idempotency_key: a name of your own for this event. A second submit with the same key and data returns
                the same ticket, and the operation is executed once.

        Raises:
            InvalidPayload: the data is invalid; nothing was sent.
            IdempotencyConflict: the key belongs to another event.
            BrokerUnavailable, BrokerBlocked: RabbitMQ did not confirm by the deadline; the event may or may not exist.
        """
        call = Call(operation, template, data, using, limit, cursor, actor, expected_version)
        return Ticket(self._run(self.flows.submit(call, idempotency_key, timeout)), self)

    def submit_job(
        self,
        name: str,
        args: Mapping[str, Any] | None = None,
        /,
        *,
        dry_run: bool = False,
        restore: str = "",
        verify: str = "",
        actor: str = "",
        idempotency_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        **more: Any,
    ) -> JobTicket:
        """Start a job, and return when RabbitMQ has confirmed its event.

        Args:
            name: of a rule in `schema/jobs/`.
            args, more: its arguments, by name.
            dry_run: move nothing; the ticket's result has a sample and a list of what would be refused.
            restore: the guid of a job of this rule, whose records go back to where they came from. Of a rule with `to`,
                all records there go back that match the job's arguments.
            verify: the guid of a job of this rule, whose copies are compared once more; the ticket's result says what
                is wrong.
            actor: on whose behalf the application acts; stored in the audit.
            idempotency_key: as in `submit`.
            timeout: seconds for the confirm.

        Raises:
            UnknownRule, UnknownField, MissingField: the call is invalid; nothing was sent.
            PermissionDenied: this user may not start jobs.
        """
        call = JobCall(name, {**(args or {}), **more}, dry_run, restore, verify, actor)
        return JobTicket(self._run(self.flows.submit_job(call, idempotency_key, timeout)), self)

    def job(self, guid: str, *, actor: str = "") -> JobTicket:
        """The ticket of a job, by its guid or event id. `actor` is as in `ticket`."""
        return JobTicket(handle_of(guid, actor), self)

    @overload
    def call_many(
        self, calls: Iterable[Call], *, timeout: float = ..., return_errors: Literal[False] = ...
    ) -> list[Reply]: ...
    @overload
    def call_many(
        self, calls: Iterable[Call], *, timeout: float = ..., return_errors: Literal[True]
    ) -> list[Reply | BedsError]: ...
    def call_many(
        self, calls: Iterable[Call], *, timeout: float = DEFAULT_TIMEOUT, return_errors: bool = False
    ) -> Sequence[Reply | BedsError]:
        """Execute many operations at once and wait for all replies, in the order of the calls.

        Args:
            calls: the operations. All are validated before the first is sent.
            timeout: seconds for all of them together.
            return_errors: return each operation's error in its place instead of raising the first one.
        """
        return self._run(self.flows.call_many(calls, timeout, return_errors=return_errors))

    def submit_many(self, calls: Iterable[Call], *, timeout: float = DEFAULT_TIMEOUT) -> list[Ticket]:
        """Publish many operations with pipelined confirms, and return when RabbitMQ has confirmed all of them."""
        return [Ticket(handle, self) for handle in self._run(self.flows.submit_many(calls, timeout))]

    def ticket(self, guid: str, *, actor: str = "") -> Ticket:
        """The ticket of a guid or an event id. Its methods look it up; this one does not.

        Args:
            guid: the ticket's.
            actor: on whose behalf the application asks; its methods then find only a ticket that was submitted on that
                actor's behalf. Without an actor, they find every ticket of the application.
        """
        return Ticket(handle_of(guid, actor), self)

    def describe(self, template: str, *, timeout: float = DEFAULT_TIMEOUT) -> Description:
        """What the workers know of a template's operations: the DBA's objects, and the arguments that fetches take.

        Args:
            template: the data domain.
            timeout: seconds.

        Raises:
            UnknownTemplate: there is no such template.
            StoreDenied: it is one of BEDS's own.
        """
        return self._run(self.flows.describe(template, timeout))

    def changes(
        self, template: str, after: str = "", *, limit: int = MAX_CHANGES, timeout: float = DEFAULT_TIMEOUT
    ) -> Changes:
        """Committed writes of a template that keeps changes, oldest first, each of them once.

        Args:
            template: the data domain.
            after: the position of an earlier change or reply. Empty for the oldest change that is kept, `$` for the
                log's end: the reply then has no changes, and the position from which to go on.
            limit: the most changes, up to 1,000.
            timeout: seconds.

        Raises:
            UnknownTemplate, UnknownOperation: there is no such template, or it keeps no changes.
            ChangesExpired: the log does not reach back to the position.
            InvalidCursor, OutOfRange: `after` or `limit` is wrong.
        """
        return self._run(self.flows.changes(template, after, limit, timeout))

    def lineage(self, of: str, *, actor: str = "", timeout: float = DEFAULT_TIMEOUT) -> Node:
        """The lineage tree that an event belongs to, from its root.

        Args:
            of: an event's id or guid, or a ticket's guid.
            actor: on whose behalf the application asks: the event or the tree's root must have been made on that
                actor's behalf. Without an actor, it may be anybody's of this application.
            timeout: seconds.

        Raises:
            NotFound: msLineage has no record of it.
        """
        return self._run(self.flows.lineage(of, timeout, actor))

    def ask(self, verb: str, arguments: Mapping[str, Any], *, timeout: float = DEFAULT_TIMEOUT) -> Any:
        """Send CALGON the request `accept`, `status` or `cancel`. Applications use `Ticket` instead.

        An operator's requests, except `accept`, go to the queue `operator`. An operator may also send `fetch`,
        `replay`, `discard` and `members`.
        """
        return self._run(self.flows.ask(verb, arguments, timeout))

    def template(self, name: str) -> BoundTemplate:
        """A handle on one template. Raises UnknownTemplate."""
        return BoundTemplate(self, self.templates[name])

    def close(self) -> None:
        """Close the connection. Calls in flight raise ClientClosed."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # For tools that handle single events, such as the doctor.

    def event(self, call: Call, *, ticket: bool, timeout: float) -> Event:
        """A call as a validated event with a lineage."""
        return self.flows.event(call, ticket=ticket, timeout=timeout)

    def send(self, event: Event, deadline: float) -> Pending:
        """Publish an event; retry after a lost connection. `deadline` is in monotonic seconds."""
        return self._run(self.flows.send(event, deadline))

    def submit_event(self, event: Event, deadline: float) -> Ticket:
        """Publish the acceptance of an event's ticket, then the event."""
        (handle,) = self._run(self.flows.submit_events([event], deadline))
        return Ticket(handle, self)

    def answer(self, pending: Pending, deadline: float) -> Any:
        """The decoded reply to an event that `send` published."""
        return self._run(self.flows.answer(pending, deadline))

    def _run(self, flow: Flow[T]) -> T:
        return run(flow, self.transport)


def check_write(operation: str) -> str:
    """Raises WrongType: the operation is a fetch."""
    if operation == Operation.FETCH:
        raise WrongType("write takes no fetch", detail={"field": "operation"}, hint="use fetch, which returns a Page")
    return operation


def as_page(reply: Reply) -> Page:
    """The reply to a fetch."""
    if not isinstance(reply, Page):
        raise MalformedEvent("the worker answered a fetch with the reply to a write", hint="update the older side")
    return reply


def as_response(reply: Reply) -> Response:
    """The reply to a write."""
    if not isinstance(reply, Response):
        raise MalformedEvent("the worker answered a write with the reply to a fetch", hint="update the older side")
    return reply


_default: Client | None = None
_default_lock = threading.Lock()


def default_client() -> Client:
    """The client of `beds.call` and the other functions of `beds`; made at the first use with `load_settings()`."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Client()
        return _default


def replace_default_client(client: Client | None) -> Client | None:
    """Replace the default client, and return the former one. For tests; see `beds.testing`."""
    global _default
    with _default_lock:
        before, _default = _default, client
        return before


def _restored(event_id: str) -> Ticket:
    """An unpickled ticket, which uses this process's default client."""
    return default_client().ticket(event_id)

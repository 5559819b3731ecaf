"""Tickets over HTTP."""

from __future__ import annotations

from starlette.responses import Response

from beds.client.flows import Handle
from beds.domain.ticket import TicketStatus
from beds.errors import CallTimeout
from beds.http.node import Node
from beds.http.problems import not_found
from beds.http.representations import result_json, ticket_json
from beds.http.requests import EVENT_ID, Asked
from beds.http.streams import events_of_ticket, sent_events, version_of
from beds.wire.reply import encoded_result

POLL_SECONDS = 1
"""Retry-After of a ticket that has not ended."""


async def on_ticket(node: Node, asked: Asked, guid: str, rest: tuple[str, ...]) -> Response:
    """`/v1/tickets/{guid}`, `…/result` and `…/events`."""
    handle = node.handle(guid, asked.caller.actor)
    match rest:
        case ():
            if asked.method == "DELETE":
                flow = node.flows.cancel(handle.guid, asked.caller.actor, node.http.timeout, handle.actor)
                return status_reply(asked, await node.run(flow))
            asked.allow("GET", "DELETE")
            return status_reply(asked, await _waited(node, asked, handle))
        case ("result",):
            asked.allow("GET")
            status = await _waited(node, asked, handle)
            asked.headers[EVENT_ID] = status.event_id
            if not status.ready:
                return status_reply(asked, status, 202)
            return asked.reply(result_json(encoded_result(status.result)))
        case ("events",):
            asked.allow("GET")
            status = await node.run(node.flows.status(handle.guid, node.http.timeout, handle.actor))
            asked.headers[EVENT_ID] = status.event_id
            seen = asked.request.headers.get("last-event-id")
            if status.ready and seen == version_of(status):
                return asked.reply_empty(204)  # an EventSource connects no more after this status
            return sent_events(asked, events_of_ticket(node, handle, status, seen), asked.verify)
    raise not_found()


async def _waited(node: Node, asked: Asked, handle: Handle) -> TicketStatus:
    """The status, after the ticket's end or the time of `Prefer: wait`."""
    flows, wait = node.flows, asked.preferences.wait
    if wait:
        try:
            return await node.run(flows.wait(handle, wait))
        except CallTimeout:
            pass
    return await node.run(flows.status(handle.guid, node.http.timeout, handle.actor))


def status_reply(asked: Asked, status: TicketStatus, code: int = 200) -> Response:
    """The response with a ticket's status."""
    asked.headers[EVENT_ID] = status.event_id
    headers = {} if status.ready else {"Retry-After": str(POLL_SECONDS)}
    return asked.reply(ticket_json(status), code, headers)

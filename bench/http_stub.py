"""The app server over a client whose transport replies at once, in memory: the side `stub` of bench.http.

What it can carry is what the node itself costs, without RabbitMQ, workers and databases.

    python -m bench.http_stub        with the settings of beds.toml
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beds.client.client import Client
from beds.config import load_settings
from beds.domain.event import CALGON, Event
from beds.domain.reply import Page, Response
from beds.domain.ticket import TicketState
from beds.errors import BedsError, CallTimeout, UnknownTicket
from beds.http.server import serve
from beds.transport.pending import Pending
from beds.wire.message import with_encoded_body
from beds.wire.reply import encode_error, encode_reply

AIRPORT = {"faa": "JFK", "name": "John F Kennedy Intl", "lat": 40.639751, "lon": -73.778925, "alt": 13, "tz": -5,
           "dst": "A", "tzone": "America/New_York"}  # fmt: skip
MAX_BODY_BYTES = 2**20


class StubTransport:
    """A `Transport` that replies to every fetch with one airport, and to every create with its record."""

    def __init__(self) -> None:
        self._page = encode_reply("", Page((AIRPORT,)))
        self._unknown = encode_error("", TicketState.FAILURE, UnknownTicket("none"), "")

    def send(self, event: Event, deadline: float) -> Pending:
        pending = Pending(with_encoded_body(event, MAX_BODY_BYTES))
        payload = event.arguments.get("payload")
        if event.queue == CALGON:
            pending.answer(self._unknown)
        elif isinstance(payload, Mapping):
            pending.answer(self._created(payload))
        else:
            pending.answer(self._page)
        return pending

    @staticmethod
    def _created(payload: Mapping[str, Any]) -> bytes:
        return encode_reply("", Response(str(payload.get("id", "")), 1, dict(payload)))

    def send_now(self, event: Event) -> Pending | None:
        return self.send(event, 0.0)

    def why_late(self, pending: Pending, what: str) -> BedsError:
        return CallTimeout(what)

    @property
    def is_ready(self) -> bool:
        return True

    def close(self) -> None:
        return


if __name__ == "__main__":
    settings = load_settings()
    serve(settings, Client(settings, transport=StubTransport()))

"""uvicorn's protocols with limits to a request's head, and to the time in which a client sends or reads nothing.

Without these, clients that send or read byte by byte hold connections and memory for ever.
"""

from __future__ import annotations

import asyncio
import http

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from beds.http.problems import MEDIA_TYPE, Problem, encode_problem

HEAD_BYTES = 65_536
"""The largest head of a request: its address and headers. Also of what follows a body in chunks."""
_REFUSALS = {
    400: Problem(400, "unreadable", "This is no request of HTTP/1.1."),
    408: Problem(408, "request_timeout", "The request did not arrive in time."),
    431: Problem(431, "head_too_large", f"Address and headers may have {HEAD_BYTES:,} bytes."),
}


def refusal(status: int) -> bytes:
    """A whole response, for a request that the application never gets."""
    body = encode_problem(_REFUSALS[status])
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


class _Reader:
    """Ends a connection whose client stops reading.

    Args:
        transport: of the connection. It may be closing, which lasts until the client has read the rest.
        seconds: time in which a client must read something that waits for it.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def wait(self) -> None:
        """Called when data waits for the client."""
        loop, size = asyncio.get_running_loop(), self._transport.get_write_buffer_size()
        self._timer = loop.call_later(self._seconds, self._look, size)

    def done(self) -> None:
        """Called when the client has read on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, before: int) -> None:
        if self._transport.get_write_buffer_size() >= before:
            self._transport.abort()
        else:
            self.wait()


class GuardedHttp(HttpToolsProtocol):
    """HTTP/1.1.

    Attributes:
        seconds: in which a head must arrive, and something must be read.
        max_connections: further ones are closed at once.
    """

    seconds = 30.0
    max_connections = 2000

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reader = _Reader(transport, self.seconds)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = self._in_message = self._is_upgraded = False
        self._why = 400
        self._silent_bytes = 0  # since the last part of a body, or the end of a head or body
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._await_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self._reader.done()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.done()

    def data_received(self, data: bytes) -> None:
        self._silent_bytes += len(data)
        super().data_received(data)
        if self._silent_bytes > HEAD_BYTES:
            self._refuse(431)
        elif self._is_answered and not self._is_upgraded:
            self._await_rest()  # of the next head, or of a body whose request is answered already

    def handle_websocket_upgrade(self) -> None:
        self._is_upgraded = True
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._await_rest()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer never becomes a header of the request, whose rights are known already
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._arrived()
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_BYTES:
            self._why = 431
            raise ValueError("the head is too large")  # uvicorn calls send_400_response
        super().on_headers_complete()
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        self._arrived()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._why)

    @property
    def _is_answered(self) -> bool:
        """True if no request of this connection waits for its response."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def _await_rest(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._refuse, 408)

    def _arrived(self) -> None:
        self._silent_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int) -> None:
        """Close the connection. No client may take the refusal for the response to an earlier request."""
        self._arrived()
        if self.transport.is_closing():
            return
        if self._is_answered and (self._in_head or not self._in_message):
            self.transport.write(refusal(status))
        self.transport.close()


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """WebSocket.

    Attributes:
        seconds: in which something must be read.
    """

    seconds = 30.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._reader = _Reader(self.transport, self.seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.done()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.done()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            # uvicorn would leave the connection open without a response.
            self.transport.write(refusal(400))
            self.transport.close()

    def handle_ping(self) -> None:
        # One pong may stand for several pings (RFC 6455, 5.5.3). For a client that reads none they would pile up.
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)

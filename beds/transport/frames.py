"""Reads and publishes over a connection of py-amqp, with fewer system calls than py-amqp.

py-amqp reads each frame in three system calls, and a delivery is three frames. While `connection.blocked` is among the
client's capabilities, it also reads the socket before each publish. That costs two system calls and an exception, and
inside a callback it calls the callback again with the next delivery.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from typing import Any

import amqp
from amqp import spec

LOST = (OSError, amqp.AMQPError, AttributeError)
"""The errors of py-amqp on a lost connection; AttributeError after RabbitMQ closed a channel."""
CHUNK_BYTES = 65536
_FRAME = struct.Struct(">BHI")
_FRAME_END = 0xCE


class FrameReader:
    """Reads what has arrived, cuts it into frames, and hands each to py-amqp.

    Args:
        connection: an open connection, which nothing else may read from.
    """

    def __init__(self, connection: amqp.Connection) -> None:
        self._socket: socket.socket = connection.sock
        self._tls = self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        self._take = connection.on_inbound_frame
        self._arrivals = select.poll()  # unlike select(), it takes descriptors beyond 1023
        self._arrivals.register(self._socket, select.POLLIN)
        self._buffer = b""

    @property
    def has_more(self) -> bool:
        """Whether TLS holds decrypted bytes, for which the socket does not become readable."""
        return self._tls is not None and self._tls.pending() > 0

    def read(self) -> None:
        """Handle frames that have arrived, without waiting for more. A chunk at most, so that publishers get a turn.

        Raises:
            OSError: the connection is lost, or what arrives is no frame.
            AMQPError: RabbitMQ closed the channel or the connection.
        """
        if self._tls is None:
            try:
                self._feed(self._socket.recv(CHUNK_BYTES, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return
        else:
            self._read_tls(self._tls)

    def _read_tls(self, tls: ssl.SSLSocket) -> None:
        """As `read`. A readable socket may hold half a TLS record, so the socket must not block meanwhile."""
        timeout = tls.gettimeout()
        while self.has_more or self._arrivals.poll(0):
            tls.settimeout(0)
            try:
                data = tls.recv(CHUNK_BYTES)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            finally:
                tls.settimeout(timeout)
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionResetError("RabbitMQ closed the connection")
        buffer = self._buffer + data if self._buffer else data
        at, size = 0, len(buffer)
        while size - at >= _FRAME.size:
            kind, channel, length = _FRAME.unpack_from(buffer, at)
            end = at + _FRAME.size + length
            if size <= end:
                break
            if buffer[end] != _FRAME_END:
                raise OSError("RabbitMQ sent what is no frame of AMQP 0-9-1")
            payload = buffer[at + _FRAME.size : end]
            at = end + 1
            self._take((kind, channel, payload))
        self._buffer = buffer[at:]


def limit_waits(sock: socket.socket, seconds: int) -> None:
    """Make a socket blocking, and let none of its calls wait longer.

    A plain socket gets the kernel's limit, since Python's own makes each `recv` wait. OpenSSL repeats a call that the
    kernel's limit has ended.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(seconds)
        return
    sock.setblocking(True)
    limit_calls(sock, seconds, seconds)


def limit_calls(sock: socket.socket, reading: float, writing: float) -> None:
    """Let the kernel end a call of a blocking socket after these seconds; never when 0."""
    for option, seconds in ((socket.SO_RCVTIMEO, reading), (socket.SO_SNDTIMEO, writing)):
        whole = int(seconds)
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, int((seconds - whole) * 1_000_000)))


def publish(channel: Any, message: amqp.Message, exchange: str, key: str, *, mandatory: bool = False) -> None:
    """Publish one message, and read nothing meanwhile.

    Args:
        channel: py-amqp's.
        message: what to publish.
        exchange, key: where.
        mandatory: whether RabbitMQ returns a message that no queue takes.
    """
    channel.send_method(spec.Basic.Publish, "Bssbb", (0, exchange, key, mandatory, False), message)

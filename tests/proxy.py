"""A TCP proxy on loopback that can stop forwarding, or lose what is on its way, to simulate a bad network."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class SilentProxy:
    """Forwards bytes to a port; while `silent`, it reads them and forwards nothing.

    `cut_at`: the next connection that sends these bytes is closed, and they are lost.

    Args:
        port: of the server on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.silent = False
        self.cut_at: bytes | None = None
        self._closed = False
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone would not end `accept`
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                except OSError:
                    near.close()  # the server is down
                    continue
                far.settimeout(None)
                self._sockets += [near, far]
                if self._closed:
                    near.close()
                    far.close()
                    return
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink, source is near), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_sent: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while self.silent and not self._closed:
                    time.sleep(0.02)
                if is_sent and self.cut_at is not None and self.cut_at in data:
                    self.cut_at = None
                    break
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

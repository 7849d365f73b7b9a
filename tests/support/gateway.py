"""An HTTP/2 server that answers every request with one status and nothing else, as gateways do."""

from __future__ import annotations

import socketserver
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_HEADERS, _SETTINGS, _PING = 1, 4, 6
_ACK, _END = 1, 5  # as flags; the end of both the headers and the stream


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


class Gateway:
    """Listens on a free loopback port."""

    def __init__(self, status: int) -> None:
        told = b"\x08\x03%d" % status  # ":status", by its number in HPACK's table

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.rfile.read(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
                with suppress(OSError, struct.error):
                    self.wfile.write(_frame(_SETTINGS, 0, 0, b""))
                    while True:
                        high, low, kind, flags, stream = struct.unpack(">BHBBI", self.rfile.read(9))
                        body = self.rfile.read(high << 16 | low)
                        if kind == _HEADERS:
                            self.wfile.write(_frame(_HEADERS, _END, stream, told))
                        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                            answer = body if kind == _PING else b""
                            self.wfile.write(_frame(kind, _ACK, 0, answer))

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

"""A name server of one name, for what happens when its address moves."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Self

_ADDRESS = 1  # the type of a record with an IPv4 address
_UNKNOWN = 3  # the answer "there is no such name"


class NameServer:
    """Answers every question for an IPv4 address with `address`. A context manager.

    Attributes:
        address: what is told now; ``None``: there is no such name.
        port: where it listens, on 127.0.0.1, by UDP.

    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(512)
            if not question:
                return
            self._socket.sendto(self._answer(question), sender)

    def _answer(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12) + 5  # of the name, its type and its class
        (wanted,) = struct.unpack_from("!H", question, end - 4)
        address = self.address
        found = address is not None and wanted == _ADDRESS
        flags = 0x8180 | (_UNKNOWN if address is None else 0)
        head = question[:2] + struct.pack("!5H", flags, 1, int(found), 0, 0)
        if not found:
            return head + question[12:end]
        assert address is not None
        record = struct.pack("!HHHIH", 0xC00C, _ADDRESS, 1, 0, 4) + socket.inet_aton(address)
        return head + question[12:end] + record

"""One keep-alive HTTP/1.1 connection to an agent: bytes out, an answer in, by a deadline.

*Theory.* The standard `http.client` spends two thirds of a request's time on parsing headers as
an e-mail, sends head and body as two packets, and bounds each socket call, not the whole answer. An
exchange here is one ``send`` of the whole request and, for a small answer, one ``recv``; every
wait gets what is left until the deadline, so that a server that trickles cannot outstay it.

What a connection knows about the exchange under way decides what may be done after a fault::

    touched   False: no byte of the request left this process; it surely was not processed
    answered  True: the server began to answer; asking again would be a second question
    reused    the connection served before, so the server may have closed it while it was idle

and ``reusable`` whether the answer was read whole, with nothing behind it: only then may another
exchange follow. It starts false with each exchange, so that whatever ends one early (an exception,
an interrupt, a reader who has seen enough) also ends the connection.

`abort` may be called by any thread: it shuts the socket down, which wakes the thread that waits
on it; that thread closes it. Closing it from outside could hand its number to another file while
it is still being read. It takes no lock, so a signal handler may call it as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from time import monotonic

from kvi_consul.flag import Flag

_RECEIVE = 1 << 16  # bytes asked for at once: more than the answer to any point operation
_LONGEST_HEAD = 1 << 16
_CONNECTING = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR}
_LONGEST_WAIT = 1e6  # seconds; the system counts the milliseconds of a wait in 31 bits
# A host that vanished is noticed within 11 seconds, while a blocking query waits in silence.
_KEEPALIVE = [
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
]
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(;.*)?\Z", re.DOTALL)


class NotHttp(ConnectionError):
    """The answer is not HTTP/1.x as RFC 9112 describes it."""


class Connection:
    """A connection to ``host:port``, used by one thread at a time; made unconnected."""

    __slots__ = (
        "_aborted",
        "_buffer",
        "_chunked",
        "_left",
        "_poll",
        "_sock",
        "_waiting",
        "agent",
        "answered",
        "deadline",
        "headers",
        "reusable",
        "reused",
        "status",
        "touched",
    )

    def __init__(self, agent: int = 0) -> None:
        """``agent``: which one of several it is for; the pool's own affair."""
        self.agent = agent
        self._sock: socket.socket | None = None
        self._aborted = False
        self._waiting: Flag | None = None
        self._poll: select.poll | None = None
        self._buffer = b""  # received and not consumed yet
        self._chunked = False
        self._left: int | None = 0  # bytes of the body still to come; None: until the end
        self.deadline = 0.0
        self.reused = False
        self.reusable = False
        self.touched = False
        self.answered = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}

    # -- connecting -------------------------------------------------------------------------------

    def connect(self, host: str, port: int, tls: ssl.SSLContext | None, deadline: float) -> None:
        """Connect to the first address of ``host`` that answers; raises `OSError`."""
        addresses = self._resolve(host, port, deadline)
        for position, (family, kind, protocol, address) in enumerate(addresses):
            share = (deadline - monotonic()) / (len(addresses) - position)
            try:
                self._connect(socket.socket(family, kind, protocol), address, share)
                break
            except OSError:
                self.close()
                if self._aborted or position == len(addresses) - 1:
                    raise
        if tls is not None:
            self._shake_hands(tls, host, deadline)

    def _connect(self, sock: socket.socket, address: object, seconds: float) -> None:
        self._sock = sock
        sock.setblocking(False)
        fault = sock.connect_ex(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
        # Not before: a socket that has not begun to connect cannot be shut down, so abort() either
        # finds one that has, or is seen here.
        self._check_aborted()
        if fault in _CONNECTING:
            _await_writable(sock, seconds)
            self._check_aborted()
            fault = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if fault:
            raise OSError(fault, os.strerror(fault))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)

    def _shake_hands(self, tls: ssl.SSLContext, host: str, deadline: float) -> None:
        plain = self._sock
        assert plain is not None
        plain.settimeout(_positive(deadline - monotonic()))
        sock = tls.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        self._sock = sock
        self._check_aborted()
        sock.do_handshake()

    def _resolve(self, host: str, port: int, deadline: float) -> list[_Address]:
        """The addresses of ``host``; the system's resolver knows no deadline and gets a thread."""
        with contextlib.suppress(socket.gaierror):
            return _look_up(host, port, socket.AI_NUMERICHOST)
        found: list[list[_Address] | OSError] = []
        done = self._waiting = Flag()

        def look() -> None:
            try:
                found.append(_look_up(host, port, 0))
            except OSError as error:
                found.append(error)
            done.set()

        try:
            threading.Thread(target=look, name="kvi-consul-resolve", daemon=True).start()
        except RuntimeError as error:  # of the system's limits
            raise OSError(f"the host name cannot be resolved: {error}") from error
        self._check_aborted()
        done.wait(_positive(deadline - monotonic()))
        self._waiting = None
        self._check_aborted()
        if not found:
            raise TimeoutError("the host name was not resolved in time")
        if isinstance(found[0], OSError):
            raise found[0]
        return found[0]

    def _check_aborted(self) -> None:
        if self._aborted:
            raise ConnectionAbortedError("the handle was closed")

    # -- one exchange -----------------------------------------------------------------------------

    def idle(self) -> bool:
        """Whether the server left the idle connection alone: it neither closed it nor spoke."""
        sock = self._sock
        if sock is None:
            return False
        if self._poll is not None:
            return not self._poll.poll(0)
        return not select.select([sock], [], [], 0)[0]

    def listen(self, deadline: float) -> None:
        """Wait for what the server says unasked, such as a TLS alert; raises `OSError`."""
        self.deadline = deadline
        self._receive()

    def send(self, request: bytes, deadline: float) -> None:
        """Send a whole request; raises `OSError`, see ``touched``."""
        sock = self._sock
        assert sock is not None
        self.deadline = deadline
        self.reusable = self.answered = False
        # TLS may have written part of a record when it fails; a plain socket that fails at its
        # first call has taken nothing.
        self.touched = isinstance(sock, ssl.SSLSocket)
        sock.settimeout(_positive(deadline - monotonic()))
        sent = sock.send(request)
        self.touched = True
        if sent < len(request):
            sock.settimeout(_positive(deadline - monotonic()))
            sock.sendall(memoryview(request)[sent:])

    def read_head(self) -> None:
        """Read status and headers of the answer; raises `OSError`."""
        while True:
            lines = self._until(b"\r\n\r\n").split(b"\r\n")
            version, _, rest = lines[0].partition(b" ")
            if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit():
                raise NotHttp("the answer is not HTTP/1.1")
            self.status = int(rest[:3])
            if self.status >= 200:  # 1xx only announce the answer
                break
        self.headers = headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        length = headers.get(b"content-length", b"")
        self._chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        if self._chunked or self.status in (204, 304):
            self._left = 0
        elif length.isdigit():
            self._left = int(length)
        elif length:
            raise NotHttp("the length of the answer is not a number")
        else:
            self._left = None

    def read_body(self) -> bytes:
        """Read the rest of the answer at once; raises `OSError`."""
        if not self._chunked and self._left == len(self._buffer):  # all of it came with the head
            body, self._buffer = self._buffer, b""
            self._finish()
            return body
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The rest of the answer as it comes; raises `OSError`. Set ``deadline`` for each piece."""
        if self._chunked:
            while True:
                size = _CHUNK_SIZE.match(self._until(b"\r\n"))
                if size is None:
                    raise NotHttp("a chunk of the answer has no size")
                self._left = int(size[1], 16)
                if not self._left:
                    break
                while self._left:
                    yield self._piece()
                if self._until(b"\r\n"):
                    raise NotHttp("a chunk of the answer is longer than it says")
            while self._until(b"\r\n"):
                pass  # trailers
        elif self._left is None:
            if self._buffer:
                yield self._piece()
            while piece := self._receive():
                yield piece
        else:
            while self._left:
                yield self._piece()
        self._finish()

    def _finish(self) -> None:
        self.reusable = (
            self._left is not None
            and not self._buffer
            and self.headers.get(b"connection", b"").lower() != b"close"
        )

    def _piece(self) -> bytes:
        piece = self._buffer or self._some()
        if self._left is not None:
            piece, self._buffer = piece[: self._left], piece[self._left :]
            self._left -= len(piece)
        else:
            self._buffer = b""
        return piece

    def _until(self, end: bytes) -> bytes:
        buffer, searched = self._buffer, 0
        while (found := buffer.find(end, searched)) < 0:
            if len(buffer) > _LONGEST_HEAD:
                raise NotHttp("the head of the answer does not end")
            searched = max(0, len(buffer) - len(end) + 1)
            buffer += self._some()
        self._buffer = buffer[found + len(end) :]
        return buffer[:found]

    def _some(self) -> bytes:
        data = self._receive()
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data

    def _receive(self) -> bytes:
        sock = self._sock
        assert sock is not None
        sock.settimeout(_positive(self.deadline - monotonic()))
        data = sock.recv(_RECEIVE)
        if data:
            self.answered = True
        return data

    # -- ending -----------------------------------------------------------------------------------

    def abort(self) -> None:
        """Make the thread that uses the connection fail now; callable by any thread."""
        self._aborted = True
        if (waiting := self._waiting) is not None:
            waiting.set()
        if (sock := self._sock) is not None:
            with contextlib.suppress(OSError):  # not connected (any more)
                # Not SSLSocket.shutdown: it takes the encryption off first, and the other thread
                # could write its token in between.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def __del__(self) -> None:
        self.close()  # of a handle that was dropped unclosed; without a warning, as the others

    def close(self) -> None:
        """Close the socket; for the thread that uses the connection, or for an idle one."""
        sock, self._sock, self._poll = self._sock, None, None
        if sock is not None:
            sock.close()


def _await_writable(sock: socket.socket, seconds: float) -> None:
    seconds = _positive(seconds)
    if hasattr(select, "poll"):  # no limit to the number of the file
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        ready = bool(poll.poll(seconds * 1000))
    else:  # Windows tells a refused connection as an exception
        ready = any(select.select([], [sock], [sock], seconds))
    if not ready:
        raise TimeoutError("timed out")


_Address = tuple[int, int, int, object]  # family, kind, protocol, and where


def _look_up(host: str, port: int, flags: int) -> list[_Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, kind, protocol, where) for family, kind, protocol, _, where in found]


def _positive(seconds: float) -> float:
    if seconds <= 0:  # 0 would mean "do not wait" to a socket, a negative number is an error
        raise TimeoutError("timed out")
    return min(seconds, _LONGEST_WAIT)

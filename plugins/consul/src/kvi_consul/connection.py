"""One keep-alive HTTP/1.1 connection to an agent: bytes out, an answer in, by a deadline.

*Theory.* The standard `http.client` spends two thirds of a request's time on parsing headers as
an e-mail, sends head and body as two packets, and bounds each socket call, not the whole answer. An
exchange here is one ``send`` of the whole request and, for a small answer, one ``recv``; every
wait gets what is left until the deadline, so that a server that trickles cannot outstay it.

*Errors.* What a socket call raises, and nothing else, becomes `Broken`, right where it is called:
an error from anywhere else is not the network's, and must not make anybody ask again.

What a connection knows about the exchange under way decides what may be done after a fault::

    touched   False: no byte of the request left this process; it surely was not processed
    answered  True: the server began to answer; asking again would be a second question
    reused    the connection served before, so the server may have closed it while it was idle

and ``reusable`` whether the answer was read whole, with nothing behind it: only then may another
exchange follow. It starts false with each exchange, so that whatever ends one early (an exception,
an interrupt, a reader who has seen enough) also ends the connection.

`abort` may be called by any thread: it shuts the socket down, which wakes the thread that waits
on it; that thread closes it. Closing it from outside could hand its number to another file while
it is still being read.

*Greeting.* An agent that has enough connections accepts one more, and closes it. What was sent on
it meanwhile may have been read or not. So before a new connection carries a write, it is asked for
the methods of a path, which costs the agent nothing: who answers that has taken the connection,
unless it says that it closes it now, as one does that ends, or that it cannot reach an agent.
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

from kvi_consul.errors import Broken, Dismissed, Unserved, of_greeting
from kvi_consul.resolving import Address, resolve

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
_GREETING = b"OPTIONS /v1/status/leader HTTP/1.1\r\nContent-Length: 0\r\n%b\r\n"
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(;.*)?\Z", re.DOTALL)


class NotHttp(ConnectionError):
    """The answer is not HTTP/1.x as RFC 9112 describes it."""


class Connection:
    """A connection to ``host:port``, used by one thread at a time; made unconnected."""

    __slots__ = (
        "_buffer",
        "_chunked",
        "_lasts",
        "_left",
        "_poll",
        "_resolving",
        "_sock",
        "aborted",
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
        self.aborted = False
        self._resolving = threading.Event()  # set: the addresses are known, or not wanted
        self._poll: select.poll | None = None
        self._buffer = b""  # received and not consumed yet
        self._chunked = False
        self._lasts = False  # the server keeps the connection after this answer
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
        """Connect to the first address of ``host`` that answers; raises `Broken`."""
        self._check_aborted()
        addresses = resolve(host, port, self._resolving, deadline)
        self._check_aborted()
        for position, address in enumerate(addresses):
            try:
                self._connect(address, (deadline - monotonic()) / (len(addresses) - position))
                break
            except Broken:
                self.close()
                if self.aborted or position == len(addresses) - 1:
                    raise
        if tls is not None:
            self._shake_hands(tls, host, deadline)

    def _connect(self, address: Address, seconds: float) -> None:
        family, kind, protocol, where = address
        try:
            self._sock = sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            fault = sock.connect_ex(where)  # type: ignore[arg-type]  # as getaddrinfo gave it
        except OSError as error:
            raise Broken(sent=False) from error
        # Not before: a socket that has not begun to connect cannot be shut down, so abort() either
        # finds one that has, or is seen here.
        self._check_aborted()
        if fault in _CONNECTING:
            _await_writable(sock, seconds)
            self._check_aborted()
            fault = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if fault:
            raise Broken(sent=False) from OSError(fault, os.strerror(fault))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        except OSError as error:  # of a connection that is gone already, on some systems
            raise Broken(sent=False) from error
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)

    def _shake_hands(self, tls: ssl.SSLContext, host: str, deadline: float) -> None:
        plain = self._sock
        assert plain is not None
        plain.settimeout(_left(deadline))
        try:
            sock = tls.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
            self._sock = sock
            self._check_aborted()
            sock.do_handshake()
        except OSError as error:
            raise Broken(sent=False) from error

    def greet(self, header: bytes, deadline: float) -> None:
        """Make sure that the server has taken the connection; raises `Broken`."""
        try:
            self.send(_GREETING % header, deadline)
            self.read_head()
            said = self.read_body().decode(errors="replace")
            if (error := of_greeting(self.status, said)) is not None:
                raise Broken(sent=False) from Unserved(error)
            if not self.reusable:
                raise Broken(sent=False) from ConnectionAbortedError("it takes no more on this one")
        except Broken as broken:
            self.touched = self.reusable = False  # nothing that matters
            cause = broken.__cause__
            gone = isinstance(cause, ConnectionError) and not self.answered
            raise Broken(sent=False) from (Dismissed(str(cause)) if gone else cause)

    def _check_aborted(self) -> None:
        if self.aborted:
            raise Broken(sent=self.touched) from ConnectionAbortedError("the handle was closed")

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
        """Wait for what the server says unasked, such as a TLS alert; raises `Broken`."""
        self.deadline = deadline
        self._receive()

    def send(self, request: bytes, deadline: float) -> None:
        """Send a whole request; raises `Broken`, see ``touched``."""
        sock = self._sock
        assert sock is not None
        self.deadline = deadline
        self.reusable = self.answered = self.touched = False
        sock.settimeout(_left(deadline))
        self.touched = True
        try:
            sent = sock.send(request)
        except OSError as error:
            # TLS may have written part of a record when it fails; a plain socket that fails at its
            # first call has taken nothing.
            self.touched = isinstance(sock, ssl.SSLSocket)
            raise Broken(sent=self.touched) from error
        if sent < len(request):
            sock.settimeout(_left(deadline, sent=True))
            try:
                sock.sendall(memoryview(request)[sent:])
            except OSError as error:
                raise Broken(sent=True) from error

    def read_head(self) -> None:
        """Read status and headers of the answer; raises `Broken`."""
        while True:
            lines = self._until(b"\r\n\r\n").split(b"\r\n")
            version, _, rest = lines[0].partition(b" ")
            if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit():
                raise Broken(sent=True) from NotHttp("the answer is not HTTP/1.1")
            self.status = int(rest[:3])
            if self.status >= 200:  # 1xx only announce the answer
                break
        self.headers = headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        said = headers.get(b"connection", b"").lower().replace(b" ", b"").split(b",")
        self._lasts = b"close" not in said and (version == b"HTTP/1.1" or b"keep-alive" in said)
        length = headers.get(b"content-length", b"")
        self._chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        if self._chunked or self.status in (204, 304):
            self._left = 0
        elif length.isdigit():
            self._left = int(length)
        elif length:
            raise Broken(sent=True) from NotHttp("the length of the answer is not a number")
        else:
            self._left = None

    def read_body(self) -> bytes:
        """Read the rest of the answer at once; raises `Broken`."""
        if not self._chunked and self._left == len(self._buffer):  # all of it came with the head
            body, self._buffer = self._buffer, b""
            self._finish()
            return body
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The rest of the answer as it comes; raises `Broken`. Set ``deadline`` for each piece."""
        if self._chunked:
            while True:
                size = _CHUNK_SIZE.match(self._until(b"\r\n"))
                if size is None:
                    raise Broken(sent=True) from NotHttp("a chunk of the answer has no size")
                self._left = int(size[1], 16)
                if not self._left:
                    break
                while self._left:
                    yield self._piece()
                if self._until(b"\r\n"):
                    raise Broken(sent=True) from NotHttp("a chunk is longer than it says")
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
        self.reusable = self._lasts and self._left is not None and not self._buffer

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
                raise Broken(sent=True) from NotHttp("the head of the answer does not end")
            searched = max(0, len(buffer) - len(end) + 1)
            buffer += self._some()
        self._buffer = buffer[found + len(end) :]
        return buffer[:found]

    def _some(self) -> bytes:
        data = self._receive()
        if not data:
            raise Broken(sent=True) from ConnectionResetError("the server closed it")
        return data

    def _receive(self) -> bytes:
        sock = self._sock
        assert sock is not None
        sock.settimeout(_left(self.deadline, sent=self.touched))
        try:
            data = sock.recv(_RECEIVE)
        except OSError as error:
            raise Broken(sent=self.touched) from error
        if data:
            self.answered = True
        return data

    # -- ending -----------------------------------------------------------------------------------

    def abort(self) -> None:
        """Make the thread that uses the connection fail now; callable by any thread."""
        self.aborted = True
        self._resolving.set()
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
    if hasattr(select, "poll"):  # no limit to the number of the file
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        ready = seconds > 0 and bool(poll.poll(min(seconds, _LONGEST_WAIT) * 1000))
    else:  # Windows tells a refused connection as an exception
        ready = seconds > 0 and any(select.select([], [sock], [sock], min(seconds, _LONGEST_WAIT)))
    if not ready:
        raise Broken(sent=False) from TimeoutError("timed out")


def _left(deadline: float, *, sent: bool = False) -> float:
    """The seconds until ``deadline``, for a socket, to which 0 would mean "do not wait"."""
    seconds = deadline - monotonic()
    if seconds <= 0:
        raise Broken(sent=sent) from TimeoutError("timed out")
    return min(seconds, _LONGEST_WAIT)

"""Requests over a pool of connections to an agent, or to one of several.

*Theory.* The connection used last is used first (LIFO), so that a quiet program keeps few of them
warm and the rest time out. A call needs a `Places` place before it gets one: there are few of them,
first come, first served, because an agent takes only so many connections from one address, for all
processes there. Waiting for one counts against the call's time. A watch's queries need no place;
`kvi_consul.watches` makes no more of them than there are places.

=============  =====================================  ===========================================
what           is owned by                            and given back
=============  =====================================  ===========================================
a place        the `Exchange` of a call               when its block ends
a connection   the `Exchange` that uses it, which     to the idle ones if its answer was read
               is in ``_busy`` so that `close` can    whole and its agent is the current one; else
               wake who waits on it                   it is closed
=============  =====================================  ===========================================

A connection that was idle may have been closed by the server in that very moment. Before it is
reused it is checked; if it fails all the same before any byte of an answer, the request is sent
again on another one, but a write only if not one byte of it was sent (`kvi_consul.connection`
tells). A silence condemns the idle ones as well: what swallows the bytes of one, such as a router
that forgot, swallows those of its neighbours. Everything else that fails is `Broken`, which says
whether the server may have the request.

*Several agents.* One of them is the current one, which new connections go to. It is left when it
cannot be connected to, breaks off, does not answer in time, or knows no leader; its idle
connections are closed then. A request that was not sent goes to the next agent at once, at most
once around. A read waits for its share of the time, and `_SILENCE` seconds at the most, for each
agent but the last; a write has all of it.

Redirects are not followed: Consul redirects ``a//b`` to ``a/b``, another key. The token travels in
a header only, never in a URL, which ends in logs.
"""

from __future__ import annotations

import ssl
import threading
from collections import deque
from collections.abc import Iterator
from threading import get_ident
from time import monotonic
from typing import NamedTuple, Self

from kvi_consul.connection import Connection
from kvi_consul.errors import NO_LEADER, Broken, is_certificate_alert
from kvi_consul.tls import Tls

CONNECTIONS = 8  # open at once for calls, unless the handle says otherwise
_DRAIN = 1.0  # seconds that close() waits for woken threads to let go of their sockets
_VERDICT = 1.0  # seconds that a server takes at most to refuse a certificate
_SILENCE = 2.0  # seconds that a read waits for an agent, if there is another
_PATIENCE = 0.5  # seconds; requests that have less never leave an agent for its silence
_PIECE = 1 << 18  # bytes of a streamed answer that are handed on at once
_LONGEST_WAIT = 1e6  # seconds that the system's locks can count


class Agent(NamedTuple):
    """Where an agent listens, and the header that names it."""

    host: str
    port: int
    header: bytes

    @classmethod
    def at(cls, host: str, port: int) -> Agent:
        """The agent at ``host:port``."""
        return cls(host, port, f"Host: {_named(host, port)}\r\n".encode())


def _named(host: str, port: int) -> str:
    plain = host.partition("%")[0]  # without the zone of an IPv6 address, which is ours alone
    return f"[{plain}]:{port}" if ":" in plain else f"{plain}:{port}"


class Answer(NamedTuple):
    """What the server answered, whatever its status."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Call:
    """A request that another thread may `end` early: it fails then, also if it has yet to begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self.ended = False

    def end(self) -> None:
        """Make the request fail now; after its end this does nothing."""
        with self._lock:
            self.ended = True
            if self._connection is not None:
                self._connection.abort()

    def use(self, connection: Connection | None) -> None:
        """Say which connection the request is on; ``None``: on none any more. Raises `Broken`."""
        with self._lock:
            if connection is not None and self.ended:
                raise Broken(sent=False) from ConnectionAbortedError("the request was given up")
            self._connection = connection


class Places:
    """A number of places, handed out first come, first served."""

    def __init__(self, number: int) -> None:
        self._lock = threading.Lock()
        self._free = number
        self._queue: deque[threading.Lock] = deque()  # each held until its owner is handed a place

    def take(self, deadline: float) -> None:
        """Take a place, waiting for one. Raises `Broken` if there is none until ``deadline``."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            gate = threading.Lock()
            gate.acquire()
            self._queue.append(gate)
        if gate.acquire(timeout=min(max(deadline - monotonic(), 0.0), _LONGEST_WAIT)):
            return
        with self._lock:
            if gate in self._queue:
                self._queue.remove(gate)
                raise Broken(sent=False) from TimeoutError("all connections are in use")
            # Else it was handed over in this very moment.

    def give(self) -> None:
        """Give a place back: to who has waited longest, if anybody does."""
        with self._lock:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._free += 1

    def open(self) -> None:
        """Let everybody in, now and later: who comes in finds the handle closed."""
        with self._lock:
            self._free = 1 << 62
            while self._queue:
                self._queue.popleft().release()


class Exchange:
    """A request on its way, and its answer; the end of its block gives back what it uses."""

    __slots__ = ("_began", "_call", "_connection", "_transport", "headers", "status")

    def __init__(
        self, transport: Transport, connection: Connection, call: Call | None, began: float
    ) -> None:
        self._transport, self._connection, self._call = transport, connection, call
        self._began = began
        # Taken now: the connection is another thread's once the block has ended.
        self.status, self.headers = connection.status, connection.headers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport._give(self._connection, self._call)

    def read(self) -> bytes:
        """All of the answer. An agent that says it has no leader is left by the way."""
        try:
            content = self._connection.read_body()
        except Broken as broken:
            self._fail(broken)
            raise
        if self.status == 500 and NO_LEADER in content:
            self._transport._leave(self._connection.agent)
        return content

    def pieces(self, patience: float | None = None) -> Iterator[bytes]:
        """The answer in pieces of a useful size, each of which may take ``patience`` seconds.

        Without it, all of them together have what is left until the deadline.
        """
        # The server sends chunks of a few kilobytes; a reader that starts over for each would
        # look at a large value a hundred times before it is there whole.
        gathered: list[bytes] = []
        size = 0
        pieces = self._connection.pieces()
        while True:
            try:
                piece = next(pieces, b"")
            except Broken as broken:
                self._fail(broken)
                raise
            gathered.append(piece)
            size += len(piece)
            if size and (size >= _PIECE or not piece):
                yield b"".join(gathered)
                gathered, size = [], 0
                if patience is not None:
                    self._connection.deadline = monotonic() + patience
            if not piece:
                return

    def _fail(self, broken: Broken) -> None:
        if self._call is None or not self._call.ended:
            self._transport._blame(self._connection.agent, broken.__cause__, self._began)


class Transport:
    """Requests to the agent at ``host:port``. Safe for any number of threads."""

    def __init__(
        self,
        host: str,
        port: int,
        *others: tuple[str, int],
        token: str | None = None,
        tls: Tls | None = None,
        connections: int = CONNECTIONS,
    ) -> None:
        """``connections``: how many are open at once for calls, and how many more for watches."""
        agents = [(host, port), *others]
        self.host, self.port, self.tls, self.token = host, port, tls, token
        self._agents = [Agent.at(*agent) for agent in agents]
        self._at = 0  # the current one
        self.where = f"Consul at {', '.join(_named(*agent) for agent in agents)}"
        self._fixed = b""
        if token is not None:
            self._fixed = b"X-Consul-Token: " + token.encode() + b"\r\n"
        self.connections = connections
        self.closing = threading.Event()
        self._reset()

    def _context(self) -> ssl.SSLContext | None:
        return None if self.tls is None else self.tls.context()

    def _reset(self) -> None:
        self._places = Places(self.connections)
        self._lock = threading.Lock()  # guards what follows
        self._idle: list[Connection] = []
        self._busy: dict[Connection, int] = {}  # and the thread that each is used by
        self._unused = threading.Event()  # set: closing, and nothing is busy

    def head(self, method: str, target: str, token: str | None = None) -> bytes:
        """The head of a request, up to the number of bytes of its body.

        ``target`` is a path with its query, quoted already. ``token`` replaces the handle's own.
        """
        fixed = self._fixed
        if token is not None:
            fixed = b"X-Consul-Token: " + token.encode("latin-1") + b"\r\n"
        line = f"{method} {target} HTTP/1.1\r\n".encode("ascii")
        return line + fixed + b"Content-Type: application/json\r\nContent-Length: "

    def exchange(
        self, head: bytes, body: bytes, deadline: float, *, read_only: bool, waits: bool = False
    ) -> Answer:
        """Send one request and read its answer whole; raises `Broken`.

        ``waits``: the server is asked to wait with its answer, so that silence means nothing.
        """
        with self.begin(head, body, deadline, read_only=read_only, waits=waits) as exchange:
            return Answer(exchange.status, exchange.headers, exchange.read())

    def begin(
        self,
        head: bytes,
        body: bytes,
        deadline: float,
        *,
        read_only: bool,
        waits: bool = False,
        call: Call | None = None,
    ) -> Exchange:
        """Send one request and read the head of its answer; raises `Broken`.

        Leaving the block of what it returns before the end of the answer drops the connection. A
        request with a ``call`` is a watch's: another thread may end it, and it needs no place.
        """
        began, others = monotonic(), len(self._agents) - 1
        shared = read_only and not waits and call is None and deadline - began >= _PATIENCE
        while True:
            connection = self._take(deadline, call)
            agent = self._agents[connection.agent]
            connecting = not connection.reused
            now = monotonic()
            share = deadline if not others else now + (deadline - now) / (others + 1)
            limit = min(share, now + _SILENCE) if shared and others else deadline
            try:
                if call is not None:
                    call.use(connection)
                if connecting:
                    until = min(share, limit)
                    connection.connect(agent.host, agent.port, self._context(), until)
                    if not read_only:
                        connection.greet(agent.header, until)
                    connecting = False
                connection.send(b"%b%d\r\n%b\r\n%b" % (head, len(body), agent.header, body), limit)
                connection.read_head()
                connection.deadline = deadline
                return Exchange(self, connection, call, began)
            except Broken as broken:
                self._give(connection, call)
                given_up = connection.aborted or (call is not None and call.ended)
                if given_up or self.closing.is_set():
                    raise
                late = isinstance(broken.__cause__, TimeoutError)
                if others and (connecting or (shared and late)):
                    others -= 1
                    self._leave(connection.agent)
                    continue
                unheard = not connection.touched or (read_only and not connection.answered)
                if connection.reused and unheard and not late:
                    continue
                self._blame(connection.agent, broken.__cause__, began)
                alert = self._alert(connection, broken, deadline)
                if alert is not None:
                    raise Broken(sent=connection.touched) from alert
                raise
            except BaseException:
                self._give(connection, call)
                raise

    def cancel(self, thread: int) -> None:
        """Make the request of this thread fail now: nobody waits for it."""
        with self._lock:  # until then the connection is nobody else's
            for connection, user in self._busy.items():
                if user == thread:
                    connection.abort()

    def close(self) -> None:
        """Close all connections and wake every thread that waits for one or on one."""
        with self._lock:
            self.closing.set()
            busy, idle, self._idle = list(self._busy), self._idle, []
        self._places.open()
        for connection in busy:
            connection.abort()
        for connection in idle:
            connection.close()
        if busy:
            self._unused.wait(_DRAIN)

    def forked(self) -> None:
        """In a child: drop the parent's connections without a word on them."""
        connections = [*self._idle, *self._busy]
        self._reset()  # new locks too: another thread of the parent may have held the old ones
        for connection in connections:
            connection.close()

    def _alert(self, failed: Connection, broken: Broken, deadline: float) -> BaseException | None:
        """What the server has against our certificate, if that is why a first request failed.

        With TLS 1.3 it looks at the certificate after the handshake, and before any request. Its
        alert is lost if it closes the connection on a request that it has not read: so a second
        connection asks for nothing, and listens.
        """
        cause = broken.__cause__
        if self.tls is None or failed.reused or failed.answered:
            return None
        if isinstance(cause, TimeoutError) or is_certificate_alert(cause):
            return None
        agent, end = self._agents[failed.agent], min(deadline, monotonic() + _VERDICT)
        probe = Connection()
        try:
            probe.connect(agent.host, agent.port, self._context(), end)
            probe.listen(end)
        except Broken as verdict:
            return verdict.__cause__ if is_certificate_alert(verdict.__cause__) else None
        finally:
            probe.close()
        return None

    def _blame(self, agent: int, error: BaseException | None, began: float) -> None:
        """A request to ``agent``, made since ``began``, failed: leave it if that is its fault."""
        late = isinstance(error, TimeoutError)
        if late:
            self._drop_idle()
        if not late or monotonic() - began >= _PATIENCE / 2:
            self._leave(agent)

    def _leave(self, agent: int) -> None:
        """Go on with the next agent, unless that has happened already."""
        with self._lock:
            if agent != self._at or len(self._agents) == 1:
                return
            self._at = (agent + 1) % len(self._agents)
        self._drop_idle()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self, deadline: float, call: Call | None) -> Connection:
        """A connection, connected or not yet, in ``_busy``. Raises `Broken`."""
        if call is None:
            self._places.take(deadline)
        while True:
            with self._lock:
                if self.closing.is_set():
                    raise Broken(sent=False) from ConnectionAbortedError("the handle was closed")
                connection = self._idle.pop() if self._idle else Connection(self._at)
                self._busy[connection] = get_ident()
            if not connection.reused or connection.idle():
                return connection
            connection.reusable = False
            self._put_away(connection)

    def _give(self, connection: Connection, call: Call | None) -> None:
        if call is not None:
            call.use(None)  # first: who gets the connection next must not be ended with it
        self._put_away(connection)
        if call is None:
            self._places.give()

    def _put_away(self, connection: Connection) -> None:
        with self._lock:
            self._busy.pop(connection, None)
            closing = self.closing.is_set()
            kept = connection.reusable and not connection.aborted and not closing
            kept = kept and connection.agent == self._at and len(self._idle) < self.connections
            if kept:
                connection.reused = True
                self._idle.append(connection)
            unused = closing and not self._busy
        if not kept:
            connection.close()
        if unused:
            self._unused.set()

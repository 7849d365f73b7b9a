"""Requests over a pool of connections to an agent, or to one of several.

*Theory.* The connection used last is used first (LIFO), so that a quiet program keeps few of them
warm and the rest time out. At most `MOST` are open at once, because an agent resets its 201st
connection from one address, which for a write would be a fate unknown; a thread beyond that waits
for its turn.

A connection that was idle may have been closed by the server in that very moment. Before it is
reused it is checked; if it fails all the same before any byte of an answer, the request is sent
again on another one, but a write only if not one byte of it was sent (`kvi_consul.connection`
tells). Everything else that fails is `Broken`, which says whether the server may have the request.

*Several agents.* One of them is the current one, which new connections go to. It is left when it
cannot be connected to, breaks off, does not answer in time, or knows no leader; its idle
connections are closed then. A request that was not sent goes to the next agent at once, at most
once around. A read waits for its share of the time, and `_SILENCE` seconds at the most, for each
agent but the last; a write has all of it.

Every connection in use is in ``_busy``, also while it is being made, so that `close` can wake the
threads that wait on them. Redirects are not followed: Consul redirects ``a//b`` to ``a/b``, another
key. The token travels in a header only, never in a URL, which ends in logs.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple

from kvi_consul.connection import Connection
from kvi_consul.errors import NO_LEADER, Broken, is_certificate_alert
from kvi_consul.flag import Flag

MOST = 64  # connections open at once
IDLE = 16  # connections kept while nobody uses them
_DRAIN = 1.0  # seconds that close() waits for woken threads to let go of their sockets
_VERDICT = 1.0  # seconds that a server takes at most to refuse a certificate
_SILENCE = 2.0  # seconds that a read waits for an agent, if there is another
_PATIENCE = 0.5  # seconds; requests that have less never leave an agent for its silence
_PIECE = 1 << 18  # bytes of a streamed answer that are handed on at once


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
        # Re-entrant: a signal handler may end it while its own thread does, or uses it; both set
        # the same things whatever the other has set.
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self.ended = False

    def end(self) -> None:
        """Make the request fail now; after its end this does nothing."""
        with self._lock:
            self.ended = True
            if self._connection is not None:
                self._connection.abort()
                self._connection.reusable = False

    def use(self, connection: Connection | None) -> None:
        """Say which connection the request is on; ``None``: on none any more."""
        with self._lock:
            if connection is not None and self.ended:
                raise ConnectionAbortedError("the request was given up")
            self._connection = connection


class Stream:
    """An answer that is read piece by piece."""

    def __init__(self, connection: Connection, patience: float, leave: Callable[[], None]) -> None:
        self._connection = connection
        self._patience = patience
        self._leave = leave
        self.status = connection.status
        self.headers = connection.headers

    def read(self) -> bytes:
        """All of it. An agent that says it has no leader is left by the way."""
        content = b"".join(self)
        if self.status == 500 and NO_LEADER in content:
            self._leave()
        return content

    def __iter__(self) -> Iterator[bytes]:
        """The answer in pieces of a useful size; each may take as long as the time-out says."""
        pieces = self._connection.pieces()
        while piece := self._gather(pieces):
            yield piece
            self._connection.deadline = monotonic() + self._patience

    def _gather(self, pieces: Iterator[bytes]) -> bytes:
        # The server sends chunks of a few kilobytes; a reader that starts over for each would
        # look at a large value a hundred times before it is there whole.
        gathered: list[bytes] = []
        size = 0
        try:
            for piece in pieces:
                gathered.append(piece)
                size += len(piece)
                if size >= _PIECE:
                    break
        except OSError as error:
            raise Broken(sent=True) from error
        return b"".join(gathered)


class Transport:
    """Requests to the agent at ``host:port``. Safe for any number of threads."""

    def __init__(
        self,
        host: str,
        port: int,
        *others: tuple[str, int],
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        agents = [(host, port), *others]
        self.host, self.port, self.tls, self.token = host, port, tls, token
        self._agents = [Agent.at(*agent) for agent in agents]
        self._at = 0  # the current one
        self.where = f"Consul at {', '.join(_named(*agent) for agent in agents)}"
        self._fixed = b""
        if token is not None:
            self._fixed = b"X-Consul-Token: " + token.encode() + b"\r\n"
        self.closing = Flag()
        self._reset()

    def _reset(self) -> None:
        # Re-entrant: a signal handler may close the handle while its own thread is in here.
        self._free = threading.Condition(threading.RLock())
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

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
        began = monotonic()
        connection = self._begin(head, body, deadline, read_only, shared=read_only and not waits)
        try:
            content = connection.read_body()
            if connection.status == 500 and NO_LEADER in content:
                self._leave(connection.agent)
            # Taken before the connection is another thread's.
            return Answer(connection.status, connection.headers, content)
        except OSError as error:
            self._blame(connection.agent, error, began)
            raise Broken(sent=True) from error
        finally:
            self._release(connection)

    @contextmanager
    def stream(
        self,
        head: bytes,
        body: bytes,
        seconds: float,
        *,
        read_only: bool,
        call: Call | None = None,
    ) -> Iterator[Stream]:
        """Send one request and read its answer piece by piece; raises `Broken`.

        Leaving the block before the end of the answer drops the connection. A request with a
        ``call`` is one whose answer the server may keep back.
        """
        began = monotonic()
        shared = read_only and call is None
        connection = self._begin(head, body, began + seconds, read_only, call, shared=shared)
        try:
            yield Stream(connection, seconds, lambda: self._leave(connection.agent))
        except Broken as broken:
            if call is None or not call.ended:
                self._blame(connection.agent, broken.__cause__, began)
            raise
        finally:
            self._release(connection, call)

    def close(self) -> None:
        """Close all connections and wake every thread that waits for one or on one.

        From a signal handler as well: a request of the thread that it interrupted fails when that
        goes on, or, if it was about to begin, ends by its time-out.
        """
        self.closing.set()
        with self._free:
            for connection in self._busy:
                connection.abort()
            while self._idle:
                self._idle.pop().close()
            self._free.notify_all()
            self._free.wait_for(lambda: not self._busy, _DRAIN)

    def forked(self) -> None:
        """In a child: drop the parent's connections without a word on them."""
        connections = [*self._idle, *self._busy]
        self._reset()  # a new lock too: another thread of the parent may have held the old one
        for connection in connections:
            connection.close()

    def _begin(
        self,
        head: bytes,
        body: bytes,
        deadline: float,
        read_only: bool,
        call: Call | None = None,
        *,
        shared: bool,
    ) -> Connection:
        """Send a request, and read the head of its answer.

        ``shared``: an agent that does not answer in its share of the time is left for the next.
        """
        began, others = monotonic(), len(self._agents) - 1
        shared = shared and deadline - began >= _PATIENCE
        while True:
            connection = self._acquire(deadline)
            agent = self._agents[connection.agent]
            connecting = not connection.reused
            now = monotonic()
            share = deadline if not others else now + (deadline - now) / (others + 1)
            limit = min(share, now + _SILENCE) if shared and others else deadline
            try:
                if call is not None:
                    call.use(connection)
                if connecting:
                    connection.connect(agent.host, agent.port, self.tls, min(share, limit))
                    connecting = False
                connection.send(b"%b%d\r\n%b\r\n%b" % (head, len(body), agent.header, body), limit)
                connection.read_head()
                connection.deadline = deadline
                return connection
            except OSError as error:
                self._release(connection, call)
                if (call is not None and call.ended) or self.closing.is_set():
                    raise Broken(sent=connection.touched) from error
                silent = shared and isinstance(error, TimeoutError)
                if others and (connecting or silent):
                    others -= 1
                    self._leave(connection.agent)
                    continue
                unheard = not connection.touched or (read_only and not connection.answered)
                if not (connection.reused and unheard and not isinstance(error, TimeoutError)):
                    self._blame(connection.agent, error, began)
                    alert = self._alert(connection, error, deadline)
                    raise Broken(sent=connection.touched) from (alert or error)
            except BaseException:
                self._release(connection, call)
                raise

    def _alert(self, failed: Connection, error: OSError, deadline: float) -> OSError | None:
        """What the server has against our certificate, if that is why a first request failed.

        With TLS 1.3 it looks at the certificate after the handshake, and before any request. Its
        alert is lost if it closes the connection on a request that it has not read: so a second
        connection asks for nothing, and listens.
        """
        if self.tls is None or failed.reused or failed.answered:
            return None
        if isinstance(error, TimeoutError) or is_certificate_alert(error):
            return None
        agent, end = self._agents[failed.agent], min(deadline, monotonic() + _VERDICT)
        probe = Connection()
        try:
            probe.connect(agent.host, agent.port, self.tls, end)
            probe.listen(end)
        except OSError as verdict:
            return verdict if is_certificate_alert(verdict) else None
        finally:
            probe.close()
        return None

    def _blame(self, agent: int, error: BaseException | None, began: float) -> None:
        """A request to ``agent``, made since ``began``, failed: leave it if that is its fault."""
        if not isinstance(error, TimeoutError) or monotonic() - began >= _PATIENCE / 2:
            self._leave(agent)

    def _leave(self, agent: int) -> None:
        """Go on with the next agent, unless that has happened already."""
        with self._free:
            if agent != self._at or len(self._agents) == 1:
                return
            self._at = (agent + 1) % len(self._agents)
            while self._idle:
                self._idle.pop().close()

    def _acquire(self, deadline: float) -> Connection:
        while True:
            with self._free:
                while not self._idle and len(self._busy) >= MOST and not self.closing.is_set():
                    if not self._free.wait(deadline - monotonic()):
                        self._free.notify()  # should the place have come just too late for this one
                        raise Broken(sent=False) from TimeoutError("all connections are in use")
                if self.closing.is_set():
                    raise Broken(sent=False) from ConnectionAbortedError("the handle was closed")
                connection = self._idle.pop() if self._idle else Connection(self._at)
                self._busy.add(connection)
            if not connection.reused or connection.idle():
                return connection
            connection.reusable = False
            self._release(connection)

    def _release(self, connection: Connection, call: Call | None = None) -> None:
        if call is not None:
            call.use(None)  # first: who gets the connection next must not be ended with it
        with self._free:
            self._busy.discard(connection)
            current = connection.agent == self._at and not self.closing.is_set()
            if connection.reusable and len(self._idle) < IDLE and current:
                connection.reused = True
                self._idle.append(connection)
            else:
                connection.close()
            self._free.notify()

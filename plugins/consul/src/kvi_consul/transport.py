"""Requests over a pool of connections to an agent, or to one of several.

*Theory.* Who owns which connection, and who waits for one, is `kvi.backend.pool`. There are few,
because an agent takes only so many connections from one address, for all processes there. Waiting
for one counts against the call's time. A watch's queries need no place; `kvi_consul.watches` makes
no more of them than there are places. What is taken belongs to an `Exchange`; the end of its block
gives it back, to be used again if its answer was read whole and its agent is the current one.

A connection that was idle may have been closed by the server in that very moment. Before it is
reused it is checked; if it fails all the same before any byte of an answer, the request is sent
again on another one, but a write only if not one byte of it was sent (`kvi_consul.connection`
tells). A silence condemns the idle ones as well: what swallows the bytes of one, such as a router
that forgot, swallows those of its neighbours. Everything else that fails is `Broken`, which says
whether the server may have the request.

*Several agents.* One of them is the current one, which new connections go to. It is left when it
cannot be connected to, breaks off, does not answer in time, or answers that it cannot serve, as one
that knows no servers does, or what is no agent; its idle connections are closed then. A request
that was not sent, or surely did nothing, goes to the next agent at once, at most once around, and
so does a read that a new connection did not survive. A read waits for its share of the time, and
`_SILENCE` seconds at the most, for each agent but the last; a write has all of it. When all have
failed, what may pass is told: one bad certificate is no verdict about the store.

*The main thread* hands its calls over to another one, since a signal's handler may raise anywhere.
`Transport.stroke` spares it that, where an idle connection of the only agent answers soon. What an
exception ends is not used again. Whatever goes wrong is left to `exchange`, which asks anew; but
the answer to a write is waited for, and told.

Redirects are not followed: Consul redirects ``a//b`` to ``a/b``, another key. The token travels in
a header only, never in a URL, which ends in logs.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from math import inf
from time import monotonic
from typing import NamedTuple, Self

from kvi.backend.pool import Lent, Pool
from kvi.errors import Closed, KviError, OutcomeUnknown, Timeout, Unavailable

from kvi_consul import errors
from kvi_consul.connection import Connection
from kvi_consul.errors import Broken, Unserved, is_certificate_alert, is_own
from kvi_consul.tls import Tls

CONNECTIONS = 8  # open at once for calls, unless the handle says otherwise
_VERDICT = 1.0  # seconds that a server takes at most to refuse a certificate
_SILENCE = 2.0  # seconds that a read waits for an agent, if there is another
_PATIENCE = 0.5  # seconds; requests that have less never leave an agent for its silence
_SOON = 0.05  # seconds in which a read is answered, or asked again by a thread that may wait
_SLOW = 60.0  # seconds for which an agent that was not as quick is left to such threads
_SERVED = {200, 409}  # by an agent that can serve; others may be its own fault
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


class Exchange:
    """A request on its way, and its answer; the end of its block gives back what it uses."""

    __slots__ = (
        "_began",
        "_call",
        "_connection",
        "_content",
        "_lent",
        "_transport",
        "headers",
        "status",
    )

    def __init__(
        self, transport: Transport, lent: Lent[Connection], call: Call | None, began: float
    ) -> None:
        connection = lent.connection
        self._transport, self._lent, self._call = transport, lent, call
        self._connection, self._began = connection, began
        self._content: bytes | None = None  # all of the answer, once it was read
        # Taken now: the connection is another thread's once the block has ended.
        self.status, self.headers = connection.status, connection.headers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport._give(self._lent, self._call)

    def read(self) -> bytes:
        """All of the answer."""
        if self._content is None:
            try:
                self._content = self._connection.read_body()
            except Broken as broken:
                self._fail(broken)
                raise
        return self._content

    def unserved(self, *, write: bool) -> KviError | None:
        """Why its agent cannot serve, if the answer says so; the agent is left then.

        `OutcomeUnknown`, if it is a write and may have been done.
        """
        status = self.status
        error: KviError
        if self.headers.get(b"content-type", b"").startswith(b"text/html") and status == 200:
            error = errors.of_nonsense(self._transport.where, write=write)
        elif status in _SERVED or (status == 404 and b"x-consul-index" in self.headers):
            return None
        else:
            text = self.read()
            if status == 404 and text.startswith(b"Session id "):
                return None
            error = errors.of_status(status, text.decode(errors="replace"), write=write)
        if not isinstance(error, Unavailable | OutcomeUnknown):
            return None
        self._transport._leave(self._connection.agent)
        return error

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
        self._stroke: Connection | None = None  # that of the main thread, or what it left
        self._slow = -inf  # until when there is none
        self._lock = threading.Lock()  # guards changing it
        self.where = f"Consul at {', '.join(_named(*agent) for agent in agents)}"
        self._fixed = b""
        if token is not None:
            self._fixed = b"X-Consul-Token: " + token.encode() + b"\r\n"
        self.connections = connections
        self.closing = threading.Event()
        self._pool = Pool(
            self._unconnected,
            Connection.close,
            size=connections,
            usable=self._is_usable,
            abort=Connection.abort,
            let_go=Connection.close,
        )

    def _context(self) -> ssl.SSLContext | None:
        return None if self.tls is None else self.tls.context()

    def _unconnected(self, timeout: float) -> Connection:
        return Connection(self._at)

    def _is_usable(self, connection: Connection) -> bool:
        return connection.agent == self._at and connection.idle()

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
        self,
        head: bytes,
        body: bytes,
        deadline: float,
        *,
        read_only: bool,
        waits: bool = False,
        elsewhere: bool = True,
    ) -> Answer:
        """Send one request and read its answer whole; raises `Broken`.

        ``waits``: the server is asked to wait with its answer, so that silence means nothing.
        ``elsewhere``: what one agent cannot serve is asked of the next.
        """
        with self.begin(
            head, body, deadline, read_only=read_only, waits=waits, elsewhere=elsewhere
        ) as exchange:
            return Answer(exchange.status, exchange.headers, exchange.read())

    def stroke(self, head: bytes, body: bytes, seconds: float, *, write: bool) -> Answer | None:
        """As `exchange`, by the main thread, if a connection is at hand and the agent answers soon.

        Whole wherever an exception of a signal handler ends it. Raises `Broken` for a write that
        may have been sent; whatever else goes wrong, nothing was done.
        """
        began = monotonic()
        connection = None if len(self._agents) > 1 or began < self._slow else self._pool.at_hand()
        if connection is None:
            return None
        self._stroke = connection  # before the look at ``closing``: `close` sees it, or is seen
        if self.closing.is_set() or not connection.idle():
            connection.close()
            return None
        (agent,) = self._agents
        request = b"%b%d\r\n%b\r\n%b" % (head, len(body), agent.header, body)
        try:
            connection.send(request, began + (seconds if write else min(_SOON, seconds)))
            connection.read_head()
            answer = Answer(connection.status, connection.headers, connection.read_body())
        except Broken as broken:
            connection.close()
            cause = broken.__cause__
            if cause is not None and not is_own(cause):
                raise cause from None
            if isinstance(cause, TimeoutError):
                self._slow = monotonic() + _SLOW
            if write and broken.sent:
                raise
            return None
        except BaseException:
            connection.close()
            raise
        if connection.reusable:
            self._pool.lay_down(connection)
        else:
            connection.close()
        return answer

    def begin(
        self,
        head: bytes,
        body: bytes,
        deadline: float,
        *,
        read_only: bool,
        waits: bool = False,
        elsewhere: bool = True,
        call: Call | None = None,
    ) -> Exchange:
        """Send one request and read the head of its answer; raises `Broken`.

        Leaving the block of what it returns before the end of the answer drops the connection. A
        request with a ``call`` is a watch's: another thread may end it, and it needs no place.
        """
        began, others = monotonic(), len(self._agents) - 1
        elsewhere = elsewhere and others > 0
        blame: Broken | None = None  # what an agent before failed with, if it may pass
        shared = read_only and not waits and call is None and deadline - began >= _PATIENCE
        while True:
            lent = self._take(deadline, call)
            connection = lent.connection
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
                exchange = Exchange(self, lent, call, began)
                error = exchange.unserved(write=not read_only) if elsewhere else None
            except Broken as broken:
                self._give(lent, call)
                given_up = connection.aborted or (call is not None and call.ended)
                if given_up or self.closing.is_set():
                    raise
                late = isinstance(broken.__cause__, TimeoutError)
                again = read_only and not late and not connection.reused
                if others and (connecting or again or (shared and late)):
                    others -= 1
                    self._leave(connection.agent)
                    blame = blame or _passing(broken)
                    continue
                unheard = not connection.touched or (read_only and not connection.answered)
                if connection.reused and unheard and not late:
                    continue
                self._blame(connection.agent, broken.__cause__, began)
                alert = self._alert(connection, broken, deadline)
                if alert is not None:
                    broken = _because(alert, sent=connection.touched)
                if blame is not None and (read_only or not broken.sent) and not _passing(broken):
                    broken = blame
                raise broken from broken.__cause__
            except BaseException:
                self._give(lent, call)
                raise
            if isinstance(error, Unavailable):
                if others:
                    self._give(lent, call)
                    others -= 1
                    if error.passing:
                        blame = blame or _because(Unserved(error))
                    continue
                if blame is not None and not error.passing:
                    self._give(lent, call)
                    raise blame from blame.__cause__
            connection.deadline = deadline
            return exchange

    def cancel(self, thread: int) -> None:
        """Make the request of this thread fail now: nobody waits for it."""
        self._pool.cancel(thread)

    def close(self) -> None:
        """Close all connections and wake every thread that waits for one or on one."""
        self.closing.set()
        if (stroke := self._stroke) is not None:
            stroke.abort()
        self._pool.close()

    def forked(self) -> None:
        """In a child: drop the parent's connections without a word on them."""
        self._pool.forked()
        if self._stroke is not None:
            self._stroke.close()
        self._lock = threading.Lock()  # another thread of the parent may have held the old one

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
            self._pool.drop_idle()
        if not late or monotonic() - began >= _PATIENCE / 2:
            self._leave(agent)

    def _leave(self, agent: int) -> None:
        """Go on with the next agent, unless that has happened already."""
        with self._lock:
            if agent != self._at or len(self._agents) == 1:
                return
            self._at = (agent + 1) % len(self._agents)
        self._pool.drop_idle()

    def _take(self, deadline: float, call: Call | None) -> Lent[Connection]:
        """A connection, connected or not yet. Raises `Broken`."""
        try:
            return self._pool.take(deadline - monotonic(), counted=call is None)
        except Timeout as error:
            raise Broken(sent=False) from TimeoutError(error.message)
        except Closed:
            raise Broken(sent=False) from ConnectionAbortedError("the handle was closed")

    def _give(self, lent: Lent[Connection], call: Call | None) -> None:
        if call is not None:
            call.use(None)  # first: who gets the connection next must not be ended with it
        connection = lent.connection
        whole = connection.reusable and not connection.aborted and connection.agent == self._at
        if whole:
            connection.reused = True
        lent.end(whole=whole)


def _because(error: BaseException, *, sent: bool = False) -> Broken:
    broken = Broken(sent)
    broken.__cause__ = error
    return broken


def _passing(broken: Broken) -> Broken | None:
    """``broken``, if it may pass."""
    return broken if errors.of_broken(broken, "", write=False).passing else None

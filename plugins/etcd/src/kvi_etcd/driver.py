"""Calls to one cluster over one of its endpoints.

`Calls` makes an `Endpoint` at its first use. One is the current one. A call goes there by a
straight path; when that fails, or the endpoint has proven nothing yet, `Calls.execute` goes on and
does what `kvi.policy.failover` decides. It is written once, as ``async def``: a `Connection` has
endpoints that block, so that nothing of it suspends; those of `LoopCalls` are awaited.

*Before a write*, an endpoint that has proven nothing is asked for its status: any member answers
that, whoever asks, and it changes nothing. So a write that leaves is known to have a peer, and one
whose peer says nothing was surely not sent.

*Blame.* When all endpoints failed, the error that may pass is raised: one bad certificate is no
verdict about the store.

*Certificates* are renewed on disk. When an endpoint cannot be reached, the files are read again; if
they are others now, the call goes on over channels made with them.

*Addresses* move, and names resolve late. A channel asks for its address again at intervals that
grow, up to minutes, and keeps to an old one for long. So one that reaches nothing is replaced once
it is `STALE` seconds old: the new one asks at once.

*Threads.* A call over a `Connection` runs on the caller's thread; one over `LoopCalls` in a task of
its loop. One lock guards which endpoints there are and which is the current one, and nothing waits
under it: who holds it has passed the gate that keeps gRPC apart from forks (`kvi_etcd.forks`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, Self, TypeVar

import grpc
from kvi.coroutine import run
from kvi.errors import InvalidOption, KviError, Timeout, Unavailable
from kvi.policy.failover import PATIENCE, Failover, Happened, Step, share

from kvi_etcd import wire_pb2 as pb
from kvi_etcd.channel import (
    WITH_LEADER,
    Begun,
    BlockingEndpoint,
    Endpoint,
    LoopEndpoint,
    Stream,
    Token,
)
from kvi_etcd.client import Pems, Tls, connect, open_channel
from kvi_etcd.errors import classify, translate
from kvi_etcd.forks import gate

STALE = 1.0  # seconds after which a channel that reaches nothing is made anew
LOGIN_TIME = 5.0  # seconds that a login may take, whoever waits for it

_SHORTEST = 0.001  # seconds: gRPC takes no less
_UNANSWERED = frozenset({Happened.UNREACHED, Happened.SILENT, Happened.LOST})

E = TypeVar("E", bound=Endpoint)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user of etcd and its password."""

    name: str
    password: str = field(repr=False)

    @classmethod
    def of(cls, name: str | None, password: str | None) -> Self | None:
        """The credentials, or ``None`` without a name."""
        return None if name is None or password is None else cls(name, password)


class Request(NamedTuple):
    """One call: the method of `Endpoint`, what it is sent, and its time."""

    method: str
    message: object
    timeout: float
    deadline: float
    write: bool


class Pending:
    """A request whose answer is still to be taken, or not wanted any more."""

    __slots__ = ("_begun", "_go_on", "_timeout")

    def __init__(
        self,
        begun: Begun | None,
        go_on: Callable[[Exception | None, float], Coroutine[Any, Any, Any]],
        timeout: float,
    ) -> None:
        self._begun = begun  # None: it could not be sent ahead
        self._go_on = go_on
        self._timeout = timeout

    async def answer(self, deadline: float | None = None) -> Any:
        """Wait for the answer, until then, or as long as the request's time-out says from now."""
        if deadline is None:
            deadline = time.monotonic() + self._timeout
        if self._begun is None:
            return await self._go_on(None, deadline)
        try:
            return await self._begun.result()
        except (grpc.FutureCancelledError, ValueError) as error:
            raise Unavailable("the connection is closed") from error
        except grpc.RpcError as error:
            return await self._go_on(error, deadline)

    def cancel(self) -> None:
        """Let go of it; does nothing once it is answered."""
        if self._begun is not None:
            self._begun.cancel()


class Calls(ABC, Generic[E]):
    """Calls to one cluster, over endpoints of one kind; see the module's theory.

    Calls raise errors of kvi.

    Attributes:
        turns: how often another endpoint, or a new channel, has become the current one.

    """

    def __init__(
        self,
        endpoints: Sequence[tuple[str, int]],
        tls: Tls | None,
        credentials: Credentials | None,
        pems: Pems | None = None,
    ) -> None:
        """``pems``: the files for TLS, if they have been read already."""
        self._places = list(endpoints)
        self._others = len(self._places) - 1
        self._tls = tls
        self._pems = pems if pems is not None or tls is None else tls.read()
        self._credentials = credentials
        self._lock = threading.Lock()
        self._endpoints: dict[int, E] = {}
        self._at = 0  # the index of the current endpoint
        self._endpoint: E | None = None
        self.turns = 0
        self._channels: set[Any] = set()  # all that are open
        self._unused: SimpleQueue[Any] = SimpleQueue()  # those whose endpoint is gone
        self._closed = False

    @property
    def places(self) -> int:
        """How many endpoints there are."""
        return len(self._places)

    @property
    def logs_in(self) -> bool:
        """Whether there are credentials."""
        return self._credentials is not None

    async def ask(self, method: str, message: object, timeout: float, *, write: bool) -> Any:
        """Send ``message`` to the method of that name (`kvi_etcd.client`); returns the answer."""
        deadline = time.monotonic() + timeout
        endpoint = self._endpoint
        if endpoint is None or not self._unused.empty():
            endpoint = self._current()
        token, failure = endpoint.metadata, None
        if token is not None:
            seconds = timeout if write or not self._others else self._share(timeout)
            try:
                return await endpoint.unary(method, message, seconds, token)
            except grpc.RpcError as error:
                failure = error
            except ValueError as error:
                raise self._shut(error) from error
        request = Request(method, message, timeout, deadline, write)
        return await self.execute(endpoint, request, failure, token)

    def begin(self, method: str, message: object, timeout: float) -> Pending:
        """Send a request that only reads, and go on; the answer is asked for later."""
        endpoint = self._endpoint or self._current()
        begun, token = None, endpoint.metadata
        if token is not None:
            try:
                begun = endpoint.begin(method, message, self._share(timeout), token)
            except RuntimeError as error:
                raise self._no_thread(endpoint, error) from error
            except ValueError as error:
                raise self._shut(error) from error

        def go_on(error: Exception | None, deadline: float) -> Coroutine[Any, Any, Any]:
            request = Request(method, message, timeout, deadline, False)
            return self.execute(endpoint, request, error, token)

        return Pending(begun, go_on, timeout)

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Have what nobody waits for done soon."""

    @abstractmethod
    async def close(self) -> None:
        """End all calls and connections."""

    @abstractmethod
    def _make(self, at: int, token: Token | None) -> E:
        """A new endpoint."""

    @abstractmethod
    def _end(self, channel: Any) -> None:
        """Close the channel of an endpoint that nobody uses any more."""

    @abstractmethod
    async def _read_files(self, tls: Tls) -> Pems:
        """Read the files for TLS."""

    # -- the way round the endpoints --------------------------------------------------------------

    async def execute(
        self,
        endpoint: E,
        request: Request,
        error: Exception | None,
        token: Token | None,
    ) -> Any:
        """Send the request until the table says what has become of it.

        ``error`` is what a first try at ``endpoint``, with ``token``, ended with, if there was one.
        """
        way = self._way(request, sent=error is not None)
        blame: KviError | None = None
        while True:
            if error is None:
                try:
                    token = await self._ready(endpoint, way, ask=request.write)
                    seconds = max(_SHORTEST, way.time(time.monotonic()))
                    # A write's peer has answered, whatever others came to think of it since.
                    way.sent = request.write or endpoint.proven
                    answer = await endpoint.unary(request.method, request.message, seconds, token)
                    endpoint.prove()
                    return answer
                except (grpc.RpcError, grpc.FutureTimeoutError) as failed:
                    error = failed
                except ValueError as closed:
                    raise self._shut(closed) from closed
            sent = way.sent
            happened = self._noted(endpoint, error)
            if happened is Happened.UNREACHED and await self._renew_files(endpoint):
                endpoint, error, way.sent = self._current(), None, False
                continue
            decision = way.decide(happened, time.monotonic())
            told = _told(error, happened, decision.step, write=request.write and sent)
            if happened is Happened.SILENT and request.write and not sent:
                told = Unavailable("the endpoint says nothing; the write was not sent")
            if blame is None or told.passing or not blame.passing:
                blame = told
            if decision.replace:
                self._replace(endpoint)
            current = endpoint
            if decision.leave:
                with suppress(Unavailable):  # closed; what is known of this request goes first
                    current = self._move_on(endpoint)
            if self._closed or decision.step in (Step.UNSENT, Step.UNKNOWN, Step.FINAL):
                final = happened is Happened.FINAL or decision.step is Step.UNKNOWN
                raise told if final else blame from error
            if decision.step is Step.NEXT:
                endpoint = current
            else:
                endpoint.forget(token)
            error = None

    async def _ready(self, endpoint: E, way: Failover, *, ask: bool) -> Token:
        """What goes with a call to ``endpoint``, which has answered, if ``ask``, or is logged in.

        Raises gRPC's errors.
        """
        if not endpoint.proven and (ask or endpoint.token is None):
            seconds = max(_SHORTEST, way.share(time.monotonic()))
            try:
                await endpoint.unary("status", pb.StatusRequest(), seconds, ())
            except grpc.RpcError as error:
                if classify(error.code(), error.details() or "") in _UNANSWERED:
                    raise
            endpoint.prove()
        token = endpoint.token
        return token if token is not None else await self._log_in(endpoint, way)

    async def _log_in(self, endpoint: E, way: Failover) -> Token:
        credentials = self._credentials
        assert credentials is not None
        message = pb.AuthenticateRequest(name=credentials.name, password=credentials.password)
        try:
            with gate, self._lock:
                login = endpoint.login
                if login is None:
                    login = endpoint.begin("authenticate", message, LOGIN_TIME, WITH_LEADER)
                    endpoint.login = login
        except RuntimeError as error:
            raise self._no_thread(endpoint, error) from error
        token: Token
        try:
            answer = await login.result(max(_SHORTEST, way.rest(time.monotonic())))
            token = (*WITH_LEADER, ("token", answer.token))
        except grpc.FutureCancelledError as error:
            raise Unavailable("the connection is closed") from error
        except grpc.RpcError as error:
            with self._lock:
                if endpoint.login is login:
                    endpoint.login = None
            if "authentication is not enabled" not in (error.details() or ""):
                raise
            return WITH_LEADER
        with self._lock:
            if endpoint.login is login and endpoint.token is None:
                endpoint.log_in(token)
                endpoint.prove()
        return token

    def _way(self, request: Request, *, sent: bool = False) -> Failover:
        return Failover(
            len(self._places),
            write=request.write,
            login=self._credentials is not None,
            timeout=request.timeout,
            deadline=request.deadline,
            sent=sent,
        )

    def _noted(self, endpoint: E, error: Exception) -> Happened:
        """What ``error`` means, and for what ``endpoint`` has proven."""
        if not isinstance(error, grpc.RpcError):
            return Happened.LOGIN_WAITING
        happened = classify(error.code(), error.details() or "")
        if happened in (Happened.UNREACHED, Happened.LOST):
            endpoint.doubt()
        if happened is Happened.UNREACHED and time.monotonic() - endpoint.made > STALE:
            self._replace(endpoint)
        return happened

    def _share(self, timeout: float) -> float:
        """The seconds that a read waits for one endpoint."""
        return timeout if timeout < PATIENCE else share(timeout, self._others)

    # -- which endpoints there are ----------------------------------------------------------------

    def _current(self) -> E:
        with gate, self._lock:
            return self._use(self._at)

    def _move_on(self, failed: E) -> E:
        """The next endpoint, or the current one if another thread moved already."""
        with gate, self._lock:
            if self._at == failed.at and self._endpoint in (failed, None):
                self._at = (self._at + 1) % len(self._places)
            return self._use(self._at)

    def _replace(self, suspicious: E) -> None:
        """Have the next call make a new channel; the old one ends with the calls over it."""
        with self._lock:
            suspicious.doubt()
            if self._endpoints.get(suspicious.at) is suspicious:
                del self._endpoints[suspicious.at]
            if self._endpoint is suspicious:
                self._endpoint = None

    async def _renew_files(self, failed: E) -> bool:
        """Read the files for TLS again; whether ``failed`` was made with others than there are now.

        If they were renewed, all channels are made anew.
        """
        if self._tls is None:
            return False
        try:
            pems = await self._read_files(self._tls)
        except InvalidOption:  # being written: those that were read before may do
            return False
        with self._lock:
            if pems == self._pems:
                return failed.pems != pems
            self._pems = pems
            outdated = list(self._endpoints.values())
        for endpoint in outdated:
            self._replace(endpoint)
        return True

    def _no_thread(self, endpoint: E, error: RuntimeError) -> Unavailable:
        """No thread could be started: the channel then counts on one that does not run."""
        self._replace(endpoint)
        return Unavailable(f"no thread can be started for etcd: {error}")

    def _use(self, at: int) -> E:
        """Endpoint ``at``, now the current one; under the lock, behind the gate."""
        if self._closed:
            raise Unavailable("the connection is closed")
        with suppress(Empty):
            while True:
                channel = self._unused.get_nowait()
                self._channels.discard(channel)
                self._end(channel)
        endpoint = self._endpoints.get(at)
        if endpoint is None:
            token = WITH_LEADER if self._credentials is None else None
            endpoint = self._endpoints[at] = self._make(at, token)
            self._channels.add(endpoint.channel)
        if endpoint is not self._endpoint:
            self._endpoint = endpoint
            self.turns += 1
        return endpoint

    def _shut_off(self) -> set[Any]:
        """No call begins from now on; the channels that are still to be closed."""
        with self._lock:
            self._closed = True
            channels, self._channels = self._channels, set()
        return channels

    def _shut(self, error: ValueError) -> Exception:
        """GRPC raises ValueError on a closed channel; any other one is a fault of ours."""
        return Unavailable("the connection is closed") if self._closed else error


class Connection(Calls[BlockingEndpoint]):
    """Calls that block, and the streams of the watches. Safe for threads."""

    def in_loop(self) -> LoopCalls:
        """Calls to the same cluster that are awaited in the running loop."""
        return LoopCalls(self._places, self._tls, self._credentials, self._pems)

    def call(self, method: str, message: object, timeout: float, *, write: bool) -> Any:
        """As `Calls.ask`; blocks."""
        return run(self.ask(method, message, timeout, write=write))

    def stream(self, timeout: float) -> Stream:
        """Open a stream of watches at the current endpoint; a login before it is bounded.

        If that cannot be, the next one is tried at another endpoint.
        """
        endpoint = self._endpoint or self._current()
        try:
            token = endpoint.metadata
            if token is None:
                way = self._way(Request("watch", None, timeout, time.monotonic() + timeout, False))
                token = run(self._ready(endpoint, way, ask=True))
            return Stream(endpoint, token)
        except RuntimeError as error:
            raise self._no_thread(endpoint, error) from error
        except (grpc.RpcError, grpc.FutureTimeoutError) as error:
            happened = self._noted(endpoint, error)
            if happened is Happened.SILENT:
                self._replace(endpoint)
            if happened is not Happened.UNREACHED or not run(self._renew_files(endpoint)):
                self._move_on(endpoint)
            raise _told(error, happened, Step.NEXT, write=False) from error
        except ValueError as error:
            raise self._shut(error) from error

    def take(self, stream: Stream) -> None:
        """Wait until the server has taken ``stream``, or its answers have an error to tell."""
        with suppress(grpc.RpcError):
            stream.first()

    def leave(self, stream: Stream) -> None:
        """The endpoint of ``stream`` failed it: use the next one, unless that happened already."""
        stream.endpoint.doubt()
        with suppress(Unavailable):  # closed
            self._move_on(stream.endpoint)

    def renew_login(self, stream: Stream) -> None:
        """Let the next stream have a new token."""
        stream.endpoint.forget(stream.token)

    @property
    def client(self) -> Any:
        """The ``etcd3`` client of the current endpoint."""
        return (self._endpoint or self._current()).channel

    async def sleep(self, seconds: float) -> None:
        """Wait; blocks."""
        time.sleep(seconds)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it now; blocks."""
        run(work)

    async def close(self) -> None:
        """End all calls and connections; blocks."""
        channels = self._shut_off()
        with gate:
            for channel in channels:
                channel.close()

    def forked(self) -> tuple[object, ...]:
        """In a forked child: forget the parent's channels; returns them, never to be freed."""
        left = self._endpoints, self._endpoint, self._channels, self._unused
        self._endpoints, self._endpoint, self._channels = {}, None, set()
        self._lock, self._unused = threading.Lock(), SimpleQueue()
        return left

    def _make(self, at: int, token: Token | None) -> BlockingEndpoint:
        client = connect(*self._places[at], self._pems)
        return BlockingEndpoint(client, at, token, self._pems, self._unused)

    def _end(self, channel: Any) -> None:
        channel.close()

    async def _read_files(self, tls: Tls) -> Pems:
        return tls.read()


class LoopCalls(Calls[LoopEndpoint]):
    """Calls that tasks of one event loop await."""

    def __init__(
        self,
        endpoints: Sequence[tuple[str, int]],
        tls: Tls | None,
        credentials: Credentials | None,
        pems: Pems | None = None,
    ) -> None:
        super().__init__(endpoints, tls, credentials, pems)
        self._tasks: set[asyncio.Future[Any]] = set()  # or they could be freed amid their work

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done soon; what it raises would be lost."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all calls and connections."""
        channels = self._shut_off()
        with gate:
            for channel in channels:
                await channel.close()

    def _make(self, at: int, token: Token | None) -> LoopEndpoint:
        channel = open_channel(*self._places[at], self._pems)
        return LoopEndpoint(channel, at, token, self._pems, self._unused)

    def _end(self, channel: Any) -> None:
        self.later(channel.close())

    async def _read_files(self, tls: Tls) -> Pems:
        # A task that is cancelled here leaves a thread that reads some files, and no more.
        return await asyncio.to_thread(tls.read)


def _told(error: Exception, happened: Happened, step: Step, *, write: bool) -> KviError:
    """The error of kvi for ``error``; a login that only ran out of time proves nothing wrong."""
    ending = happened in (Happened.LOGIN_OLD, Happened.LOGIN_ENDED) and step is Step.UNSENT
    if ending or not isinstance(error, grpc.RpcError):
        return Timeout("no login at etcd came about in time")
    return translate(error, write=write)

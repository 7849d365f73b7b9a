"""One endpoint of a cluster: its channel, what it has told, and the calls and streams over it.

An `Endpoint` is one channel's life. One that became suspicious is replaced by another `Endpoint`;
calls that are still under way keep the old one, and its channel is closed when the last of them
lets go of it. So nobody's call is ended by another's time-out.

==============  =================================================================================
``proven``      something was answered on the channel, and nothing has broken since. Requests that
                go over it are taken to be sent
``metadata``    what goes with each call, once that can be sent without more ado: the endpoint is
                proven and logged in. ``None`` otherwise
``login``       the latest login, under way or done: one for all who wait, with its own time, so
                that callers of little patience find it done the next time
==============  =================================================================================

*Two kinds.* `BlockingEndpoint` calls over a channel that blocks the caller's thread, and has the
streams; `LoopEndpoint` over one of `grpc.aio`. What follows from an answer is the same for both,
and is in `kvi_etcd.driver`.

*What gRPC leaves behind.* A stream of gRPC's, and a call that is waited for later, take their own
lock when they are freed, and are the error that they raise: with its traceback that is a circle,
which may last until the process ends. A thread of gRPC that was stopped with that lock then keeps
the process from ending. So both are let go of here, in time: `CallFailed` takes the error's place.

*Leaders.* Every call says that it wants a leader (``hasleader``, as etcd's own client can): a
member that knows of none refuses at once, before it does anything, instead of keeping a write whose
fate nobody will know.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Protocol

import grpc
from kvi.errors import Unavailable

from kvi_etcd import wire_pb2 as pb
from kvi_etcd.client import Pems, calls
from kvi_etcd.errors import translate
from kvi_etcd.forks import gate

Method = Callable[..., Any]
Token = tuple[tuple[str, str], ...]  # as metadata of a call

WITH_LEADER: Token = (("hasleader", "true"),)


class CallFailed(grpc.RpcError):  # type: ignore[misc]  # gRPC is not typed
    """What ended a call, in place of gRPC's error that is the call itself; see the module."""

    def __init__(self, error: grpc.RpcError) -> None:
        """Of ``error``, whose traceback is dropped."""
        super().__init__(str(error))
        self._code: grpc.StatusCode = error.code()
        self._details: str | None = error.details()
        error.__traceback__ = None

    def code(self) -> grpc.StatusCode:
        """Its status."""
        return self._code

    def details(self) -> str | None:
        """What gRPC or the server say of it."""
        return self._details


class Begun(Protocol):
    """A call that is under way. Errors are gRPC's; `grpc.FutureCancelledError`: it was ended."""

    async def result(self, seconds: float | None = None) -> Any:
        """The answer; raises `grpc.FutureTimeoutError` after so many seconds."""

    def cancel(self) -> None:
        """Let go of it; does nothing once it is answered."""


class Endpoint(ABC):
    """The calls to one endpoint, and what it has told; see the module's table.

    Errors of calls are gRPC's own; a `ValueError` says that the channel is closed.

    Attributes:
        at: which of the endpoints.
        channel: what is to be closed at the end: the ``etcd3`` client, or the channel.
        pems: the files for TLS that it was made with.
        made: when, by the monotonic clock.
        token: of the latest login; ``None`` before one.

    """

    __slots__ = (
        "_calls",
        "_unused",
        "at",
        "channel",
        "login",
        "made",
        "metadata",
        "pems",
        "proven",
        "token",
    )

    def __init__(
        self,
        channel: Any,
        made_of: Any,
        at: int,
        token: Token | None,
        pems: Pems | None,
        unused: SimpleQueue[Any],
    ) -> None:
        """``unused`` gets ``channel`` once nobody uses the endpoint any more."""
        self.channel = channel
        self.pems = pems
        self.made = time.monotonic()
        self._unused = unused
        self._calls: dict[str, Method] = calls(made_of)
        self.at = at
        self.proven = False
        self.metadata: Token | None = None
        self.token = token
        self.login: Begun | None = None

    @abstractmethod
    async def unary(self, method: str, request: object, seconds: float, token: Token) -> Any:
        """Send a request to the method of that name (`kvi_etcd.client`) and return the answer."""

    @abstractmethod
    def begin(self, method: str, request: object, seconds: float, token: Token) -> Begun:
        """Send a request and go on; the answer is asked for later."""

    def prove(self) -> None:
        """It has answered."""
        self.proven = True
        self.metadata = self.token

    def doubt(self) -> None:
        """Something broke: whether a connection stands is not known."""
        self.proven = False
        self.metadata = None

    def forget(self, refused: object) -> None:
        """Drop the token, unless another thread has got a new one since."""
        if self.token is refused:
            self.token = self.metadata = self.login = None

    def log_in(self, token: Token) -> None:
        """It goes by this token from now on."""
        self.token = token

    def __del__(self) -> None:
        # not closed here: a finalizer may come at any point, also amid a fork
        self._unused.put(self.channel)


class BlockingEndpoint(Endpoint):
    """Calls that block the caller's thread, over the channel of an ``etcd3`` client."""

    __slots__ = ("watch",)

    def __init__(
        self,
        client: Any,
        at: int,
        token: Token | None,
        pems: Pems | None,
        unused: SimpleQueue[Any],
    ) -> None:
        super().__init__(client, client.channel, at, token, pems, unused)
        self.watch: Method = client.channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=_sized,
        )

    async def unary(self, method: str, request: object, seconds: float, token: Token) -> Any:
        """As `Endpoint.unary`; blocks."""
        with gate:
            return self._calls[method](request, seconds, token)

    def begin(self, method: str, request: object, seconds: float, token: Token) -> Begun:
        """As `Endpoint.begin`; raises `RuntimeError` where no thread can be started."""
        key = object()
        gate.enter(key)
        try:
            future = self._calls[method].future(request, seconds, token)  # type: ignore[attr-defined]
            if not future.add_callback(lambda: gate.leave(key)):  # (no circle, as a future's has)
                gate.leave(key)
        except BaseException:  # an interrupt too: else each later fork would wait for this call
            gate.leave(key)
            raise
        return _Future(future)

    def log_in(self, token: Token) -> None:
        """As `Endpoint.log_in`; so does what the program does with the client."""
        self.channel.metadata = token[len(WITH_LEADER) :]
        self.token = token


class _Future(Begun):
    """A call that is waited for by blocking, by any number of threads."""

    __slots__ = ("_future", "_outcome")

    def __init__(self, future: grpc.Future) -> None:
        self._future: grpc.Future | None = future  # None once there is an outcome
        self._outcome: Any = None

    async def result(self, seconds: float | None = None) -> Any:
        future = self._future
        if future is not None:
            try:
                self._outcome = future.result(seconds)
            except grpc.RpcError as error:
                self._outcome = CallFailed(error)
            self._future = future = None  # (a traceback keeps what a frame has)
        if isinstance(self._outcome, CallFailed):
            raise CallFailed(self._outcome)  # each thread its own
        return self._outcome

    def cancel(self) -> None:
        future = self._future
        if future is not None:
            future.cancel()


class LoopEndpoint(Endpoint):
    """Calls that are awaited, over a channel of `grpc.aio`; for the loop that it was made in."""

    __slots__ = ("_metadata", "_of")

    def __init__(
        self,
        channel: Any,
        at: int,
        token: Token | None,
        pems: Pems | None,
        unused: SimpleQueue[Any],
    ) -> None:
        super().__init__(channel, channel, at, token, pems, unused)
        self._of: Token = ()
        self._metadata = grpc.aio.Metadata()  # of that token; `grpc.aio` makes it for each call

    async def unary(self, method: str, request: object, seconds: float, token: Token) -> Any:
        """As `Endpoint.unary`."""
        if token is not self._of:
            self._of, self._metadata = token, grpc.aio.Metadata(*token)
        try:
            return await self._calls[method](request, timeout=seconds, metadata=self._metadata)
        except grpc.aio.UsageError as error:
            raise ValueError("the channel is closed") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise ValueError("the channel was closed") from None  # which cancels its calls

    def begin(self, method: str, request: object, seconds: float, token: Token) -> Begun:
        """As `Endpoint.begin`."""
        return _Task(asyncio.ensure_future(self.unary(method, request, seconds, token)))


class _Task(Begun):
    """A call that is awaited; any number of tasks may, and one that gives up leaves it going."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Future[Any]) -> None:
        self._task = task
        task.add_done_callback(_look_at)

    async def result(self, seconds: float | None = None) -> Any:
        done, _ = await asyncio.wait((self._task,), timeout=seconds)
        if not done:
            raise grpc.FutureTimeoutError
        if self._task.cancelled():
            raise grpc.FutureCancelledError
        return self._task.result()

    def cancel(self) -> None:
        self._task.cancel()


def _look_at(task: asyncio.Future[Any]) -> None:
    """Or asyncio would complain of an error that nobody has asked for."""
    if not task.cancelled():
        task.exception()


def _sized(raw: bytes) -> tuple[pb.WatchResponse, int]:
    """A message of a watch, and the bytes it came in: asking it for its size encodes it again."""
    return pb.WatchResponse.FromString(raw), len(raw)


class Stream:
    """One call with many requests and many answers, under way.

    `send` and `end` never wait and may be called by any thread; one thread takes the answers, and
    lets go of it at its end. A fork of the process ends it.

    Attributes:
        endpoint: whose it is.
        token: what it goes by, to its end.
        forked: a fork has ended it, and nothing is wrong.

    """

    __slots__ = ("__weakref__", "_call", "_gone", "_requests", "endpoint", "forked", "token")

    def __init__(self, endpoint: BlockingEndpoint, token: Token) -> None:
        self.endpoint = endpoint
        self.token = token
        self.forked = False
        self._requests: SimpleQueue[object] = SimpleQueue()
        self._gone = threading.Event()
        with gate:
            # a member cut off from the others ends the stream, instead of going quiet
            call = endpoint.watch(iter(self._requests.get, None), metadata=token)
            self._call: Any = call  # None once it is let go of
            if not call.add_callback(self._gone.set):
                self._gone.set()
            gate.keep(self)

    def send(self, request: object) -> None:
        """Let ``request`` go out after those before it; lost if the stream has ended."""
        self._requests.put(request)

    def answers(self) -> Iterator[tuple[pb.WatchResponse, int]]:
        """Each answer and its size in bytes, until the stream ends, which is always an error."""
        failure: CallFailed | None = None
        try:
            if self._call is not None:
                yield from self._call
        except grpc.RpcError as error:
            failure = CallFailed(error)
        finally:
            self._requests.put(None)  # or gRPC's sending thread would wait for ever
        if failure is not None:
            raise translate(failure, write=False) from failure
        raise Unavailable("etcd ended the stream")

    def first(self) -> None:
        """Wait until the server has taken the call; raises gRPC's errors."""
        if self._call is not None:
            self._call.initial_metadata()

    def end(self) -> None:
        """Give it up; `answers` raises."""
        self._requests.put(None)
        call = self._call
        if call is not None:
            call.cancel()

    def leave(self) -> None:
        """As `end`, and gRPC's call is freed now: the last word of the thread that took answers."""
        self.end()
        self._call = None

    def end_for_fork(self) -> None:
        """As `end`."""
        self.forked = True
        self.end()

    def gone(self, seconds: float) -> bool:
        """Wait until no thread of gRPC is at work on it; whether that came about."""
        return self._gone.wait(seconds)

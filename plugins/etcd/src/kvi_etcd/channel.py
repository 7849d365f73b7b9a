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

*Leaders.* Every call says that it wants a leader (``hasleader``, as etcd's own client can): a
member that knows of none refuses at once, before it does anything, instead of keeping a write whose
fate nobody will know.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Protocol

import grpc
from kvi.errors import Unavailable

from kvi_etcd import wire_pb2 as pb
from kvi_etcd.client import STUBS, Pems
from kvi_etcd.errors import translate

Method = Callable[..., Any]
Token = tuple[tuple[str, str], ...]  # as metadata of a call

WITH_LEADER: Token = (("hasleader", "true"),)


class Channel(Protocol):
    """What the driver asks of an endpoint; errors are gRPC's own."""

    async def unary(self, method: str, request: object, seconds: float, token: Token) -> Any:
        """Send a request to the method of that name and return the answer."""

    async def result(self, future: Any, seconds: float) -> Any:
        """The answer of a call under way; raises `grpc.FutureTimeoutError`."""


def _sized(raw: bytes) -> tuple[pb.WatchResponse, int]:
    """A message of a watch, and the bytes it came in: asking it for its size encodes it again."""
    return pb.WatchResponse.FromString(raw), len(raw)


class Endpoint:
    """A client of one endpoint, and the methods that the store calls; see the module's table.

    Attributes:
        at: which of the endpoints.
        client: the ``etcd3`` client.
        pems: the files for TLS that it was made with.
        made: when, by the monotonic clock.
        token: of the latest login; ``None`` before one.

    """

    __slots__ = (
        "_unused",
        "at",
        "authenticate",
        "client",
        "delete",
        "grant",
        "keep_alive",
        "login",
        "made",
        "metadata",
        "pems",
        "proven",
        "put",
        "range",
        "revoke",
        "status",
        "token",
        "txn",
        "watch",
    )

    def __init__(
        self,
        client: Any,
        at: int,
        token: Token | None,
        pems: Pems | None,
        unused: SimpleQueue[Any],
    ) -> None:
        """``unused`` gets the client once nobody uses the endpoint any more."""
        self.client = client
        self.pems = pems
        self.made = time.monotonic()
        self._unused = unused
        self.at = at
        stub = client.kvstub
        self.range: Method = stub.Range
        self.put: Method = stub.Put
        self.delete: Method = stub.DeleteRange
        self.txn: Method = stub.Txn
        stubs, channel = sys.modules[STUBS], client.channel
        self.authenticate: Any = stubs.AuthStub(channel).Authenticate
        self.status: Method = stubs.MaintenanceStub(channel).Status
        lease = stubs.LeaseStub(channel)
        self.grant: Method = lease.LeaseGrant
        self.revoke: Method = lease.LeaseRevoke
        # A stream with one request and one answer is, on the wire, a plain call; as such it needs
        # no thread and has a deadline.
        self.keep_alive: Method = channel.unary_unary(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        self.watch: Method = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=_sized,
        )
        self.proven = False
        self.metadata: Token | None = None
        self.token = token
        self.login: Any = None

    async def unary(self, method: str, request: object, seconds: float, token: Token) -> Any:
        """As `Channel.unary`; blocks."""
        return getattr(self, method)(request, seconds, token)

    async def result(self, future: Any, seconds: float) -> Any:
        """As `Channel.result`; blocks."""
        return future.result(seconds)

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

    def __del__(self) -> None:
        # not closed here: a finalizer may come at any point, also amid a fork
        self._unused.put(self.client)


class Stream:
    """One call with many requests and many answers, under way.

    `send` and `end` never wait and may be called by any thread; one thread takes the answers.

    Attributes:
        endpoint: whose it is.
        token: what it goes by, to its end.

    """

    __slots__ = ("_call", "_requests", "endpoint", "token")

    def __init__(self, endpoint: Endpoint, token: Token) -> None:
        self.endpoint = endpoint
        self.token = token
        self._requests: SimpleQueue[object] = SimpleQueue()
        # a member cut off from the others ends the stream, instead of going quiet
        self._call = endpoint.watch(iter(self._requests.get, None), metadata=token)

    def send(self, request: object) -> None:
        """Let ``request`` go out after those before it; lost if the stream has ended."""
        self._requests.put(request)

    def answers(self) -> Iterator[tuple[pb.WatchResponse, int]]:
        """Each answer and its size in bytes, until the stream ends, which is always an error."""
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise translate(error, write=False) from error
        finally:
            self._requests.put(None)  # or gRPC's sending thread would wait for ever
        raise Unavailable("etcd ended the stream")

    def first(self) -> None:
        """Wait until the server has taken the call; raises gRPC's errors."""
        self._call.initial_metadata()

    def end(self) -> None:
        """Give it up; `answers` raises."""
        self._requests.put(None)
        self._call.cancel()

"""The bridge to the old ``etcd3`` client, the only module that knows it, and the calls over it.

*Why a bridge.* ``etcd3`` 0.12 ships stubs made for a protobuf of 2018, which no protobuf since 4.0
can import. Its client code is fine. So stubs made from our own ``wire.proto`` stand in as
``etcd3.etcdrpc`` before it is imported. From the client we take the channel, its TLS and the stub
objects; requests, time-outs, tokens and errors are ours.

*Connections.* A `Connection` holds one `Link` (client and channel) per endpoint, made at the first
use. One endpoint is the current one. A call that never reached its endpoint, or that the member
refused because it knows no leader, moves on to the next, at most once around; nothing else is sent
twice, except a call that the server refused for its token, after a new login, and a read. A read
waits for no more than its share of the time, and `_SILENCE` seconds, at each endpoint but the last,
so that one that has vanished without a word, or has just lost its leader, costs no more. A write
has all of it, and afterwards the endpoint is left. All is bounded by the call's deadline.

*Leaders.* Every call says that it wants a leader (``hasleader``, as etcd's own client can): a
member that knows of none refuses at once, before it does anything, instead of keeping a write whose
fate nobody will know.

*Threads.* A call runs on the caller's thread. One lock guards the making of links and the choice of
the current one, and nothing waits under it, so that `close` waits for nothing but a fork. It is
re-entrant, for a signal handler may close the handle under it: whether it is closed is looked at
behind the making of a link. Another lock is held during a login, so that a hundred callers with an
expired token log in once. Making a link, its first call and its end are kept apart from forks; see
`kvi_etcd.forks`.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Self

import grpc
from kvi.errors import InvalidOption, Timeout, Unavailable

from kvi_etcd import wire_pb2 as pb
from kvi_etcd.errors import Fault, classify, translate
from kvi_etcd.forks import ForkGate

Method = Callable[..., Any]
Token = tuple[tuple[str, str], ...]  # as metadata of a call

_WITH_LEADER: Token = (("hasleader", "true"),)
_SILENCE = 2.0  # seconds that a read waits for an endpoint, if there is another
_PATIENCE = 0.5  # seconds; calls that have less never leave an endpoint for its silence

_gate = ForkGate()
_STUBS = "etcd3.etcdrpc"

# bytes: bounds what one page of a range, or one answer of a watch, may hold in memory
MAX_PAGE = 32 * 1024 * 1024

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": "etcdserverpb.KV", "method": "Range"},
                {"service": "etcdserverpb.Watch", "method": "Watch"},
            ],
            "maxResponseMessageBytes": MAX_PAGE,
        }
    ]
}
_OPTIONS = (
    # a transaction's answer must come through whatever its size: the transaction has been applied
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_send_message_length", -1),  # what is too large for etcd is refused before
    ("grpc.keepalive_time_ms", 10_000),  # etcd drops clients that ping more often than every 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    # for gRPC's own ping, which measures the line: while it waits, no keepalive is sent
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # close() closes this handle's connection and no other
    ("grpc.enable_retries", 0),  # whether to send again is decided here
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # a server that is back is found within a second
)

# service → method → (request, response); "~" marks a stream of requests or responses
_SERVICES: dict[str, dict[str, tuple[str, str]]] = {
    "KV": {
        "Range": ("RangeRequest", "RangeResponse"),
        "Put": ("PutRequest", "PutResponse"),
        "DeleteRange": ("DeleteRangeRequest", "DeleteRangeResponse"),
        "Txn": ("TxnRequest", "TxnResponse"),
        "Compact": ("CompactionRequest", "CompactionResponse"),
    },
    "Watch": {"Watch": ("~WatchRequest", "~WatchResponse")},
    "Lease": {
        "LeaseGrant": ("LeaseGrantRequest", "LeaseGrantResponse"),
        "LeaseRevoke": ("LeaseRevokeRequest", "LeaseRevokeResponse"),
        "LeaseKeepAlive": ("~LeaseKeepAliveRequest", "~LeaseKeepAliveResponse"),
        "LeaseTimeToLive": ("LeaseTimeToLiveRequest", "LeaseTimeToLiveResponse"),
    },
    "Cluster": {
        "MemberAdd": ("MemberAddRequest", "MemberAddResponse"),
        "MemberRemove": ("MemberRemoveRequest", "MemberRemoveResponse"),
        "MemberUpdate": ("MemberUpdateRequest", "MemberUpdateResponse"),
        "MemberList": ("MemberListRequest", "MemberListResponse"),
    },
    "Maintenance": {
        "Alarm": ("AlarmRequest", "AlarmResponse"),
        "Status": ("StatusRequest", "StatusResponse"),
        "Defragment": ("DefragmentRequest", "DefragmentResponse"),
        "Hash": ("HashRequest", "HashResponse"),
        "Snapshot": ("SnapshotRequest", "~SnapshotResponse"),
    },
    "Auth": {"Authenticate": ("AuthenticateRequest", "AuthenticateResponse")},
}


def _stub_class(service: str) -> type:
    """A class like those that the gRPC compiler writes: one attribute per method."""

    def init(self: Any, channel: grpc.Channel) -> None:
        for method, (request, response) in _SERVICES[service].items():
            shape = "_".join("stream" if m[0] == "~" else "unary" for m in (request, response))
            call = getattr(channel, shape)(
                f"/etcdserverpb.{service}/{method}",
                request_serializer=getattr(pb, request.lstrip("~")).SerializeToString,
                response_deserializer=getattr(pb, response.lstrip("~")).FromString,
            )
            setattr(self, method, call)

    return type(f"{service}Stub", (), {"__init__": init})


def _import_etcd3() -> ModuleType:
    if _STUBS not in sys.modules:
        stubs = ModuleType(_STUBS, "Stubs for etcd3, made from kvi_etcd/wire.proto.")
        stubs.__dict__.update({k: v for k, v in vars(pb).items() if not k.startswith("_")})
        for service in _SERVICES:
            setattr(stubs, f"{service}Stub", _stub_class(service))
        sys.modules[_STUBS] = stubs
    return importlib.import_module("etcd3")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user of etcd and its password."""

    name: str
    password: str = field(repr=False)

    @classmethod
    def of(cls, name: str | None, password: str | None) -> Self | None:
        """The credentials, or ``None`` without a name."""
        return None if name is None or password is None else cls(name, password)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM text for TLS; without ``ca`` the authorities that gRPC brings are trusted."""

    ca: bytes | None = field(default=None, repr=False)
    cert: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)

    @classmethod
    def read(cls, ca: str | None, cert: str | None, key: str | None) -> Self:
        """Read the files; raises `InvalidOption` that names the option of one that cannot be."""
        if (cert is None) != (key is None):
            raise InvalidOption("a client certificate needs both options, cert and key")
        return cls(_pem("ca", ca), _pem("cert", cert), _pem("key", key))


def _pem(option: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InvalidOption(
            f"option {option!r} names a file that cannot be read: {error}"
        ) from error
    if b"-----BEGIN" not in text:
        raise InvalidOption(f"option {option!r} names a file without PEM text")
    return text


def _client(host: str, port: int, tls: Tls | None) -> Any:
    etcd3 = _import_etcd3()

    class Client(etcd3.Etcd3Client):  # type: ignore[name-defined, misc]
        """The client, with TLS as kvi configures it."""

        def _get_secure_creds(self, *_files: object) -> grpc.ChannelCredentials:
            assert tls is not None
            return grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)

    return Client(
        f"[{host}]" if ":" in host else host,
        port,
        ca_cert=None if tls is None else "",  # not None switches TLS on; the bytes are ours
        grpc_options=_OPTIONS,
    )


def _sized(raw: bytes) -> tuple[pb.WatchResponse, int]:
    """A message of a watch, and the bytes it came in: asking it for its size encodes it again."""
    return pb.WatchResponse.FromString(raw), len(raw)


class Link:
    """A client of one endpoint, and the methods that the store calls.

    Attributes:
        client: the ``etcd3`` client.
        metadata: what goes with each call: the token, or ``None`` before a login.
        fresh: no call has come through yet.
    """

    __slots__ = (
        "authenticate",
        "client",
        "delete",
        "fresh",
        "grant",
        "keep_alive",
        "metadata",
        "put",
        "range",
        "revoke",
        "txn",
        "watch",
    )

    def __init__(self, client: Any) -> None:
        self.client = client
        stub = client.kvstub
        self.range: Method = stub.Range
        self.put: Method = stub.Put
        self.delete: Method = stub.DeleteRange
        self.txn: Method = stub.Txn
        stubs, channel = sys.modules[_STUBS], client.channel
        self.authenticate: Method = stubs.AuthStub(channel).Authenticate
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
        self.metadata: Token | None = None
        self.fresh = True

    def forget(self, refused: object) -> None:
        """Drop the token, unless another thread has got a new one since."""
        if self.metadata is refused:
            self.metadata = None


class Pending:
    """A request whose answer is still to be taken, or not wanted any more."""

    __slots__ = ("_future", "_insist", "_timeout")

    def __init__(
        self, future: Any, insist: Callable[[grpc.RpcError | None, float], Any], timeout: float
    ) -> None:
        self._future = future  # None: it could not be sent ahead
        self._insist = insist
        self._timeout = timeout

    def answer(self) -> Any:
        """Wait for the answer, as long as the request's time-out says, from now on."""
        deadline = time.monotonic() + self._timeout
        if self._future is None:
            return self._insist(None, deadline)
        try:
            return self._future.result()
        except grpc.FutureCancelledError as error:
            raise Unavailable("the connection is closed") from error
        except grpc.RpcError as error:
            return self._insist(error, deadline)

    def cancel(self) -> None:
        """Let go of it; does nothing once it is answered."""
        if self._future is not None:
            self._future.cancel()


class Stream:
    """One call with many requests and many answers, under way.

    `send` and `end` never wait and may be called by any thread; one thread takes the answers.

    Attributes:
        link: whose it is.
        token: what it goes by, to its end; ``None`` without a user.
    """

    __slots__ = ("_call", "_requests", "link", "token")

    def __init__(self, link: Link, token: Token | None) -> None:
        self.link = link
        self.token = token
        self._requests: SimpleQueue[object] = SimpleQueue()
        # a member cut off from the others ends the stream, instead of going quiet
        self._call = link.watch(iter(self._requests.get, None), metadata=token or _WITH_LEADER)

    def send(self, request: object) -> None:
        """Let ``request`` go out after those before it; lost if the stream has ended."""
        self._requests.put(request)

    def answers(self) -> Iterator[tuple[pb.WatchResponse, int]]:
        """Each answer and its size in bytes, until the stream ends, which is always an error."""
        try:
            yield from self._call
            raise Unavailable("etcd ended the stream")
        except grpc.RpcError as error:
            raise translate(error, write=False) from error
        finally:
            self._requests.put(None)  # or gRPC's sending thread would wait for ever

    def first(self) -> None:
        """Wait until the server has taken the call, or `answers` has an error to tell."""
        with _gate, suppress(grpc.RpcError):
            self._call.initial_metadata()

    def end(self) -> None:
        """Give it up; `answers` raises."""
        self._requests.put(None)
        self._call.cancel()


class Connection:
    """Calls to one cluster over one of its endpoints; see the module's theory.

    Safe for threads. Calls raise errors of kvi.
    """

    def __init__(
        self,
        endpoints: Sequence[tuple[str, int]],
        tls: Tls | None,
        credentials: Credentials | None,
    ) -> None:
        self._endpoints = list(endpoints)
        self._tls = tls
        self._credentials = credentials
        self._lock = threading.RLock()
        self._logging_in = threading.Lock()
        self._links: dict[int, Link] = {}
        self._at = 0  # the index of the current endpoint
        self._link: Link | None = None
        self._closed = False
        self._alone = len(self._endpoints) == 1

    def call(self, method: str, request: object, timeout: float, *, write: bool) -> Any:
        """Send ``request`` to the method of `Link` of that name and return the answer."""
        deadline = time.monotonic() + timeout
        link = self._link or self._current()
        if link.fresh:
            with _gate:
                answer = self._insist(link, method, request, timeout, write, None, None)
            link.fresh = False
            return answer
        token = link.metadata
        if token is None and self._credentials is not None:
            return self._insist(link, method, request, timeout, write, None, None)
        share = timeout if write else self._share(timeout)
        try:
            return getattr(link, method)(request, share, token or _WITH_LEADER)
        except grpc.RpcError as error:
            return self._insist(link, method, request, timeout, write, error, token, deadline)
        except ValueError as error:
            raise self._shut(error) from error

    def begin(self, method: str, request: object, timeout: float) -> Pending:
        """Send a request that only reads, and go on; the answer is asked for later."""
        link = self._link or self._current()
        future, token = None, link.metadata
        if self._credentials is None or token is not None:
            try:
                future = getattr(link, method).future(
                    request, self._share(timeout), token or _WITH_LEADER
                )
            except ValueError as error:
                raise self._shut(error) from error

        def insist(error: grpc.RpcError | None, deadline: float) -> Any:
            return self._insist(link, method, request, timeout, False, error, token, deadline)

        return Pending(future, insist, timeout)

    def stream(self, timeout: float) -> Stream:
        """Open a stream of watches at the current endpoint; a login before it is bounded."""
        link = self._link or self._current()
        try:
            token = link.metadata
            if token is None and self._credentials is not None:
                with _gate:
                    token = self._token(link, time.monotonic() + timeout)
            return Stream(link, token)
        except grpc.RpcError as error:
            fault = classify(error.code(), error.details() or "")
            if fault not in (Fault.FINAL, Fault.LOGIN):
                self._move_on(link)
            raise translate(error, write=False) from error
        except ValueError as error:
            raise self._shut(error) from error

    def leave(self, stream: Stream) -> None:
        """The endpoint of ``stream`` failed it: use the next one, unless that happened already."""
        with suppress(Unavailable):  # closed
            self._move_on(stream.link)

    def renew_login(self, stream: Stream) -> bool:
        """Let the next stream have a new token; false if that is no use, for there is no user."""
        stream.link.forget(stream.token)
        return self._credentials is not None

    @property
    def client(self) -> Any:
        """The ``etcd3`` client of the current endpoint."""
        return (self._link or self._current()).client

    def close(self) -> None:
        """End all calls and connections."""
        with self._lock:
            self._closed = True
            links = list(self._links.values())
        with _gate:
            for link in links:
                link.client.close()

    def abandon(self) -> tuple[object, ...]:
        """In a forked child: forget the parent's channels; returns them, never to be freed."""
        abandoned = tuple(self._links.values())
        self._links, self._link = {}, None
        self._lock, self._logging_in = threading.RLock(), threading.Lock()
        return abandoned

    def _share(self, timeout: float) -> float:
        """The seconds that a read waits for one endpoint."""
        if timeout < _PATIENCE or self._alone:
            return timeout
        return min(timeout / len(self._endpoints), _SILENCE)

    def _insist(
        self,
        link: Link,
        method: str,
        request: object,
        timeout: float,
        write: bool,
        error: grpc.RpcError | None,
        token: Token | None,
        deadline: float | None = None,
    ) -> Any:
        """Send the request after a first ``error``, or a login: move on or log in where needed.

        ``token`` is what it was sent with, if it was; ``deadline`` when the time is up, if it
        does not begin now.
        """
        deadline = time.monotonic() + timeout if deadline is None else deadline
        patient = timeout >= _PATIENCE and not self._alone
        others, logins, sent = len(self._endpoints) - 1, 1, error is not None
        while True:
            if error is not None:
                code, detail = error.code(), error.details() or ""
                fault = classify(code, detail)
                silent = patient and code is grpc.StatusCode.DEADLINE_EXCEEDED
                leaderless = fault is Fault.REFUSED and "no leader" in detail
                silent_read = silent and not (write and sent)
                if others and (fault is Fault.UNREACHED or leaderless or silent_read):
                    others -= 1
                    link = self._move_on(link)
                elif fault is Fault.LOGIN and self._credentials is not None and logins:
                    logins -= 1
                    link.forget(token)
                else:
                    if silent:
                        self._move_on(link)
                    raise translate(error, write=write and sent) from error
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise Timeout("no etcd endpoint answered in time") from error
            try:
                sent = False
                share = min(remaining / (others + 1), _SILENCE)
                token = self._token(
                    link, time.monotonic() + (share if patient and others else remaining)
                )
                remaining = max(0.001, deadline - time.monotonic())
                if patient and others and not write:
                    remaining = min(remaining / (others + 1), _SILENCE)
                sent = True
                return getattr(link, method)(request, remaining, token or _WITH_LEADER)
            except grpc.RpcError as again:
                error = again
            except ValueError as closed:
                raise self._shut(closed) from closed

    def _current(self) -> Link:
        with _gate, self._lock:
            return self._use(self._at)

    def _move_on(self, failed: Link) -> Link:
        """The link of the next endpoint, or the current one if another thread moved already."""
        with _gate, self._lock:
            if self._link is failed:
                self._at = (self._at + 1) % len(self._endpoints)
            return self._use(self._at)

    def _use(self, at: int) -> Link:
        """The link of endpoint ``at``, now the current one; under the lock, behind the gate."""
        link = None if self._closed else self._links.get(at) or self._new(at)
        if link is None or self._closed:
            raise Unavailable("the connection is closed")
        self._link = link
        return link

    def _new(self, at: int) -> Link:
        link = self._links[at] = Link(_client(*self._endpoints[at], self._tls))
        if self._closed:  # by a signal handler just now, which may not have seen it
            link.client.close()
        return link

    def _token(self, link: Link, deadline: float) -> Token | None:
        """What goes with a call over ``link``, after a login if need be; raises gRPC's errors."""
        token, credentials = link.metadata, self._credentials
        if token is not None or credentials is None:
            return token
        if not self._logging_in.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Timeout("the login did not end in time")
        try:
            token = link.metadata  # of another thread that logged in meanwhile
            if token is None:
                request = pb.AuthenticateRequest(
                    name=credentials.name, password=credentials.password
                )
                answer = link.authenticate(
                    request, max(0.001, deadline - time.monotonic()), _WITH_LEADER
                )
                link.client.metadata = (("token", answer.token),)
                token = link.metadata = (*_WITH_LEADER, ("token", answer.token))
            return token
        finally:
            self._logging_in.release()

    def _shut(self, error: ValueError) -> Exception:
        """GRPC raises ValueError on a closed channel; any other one is a fault of ours."""
        return Unavailable("the connection is closed") if self._closed else error

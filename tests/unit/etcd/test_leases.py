"""How leases are looked through, before a server that says what is asked of this."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import kvi
import pytest
from kvi.model import LeaseInfo, Span
from kvi_etcd import wire
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.leases import AT_ONCE

from tests.support.inside import inmost
from tests.support.waiting import until

WITHIN = 20.0


class Keeper:
    """The leases of an etcd, as far as this is about them.

    Attributes:
        leases: the ids, and the keys of each; ``None``: one that ends before it is asked for.
        secret: the ids of those with a key that the user may not read.
        hidden: the user may not list leases.
        says: with what it ends the stream of a renewal: a code, and a text.
        answers: what the next renewals are answered with: a term, and a ttl.
        term: that of all other answers.
        readable: the user may read.
        denying: is called before a read is refused.
        stalled: calls for the rest of a lease are answered once this is unset.
        together: how many of those are to be under way before any is answered.
        most: how many of those were under way at once.

    """

    def __init__(self) -> None:
        self.leases: dict[int, list[bytes] | None] = {}
        self.secret: set[int] = set()
        self.hidden = False
        self.says: tuple[grpc.StatusCode, str] | None = None
        self.answers: list[tuple[int, int]] = []
        self.term = 3
        self.readable = False
        self.denying: Callable[[], object] = lambda: None
        self.stalled = False
        self.together = 1
        self.most = 0
        self._under_way = 0
        self._changed = threading.Condition()

    def end(self) -> None:
        """Let everybody go."""
        with self._changed:
            self.stalled = False
            self.together = 1
            self._changed.notify_all()

    def list(self, request: pb.LeaseLeasesRequest, context: Any) -> pb.LeaseLeasesResponse:
        """The ids."""
        if self.hidden:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")
        return pb.LeaseLeasesResponse(leases=[pb.LeaseStatus(ID=one) for one in self.leases])

    def tell(self, request: pb.LeaseTimeToLiveRequest, context: Any) -> pb.LeaseTimeToLiveResponse:
        """The rest of one."""
        with self._changed:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            self._changed.notify_all()
            enough = self._changed.wait_for(
                lambda: self.most >= self.together and not self.stalled, WITHIN
            )
            self._under_way -= 1
        assert enough
        if request.keys and request.ID in self.secret:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")
        keys = self.leases.get(request.ID)
        if keys is None:
            return pb.LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)
        told = keys if request.keys else []
        return pb.LeaseTimeToLiveResponse(ID=request.ID, TTL=0, grantedTTL=60, keys=told)

    def renew(self, request: pb.LeaseKeepAliveRequest, context: Any) -> pb.LeaseKeepAliveResponse:
        """Ended, or renewed."""
        if self.says is not None:
            context.abort(*self.says)
        term, ttl = self.answers.pop(0) if self.answers else (self.term, 60)
        return pb.LeaseKeepAliveResponse(header=_of_term(term), ID=request.ID, TTL=ttl)

    def read(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
        """Nothing, which this user may not read."""
        if not self.readable:
            self.denying()
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")
        return pb.RangeResponse(header=_of_term(self.term))

    def status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        """Which anybody may ask for."""
        return pb.StatusResponse(header=_of_term(self.term))


def _of_term(term: int) -> pb.ResponseHeader:
    return pb.ResponseHeader(raft_term=term)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """What the server keeps."""
    keeper = Keeper()
    yield keeper
    keeper.end()


@pytest.fixture
def store(keeper: Keeper) -> Iterator[Any]:
    """The backend of a store on that server."""
    server = grpc.server(ThreadPoolExecutor(2 * AT_ONCE))
    for service, method, answer, request in (
        ("Lease", "LeaseLeases", keeper.list, pb.LeaseLeasesRequest),
        ("Lease", "LeaseTimeToLive", keeper.tell, pb.LeaseTimeToLiveRequest),
        ("Lease", "LeaseKeepAlive", keeper.renew, pb.LeaseKeepAliveRequest),
        ("KV", "Range", keeper.read, pb.RangeRequest),
        ("Maintenance", "Status", keeper.status, pb.StatusRequest),
    ):
        handler = grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(f"etcdserverpb.{service}", {method: handler}),)
        )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        uri = f"etcd://127.0.0.1:{port},localhost:{port}"
        with kvi.open(uri, retry="off") as store:
            yield inmost(store)
    finally:
        keeper.end()
        server.stop(None).wait(WITHIN)


def test_a_bounded_number_at_once(keeper: Keeper, store: Any) -> None:
    """Several leases are asked for at once, and never more than so many."""
    keeper.leases = {number: [b"k"] for number in range(1, 4 * AT_ONCE)}
    keeper.together = AT_ONCE
    found = store._leases(None, Span(), WITHIN)
    assert [lease.id for lease in found] == list(keeper.leases)
    assert keeper.most == AT_ONCE


def test_ended_meanwhile(keeper: Keeper, store: Any) -> None:
    """What has ended between its listing and the question for the rest is left out.

    One in its last second, of which etcd says 0, is there.
    """
    keeper.leases = {1: [], 2: None, 3: [b"b", b"a"]}
    assert store._leases(None, Span(), WITHIN) == [
        LeaseInfo(1, 60, 0, []),
        LeaseInfo(3, 60, 0, ["a", "b"]),
    ]
    assert store._leases((2, 4, 3), None, WITHIN) == [LeaseInfo(3, 60, 0, None)]


def test_a_member_that_is_late_is_no_proxy(keeper: Keeper, store: Any) -> None:
    """A member of etcd 3.4 that has too much to do ends a renewal in words like a proxy's."""
    assert store._lease_renew(1, WITHIN) == 60
    keeper.says = grpc.StatusCode.UNKNOWN, "context deadline exceeded"
    with pytest.raises(kvi.Timeout):
        store._lease_renew(1, 0.5)
    keeper.says = grpc.StatusCode.UNKNOWN, "something new"
    with pytest.raises(kvi.Unavailable, match="something new") as caught:
        store._lease_renew(1, 0.5)
    assert "grpc-proxy" not in str(caught.value)
    keeper.says = grpc.StatusCode.UNKNOWN, "context canceled"
    with pytest.raises(kvi.Unavailable, match="grpc-proxy"):
        store._lease_renew(1, 0.5)


@pytest.mark.parametrize("readable", [True, False])
def test_renewed_by_a_leader_of_the_past(keeper: Keeper, store: Any, readable: bool) -> None:
    """That does not count, nor that it knows of no such lease: it is renewed again."""
    keeper.readable = readable
    for ttl in (60, 0):
        keeper.answers = [(2, ttl), (3, 50)]
        assert store._lease_renew(1, WITHIN) == 50
    keeper.answers = [(3, 0)]
    with pytest.raises(kvi.LeaseLost):
        store._lease_renew(1, WITHIN)


@pytest.mark.parametrize("readable", [True, False])
def test_renewed_by_leaders_of_the_past_only(keeper: Keeper, store: Any, readable: bool) -> None:
    """Then it is not renewed."""
    keeper.readable = readable
    keeper.answers = [(2, 60)] * 1000
    with pytest.raises(kvi.Timeout):
        store._lease_renew(1, 0.5)


def test_term_of_another_endpoint(keeper: Keeper, store: Any) -> None:
    """Whose status it is counts: that of an endpoint which refused no read proves nothing."""
    connection = store._connection

    def move_on() -> None:
        keeper.denying = lambda: None
        connection._move_on(connection._current())
        keeper.answers = [(3, 50)]

    keeper.denying = move_on
    assert store._lease_renew(1, WITHIN) == 50


def test_keys_that_the_user_may_not_read(keeper: Keeper, store: Any) -> None:
    """A lease with one of them is told without its keys; the others are told whole."""
    keeper.leases = {1: [b"a"], 2: [b"a", b"secret"], 3: []}
    keeper.secret = {2}
    assert [lease.keys for lease in store._leases(None, Span(), WITHIN)] == [["a"], None, []]


def test_leases_that_the_user_may_not_list(keeper: Keeper, store: Any) -> None:
    """That is told; it is not that there are none."""
    keeper.hidden = True
    with pytest.raises(kvi.PermissionDenied):
        store._leases(None, Span(), WITHIN)


def test_time_is_up(keeper: Keeper, store: Any) -> None:
    """The time-out bounds them all together, and no call is left under way."""
    keeper.leases = {number: [] for number in range(1, 4 * AT_ONCE)}
    keeper.stalled = True
    began = time.monotonic()
    with pytest.raises(kvi.Timeout):
        store._leases(None, Span(), 0.5)
    assert time.monotonic() - began < 5
    keeper.end()
    until(lambda: not keeper._under_way)
    assert keeper.most == AT_ONCE


@pytest.mark.parametrize(
    ("span", "keys"),
    [
        (Span(), ["a", "ab", "b/c", "\ufffd", "ü"]),
        (Span("ab"), ["ab", "b/c", "\ufffd", "ü"]),
        (Span("", "ab"), ["a"]),
        (Span("ab", "b/c"), ["ab"]),
        (Span.of_prefix("b/"), ["b/c"]),
    ],
)
def test_keys_within(span: Span, keys: list[str]) -> None:
    """Those of the span, in order; what is no text is shown as something that is none."""
    raw = ["ü".encode(), b"b/c", b"\x80", b"a", b"ab"]
    assert wire.keys_within(span, raw) == keys

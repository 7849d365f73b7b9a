"""Leases and temporary keys: section 5 of the contract."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator

import pytest

import kvi
from kvi.clock import now
from kvi.conformance.contract import rule
from kvi.conformance.neighbours import snapshot
from kvi.conformance.rules import Rules
from kvi.conformance.waiting import WITHIN, Reopen, side_by_side, until
from kvi.model import LeaseInfo, Span
from kvi.ops import LeasesOp
from kvi.primitives import Primitives

LONG = 60.0  # seconds: nothing of a test outlives it
MARGIN = 5.0  # seconds that a watch, and a busy machine, need beside a bound
MANY = 1100  # keys of one lease, more than come in one page
PORTION = 100  # of these that are written at once

READS: tuple[tuple[str, Callable[[kvi.Kvi], object]], ...] = (
    ("get", lambda store: store.get("k")),
    ("count", lambda store: store.count(prefix="k")),
    ("range", lambda store: list(store.range(prefix="k"))),
)
"""The ways to see whether the key ``k`` is there."""


def bound_of(store: kvi.Kvi, lease: kvi.Lease) -> float:
    """Seconds within which a lease that nobody renews ends."""
    return store.capabilities.lease_expiry_factor * lease.ttl + 1


def deletions(
    watch: kvi.Watch, store: kvi.Kvi, keys: Collection[str], *, within: float
) -> list[kvi.Event]:
    """The DELETE events of these keys, which come next but for PUT events."""
    deadline = now() + within
    events: list[kvi.Event] = []
    while missing := sorted(set(keys) - {event.key for event in events}):
        try:
            event = watch.next(max(0.0, deadline - now()))
        except kvi.Timeout:
            there = [key for key in missing if store.get(key)]
            assert not there, f"{', '.join(there)} did not vanish within {within:g} s"
            raise AssertionError(
                f"no DELETE event for {', '.join(missing)}, which vanished within {within:g} s"
            ) from None
        if event.type is not kvi.EventType.PUT:
            assert event.type is kvi.EventType.DELETE
            assert event.key in missing, "the event of another key, or of one that is told already"
            events.append(event)
    return events


def portions(store: kvi.Kvi, lease: kvi.Lease) -> Iterator[list[kvi.Put]]:
    """Writes of many keys with a lease, in portions which the store takes."""
    size = min(store.capabilities.max_txn_ops or PORTION, PORTION)
    for first in range(0, MANY, size):
        numbers = range(first, min(first + size, MANY))
        yield [kvi.Put(f"many/{number:04}", b"", lease) for number in numbers]


def unknown_lease(store: kvi.Kvi) -> int:
    """The id of a lease that has been there and is gone."""
    lease = store.lease(LONG)
    lease.revoke()
    return lease.id


def listed(
    store: kvi.Kvi, ids: Collection[int] | None = None, span: Span | None = None
) -> dict[int, LeaseInfo]:
    """What the backend tells of leases, by id."""
    told = store._do(LeasesOp(ids, span), None)
    found = {lease.id: lease for lease in told}
    assert len(found) == len(told), "a lease is told twice"
    return found


def lists(store: kvi.Kvi) -> bool:
    """Whether the backend tells of leases; one that does not says so."""
    if type(store._scope.primitives)._leases is not Primitives._leases:
        return True
    with pytest.raises(kvi.NotSupported):
        listed(store)
    return False


def _refused(store: kvi.Kvi, lease: kvi.Lease) -> bool:
    """Whether the store has ended a lease, which its holder may count as lost a moment before."""
    try:
        store.store("d", b"", lease=lease.id)
    except kvi.LeaseLost:
        return True
    return False


def _is_over(asked: float, lease: kvi.Lease) -> bool:
    """False, for the machine stood still for all of its time; fail if it was not yet over."""
    assert now() > asked + 0.75 * lease.ttl, "the lease ended before its ttl was over"
    return False


class TestLeases(Rules):
    """Leases that are granted, renewed and revoked."""

    @rule("lease.ttl")
    def test_grant(self, store: kvi.Kvi) -> None:
        """A lease has an id above 0 and a ttl not below what was asked; it is alive at once."""
        with store.lease(LONG) as lease:
            assert lease.id > 0
            assert LONG <= lease.ttl <= LONG + 1
            assert lease.alive
            assert not lease.lost.is_set()
        with store.lease(LONG, timeout=20) as lease, store.temp_key("k", timeout=20, ttl=LONG) as k:
            assert min(lease.ttl, k.lease.ttl) >= LONG, "the time-out bounds the call alone"

    @rule("lease.ttl")
    def test_shortest(self, store: kvi.Kvi) -> None:
        """A ttl below the store's minimum is raised to it, never refused, never shortened."""
        with store.lease(0.5) as lease:
            assert lease.ttl >= max(0.5, store.capabilities.lease_min_ttl)
            assert lease.ttl <= max(1.0, store.capabilities.lease_min_ttl)

    @rule("lease.ttl")
    def test_fraction(self, store: kvi.Kvi) -> None:
        """A ttl of broken seconds is not cut down to whole ones."""
        with store.lease(LONG + 1.7) as lease:
            assert lease.ttl >= LONG + 1.7

    @rule("lease.invalid")
    @pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, "10", None, True])
    def test_bad_ttl(self, store: kvi.Kvi, ttl: object) -> None:
        """A ttl that is not a positive number is an InvalidArgument, for leases, keys and locks."""
        before = snapshot(store)
        with pytest.raises(kvi.InvalidArgument, match="ttl"):
            store.lease(ttl)  # type: ignore[arg-type]
        with pytest.raises(kvi.InvalidArgument, match="ttl"):
            store.temp_key("k", ttl=ttl)  # type: ignore[arg-type]
        with pytest.raises(kvi.InvalidArgument, match="ttl"):
            store.lock("k", ttl=ttl)  # type: ignore[arg-type]
        if ttl is not None:
            with pytest.raises(kvi.InvalidArgument, match="ttl"):
                store.store("k", b"", ttl=ttl)  # type: ignore[arg-type]
        assert snapshot(store) == before

    @rule("lease.invalid")
    def test_longest(self, store: kvi.Kvi) -> None:
        """A ttl above the store's maximum is an InvalidArgument; the maximum is granted."""
        longest = store.capabilities.lease_max_ttl
        if longest is None:
            longest = 10.0**9
        else:
            with pytest.raises(kvi.InvalidArgument, match="at most"):
                store.lease(longest + 1)
        with store.lease(longest, keep_alive=False) as lease:
            assert lease.ttl >= longest

    @rule("lease.last-write")
    def test_keys_name_it(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Store, cas and txn take a lease or its id, and entries show the id."""
        with store.lease(LONG) as lease:
            store.store("a", b"1", lease=lease)
            store.store("b", b"2", lease=lease.id)
            assert store.cas("c", 0, b"3", lease=lease)
            assert store.txn(then=[kvi.Put("d", b"4", lease), kvi.Put("e", b"5", lease.id)])
            for key in "abcde":
                entry = peer.get(key)
                assert entry is not None
                assert entry.lease == lease.id
            assert [entry.lease for entry in peer.range(keys_only=True)] == [lease.id] * 5
            assert peer.txn([kvi.Key("a").lease == lease, kvi.Key("b").lease == lease.id])

    @rule("lease.keys", "lease.revoke")
    def test_revoke_takes_its_keys(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Revoking deletes all keys of the lease and nothing else; it is no loss."""
        store.store("other", b"stays")
        lease = store.lease(LONG)
        for key in ("a", "b", "c"):
            store.store(key, b"", lease=lease)
        with peer.watch(prefix="") as watch:
            lease.revoke()
            assert not lease.alive
            assert snapshot(peer) == {"other": b"stays"}
            gone = deletions(watch, peer, "abc", within=WITHIN)
        if store.capabilities.watch_history:
            assert len({event.revision for event in gone}) == 1
        assert not lease.lost.is_set()
        lease.revoke()
        assert not lease.lost.wait(0)

    @rule("lease.keys", "lease.revoke")
    def test_revoke_takes_many_keys(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Revoking deletes all keys of the lease, however many, and nothing else."""
        store.store("other", b"stays")
        lease = store.lease(LONG)
        for puts in portions(store, lease):
            store.txn(then=puts)
        assert peer.count(prefix="many/") == MANY
        lease.revoke()
        assert snapshot(peer) == {"other": b"stays"}

    @rule("lease.keys")
    @side_by_side
    def test_many_keys_expire(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A lease that ends by itself takes all of its keys with it, however many."""
        lease = store.lease(brief, keep_alive=False)
        for puts in portions(store, lease):
            lease.renew()
            store.txn(then=puts)
        store.store("other", b"stays")
        end = now() + bound_of(store, lease) + MARGIN
        while left := peer.count(prefix="many/"):
            assert now() < end, f"{left} of {MANY} keys of a lease are left after its end"
            time.sleep(0.02)
        assert snapshot(peer) == {"other": b"stays"}

    @rule("lease.revoke")
    def test_block(self, store: kvi.Kvi) -> None:
        """The end of a with block revokes; the block's own exception comes through."""
        with pytest.raises(ZeroDivisionError), store.lease(LONG) as lease:  # noqa: PT012
            store.store("k", b"", lease=lease)
            raise ZeroDivisionError
        assert store.get("k") is None
        assert not lease.alive

    @rule("lease.last-write")
    def test_store_without_lease_is_permanent(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A write without lease frees the key from the lease that it had."""
        with store.lease(LONG) as lease:
            store.store("a", b"1", lease=lease)
            store.store("b", b"1", lease=lease)
            store.store("a", b"2")
            store.txn(then=[kvi.Put("b", b"2")])
            assert peer.get("a").lease is None  # type: ignore[union-attr]
        assert snapshot(peer) == {"a": b"2", "b": b"2"}

    @rule("lease.last-write", "lease.keys")
    def test_another_lease_takes_over(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A key that is stored with another lease vanishes with that one only."""
        with store.lease(LONG) as second:
            with store.lease(LONG) as first:
                store.store("k", b"1", lease=first)
                store.store("k", b"2", lease=second)
                assert peer.get("k").lease == second.id  # type: ignore[union-attr]
            assert peer.get("k").text == "2"  # type: ignore[union-attr]
        assert peer.get("k") is None

    @rule("lease.last-write")
    def test_again_with_the_same_lease(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A key may be stored again, and deleted and created again, with its own lease."""
        with store.lease(LONG) as lease:
            first = store.store("k", b"1", lease=lease)
            assert store.store("k", b"1", lease=lease) > first
            assert store.delete("k")
            store.store("k", b"3", lease=lease)
            assert peer.get("k").lease == lease.id  # type: ignore[union-attr]
        assert peer.get("k") is None

    @rule("lease.last-write", "lease.keys")
    def test_new_life_without_lease(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A key that was deleted and is created again without its lease is permanent."""
        with store.lease(LONG) as lease:
            for key in ("a", "b", "c"):
                store.store(key, b"1", lease=lease)
            store.delete("a")
            store.delete_range(prefix="b")
            store.txn(then=[kvi.Delete("c")])
            for key in ("a", "b", "c"):
                store.store(key, b"2")
        assert snapshot(peer) == {"a": b"2", "b": b"2", "c": b"2"}

    @rule("lease.gone")
    def test_gone(self, store: kvi.Kvi) -> None:
        """A write that names a lease that is gone raises LeaseLost, and nothing of it is done."""
        store.store("k", b"old")
        before = snapshot(store)
        gone = unknown_lease(store)
        when = [kvi.Key("k").absent]
        with store.lease(LONG):  # that one has an id of its own
            for call in (
                lambda: store.store("k", b"new", lease=gone),
                lambda: store.store("fresh", b"new", lease=gone),
                lambda: store.cas("fresh", 0, b"new", lease=gone),
                lambda: store.txn(
                    then=[kvi.Put("a", b"1"), kvi.Put("b", b"2", gone), kvi.Delete("k")]
                ),
                lambda: store.txn(when, otherwise=[kvi.Put("a", b"1", gone)]),
            ):
                with pytest.raises(kvi.LeaseLost):
                    call()
        assert snapshot(store) == before

    @rule("lease.gone")
    @pytest.mark.parametrize("lease", [2**63 - 1, 2**64, 2**128 - 1, 2**200])
    def test_never_granted(self, store: kvi.Kvi, lease: int) -> None:
        """An id that no store of this kind ever gave out is a LeaseLost as well."""
        with pytest.raises(kvi.LeaseLost):
            store.store("k", b"", lease=lease)
        assert store.get("k") is None

    @rule("lease.gone")
    def test_object_that_is_gone(self, store: kvi.Kvi) -> None:
        """A Lease that was revoked is refused as its id is."""
        lease = store.lease(LONG)
        lease.revoke()
        with pytest.raises(kvi.LeaseLost):
            store.store("k", b"", lease=lease)
        with pytest.raises(kvi.LeaseLost):
            lease.renew()
        assert store.get("k") is None

    @rule("lease.listed")
    def test_listed(self, store: kvi.Kvi, peer: kvi.Kvi, root: kvi.Kvi) -> None:
        """Whoever looks sees each lease with the keys that it has now, in order, and no others."""
        if not lists(peer):
            return
        with store.lease(LONG) as lease, store.lease(LONG) as other:
            for key in ("d", "e", "a", "b", "c"):
                store.store(key, b"", lease=lease)
            store.store("c", b"", lease=other)
            store.store("d", b"permanent")
            store.delete("e")
            root.store("outside", b"", lease=lease)
            seen = ["outside"] if peer.get("outside") else []
            found = listed(peer, span=Span())
            assert found[lease.id].keys == ["a", "b", *seen]
            assert found[other.id].keys == ["c"]
            for one in (lease, other):
                left = found[one.id].left
                assert found[one.id].ttl == one.ttl
                assert left is None or 0 < left <= one.ttl
            assert listed(peer, span=Span("b", "c"))[lease.id].keys == ["b"]
            assert listed(peer, span=Span.of_prefix("c"))[other.id].keys == ["c"]
        assert not {lease.id, other.id} & listed(peer).keys()

    @rule("lease.listed")
    def test_some_are_listed(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Whoever asks for some gets those that are alive; who wants no keys gets none."""
        if not lists(peer):
            return
        with store.lease(LONG) as lease, store.lease(LONG) as other:
            store.store("k", b"", lease=lease)
            strange = unknown_lease(store), 2**63 - 1, 2**64, 2**128 - 1, 2**200
            assert listed(peer, ()) == {}
            assert listed(peer, strange, Span()) == {}
            (found,) = listed(peer, (*strange, lease.id)).values()
            assert (found.id, found.keys) == (lease.id, None)
            found = listed(peer, {other.id, lease.id}, Span())[lease.id]
            assert found.keys == ["k"]
            assert listed(peer, {other.id}, Span()).keys() == {other.id}

    @rule("lease.listed")
    @side_by_side
    def test_ended_is_not_listed(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A lease that has ended by itself is there no more once its keys are gone."""
        if not lists(peer):
            return
        lease = store.lease(brief, keep_alive=False)
        store.store("k", b"", lease=lease)
        end = now() + bound_of(store, lease) + MARGIN
        while peer.get("k"):
            assert now() < end, "the lease does not end"
            time.sleep(0.02)
        assert listed(peer, (lease.id,)) == {}
        assert lease.id not in listed(peer, span=Span())

    @rule("lease.alive")
    def test_renew(self, store: kvi.Kvi) -> None:
        """Renewing by hand returns the ttl and moves the end on."""
        with store.lease(LONG, keep_alive=False) as lease:
            granted = lease.ttl
            assert lease.renew() == lease.ttl
            assert lease.ttl <= granted, "renewed for more than was granted"
            assert lease.alive

    @rule("lease.alive")
    def test_lock_leases_are_renewed_for_no_more(self, store: kvi.Kvi) -> None:
        """A renewal of what holds a lock tells no more than the grant: the holder counts on it."""
        primitives = store._scope.primitives
        with store.lock("jobs", ttl=LONG):
            grant = primitives._lock_lease(LONG, 5)
            renewed = primitives._lease_renew(grant.id, 5)
            primitives._lease_revoke(grant.id, 5)
        assert renewed <= grant.ttl, "renewed for more than was granted"

    @rule("lease.lost")
    def test_revoked_by_another(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A lease that somebody else ended is found lost at its renewal, and stays so."""
        called = threading.Event()
        lease = store.lease(LONG, keep_alive=False)
        lease.lost.add_callback(called.set)
        peer._scope.primitives._lease_revoke(lease.id, 5)
        with pytest.raises(kvi.LeaseLost):
            lease.renew()
        assert not lease.alive
        assert lease.lost.is_set()
        assert called.wait(10)
        again = threading.Event()
        lease.lost.add_callback(again.set)
        assert again.wait(10), "a call-back that is added after the loss is called too"
        lease.revoke()

    @rule("lease.revoke")
    def test_revoke_of_what_has_ended(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Revoking a lease that has ended without its holder's knowledge is no error."""
        with store.lease(LONG, keep_alive=False) as left:
            revoked = store.lease(LONG, keep_alive=False)
            for lease in (left, revoked):
                peer._scope.primitives._lease_revoke(lease.id, 5)
            revoked.revoke()
        assert not left.alive
        assert not revoked.alive

    @rule("lease.lost")
    def test_own_end_is_no_loss(self, store: kvi.Kvi) -> None:
        """Neither `revoke()` nor the end of a block or of a handle is told as a loss."""
        called = threading.Event()
        view = store.namespace("view")
        revoked, left, closed = store.lease(LONG), store.lease(LONG), view.lease(LONG)
        for lease in (revoked, left, closed):
            lease.lost.add_callback(called.set)
        revoked.revoke()
        with left:
            pass
        view.close()
        for lease in (revoked, left, closed):
            assert not lease.alive
            assert not lease.lost.is_set()
        assert not called.wait(0.02)

    @rule("lease.revoke", "handle.close-frees")
    def test_close_revokes(self, store: kvi.Kvi, kvi_uri: str) -> None:
        """Closing a handle revokes its leases, kept alive or not; that is no loss."""
        with kvi.open(kvi_uri) as other:
            kept, unkept = other.lease(LONG), other.lease(LONG, keep_alive=False)
            other.store("conformance/ns/a", b"", lease=kept)
            other.store("conformance/ns/b", b"", lease=unkept)
        with kvi.open(kvi_uri) as other:
            assert other.count(prefix="conformance/ns/a") == 0
            assert other.count(prefix="conformance/ns/b") == 0
        for lease in (kept, unkept):
            assert not lease.alive
            assert not lease.lost.is_set()
            lease.revoke()
            with pytest.raises(kvi.Closed):
                lease.renew()

    @rule("lease.revoke", "namespace.closed")
    def test_view_has_leases_of_its_own(self, store: kvi.Kvi) -> None:
        """Closing a view revokes what was granted through it, and leaves the parent's alone."""
        with store.lease(LONG) as outer:
            view = store.namespace("view")
            inner = view.lease(LONG)
            view.store("k", b"", lease=inner)
            assert store.get("view/k").lease == inner.id  # type: ignore[union-attr]
            view.close()
            assert not inner.alive
            assert store.get("view/k") is None
            assert outer.alive
            assert outer.renew()

    @rule("lease.not-early", "lease.not-late", "lease.keys", "lease.lost", "lease.kept-alive")
    @side_by_side
    def test_expiry(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """Unrenewed, a lease ends not before its ttl and not after the declared bound.

        Its keys go with events, its holder knows by the clock and is told; one that is kept alive
        meanwhile stays, and so do its keys.
        """
        called = threading.Event()
        with store.lease(brief) as kept, peer.watch(prefix="") as watch:
            store.store("kept", b"", lease=kept)
            sent = now()
            lease = store.lease(brief, keep_alive=False)
            granted = now()
            lease.lost.add_callback(called.set)
            store.store("a", b"", lease=lease)
            store.store("b", b"", lease=lease)
            bound = bound_of(store, lease)
            events = deletions(watch, peer, "ab", within=bound + MARGIN)
            seen = now()
            assert seen - sent >= lease.ttl, "the lease ended too early"
            # Beside the bound, the watch may need its moment.
            assert seen - granted <= bound + 1, "the lease ended too late"
            if store.capabilities.watch_history:
                assert events[0].revision == events[1].revision, "its keys vanish together"
            assert peer.get("a") is None
            assert not lease.alive
            assert lease.lost.wait(10)
            assert called.wait(10)
            with pytest.raises(kvi.LeaseLost):
                store.store("c", b"", lease=lease)
            with pytest.raises(kvi.LeaseLost):
                lease.renew()
            lease.revoke()
            assert lease.lost.is_set()
            assert kept.alive
            assert not kept.lost.is_set()
            assert peer.get("kept")
            if store.capabilities.lease_min_ttl < 1:  # the first write after its end is refused
                short = store.lease(0.05, keep_alive=False)
                until(lambda: _refused(store, short), within=bound + 1)
                until(lambda: peer.get("d") is None)

    @rule("lease.not-late", "lease.keys", "store.ttl")
    def test_ends_unnoticed(self, root: kvi.Kvi, kvi_uri: str) -> None:
        """A key is gone in time though nobody writes and nobody watches: each kind of read tells.

        So this test waits alone. Where leases are short, each kind is the first once; elsewhere a
        read that ends what is over may hide it from the next.
        """
        limits = root.capabilities
        ttl = math.ceil(max(limits.lease_min_ttl, 0.5))
        bound = limits.lease_expiry_factor * ttl + 1
        for turn in range(len(READS) if bound <= MARGIN else 1):
            root.store("k", b"", ttl=ttl)
            written = now()
            until(lambda written=written: now() > written + bound, within=bound + WITHIN)
            end = now() + MARGIN
            for name, read in (*READS[turn:], *READS[:turn]):
                with kvi.open(kvi_uri) as fresh:
                    while read(fresh):
                        assert now() < end, f"{name} still shows a key whose ttl is over"
                        time.sleep(0.02)

    @rule("store.ttl")
    @side_by_side
    def test_ttl_of_a_key(
        self, store: kvi.Kvi, peer: kvi.Kvi, reopen: Reopen, brief: float
    ) -> None:
        """It ends not before its ttl and not after the declared bound, though its handle is closed.

        One that is written again meanwhile lives on: by its new ttl, or for good.
        """
        lease = store.lease(brief, keep_alive=False)
        with peer.watch(prefix="") as watch:
            with reopen() as other:
                sent = now()
                for key in ("closed", "permanent", "again"):
                    assert other.store(key, b"", ttl=brief)
            closed = now()
            store.store("permanent", b"stays")
            store.store("again", b"", ttl=LONG)
            bound = bound_of(store, lease)
            deletions(watch, peer, ["closed"], within=bound + MARGIN)
            seen = now()
            assert seen - sent >= lease.ttl, "the key vanished too early"
            assert seen - closed <= bound + 1, "the key vanished too late"
            until(lambda: now() > closed + bound, within=bound + MARGIN)
        entry = peer.get("permanent")
        assert entry is not None
        assert (entry.value, entry.lease) == (b"stays", None)
        assert peer.get("again") is not None
        with pytest.raises(kvi.InvalidArgument, match="ttl="):
            store.store("k", b"", ttl=LONG, lease=1)
        assert peer.get("k") is None

    @rule("lease.not-early", "lease.alive")
    @side_by_side
    def test_renewed_by_hand(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A lease that is renewed lives its ttl from then on, and by the clock no longer."""
        # A busy machine may stand still for a part of the ttl: then again, with more of it.
        assert any(self._lives_on(store, peer, brief * factor) for factor in (1, 4, 16))

    def _lives_on(self, store: kvi.Kvi, peer: kvi.Kvi, ttl: float) -> bool:
        asked = now()
        lease = store.lease(ttl, keep_alive=False)
        try:
            store.store("k", b"", lease=lease)
        except kvi.LeaseLost:
            return _is_over(asked, lease)
        with peer.watch("k") as watch:
            until(lambda: now() >= asked + lease.ttl / 2, within=60)
            sent = now()
            try:
                lease.renew()
            except kvi.LeaseLost:
                return _is_over(asked, lease)
            renewed = now()
            assert lease.alive
            deletions(watch, peer, "k", within=bound_of(store, lease) + MARGIN)
            assert now() - sent >= lease.ttl, "the lease ended too early"
            assert not lease.alive
            assert now() >= renewed
        assert peer.get("k") is None
        return True

    @rule("lease.kept-alive")
    @side_by_side
    def test_not_kept_alive(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A lease that shall not be kept alive ends, though its handle is open and at work."""
        lease = store.lease(brief, keep_alive=False)
        store.store("k", b"", lease=lease)
        end = now() + bound_of(store, lease) + MARGIN
        while peer.get("k"):
            assert now() < end, "somebody renews a lease of keep_alive=False"
            store.ping()
            time.sleep(0.02)
        assert not lease.alive

    @rule("lease.kept-alive")
    @side_by_side
    def test_kept_alive(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A lease outlives its ttl many times while it is kept alive, and so do its keys."""
        with store.lease(brief) as lease, store.temp_key("member", ttl=brief) as member:
            revision = store.store("k", b"", lease=lease)
            end = now() + 2 * lease.ttl + 1
            while now() < end:
                assert lease.alive
                assert member.alive
                assert not lease.lost.wait(lease.ttl / 10)
            assert peer.get("k").revision == revision  # type: ignore[union-attr]
            assert peer.get("member")


class TestTempKeys(Rules):
    """Keys that live as long as their process."""

    @rule("temp-key.lives")
    def test_lives_until_closed(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A temporary key is there until it is closed, with the value given; again is nothing."""
        key = store.temp_key("member", b"me", ttl=LONG)
        assert key.key == "member"
        assert key.alive
        assert peer.get("member").text == "me"  # type: ignore[union-attr]
        key.close()
        assert peer.get("member") is None
        assert not key.alive
        assert not key.lost.is_set()
        key.close()

    @rule("temp-key.lives")
    def test_value_is_chosen(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Without a value the library chooses one."""
        with store.temp_key("member"):
            assert peer.get("member").value  # type: ignore[union-attr]
        assert peer.get("member") is None

    @rule("temp-key.lives")
    def test_replaces(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """It replaces what was under the key."""
        store.store("member", b"permanent")
        with store.temp_key("member", b"temporary"):
            assert peer.get("member").text == "temporary"  # type: ignore[union-attr]
        assert peer.get("member") is None

    @rule("temp-key.own")
    def test_what_others_put_there_stays(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Closing deletes the key only if it is still the temporary one."""
        with store.temp_key("member", b"mine"):
            peer.store("member", b"theirs")
        assert peer.get("member").text == "theirs"  # type: ignore[union-attr]

    @rule("temp-key.lives", "handle.close-frees")
    def test_handle_closes_it(self, store: kvi.Kvi, kvi_uri: str) -> None:
        """Closing the handle deletes its temporary keys."""
        with kvi.open(kvi_uri) as other:
            key = other.temp_key("conformance/ns/member", ttl=LONG)
            assert key.alive
        assert not key.alive
        assert not key.lost.is_set()
        with kvi.open(kvi_uri) as other:
            assert other.get("conformance/ns/member") is None

    @rule("key.invalid")
    def test_bad_key(self, store: kvi.Kvi) -> None:
        """A bad key or value is refused before a lease is granted."""
        with pytest.raises(kvi.InvalidKey):
            store.temp_key("")
        with pytest.raises(kvi.InvalidArgument):
            store.temp_key("k", 5)  # type: ignore[arg-type]
        assert store.count() == 0

    @rule("temp-key.crash")
    @side_by_side
    def test_loss_is_told(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A temporary key whose lease was taken away is lost, says so, and is not stored again."""
        key = store.temp_key("member", b"me", ttl=brief)
        peer._scope.primitives._lease_revoke(peer.get("member").lease, 5)  # type: ignore[union-attr, arg-type]
        assert key.lost.wait(60)
        assert not key.alive
        assert peer.get("member") is None
        peer.store("member", b"another")
        key.close()
        assert peer.get("member").text == "another"  # type: ignore[union-attr]

    @rule("temp-key.crash", "lease.not-late")
    @side_by_side
    def test_vanishes_after_a_crash(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A temporary key that nobody renews vanishes within the declared bound."""
        lease = store.lease(brief, keep_alive=False)  # as a crashed process leaves it
        store.store("member", b"me", lease=lease)
        with peer.watch("member") as watch:
            deletions(watch, peer, ["member"], within=bound_of(store, lease) + MARGIN)
        assert peer.get("member") is None

"""Locks: section 6 of the contract."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

import kvi
from kvi.clock import now
from kvi.conformance.clients import run_clients
from kvi.conformance.contract import rule
from kvi.conformance.neighbours import snapshot
from kvi.conformance.processes import in_a_child, in_another_process
from kvi.conformance.recipes import Waiter
from kvi.conformance.rules import Rules
from kvi.conformance.waiting import WITHIN, Reopen, side_by_side, until
from kvi.ops import ClaimOp

SHORT = 0.05  # seconds that a waiter waits in vain

HOLDER = """
import sys, kvi
with kvi.open(sys.argv[1]) as store:
    for _ in range(2):
        lock = store.lock("jobs")
        if lock.acquire(float(sys.argv[2])):
            print(lock.fence)
            lock.release()
"""


def lease_of(store: kvi.Kvi, name: str) -> int:
    """The lease that holds a lock."""
    (entry,) = store.range(prefix=f"{name}/")
    assert entry.lease is not None
    return entry.lease


class TestLocks(Rules):
    """Mutual exclusion, and honesty about its loss."""

    @rule("lock.exclusive")
    def test_block(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A with block runs with the lock held, and others do not get it meanwhile."""
        with store.lock("jobs", timeout=5) as held:
            assert held.held
            assert held.fence > 0
            assert not held.lost.is_set()
            assert not peer.lock("jobs").acquire(0)
            assert not peer.lock("jobs").acquire(SHORT)
        assert not held.held
        assert not held.lost.is_set()
        other = peer.lock("jobs")
        assert other.acquire(0)
        other.release()

    @rule("lock.names")
    def test_default_name(self, store: kvi.Kvi) -> None:
        """Without a name all use the same lock."""
        with store.lock(timeout=WITHIN):
            assert not store.lock("default").acquire(0)

    @rule("lock.timeout")
    def test_time_out_never_enters(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A with block whose lock is not to be had raises LockTimeout and is not entered."""
        with store.lock("jobs", timeout=WITHIN):
            with pytest.raises(kvi.LockTimeout, match="jobs"), peer.lock("jobs", timeout=SHORT):
                pytest.fail("entered without the lock")
            with pytest.raises(kvi.LockTimeout), peer.lock("jobs", timeout=0):
                pytest.fail("entered without the lock")

    @rule("lock.no-ghost")
    def test_leaves_nothing_behind(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Neither a holder nor a waiter that gave up leaves a key behind."""
        store.store("jobs", b"data beside")
        store.store("jobs/x", b"data below")
        before = snapshot(store)
        with store.lock("jobs", timeout=WITHIN):
            assert not peer.lock("jobs").acquire(SHORT)
            assert not peer.lock("jobs").acquire(0)
        assert snapshot(store) == before
        for handle in (peer, store):
            with handle.lock("jobs", timeout=0):
                pass
        assert snapshot(store) == before

    @rule("lock.ttl")
    @pytest.mark.parametrize(("ttl", "timeout"), [(60, 20), (20, 60)])
    def test_ttl_is_not_the_time_out(
        self, store: kvi.Kvi, peer: kvi.Kvi, ttl: float, timeout: float
    ) -> None:
        """What holds a lock lives for `ttl`, whatever the time-out; that bounds the wait alone."""
        with store.lock("jobs", ttl=ttl, timeout=timeout):
            granted = peer._scope.primitives._lease_renew(lease_of(peer, "jobs"), 5)
        limits = store.capabilities
        # Where it may end early, a renewal is good for the lock-delay and no more.
        asked = max(ttl, limits.lease_min_ttl) * (limits.lock_delay_factor or 1)
        assert asked <= granted <= asked + 1, "what holds the lock has another ttl"

    @rule("lock.ttl")
    @side_by_side
    def test_held_for_longer_than_the_time_out(
        self, store: kvi.Kvi, peer: kvi.Kvi, brief: float
    ) -> None:
        """A lock is held until its release, for longer than its time-out and than its ttl."""
        with (
            store.lock("waited", ttl=60, timeout=brief) as waited,
            store.lock("renewed", ttl=brief, timeout=60) as renewed,
        ):
            end = now() + store.capabilities.lease_expiry_factor * brief + 1
            until(lambda: now() >= end, within=60)
            for lock in (waited, renewed):
                assert lock.held
                assert not peer.lock(lock.name).acquire(0), "others get it while it is held"

    @rule("lock.timeout")
    def test_own_time_out(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Without a time-out of its own, acquire takes the lock's."""
        with store.lock("jobs", timeout=WITHIN):
            assert not peer.lock("jobs", timeout=SHORT).acquire()
            assert not peer.lock("jobs", timeout=0).acquire()

    @rule("lock.invalid")
    @pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, "5", True])
    def test_bad_time_out(self, store: kvi.Kvi, timeout: object) -> None:
        """A negative time-out, or one that is no number, is an InvalidArgument."""
        with pytest.raises(kvi.InvalidArgument, match="timeout"):
            store.lock("jobs", timeout=timeout)  # type: ignore[arg-type]
        lock = store.lock("jobs")
        with pytest.raises(kvi.InvalidArgument, match="timeout"):
            lock.acquire(timeout)  # type: ignore[arg-type]
        assert store.count() == 0

    @rule("lock.invalid")
    @pytest.mark.parametrize("name", ["", None, 5, "\ud800"])
    def test_bad_name(self, store: kvi.Kvi, name: object) -> None:
        """A name that is no key is an InvalidKey."""
        with pytest.raises(kvi.InvalidKey):
            store.lock(name)  # type: ignore[arg-type]

    @rule("lock.names")
    @pytest.mark.parametrize(
        "name", ["/", "a//b", "..", "a b", "ü€😀", "#?%41", "a\nb", "x" * 4000]
    )
    def test_odd_names(self, store: kvi.Kvi, peer: kvi.Kvi, name: str) -> None:
        """Every key is the name of a lock, and of no other."""
        with store.lock(name, timeout=WITHIN):
            assert not peer.lock(name).acquire(0)
            with peer.lock(name[:-1] + "y" + name[-1:], timeout=0):
                pass
        with peer.lock(name, timeout=5):
            pass

    @rule("lock.names")
    def test_names_below_are_other_locks(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """``a``, ``a/b`` and ``a/b/c`` never wait for each other, whoever comes first."""
        with (
            store.lock("a", timeout=WITHIN),
            peer.lock("a/b", timeout=0),
            store.lock("a/b/c", timeout=0),
        ):
            assert not peer.lock("a").acquire(0)
        with store.lock("a/0", timeout=WITHIN), peer.lock("a", timeout=0):
            assert not peer.lock("a/0").acquire(0)

    @rule("lock.names")
    def test_data_below_is_no_lock(self, store: kvi.Kvi) -> None:
        """Keys below the name that are data do not hold the lock, whatever they are called."""
        with store.lease(60) as lease:
            for key in ("jobs/1", "jobs/abc", "jobs/.", "jobs/ffffffff"):
                store.store(key, b"data")
            store.store("jobs/7", b"data", lease=lease)
            with store.lock("jobs", timeout=0) as lock:
                assert lock.held

    @rule("lock.not-reentrant")
    def test_not_re_entrant(self, store: kvi.Kvi) -> None:
        """A second acquire through the same object raises AlreadyHeld and changes nothing."""
        lock = store.lock("jobs")
        with lock:
            fence = lock.fence
            with pytest.raises(kvi.AlreadyHeld):
                lock.acquire(0)
            with pytest.raises(kvi.AlreadyHeld), lock:
                pytest.fail("entered twice")
            assert lock.held
            assert lock.fence == fence
        assert lock.acquire(0), "after its release the object can be used again"
        lock.release()

    @rule("lock.owner")
    def test_release_by_a_non_owner(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Who does not hold the lock cannot release it: NotHeld, and the holder keeps it."""
        with store.lock("jobs", timeout=WITHIN) as lock:
            with pytest.raises(kvi.NotHeld):
                peer.lock("jobs").release()
            failed = peer.lock("jobs")
            assert not failed.acquire(0)
            with pytest.raises(kvi.NotHeld):
                failed.release()
            assert lock.held
            assert not peer.lock("jobs").acquire(0)

    @rule("lock.owner")
    def test_release_again(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A second release does nothing, also when another holds the lock by then."""
        lock = store.lock("jobs")
        assert lock.acquire(WITHIN)
        lock.release()
        with peer.lock("jobs", timeout=0) as other:
            lock.release()
            assert other.held
            assert not store.lock("jobs").acquire(0)

    @rule("lock.owner")
    def test_released_within_the_block(self, store: kvi.Kvi) -> None:
        """A lock that was released within its block does not mind the end of it."""
        with store.lock("jobs", timeout=WITHIN) as lock:
            lock.release()
            assert not lock.held

    @rule("lock.owner")
    def test_released_by_another_thread(self, store: kvi.Kvi) -> None:
        """A lock belongs to its object, not to a thread."""
        lock = store.lock("jobs")
        assert lock.acquire(WITHIN)
        Waiter(lock.release).ended()
        assert not lock.held
        assert store.lock("jobs").acquire(0)

    @rule("lock.fence")
    def test_fences_grow(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Each holder's fence is larger than that of every holder before."""
        fences = []
        for handle in (store, peer, store, store, peer):
            with handle.lock("jobs", timeout=WITHIN) as lock:
                fences.append(lock.fence)
                assert lock.fence == fences[-1], "it stays the same while the lock is held"
        assert fences == sorted(set(fences))

    @rule("lock.fence", "lock.exclusive")
    def test_fences_grow_from_process_to_process(self, root: kvi.Kvi, kvi_uri: str) -> None:
        """Where processes share a store, holders of each have larger fences than all before."""
        fences: list[int] = []
        for _ in range(2):
            with root.lock("jobs", timeout=WITHIN) as lock:
                fences.append(lock.fence)
                if len(fences) == 1 and root.capabilities.shared:
                    assert in_another_process(HOLDER, kvi_uri, "0") == []
            if root.capabilities.shared:
                fences += map(int, in_another_process(HOLDER, kvi_uri, str(WITHIN)))
        assert fences == sorted(set(fences)), "a later holder's fence is not larger"

    @rule("lock.guard")
    def test_guard(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The guard lets a holder write, and no one who was a holder."""
        first = store.lock("jobs")
        first.acquire(WITHIN)
        old = first.guard
        assert store.txn(when=[old], then=[kvi.Put("k", b"1")])
        assert store.txn(when=[old, kvi.Key("k").exists], then=[kvi.Put("k", b"1")])
        first.release()
        assert not store.txn(when=[old], then=[kvi.Put("k", b"late")])
        with peer.lock("jobs", timeout=5) as second:
            assert not store.txn(when=[old], then=[kvi.Put("k", b"late")])
            assert peer.txn(when=[second.guard], then=[kvi.Put("k", b"2")])
        with first:
            assert not store.txn(when=[old], then=[kvi.Put("k", b"late")])
        assert store.get("k").text == "2"  # type: ignore[union-attr]

    @rule("lock.guard", "lock.fence")
    def test_nothing_of_a_lock_not_held(self, store: kvi.Kvi) -> None:
        """Before and after it is held a lock has neither guard nor fence, and is not lost."""
        lock = store.lock("jobs")
        for _ in range(2):
            assert not lock.held
            assert not lock.lost.is_set()
            with pytest.raises(kvi.NotHeld):
                _ = lock.guard
            with pytest.raises(kvi.NotHeld):
                _ = lock.fence
            with lock:
                pass

    @rule("lock.waits")
    def test_handed_to_a_waiter(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A waiter gets the lock when it is released."""
        lock = store.lock("jobs")
        lock.acquire(WITHIN)
        waiter = peer.lock("jobs")
        waiting = Waiter(lambda: waiter.acquire(2 * WITHIN))
        time.sleep(0.2)
        assert waiting.waits
        with pytest.raises(kvi.AlreadyHeld):
            waiter.acquire(0)
        lock.release()
        assert waiting.ended()
        assert waiter.held
        waiter.release()

    @rule("lock.fair", "lock.waits")
    def test_first_come_first_served(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Where ``lock_fair``, waiters get the lock in the order in which they came."""
        order: list[int] = []
        waiting = []

        def wait(number: int) -> None:
            with (store, peer)[number % 2].lock("jobs", timeout=60):
                order.append(number)

        fair = store.capabilities.lock_fair
        with store.lock("jobs", timeout=WITHIN):
            for number in range(4):
                waiting.append(Waiter(partial(wait, number)))
                if fair:
                    until(lambda n=number: store.count(prefix="jobs/") == n + 2)
        for one in waiting:
            one.ended()
        assert order == [0, 1, 2, 3] if fair else sorted(order) == [0, 1, 2, 3]

    @rule("lock.no-ghost")
    def test_waiter_that_gave_up_never_wins(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """After waiters timed out the lock goes to those who still want it."""
        with store.lock("jobs", timeout=WITHIN):
            run_clients(lambda _: _refused(peer), 3)
        with peer.lock("jobs", timeout=0) as lock:
            assert lock.held

    @rule("handle.close-wakes", "handle.close-frees")
    def test_close_wakes_waiters_and_frees(self, store: kvi.Kvi, kvi_uri: str) -> None:
        """Closing a handle ends its waiting with Closed, and releases what it held."""
        failures: list[BaseException] = []
        with (
            kvi.open(kvi_uri) as root,
            kvi.open(kvi_uri) as other,
            other.lock("conformance/ns/b", timeout=WITHIN),
        ):
            held, waiting = root.lock("conformance/ns/a"), root.lock("conformance/ns/b")
            assert held.acquire(0)

            def wait() -> None:
                try:
                    waiting.acquire()
                except BaseException as error:  # noqa: BLE001  (looked at below)
                    failures.append(error)

            thread = threading.Thread(target=wait)
            thread.start()
            thread.join(0.2)
            assert thread.is_alive()
            root.close()
            thread.join(10)
            assert not thread.is_alive()
            assert [type(error) for error in failures] == [kvi.Closed]
            assert not held.held
            assert not held.lost.is_set()
            held.release()
            with pytest.raises(kvi.Closed):
                held.acquire(0)
            with other.lock("conformance/ns/a", timeout=0):
                pass
        with kvi.open(kvi_uri) as other:
            assert other.lock("conformance/ns/b").acquire(0)

    @rule("lock.lost")
    @side_by_side
    def test_key_deleted(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A lock whose own key others deleted is lost, and its holder told by its next renewal."""
        lock = store.lock("jobs", ttl=brief)
        assert lock.acquire()
        peer.delete_range(prefix="jobs/")
        other = peer.lock("jobs")
        if not other.acquire(0):  # this store keeps it elsewhere
            assert lock.held
            return
        assert lock.lost.wait(brief)
        assert not lock.held
        with pytest.raises(kvi.LeaseLost):
            lock.release()
        assert other.held
        other.release()

    @rule("lock.lost", "lock.delay")
    @side_by_side
    def test_lost(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A lock whose lease was taken away is reported lost, is not held, and cannot write."""
        called = threading.Event()
        lock = store.lock("jobs", ttl=brief)
        assert lock.acquire(WITHIN)
        guard, lost = lock.guard, lock.lost
        delay = store.capabilities.lock_delay_factor * brief
        lost.add_callback(called.set)
        peer._scope.primitives._lease_revoke(lease_of(store, "jobs"), 5)
        assert not peer.txn(when=[guard], then=[kvi.Put("k", b"late")])
        with peer.lock("jobs", timeout=20 + delay) as other:
            if delay:  # it must have noticed before
                assert not lock.held
            assert lost.wait(20)
            assert called.wait(20)
            assert not lock.held
            with pytest.raises(kvi.NotHeld):
                _ = lock.guard
            with pytest.raises(kvi.LeaseLost):
                lock.release()
            assert other.held
            lock.release()
        assert lost.is_set()
        with lock:
            assert lock.held
            assert not lock.lost.is_set(), "each holding has a loss of its own"
        assert store.get("k") is None

    @rule("lock.lost")
    def test_lost_within_the_block(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The end of a block raises LeaseLost after a loss, but never masks the block's error."""
        with pytest.raises(kvi.LeaseLost), store.lock("jobs", timeout=WITHIN) as lock:
            peer._scope.primitives._lease_revoke(lease_of(store, "jobs"), 5)
        assert not lock.held
        with pytest.raises(ZeroDivisionError), store.lock("jobs", timeout=WITHIN):  # noqa: PT012
            peer._scope.primitives._lease_revoke(lease_of(store, "jobs"), 5)
            raise ZeroDivisionError
        with store.lock("jobs", timeout=5 + 10 * store.capabilities.lock_delay_factor) as lock:
            assert lock.held

    @rule("lock.crash", "lock.fence", "lock.guard")
    @side_by_side
    def test_crashed_holder(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A holder that renews no more frees the lock within the declared bound."""
        lease = store.lease(brief, keep_alive=False)
        claim = store._do(ClaimOp("jobs", lease.id), 5)
        assert claim.ahead is None
        bound = store.capabilities.lease_expiry_factor * lease.ttl + 1
        assert not peer.lock("jobs").acquire(0)
        with peer.lock("jobs", timeout=bound + 5) as lock:
            assert lock.fence > claim.fence
            assert not store.txn(when=[claim.guard], then=[kvi.Put("k", b"late")])

    @rule("lock.exclusive", "lock.fence")
    def test_excludes(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Increments that nothing else guards add up, and fences tell the order of the holders."""
        store.store("counter", b"0")
        seen: list[tuple[int, int]] = []

        def work(number: int) -> None:
            handle = (store, peer)[number % 2]
            for _ in range(5):
                with handle.lock("jobs", timeout=WITHIN) as lock:
                    count = int(handle.get("counter").text)  # type: ignore[union-attr]
                    seen.append((lock.fence, count))
                    handle.store("counter", str(count + 1))

        run_clients(work)
        assert store.get("counter").text == "20"  # type: ignore[union-attr]
        assert sorted(seen) == seen
        assert len({fence for fence, _ in seen}) == 20

    @rule("lock.names")
    def test_objects_at_once(self, store: kvi.Kvi) -> None:
        """Several locks of one handle are held at once, each with a lease of its own."""
        locks = [store.lock(name) for name in ("a", "b", "c")]
        for lock in locks:
            assert lock.acquire(0)
        assert len({lease_of(store, name) for name in ("a", "b", "c")}) == 3
        for lock in locks:
            lock.release()

    @rule("lock.waits")
    @side_by_side
    def test_waits_longer_than_the_time_out(
        self, store: kvi.Kvi, reopen: Reopen, brief: float
    ) -> None:
        """The handle's time-out bounds single calls, not the wait; ``None`` waits without end."""
        with reopen(timeout=brief) as hasty:
            lock, waiter = store.lock("jobs"), hasty.lock("jobs")
            assert lock.acquire(WITHIN)
            waiting = Waiter(lambda: waiter.acquire(None))
            time.sleep(1.5 * brief)
            lock.release()
            assert waiting.ended()
            waiter.release()

    @rule("lock.timeout")
    def test_hardly_any_time(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A wait so short that the store cannot answer within it still gets a free lock."""
        assert store.lock("jobs").acquire(1e-6)
        assert not peer.lock("jobs").acquire(1e-6)

    @rule("handle.fork")
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # threads of pytest and the client
    def test_fork(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """In a child nothing of its parent's is held or alive; what it does touches nothing."""
        with (
            store.lease(60) as lease,
            store.watch("k") as watch,
            store.lock("jobs", timeout=WITHIN) as lock,
        ):
            store.store("leased", b"", lease=lease)
            uses: dict[str, Callable[[], object]] = {
                "watch.next": watch.next,
                "lock.acquire": lambda: lock.acquire(0),
                "lease.renew": lease.renew,
                "lock": lambda: store.lock("others").acquire(0),
                "lease": lambda: store.lease(60),
                "temp_key": lambda: store.temp_key("member"),
                "watch": lambda: store.watch("k"),
            }

            def child() -> int:
                lost = lock.lost.is_set() or lease.lost.is_set()
                if lock.held or lease.alive or watch.active or lost:
                    return 1
                lock.release()
                lease.revoke()
                watch.cancel()
                store.close()
                for number, use in enumerate(uses.values()):
                    try:
                        use()
                    except kvi.UsedAfterFork:
                        continue
                    return 2 + number
                return 0

            told = ["", "something is held, alive or lost in the child"]
            told += [f"the child could use what is its parent's: {name}" for name in uses]
            told.append("an error in the child that is no UsedAfterFork, or its end")
            assert not told[in_a_child(child)]
            assert lock.held
            assert lease.alive
            assert not peer.lock("jobs").acquire(0)
            assert peer.txn(when=[lock.guard], then=[kvi.Put("k", b"parent")])
            assert watch.next(20).value == b"parent"
            assert peer.get("leased")
        assert not peer.count(prefix="jobs/")

    @rule("namespace.relative", "namespace.closed")
    def test_in_a_namespace(self, store: kvi.Kvi) -> None:
        """The lock of a view is that of the name below it."""
        with store.namespace("view") as view:
            with view.lock("jobs", timeout=WITHIN):
                assert not store.lock("view/jobs").acquire(0)
                with store.lock("jobs", timeout=0):
                    pass
            held = view.lock("jobs")
            assert held.acquire(WITHIN)
        assert not held.held
        assert store.lock("view/jobs").acquire(0), "closing a view releases its locks"


def _refused(handle: kvi.Kvi) -> None:
    assert not handle.lock("jobs").acquire(SHORT)

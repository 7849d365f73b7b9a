"""What hangs on a handle and its views: idle leases, settling, threads."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable

import kvi
import pytest
from kvi.flow.scope import IDLE, MOST_IDLE

from tests.support.backends import Smallest, opened
from tests.support.faulty import Faulty, fails
from tests.support.inside import revoke
from tests.support.waiting import until
from tests.unit.core.conftest import Clock, step


def threads(store: kvi.Kvi) -> list[threading.Thread]:
    return [thread for thread in store._runtime._threads() if thread.is_alive()]


def idle_leases(store: kvi.Kvi) -> list[int]:
    return [lease.id for lease, _, _ in store._scope.ledger._idle]


def test_lease_of_a_released_lock_is_taken_again(store: Faulty) -> None:
    """Locks with the same ttl, one after another, need one lease; another ttl needs its own."""
    for _ in range(5):
        with store.lock("a", ttl=60), store.lock("b", ttl=60):
            pass
    assert store.times("lease_grant") == 2
    with store.lock("a", ttl=50):
        pass
    assert store.times("lease_grant") == 3
    assert store.times("lease_revoke") == 0


def test_idle_lease_is_taken_once(store: Faulty) -> None:
    """Of many who want an idle lease at once, each gets another one, or none."""
    locks = [store.lock(str(number), ttl=60) for number in range(8)]
    for lock in locks:
        assert lock.acquire(0)
    for lock in locks:
        lock.release()
    scope = store._scope
    taken: list[int | None] = []

    def take() -> None:
        for _ in range(4):
            lease = scope.ledger.take_idle(60, scope)
            taken.append(None if lease is None else lease.id)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leases = [lease for lease in taken if lease is not None]
    assert len(leases) == len(set(leases)) == 8
    assert len(taken) == 16


def test_few_are_kept(store: Faulty) -> None:
    """Of the leases of many locks held at once, no more than MOST_IDLE wait for the next.

    That is one bound for the handle with all its views.
    """
    views = [store, *(store.namespace(str(number)) for number in range(6))]
    locks = [view.lock(str(n), ttl=60) for view in views for n in range(MOST_IDLE // 2)]
    for lock in locks:
        assert lock.acquire(0)
    for lock in locks:
        lock.release()
    assert len(idle_leases(store)) == MOST_IDLE
    until(lambda: store.times("lease_revoke") == len(locks) - MOST_IDLE)


def test_idle_lease_of_another_view(store: Faulty) -> None:
    """A lease that a lock took over from a view lives on when that view is closed."""
    view = store.namespace("view")
    with view.lock("a", ttl=60):
        pass
    with store.lock("b", ttl=60) as lock:
        assert store.times("lease_grant") == 1
        view.close()
        assert lock.held
        assert store.txn(when=[lock.guard])


def test_revoked_when_unused_for_long(store: Faulty, clock: Clock) -> None:
    """An idle lease is renewed like any other, until IDLE seconds have passed without use."""
    with store.lock("a", ttl=60) as lock:
        lease = lock._flow.lease
        assert lease is not None
        clock.advance(21)
        assert step(lease)
        assert store.times("lease_renew") == 1
    clock.advance(IDLE)
    assert step(lease)
    assert store.times("lease_renew") == 2
    assert idle_leases(store) == [lease.id]
    clock.advance(1)
    assert step(lease) is None
    until(lambda: store.times("lease_revoke") == 1)
    assert not idle_leases(store)
    assert not lease.alive
    with store.lock("a", ttl=60):
        pass
    assert store.times("lease_grant") == 2


def test_use_begins_the_time_anew(store: Faulty, clock: Clock) -> None:
    """A lease that is in use, or was lately, is not revoked however old it is."""
    with store.lock("a", ttl=600) as lock:
        lease = lock._flow.lease
        assert lease is not None
    for _ in range(5):
        clock.advance(IDLE - 1)
        with store.lock("a", ttl=600):
            clock.advance(IDLE + 1)
            assert step(lease)
        assert step(lease)
    assert store.times("lease_revoke") == 0
    assert store.times("lease_grant") == 1


def test_lost_while_idle(store: Faulty, clock: Clock) -> None:
    """An idle lease whose time is up is not given to a lock."""
    with store.lock("a", ttl=60):
        pass
    clock.advance(60)
    with store.lock("a", ttl=60) as lock:
        assert lock.held
    assert store.times("lease_grant") == 2
    assert store.times("lock_claim") == 2


def test_ended_by_others_while_idle(store: Faulty, peer: kvi.Kvi) -> None:
    """If the store no longer has the idle lease, another is granted, for a single try too."""
    with store.lock("a", ttl=60):
        pass
    (lease,) = idle_leases(store)
    revoke(peer, lease)
    lock = store.lock("a", ttl=60)
    assert lock.acquire(0)
    assert lock.held


def test_call_backs_of_former_locks_are_let_go(store: Faulty) -> None:
    """A lease that serves one lock after another keeps nothing of those before."""
    lock = store.lock("a", ttl=60)
    for _ in range(50):
        with lock:
            pass
    assert lock.acquire(0)
    lease = lock._flow.lease
    assert lease is not None
    assert store.times("lease_grant") == 1
    assert len(lease.lost._callbacks) <= 1


def test_settle_revokes_all(store: Faulty, peer: kvi.Kvi) -> None:
    """Closing revokes what was granted, in use or idle, through views too; each once."""
    view = store.namespace("view")
    store.temp_key("a", ttl=60)
    view.temp_key("b", ttl=60)
    assert store.lock("c", ttl=60).acquire()
    with store.lock("d", ttl=50):
        pass
    store.lease(60).revoke()
    store.close()
    assert store.times("lease_grant") == store.times("lease_revoke") == 5
    assert peer.count() == 0


def test_settle_takes_no_longer_than_one_time_out(store: Faulty, clock: Clock) -> None:
    """All leases, of views too, share the time of closing; a lost answer keeps no other from it."""
    leases = [store.namespace(f"view{number}").lease(60) for number in range(3)]
    leases.append(store.lease(60))
    began = clock.time

    def silent() -> None:
        clock.advance(store.calls[-1][2])
        raise kvi.Timeout("no answer")

    store.before["lease_revoke"] = silent
    store.close()
    assert clock.time == pytest.approx(began + 5)
    assert store.times("lease_revoke") >= len(leases)
    assert not any(lease.alive for lease in leases)


@pytest.mark.parametrize("error", [kvi.Unavailable, kvi.Timeout, kvi.OutcomeUnknown])
def test_settle_of_a_store_that_comes_back(
    store: Faulty, peer: kvi.Kvi, error: type[kvi.KviError]
) -> None:
    """While it is out of reach it is asked again until the time-out is up: then nothing is left."""
    for number in range(5):
        store.store(f"k{number}", b"", lease=store.lease(60))
    store.before["lease_revoke"] = fails(error, times=4)
    store.close()
    assert peer.count() == 0
    assert store.times("lease_revoke") == 9


def test_settle_of_a_store_that_is_gone(uri: str) -> None:
    """Closing gives up when the time-out is up, or when nothing will pass."""
    for error, least, most in (
        (kvi.Unavailable("x"), 2, 6),
        (kvi.Unavailable("gone", passing=False), 5, 5),
    ):
        with Faulty(kvi.open(uri, timeout=0.3)) as store:
            for _ in range(5):
                store.lease(60)
            store.fails("lease_revoke", *[error] * 100)
        assert least <= store.times("lease_revoke") <= most
        assert store.closed


def test_close_is_whole_after_a_mistake(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a revocation raises while closing comes through, and all is closed the same."""
    closed: list[bool] = []
    store.lease(60)
    store.before["lease_revoke"] = fails(ZeroDivisionError)
    monkeypatch.setattr(store._scope.primitives, "_close", lambda: closed.append(True))
    with pytest.raises(ZeroDivisionError):
        store.close()
    assert closed == [True]
    assert store.closed
    until(lambda: not threads(store))
    store.close()


def test_given_up_and_not_revoked_yet(store: Faulty, peer: kvi.Kvi) -> None:
    """What was given up while the store was out of reach is revoked once it is back."""
    store.after["lock_claim"] = fails(kvi.OutcomeUnknown)
    lock = store.lock("a", ttl=60)
    store.before["lease_revoke"] = fails(kvi.Unavailable)
    with pytest.raises(kvi.Unavailable):
        lock.acquire()
    until(lambda: store.times("lease_revoke"))
    assert peer.count(prefix="a/") == 1
    del store.before["lease_revoke"], store.after["lock_claim"]
    with peer.lock("a", timeout=20):
        pass
    until(lambda: not store._scope.ledger._members)


def test_given_up_and_closed(store: Faulty, peer: kvi.Kvi) -> None:
    """Closing revokes what was given up and could not be revoked so far."""
    store.after["lock_claim"] = fails(kvi.OutcomeUnknown)
    store.before["lease_revoke"] = fails(kvi.Unavailable)
    with pytest.raises(kvi.Unavailable):
        store.lock("a", ttl=60).acquire()
    until(lambda: store.times("lease_revoke"))
    del store.before["lease_revoke"]
    store.close()
    assert peer.count() == 0


def test_threads_are_shared_and_end(store: Faulty) -> None:
    """A handle and its views have one set of threads; closing a view leaves them, the handle's not.

    What is begun afterwards raises Closed.
    """
    view = store.namespace("view")
    assert view._runtime is store._runtime
    called = threading.Event()
    with view.watch("k", callback=lambda *_: called.set()), store.lease(60):
        view.store("k", b"")
        assert called.wait(20)
        view.close()
        assert threads(store)
        store.close()
    assert not threads(store)
    for handle in (store, view):
        with pytest.raises(kvi.Closed):
            handle.lease(60)
        with pytest.raises(kvi.Closed):
            handle.lock().acquire()
        with pytest.raises(kvi.Closed):
            handle.watch("k")


@pytest.mark.parametrize("begins", ["lease", "temp_key", "acquire"])
def test_close_wakes_who_is_granting(peer: kvi.Kvi, begins: str) -> None:
    """Who waits for a lease when the handle is closed gets Closed at once, and nothing is left.

    So it is also where the store cannot be told to end a call.
    """
    store = Faulty(opened(Smallest(kvi.open(peer.uri))))
    entered, go = threading.Event(), threading.Event()
    errors: list[type[BaseException]] = []
    granted: list[int] = []
    calls: dict[str, Callable[[], object]] = {
        "lease": lambda: store.lease(60),
        "temp_key": lambda: store.temp_key("k", ttl=60),
        "acquire": lambda: store.lock("k", ttl=60).acquire(),
    }

    def block() -> None:
        granted.append(1)
        entered.set()
        assert go.wait(20)

    def call() -> None:
        try:
            calls[begins]()
        except kvi.KviError as error:
            errors.append(type(error))

    store.after["lease_grant"] = block
    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(20)
    closing = threading.Thread(target=store.close)
    closing.start()
    thread.join(20)
    assert errors == [kvi.Closed]
    assert not go.is_set()
    go.set()
    closing.join(20)
    until(lambda: not threads(store))
    assert peer.count() == 0


@pytest.mark.parametrize("begins", ["call", "lasting"])
def test_begun_after_the_threads_have_ended(store: Faulty, begins: str) -> None:
    """A call that close has overtaken on its way comes to an end like any other."""
    lock = store.lock("a", ttl=60)
    store.close()
    if begins == "call":
        with pytest.raises(kvi.Closed):
            lock.acquire()
    else:
        store._drive(store._scope.end, lasting=True)
    until(lambda: not threads(store))


def test_views_that_are_dropped_leave_nothing(store: Faulty) -> None:
    """However many views come and go without being closed, no thread and no object stays."""
    before = len(threads(store))
    views = []
    for number in range(200):
        view = store.namespace(str(number))
        view.store("k", b"")
        with view.lock("jobs", ttl=60):
            pass
        with view.watch("k"):
            pass
        views.append(weakref.ref(view._scope))
        del view
    gc.collect()
    assert sum(view() is not None for view in views) <= MOST_IDLE, "idle leases know their scope"
    assert len(threads(store)) <= before + 5
    assert store.times("lease_grant") == 1


def test_one_lease_that_cannot_be_revoked(store: Faulty, peer: kvi.Kvi) -> None:
    """A lease whose end is refused does not keep the others from being revoked."""
    for number in range(3):
        store.store(f"k{number}", b"", lease=store.lease(60))
    store.before["lease_revoke"] = fails(kvi.PermissionDenied, times=1)
    store.close()
    assert peer.count() == 1


def test_time_out_of_a_temporary_key(store: Faulty, peer: kvi.Kvi) -> None:
    """Granting and storing have one time-out together; after it nothing is stored."""
    store.after["lease_grant"] = lambda: time.sleep(0.05)
    with pytest.raises(kvi.Timeout):
        store.temp_key("k", timeout=0.01)
    assert store.times("store") == 0
    until(lambda: store.times("lease_revoke") == 1)
    assert peer.get("k") is None


def test_views_of_views(store: Faulty, peer: kvi.Kvi) -> None:
    """Closing a view ends what was begun through the views on it, and nothing else."""
    outer = store.namespace("a")
    inner = outer.namespace("b")
    lock, watch = inner.lock("jobs"), inner.watch("k")
    assert lock.acquire()
    member = inner.temp_key("member", ttl=60)
    other = store.temp_key("other", ttl=60)
    outer.close()
    assert not member.alive
    assert not lock.held
    assert peer.get("a/b/member") is None
    assert peer.lock("a/b/jobs").acquire(0)
    with pytest.raises(kvi.Closed):
        watch.next(0)
    assert other.alive

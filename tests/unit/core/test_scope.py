"""What goes on behind a handle: idle leases, settling, threads."""

from __future__ import annotations

import threading
import time

import kvi
import pytest
from kvi.runtime import runtime as module
from kvi.runtime.runtime import IDLE, MOST_IDLE

from tests.support.waiting import until
from tests.unit.core.conftest import Clock
from tests.unit.core.faulty import Faulty, fails


def idle_leases(store: kvi.Kvi) -> list[int]:
    return [lease.id for idle in store._running()._idle.values() for lease, _ in idle]


def test_lease_of_a_released_lock_is_taken_again(store: Faulty) -> None:
    """Locks with the same ttl, one after another, need one lease; another ttl needs its own."""
    for _ in range(5):
        with store.lock("a", ttl=60), store.lock("b", ttl=60):
            pass
    assert store.calls["grant"] == 2
    with store.lock("a", ttl=50):
        pass
    assert store.calls["grant"] == 3
    assert store.calls["revoke"] == 0


def test_idle_lease_is_taken_once(store: Faulty) -> None:
    """Of many who want an idle lease at once, each gets another one, or none."""
    locks = [store.lock(str(number), ttl=60) for number in range(8)]
    for lock in locks:
        assert lock.acquire(0)
    for lock in locks:
        lock.release()
    runtime = store._running()
    taken: list[int | None] = []

    def take() -> None:
        for _ in range(4):
            lease = runtime.take_idle(60)
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
    """Of the leases of many locks held at once, no more than MOST_IDLE wait for the next."""
    locks = [store.lock(str(number), ttl=60) for number in range(MOST_IDLE + 3)]
    for lock in locks:
        assert lock.acquire(0)
    for lock in locks:
        lock.release()
    assert len(idle_leases(store)) == MOST_IDLE
    until(lambda: store.calls["revoke"] == 3)


def test_revoked_when_unused_for_long(store: Faulty, clock: Clock) -> None:
    """An idle lease is renewed like any other, until IDLE seconds have passed without use."""
    with store.lock("a", ttl=60) as lock:
        lease = lock._lease
        assert lease is not None
        clock.advance(21)
        assert lease.step()
        assert store.calls["renew"] == 1
    clock.advance(IDLE)
    assert lease.step()
    assert store.calls["renew"] == 2
    assert idle_leases(store) == [lease.id]
    clock.advance(1)
    assert lease.step() is None
    assert store.calls["revoke"] == 1
    assert not idle_leases(store)
    assert not lease.alive
    with store.lock("a", ttl=60):
        pass
    assert store.calls["grant"] == 2


def test_use_begins_the_time_anew(store: Faulty, clock: Clock) -> None:
    """A lease that is in use, or was lately, is not revoked however old it is."""
    with store.lock("a", ttl=600) as lock:
        lease = lock._lease
        assert lease is not None
    for _ in range(5):
        clock.advance(IDLE - 1)
        with store.lock("a", ttl=600):
            clock.advance(IDLE + 1)
            assert lease.step()
        assert lease.step()
    assert store.calls["revoke"] == 0
    assert store.calls["grant"] == 1


def test_lost_while_idle(store: Faulty, clock: Clock) -> None:
    """An idle lease whose time is up is not given to a lock."""
    with store.lock("a", ttl=60):
        pass
    clock.advance(60)
    with store.lock("a", ttl=60) as lock:
        assert lock.held
    assert store.calls["grant"] == 2
    assert store.calls["claim"] == 2


def test_ended_by_others_while_idle(store: Faulty, peer: kvi.Kvi) -> None:
    """If the store no longer has the idle lease, another is granted, for a single try too."""
    with store.lock("a", ttl=60):
        pass
    (lease,) = idle_leases(store)
    peer._lease_revoke(lease, 5)
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
    lease = lock._lease
    assert lease is not None
    assert store.calls["grant"] == 1
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
    assert store.calls["grant"] == store.calls["revoke"] == 5
    assert peer.count() == 0


def test_settle_takes_no_longer_than_one_time_out(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The views of a handle share the time that closing may take; the rest ends by itself."""
    time = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: time[0])

    def silent(lease: int, timeout: float) -> None:
        time[0] += timeout
        raise kvi.Timeout("no answer")

    with kvi.open(uri, timeout=5) as store:
        store._lease_revoke = silent  # type: ignore[method-assign]
        leases = [store.namespace(f"view{number}").lease(60) for number in range(3)]
        leases.append(store.lease(60))
    assert time == [105]
    assert not any(lease.alive for lease in leases)


def test_settle_of_a_store_that_is_gone(store: Faulty) -> None:
    """A store that does not answer is asked once, and closing goes on."""
    for _ in range(5):
        store.lease(60)
    store.before["revoke"] = fails(kvi.Unavailable)
    store.close()
    assert store.calls["revoke"] == 1
    assert store.closed


def test_close_is_whole_after_an_interrupt(store: Faulty) -> None:
    """An interrupt while leases are revoked comes through, and the rest is closed all the same."""
    closed: list[bool] = []
    threads = store._running().threads
    store.lease(60)
    store.before["revoke"] = fails(KeyboardInterrupt)
    inner = store._inner
    inner._close = lambda: closed.append(True)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        store.close()
    assert closed == [True]
    assert inner.closed
    until(lambda: not threads.keeper._threads)
    store.close()


def test_given_up_and_not_revoked_yet(store: Faulty, peer: kvi.Kvi) -> None:
    """What was given up while the store was out of reach is revoked once it is back."""
    store.after["claim"] = fails(kvi.OutcomeUnknown)
    lock = store.lock("a", ttl=60)
    store.before["revoke"] = fails(kvi.Unavailable)
    with pytest.raises(kvi.Unavailable):
        lock.acquire()
    until(lambda: store.calls["revoke"])
    assert peer.count(prefix="a/") == 1
    del store.before["revoke"], store.after["claim"]
    with peer.lock("a", timeout=20):
        pass
    until(lambda: not store._running()._leaving)


def test_given_up_and_closed(store: Faulty, peer: kvi.Kvi) -> None:
    """Closing revokes what was given up and could not be revoked so far."""
    store.after["claim"] = fails(kvi.OutcomeUnknown)
    store.before["revoke"] = fails(kvi.Unavailable)
    with pytest.raises(kvi.Unavailable):
        store.lock("a", ttl=60).acquire()
    until(lambda: store.calls["revoke"])
    del store.before["revoke"]
    store.close()
    assert peer.count() == 0


def test_threads_are_shared_and_end(store: Faulty) -> None:
    """A handle and its views have one set of threads; closing a view leaves them, the handle's not.

    What is begun afterwards raises Closed.
    """
    view = store.namespace("view")
    threads = store._running().threads
    assert view._running().threads is threads
    called = threading.Event()
    with view.watch("k", callback=lambda *_: called.set()), store.lease(60):
        view.store("k", b"")
        assert called.wait(20)
        assert threads.keeper._threads
        view.close()
        assert view._running() not in store._running()._views
        assert threads.dispatcher._threads
        store.close()
    assert not threads.dispatcher._threads
    assert not threads.keeper._threads
    for handle in (store, view):
        with pytest.raises(kvi.Closed):
            handle.lease(60)
        with pytest.raises(kvi.Closed):
            handle.watch("k")


def test_runtime_made_while_closing(store: Faulty) -> None:
    """Who begins something at the moment of closing gets Closed, and leaves no thread."""
    entered, go = threading.Event(), threading.Event()
    errors: list[type[BaseException]] = []

    def block() -> None:
        entered.set()
        assert go.wait(20)

    store.after["grant"] = block

    def grant() -> None:
        try:
            store.lease(60)
        except kvi.KviError as error:
            errors.append(type(error))

    thread = threading.Thread(target=grant)
    thread.start()
    assert entered.wait(20)
    store.close()
    go.set()
    thread.join(20)
    assert errors == [kvi.Closed]
    assert not store._running().threads.keeper._threads


def test_one_lease_that_cannot_be_revoked(store: Faulty, peer: kvi.Kvi) -> None:
    """A lease whose end is refused does not keep the others from being revoked."""
    for number in range(3):
        store.store(f"k{number}", b"", lease=store.lease(60))
    store.before["revoke"] = fails(kvi.PermissionDenied, times=1)
    store.close()
    assert peer.count() == 1


def test_view_first_used_while_its_parent_closes(store: Faulty) -> None:
    """What a view begins once its parent is closed is ended with it."""
    view = store.namespace("view")
    store.close()
    assert view._running()._settled


def test_time_out_of_a_temporary_key(store: Faulty, peer: kvi.Kvi) -> None:
    """Granting and storing have one time-out together; after it nothing is stored."""
    store.after["grant"] = lambda: time.sleep(0.05)
    with pytest.raises(kvi.Timeout):
        store.temp_key("k", timeout=0.01)
    assert store.calls["put"] == 0
    until(lambda: store.calls["revoke"] == 1)
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

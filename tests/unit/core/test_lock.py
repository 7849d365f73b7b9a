"""Locks of a store that fails: never held by two, and nothing is left behind that could win."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import kvi
import pytest
from kvi.coroutine import run
from kvi.driver.threads import ThreadPort
from kvi.flow import lock as module
from kvi.flow.lease import LeaseFlow
from kvi.middleware.retry import Retrying
from kvi.model import Claim
from kvi.policy.retry import RetryPolicy
from kvi.port import Cancelled
from kvi.sync.lock import Lock
from kvi.sync.loss import Loss

from tests.support.backends import Smallest, opened
from tests.support.faulty import Faulty, fails, kvi_over
from tests.support.inside import revoke
from tests.support.waiting import until
from tests.unit.core.conftest import Clock, step

TTL = 60.0
AT_ONCE = RetryPolicy(min_wait=0, max_wait=0, factor=0)


class Waiter(threading.Thread):
    """Acquires a lock; tells the answer, or what was raised."""

    def __init__(self, lock: Lock, timeout: float | None = None) -> None:
        super().__init__(daemon=True)
        self.lock = lock
        self.timeout = timeout
        self.answer: bool | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Acquire."""
        try:
            self.answer = self.lock.acquire(self.timeout)
        except BaseException as error:  # noqa: BLE001  (looked at by the test)
            self.error = error

    def end(self) -> bool | BaseException | None:
        """The answer, or what was raised."""
        self.join(20)
        assert not self.is_alive(), "it still waits"
        return self.error or self.answer


@pytest.fixture
def holder(peer: kvi.Kvi) -> Iterator[Lock]:
    """Another handle's lock ``jobs``, held."""
    lock = peer.lock("jobs", ttl=TTL)
    assert lock.acquire(0)
    yield lock
    if lock.held:
        lock.release()


def contenders(peer: kvi.Kvi) -> int:
    return peer.count(prefix="jobs/")


def waiting(store: Faulty, peer: kvi.Kvi, timeout: float | None = None) -> Waiter:
    """Someone who waits for the lock, and watches the key ahead."""
    watches = store.times("watch")
    waiter = Waiter(store.lock("jobs", ttl=TTL), timeout)
    until(lambda: contenders(peer) == 2 and store.times("watch") > watches)
    return waiter


def free(peer: kvi.Kvi) -> None:
    """Nobody holds the lock, or waits for it; what was given up is gone soon."""
    until(lambda: not contenders(peer))
    with peer.lock("jobs", timeout=0):
        pass


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (kvi.OutcomeUnknown, kvi.Unavailable),
        (kvi.Unavailable, kvi.Unavailable),
        (kvi.Timeout, kvi.Timeout),
        (kvi.PermissionDenied, kvi.PermissionDenied),
        (kvi.Contention, kvi.Contention),
        (KeyboardInterrupt, KeyboardInterrupt),
        (ValueError, ValueError),
    ],
)
def test_claim_that_fails(
    store: Faulty,
    peer: kvi.Kvi,
    when: str,
    error: type[BaseException],
    raised: type[BaseException],
) -> None:
    """If the first claim fails, applied or not, the lock is not held and its lease is given up.

    Nobody is told that a write may still apply: with the lease gone it can not.
    """
    faults = store.before if when == "before" else store.after
    faults["lock_claim"] = fails(error)
    lock = store.lock("jobs", ttl=TTL)
    with pytest.raises(raised) as caught:
        lock.acquire()
    if isinstance(caught.value, kvi.KviError):
        assert (caught.value.operation, caught.value.key) == ("acquire", "jobs")
    assert not lock.held
    with pytest.raises(kvi.NotHeld):
        lock.release()
    free(peer)
    until(lambda: store.times("lease_revoke") == 1)
    del faults["lock_claim"]
    with lock:
        assert store.times("lease_grant") == 2, "the lease of a failed claim is never used again"


@pytest.mark.parametrize("bridged", [False, True])
def test_late_claim_finds_no_lease(store: Faulty, peer: kvi.Kvi, bridged: bool) -> None:
    """A claim whose answer is lost, and that reaches the store late, finds its lease gone.

    Also where a retry bridged it: then the lock is held, and its lease goes to no other lock.
    """
    late: list[Callable[[], object]] = []
    primitives = store._scope.primitives

    def lose() -> None:
        (lease,) = store._scope.ledger._members
        assert isinstance(lease, LeaseFlow)
        late.append(lambda: primitives._lock_claim("jobs", lease.id, 5))
        if not bridged or len(late) == 1:
            raise kvi.OutcomeUnknown("no answer")

    store.before["lock_claim"] = lose
    if bridged:
        retrying = kvi_over(
            store, lambda inner, at: Retrying(inner, AT_ONCE, "", lambda: at.closed)
        )
        with retrying.lock("jobs", ttl=TTL) as lock:
            assert lock.held
        assert len(late) == 2
    else:
        with pytest.raises(kvi.Unavailable):
            store.lock("jobs", ttl=TTL).acquire()
    until(lambda: store.times("lease_revoke") == 1)
    until(lambda: not store._scope.ledger._members)
    assert not store._scope.ledger._idle
    with pytest.raises(kvi.LeaseLost):
        late[0]()
    free(peer)


@pytest.mark.parametrize("error", [kvi.OutcomeUnknown, kvi.Unavailable])
def test_grant_that_fails(store: Faulty, peer: kvi.Kvi, error: type[kvi.KviError]) -> None:
    """Without a lease there is no claim: the lock is surely not held, whatever was granted."""
    store.after["lease_grant"] = fails(error)
    lock = store.lock("jobs", ttl=TTL)
    with pytest.raises(kvi.Unavailable) as caught:
        lock.acquire()
    assert caught.value.operation == "acquire"
    assert store.times("lock_claim") == 0
    del store.after["lease_grant"]
    with lock:
        pass


def test_claim_that_took_longer_than_the_lease(store: Faulty, peer: kvi.Kvi, clock: Clock) -> None:
    """An answer that comes after the lease's time does not let anybody in."""

    def pause() -> None:
        del store.after["lock_claim"]
        clock.advance(TTL)

    store.after["lock_claim"] = pause
    lock = store.lock("jobs", ttl=TTL)
    assert not lock.acquire(0)
    assert not lock.held
    assert lock.acquire(20)
    assert lock.held
    assert store.times("lease_grant") == 2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [kvi.Unavailable, kvi.OutcomeUnknown, KeyboardInterrupt])
def test_release_that_fails(
    store: Faulty, peer: kvi.Kvi, when: str, error: type[BaseException]
) -> None:
    """After a release that failed the lock is not held, and its lease is revoked, not reused."""
    (store.before if when == "before" else store.after)["lock_release"] = fails(error, times=1)
    lock = store.lock("jobs", ttl=TTL)
    assert lock.acquire(0)
    guard, lost = lock.guard, lock.lost
    with pytest.raises(error):
        lock.release()
    assert not lock.held
    assert not lost.is_set()
    free(peer)
    assert not peer.txn(when=[guard], then=[kvi.Put("k", b"late")])
    lock.release()
    assert store.times("lock_release") == 1, "to release again does nothing"
    with lock:
        assert store.times("lease_grant") == 2


def test_block_whose_release_fails(store: Faulty, peer: kvi.Kvi) -> None:
    """The end of a block raises what the release did, but never instead of the block's error."""
    store.before["lock_release"] = fails(kvi.Unavailable)
    with pytest.raises(kvi.Unavailable), store.lock("jobs", ttl=TTL):
        pass
    free(peer)
    with pytest.raises(ZeroDivisionError) as caught, store.lock("jobs", ttl=TTL):
        raise ZeroDivisionError
    assert any("could not be released" in note for note in caught.value.__notes__)
    free(peer)


def test_key_that_somebody_deleted(store: Faulty, peer: kvi.Kvi) -> None:
    """If the lock's key was deleted under its holder, the release says that it was lost."""
    lock = store.lock("jobs", ttl=TTL)
    assert lock.acquire(0)
    assert peer.delete_range(prefix="jobs/") == 1
    with pytest.raises(kvi.LeaseLost, match="its key"):
        lock.release()
    lock.release()
    free(peer)


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_lease_lost_while_waiting(
    store: Faulty, peer: kvi.Kvi, holder: Lock, timeout: float | None
) -> None:
    """A waiter whose place is gone with its lease takes another one, and gets the lock."""
    waiter = waiting(store, peer, timeout)
    (lease,) = store._scope.ledger._members
    assert isinstance(lease, LeaseFlow)
    revoke(peer, lease.id)
    with pytest.raises(kvi.LeaseLost):  # which the runtime would have found out
        run(lease.renew(ThreadPort(), 5))
    until(lambda: store.times("lease_grant") == 2)
    until(lambda: contenders(peer) == 2)
    holder.release()
    assert waiter.end() is True
    assert waiter.lock.held
    assert peer.txn(when=[waiter.lock.guard])
    waiter.lock.release()
    free(peer)


def test_place_lost_without_notice(store: Faulty, peer: kvi.Kvi, holder: Lock) -> None:
    """A waiter whose lease the store has ended in silence finds out when it claims again."""
    waiter = waiting(store, peer)
    (lease,) = store._scope.ledger._members
    assert isinstance(lease, LeaseFlow)
    revoke(peer, lease.id)
    holder.release()
    assert waiter.end() is True
    assert waiter.lock.held
    assert store.times("lease_grant") == 2


PASSING = (kvi.Unavailable, kvi.Timeout, kvi.OutcomeUnknown, kvi.Contention)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        *(("watch", error) for error in (*PASSING, kvi.Compacted)),
        *(("claim", error) for error in PASSING),
    ],
)
def test_failures_while_waiting(
    store: Faulty, peer: kvi.Kvi, holder: Lock, name: str, error: type[kvi.KviError]
) -> None:
    """What fails during the wait, and may pass, is tried again; the place in the queue is kept."""
    failures = fails(error, times=3)
    if name == "watch":
        store.before["watch"] = failures
    waiter = Waiter(store.lock("jobs", ttl=TTL))
    until(lambda: contenders(peer) == 2)
    if name == "claim":
        until(lambda: store.times("watch"))
        store.before["lock_claim"] = failures
    behind = Waiter(peer.lock("jobs", ttl=TTL))
    until(lambda: contenders(peer) == 3)
    holder.release()
    assert waiter.end() is True
    assert waiter.lock.held
    assert behind.is_alive()
    assert store.times("lease_grant") == 1
    waiter.lock.release()
    assert behind.end() is True
    behind.lock.release()


def test_unknown_claim_while_waiting(store: Faulty, peer: kvi.Kvi, holder: Lock) -> None:
    """A lease with a claim that may still come to stand goes to no other lock, held or not."""
    waiter = waiting(store, peer)
    store.before["lock_claim"] = fails(kvi.OutcomeUnknown, times=1)
    holder.release()
    assert waiter.end() is True
    assert waiter.lock.held
    waiter.lock.release()
    until(lambda: store.times("lease_revoke") == 1)
    assert not store._scope.ledger._idle
    assert holder.acquire(0)
    waiter = waiting(store, peer, timeout=1)
    store.before["lock_claim"] = fails(kvi.OutcomeUnknown)
    holder.release()
    assert waiter.end() is False
    until(lambda: store.times("lease_revoke") == 2)
    assert not store._scope.ledger._idle


@pytest.mark.parametrize("error", [kvi.PermissionDenied, KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("name", ["watch", "claim"])
def test_errors_that_end_the_wait(
    store: Faulty, peer: kvi.Kvi, holder: Lock, name: str, error: type[BaseException]
) -> None:
    """What will not pass ends the wait with that error; the claim is withdrawn."""
    if name == "watch":
        store.before["watch"] = fails(error)
        waiter = Waiter(store.lock("jobs", ttl=TTL))
    else:
        waiter = waiting(store, peer)
        store.before["lock_claim"] = fails(error)
        holder.release()
    assert isinstance(waiter.end(), error)
    until(lambda: contenders(peer) == (1 if holder.held else 0))
    until(lambda: store.times("lease_revoke") == 1)
    assert not waiter.lock.held


def test_store_out_of_reach_for_the_whole_wait(store: Faulty, peer: kvi.Kvi, holder: Lock) -> None:
    """If the time is up while the store cannot be reached, the answer is no, and nothing stays."""
    waiter = waiting(store, peer, 0.5)
    with store.out_of_reach():
        holder.release()
        assert waiter.end() is False
    assert not waiter.lock.held
    free(peer)


def test_no_storm_while_the_store_cannot_be_reached(
    store: Faulty, peer: kvi.Kvi, holder: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between tries there is a pause, also if the wait had been woken before."""
    monkeypatch.setattr(module, "_LEAST", 0.2)
    waiter = waiting(store, peer, 0.5)
    calls = store.times("lock_claim")
    with store.out_of_reach("lock_claim", "watch"):
        holder.release()
        assert waiter.end() is False
    assert store.times("lock_claim") - calls <= 6  # of at least 0.1 seconds each


def test_store_without_history(store: Faulty, peer: kvi.Kvi, holder: Lock) -> None:
    """Where watches have no history, a release between claim and watch is not missed."""
    store._scope.capabilities = replace(store.capabilities, watch_history=False)
    store.before["watch"] = lambda: holder.release() if holder.held else None
    lock = store.lock("jobs", ttl=TTL)
    assert lock.acquire(30)
    lock.release()


@pytest.mark.parametrize("owner", [module.LockFlow, module._Attempt])
def test_cancelled_right_after_the_claim(
    store: Faulty, peer: kvi.Kvi, owner: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the flow once the claim was first, in whatever line, leaves nothing behind."""
    lock = store.lock("jobs", ttl=TTL)
    with monkeypatch.context() as patch:
        name = "_enter" if owner is module.LockFlow else "_check"
        patch.setattr(owner, name, lambda *_, **__: fails(Cancelled)())
        with pytest.raises(Cancelled):
            lock.acquire()
    assert not lock.held
    with pytest.raises(kvi.NotHeld):
        lock.release()
    free(peer)
    with lock:
        pass


def test_interrupt_while_withdrawing(store: Faulty, peer: kvi.Kvi, holder: Lock) -> None:
    """An interrupt while a claim is withdrawn gives up its lease instead."""
    store.before["lock_release"] = fails(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        store.lock("jobs", ttl=TTL).acquire(0)
    until(lambda: contenders(peer) == 1)
    assert holder.held


def test_withdrawal_that_fails(store: Faulty, peer: kvi.Kvi, holder: Lock) -> None:
    """Who waited in vain is told so, also if the claim cannot be withdrawn; its lease is revoked.

    It is not used again.
    """
    store.before["lock_release"] = fails(kvi.Unavailable)
    assert not store.lock("jobs", ttl=TTL).acquire(0)
    until(lambda: contenders(peer) == 1)
    assert not store._scope.ledger._idle
    del store.before["lock_release"]
    holder.release()
    with store.lock("jobs", ttl=TTL):
        assert store.times("lease_grant") == 2


def test_close_while_waiting(store: Faulty, peer: kvi.Kvi, holder: Lock) -> None:
    """Closing wakes who waits with Closed at once, and its place is gone."""
    waiter = waiting(store, peer)
    store.close()
    assert isinstance(waiter.end(), kvi.Closed)
    assert contenders(peer) == 1
    assert holder.held


def test_close_between_looking_and_waiting(
    store: Faulty, peer: kvi.Kvi, holder: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing is not missed by one who has just found the handle open and begins to wait."""
    real = module._Attempt._check
    closing: list[bool] = []

    def check(self: module._Attempt, lease: object) -> None:
        real(self, lease)  # type: ignore[arg-type]
        if not closing:
            closing.append(True)
            store.close()

    monkeypatch.setattr(module._Attempt, "_check", check)
    waiter = Waiter(store.lock("jobs", ttl=TTL))
    assert isinstance(waiter.end(), kvi.Closed)
    assert closing


def test_close_between_failing_and_waiting(
    store: Faulty, peer: kvi.Kvi, holder: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for one whom the store failed, and who waits before trying again."""
    monkeypatch.setattr(module, "_LEAST", 60)
    waiter = waiting(store, peer)
    with store.out_of_reach("lock_claim", "watch"):
        holder.release()
        until(lambda: store.times("lock_claim") == 2)
        store.close()
        assert isinstance(waiter.end(), kvi.Closed)


@pytest.mark.parametrize("name", ["lease_grant", "lock_claim"])
def test_close_while_claiming(store: Faulty, peer: kvi.Kvi, name: str) -> None:
    """Closing while a call of the claim is under way ends in Closed, and frees the lock."""
    entered, go = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert go.wait(20)

    store.after[name] = block
    waiter = Waiter(store.lock("jobs", ttl=0.5))
    assert entered.wait(20)
    store.close()
    go.set()
    assert isinstance(waiter.end(), kvi.Closed)
    assert not waiter.lock.held
    free(peer)


def test_close_while_releasing(store: Faulty, peer: kvi.Kvi) -> None:
    """Closing while a release is under way frees the lock, and the release does not complain."""
    entered, go = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert go.wait(20)

    lock = store.lock("jobs", ttl=TTL)
    assert lock.acquire(0)
    store.before["lock_release"] = block
    errors: list[BaseException] = []

    def release() -> None:
        try:
            lock.release()
        except BaseException as error:  # noqa: BLE001  (looked at below)
            errors.append(error)

    thread = threading.Thread(target=release)
    thread.start()
    assert entered.wait(20)
    store.close()
    go.set()
    thread.join(20)
    assert not errors or isinstance(errors[0], (kvi.Closed, kvi.LeaseLost))
    free(peer)


def test_closed(store: Faulty, peer: kvi.Kvi) -> None:
    """After close a lock is not held and not lost; its release does nothing."""
    lock = store.lock("jobs", ttl=TTL)
    never = store.lock("other")
    assert lock.acquire(0)
    lost = lock.lost
    store.close()
    assert not lock.held
    assert not lost.is_set()
    lock.release()
    never.release()
    with pytest.raises(kvi.Closed):
        lock.acquire(0)
    with pytest.raises(kvi.NotHeld):
        _ = lock.guard
    free(peer)


def test_closing_is_no_loss_for_who_looks_meanwhile(uri: str) -> None:
    """However often somebody asks while a handle is closed, its locks are never lost by it."""
    for _ in range(30):
        store = kvi.open(uri)
        lock = store.lock("jobs", ttl=TTL)
        assert lock.acquire(0)
        stop = threading.Event()
        seen: list[bool] = []

        def look(lost: Loss = lock.lost, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                seen.append(lost.is_set())  # noqa: B023  (joined below)

        thread = threading.Thread(target=look)
        thread.start()
        until(lambda: seen)  # noqa: B023  (it returns before the next)
        store.close()
        stop.set()
        thread.join(20)
        assert not any(seen)


def test_lost_by_the_clock(store: Faulty, peer: kvi.Kvi, clock: Clock) -> None:
    """After a pause longer than the ttl the holder knows, before any thread has noticed."""
    lock = store.lock("jobs", ttl=TTL)
    assert lock.acquire(0)
    called = threading.Event()
    lost = lock.lost
    lost.add_callback(called.set)
    clock.advance(TTL)
    assert not lock.held
    with pytest.raises(kvi.LeaseLost):
        _ = lock.guard
    assert lock.fence
    with pytest.raises(kvi.LeaseLost):
        lock.release()
    assert lost.is_set()
    assert called.wait(20)
    lock.release()
    assert lock.acquire(20), "a lock that was lost can be acquired again"
    assert lock.held
    assert lost.is_set()
    assert not lock.lost.is_set()


def test_acquired_again_after_a_loss(store: Faulty, peer: kvi.Kvi, clock: Clock) -> None:
    """Acquiring what was lost does not need a release before; the dead lease is not reused."""
    lock = store.lock("jobs", ttl=TTL)
    assert lock.acquire(0)
    fence = lock.fence
    clock.advance(TTL)
    assert lock.acquire(20)
    assert lock.fence > fence
    assert store.times("lease_grant") == 2


def test_loss_of_a_released_lock(store: Faulty, clock: Clock) -> None:
    """What happens to a lease after the release is no loss of the lock."""
    lock = store.lock("jobs", ttl=TTL)
    called: list[int] = []
    assert lock.acquire(0)
    lease = lock._flow.lease
    assert lease is not None
    lock.lost.add_callback(lambda: called.append(1))
    lost = lock.lost
    lock.release()
    clock.advance(TTL)
    assert step(lease) is None
    assert lease.lost.is_set()
    assert not lost.is_set()
    assert not called
    store.close()
    assert not called


def test_one_object_many_threads(store: Faulty) -> None:
    """Threads that share one object: one gets it at a time, the others get AlreadyHeld."""
    lock = store.lock("jobs", ttl=TTL)
    inside: list[int] = []
    most: list[int] = []
    won = [0]

    def work() -> None:
        for _ in range(50):
            try:
                if lock.acquire(0):
                    inside.append(1)
                    most.append(len(inside))
                    won[0] += 1
                    inside.pop()
                    lock.release()
            except kvi.AlreadyHeld:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert won[0]
    assert set(most) == {1}
    assert not lock.held


class Unfair(Smallest):
    """A backend whose locks have no queue; it counts who asks for one."""

    def __init__(self, store: kvi.Kvi) -> None:
        limits = replace(store.capabilities, lock_fair=False, watch_history=False)
        super().__init__(store, limits)
        self.claims = 0

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        self.claims += 1
        return super()._lock_claim(name, lease, timeout)


def test_without_a_queue_only_the_first_asks() -> None:
    """Those of one handle who wait stand in line: a release does not make all of them ask."""
    backend = Unfair(kvi.open("mem:unfair"))
    order: list[int] = []
    with opened(backend) as store:

        def work(number: int) -> None:
            with store.lock("jobs", ttl=TTL):
                order.append(number)

        with store.lock("jobs", ttl=TTL):
            threads = []
            for number in range(20):
                threads.append(threading.Thread(target=work, args=(number,), daemon=True))
                threads[-1].start()
                until(lambda: backend.claims >= len(threads) + 1)
                until(lambda: len(store._scope.ledger._stands) == len(threads))
            waiting = backend.claims
        for thread in threads:
            thread.join(20)
        assert order == list(range(20))
        assert backend.claims - waiting <= 20 * 4
        assert not store._scope.ledger._lines
        assert not store._scope.ledger._stands

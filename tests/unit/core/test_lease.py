"""Leases of a store that fails: alive is never claimed too long, and a loss is final and told."""

from __future__ import annotations

import logging
import threading

import kvi
import pytest

from tests.support.faulty import Faulty, fails
from tests.support.inside import revoke
from tests.support.waiting import until
from tests.unit.core.conftest import Clock, step

TTL = 60.0


def test_back_before_the_deadline(store: Faulty, peer: kvi.Kvi, clock: Clock) -> None:
    """A lease lives through a time in which the store cannot be reached, if it is short enough."""
    lease = store.lease(TTL)
    store.store("k", b"", lease=lease)
    start = clock.time
    with store.out_of_reach("lease_renew"):
        while clock.time < start + TTL - 2:
            clock.step(lease._flow)
            assert lease.alive
    clock.step(lease._flow)
    assert lease._flow.term.deadline == clock.time + TTL
    clock.time = start + 1.5 * TTL
    assert lease.alive
    assert not lease.lost.is_set()
    assert peer.get("k")


def test_back_after_the_deadline(store: Faulty, clock: Clock) -> None:
    """After the deadline the lease is lost, told once, and not renewed when the store is back."""
    called: list[int] = []
    lease = store.lease(TTL)
    lease.lost.add_callback(lambda: called.append(1))
    start = clock.time
    with store.out_of_reach("lease_renew"):
        while not lease._flow.ended:
            clock.step(lease._flow)
    assert clock.time == start + TTL
    renewals = store.times("lease_renew")
    assert lease.lost.is_set()
    until(lambda: called)
    assert step(lease._flow) is None
    with pytest.raises(kvi.LeaseLost):
        lease.renew()
    clock.time = start  # even if the clock could go back
    assert not lease.alive
    assert lease.lost.is_set()
    assert store.times("lease_renew") == renewals
    assert called == [1]


def test_known_by_the_clock_alone(store: Faulty, clock: Clock) -> None:
    """After a pause longer than the ttl, lease and loss say so before any thread has noticed."""
    lease, other = store.lease(TTL), store.lease(TTL)
    clock.advance(TTL)
    assert not lease.alive
    assert other.lost.is_set()
    assert "ended" in repr(lease)
    assert store.times("lease_renew") == 0
    with pytest.raises(kvi.LeaseLost):
        lease.renew()


def test_answer_that_comes_too_late(store: Faulty, clock: Clock) -> None:
    """A renewal that was answered after the deadline does not bring the lease back."""
    lease = store.lease(TTL)
    clock.advance(TTL / 2)
    store.after["lease_renew"] = lambda: clock.advance(TTL)
    step(lease._flow)
    assert not lease.alive
    assert lease.lost.is_set()
    assert step(lease._flow) is None


def test_counts_from_the_sending(store: Faulty, clock: Clock) -> None:
    """A grant and a renewal count from the moment when they were sent, not when answered."""
    start = clock.time
    store.after["lease_grant"] = lambda: clock.advance(5)
    lease = store.lease(TTL)
    assert lease._flow.term.deadline == start + TTL
    clock.advance(TTL / 3)
    sent = clock.time
    store.after["lease_renew"] = lambda: clock.advance(7)
    step(lease._flow)
    assert lease._flow.term.deadline == sent + TTL


def test_seen_dead_stays_dead(store: Faulty, clock: Clock) -> None:
    """Who was told that the lease is over is not contradicted by an answer just in time."""
    lease = store.lease(TTL)
    clock.advance(TTL / 2)

    def meanwhile() -> None:
        clock.advance(TTL / 2)
        assert not lease.alive
        clock.advance(-1)  # the renewing thread has read the clock a moment before

    store.after["lease_renew"] = meanwhile
    step(lease._flow)
    assert not lease.alive
    assert lease.lost.is_set()


def test_store_says_gone(store: Faulty, peer: kvi.Kvi, clock: Clock) -> None:
    """A lease that somebody else ended is lost with the next renewal."""
    lease = store.lease(TTL)
    revoke(peer, lease.id)
    assert lease.alive
    clock.step(lease._flow)
    assert not lease.alive
    assert lease.lost.is_set()


def test_backend_that_makes_a_mistake(
    store: Faulty, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that is none of kvi's is logged and tried again like any; the loss is still told."""
    lease = store.lease(TTL)
    store.before["lease_renew"] = fails(ValueError, times=2)
    with caplog.at_level(logging.ERROR, "kvi"):
        clock.advance(TTL / 3)
        assert step(lease._flow)
        clock.step(lease._flow)
        clock.step(lease._flow)
    assert len(caplog.records) == 2
    assert lease._flow.term.deadline == clock.time + TTL
    store.before["lease_renew"] = fails(ValueError)
    while not lease._flow.ended:
        clock.step(lease._flow)
    assert lease.lost.is_set()


def test_kept_by_its_thread(store: Faulty) -> None:
    """In the background a lease outlives many times its ttl, and failures between."""
    store.before["lease_renew"] = fails(kvi.Unavailable, times=1)
    lease = store.lease(1)
    until(lambda: store.times("lease_renew") >= 6)
    assert lease.alive
    with store.out_of_reach("lease_renew"):
        assert lease.lost.wait(20)
    assert not lease.alive


def test_left_to_the_caller(store: Faulty, clock: Clock) -> None:
    """With keep_alive=False only the caller renews; its loss is noticed all the same."""
    lease = store.lease(TTL, keep_alive=False)
    clock.advance(TTL - 1)
    assert step(lease._flow) == lease._flow.term.deadline
    assert store.times("lease_renew") == 0
    assert lease.renew() == TTL
    clock.advance(TTL - 1)
    assert lease.alive
    assert step(lease._flow) == lease._flow.term.deadline
    clock.advance(1)
    assert step(lease._flow) is None
    assert lease.lost.is_set()
    assert store.times("lease_renew") == 1


def test_renew_that_fails(store: Faulty, clock: Clock) -> None:
    """Renewing by hand raises what the store did; the lease is alive until its deadline."""
    lease = store.lease(TTL, keep_alive=False)
    with store.out_of_reach("lease_renew"), pytest.raises(kvi.Unavailable) as caught:
        lease.renew()
    assert caught.value.operation == "renew"
    assert lease.alive
    clock.advance(TTL)
    assert not lease.alive


def test_grant_of_unknown_outcome(store: Faulty) -> None:
    """If nobody knows whether the lease was granted, the caller is told, and no lease is kept."""
    store.after["lease_grant"] = fails(kvi.OutcomeUnknown)
    with pytest.raises(kvi.OutcomeUnknown) as caught:
        store.lease(TTL)
    assert caught.value.operation == "lease"
    assert not store._scope.ledger._members
    with pytest.raises(kvi.OutcomeUnknown):
        store.temp_key("k")
    assert store.get("k") is None


def test_grant_that_took_longer_than_the_ttl(store: Faulty, clock: Clock) -> None:
    """A lease that is over when it arrives is not alive for a moment."""
    store.after["lease_grant"] = lambda: clock.advance(TTL)
    lease = store.lease(TTL)
    assert not lease.alive
    assert lease.lost.is_set()


def test_longer_than_asked(store: Faulty, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """The ttl that counts is the one that the store granted."""
    backend = store._scope.primitives
    grant = backend._lease_grant
    monkeypatch.setattr(backend, "_lease_grant", lambda ttl, timeout: grant(2 * ttl, timeout))
    lease = store.lease(TTL)
    assert lease.ttl == 2 * TTL
    clock.advance(1.5 * TTL)
    assert lease.alive


@pytest.mark.parametrize("error", [kvi.Unavailable, kvi.OutcomeUnknown, kvi.PermissionDenied])
def test_revoke_that_fails(store: Faulty, peer: kvi.Kvi, error: type[kvi.KviError]) -> None:
    """Revoking raises what the store did; the lease counts as ended, and is no loss.

    Revoking again does nothing. A store that was only out of reach is told once it is back.
    """
    lease = store.lease(TTL)
    store.store("k", b"", lease=lease)
    store.before["lease_revoke"] = fails(error)
    with pytest.raises(error) as caught:
        lease.revoke()
    assert caught.value.operation == "revoke"
    assert not lease.alive
    assert not lease.lost.is_set()
    lease.revoke()
    assert step(lease._flow) is None
    assert not store.times("lease_renew")
    del store.before["lease_revoke"]
    if error is kvi.PermissionDenied:
        assert store.times("lease_revoke") == 1
    else:
        until(lambda: peer.get("k") is None)
    assert not lease.lost.is_set()


def test_block_whose_revoke_fails(store: Faulty) -> None:
    """The end of a block raises what revoking did, but never instead of the block's own error."""
    store.before["lease_revoke"] = fails(kvi.Unavailable)
    with pytest.raises(kvi.Unavailable), store.lease(TTL):
        pass
    with pytest.raises(ZeroDivisionError) as caught, store.lease(TTL):
        raise ZeroDivisionError
    assert any("could not be revoked" in note for note in caught.value.__notes__)
    store.before.clear()  # else closing tries for as long as its time-out


def test_revoke_during_a_renewal(store: Faulty, peer: kvi.Kvi) -> None:
    """A lease that is revoked while its renewal is under way ends, is no loss, and stays ended."""
    entered, go = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert go.wait(20)

    store.after["lease_renew"] = block
    lease = store.lease(1)
    store.store("k", b"", lease=lease)
    assert entered.wait(20)
    lease.revoke()
    assert peer.get("k") is None
    go.set()
    until(lambda: not store._runtime._work._pending)
    assert not lease.alive
    assert not lease.lost.is_set()


def test_revoke_and_looking_at_once(store: Faulty) -> None:
    """However often somebody asks meanwhile, one's own revoke is never taken for a loss."""
    lease = store.lease(TTL)
    stop = threading.Event()
    seen: list[bool] = []

    def look() -> None:
        while not stop.is_set():
            seen.append(current[0].lost.is_set())

    current = [lease]
    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        lease = store.lease(TTL)
        current[0] = lease
        lease.revoke()
    stop.set()
    for thread in threads:
        thread.join()
    assert seen
    assert not any(seen)


def test_one_that_hangs_holds_up_the_others_for_a_moment(store: Faulty) -> None:
    """A renewal is given a second at the most, so that one that hangs does not cost the others."""
    with store.lease(0.6), store.lease(6):
        until(lambda: store.times("lease_renew") >= 10)
    given = [left for name, _, left in store.calls if name == "lease_renew"]
    assert all(timeout <= 1 for timeout in given)
    assert min(given) <= 0.2


def test_temp_key_whose_write_fails(store: Faulty, peer: kvi.Kvi) -> None:
    """If the key could not be written, or nobody knows, the lease is given up, and so the key."""
    store.after["store"] = fails(kvi.OutcomeUnknown)
    with pytest.raises(kvi.OutcomeUnknown) as caught:
        store.temp_key("member")
    assert caught.value.operation == "temp_key"
    until(lambda: peer.get("member") is None)
    until(lambda: store.times("lease_revoke") == 1)
    assert not store._scope.ledger._members


def test_temp_key_is_not_made_up_for(store: Faulty, peer: kvi.Kvi, clock: Clock) -> None:
    """A temporary key whose lease is lost is told, and not stored again; closing is nothing."""
    key = store.temp_key("member", ttl=TTL)
    revoke(peer, key.lease.id)
    clock.step(key.lease._flow)
    assert not key.alive
    assert key.lost.is_set()
    assert "ended" in repr(key)
    key.close()
    assert peer.get("member") is None
    assert store.times("store") == 1


def test_many_leases_one_thread(store: Faulty) -> None:
    """A thousand leases are kept by one thread, and closing revokes them all."""
    before = threading.active_count()
    leases = [store.lease(TTL) for _ in range(1000)]
    # scheduler, one that was busy and one that was free, and the memory store's reaper
    assert threading.active_count() <= before + 5
    store.close()
    assert store.times("lease_revoke") == 1000
    assert not any(lease.alive for lease in leases)


def test_waiting_for_a_loss_ends_with_the_handle(store: Faulty) -> None:
    """Who waits for a loss gets Closed when the handle is closed, and it is no loss."""
    lease = store.lease(TTL)
    result: list[object] = []

    def wait() -> None:
        try:
            result.append(lease.lost.wait())
        except kvi.Closed:
            result.append("closed")

    thread = threading.Thread(target=wait)
    thread.start()
    store.close()
    thread.join(20)
    assert result == ["closed"]
    assert not lease.lost.is_set()

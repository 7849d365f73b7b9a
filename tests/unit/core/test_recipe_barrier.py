"""Barriers on a store that fails, whose answers are lost, and whose parties are."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import kvi
import pytest
from kvi.flow.lease import LeaseFlow
from kvi.policy.line import loads
from kvi.recipes import Barrier

from tests.support.faulty import Faulty, fails
from tests.support.waiting import until

WITHIN = 20.0
LOST, AWAY = kvi.OutcomeUnknown("lost"), kvi.Unavailable("away")

Begin = Callable[[Callable[[], int]], "Future[int]"]


@pytest.fixture
def uri() -> str:
    """A store of its own."""
    return f"mem:{secrets.token_hex(8)}"


@pytest.fixture
def store(uri: str) -> Iterator[Faulty]:
    """A store that fails as a test wants it."""
    with kvi.open(uri) as handle:
        yield Faulty(handle)


@pytest.fixture
def peer(uri: str) -> Iterator[kvi.Kvi]:
    """The same store, in order."""
    with kvi.open(uri) as handle:
        yield handle


@pytest.fixture
def begin(store: Faulty, peer: kvi.Kvi) -> Iterator[Begin]:
    """Begin something on a thread."""
    with ThreadPoolExecutor(4) as pool:
        yield lambda work: pool.submit(work)
        store.before.clear()
        peer.close()
        store.close()  # who still waits is woken


def waiting(store: kvi.Kvi) -> list[str]:
    """Who waits at the first gate, as the store has it."""
    entry = store.get("b/.kvi/wait")
    found: list[str] = loads(entry and entry.value).get("waiting", [])
    return found


class Held:
    """Holds the looks of a party back."""

    def __init__(self, store: Faulty) -> None:
        self._store = store
        self._going = threading.Event()
        self.reached = threading.Event()
        store.after["barrier_wait"] = self._arm

    def _arm(self) -> None:
        """It has come."""
        del self._store.after["barrier_wait"]
        self._store.before["range"] = self._wait

    def _wait(self) -> None:
        self.reached.set()
        assert self._going.wait(WITHIN)

    def let_go(self) -> None:
        """Let it look."""
        self._store.before.pop("range", None)
        self._going.set()


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("step", range(3))
def test_lost_answer(store: Faulty, peer: kvi.Kvi, begin: Begin, step: int, applied: bool) -> None:
    """Whichever answer is lost, both pass, and are told their places."""
    errors = (*[None] * step, LOST)
    (store.loses if applied else store.fails)("barrier_wait", *errors)
    first = begin(lambda: Barrier(store, "b", 2).wait(WITHIN))
    until(lambda: waiting(peer))
    second = Barrier(store if step == 2 else peer, "b", 2).wait(WITHIN)
    assert (first.result(WITHIN), second) == (0, 1)


def test_coming_that_cannot_be_settled(store: Faulty) -> None:
    """What keeps it from looking whether it has come leaves that unknown."""

    def lost() -> None:
        store.fails("range", AWAY)
        raise LOST

    store.after["barrier_wait"] = lost
    with pytest.raises(kvi.OutcomeUnknown):
        Barrier(store, "b", 2).wait(WITHIN)


def test_lost_before_it_has_come(store: Faulty) -> None:
    """A party whose lease is gone when it comes is told so."""

    def end() -> None:
        for lease in leases(store):
            store._scope.primitives._lease_revoke(lease.id, 5)

    store.before["barrier_wait"] = end
    with pytest.raises(kvi.BrokenBarrier):
        Barrier(store, "b", 2).wait(WITHIN)


def test_fast_party_comes_again_before_the_slow_one_has_left(
    store: Faulty, peer: kvi.Kvi, begin: Begin
) -> None:
    """Each generation has its own outcomes, also while another one leaves."""
    held = Held(store)
    slow = begin(lambda: Barrier(store, "b", 2).wait(WITHIN))
    assert held.reached.wait(WITHIN)
    fast = Barrier(peer, "b", 2)
    assert fast.wait(WITHIN) == 1
    again = begin(lambda: fast.wait(WITHIN))
    until(lambda: waiting(peer))
    held.let_go()
    assert slow.result(WITHIN) == 0
    assert Barrier(store, "b", 2).wait(WITHIN) == 1
    assert again.result(WITHIN) == 0


def test_lost_after_all_have_passed(store: Faulty, peer: kvi.Kvi, begin: Begin) -> None:
    """All or none: who is lost once all have passed goes on as the others did."""
    held = Held(store)
    slow = begin(lambda: Barrier(store, "b", 2).wait(WITHIN))
    assert held.reached.wait(WITHIN)
    assert Barrier(peer, "b", 2).wait(WITHIN) == 1
    for lease in leases(store):
        peer._scope.primitives._lease_revoke(lease.id, 5)
    with pytest.raises(kvi.LockTimeout):
        Barrier(peer, "b", 2).wait(0)
    held.let_go()
    assert slow.result(WITHIN) == 0


def test_lost_by_its_own_clock(store: Faulty, peer: kvi.Kvi, begin: Begin) -> None:
    """Who cannot be sure that it counts breaks the gate, for itself and for the others."""
    first = begin(lambda: Barrier(store, "b", 3, ttl=600).wait())
    until(lambda: waiting(peer))
    second = begin(lambda: Barrier(peer, "b", 3).wait())
    until(lambda: len(waiting(peer)) == 2)
    (lease,) = leases(store)
    with lease._lock:
        lease.term.gone()
        lease._observe()
    for party in (first, second):
        with pytest.raises(kvi.BrokenBarrier):
            party.result(WITHIN)
    assert waiting(peer) == []


def test_time_is_up_while_the_store_is_away(store: Faulty, begin: Begin) -> None:
    """The wait is over in time, and whoever cannot leave does not claim to have left."""
    store.after["barrier_wait"] = lambda: store.before.update(range=fails(kvi.Unavailable))
    party = begin(lambda: Barrier(store, "b", 2).wait(0.2))
    with pytest.raises(kvi.OutcomeUnknown):
        party.result(WITHIN)


def test_store_that_somebody_has_to_mend(store: Faulty, begin: Begin) -> None:
    """A party without end does not wait for that; nor does it know what the others did."""
    broken = kvi.Unavailable("the disk is full", passing=False)
    store.after["barrier_wait"] = lambda: store.fails("range", *[broken] * 1000)
    party = begin(lambda: Barrier(store, "b", 2).wait())
    with pytest.raises(kvi.OutcomeUnknown, match="the disk is full"):
        party.result(WITHIN)


@pytest.mark.parametrize("error", [AWAY, kvi.Contention("others write")], ids=["away", "busy"])
def test_time_is_up_as_the_store_comes_back(
    store: Faulty, peer: kvi.Kvi, begin: Begin, error: kvi.KviError
) -> None:
    """Leaving is tried again for a while; then the others wait on."""
    patient = begin(lambda: Barrier(peer, "b", 3).wait())
    until(lambda: waiting(peer))
    store.after["barrier_wait"] = lambda: store.fails("range", *[error] * 3)
    with pytest.raises(kvi.LockTimeout):
        Barrier(store, "b", 3).wait(0.2)
    assert len(waiting(peer)) == 1
    assert not patient.done()


def test_leaving_whose_answers_are_lost(store: Faulty) -> None:
    """Who does not know whether it counts still does not say that its time was up."""
    store.after["barrier_wait"] = lambda: store.before.update(barrier_wait=fails(type(LOST)))
    with pytest.raises(kvi.OutcomeUnknown):
        Barrier(store, "b", 2).wait(0)


def test_broken_while_it_leaves(store: Faulty, peer: kvi.Kvi) -> None:
    """Who is found gone when its time is up is told that it was lost."""
    store.after["barrier_wait"] = lambda: peer._scope.primitives._lease_revoke(
        leases(store)[0].id, 5
    )
    with pytest.raises(kvi.BrokenBarrier):
        Barrier(store, "b", 2).wait(0)


def leases(store: kvi.Kvi) -> list[LeaseFlow]:
    """The leases of a handle."""
    return [one for one in store._scope.ledger._members if isinstance(one, LeaseFlow)]

"""Groups on a store that fails, and whose answers are lost or late."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.aio import recipes as awaited
from kvi.flow.lease import LeaseFlow
from kvi.recipes import Group, Member

from tests.support.faulty import Faulty, fails
from tests.support.looping import in_loop
from tests.support.waiting import until

WITHIN = 20.0
KEY = "g/.kvi/member/m"
LOST, AWAY = kvi.OutcomeUnknown("lost"), kvi.Unavailable("away")

Begin = Callable[[Callable[[], Any]], "Future[Any]"]


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
def begin(store: Faulty) -> Iterator[Begin]:
    """Begin something on a thread."""
    with ThreadPoolExecutor(4) as pool:
        yield lambda work: pool.submit(work)
        store.before.clear()
        store.after.clear()


class Held:
    """Holds an operation back, before or after it is done."""

    def __init__(
        self,
        faults: dict[str, Callable[[], object]],
        name: str,
        when: Callable[[], object] = lambda: True,
    ) -> None:
        self._faults = faults
        self._name = name
        self._when = when
        self._going = threading.Event()
        self.reached = threading.Event()
        faults[name] = self._wait

    def _wait(self) -> None:
        if not self._when():
            return
        del self._faults[self._name]
        self.reached.set()
        assert self._going.wait(WITHIN)

    def let_go(self) -> None:
        """Let it go on."""
        self._going.set()


def joined(store: kvi.Kvi, *, rejoin: bool = True, ttl: float = 600) -> Member:
    """The member ``m``."""
    return Group(store, "g", ttl=ttl).join("first", id="m", rejoin=rejoin)


def values(store: kvi.Kvi) -> list[bytes]:
    """What the members say."""
    return [one.value for one in Group(store, "g").members()]


def lose(member: Member, *, at_the_store: bool) -> None:
    """Its lease is lost by its own clock; the store may have it still."""
    lease: LeaseFlow = member._flow.lease
    if at_the_store:
        lease.scope.primitives._lease_revoke(lease.id, 5)
    with lease._lock:
        lease.term.gone()
        lease._observe()


@pytest.mark.parametrize("applied", [True, False])
def test_lost_answers(store: Faulty, peer: kvi.Kvi, applied: bool) -> None:
    """Joining and updating are settled, whether the lost one applied or not."""
    lost = store.loses if applied else store.fails
    lost("group_join", LOST, LOST)
    member = joined(store)
    lost("group_update", LOST, LOST)
    member.update("second")
    assert values(peer) == [b"second"]
    lost("lease_revoke", LOST)
    with pytest.raises(kvi.OutcomeUnknown):
        member.leave()
    member.leave()
    assert values(peer) == []


def test_leaving_again_makes_sure(store: Faulty, peer: kvi.Kvi) -> None:
    """Who does not know whether it has left can leave again, until it surely has."""
    member = joined(store)
    store.before["lease_revoke"] = fails(kvi.Unavailable)
    for _ in range(2):
        with pytest.raises(kvi.Unavailable):
            member.leave(timeout=0.5)
        assert values(peer) == [b"first"]
    del store.before["lease_revoke"]
    member.leave()
    assert values(peer) == []
    store.before["lease_revoke"] = fails(kvi.Unavailable)
    member.leave()  # it is sure, and asks nobody


@pytest.mark.parametrize("rejoin", [True, False])
def test_leaving_after_a_loss(store: Faulty, peer: kvi.Kvi, rejoin: bool) -> None:
    """A lease that is lost by the clock may go on at the store; leaving ends it there."""
    member = joined(store, rejoin=rejoin)
    store.before["lease_grant"] = fails(kvi.Unavailable)
    lose(member, at_the_store=False)
    member.leave()
    assert values(peer) == []


def test_joining_under_way_does_not_outlive_leaving(
    store: Faulty, peer: kvi.Kvi, begin: Begin
) -> None:
    """Once it has left nothing comes back, though it was about to join again."""
    member = joined(store)
    held = Held(store.before, "group_join")
    lose(member, at_the_store=True)
    assert held.reached.wait(WITHIN)
    member.leave()
    held.let_go()
    with pytest.raises(kvi.NotHeld):
        member.update("late")
    until(lambda: not leases(store))
    assert values(peer) == []
    assert peer.get(KEY) is None


def test_joined_again_as_it_leaves(store: Faulty, peer: kvi.Kvi) -> None:
    """Leaving ends what joining again has put, though its answer has not come."""
    member = joined(store)
    held = Held(store.after, "group_join", lambda: peer.get(KEY))
    lose(member, at_the_store=True)
    assert held.reached.wait(WITHIN)
    assert values(peer) == [b"first"]
    member.leave()
    assert values(peer) == []
    held.let_go()
    until(lambda: not leases(store))
    assert values(peer) == []


def test_update_while_it_joins_again(store: Faulty, peer: kvi.Kvi, begin: Begin) -> None:
    """The two come one after the other; what is said last is there, under one lease."""
    member = joined(store)
    held = Held(store.after, "group_join", lambda: peer.get(KEY))
    lose(member, at_the_store=True)
    assert held.reached.wait(WITHIN)
    updated = begin(lambda: member.update("second"))
    held.let_go()
    updated.result(WITHIN)
    assert values(peer) == [b"second"]
    assert member.alive
    assert member.rejoined == 1
    entry = peer.get(KEY)
    assert entry is not None
    assert [entry.lease] == [one.id for one in leases(store)] == [member._flow.lease.id]


def test_late_update_writes_over_nothing(store: Faulty, peer: kvi.Kvi) -> None:
    """An update whose fate was unknown, and that comes after the next one, is refused."""
    member, late = joined(store), list[Callable[[], bool]]()
    below = store._below

    def hold_back(op: Any, call: Any) -> Any:
        if op.name != "group_update" or late:
            return below.execute(op, call)
        late.append(lambda: op.run(peer._scope.primitives, 5).succeeded)
        raise LOST

    def away_then() -> None:
        if late:
            raise AWAY

    store._below = _Below(hold_back)
    store.before["group_update"] = away_then
    with pytest.raises(kvi.OutcomeUnknown):
        member.update("second")
    store.before.clear()
    member.update("third")
    assert not late[0]()
    assert values(peer) == [b"third"]


class _Below:
    """What does the operations of a store."""

    is_short = False

    def __init__(self, execute: Callable[[Any, Any], Any]) -> None:
        self._execute = execute

    async def execute(self, op: Any, call: Any) -> Any:
        """Do one."""
        return await self._execute(op, call)


def test_longest_id(tmp_path: Path) -> None:
    """It is what the store's largest key leaves, counted in bytes as keys are."""
    with kvi.open(f"sqlite:{tmp_path}/store") as store:
        group = Group(store, "\N{SNOWMAN}" * 100)
        largest = store.capabilities.max_key
        assert largest is not None
        with pytest.raises(kvi.InvalidKey) as caught:
            group.join(id="x" * largest)
        longest = int(caught.value.message.rpartition(" ")[2].replace(",", ""))
        with group.join(id="x" * longest):
            (key,) = (one.key for one in store.range(prefix=group.name, keys_only=True))
            assert len(key.encode()) <= largest


def test_refused_value_is_not_said_later(store: Faulty, peer: kvi.Kvi) -> None:
    """What an update that surely failed was to say is not said when it joins again."""
    member = joined(store)
    store.before["lease_grant"] = fails(kvi.Unavailable)
    store.before["group_update"] = lambda: lose(member, at_the_store=True)
    with pytest.raises(kvi.Unavailable):
        member.update("second")  # it is lost, and cannot join again
    store.before.clear()
    until(lambda: member.alive)
    assert values(peer) == [b"first"]


def test_update_of_a_member_whose_lease_ends_under_way(store: Faulty, peer: kvi.Kvi) -> None:
    """It joins again with the new value, and is not told that it is lost."""
    member = joined(store)
    store.fails("group_update", kvi.LeaseLost("as the test wants it"))
    member.update("second")
    assert values(peer) == [b"second"]


def test_update_keeps_to_its_time(store: Faulty, peer: kvi.Kvi) -> None:
    """The time-out of an update is its own, also while it waits for a joining under way."""
    member = joined(store)
    member.update("second", timeout=7)
    (left,) = [left for name, _, left in store.calls if name == "group_update"]
    assert 6 < left <= 7
    held = Held(store.after, "group_join", lambda: peer.get(KEY))
    lose(member, at_the_store=True)
    assert held.reached.wait(WITHIN)
    with pytest.raises(kvi.Timeout):
        member.update("third", timeout=0.05)
    held.let_go()


def test_no_lease_is_left_over(store: Faulty, peer: kvi.Kvi) -> None:
    """However often it has joined again, one lease is kept, and the earlier ones are ended."""
    member = joined(store)
    for times in range(1, 4):
        lose(member, at_the_store=False)
        until(lambda times=times: member.rejoined == times and member.alive)  # type: ignore[misc]
        until(lambda: len(member._flow._standing) == 1)
    assert [one.id for one in leases(store)] == [member._flow.lease.id]
    assert values(peer) == [b"first"]
    member.leave()
    assert not member._flow._standing


def leases(store: kvi.Kvi) -> list[LeaseFlow]:
    """The leases that a handle keeps."""
    members = list(store._scope.ledger._members)
    return [one for one in members if isinstance(one, LeaseFlow) and not one.ended]


def test_block_whose_leaving_fails(store: Faulty) -> None:
    """What the block raised counts more than what leaving does."""
    member, other = joined(store), Group(store, "g", ttl=600).join(b"")
    store.before["lease_revoke"] = fails(type(LOST))
    with pytest.raises(ZeroDivisionError) as caught, member:
        raise ZeroDivisionError
    assert "afterwards the member could not leave" in caught.value.__notes__[0]
    with pytest.raises(kvi.OutcomeUnknown), other:
        pass
    del store.before["lease_revoke"]
    member.leave()


@in_loop
async def test_block_of_a_task_whose_leaving_fails(uri: str) -> None:
    """What the block raised counts more than what leaving does, for asyncio too."""
    async with aio.open(uri) as store:
        member = await awaited.Group(store, "g").join(b"")

        async def fail(**_: object) -> None:
            raise AWAY

        leave, member.leave = member.leave, fail  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError) as caught:
            async with member:
                raise ZeroDivisionError
        assert "afterwards the member could not leave" in caught.value.__notes__[0]
        with pytest.raises(kvi.Unavailable):
            async with member:
                pass
        await leave()

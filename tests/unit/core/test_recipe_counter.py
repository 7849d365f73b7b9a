"""Counters and sequences on a store that fails, and whose answers are lost."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Iterator
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.aio import recipes as awaited
from kvi.recipes import Counter, Sequence

from tests.support.faulty import Faulty
from tests.support.looping import in_loop
from tests.support.waiting import until

LOST, AWAY = kvi.OutcomeUnknown("lost"), kvi.Unavailable("away")


@pytest.fixture
def store() -> Iterator[Faulty]:
    """A store that fails as a test wants it."""
    with kvi.open(f"mem:{secrets.token_hex(8)}") as handle:
        yield Faulty(handle)


def test_lost_answer_without_a_name(store: Faulty) -> None:
    """An addition without ``op`` is not sent again after a lost answer: its fate is unknown."""
    counter = Counter(store, "c")
    assert counter.add() == 1
    store.loses("counter_add", None, LOST)  # the look, then the change
    with pytest.raises(kvi.OutcomeUnknown):
        counter.add()
    assert counter.value() == 2


@pytest.mark.parametrize("applied", [True, False])
def test_lost_answer_with_a_name(store: Faulty, applied: bool) -> None:
    """With ``op`` it is counted once, whether the lost one applied or not."""
    counter = Counter(store, "c")
    assert counter.add(5) == 5
    (store.loses if applied else store.fails)("counter_add", None, LOST)
    assert counter.add(2, op="a") == 7
    assert counter.add(2, op="a") == 7
    assert counter.value() == 7


@pytest.mark.parametrize("error", [AWAY, kvi.PermissionDenied("no more")], ids=["away", "denied"])
def test_lost_answer_that_cannot_be_settled(store: Faulty, error: kvi.KviError) -> None:
    """What keeps an addition from looking does not make it sure that it was not counted."""
    counter = Counter(store, "c")
    store.loses("counter_add", None, LOST)
    store.fails("counter_add", None, None, error)
    with pytest.raises(kvi.OutcomeUnknown):
        counter.add(2, op="a")
    assert counter.add(2, op="a") == 2, "sent again, it is settled"
    assert counter.value() == 2


def test_store_that_is_away(store: Faulty) -> None:
    """Before anything was sent, it is sure that nothing was counted."""
    counter = Counter(store, "c")
    counter.value()
    store.fails("counter_add", None, AWAY)
    with pytest.raises(kvi.Unavailable):
        counter.add(2, op="a")
    assert counter.value() == 0


def test_records_that_get_no_lease(store: Faulty) -> None:
    """Nothing was counted then, also if the store has not said whether it granted one."""
    counter = Counter(store, "c")
    counter.value()
    store.fails("lease_grant", LOST)
    store.fails("counter_add", None, AWAY)
    with pytest.raises(kvi.Unavailable):
        counter.add(2, op="a")
    store.before.clear()
    assert counter.value() == 0


def test_leases_that_have_ended_are_forgotten(store: Faulty) -> None:
    """A program that counts with ever other times to keep does not grow."""
    counter = Counter(store, "c")
    for number in range(20):
        counter.add(op=f"{number}", keep=0.05 + number / 1000)
        until(lambda: not store.count(prefix="c/.kvi.op/"))
    assert len(counter._flow._leases) == 1


def test_lease_of_the_records_that_is_gone(store: Faulty) -> None:
    """If somebody ends the lease that the records share, the next addition has another."""
    counter = Counter(store, "c")
    assert counter.add(op="a") == 1
    (record,) = store.range(prefix="c/.kvi.op/")
    assert record.lease is not None
    store._scope.primitives._lease_revoke(record.lease, 5)
    assert counter.add(op="b") == 2
    assert counter.add(op="b") == 2


def test_records_share_leases(store: Faulty) -> None:
    """The records of a while share one lease, and each ``keep`` has one of its own."""
    counter = Counter(store, "c")
    for number in range(20):
        counter.add(op=f"{number}", keep=60 if number % 2 else 3600)
    leases = {record.lease for record in store.range(prefix="c/.kvi.op/")}
    assert len(leases) == 2
    assert None not in leases


@pytest.mark.parametrize("amount", [1.0, "1", None, True, 2**63])
def test_bad_amount(store: Faulty, amount: Any) -> None:
    """What is no whole number is refused before anything is sent."""
    before = len(store.calls)
    with pytest.raises(kvi.InvalidArgument, match="n=") as caught:
        Counter(store, "c").add(amount)
    assert caught.value.key == "c"
    assert len(store.calls) == before


@pytest.mark.parametrize(("op", "keep"), [("", 60), ("\ud800", 60), (7, 60), ("a", 0), ("a", -1)])
def test_bad_name_of_an_addition(store: Faulty, op: Any, keep: Any) -> None:
    """So is what is no name, and a time that is none."""
    before = len(store.calls)
    with pytest.raises((kvi.InvalidArgument, kvi.InvalidKey)):
        Counter(store, "c").add(op=op, keep=keep)
    assert len(store.calls) == before


@pytest.mark.parametrize("block", [0, -1, 1.5, True, "1"])
def test_bad_block(store: Faulty, block: Any) -> None:
    """A block is a whole number from 1."""
    with pytest.raises(kvi.InvalidArgument, match="block="):
        Sequence(store, "s", block=block)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("block", [1, 10])
def test_block_in_doubt(store: Faulty, applied: bool, block: int) -> None:
    """A block whose taking is in doubt is given to nobody, or to one if it was not taken."""
    first, second = Sequence(store, "s", block=block), Sequence(store, "s", block=block)
    given = [first.next() for _ in range(block)]
    (store.loses if applied else store.fails)("sequence_next", None, LOST)
    for sequence in (first, second, first, second):
        given += [sequence.next() for _ in range(block)]
    assert len(set(given)) == len(given), "a number was given twice"


def test_threads_share_a_sequence(store: Faulty) -> None:
    """Threads that share an object get numbers that none of the others has, each growing."""
    sequence = Sequence(store, "s", block=3)
    given: list[list[int]] = [[] for _ in range(4)]

    def take(mine: list[int]) -> None:
        mine += [sequence.next() for _ in range(100)]

    threads = [threading.Thread(target=take, args=(mine,)) for mine in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({number for mine in given for number in mine}) == 400
    assert all(mine == sorted(mine) for mine in given)


def test_closed_handle() -> None:
    """After `close` both raise `Closed`, also for a number that was taken already."""
    store = kvi.open(f"mem:{secrets.token_hex(8)}")
    counter, sequence = Counter(store, "c"), Sequence(store, "s", block=10)
    assert (counter.add(), sequence.next()) == (1, 1)
    store.close()
    for call, key in ((counter.add, "c"), (counter.value, "c"), (sequence.next, "s")):
        with pytest.raises(kvi.Closed) as caught:
            call()
        assert (caught.value.operation, caught.value.key) == (call.__name__, key)


@in_loop
async def test_closed_handle_of_a_loop() -> None:
    """So is that of `kvi.aio`, and says where."""
    store = aio.open(f"mem:{secrets.token_hex(8)}")
    sequence = awaited.Sequence(store, "s", block=10)
    assert await sequence.next() == 1
    await store.close()
    with pytest.raises(kvi.Closed) as caught:
        await sequence.next()
    assert (caught.value.operation, caught.value.key) == ("next", "s")


def test_through_a_view_and_a_backend() -> None:
    """They stand where their store does, and the records of additions too."""
    with kvi.open(f"mem:{secrets.token_hex(8)}") as store:
        Counter(store.namespace("n"), "c").add(op="a")
        Counter(kvi.Backend(store, "b"), "c").add(op="a")
        for where in ("n", "b"):
            keys = [entry.key for entry in store.range(prefix=f"{where}/")]
            assert f"{where}/c/.kvi/total" in keys
            assert f"{where}/c/.kvi.op/a" in keys


@in_loop
async def test_cancelled_additions() -> None:
    """Additions with ``op`` that are cancelled anywhere and sent again are counted once each."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        counter = awaited.Counter(store, "c")
        for number in range(50):
            task = asyncio.create_task(counter.add(op=f"{number}"))
            for _ in range(number % 7):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await counter.add(op=f"{number}")
        assert await counter.value() == 50


@in_loop
async def test_cancelled_callers_of_a_sequence() -> None:
    """A number whose caller was cancelled is given to nobody else."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        sequence = awaited.Sequence(store, "s", block=2)
        given: list[int] = []
        for turn in range(60):
            task = asyncio.create_task(sequence.next())
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            task.cancel()
            given += [
                one
                for one in await asyncio.gather(task, return_exceptions=True)
                if isinstance(one, int)
            ]
            given.append(await sequence.next())
        assert given == sorted(set(given))

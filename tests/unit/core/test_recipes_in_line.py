"""What stands in line on a store that fails, and in tasks that are cancelled."""

from __future__ import annotations

import asyncio
import gc
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.aio import recipes as awaited
from kvi.call import Call
from kvi.ops import Op
from kvi.policy.retry import Effect
from kvi.recipes import Election, RWLock, Semaphore, Slots

from tests.support.backends import Smallest, opened
from tests.support.faulty import Faulty, fails
from tests.support.looping import in_loop
from tests.support.looping import until as until_in_loop
from tests.support.waiting import until

WITHIN = 20.0


@pytest.fixture
def store() -> Iterator[Faulty]:
    """A store that fails as a test wants it."""
    with kvi.open(f"mem:{secrets.token_hex(8)}") as handle:
        yield Faulty(handle)


def line(store: kvi.Kvi, name: str) -> list[int]:
    """The leases in a recipe's line."""
    return [one.lease for one in store.range(prefix=f"{name}/.kvi/") if one.lease is not None]


def test_resignation_whose_answer_is_lost(store: Faulty) -> None:
    """It leads no more, and can be resigned again, whether the lost one applied or not."""
    election = Election(store, "boss", "a")
    for lose in (store.fails, store.loses):
        assert election.campaign(0)
        lose("election_resign", kvi.OutcomeUnknown("lost"))
        with pytest.raises(kvi.OutcomeUnknown):
            election.resign()
        assert not election.held
        assert not election.lost.is_set()
        assert store.count(prefix="boss") == (lose == store.fails)
        election.resign()
        assert store.count(prefix="boss") == 0
        assert not election.lost.is_set()
        election.resign()


def test_resignation_that_is_not_repeated(store: Faulty) -> None:
    """Another campaign, or dropping the object, gives up what a failed resignation left."""
    election = Election(store, "boss", "a")
    assert election.campaign(0)
    store.fails("election_resign", kvi.Unavailable("away"))
    with pytest.raises(kvi.Unavailable):
        election.resign()
    assert election.campaign(WITHIN)
    election.resign()
    until(lambda: store.count(prefix="boss") == 0)


def test_entering_whose_answer_is_lost(store: Faulty) -> None:
    """Nothing of a claim is left whose entering is in doubt; the next one gets the permit."""
    semaphore = Semaphore(store, "s", 1)
    store.loses("semaphore_enter", kvi.OutcomeUnknown("lost"))
    with pytest.raises(kvi.Unavailable):
        semaphore.acquire(0)
    assert not semaphore.held
    assert semaphore.acquire(WITHIN)
    semaphore.release()


def marks(store: kvi.Kvi, name: str) -> list[str]:
    """What is held of a recipe, by marks."""
    return [one.key.rpartition("/")[2] for one in store.range(prefix=f"{name}/.kvi/held/")]


def test_slot_that_is_asked_for_again_in_vain(store: Faulty) -> None:
    """It leaves the index that it had before to whoever has it now."""
    slots = Slots(store, "s", 2)
    again, other = slots.claim(0), slots.claim(0)
    again.release()
    now = slots.claim(0)
    assert now.index == 0
    assert not again.acquire(0)
    assert marks(store, "s") == ["0", "1"]
    other.release()
    assert slots.claim(0).index == 1


class _Waiting:
    """Somebody who waits for a slot, and whose request to enter is on its way for long."""

    def __init__(self, store: Faulty, timeout: float) -> None:
        """The first and the second slot are taken, as are these."""
        self.slots = Slots(store, "s", 2)
        self.taken = [self.slots.claim(0), self.slots.claim(0)]
        self.found: list[int | kvi.KviError] = []
        self.ops: list[Op[Any]] = []
        self._answers = threading.Event()
        self._below = store._below
        self.lost = False
        store._below = self
        self._thread = threading.Thread(target=self._claim, args=(timeout,))
        self._thread.start()
        until(lambda: len(line(store, "s")) == 3)
        self.taken[0].release()
        until(lambda: self.ops)

    is_short = False

    async def execute(self, op: Op[Any], call: Call) -> Any:
        if op.name == "slots_enter" and not self.ops:
            self.ops.append(op)
            assert self._answers.wait(WITHIN)
            if self.lost:
                raise kvi.OutcomeUnknown("lost")
        return await self._below.execute(op, call)

    def answer(self, *, lost: bool) -> int | kvi.KviError:
        """Let the request come, or lose it; what its caller has in the end."""
        self.lost = lost
        self._answers.set()
        self._thread.join(WITHIN)
        return self.found[0]

    def _claim(self, timeout: float) -> None:
        try:
            self.found.append(self.slots.claim(timeout).index)
        except kvi.KviError as error:
            self.found.append(error)


def test_slot_that_another_was_faster_to_take(store: Faulty) -> None:
    """Who is refused, and has no time for more, leaves the other's alone."""
    waiting = _Waiting(store, 0.5)
    end = time.monotonic() + 0.5
    waiting.taken[1].release()
    faster = waiting.slots.claim(0)
    assert faster.index == 0
    until(lambda: time.monotonic() > end)
    assert isinstance(waiting.answer(lost=False), kvi.LockTimeout)
    assert marks(store, "s") == ["0"]
    assert waiting.slots.claim(0).index == 1


def test_request_to_enter_that_comes_late(store: Faulty) -> None:
    """Whoever has entered by another one has no second slot by it."""
    waiting = _Waiting(store, WITHIN)
    waiting.taken[1].release()
    faster = waiting.slots.claim(0)
    assert (faster.index, waiting.answer(lost=True)) == (0, 1)
    faster.release()
    store._do(waiting.ops[0], None)
    assert marks(store, "s") == ["1"]
    assert waiting.slots.claim(0).index == 0


@pytest.mark.parametrize("applied", [True, False])
def test_entering_whose_answer_is_lost_has_one_slot(store: Faulty, applied: bool) -> None:
    """What it may have taken is free again within its ttl."""
    slots = Slots(store, "s", 2, ttl=0.5)
    first = slots.claim(0)
    (store.loses if applied else store.fails)("slots_enter", kvi.OutcomeUnknown("lost"))
    with pytest.raises(kvi.Unavailable):
        slots.claim(0)
    until(lambda: len(line(store, "s")) == 1)
    assert slots.claim(WITHIN).index == 1
    first.release()


def test_writer_that_was_a_reader_once(store: Faulty) -> None:
    """A write lock that was downgraded is one for writing the next time."""
    lock, other = RWLock(store, "rw"), RWLock(store, "rw")
    writing = lock.write()
    with writing:
        writing.downgrade()
    with other.read():
        assert not writing.acquire(0)
    assert writing.acquire(0)
    assert not other.read().acquire(0)


def test_waiter_whose_lease_is_lost(store: Faulty) -> None:
    """A waiter whose own lease ends takes part again, at the end of the line."""
    holder, early, late = (Semaphore(store, "s", 1) for _ in range(3))
    order: list[str] = []

    def wait(semaphore: Semaphore, name: str) -> None:
        with semaphore:
            order.append(name)

    assert holder.acquire(0)
    threads = []
    for semaphore, name in ((early, "early"), (late, "late")):
        threads.append(threading.Thread(target=wait, args=(semaphore, name), daemon=True))
        threads[-1].start()
        until(lambda: len(holder.waiters()) == len(threads))
    store._scope.primitives._lease_revoke(int(holder.waiters()[0], 16), 5)
    until(lambda: len(holder.waiters()) == 2)
    holder.release()
    for thread in threads:
        thread.join(WITHIN)
    assert order == ["late", "early"]


def test_first_of_two_decides_the_settings(store: Faulty) -> None:
    """Of two who come at once with different limits, one is told."""
    first, second = Semaphore(store, "s", 1), Semaphore(store, "s", 2)

    def come_first() -> None:
        del store.before["semaphore"]
        assert second.acquire(0)

    store.before["semaphore"] = come_first
    with pytest.raises(kvi.InvalidArgument, match="limit=2, not 1"):
        first.acquire(0)
    assert second.held
    second.release()


@pytest.mark.parametrize("what", ["resize", "proclaim"])
def test_change_that_comes_late(store: Faulty, what: str) -> None:
    """One whose answer was lost, and that comes after the next one, writes over nothing."""
    below, late, lost = store._below, list[Any](), kvi.OutcomeUnknown("lost")
    change: Callable[[int], object]
    if what == "resize":
        semaphore = Semaphore(store, "s", 1)
        change, name, key = semaphore.resize, "semaphore_resize", "s/.kvi/settings"
    else:
        election = Election(store, "s", "1")
        assert election.campaign(0)
        change, name = lambda n: election.proclaim(str(n)), "proclaim"
        key = f"s/{election.contenders()[0].id}"
    change(1)
    before = store.get(key)
    assert before is not None

    class HoldsBack:
        is_short = False

        async def execute(self, op: Op[Any], call: Call) -> Any:
            if late or op.name != name or op.effect is Effect.READ:
                return await below.execute(op, call)
            late.append(op)
            raise lost

    store._below = HoldsBack()
    change(2)
    second = store.get(key)
    assert second is not None
    assert second.text == before.text.replace("1", "2")
    change(3)
    (op,) = late
    assert not op.run(store._scope.primitives, 5).succeeded
    third = store.get(key)
    assert third is not None
    assert third.text == before.text.replace("1", "3")


@pytest.mark.parametrize("applied", [True, False])
def test_proclamation_whose_answer_is_lost(store: Faulty, applied: bool) -> None:
    """It is settled by looking; one that others keep it from is `LeaseLost`."""
    election = Election(store, "s", "1")
    assert election.campaign(0)
    (store.loses if applied else store.fails)("proclaim", kvi.OutcomeUnknown("lost"))
    election.proclaim("2")
    leader = election.leader()
    assert leader is not None
    assert leader.value == b"2"
    store.delete_range(prefix="s/")
    with pytest.raises(kvi.LeaseLost):
        election.proclaim("3")
    assert store.count(prefix="s/") == 0


def test_mark_that_somebody_deletes(store: Faulty) -> None:
    """Who has an index has it for as long as its place stands: nobody else gets it."""
    slots = Slots(store, "ids", 3)
    first = slots.claim(0)
    assert store.delete("ids/.kvi/held/0")
    with slots.claim(0) as second:
        assert (first.index, second.index) == (0, 1)
        assert first.held
        first.release()
        with slots.claim(0) as third:
            assert third.index == 0


class Unfair(Smallest):
    """A backend whose locks have no queue: who leads has the key that is named as the election."""

    def __init__(self, store: kvi.Kvi) -> None:
        super().__init__(store, replace(store.capabilities, lock_fair=False))


def test_leader_whose_key_is_taken() -> None:
    """It is at most one leader by the key: who has it no more is told, and deletes no other's."""
    name = f"mem:{secrets.token_hex(8)}"
    with opened(Unfair(kvi.open(name))) as store:
        election = Election(store, "boss", "ours", ttl=1)
        assert election.campaign(0)
        guard = election.guard
        election.proclaim("still ours")
        assert store.txn([guard])
        assert store.delete("boss")
        with store.lease(10) as lease:
            store.store("boss", "theirs", lease=lease)
            assert not store.txn([guard])
            assert election.lost.wait(WITHIN)
            with pytest.raises(kvi.LeaseLost):
                election.resign()
            leader = election.leader()
            assert leader is not None
            assert leader.value == b"theirs"


def test_guard_of_an_earlier_term_without_a_queue() -> None:
    """It names the lease, which therefore leads one term only."""
    name = f"mem:{secrets.token_hex(8)}"
    with opened(Unfair(kvi.open(name))) as store:
        election = Election(store, "boss")
        assert election.campaign(0)
        guard = election.guard
        election.resign()
        assert election.campaign(0)
        assert not store.txn([guard])
        assert store.txn([election.guard])


def test_key_that_somebody_deletes(store: Faulty) -> None:
    """Who is thrown out of the line finds out, and writes nothing more under its guard."""
    lock = RWLock(store, "rw", ttl=1).write()
    assert lock.acquire(0)
    guard = lock.guard
    store.delete_range(prefix="rw/")
    assert not store.txn([guard], [kvi.Put("x", "1")])
    assert lock.lost.wait(WITHIN)
    with pytest.raises(kvi.LeaseLost):
        lock.release()


@pytest.mark.parametrize("all_of_it", [True, False])
@pytest.mark.parametrize("recipe", ["semaphore", "slots"])
def test_settings_that_somebody_deletes(store: Faulty, recipe: str, all_of_it: bool) -> None:
    """They are stored again by who needs them: no object that has seen them waits for ever."""
    semaphore, slots = Semaphore(store, "s", 1), Slots(store, "s", 1)

    def claim_and_release() -> None:
        if recipe == "slots":
            slots.claim(WITHIN).release()
        else:
            assert semaphore.acquire(WITHIN)
            semaphore.release()

    claim_and_release()
    settings = store.get("s/.kvi/settings")
    assert settings is not None
    store.delete_range(prefix="s/" if all_of_it else settings.key)
    claim_and_release()
    again = store.get(settings.key)
    assert again is not None
    assert again.value == settings.value


def test_settings_that_somebody_deletes_while_others_wait(store: Faulty) -> None:
    """Who waits goes on to wait, and gets its turn."""
    first, second = Semaphore(store, "s", 1), Semaphore(store, "s", 1)
    assert first.acquire(0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.acquire, WITHIN)
        until(lambda: len(line(store, "s")) == 2)
        store.delete("s/.kvi/settings")
        until(lambda: store.get("s/.kvi/settings"))
        assert not waiting.done()
        first.release()
        assert waiting.result(WITHIN)


def test_what_is_dropped_is_given_up(store: Faulty) -> None:
    """A slot that nobody has any more is given back, within its ttl."""
    slots = Slots(store, "ids", 1, ttl=0.3)
    slots.claim(0)
    gc.collect()
    claimed = slots.claim(WITHIN)
    assert claimed.index == 0
    claimed.release()


def test_through_a_view_and_a_backend() -> None:
    """A recipe stands where its store does."""
    with kvi.open(f"mem:{secrets.token_hex(8)}") as store:
        with Semaphore(store.namespace("n"), "s", 1):
            assert store.count(prefix="n/s/") == 2
            assert Semaphore(store, "s", 1).acquire(0)
        backend = kvi.Backend(store, "b")
        with Semaphore(backend, "s", 1):
            assert store.count(prefix="b/s/") == 2


def test_observers_of_a_closed_handle() -> None:
    """They end with `Closed`; one that was closed itself just ends."""
    store = kvi.open(f"mem:{secrets.token_hex(8)}")
    election = Election(store, "boss", "a")
    seen = election.observe()
    assert next(seen) is None
    seen.close()
    until(lambda: list(seen) == [])
    seen = election.observe()
    assert next(seen) is None
    store.close()
    with pytest.raises(kvi.Closed):
        next(seen)


@in_loop
async def test_cancelled_waiters() -> None:
    """A task that is cancelled while it waits leaves nothing that could win."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        makes = (
            lambda: awaited.Semaphore(store, "s", 1),
            lambda: awaited.RWLock(store, "rw").write(),
            lambda: awaited.Election(store, "boss", "a"),
        )
        for make in makes:
            async with make() as held:
                waiting = make()
                before = len([1 async for _ in store.range(prefix=held.name)])
                task = asyncio.create_task(waiting.acquire())

                async def came(name: str = held.name, before: int = before) -> bool:
                    return len([1 async for _ in store.range(prefix=name)]) > before

                while not await came():
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert not waiting.held
            last = make()
            assert await last.acquire(WITHIN)
            await last.release()


@in_loop
async def test_cancelled_resignation() -> None:
    """A resignation that is cancelled gives the candidate up."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        election = awaited.Election(store, "boss", "a")
        assert await election.campaign(0)
        task = asyncio.create_task(election.resign())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not election.held
        other = awaited.Election(store, "boss", "b")
        assert await other.campaign(WITHIN)
        await other.resign()


@in_loop
async def test_one_lock_a_task() -> None:
    """The task that holds a lock of an `RWLock` gets `AlreadyHeld` for another one of it."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        lock = awaited.RWLock(store, "rw")
        async with lock.read():
            with pytest.raises(kvi.AlreadyHeld):
                await lock.write().acquire(0)
            other = lock.read()
            assert await asyncio.create_task(other.acquire(0))
            await other.release()
        async with lock.write() as writing:
            await writing.downgrade()
            assert writing.held


@in_loop
async def test_loss_cancels_a_block() -> None:
    """With ``cancel_on_loss`` a block ends with `LeaseLost` once its permit is lost."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        semaphore = awaited.Semaphore(store, "s", 1, ttl=1, cancel_on_loss=True)

        async def block() -> None:
            async with semaphore:
                await store.delete_range(prefix="s/")
                await until_in_loop(lambda: False)

        with pytest.raises(kvi.LeaseLost):
            await block()


def test_locks_of_threads_that_have_ended(store: Faulty) -> None:
    """A thread that holds nothing is not taken for an earlier one, which had the same number."""
    rwlock, kept, got = RWLock(store, "rw"), list[object](), list[bool]()

    def read() -> None:
        lock = rwlock.read()
        got.append(lock.acquire(WITHIN))
        kept.append(lock)

    for _ in range(5):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(WITHIN)
    assert got == [True] * 5


def test_nothing_is_kept_of_former_holders(store: Faulty) -> None:
    """Of those who hold, each is known; of those who do no more, a few at most."""
    rwlock = RWLock(store, "rw")
    lock = rwlock.read()
    assert lock.acquire(WITHIN)

    def use() -> None:
        with rwlock.read():
            pass

    for _ in range(100):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join(WITHIN)
    assert len(rwlock._holders._locks) <= 20
    with pytest.raises(kvi.AlreadyHeld):
        rwlock.read().acquire(0)
    lock.release()
    use()


@in_loop
async def test_nothing_is_kept_of_former_tasks(uri: str) -> None:
    """A task that took a lock is free once it has ended, with its result."""
    async with aio.open(uri, timeout=WITHIN) as store:
        rwlock = awaited.RWLock(store, "rw")

        async def use() -> None:
            async with rwlock.read():
                with pytest.raises(kvi.AlreadyHeld):
                    await rwlock.write().acquire(0)

        ended = []
        for _ in range(50):
            task = asyncio.ensure_future(use())
            ended.append(weakref.ref(task))
            await task
        gc.collect()
        assert sum(one() is not None for one in ended) < 3  # the last one has a name here
        assert len(rwlock._holders._locks) <= 20


def test_observer_outlives_a_store_that_is_away(store: Faulty) -> None:
    """It looks again until the store is there; only who begins is told that it is not."""
    election, seen = Election(store, "boss", "a"), Election(store, "boss").observe()
    store.before["range"] = fails(kvi.Unavailable)
    with pytest.raises(kvi.Unavailable):
        next(seen)
    del store.before["range"]
    assert next(seen) is None
    assert election.campaign(0)
    left = [None] * 3

    def away() -> None:
        if left:
            left.pop()
            raise kvi.Unavailable("away")

    store.before["range"] = away
    leader = next(seen)
    assert leader is not None
    assert leader.value == b"a"
    assert not left
    election.proclaim("b")
    left = [None] * 10**6
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(next, seen, "end")
        until(lambda: len(left) < 10**6 - 1)
        seen.close()
        assert told.result(WITHIN) == "end"


@in_loop
async def test_observer_in_a_task_outlives_a_store_that_is_away(uri: str) -> None:
    """It looks again until the store is there, for asyncio too."""
    async with aio.open(uri, timeout=0.2) as store:
        election, seen = awaited.Election(store, "boss", "a"), awaited.Election(store, "boss")
        leaders = seen.observe()
        assert await anext(leaders) is None
        assert await election.campaign(0)
        primitives, left = store._scope.primitives, [None] * 3
        read = primitives._range

        def away(*arguments: Any) -> Any:
            if left:
                left.pop()
                raise kvi.Unavailable("away") from None
            return read(*arguments)

        primitives._range = away  # type: ignore[method-assign, assignment]
        leader = await anext(leaders)
        assert leader is not None
        assert leader.value == b"a"
        assert not left
        await leaders.close()


def test_value_that_is_that_of_a_lock(store: Faulty, uri: str) -> None:
    """A candidate cannot proclaim what tells a lock from an election, on either face."""
    with pytest.raises(kvi.InvalidArgument, match="cannot proclaim b'lock'"):
        Election(store, "boss", "lock")
    with Election(store, "boss", "locks") as election:
        with pytest.raises(kvi.InvalidArgument, match="cannot proclaim b'lock'"):
            election.proclaim(b"lock")
        leader = Election(store, "boss").leader()
        assert leader is not None
        assert leader.value == b"locks"

    async def too() -> None:
        async with aio.open(uri) as other:
            with pytest.raises(kvi.InvalidArgument, match="cannot proclaim b'lock'"):
                awaited.Election(other, "boss", b"lock")
            async with awaited.Election(other, "boss") as leading:
                with pytest.raises(kvi.InvalidArgument, match="cannot proclaim b'lock'"):
                    await leading.proclaim("lock")

    asyncio.run(too())

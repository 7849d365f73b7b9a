"""The once on a store that fails, and whose answers are lost."""

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
from kvi.recipes import Once

from tests.support.faulty import Faulty
from tests.support.looping import in_loop
from tests.support.waiting import until

WITHIN = 20.0
LOST, AWAY = kvi.OutcomeUnknown("lost"), kvi.Unavailable("away")


@pytest.fixture
def store() -> Iterator[Faulty]:
    """A store that fails as a test wants it."""
    with kvi.open(f"mem:{secrets.token_hex(8)}") as handle:
        yield Faulty(handle)


def contenders(store: kvi.Kvi) -> list[str]:
    """Who stands in line."""
    return [one.key for one in store.range(prefix="m/.kvi/") if one.lease is not None]


@pytest.mark.parametrize("applied", [True, False])
def test_recording_whose_answer_is_lost(store: Faulty, applied: bool) -> None:
    """It is settled: the call returns the result, and it is done once."""
    done: list[int] = []

    def work(_: kvi.Lock) -> str:
        done.append(1)
        return "result"

    (store.loses if applied else store.fails)("once_record", LOST)
    assert Once(store, "m").run(work) == b"result"
    assert Once(store, "m").run(work) == b"result"
    assert done == [1]
    until(lambda: not contenders(store))


def test_recording_that_comes_late(store: Faulty) -> None:
    """One that arrives after it was looked for is a success, though the second is refused."""
    late: list[Any] = []

    def hold_back() -> None:
        if not late:
            late.append(Once(store, "m"))
            raise LOST
        del store.before["once_record"]  # the second finds what the first has done
        (key,) = contenders(store)
        store.txn([], [kvi.Put("m/.kvi/result", "result"), kvi.Delete(key)])

    store.before["once_record"] = hold_back
    assert Once(store, "m").run(lambda _: "result") == b"result"


def test_recording_that_cannot_be_settled(store: Faulty) -> None:
    """What keeps it from looking leaves the fate unknown; the next call finds the result."""
    once = Once(store, "m")

    def work(_: kvi.Lock) -> str:
        store.fails("get", AWAY)
        return "result"

    store.loses("once_record", LOST)
    with pytest.raises(kvi.OutcomeUnknown):
        once.run(work)
    assert once.run(lambda _: pytest.fail("it is done")) == b"result"


def test_turn_that_was_lost(store: Faulty) -> None:
    """Who lost its turn while it worked records nothing, and is told; the next one does it."""
    once, worked = Once(store, "m", ttl=1), []

    def too_long(held: kvi.Lock) -> str:
        guard = held.guard
        store._scope.primitives._lease_revoke(int(contenders(store)[0].rpartition("/")[2], 16), 5)
        assert held.lost.wait(WITHIN)
        assert not store.txn([guard], [kvi.Put("x", "late")])
        worked.append("late")
        return "late"

    with pytest.raises(kvi.LeaseLost):
        once.run(too_long)
    assert once.result() is None
    assert once.run(lambda _: "in time") == b"in time"
    assert once.result() == b"in time"
    assert worked == ["late"]


def test_turn_that_was_lost_unnoticed(store: Faulty) -> None:
    """The guard refuses the recording of who has not noticed yet, and says so."""
    once = Once(store, "m")

    def work(held: kvi.Lock) -> str:
        store.delete_range(prefix="m/")
        assert held.held
        return "late"

    with pytest.raises(kvi.LeaseLost, match="over before that was recorded"):
        once.run(work)
    assert store.get("m/.kvi/result") is None


def test_error_lets_the_next_one_try(store: Faulty) -> None:
    """What it raises comes out of the call that had it, and another who waits does it."""
    begun, going = threading.Event(), threading.Event()
    results: list[bytes] = []

    def fail(_: kvi.Lock) -> str:
        begun.set()
        assert going.wait(WITHIN)
        raise ValueError("as the test wants it")

    def wait() -> None:
        results.append(Once(store, "m").run(lambda _: "second", WITHIN))

    def first() -> None:
        with pytest.raises(ValueError, match="as the test wants it"):
            Once(store, "m").run(fail)

    threads = [threading.Thread(target=first, daemon=True)]
    threads[0].start()
    assert begun.wait(WITHIN)
    threads.append(threading.Thread(target=wait, daemon=True))
    threads[1].start()
    until(lambda: len(contenders(store)) == 2)
    going.set()
    for thread in threads:
        thread.join(WITHIN)
    assert results == [b"second"]


@pytest.mark.parametrize("bad", [7, ["x"], object()])
def test_result_that_cannot_be_recorded(store: Faulty, bad: Any) -> None:
    """It is refused by name, and the next one tries."""
    once = Once(store, "m")
    with pytest.raises(kvi.InvalidArgument, match="bytes, str or None") as caught:
        once.run(lambda _: bad)
    assert caught.value.key == "m"
    assert once.result() is None
    assert once.run(lambda _: None) == b""
    assert once.result() == b""


@pytest.mark.parametrize("timeout", [-1, "1", float("nan")])
def test_bad_timeout(store: Faulty, timeout: Any) -> None:
    """A bad time-out is refused before anything is sent."""
    before = len(store.calls)
    with pytest.raises(kvi.InvalidArgument):
        Once(store, "m").run(lambda _: pytest.fail("not to be run"), timeout)
    assert len(store.calls) == before


def test_interrupted_work(store: Faulty) -> None:
    """An interrupt comes out, and the next one does it."""

    def interrupted(_: kvi.Lock) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Once(store, "m").run(interrupted)
    assert Once(store, "m").run(lambda _: "x", WITHIN) == b"x"


@in_loop
async def test_cancelled_work_and_waiters() -> None:
    """A task that is cancelled while it works or waits leaves nothing that could win."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        once = awaited.Once(store, "m")
        begun = asyncio.Event()

        async def work(_: aio.AsyncLock) -> str:
            begun.set()
            await asyncio.Event().wait()
            return "never"

        async def standing() -> int:
            return len([1 async for one in store.range(prefix="m/.kvi/") if one.lease is not None])

        worker = asyncio.create_task(once.run(work))
        await begun.wait()
        waiter = asyncio.create_task(once.run(work))
        while await standing() < 2:
            await asyncio.sleep(0)
        for task in (waiter, worker):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await once.run(lambda _: "plain", WITHIN) == b"plain"
        assert await once.result() == b"plain"
        while await standing():
            await asyncio.sleep(0)


@in_loop
async def test_coroutine_function() -> None:
    """A coroutine function is awaited, with what is held."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:

        async def work(held: aio.AsyncLock) -> bytes:
            done = await store.txn([held.guard], [kvi.Put("x", "1")])
            assert done.succeeded
            return b"result"

        assert await awaited.Once(store, "m").run(work) == b"result"

"""Leases, temporary keys and locks of `kvi.aio`: kept without the loop, lost, dropped."""

from __future__ import annotations

import asyncio
import gc
import time

import kvi
import pytest
from kvi import aio

from tests.support.looping import in_loop, until, until_so


async def take_away(store: aio.AsyncKvi, prefix: str) -> None:
    """End the lease of the first key below the prefix, as an administrator would."""
    entries = [entry async for entry in store.range(prefix=prefix)]
    assert entries[0].lease is not None
    await asyncio.to_thread(store._scope.primitives._lease_revoke, entries[0].lease, 10)


@in_loop
async def test_blocked_loop(uri: str, ttl: float) -> None:
    """A loop that is blocked for three times the ttl loses no lock, lease or temporary key."""
    async with aio.open(uri, timeout=20) as store:
        async with (
            store.lock("jobs", ttl=ttl, timeout=20) as lock,
            store.lease(ttl) as lease,
            store.temp_key("member", "here", ttl=ttl) as key,
        ):
            await store.store("leased", "v", lease=lease)
            time.sleep(3 * max(ttl, lease.ttl))  # the loop stands still
            assert lock.held
            assert lease.alive
            assert key.alive
            assert (await store.txn([lock.guard], [kvi.Put("done", "1")])).succeeded
            assert await store.get("leased")
            assert await store.get("member")
            assert not any(one.lost.is_set() for one in (lock, lease, key))
        assert await store.get("leased") is None
        assert await store.get("member") is None


@in_loop
async def test_awaited_or_in_a_block(uri: str) -> None:
    """A lease and a temporary key can be awaited and given back, or held for a block."""
    async with aio.open(uri, timeout=20) as store:
        lease = await store.lease(10)
        assert await lease.renew() == lease.ttl
        await store.store("k", "v", lease=lease)
        await lease.revoke()
        await lease.revoke()
        assert await store.get("k") is None
        with pytest.raises(kvi.LeaseLost):
            await store.store("k", "v", lease=lease)
        key = await store.temp_key("members/a", "here")
        assert (await store.get(key.key)) is not None
        await key.close()
        assert await store.get("members/a") is None
        async with store.temp_key("members/b"):
            assert await store.get("members/b")
        task = asyncio.create_task(store.lease(10))  # what is awaited can be a task
        async with await task as lease:
            assert lease.alive
        assert not lease.alive


@in_loop
async def test_lock(uri: str) -> None:
    """One holder at a time; fences grow; others' releases and second acquires are refused."""
    async with aio.open(uri, timeout=20) as store:
        inside, fences = 0, []

        async def work() -> None:
            nonlocal inside
            async with store.lock("jobs", timeout=60) as held:
                inside += 1
                assert inside == 1
                fences.append(held.fence)
                await asyncio.sleep(0.001)
                inside -= 1

        await asyncio.gather(*(work() for _ in range(10)))
        assert len(set(fences)) == 10
        assert fences == sorted(fences)
        lock = store.lock("jobs", timeout=20)
        assert await lock.acquire()
        with pytest.raises(kvi.AlreadyHeld):
            await lock.acquire()
        assert not await lock.lost.wait(0.01)
        waiting = asyncio.create_task(lock.lost.wait())
        await lock.release()
        assert await waiting is False, "given up is not lost"
        with pytest.raises(kvi.NotHeld):
            await store.lock("jobs").release()


@in_loop
async def test_loss(uri: str, ttl: float) -> None:
    """A loss is told by `held`, by `lost`, by call-backs in the loop, and by `LeaseLost`."""
    async with aio.open(uri, timeout=20) as store:
        told: list[str] = []

        async def tell() -> None:
            await store.get("k")
            told.append("coroutine")

        with pytest.raises(kvi.LeaseLost):  # noqa: PT012  (its end is what raises)
            async with store.lock("jobs", ttl=ttl, timeout=20) as lock:
                lock.lost.add_callback(lambda: told.append("plain"))
                lock.lost.add_callback(tell)
                await take_away(store, "jobs/")
                assert await lock.lost.wait(3 * ttl + 20)
                assert not lock.held
                await until(lambda: sorted(told) == ["coroutine", "plain"])


@in_loop
async def test_cancel_on_loss(uri: str, ttl: float) -> None:
    """A loss cancels the block, which ends with `LeaseLost`, and the task goes on."""
    async with aio.open(uri, timeout=20) as store:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(kvi.LeaseLost):  # noqa: PT012  (its end is what raises)
            async with store.lock("jobs", ttl=ttl, timeout=20, cancel_on_loss=True):
                await take_away(store, "jobs/")
                await asyncio.sleep(60)
        assert task.cancelling() == 0
        await asyncio.sleep(0.01)  # and is not cancelled later
        async with store.lock("jobs", ttl=ttl, timeout=3 * ttl + 20, cancel_on_loss=True) as lock:
            assert lock.held


@in_loop
async def test_cancel_on_loss_and_from_outside() -> None:
    """A cancellation from outside comes out as such; so does the block's own exception."""
    async with aio.open("mem:aio-outside") as store:
        begun = asyncio.Event()

        async def hold(error: Exception | None) -> None:
            async with store.lock("jobs", ttl=1, timeout=20, cancel_on_loss=True):
                try:
                    begun.set()
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    if error is not None:
                        raise error from None
                    await asyncio.sleep(0.2)  # the other comes meanwhile
                    raise

        task = asyncio.create_task(hold(None))
        await begun.wait()
        await take_away(store, "jobs/")
        await until(lambda: task.cancelling() == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        begun.clear()
        task = asyncio.create_task(hold(ZeroDivisionError()))
        await begun.wait()
        await take_away(store, "jobs/")
        with pytest.raises(ZeroDivisionError):
            await task
        with pytest.raises(TimeoutError):  # noqa: PT012  (its end is what raises)
            async with asyncio.timeout(0.05):
                async with store.lock("jobs", timeout=20, cancel_on_loss=True):
                    await asyncio.sleep(60)
        async with store.lock("jobs", timeout=20, cancel_on_loss=True):
            pass


@in_loop
async def test_dropped(uri: str) -> None:
    """What is dropped without being given back ends, with a `ResourceWarning`."""
    async with aio.open(uri, timeout=20) as store:

        async def drop_lease() -> None:
            await store.store("leased", "v", lease=await store.lease(60))

        async def drop_temp_key() -> None:
            await store.temp_key("member", ttl=60)

        async def drop_lock() -> None:
            assert await store.lock("jobs", ttl=60).acquire()

        async def drop_watch() -> None:
            await store.watch(prefix="")

        for drop in (drop_lease, drop_temp_key, drop_lock, drop_watch):
            with pytest.warns(ResourceWarning):  # noqa: PT031
                await drop()
                gc.collect()

        async def is_clean() -> bool:
            return not await store.count(prefix="") and not store._scope.ledger._members

        await until_so(is_clean)
        async with store.lock("jobs", timeout=40):
            pass

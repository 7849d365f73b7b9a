"""`update` and `atomically` for tasks; what both faces share is in the conformance suite."""

from __future__ import annotations

import asyncio

import kvi
import pytest
from kvi import aio

from tests.support.looping import in_loop


@in_loop
async def test_coroutine_functions(uri: str) -> None:
    """A function may be a coroutine function, which may use the same handle, or a plain one."""
    async with aio.open(uri, timeout=20) as store:

        async def greet(old: bytes) -> bytes:
            await store.store("beside", "v")
            await asyncio.sleep(0)
            return old + b"!"

        entry = await store.update("k", greet, default="hello")
        assert entry == await store.get("k")
        assert entry is not None
        assert entry.value == b"hello!"
        assert (await store.update("k", lambda old: old + b"?")).value == b"hello!?"  # type: ignore[union-attr]

        async def move(tx: aio.AsyncTx) -> str:
            found = await tx.get("k")
            assert found is not None
            tx.delete("k")
            tx.put("moved", found.value or b"")
            return found.text

        assert await store.atomically(move) == "hello!?"
        assert await store.atomically(lambda tx: tx.put("plain", "v")) is None  # type: ignore[func-returns-value]
        assert [entry.key async for entry in store.range()] == ["beside", "moved", "plain"]


@in_loop
async def test_counting_tasks(uri: str) -> None:
    """Many tasks count at once; none is lost."""
    async with aio.open(uri, timeout=60) as store:

        async def add(old: bytes) -> str:
            await asyncio.sleep(0)
            return str(int(old) + 1)

        await asyncio.gather(*(store.update("k", add, default="0") for _ in range(20)))
        assert (await store.get("k")).value == b"20"  # type: ignore[union-attr]


@in_loop
async def test_reads_at_once(uri: str) -> None:
    """One run reads a key once, however many of its tasks ask for it."""
    async with aio.open(uri, timeout=60) as store:
        await store.store("k", "0")

        async def add(tx: aio.AsyncTx) -> None:
            first, second = await asyncio.gather(tx.get("k"), tx.get("k"))
            assert first == second
            assert first is not None
            tx.put("k", str(int(first.text) + 1))

        async def others() -> None:
            for _ in range(20):
                await store.update("k", lambda old: str(int(old) + 1))

        await asyncio.gather(others(), *(store.atomically(add) for _ in range(20)))
        assert (await store.get("k")).value == b"40"  # type: ignore[union-attr]


@in_loop
async def test_cancelled_in_the_function(uri: str) -> None:
    """Nothing is written, and the error comes out without a word of a write."""
    async with aio.open(uri, timeout=20) as store:
        begun = asyncio.Event()

        async def wait(tx: aio.AsyncTx) -> None:
            tx.put("k", "v")
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(store.atomically(wait))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert not hasattr(raised.value, "__notes__")
        assert await store.get("k") is None
        async with asyncio.timeout(20):
            with pytest.raises(TimeoutError, match="mine"):
                await store.update("k", _failing)
        assert await store.get("k") is None


async def _failing(old: object) -> bytes:
    await asyncio.sleep(0)
    raise TimeoutError("mine")


@in_loop
async def test_closed_meanwhile(uri: str) -> None:
    """Once the handle is closed, the commit is refused."""
    store = aio.open(uri, timeout=20)

    async def close(old: object) -> bytes:
        await store.close()
        return b"v"

    with pytest.raises(kvi.Closed):
        await store.update("k", close)
    async with aio.open(uri, timeout=20) as other:
        assert await other.get("k") is None


@in_loop
async def test_cancelled_at_any_moment(uri: str) -> None:
    """What came back has counted once, and what was cancelled once at the most."""
    async with aio.open(uri, timeout=60) as store:
        done = 0

        async def count() -> None:
            nonlocal done
            await store.update("k", lambda old: str(int(old) + 1), default="0")
            done += 1

        tasks = [asyncio.create_task(count()) for _ in range(60)]
        for number, task in enumerate(tasks):
            await asyncio.sleep(0.002)
            if number % 3 == 0:
                task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in ended)
        counted = int((await store.get("k")).value)  # type: ignore[union-attr, arg-type]
        assert done <= counted <= 60

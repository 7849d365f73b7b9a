"""Watches of `kvi.aio`: iteration, call-backs, their ends; and ranges that are left early."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.driver.loop import THREADS, Loop
from kvi.flow.scope import Scope
from kvi.model import KeyValue, RangeResult, Scan
from kvi_memory.store import MemoryKvi

from tests.support.looping import in_loop, until


@in_loop
async def test_iteration(uri: str) -> None:
    """The present state comes first, then changes; leaving by `break` ends it with its block."""
    async with aio.open(uri, timeout=20) as store:
        await store.store("a/1", "x")
        async with store.watch(prefix="a/", initial=True) as watch:
            await store.store("a/2", "y")
            seen = []
            async for event in watch:
                seen.append((event.key, event.value, event.initial))
                if len(seen) == 2:
                    break
            assert seen == [("a/1", b"x", True), ("a/2", b"y", False)]
            with pytest.raises(kvi.Timeout):
                await watch.next(0.05)
        assert not watch.active
        assert [event async for event in watch] == []
        with pytest.raises(kvi.Closed):
            await watch.next()
        await watch.cancel()


@in_loop
async def test_cancel_wakes(uri: str) -> None:
    """Ending a watch ends the iteration of who waits."""
    async with aio.open(uri) as store:
        watch = await store.watch("k")

        async def read() -> list[kvi.Event]:
            return [event async for event in watch]

        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await watch.cancel()
            assert await task == []


@in_loop
async def test_callbacks(uri: str) -> None:
    """A call-back begins at once, runs in the loop, one event at a time, until it says False."""
    async with aio.open(uri, timeout=20) as store:
        plain: list[tuple[str, Any, int]] = []
        waiting: list[str] = []
        inside = 0

        def tell(event: kvi.Event, data: Any) -> bool:
            plain.append((event.key, data, threading.get_ident()))
            return len(plain) < 2

        async def wait(event: kvi.Event, data: Any) -> bool:
            nonlocal inside
            inside += 1
            assert inside == 1
            await store.get("k")
            inside -= 1
            waiting.append(event.key)
            return len(waiting) < 3

        store.watch(prefix="a/", callback=tell, user_data=7)  # not awaited
        watch = await store.watch(prefix="a/", callback=wait)
        with pytest.raises(kvi.InvalidArgument):
            await watch.next()
        await until(lambda: len(store._scope.ledger._members) == 2)
        gc.collect()
        for number in range(4):
            await store.store(f"a/{number}", "x")
        await until(lambda: not store._scope.ledger._members)
        assert plain == [(key, 7, threading.get_ident()) for key in ("a/0", "a/1")]
        assert waiting == ["a/0", "a/1", "a/2"]


@in_loop
async def test_callback_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """What a call-back raises is logged, and its watch goes on; so is a watch that cannot begin."""
    async with aio.open("mem:aio-callbacks") as store:
        seen = []

        async def fail(event: kvi.Event, data: Any) -> None:
            seen.append(event.key)
            raise ZeroDivisionError

        with caplog.at_level(logging.ERROR, "kvi"):
            watch = await store.watch("k", callback=fail)
            for _ in range(3):
                await store.store("k", "v")
            await until(lambda: len(seen) == 3)
            await watch.cancel()
            store.watch(callback=fail)
            await until(lambda: "could not begin" in caplog.text)
        assert caplog.text.count("ZeroDivisionError") >= 3
        await store.store("k", "v")
        assert len(seen) == 3


class Odd(BaseException):
    """No `Exception`."""


@pytest.mark.parametrize("error", [Odd(), BaseExceptionGroup("several", [Odd()])])
@in_loop
async def test_callback_that_raises_no_exception(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged as any other, and the watch goes on."""
    async with aio.open("mem:aio-odd") as store:
        seen = []

        def fail(event: kvi.Event, data: Any) -> None:
            seen.append(event.key)
            raise error

        watch = await store.watch("k", callback=fail)
        for number in (1, 2):
            await store.store("k", "v")
            await until(lambda number=number: len(seen) == number)  # type: ignore[misc]
        assert watch.active
        assert caplog.text.count("the watch goes on") == 2


@in_loop
async def test_cancel_from_its_own_callback() -> None:
    """A call-back may end its own watch; `cancel` waits for one that is running elsewhere."""
    async with aio.open("mem:aio-own") as store:
        done = asyncio.Event()

        async def end(event: kvi.Event, data: Any) -> None:
            await watch.cancel()
            done.set()

        watch = await store.watch("k", callback=end)
        await store.store("k", "v")
        async with asyncio.timeout(0.8):
            await done.wait()
        inside, ended = asyncio.Event(), False

        async def slow(event: kvi.Event, data: Any) -> None:
            nonlocal ended
            inside.set()
            await asyncio.sleep(0.1)
            ended = True

        other = await store.watch("k", callback=slow)
        await store.store("k", "v")
        await inside.wait()
        await other.cancel()
        assert ended


@in_loop
async def test_close_ends_callbacks(uri: str) -> None:
    """Closing the handle ends its call-backs' watches, and no task of them is left."""
    async with aio.open(uri) as store:
        store.watch(prefix="", callback=print)
        await store.watch(prefix="", callback=print)
    await until(lambda: len(asyncio.all_tasks()) == 1)


class Pages(MemoryKvi):
    """A memory store whose ranges come page by page, on threads."""

    in_place = frozenset()
    open_passes = 0

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        entries = list(super()._range(scan, timeout))

        def pages() -> Iterator[list[KeyValue]]:
            self.open_passes += 1
            try:
                for entry in entries:
                    yield [entry]
            finally:
                self.open_passes -= 1

        return RangeResult(1, pages)


@in_loop
async def test_range_that_is_left() -> None:
    """A range that is left by `break`, or whose task is cancelled, frees what it holds."""
    runtime = Loop()
    primitives = Pages("mem:aio-pages", "aio-pages", timeout=5)
    async with aio.AsyncKvi(Scope(runtime, primitives)) as store:
        for number in range(5):
            await store.store(f"k{number}", "v")
        async for entry in store.range():
            assert entry.key == "k0"
            break
        await until(lambda: not primitives.open_passes)
        rows = await store.range(reverse=True, limit=3)
        assert rows.revision == 1
        for _ in range(2):
            assert [entry.key async for entry in rows] == ["k4", "k3", "k2"]

        async def read() -> None:
            async for _ in rows:
                await asyncio.sleep(60)

        task = asyncio.create_task(read())
        await until(lambda: primitives.open_passes)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not primitives.open_passes)
        with pytest.raises(kvi.InvalidArgument):
            await store.range(limit=-1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])
@in_loop
async def test_thousands_on_one_handle(uri: str, number: int) -> None:
    """They are begun at once, share threads and connections, and each gets what is its own."""
    if number > 1_000 and not uri.startswith("etcd"):
        pytest.skip("that many are for etcd")
    before = threading.active_count()
    async with aio.open(uri, timeout=60) as store:
        watches = await asyncio.gather(*(store.watch(f"w/{n}") for n in range(number)))
        chosen = range(0, number, number // 50)
        waiting = [asyncio.create_task(watches[n].next(60)) for n in range(number)]
        await asyncio.gather(*(store.store(f"w/{n}", str(n)) for n in chosen))
        events = await asyncio.gather(*(waiting[n] for n in chosen))
        assert [event.value for event in events] == [str(n).encode() for n in chosen]
        await until(lambda: threading.active_count() - before <= THREADS + 10)
        for task in waiting:
            task.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(one, asyncio.CancelledError) for one in ended) == number - 50
        await asyncio.gather(*(watch.cancel() for watch in watches))
    await until(lambda: threading.active_count() <= before + 1)

"""Handles of `kvi.aio`: opening, loops, forks, many calls at once, and the loop's own time."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import closing, suppress
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.driver.loop import THREADS

from tests.servers import ConsulServer, EtcdServer
from tests.support import stalls
from tests.support.forking import in_child, refuses
from tests.support.looping import held, in_loop, ticking, until
from tests.support.waiting import until as until_sync

MODULE_LEVEL = aio.open("mem:aio-module")


def threads_of_kvi() -> list[str]:
    """The names of kvi's own threads in this process."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kvi-")]


def test_import_is_left_to_those_who_ask() -> None:
    """`import kvi` imports no asyncio; `kvi.aio` is there when it is asked for."""
    program = (
        "import sys, kvi; assert 'asyncio' not in sys.modules; "
        "assert kvi.aio.open('mem:').uri == 'mem:'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_opened_at_module_level() -> None:
    """A handle that was opened without a loop serves the loop of its first use."""

    async def use() -> None:
        async with MODULE_LEVEL as store:
            await store.store("k", "v")
            entry = await store.get("k")
            assert entry is not None
            assert entry.text == "v"

    asyncio.run(use())
    assert MODULE_LEVEL.closed


def test_bad_uri() -> None:
    """What is wrong with a URI is told by `open`."""
    with pytest.raises(kvi.UnknownBackend):
        aio.open("nobody:")
    with pytest.raises(kvi.InvalidOption):
        aio.open("mem:?timeout=soon")


def test_another_loop() -> None:
    """A handle belongs to the loop of its first use; another may close it once that is closed."""
    store = aio.open("mem:aio-loops")
    view = store.namespace("n")

    async def use() -> None:
        await store.store("k", "v")

    asyncio.run(use())

    async def misuse() -> None:
        for call in (
            store.get("k"),
            store.store("k", "w"),
            view.get("k"),
            store.range(prefix=""),
            store.lease(10),
            store.lock("jobs").acquire(),
            store.watch("k"),
            store.ping(),
        ):
            with pytest.raises(kvi.WrongLoop):
                await call
        await store.close()
        with pytest.raises(kvi.Closed):
            await store.get("k")

    asyncio.run(misuse())


def test_loop_of_another_thread() -> None:
    """While its loop runs, another loop can neither use nor close it."""

    async def main() -> None:
        async with aio.open("mem:aio-threads") as store:
            await store.store("k", "v")

            def misuse() -> None:
                with pytest.raises(kvi.WrongLoop):
                    asyncio.run(store.close())

            await asyncio.to_thread(misuse)
            assert await store.get("k")

    asyncio.run(main())


def test_fork(uri: str) -> None:
    """In a child every use raises `UsedAfterFork`, whatever runs there; the parent goes on."""

    async def main() -> None:
        async with aio.open(uri) as store:
            lock, watch = store.lock("jobs"), await store.watch(prefix="")
            assert await lock.acquire()

            def child() -> None:
                async def use() -> None:
                    for call in (store.get("k"), store.store("k", "v"), watch.next(1)):
                        refuses(lambda call=call: call.send(None))  # type: ignore[misc]
                    await store.close()
                    await watch.cancel()
                    await lock.release()

                asyncio.events._set_running_loop(None)
                asyncio.run(use())
                assert not lock.held

            assert in_child(child) == 0
            assert lock.held
            await lock.release()
            await watch.cancel()

    asyncio.run(main())


def test_fork_in_a_block(uri: str) -> None:
    """A child that leaves the blocks that it was forked in gives nothing back, and never waits."""

    async def main() -> None:
        async with aio.open(uri) as store:
            queue = aio.recipes.Queue(store, "jobs")
            await queue.put("v")
            job = await queue.get(timeout=5)
            assert job is not None
            member = await aio.recipes.Group(store, "workers").join()

            def child() -> None:
                async def leave() -> None:
                    for held in (member, job):
                        with suppress(SystemExit):
                            async with held:
                                sys.exit()

                asyncio.events._set_running_loop(None)
                asyncio.run(leave())

            with member._flow._lock, job._flow._lock:  # as threads of the parent may have them
                assert in_child(child) == 0
            assert member.alive
            assert job.held
            await job.ack()
            await member.leave()

    asyncio.run(main())


@in_loop
async def test_close_leaves_no_thread(uri: str) -> None:
    """Closing wakes who waits with `Closed`, and ends all threads; again, it does nothing."""
    before = set(threading.enumerate())
    store = aio.open(uri)
    watch = await store.watch(prefix="none/")
    first, second = store.lock("jobs"), store.lock("jobs")
    assert await first.acquire()
    waiting = [
        asyncio.ensure_future(call) for call in (watch.next(), second.acquire(), first.lost.wait())
    ]
    await asyncio.sleep(0.05)
    await store.close()
    for task in waiting:
        with pytest.raises(kvi.Closed):
            await task
    assert not first.held
    await first.release()
    await watch.cancel()
    await store.close()
    await until(lambda: not set(threading.enumerate()) - before - {threading.main_thread()})
    async with aio.open(uri) as other, other.lock("jobs", timeout=30):
        pass


@in_loop
async def test_cancelled_close_goes_on(sqlite_uri: str) -> None:
    """A close that is cancelled counts as closed, and goes on in the background."""
    store = aio.open(sqlite_uri)
    lock = store.lock("jobs", ttl=60)
    assert await lock.acquire()
    with held(store, "_lease_revoke") as inside:
        closing = asyncio.create_task(store.close())
        await until(lambda: inside)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert store.closed
        with pytest.raises(kvi.Closed):
            await store.get("k")
    async with aio.open(sqlite_uri) as other, other.lock("jobs", timeout=20):
        pass


@in_loop
async def test_ten_thousand_calls(uri: str) -> None:
    """One handle takes 10,000 calls at once, each with its own answer, on bounded threads."""
    async with aio.open(uri, timeout=100) as store:
        for number in range(100):
            await store.store(f"k{number}", str(number))
        before, most = threading.active_count(), 0

        async def call(number: int) -> None:
            nonlocal most
            entry = await store.get(f"k{number % 100}")
            assert entry is not None
            assert entry.text == str(number % 100)
            most = max(most, threading.active_count())

        await asyncio.gather(*(call(number) for number in range(10_000)))
        assert most - before <= THREADS + 8  # and those that wait for leases and timers


@in_loop
async def test_slow_calls_stop_no_other(sqlite_uri: str) -> None:
    """Calls that the store does not answer stop neither others nor the loop."""
    async with aio.open(sqlite_uri) as store:
        await store.store("k", "v")
        with held(store, "_get") as inside:
            slow = [asyncio.create_task(store.get("k", timeout=50)) for _ in range(8)]
            await until(lambda: inside)
            async with ticking() as ticks:
                with stalls.watched() as machine:
                    for number in range(20):
                        await store.store("other", str(number))
            assert ticks.longest < 0.05 + 2 * machine.longest
        assert {entry.text for entry in await asyncio.gather(*slow) if entry} == {"v"}


@in_loop
async def test_no_place_in_time(sqlite_uri: str) -> None:
    """Waiting for a place among many calls counts: `Timeout`, and it was never sent."""
    async with aio.open(sqlite_uri) as store:
        with held(store, "_get"):
            slow = [asyncio.create_task(store.get("k", timeout=50)) for _ in range(THREADS + 1)]
            await until(lambda: len(store._runtime.jobs.threads) == THREADS)
            with pytest.raises(kvi.Timeout):
                await store.store("late", "v", timeout=0.2)
        await asyncio.gather(*slow)
        assert await store.get("late") is None


@in_loop
async def test_memory_gives_others_a_turn() -> None:
    """A task that only asks the memory store can be cancelled, and does not stop the loop."""
    async with aio.open("mem:aio-turns") as store:
        await store.store("k", "v")

        async def ask() -> None:
            while True:
                await store.get("k")
                await store.txn([kvi.Key("k").exists], [kvi.Put("k", b"v")])

        async with ticking() as ticks:
            with stalls.watched() as machine:
                task = asyncio.create_task(ask())
                await asyncio.sleep(0.3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert ticks.longest < 0.05 + 2 * machine.longest


@in_loop
async def test_memory_needs_no_threads() -> None:
    """Whatever it is asked for by tasks is done in the loop."""
    async with aio.open("mem:aio-in-loop") as store:
        async with store.lock("l") as lock:
            lease = await store.lease(60)
            await store.store("k", "v", lease=lease)
            await lease.renew()
            assert lock.held
        async with store.temp_key("t"):
            await lease.revoke()
        assert len(await store.history("k")) == 2
        assert not store._runtime.jobs.threads


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(EtcdServer, marks=pytest.mark.etcd),
        pytest.param(ConsulServer, marks=pytest.mark.consul),
    ],
)
def test_paused_server(kind: type[EtcdServer | ConsulServer]) -> None:
    """While a server is paused, calls end in their time and the loop is never blocked."""

    async def main(server: EtcdServer | ConsulServer) -> None:
        async with aio.open(server.uri, timeout=2) as store:
            await store.store("k", "v")
            watch = await store.watch("k")
            lease = await store.lease(30)
            async with ticking() as ticks:
                with stalls.watched() as machine:
                    server.pause()
                    try:
                        began = time.monotonic()
                        calls = (
                            *(store.get("k") for _ in range(20)),
                            *(store.store("k", str(n)) for n in range(20)),
                            store.lock("jobs").acquire(),
                            store.lease(30),
                            store.watch("k"),
                            lease.renew(),
                            watch.next(1),
                        )
                        results = await asyncio.gather(*calls, return_exceptions=True)
                        took = time.monotonic() - began
                    finally:
                        server.resume()
            assert all(isinstance(result, kvi.KviError) for result in results)
            assert took < 10 + machine.longest
            assert ticks.longest < 0.05 + 2 * machine.longest
            await until(lambda: server)
            deadline = time.monotonic() + 30
            while True:
                try:
                    assert await store.get("k")
                    break
                except kvi.KviError:
                    assert time.monotonic() < deadline
            await watch.cancel()
            await lease.revoke()

    with kind() as server:
        asyncio.run(main(server))


@in_loop
async def test_locked_file(sqlite_uri: str) -> None:
    """While another program has the file locked, calls end in their time and the loop goes on."""
    async with aio.open(sqlite_uri, timeout=0.5) as store:
        await store.store("k", "v")
        path = sqlite_uri.removeprefix("sqlite:")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with ticking() as ticks:
                with stalls.watched() as machine:
                    calls = (
                        *(store.store("k", str(n)) for n in range(10)),
                        store.lease(10),
                        store.lock("jobs").acquire(),
                    )
                    results = await asyncio.gather(*calls, return_exceptions=True)
                    assert await store.get("k")  # readers do not wait for writers
            assert ticks.longest < 0.05 + 2 * machine.longest
            assert all(isinstance(result, kvi.KviError) for result in results)
        await store.store("k", "w", timeout=20)


@in_loop
async def test_leaving_the_block_is_bounded(sqlite_uri: str) -> None:
    """The end of ``async with`` comes within the time-out, though the store does not answer."""
    store = aio.open(sqlite_uri, timeout=1)
    lease = await store.lease(60)
    with held(store, "_lease_revoke"):
        began = time.monotonic()
        await store.close()
        assert time.monotonic() - began < 1 + 1 + 3  # time-out, the end of threads, a busy machine
    assert not lease.alive


def test_interrupt_of_the_main_thread(uri: str) -> None:
    """Ctrl-C ends `asyncio.run` by cancelling: the lock that was held is free for others."""

    async def main() -> None:
        async with aio.open(uri) as store, store.lock("jobs", timeout=20):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            await asyncio.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    with kvi.open(uri) as other, other.lock("jobs", timeout=30):
        pass
    until_sync(lambda: "kvi-calls" not in threads_of_kvi())


@in_loop
async def test_errors_have_their_place() -> None:
    """Errors of what is no call to the store say where they come from as well."""
    store = aio.open("mem:aio-places")
    channel = aio.Backend(store).enable_liveness_channel()
    await channel.get()  # the present state
    lease, watch = await store.lease(20), await store.watch("k")

    async def elsewhere(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
        await asyncio.to_thread(lambda: asyncio.run(call()))

    calls: list[tuple[Coroutine[Any, Any, object], str]] = [
        (channel.get(0), "liveness"),
        (channel.get(-1), "liveness"),
        (lease.lost.wait(-1), "wait"),
        (aio.recipes.Semaphore(store, "few", 1).resize(0), "resize"),
        (elsewhere(store.close), "close"),
        (elsewhere(watch.cancel), "cancel"),
    ]
    closed: list[tuple[Coroutine[Any, Any, object], str]] = [
        (channel.get(), "liveness"),
        (lease.lost.wait(), "wait"),
        (aio.recipes.Sequence(store, "numbers").next(), "next"),
    ]
    for some in (calls, closed):
        for call, operation in some:
            with pytest.raises(kvi.KviError) as caught:
                await call
            error = caught.value
            assert (error.operation, error.uri) == (operation, "mem:aio-places"), error
        await store.close()


@in_loop
async def test_range_shared_by_tasks(uri: str) -> None:
    """Tasks that share an iteration share its entries: each goes to one of them, none is missed."""
    async with aio.open(uri) as store:
        keys = [f"k{number:04}" for number in range(2000)]
        for start in range(0, 2000, 50):
            await store.txn(then=[kvi.Put(key, b"x" * 1000) for key in keys[start : start + 50]])
        for shared in (aiter(store.range(prefix="k")), aiter(await store.range(prefix="k"))):

            async def some(entries: AsyncIterator[kvi.KeyValue]) -> list[str]:
                return [entry.key async for entry in entries]

            parts = await asyncio.gather(*(some(shared) for _ in range(5)))
            assert sorted(key for part in parts for key in part) == keys


@in_loop
async def test_observation_shared_by_tasks(uri: str) -> None:
    """Tasks that share an observer share what it tells: each event goes to one of them."""
    async with aio.open(uri) as store, aio.open(uri) as other:
        workers = aio.recipes.Group(store, "workers")
        seen: list[tuple[str, str]] = []

        async def some(events: AsyncIterator[aio.recipes.MemberEvent]) -> None:
            async for event in events:
                seen.append((event.type.name, event.member.id))  # noqa: PERF401  (it never ends)

        async with workers.watch() as shared:
            tasks = [asyncio.create_task(some(shared)) for _ in range(5)]
            await asyncio.sleep(0)
            ids = [f"w{number}" for number in range(10)]
            members = [await aio.recipes.Group(other, "workers").join(id=id) for id in ids]
            await until(lambda: len(seen) >= 10)
            for member in members:
                await member.leave()
            await until(lambda: len(seen) >= 20)
        await asyncio.gather(*tasks)
        assert sorted(seen) == sorted((kind, id) for kind in ("JOINED", "LEFT") for id in ids)

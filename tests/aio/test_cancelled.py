"""Cancelled tasks: `CancelledError` always comes out, and leaves everything whole."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.feed import Batch, Feed
from kvi.model import Grant

from tests.support.looping import held, in_loop, until, until_so

FEW, MANY = 300, 10_000


@in_loop
async def test_storm(uri: str, ttl: float) -> None:
    """Hundreds of cancellations among healthy calls: no mixed answers, and nothing is left."""
    await storm(uri, ttl, FEW)


@pytest.mark.soak
def test_long_storm(uri: str, ttl: float) -> None:
    """Ten thousand of them."""
    asyncio.run(storm(uri, ttl, MANY))


async def storm(uri: str, ttl: float, count: int) -> None:
    """Cancel ``count`` calls of all kinds at random moments."""
    ttl = max(ttl, 5.0)  # a busy machine is no loss
    seed = random.SystemRandom().randrange(2**32)
    choice = random.Random(seed)
    async with aio.open(uri, timeout=20) as store:
        over = False

        async def healthy(number: int) -> int:
            """A caller who knows what every answer must be."""
            calls = 0
            while not over:
                value = f"{number}.{calls}".encode()
                revision = await store.store(f"healthy/{number}", value)
                entry = await store.get(f"healthy/{number}")
                assert entry is not None
                assert (entry.value, entry.revision) == (value, revision), seed
                assert await store.tas(f"healthy/{number}", value, b"x"), seed
                assert [e.key async for e in store.range(f"healthy/{number}", limit=1)] == [
                    f"healthy/{number}"
                ], seed
                calls += 1
            return calls

        async def block(number: int) -> None:
            async with store.lock(f"locks/{number % 3}", ttl=ttl, timeout=5) as lock:
                await store.txn([lock.guard], [kvi.Put("sick/lock", b"")])

        async def leased(number: int) -> None:
            async with store.lease(ttl) as lease:
                await store.store(f"left/{number}", b"", lease=lease)

        async def temporary(number: int) -> None:
            async with store.temp_key(f"left/t{number}", ttl=ttl):
                await asyncio.sleep(choice.random() / 100)

        async def watching(number: int) -> None:
            async with store.watch(prefix="healthy/", initial=True) as watch:
                async for _ in watch:
                    pass

        async def everything(number: int) -> None:
            async for _ in store.range():
                await asyncio.sleep(0)

        kinds: list[Callable[[int], Coroutine[Any, Any, Any]]] = [
            block,
            leased,
            temporary,
            watching,
            everything,
            lambda number: store.get("healthy/0"),
            lambda number: store.store("sick/a", str(number)),
            lambda number: store.tas("sick/b", None, str(number)),
        ]
        workers = [asyncio.create_task(healthy(number)) for number in range(4)]
        victims = []
        for number in range(count):
            victim = asyncio.create_task(choice.choice(kinds)(number))
            victims.append(victim)
            await asyncio.sleep(choice.random() / 200)
            choice.choice(victims[-8:]).cancel()
            if number >= 50:
                victims[number - 50].cancel()  # else those that only watch grow more and more
        for victim in victims:
            victim.cancel()
        results = await asyncio.gather(*victims, return_exceptions=True)
        over = True
        assert all(calls > 3 for calls in await asyncio.gather(*workers)), seed
        strange = [
            result
            for result in results
            if isinstance(result, BaseException)
            and not isinstance(result, asyncio.CancelledError | kvi.LockTimeout)
        ]
        assert not strange, seed
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) > count / 10

        async def is_clean() -> bool:
            """Of those that were cancelled neither claim nor key nor watch is left."""
            idle = {lease.id for lease, _, _ in store._scope.ledger._idle}
            members = {getattr(one, "id", None) for one in store._scope.ledger._members}
            left = await store.count(prefix="locks/") + await store.count(prefix="left/")
            return not left and members <= idle

        factor = store.capabilities.lease_expiry_factor + store.capabilities.lock_delay_factor
        await until_so(is_clean, within=factor * ttl + 1 + 5)
        for number in range(3):
            async with store.lock(f"locks/{number}", ttl=ttl, timeout=2 * ttl):
                pass


@in_loop
async def test_note_on_a_write(sqlite_uri: str) -> None:
    """A write that was cancelled after it was sent says that it may have applied; a read does not.

    One that was never sent does not say so either, and is not there.
    """
    async with aio.open(sqlite_uri) as store:
        for call, name, notes in (
            (store.store("k", "v"), "_put", 1),
            (store.tas("k", None, "v"), "_txn", 1),
            (store.get("k"), "_get", 0),
        ):
            with held(store, name) as inside:
                task = asyncio.create_task(call)
                await until(lambda inside=inside: inside)  # type: ignore[misc]
                task.cancel()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await task
            assert len(getattr(caught.value, "__notes__", [])) == notes, name
        task = asyncio.create_task(store.store("never", "v"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert not hasattr(caught.value, "__notes__")
        assert await store.get("never") is None


@in_loop
async def test_note_after_a_doubt(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does one that is cancelled while it waits to be sent again: the first try may stand."""
    policy = kvi.RetryPolicy(min_wait=60, max_wait=60, jitter=0, idempotent=True)
    async with aio.open(sqlite_uri, retry=policy, timeout=600) as store:
        primitives, tries = store._scope.primitives, list[int]()
        real = primitives._put

        def put(*arguments: Any) -> int:
            tries.append(real(*arguments))
            raise kvi.OutcomeUnknown("the answer is lost")

        monkeypatch.setattr(primitives, "_put", put)
        task = asyncio.ensure_future(store.store("k", "v"))
        await until(lambda: tries and any(port.waits for port in store._runtime.awaited))
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert "may have applied" in "".join(getattr(caught.value, "__notes__", []))
        assert await store.get("k") is not None


async def counter(store: aio.AsyncKvi) -> Callable[[], Any]:
    """An addition."""
    one = aio.recipes.Counter(store, "c")
    await one.add()
    return one.add


async def queue(store: aio.AsyncKvi) -> Callable[[], Any]:
    """A new job."""
    one = aio.recipes.Queue(store, "q")
    await one.put("first")
    return lambda: one.put("second")


async def job(store: aio.AsyncKvi) -> Callable[[], Any]:
    """The end of a job."""
    one = aio.recipes.Queue(store, "q")
    await one.put("first")
    found = await one.get()
    assert found is not None
    return found.ack


async def member(store: aio.AsyncKvi) -> Callable[[], Any]:
    """Another value of a member."""
    one = await aio.recipes.Group(store, "g").join("first")
    return lambda: one.update("second")


async def leader(store: aio.AsyncKvi) -> Callable[[], Any]:
    """What a leader says, which may be said twice."""
    one = aio.recipes.Election(store, "l")
    await one.campaign()
    return lambda: one.proclaim("second")


@pytest.mark.parametrize("make", [counter, queue, job, member, leader])
@in_loop
async def test_note_of_recipes(
    sqlite_uri: str, make: Callable[[aio.AsyncKvi], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a recipe was about to write has the note as well; what it was about to read has not."""
    async with aio.open(sqlite_uri) as store:
        call, primitives = await make(store), store._scope.primitives
        sent, gate, real = list[kvi.model.Txn](), threading.Event(), primitives._txn

        def txn(asked: kvi.model.Txn, timeout: float) -> kvi.TxnResult:
            if any(isinstance(one, kvi.Put | kvi.Delete) for one in asked.then):
                sent.append(asked)
                gate.wait(timeout)
            return real(asked, timeout)

        monkeypatch.setattr(primitives, "_txn", txn)
        try:
            task = asyncio.ensure_future(call())
            await until(lambda: sent)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert "may have applied" in "".join(getattr(caught.value, "__notes__", []))
        finally:
            gate.set()
        with held(store, "_range") as inside:
            task = asyncio.ensure_future(aio.recipes.Election(store, "e").leader())
            await until(lambda: inside)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
        assert not hasattr(caught.value, "__notes__")


class Watched(Feed):
    """A feed that knows whether it was closed."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.revision, self.interval = feed.revision, feed.interval
        self.closed = False

    def poll(self, timeout: float) -> Batch | None:
        """As the other."""
        return self._feed.poll(timeout)

    def close(self) -> None:
        """Close both."""
        self.closed = True
        self._feed.close()


@in_loop
async def test_answer_and_cancellation_at_once(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation that comes together with the answer comes out, and the answer is freed."""
    async with aio.open(sqlite_uri) as store:
        feeds: list[Watched] = []
        primitives, jobs = store._scope.primitives, store._runtime.jobs
        begin, real = primitives._watch, jobs.submit

        def watch(*arguments: Any) -> Feed:
            feeds.append(Watched(begin(*arguments)))
            return feeds[-1]

        def submit(job: Any) -> bool:
            job.settled.add_done_callback(lambda _: task.cancel())
            return real(job)

        monkeypatch.setattr(primitives, "_watch", watch)
        monkeypatch.setattr(jobs, "submit", submit)
        for _ in range(20):
            task = asyncio.ensure_future(store.watch("k"))
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: len(feeds) == 20 and all(feed.closed for feed in feeds))
        assert not store._scope.ledger._members


@in_loop
async def test_lease_that_nobody_got(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is granted to a task that has gone is revoked at once, whatever its ttl."""
    async with aio.open(sqlite_uri) as store:
        primitives = store._scope.primitives
        granted, revoked = list[int](), list[int]()
        grant, revoke = primitives._lease_grant, primitives._lease_revoke

        def granting(ttl: float, timeout: float) -> Grant:
            made = grant(ttl, timeout)
            granted.append(made.id)
            return made

        def revoking(lease: int, timeout: float) -> None:
            revoked.append(lease)
            revoke(lease, timeout)

        monkeypatch.setattr(primitives, "_lease_grant", granting)
        monkeypatch.setattr(primitives, "_lease_revoke", revoking)
        with held(store, "_lease_grant") as inside:
            task = asyncio.ensure_future(store.lease(3600))
            await until(lambda: inside)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: granted and revoked == granted)


@in_loop
async def test_next_loses_nothing(uri: str) -> None:
    """However often `next` is cancelled, each event comes once, in order."""
    async with aio.open(uri, timeout=20) as store:
        if not store.capabilities.watch_history:
            return  # there an event may stand for several changes
        async with store.watch(prefix="n/") as watch:

            async def write() -> None:
                for number in range(200):
                    await store.store("n/k", str(number))
                    await asyncio.sleep(random.random() / 500)

            writing = asyncio.create_task(write())
            seen: list[int] = []
            while len(seen) < 200:
                try:
                    async with asyncio.timeout(random.random() / 200):
                        event = await watch.next()
                        assert event.value is not None
                        seen.append(int(event.value))
                except TimeoutError:
                    pass
            await writing
        assert seen == list(range(200))


@in_loop
async def test_time_limit_is_the_builtin(uri: str) -> None:
    """`asyncio.timeout` gives the builtin `TimeoutError`, and the lock that was waited for is free.

    Who waits next gets it as soon as its holder is out.
    """
    async with aio.open(uri) as store, aio.open(uri) as other:
        async with store.lock("jobs", timeout=20):
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.2), other.lock("jobs"):
                    raise AssertionError("two holders")
            assert not isinstance(caught.value, kvi.KviError)
            with pytest.raises(kvi.LockTimeout):
                async with other.lock("jobs", timeout=0):
                    raise AssertionError("two holders")
        async with other.lock("jobs", timeout=20):
            pass


@in_loop
async def test_cancelled_block_does_not_wait(sqlite_uri: str) -> None:
    """A block that is cancelled ends at once though the store does not answer."""
    async with aio.open(sqlite_uri) as store, aio.open(sqlite_uri) as other:

        async def hold(begun: asyncio.Event) -> None:
            async with store.lock("jobs", ttl=60), store.temp_key("member", ttl=60):
                begun.set()
                await asyncio.sleep(60)

        begun = asyncio.Event()
        task = asyncio.create_task(hold(begun))
        await begun.wait()
        with held(store, "_lease_revoke"), held(store, "_lock_release"):
            task.cancel()
            async with asyncio.timeout(2):
                with pytest.raises(asyncio.CancelledError):
                    await task
        async with other.lock("jobs", timeout=20):
            pass

        async def is_gone() -> bool:
            return await other.get("member") is None

        await until_so(is_gone)


@in_loop
async def test_range_goes_on(sqlite_uri: str) -> None:
    """An iteration whose page was cancelled goes on where it was, and misses nothing."""
    async with aio.open(sqlite_uri) as store:
        value = b"x" * 5000
        keys = [f"k{number:04}" for number in range(2000)]
        for start in range(0, 2000, 100):
            await store.txn(then=[kvi.Put(key, value) for key in keys[start : start + 100]])
        rows = await store.range(prefix="k")
        await store.delete_range(prefix="k")
        seen: list[str] = []
        entries = aiter(rows)

        async def some(entries: AsyncIterator[kvi.KeyValue]) -> None:
            async for entry in entries:
                seen.append(entry.key)  # noqa: PERF401  (one by one: it is cancelled amid)

        for _ in range(20):
            task = asyncio.create_task(some(entries))
            await asyncio.sleep(random.random() / 200)
            task.cancel()
            await asyncio.wait([task])
        await some(entries)
        assert seen == keys
        entries = aiter(store.range(prefix="k"))
        with held(store, "_range"), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(entries)
        assert [entry async for entry in entries] == []  # what there is by now
        assert [entry.key async for entry in rows] == keys

"""Caches beside writers: what is claimed is there, and what is told adds up."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.aio import recipes as awaited
from kvi.backend.polling import PollingFeed
from kvi.call import Call
from kvi.coroutine import run
from kvi.driver.threads import ThreadPort
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.flow.recipes.cache import CacheFlow
from kvi.model import Event, EventType, KeyValue
from kvi.recipes import Cache, CacheChange

from tests.support.backends import Smallest, opened
from tests.support.faulty import Faulty, fails
from tests.support.looping import in_loop
from tests.support.waiting import until

WITHIN = 20.0
PUT, RESYNC = EventType.PUT, EventType.RESYNC

Begin = Callable[[Callable[[], Any]], "Future[Any]"]


@pytest.fixture
def store() -> Iterator[Faulty]:
    """A store that fails as a test wants it."""
    with kvi.open(f"mem:{secrets.token_hex(8)}") as handle:
        yield Faulty(handle)


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Begin something on a thread."""
    with ThreadPoolExecutor(4) as pool:
        yield lambda work: pool.submit(work)


def loaded(store: kvi.Kvi, prefix: str = "c/") -> CacheFlow:
    """A cache without its face."""
    flow = CacheFlow(store._scope, prefix, None)
    store._drive(flow.load, away=True)
    return flow


def restored(revision: int, *entries: KeyValue) -> Event:
    """The watch tells the whole state."""
    return Event(RESYNC, "", None, revision, snapshot=list(entries))


# -- what is claimed ------------------------------------------------------------------------------


def test_revision_counts_what_is_in_the_copy(
    store: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an event is on its way into the copy, neither ``revision`` nor `wait` counts it."""
    begun, going, apply = threading.Event(), threading.Event(), CacheFlow._apply

    def slow(flow: CacheFlow, event: Event) -> list[CacheChange]:
        begun.set()
        assert going.wait(WITHIN)
        return apply(flow, event)

    with Cache(store, "c/") as cache:
        monkeypatch.setattr(CacheFlow, "_apply", slow)
        store.before["range"] = fails(kvi.Unavailable)  # nobody looks beside the watch
        revision = store.store("c/a", "1")
        assert begun.wait(WITHIN)
        assert cache.revision < revision
        going_on = threading.Timer(0.2, going.set)
        going_on.start()
        assert cache.wait(revision, WITHIN)
        assert cache["a"] == b"1"


def test_what_comes_while_all_is_read(store: Faulty) -> None:
    """Changes before and after the moment of reading are applied in order, none is told twice."""
    store.store("c/a", "1")
    flow = CacheFlow(store._scope, "c/", None)

    def change() -> None:
        del store.before["range"]
        seen = store.store("c/b", "2")
        until(lambda: flow._early)
        flow._on_event(Event(PUT, "c/late", b"x", seen + 1), None)
        flow._on_event(Event(EventType.DELETE, "c/late", None, seen + 2), None)

    store.before["range"] = change
    store._drive(flow.load, away=True)
    assert flow.copy() == {"a": b"1", "b": b"2"}


def test_state_that_comes_while_all_is_read(store: Faulty) -> None:
    """Whether it is older than what was read nobody knows, so all is read again."""
    revision = store.store("c/a", "1")
    flow, ranges = CacheFlow(store._scope, "c/", None), store.times("range")
    old = restored(revision - 1, KeyValue("c/gone", b"0", revision - 1, revision - 1))

    def tell() -> None:
        del store.before["range"]
        flow._on_event(old, None)

    store.before["range"] = tell
    store._drive(flow.load, away=True)
    assert flow.copy() == {"a": b"1"}
    assert store.times("range") == ranges + 2


def test_store_that_was_restored(store: Faulty) -> None:
    """A store whose revision is below the copy's says nothing: the keys are compared."""
    store.store("c/a", "1")
    flow = loaded(store)
    flow._seen += 100

    def call() -> Call:
        port = ThreadPort()
        return Call(port, port.now() + WITHIN)

    assert run(flow.confirm(call()))
    flow.values["b"], flow._revisions["b"] = b"gone", 5
    assert not run(flow.confirm(call()))
    flow.end()


@pytest.mark.parametrize("revision", [1, 5])
def test_other_value_at_the_same_revision(store: Faulty, revision: int) -> None:
    """After a restore a revision may be of another change."""
    flow, told = loaded(store), list[CacheChange]()
    flow.told.append(told.append)
    flow._on_event(Event(PUT, "c/a", b"old", 5), None)
    flow._on_event(restored(revision, KeyValue("c/a", b"new", revision, 1)), None)
    assert flow.copy() == {"a": b"new"}
    assert told[1:] == [CacheChange("a", b"old", b"new", revision)]
    assert flow._seen == revision
    flow.end()


def test_older_than_it_may_be(store: Faulty) -> None:
    """Reads of what may be older than ``max_age`` are refused until the store answers again."""
    store.store("c/a", "1")
    with Cache(store, "c/", max_age=0.3) as cache:
        assert cache["a"] == b"1"
        store.before["range"] = fails(kvi.Unavailable)
        until(lambda: cache.age > 0.3)
        for read in (lambda: cache["a"], lambda: "a" in cache, lambda: len(cache)):
            with pytest.raises(kvi.Unavailable, match="max_age"):
                read()
        for view in (cache.items, cache.values, lambda: list(cache)):
            with pytest.raises(kvi.Unavailable, match="max_age"):
                view()
        del store.before["range"]
        until(lambda: cache.age < 0.3)
        assert cache["a"] == b"1"


# -- what is told ---------------------------------------------------------------------------------


class Polled(Smallest):
    """A store without history, whose feeds look when the test lets them."""

    def __init__(self, store: kvi.Kvi) -> None:
        limits = store.capabilities
        super().__init__(store, replace(limits, watch_history=False, snapshot_range=False))
        self.looking = True

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return Looking(self, spec, wake, timeout)


class Looking(PollingFeed):
    """Looks when the test lets it."""

    def __init__(self, store: Polled, spec: WatchSpec, wake: Wake, timeout: float) -> None:
        super().__init__(store, spec, wake, timeout, interval=0.01)
        self._polled = store

    def poll(self, timeout: float) -> Batch | None:
        """Look, perhaps."""
        return super().poll(timeout) if self._polled.looking else None


def test_deletion_and_creation_between_two_looks() -> None:
    """Both are told, also where the store tells only newer states."""
    polled = Polled(kvi.open(f"mem:{secrets.token_hex(8)}"))
    with opened(polled) as store:
        store.store("c/a", "1")
        with Cache(store, "c/") as cache:
            told: list[CacheChange] = []
            cache.on_change(told.append)
            polled.looking = False
            store.delete("c/a")
            created = store.store("c/a", "2")
            changed = store.store("c/a", "3")
            polled.looking = True
            until(lambda: len(told) == 2)
            assert told == [
                CacheChange("a", b"1", None, created),
                CacheChange("a", None, b"3", changed),
            ]
            changed = store.store("c/a", "4")
            until(lambda: len(told) == 3)
            assert told[2] == CacheChange("a", b"3", b"4", changed)


def test_call_back_that_fails_or_closes(store: Faulty) -> None:
    """What one raises is logged, and the others are told; once one has closed it, none is."""
    cache, told = Cache(store, "c/"), list[CacheChange]()

    def fail(_: CacheChange) -> None:
        raise ValueError("as the test wants it")

    def close(change: CacheChange) -> None:
        told.append(change)
        if change.key == "b":
            cache.close()

    cache.on_change(fail)
    cache.on_change(close)
    cache.on_change(told.append)
    store.txn([], [kvi.Put(f"c/{key}", "1") for key in "abcd"])
    until(lambda: cache._flow.ended)
    assert [one.key for one in told] == ["a", "a", "b"]
    assert list(cache)[:2] == ["a", "b"], "what it has can still be read"


def test_state_told_while_it_is_closed(store: Faulty) -> None:
    """Of several changes at once none is told after it was closed."""
    flow, told = loaded(store), list[CacheChange]()

    def close(change: CacheChange) -> None:
        told.append(change)
        flow.end()

    flow.told.append(close)
    flow._on_event(restored(9, *(KeyValue(f"c/{key}", b"", 9, 9) for key in "abc")), None)
    assert len(told) == 1


# -- reading, and the end -------------------------------------------------------------------------


def test_items_beside_a_writer(store: Faulty) -> None:
    """What is iterated is of one moment, sorted, whatever is deleted meanwhile."""
    for key in "cba":
        store.store(f"c/{key}", key)
    with Cache(store, "c/") as cache:
        items, values = iter(cache.items()), iter(cache.values())
        assert (next(items), next(values)) == (("a", b"a"), b"a")
        store.delete_range(prefix="c/")
        assert cache.wait(store.store("elsewhere", ""), WITHIN)
        assert [*items] == [("b", b"b"), ("c", b"c")]
        assert [*values] == [b"b", b"c"]
        assert not cache


def test_wait_ends_where_somebody_has_to_mend_the_store(store: Faulty, begin: Begin) -> None:
    """Who waits without end is told why nothing comes."""
    cache = Cache(store, "c/")
    broken = kvi.Unavailable("the disk is full", passing=False)
    store.fails("range", kvi.Unavailable("away"), *[broken] * 1000)
    waiting = begin(lambda: cache.wait(10**9))
    try:
        with pytest.raises(kvi.Unavailable, match="the disk is full"):
            waiting.result(WITHIN)
    finally:
        cache.close()


@pytest.mark.parametrize("end", ["cache", "handle"])
def test_end_wakes_all_who_wait(store: Faulty, begin: Begin, end: str) -> None:
    """Whoever waits for a revision learns that it will not come."""
    cache = Cache(store, "c/")
    waiters = [begin(lambda: cache.wait(10**9)) for _ in range(3)]
    until(lambda: len(cache._flow._signals) == 3)
    (cache if end == "cache" else store).close()
    for waiter in waiters:
        with pytest.raises(kvi.Closed):
            waiter.result(WITHIN)


@in_loop
async def test_beginning_that_is_tried_again() -> None:
    """A cache that could not be loaded can be awaited again, and follows the store then."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        cache = awaited.Cache(store, "c/")
        execute, failing = store._scope.executor.execute, [True]

        class Failing:
            is_short = False

            async def execute(self, op: Any, call: Call) -> Any:
                if failing and op.name == "range":
                    failing.clear()
                    raise kvi.Unavailable("as the test wants it")
                return await execute(op, call)

        store._scope.executor = Failing()
        with pytest.raises(kvi.Unavailable):
            await cache
        await cache
        assert await cache.wait(await store.store("c/a", "1"), WITHIN)
        assert cache["a"] == b"1"
        await cache.close()
        late = awaited.Cache(store, "c/")
        await late.close()
        with pytest.raises(kvi.Closed):
            await late


@in_loop
async def test_awaited_by_many_at_once() -> None:
    """They wait for one load, and nothing is left after the end; a cancelled one hands it on."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        primitives, feeds = store._scope.primitives, list[Feed]()
        watch = primitives._watch

        def watching(spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
            feeds.append(watch(spec, wake, timeout))
            return feeds[-1]

        primitives._watch = watching  # type: ignore[method-assign]
        primitives.in_place = frozenset()  # type: ignore[misc]  # so operations take turns
        await store.store("c/a", "1")
        for cancelled in (False, True):
            cache = awaited.Cache(store, "c/")

            async def begin(cache: awaited.Cache = cache) -> bytes:
                return (await cache)["a"]

            feeds.clear()
            first, *others = [asyncio.ensure_future(begin()) for _ in range(4)]
            await asyncio.sleep(0)
            if cancelled:
                first.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await first
            assert await asyncio.gather(*others) == [b"1"] * 3
            assert len(feeds) <= 1 + cancelled
            assert len(store._scope.ledger._members) == 1
            await cache.close()
            assert not store._scope.ledger._members


@in_loop
async def test_nothing_is_told_after_the_end() -> None:
    """A change that waits for the loop while the cache is closed is not told."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        cache, seen, handed = await awaited.Cache(store, "c/"), list[str](), threading.Event()
        cache.on_change(lambda change: seen.append(change.key))
        cache._flow.told.append(lambda _: handed.set())
        await store.store("c/a", "1")
        assert handed.wait(WITHIN)  # the loop stands still
        await cache.close()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not seen

"""Closing wakes every task that waits, at once and with `Closed`, whatever it waits for.

No wait looks around by itself here, so that only being woken ends one.
"""

from __future__ import annotations

import _thread
import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.aio import recipes
from kvi.driver import loop
from kvi.driver.loop import THREADS, LoopSignal
from kvi.entities import cache

from tests.support.looping import held, in_loop, until
from tests.support.waits import WAITS, World

_NEVER = 1000.0
PLACES = ["handle", "view", "view of a view", "store below a backend"]
ENTITY = {"id": 1}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks around when it is woken."""
    monkeypatch.setattr(loop, "SLICE", _NEVER)
    monkeypatch.setattr(cache, "_SLICE", _NEVER)


@asynccontextmanager
async def world(place: str) -> AsyncIterator[tuple[World, Callable[[], Awaitable[None]]]]:
    """A store, and what closes it."""
    name = f"mem:closing-{secrets.token_hex(6)}"
    async with aio.open(name) as handle:
        with kvi.open(name) as other:
            match place:
                case "handle":
                    yield World(handle, other, recipes, []), handle.close
                case "view":
                    view = handle.namespace("v")
                    yield World(view, other.namespace("v"), recipes, []), view.close
                case "view of a view":
                    view = handle.namespace("v")
                    inner = view.namespace("w")
                    yield World(inner, other.namespace("v/w"), recipes, []), view.close
                case "store below a backend":
                    yield World(aio.Backend(handle), other, recipes, []), handle.close


def is_waiting(task: asyncio.Future[Any]) -> bool:
    """Whether a task waits for a signal."""
    inner: Any = task.get_coro() if isinstance(task, asyncio.Task) else None
    inner = getattr(inner, "_coroutine", inner)
    while inner is not None:
        if getattr(inner, "cr_code", None) is LoopSignal.wait.__code__:
            return True
        inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)
    return False


async def ended(call: Any, close: Callable[[], Awaitable[None]]) -> object:
    """What becomes of a call that waits when something is closed: a result, or an error."""
    task = asyncio.ensure_future(call)
    await until(lambda: task.done() or is_waiting(task))
    await close()
    async with asyncio.timeout(20):
        try:
            return await task
        except kvi.KviError as error:
            return error


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
@in_loop
async def test_close_wakes(place: str, wait: Callable[[World], Any]) -> None:
    """A task that waits gets `Closed` once its handle, or one around it, is closed."""
    async with world(place) as (here, close):
        assert isinstance(await ended(wait(here), close), kvi.Closed)


@in_loop
async def test_close_breaks_no_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A party whose handle is closed gets `Closed`, wherever it has come to: it is not lost."""
    monkeypatch.setattr(loop, "_TURN", 0.0)  # each step lets others have a turn
    for turns in range(1, 40):
        store = aio.open(f"mem:closing-{secrets.token_hex(6)}")
        task = asyncio.ensure_future(recipes.Barrier(store, "b", 2).wait())
        for _ in range(turns):
            await asyncio.sleep(0)
        await store.close()
        with pytest.raises(kvi.Closed):
            await task


async def _all(entries: Any) -> list[object]:
    return [entry async for entry in entries]


async def _iteration(world: World) -> object:
    return await _all(await world.store.watch("k"))


async def _cache(world: World) -> object:
    copy = await recipes.Cache(world.store, "c/")
    return await copy.wait(world.peer.store("c", b"") + 1000)


CHANGES: dict[str, Callable[[World], Any]] = {
    "iteration": _iteration,
    "observation": lambda w: _all(recipes.Election(w.store, "e", b"").observe()),
    "members": lambda w: _all(recipes.Group(w.store, "g").watch()),
    "cache": _cache,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wait", CHANGES.values(), ids=CHANGES)
@in_loop
async def test_close_ends(place: str, wait: Callable[[World], Any]) -> None:
    """Who waits for changes is woken too; an iteration ends."""
    async with world(place) as (here, close):
        assert isinstance(await ended(wait(here), close), kvi.Closed | list)


@pytest.mark.parametrize("place", PLACES)
@in_loop
async def test_close_wakes_next(place: str) -> None:
    """A task that waits for the next event gets `Closed`."""
    async with world(place) as (here, close):
        watch = await here.store.watch("k")
        assert isinstance(await ended(watch.next(), close), kvi.Closed)


@pytest.mark.parametrize("below", [True, False], ids=["the store", "the backend"])
@in_loop
async def test_close_wakes_readers_of_the_liveness_channel(below: bool) -> None:
    """Also if it is the store below that is closed, which knows of no channel."""
    async with aio.open(f"mem:closing-{secrets.token_hex(6)}") as store:
        backend = aio.Backend(store)
        channel = backend.enable_liveness_channel()
        await channel.get()  # the present state
        close = store.close if below else backend.close
        assert isinstance(await ended(channel.get(), close), kvi.Closed)


@pytest.mark.parametrize("whole", [True, False], ids=["the handle", "its view"])
@in_loop
async def test_close_wakes_who_waits_for_a_place(sqlite_uri: str, whole: bool) -> None:
    """Calls that are with the store, and those that wait for a thread, wake alike."""
    async with aio.open(sqlite_uri) as handle:
        store = handle.namespace("v")
        with held(store, "_get") as inside:
            calls = [asyncio.ensure_future(store.get("k", timeout=50)) for _ in range(THREADS + 8)]
            await until(lambda: len(inside) == THREADS)
            await (handle.close() if whole else store.close())
            async with asyncio.timeout(20):
                results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {kvi.Closed}


@in_loop
async def test_close_wakes_a_release_that_waits_for_a_thread(sqlite_uri: str) -> None:
    """It goes on while the handle is being closed, but no thread comes for it after that."""
    store = aio.open(sqlite_uri)
    lock = store.lock("jobs")
    await lock.acquire()
    with held(store, "_get") as inside:
        calls = [asyncio.ensure_future(store.get("k", timeout=50)) for _ in range(THREADS)]
        await until(lambda: len(inside) == THREADS)
        release = asyncio.ensure_future(lock.release(timeout=1000))
        await asyncio.sleep(0)
        await store.close()
        async with asyncio.timeout(20):
            results = await asyncio.gather(release, *calls, return_exceptions=True)
    assert {type(result) for result in results} == {kvi.Closed}


@in_loop
async def test_close_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, the handle is settled in the loop's own."""

    def fail(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    name = f"mem:closing-{secrets.token_hex(6)}"
    async with aio.open(name) as other:
        store = aio.open(name)
        await store.store("k", "v", lease=(lease := await store.lease(1000)))
        with monkeypatch.context() as patched:
            patched.setattr(_thread, "start_new_thread", fail)
            patched.setattr(store._runtime._flows, "_free", [])  # none is left from before
            await store.close()
        assert not lease.alive
        assert await other.get("k") is None


def _loader(store: aio.AsyncKvi) -> aio.Loader[int, Any]:
    return aio.Loader(store, "e", kvi.JsonCodec(), lambda one: int(one["id"]))


async def _block(entities: aio.Loader[int, Any]) -> None:
    async with aio.lock_many(entities.at(0), entities.at(1)):
        raise AssertionError("two holders")


ENTITIES: dict[str, Callable[[aio.Loader[int, Any]], Any]] = {
    "lock": lambda entities: entities.lock(1),
    "lock with a time-out": lambda entities: entities.lock(1, 1000),
    "lock_or_create": lambda entities: entities.lock_or_create(ENTITY),
    "lock_many of the loader": lambda entities: entities.lock_many([0, 1]),
    "lock_many": _block,
}


@pytest.mark.parametrize("what", ["the store", "a view", "the store of a view", "the loader"])
@pytest.mark.parametrize("wait", ENTITIES.values(), ids=ENTITIES)
@in_loop
async def test_close_wakes_who_waits_for_an_entity(
    what: str, wait: Callable[[aio.Loader[int, Any]], Any]
) -> None:
    """Each who waits gets `Closed`, and holds nothing; who holds it can unlock it."""
    async with aio.open(f"mem:closing-{secrets.token_hex(6)}") as store:
        view = store.namespace("v") if "view" in what else store
        entities = _loader(view)
        handle, _ = await entities.lock_or_create(ENTITY)
        slots = entities._flow.records.cache._slots
        first = asyncio.ensure_future(entities.lock(1))
        await until(lambda: slots["1"].waiting)
        close = {
            "the store": store.close,
            "a view": view.close,
            "the store of a view": store.close,
            "the loader": entities.close,
        }[what]
        assert isinstance(await ended(wait(entities), close), kvi.Closed)
        with pytest.raises(kvi.Closed):
            await first
        assert not slots["1"].waiting
        handle.unlock()
        await until(lambda: all(slot.hold is None for slot in slots.values()))
        if what == "the loader":
            async with _loader(view).lock_many([0, 1]) as handles:
                assert handles[1].value == ENTITY

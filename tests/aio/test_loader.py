"""`Loader`, `TypedView`, `lock_many` and `commit` of `kvi.aio`: tasks, cancellation, loops."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Coroutine
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.conformance.cancelling import cancelled_at
from kvi.driver import loop
from kvi.loader import TypedView

from tests.support.looping import held, in_loop, until

Entity = dict[str, Any]
Loader = aio.Loader[int, Entity]


def entity(id: int, **members: Any) -> Entity:
    return {"id": id, **members}


def loader(store: aio.AsyncKvi, path: str = "e", **options: Any) -> Loader:
    return aio.Loader(store, path, kvi.JsonCodec(), lambda one: int(one["id"]), **options)


async def create(entities: Loader, *given: Entity) -> None:
    for one in given:
        handle, created = await entities.lock_or_create(one)
        assert created
        handle.unlock()


async def stored(store: aio.AsyncKvi, id: int, path: str = "e") -> Entity | None:
    entry = await store.get(f"{path}/{id}")
    found: Entity | None = None if entry is None else entry.json()
    return found


def ensure_free(*loaders: Loader) -> None:
    """No entity is locked, and nobody waits for one."""
    for one in loaders:
        for slot in one._flow.records.cache._slots.values():
            assert slot.hold is None, f"{slot.name} stays locked"
            assert not slot.waiting, f"somebody waits for {slot.name}"


# -- cancellation ----------------------------------------------------------------------------------


class Scene:
    """Two loaders of one store, the calls of which are cancelled, and what is known of them."""

    def __init__(self, store: aio.AsyncKvi) -> None:
        self.store = store
        self.left, self.right = loader(store, "left"), loader(store, "right")
        self.number = 0

    async def lock(self) -> None:
        """Of an entity that nothing is known of."""
        self.left._flow.records.cache._slots.clear()
        handle = await self.left.lock(1)
        assert handle is not None
        handle.unlock()

    async def lock_block(self) -> None:
        """Over a block that waits for another call."""
        async with self.left.lock(1) as handle:
            await handle.refresh()

    async def lock_nothing(self) -> None:
        """Of an entity that is not there."""
        assert await self.left.lock(99) is None

    async def wait(self) -> None:
        """For an entity that another task holds; it gets it."""
        handle = await self.left.lock(1)
        assert handle is not None
        waiter = asyncio.ensure_future(self.left.lock(1))
        waiter.add_done_callback(_unlock)
        try:
            await asyncio.sleep(0)
            await handle.refresh()
            handle.unlock()
            await waiter
        finally:
            handle.unlock()
            waiter.cancel()
            await asyncio.wait([waiter])

    async def create(self) -> None:
        """An entity with an id of its own."""
        self.number += 1
        handle, created = await self.left.lock_or_create(entity(1000 + self.number))
        assert created
        handle.unlock()

    async def update(self) -> None:
        """Write, on whatever was written before."""
        self.number += 1
        async with self.left.lock(1) as handle:
            while True:
                try:
                    return await handle.update(entity(1, n=self.number))
                except kvi.Conflict:  # a write that was cancelled may have been on its way
                    continue

    async def delete(self) -> None:
        """One that is created for that."""
        self.number += 1
        handle, _ = await self.left.lock_or_create(entity(5000 + self.number))
        async with handle:
            await handle.delete()

    async def together(self) -> None:
        """Commit entities of two loaders."""
        self.number += 1
        async with aio.lock_many(self.left.at(1), self.right.at(2)) as (one, two):
            while True:
                one.stage(entity(1, n=self.number))
                two.stage(entity(2, n=self.number))
                try:
                    return await aio.commit(one, two)
                except kvi.Conflict:
                    continue

    async def many(self) -> None:
        """Commit entities of one loader, one of which is not there."""
        self.number += 1
        async with self.right.lock_many([3, 2, 9]) as handles:
            assert not handles[9].exists
            while True:
                handles[3].stage(entity(3, n=self.number))
                try:
                    return await handles.commit()
                except kvi.Conflict:
                    continue

    async def load(self) -> None:
        """Read all."""
        await self.left.load()

    async def follow(self) -> None:
        """Read all, and follow; another loader each time."""
        other = loader(self.store, "left", follow=True)
        try:
            await other.load()
        finally:
            await other.close()

    async def typed(self) -> None:
        """By a view of the records."""
        view: aio.TypedView[Any] = aio.TypedView(self.store, kvi.JsonCodec())
        entry = await view.get("left/1")
        assert entry is not None
        await view.cas("left/1", entry.revision, entity(1, typed=True))  # or not
        async for _ in view.range(prefix="left/", bad=lambda error: None):
            pass
        async with view.watch(prefix="left/", initial=True) as watch:
            await watch.next(20)


def _unlock(task: asyncio.Future[aio.AsyncHandle[Entity] | None]) -> None:
    if not task.cancelled() and (handle := task.result()) is not None:
        handle.unlock()


CALLS: dict[str, Callable[[Scene], Coroutine[Any, Any, None]]] = {
    name: call for name, call in vars(Scene).items() if not name.startswith("_")
}


@pytest.mark.parametrize("late", [False, True], ids=["as it waits", "with the answer"])
@pytest.mark.parametrize("name", CALLS)
@in_loop
async def test_cancelled_at_every_await(
    uri: str, name: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CancelledError` comes out; no entity stays locked, no lease or watch; the store is whole."""
    monkeypatch.setattr(loop, "_TURN", 0.0)  # what is done in place waits for its turn each time
    async with aio.open(uri, timeout=20) as store:
        scene = Scene(store)
        await create(scene.left, entity(1))
        await create(scene.right, entity(2), entity(3))
        call, number = CALLS[name], 1
        while await cancelled_at(lambda: call(scene), number, late=late):
            ensure_free(scene.left, scene.right)
            await until(lambda: not store._scope.ledger._members)
            async with asyncio.timeout(30):  # no waiter that was cancelled stands in the way
                async with aio.lock_many(
                    scene.left.at(1), scene.right.at(2), scene.right.at(3), timeout=20
                ) as handles:
                    for handle in handles:
                        await handle.refresh()
                        assert handle.value["id"] == int(handle.key[-1])
            if name == "together":  # all of it, or nothing
                found = await store.txn(then=[kvi.Get("left/1"), kvi.Get("right/2")])
                one, two = (entry.json().get("n") for entry in found.results)  # type: ignore[union-attr]
                assert one == two
            number += 1
        assert number > 1
        ensure_free(scene.left, scene.right)


@in_loop
async def test_cancelled_write_is_doubt(sqlite_uri: str) -> None:
    """What was cancelled after it was sent may have applied: the next use asks, and says so."""
    async with aio.open(sqlite_uri) as store:
        entities = loader(store)
        await create(entities, entity(1, n=0))
        async with entities.lock(1) as handle:
            with held(store, "_txn") as inside:
                task = asyncio.create_task(handle.update(entity(1, n=1)))
                await until(lambda: inside)
                task.cancel()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await task
            assert "may have applied" in caught.value.__notes__[0]
            with pytest.raises(kvi.OutcomeUnknown, match="refresh"):
                _ = handle.value
            await until(lambda: not store._runtime.jobs._pending)  # its fate is sealed
            await handle.refresh()
            assert handle.value == await stored(store, 1)
            await handle.update(entity(1, n=2))
        assert entities.peek(1) == await stored(store, 1) == entity(1, n=2)


@in_loop
async def test_cancelled_commit_is_doubt(sqlite_uri: str) -> None:
    """Each entity that it would have changed is in doubt, the others are not; it is all or none."""
    async with aio.open(sqlite_uri) as store:
        entities = loader(store)
        await create(entities, *(entity(id, n=0) for id in (1, 2, 3)))
        async with entities.lock_many([1, 2, 3]) as handles:
            handles[1].stage(entity(1, n=1))
            handles[2].stage_delete()
            with held(store, "_txn") as inside:
                task = asyncio.create_task(handles.commit())
                await until(lambda: inside)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await until(lambda: not store._runtime.jobs._pending)  # its fate is sealed
            assert handles[3].value == entity(3, n=0)
            for id in (1, 2):
                with pytest.raises(kvi.OutcomeUnknown):
                    _ = handles[id].exists
                await handles[id].refresh()
            applied = not handles[2].exists
            assert handles[1].value == entity(1, n=int(applied))
            with pytest.raises(kvi.InvalidArgument, match="staged"):
                await handles.commit()


@in_loop
async def test_cancelled_waiters_stand_in_nobodys_way(uri: str) -> None:
    """Of many that wait for an entity most are cancelled; the others get it, in their order."""
    async with aio.open(uri, timeout=20) as store:
        entities = loader(store)
        await create(entities, entity(1))
        handle = await entities.lock(1)
        assert handle is not None
        got: list[int] = []

        async def wait(number: int) -> None:
            async with entities.lock(1, 60):
                got.append(number)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(wait(number)) for number in range(200)]
        slot = entities._flow.records.cache._slots["1"]
        await until(lambda: len(slot.waiting) == 200)
        staying = set(random.sample(range(200), 20))
        for number in random.sample(range(200), 200):
            if number not in staying:
                tasks[number].cancel()
                if number % 3 == 0:
                    await asyncio.sleep(0)
        handle.unlock()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert got == sorted(staying)
        assert sum(isinstance(one, asyncio.CancelledError) for one in results) == 180
        ensure_free(entities)


@in_loop
async def test_cancelled_as_it_gets_the_entity(uri: str) -> None:
    """A waiter that is cancelled when the entity is its own already does not keep it."""
    async with aio.open(uri, timeout=20) as store:
        entities = loader(store)
        await create(entities, entity(1))
        for _ in range(20):
            handle = await entities.lock(1)
            assert handle is not None
            task = asyncio.ensure_future(entities.lock(1))
            slot = entities._flow.records.cache._slots["1"]
            await until(lambda slot=slot: slot.waiting)  # type: ignore[misc]
            handle.unlock()  # wakes it
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            ensure_free(entities)


# -- tasks -----------------------------------------------------------------------------------------


@in_loop
async def test_many_tasks(uri: str) -> None:
    """A thousand tasks change a few entities: every change is there at the end."""
    async with aio.open(uri, timeout=60) as store:
        entities = loader(store)
        await create(entities, *(entity(id, n=0) for id in range(5)))

        async def increment(number: int) -> None:
            async with entities.lock(number % 5, 60) as handle:
                if number % 10 == 0:
                    await handle.update(entity(number % 5, n=handle.value["n"] + 1))

        await asyncio.gather(*(increment(number) for number in range(1000)))
        assert sum(one["n"] for one in [await stored(store, id) or {} for id in range(5)]) == 100
        ensure_free(entities)


@in_loop
async def test_task_that_holds_it_is_refused(uri: str) -> None:
    """Locking what this task holds would wait for ever; another task waits, also a child of it."""
    async with aio.open(uri, timeout=20) as store:
        entities = loader(store)
        async with entities.lock_many([1, 2]):
            for call in (
                entities.lock(1),
                entities.lock_or_create(entity(1)),
                entities.lock_many([3, 2]),
            ):
                with pytest.raises(kvi.AlreadyHeld, match="this task"):
                    await call

            async def attempt() -> None:
                with pytest.raises(kvi.LockTimeout, match="another task"):
                    await entities.lock(1, 0.01)

            await asyncio.create_task(attempt())
        ensure_free(entities)


@in_loop
async def test_handle_outlives_its_task(uri: str) -> None:
    """What a task holds that has ended is held still; dropped, it is free."""
    async with aio.open(uri, timeout=20) as store:
        entities = loader(store)
        await create(entities, entity(1))
        handle = await asyncio.ensure_future(entities.lock(1))
        assert handle is not None
        with pytest.raises(kvi.LockTimeout):
            await entities.lock(1, 0)
        del handle
        gc.collect()
        async with entities.lock(1, 20):
            pass


@in_loop
async def test_opposite_orders_never_deadlock(uri: str) -> None:
    """Tasks lock entities of two loaders in any order, together; all come through."""
    async with aio.open(uri, timeout=60) as store:
        left, right = loader(store, "left"), loader(store, "right")
        await create(left, *(entity(id, n=0) for id in (1, 2)))
        await create(right, *(entity(id, n=0) for id in (1, 2)))
        held_now: set[str] = set()

        async def together(seed: int) -> None:
            choice = random.Random(seed)
            refs = [left.at(1), left.at(2), right.at(1), right.at(2)]
            for _ in range(4):
                chosen = choice.sample(refs, choice.randint(1, 4))
                async with aio.lock_many(*chosen, timeout=60) as handles:
                    keys = {handle.key for handle in handles}
                    assert not keys & held_now
                    held_now.update(keys)
                    for handle in handles:
                        value = handle.value
                        handle.stage(entity(value["id"], n=value["n"] + 1))
                    await aio.commit(*handles)
                    total.append(len(handles))
                    held_now.difference_update(keys)

        total: list[int] = []
        async with asyncio.timeout(100):
            await asyncio.gather(*(together(seed) for seed in range(20)))
        counts = [
            (await stored(store, id, path) or {})["n"]
            for path in ("left", "right")
            for id in (1, 2)
        ]
        assert sum(counts) == sum(total)
        ensure_free(left, right)


@in_loop
async def test_lock_many_that_fails_holds_nothing(uri: str) -> None:
    """One of them is held by another task, or is no entity: the rest is let go."""
    async with aio.open(uri, timeout=20) as store:
        entities = loader(store)
        await create(entities, *map(entity, range(4)))
        await store.store("e/7", b"{")

        async def attempt() -> None:
            with pytest.raises(kvi.LockTimeout, match="e/3"):
                await entities.lock_many([0, 3, 1], 0.01)
            with pytest.raises(kvi.LockTimeout):
                async with aio.lock_many(entities.at(3), entities.at(0), timeout=0):
                    raise AssertionError("two holders")
            with pytest.raises(kvi.BadRecord, match="e/7"):
                await entities.lock_many([0, 7, 1])

        async with entities.lock(3):
            await asyncio.create_task(attempt())
            async with entities.lock_many([0, 1, 2], 0) as handles:
                assert len(handles) == 3
        with pytest.raises(kvi.InvalidArgument, match="once"):
            async with aio.lock_many(entities.at(1), entities.at(1)):
                pass
        with kvi.open("mem:") as other:
            ref = kvi.Loader(other, "e", kvi.JsonCodec(), lambda one: int(one["id"])).at(1)
            with pytest.raises(kvi.InvalidArgument, match="AsyncRef"):
                async with aio.lock_many(ref):  # type: ignore[call-overload]
                    pass
            with pytest.raises(kvi.InvalidArgument, match=r"kvi\.aio"):
                loader(other)  # type: ignore[arg-type]
        ensure_free(entities)


@in_loop
async def test_a_dropped_block_holds_nothing(uri: str) -> None:
    """A block of `lock_many` that is begun and never ended lets go once it is dropped."""
    async with aio.open(uri, timeout=20) as store:
        entities = loader(store)

        async def begin() -> None:
            await aio.lock_many(entities.at(1), entities.at(2)).__aenter__()

        await asyncio.create_task(begin())
        gc.collect()
        async with entities.lock_many([1, 2], 20):
            pass
        ensure_free(entities)


# -- loading and following -------------------------------------------------------------------------


@in_loop
async def test_progress_may_be_a_coroutine_function(uri: str) -> None:
    """It is called in the loop, and awaited; what it raises ends the load, and nothing is lost."""
    async with aio.open(uri, timeout=20) as store:
        for start in range(0, 1100, 50):
            codec = kvi.JsonCodec()
            puts = [kvi.Put(f"e/{n}", codec.encode(entity(n))) for n in range(start, start + 50)]
            await store.txn(then=puts)
        entities = loader(store)
        told: list[int] = []

        async def tell(count: int) -> None:
            await asyncio.sleep(0)
            told.append(count)

        assert await entities.load(tell) == ()
        assert told == [1000, 1100]

        async def stop(count: int) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await entities.load(stop)
        assert len(entities) == 1100
        loads = [asyncio.create_task(entities.load()) for _ in range(5)]  # one after the other
        loads[2].cancel()
        results = await asyncio.gather(*loads, return_exceptions=True)
        assert isinstance(results[2], asyncio.CancelledError)
        assert [one for number, one in enumerate(results) if number != 2] == [()] * 4

        async def again(count: int) -> None:
            await entities.load()

        with pytest.raises(kvi.InvalidArgument, match="this task"):
            await entities.load(again)


@in_loop
async def test_following(uri: str) -> None:
    """What others do comes by itself, until the loader is closed; then nothing is left of it."""
    async with aio.open(uri, timeout=20) as store, aio.open(uri, timeout=20) as peer:
        async with loader(store, follow=True) as ours:
            await ours.load()
            assert ours.following
            theirs = loader(peer)
            await create(theirs, entity(1), entity(2))
            await until(lambda: sorted(ours.list()) == [1, 2])
            async with theirs.lock(1) as handle:
                await handle.update(entity(1, new=True))
            await until(lambda: ours.peek(1) == entity(1, new=True))
            await peer.delete("e/2")
            await until(lambda: ours.list() == [1])
        assert not ours.following
        await until(lambda: not store._scope.ledger._members)


# -- loops and the end -----------------------------------------------------------------------------


def test_another_loop() -> None:
    """A loader belongs to the loop of its store; in another one everything is `WrongLoop`."""
    store = aio.open("mem:aio-loader-loops")
    entities = loader(store)
    handles: list[aio.AsyncHandle[Entity]] = []

    async def use() -> None:
        await create(entities, entity(1))
        handle = await entities.lock(1)
        assert handle is not None
        handle.stage(entity(1, n=1))
        handles.append(handle)

    asyncio.run(use())

    async def block() -> None:
        async with aio.lock_many(entities.at(5)):
            raise AssertionError("it was entered")

    async def misuse() -> None:
        handle = handles[0]
        for call in (
            entities.load(),
            entities.lock(1),
            entities.lock_or_create(entity(2)),
            entities.lock_many([1, 2]),
            block(),
            handle.refresh(),
            handle.update(entity(1)),
            handle.delete(),
            aio.commit(handle),
            aio.TypedView(store, kvi.TextCodec()).get("k"),
            aio.TypedView(store, kvi.TextCodec()).put("k", "v"),
        ):
            with pytest.raises(kvi.WrongLoop):
                await call
        assert handle.value == entity(1)
        handle.unlock()
        ensure_free(entities)
        await store.close()

    asyncio.run(misuse())


@in_loop
async def test_closed(uri: str) -> None:
    """After the loader is closed, or its store, everything is `Closed`; unlocking is not."""
    async with aio.open(uri, timeout=20) as store:
        entities = loader(store, follow=True)
        await entities.load()
        handle, _ = await entities.lock_or_create(entity(1))
        await entities.close()
        await entities.close()

        async def block() -> None:
            async with aio.lock_many(entities.at(5)):
                raise AssertionError("it was entered")

        def calls() -> list[Coroutine[Any, Any, Any]]:
            return [
                entities.load(),
                entities.lock(1),
                entities.lock_or_create(entity(2)),
                entities.lock_many([1, 2]),
                block(),
            ]

        for call in calls():
            with pytest.raises(kvi.Closed, match="loader"):
                await call
        await handle.update(entity(1, n=1))  # what is held can be ended in good order
        view = aio.TypedView(store, kvi.TextCodec())
        await store.close()
        for call in (
            *calls(),
            handle.refresh(),
            handle.update(entity(1)),
            handle.delete(),
            view.get("k"),
            view.tas("k", None, "v"),
            view.watch("k"),
        ):
            with pytest.raises(kvi.Closed):
                await call
        for look in (entities.list, lambda: entities.peek(1), lambda: entities.bad):
            with pytest.raises(kvi.Closed):
                look()
        handle.unlock()
        ensure_free(entities)


@in_loop
async def test_typed_view(uri: str) -> None:
    """Values of one type: reads, writes, conditions, watches; a bad record names its key."""
    async with aio.open(uri, timeout=20) as store:
        view: aio.TypedView[Any] = aio.TypedView(store, kvi.JsonCodec())
        async with view.watch(prefix="t/") as watch:
            revision = await view.put("t/a", {"n": 1})
            assert await view.cas("t/a", 0, {"n": 2}) is None
            assert await view.cas("t/a", revision, {"n": 2})
            assert await view.tas("t/a", {"n": 2}, {"n": 3})
            assert not await view.tas("t/a", {"n": 2}, {"n": 4})
            done = await store.txn(
                [view.equals("t/a", {"n": 3})], [view.put_op("t/b", [1]), kvi.Get("t/a")]
            )
            assert done.succeeded
            assert view.decode(done.results[1]).value == {"n": 3}  # type: ignore[arg-type]
            seen: dict[str, Any] = {}
            while seen != {"t/a": {"n": 3}, "t/b": [1]}:
                event = await watch.next(20)
                seen[event.key] = event.value
            await store.store("t/c", b"{")
            with pytest.raises(kvi.BadRecord, match="t/c"):
                await watch.next(20)
        with pytest.raises(kvi.BadRecord, match="t/c"):
            await view.get("t/c")
        bad: list[kvi.BadRecord] = []
        rows = await view.range(prefix="t/", bad=bad.append)
        assert [(row.key, row.value) async for row in rows] == [("t/a", {"n": 3}), ("t/b", [1])]
        assert [error.key for error in bad] == ["t/c"]
        with pytest.raises(kvi.BadRecord):
            async for _ in view.range(prefix="t/"):
                pass


# -- what was, on both faces -----------------------------------------------------------------------


def change(store: kvi.Kvi) -> list[int]:
    """Entity 1 is created, changed, deleted and created; the revisions."""
    with kvi.Loader(store, "e", kvi.JsonCodec(), lambda one: int(one["id"])) as entities:
        first, _ = entities.lock_or_create(entity(1, n=1))
        revisions = [first.revision]
        first.update(entity(1, n=2))
        revisions.append(first.revision)
        first.delete()
        first.unlock()
        second, _ = entities.lock_or_create(entity(1, n=3))
        return [*revisions, second.revision]


def test_past_of_entities(uri: str) -> None:
    """Each state and each change of an entity is read again, by both faces alike."""
    with kvi.open(uri, timeout=20) as store, store.namespace("in") as view:
        revisions = change(view)
        entities = kvi.Loader(view, "e", kvi.JsonCodec(), lambda one: int(one["id"]))
        views: TypedView[Entity] = TypedView(view, kvi.JsonCodec())
        ends = (kvi.NotSupported,) if not store.capabilities.read_at_revision else ()

        async def awaited() -> list[Any]:
            async with aio.open(uri, timeout=20) as other, other.namespace("in") as inner:
                theirs, typed = loader(inner), aio.TypedView(inner, kvi.JsonCodec())
                if ends:
                    for call in (
                        theirs.past(1, revisions[0]),
                        theirs.history(1),
                        typed.get("e/1", revision=revisions[0]),
                        typed.history("e/1"),
                    ):
                        with pytest.raises(ends):
                            await call
                    return []
                found = [await theirs.past(1, revision) for revision in (*revisions, 0)]
                entries = [await typed.get("e/1", revision=at) for at in revisions]
                ranges = [
                    [one.value async for one in typed.range(prefix="e/", revision=at)]
                    for at in revisions
                ]
                assert theirs.peek(1) is None, "the past is no news"
                return [
                    found, await theirs.history(1), await theirs.history(1, limit=2),
                    [entry and entry.value for entry in entries], ranges,
                ]  # fmt: skip

        told = asyncio.run(awaited())
        if ends:
            for call in (
                lambda: entities.past(1, revisions[0]),
                lambda: entities.history(1),
                lambda: views.get("e/1", revision=revisions[0]),
                lambda: views.history("e/1"),
            ):
                with pytest.raises(ends):
                    call()
            return
        states = [entity(1, n=number) for number in (1, 2, 3)]
        assert told[0] == [*states, None]
        assert [entities.past(1, revision) for revision in (*revisions, 0)] == told[0]
        assert entities.history(1) == told[1]
        assert [event.value for event in told[1]] == [states[2], None, states[1], states[0]]
        assert [event.key for event in told[1]] == ["e/1"] * 4
        assert entities.history(1, limit=2) == told[2] == told[1][:2]
        assert entities.history(2) == []
        entries = [views.get("e/1", revision=at) for at in revisions]
        assert told[3] == [entry and entry.value for entry in entries] == states
        assert told[4] == [[state] for state in states]
        assert [event.value for event in views.history("e/1")] == [one.value for one in told[1]]
        assert entities.peek(1) is None
        view.store("e/1", b"{")
        bad = view.store("e/1", encoded_as(2))
        view.store("e/1", encoded_as(1))
        for call in (lambda: entities.past(1, bad), lambda: entities.history(1)):
            with pytest.raises(kvi.BadRecord) as raised:
                call()
            assert raised.value.key == "e/1"
        assert entities.history(1, limit=1)[0].value == entity(1)
        assert entities.bad == {}
        entities.close()
        with pytest.raises(kvi.Closed):
            entities.history(1)


def encoded_as(id: int) -> bytes:
    return kvi.JsonCodec().encode(entity(id))


def test_typed_changes_of_both_faces(uri: str, ttl: float) -> None:
    """`put` with a ttl and `update` take and give values of the type, by both faces alike."""

    def more(old: Any) -> Any:
        return {"n": old["n"] + 1}

    with kvi.open(uri, timeout=20) as store:
        view: TypedView[Any] = TypedView(store, kvi.JsonCodec())

        async def awaited() -> None:
            async with aio.open(uri, timeout=20) as other:
                typed: aio.TypedView[Any] = aio.TypedView(other, kvi.JsonCodec())
                entry = await typed.update("k", more, default={"n": 0})
                assert entry is not None
                assert entry == await typed.get("k")
                assert entry.value == {"n": 2}
                assert (await other.get("k")).lease is None  # type: ignore[union-attr]
                await typed.put("theirs", [1], ttl=ttl)
                await other.store("bad", b"{")
                with pytest.raises(kvi.BadRecord):
                    await typed.update("bad", more)

        entry = view.update("k", more, default={"n": 0})
        assert entry is not None
        assert entry == view.get("k")
        assert entry.value == {"n": 1}
        view.put("k", entry.value, ttl=60)
        assert store.get("k").lease is not None  # type: ignore[union-attr]
        asyncio.run(awaited())
        assert view.update("k", lambda old: None) is None
        view.put("ours", [2], ttl=ttl)
        leased = [one for one in store.range() if one.lease is not None]
        assert [one.json() for one in leased] == [[2], [1]], "it outlives its handle"
        with pytest.raises(kvi.InvalidArgument):
            view.put("ours", [2], ttl=ttl, lease=1)
        with pytest.raises(kvi.BadRecord):
            view.update("bad", more)
        assert store.get("bad").value == b"{"  # type: ignore[union-attr]

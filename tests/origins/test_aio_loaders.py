"""The rows of `test_loaders` that tasks change: the loaders of groups, flows and meters, awaited.

What a loader knows and writes is one copy for both faces, and checked there; here are creating,
waiting, deleting, committing and following, among the tasks of a loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import kvi
import pytest
from kvi import aio

from tests.origins.test_loaders import Entity, group
from tests.support.looping import held, in_loop, until

Loader = aio.Loader[int, Entity]


async def loader(store: aio.AsyncKvi, path: str = "groups", **options: Any) -> Loader:
    made: Loader = aio.Loader(store, path, kvi.JsonCodec(), lambda one: int(one["id"]), **options)
    await made.load()
    return made


async def stored(store: aio.AsyncKvi, id: int, path: str = "groups") -> Entity | None:
    entry = await store.get(f"{path}/{id}")
    found: Entity | None = None if entry is None else entry.json()
    return found


async def create(groups: Loader, *entities: Entity) -> None:
    for entity in entities:
        handle, created = await groups.lock_or_create(entity)
        assert created
        handle.unlock()


@in_loop
async def test_lock_or_create(uri: str) -> None:
    """The first creates, in store and map; what is known is locked without asking the store."""
    async with aio.open(uri) as store:
        groups = await loader(store)
        first, created = await groups.lock_or_create(group(1, by="first"))
        assert created
        assert first.value == await stored(store, 1) == group(1, by="first")
        first.unlock()
        with held(store, "_get") as reads, held(store, "_txn") as writes:
            second, created = await groups.lock_or_create(group(1, by="second"))
            assert (created, second.value) == (False, group(1, by="first"))
            second.unlock()
            async with groups.lock(1, 0) as third:
                assert third.value is second._flow.seen.value  # type: ignore[union-attr]
        assert not reads
        assert not writes


@in_loop
async def test_bad_record_hides_no_other(uri: str) -> None:
    """A record that is none is reported with its key; the others are loaded."""
    async with aio.open(uri) as store:
        groups = await loader(store)
        await create(groups, group(1), group(3))
        await store.store("groups/2", b"{broken")
        await store.store("groups/4", kvi.JsonCodec().encode(group(5)))
        bad = await groups.load()
        assert sorted(str(error.key) for error in bad) == sorted(groups.bad)
        assert sorted(groups.bad) == ["groups/2", "groups/4"]
        assert sorted(groups.list()) == [1, 3]
        with pytest.raises(kvi.BadRecord, match="groups/2"):
            await groups.lock(2)


@in_loop
async def test_creators_agree(uri: str) -> None:
    """Of many tasks of two processes that create the same entity, one does; all see its own."""
    async with aio.open(uri) as store, aio.open(uri) as peer:
        loaders = [await loader(store), await loader(peer)]

        async def attempt(number: int) -> tuple[bool, Any]:
            handle, created = await loaders[number % 2].lock_or_create(group(1, by=number))
            async with handle:
                return created, handle.value["by"]

        outcomes = await asyncio.gather(*(attempt(number) for number in range(20)))
        winners = [by for created, by in outcomes if created]
        assert len(winners) == 1
        assert {by for _, by in outcomes} == set(winners)


@in_loop
async def test_waiters_on_a_deleted_entity_see_it_gone(uri: str) -> None:
    """Whoever waited for the lock while it was deleted gets none, and leaves nothing."""
    async with aio.open(uri) as store:
        groups = await loader(store)
        await create(groups, group(1))
        slots = groups._flow.records.cache._slots
        handle = await groups.lock(1)
        assert handle is not None
        waiters = [asyncio.ensure_future(groups.lock(1, 60)) for _ in range(20)]
        await until(lambda: len(slots["1"].waiting) == 20)
        await handle.delete()
        assert await asyncio.gather(*waiters) == [None] * 20
        assert groups.list() == []
        assert await stored(store, 1) is None
        await until(lambda: not slots)
        with pytest.raises(kvi.NotFound, match="groups/1"):
            async with groups.lock(1):
                raise AssertionError("it was entered")


@in_loop
async def test_one_holder_at_a_time(uri: str) -> None:
    """Increments that only the entity's lock guards add up."""
    async with aio.open(uri) as store:
        groups = await loader(store)
        await create(groups, group(1, count=0))

        async def increment() -> None:
            for _ in range(10):
                async with groups.lock(1, 60) as handle:
                    await handle.update(group(1, count=handle.value["count"] + 1))

        await asyncio.gather(*(increment() for _ in range(4)))
        assert await stored(store, 1) == group(1, count=40)


@in_loop
async def test_use_after_unlock_fails(uri: str) -> None:
    """A handle that was unlocked, or deleted, refuses everything but another unlock."""
    async with aio.open(uri) as store:
        groups = await loader(store)
        await create(groups, group(1), group(2))
        unlocked, deleted = await groups.lock(1), await groups.lock(2)
        assert unlocked is not None
        assert deleted is not None
        unlocked.unlock()
        await deleted.delete()
        looks: list[Callable[[aio.AsyncHandle[Entity]], object]] = [
            lambda handle: handle.value,
            lambda handle: handle.exists,
            lambda handle: handle.revision,
            lambda handle: handle.stage(group(1)),
            lambda handle: handle.stage_delete(),
        ]
        for handle in (unlocked, deleted):
            for look in looks:
                with pytest.raises(kvi.NotHeld, match=handle.key):
                    look(handle)
            for call in (
                handle.update(group(1)),
                handle.delete(),
                handle.refresh(),
                aio.commit(handle),
                handle.__aenter__(),
            ):
                with pytest.raises(kvi.NotHeld, match=handle.key):
                    await call
            handle.unlock()
        async with groups.lock(1) as again:
            unlocked.unlock()
            assert again.value == group(1), "a second unlock is not another holder's"


@in_loop
async def test_error_between_two_updates_leaves_nothing_half_done(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes of entities of several loaders are applied together, or not at all."""
    async with aio.open(uri) as store:
        flows, meters = await loader(store, "flows"), await loader(store, "meters")
        await create(flows, group(7, meter=3))
        await create(meters, group(3, flows=1))

        def away(*arguments: Any) -> None:
            raise kvi.NotSupported("away")

        async with aio.lock_many(flows.at(7), meters.at(3)) as (flow, meter):
            flow.stage_delete()
            meter.stage(group(3, flows=0))
            with monkeypatch.context() as patch:
                patch.setattr(store._scope.primitives, "_txn", away)
                with pytest.raises(kvi.NotSupported):
                    await aio.commit(flow, meter)
            assert await stored(store, 7, "flows") == flow.value == group(7, meter=3)
            assert await stored(store, 3, "meters") == meter.value == group(3, flows=1)
            await aio.commit(flow, meter)
            assert not flow.exists
            assert meter.value == group(3, flows=0)
        assert await stored(store, 7, "flows") is None
        assert flows.list() == []


@in_loop
async def test_two_processes_update_one_entity(uri: str) -> None:
    """One gets `Conflict`, sees the other's change, and succeeds on top of it; nothing is lost."""
    async with aio.open(uri) as store, aio.open(uri) as peer:
        ours = await loader(store)
        await create(ours, group(1, n=0))
        theirs = await loader(peer)
        async with ours.lock(1) as mine, theirs.lock(1) as other:
            await mine.update(group(1, n=1))
            with pytest.raises(kvi.Conflict, match="groups/1"):
                await other.update(group(1, n=100))
            assert other.value == theirs.peek(1) == group(1, n=1)
            await other.update(group(1, n=101))
            with pytest.raises(kvi.Conflict):
                await mine.delete()
            assert mine.value == group(1, n=101)
            await mine.delete()
        async with theirs.lock(1) as other:
            with pytest.raises(kvi.Conflict):
                await other.update(group(1, n=5))
            assert not other.exists
        assert theirs.list() == []


@in_loop
async def test_followers_stay_in_step(uri: str) -> None:
    """With `follow=True` what others do comes by itself; a program of threads is such another."""
    async with aio.open(uri) as store, aio.open(uri) as peer:
        ours, theirs = await loader(store, follow=True), await loader(peer, follow=True)
        await create(ours, *map(group, range(10)))
        async with ours.lock(3) as handle:
            await handle.update(group(3, new=True))
        async with ours.lock(4) as handle:
            await handle.delete()
        await until(lambda: dict(theirs.items()) == dict(ours.items()))
        assert theirs.peek(3) == group(3, new=True)

        def another_program() -> None:
            with kvi.open(uri) as other:
                groups: kvi.Loader[int, Entity] = kvi.Loader(
                    other, "groups", kvi.JsonCodec(), lambda one: int(one["id"])
                )
                groups.lock_or_create(group(4, by="a thread"))[0].unlock()

        await asyncio.to_thread(another_program)
        await until(lambda: ours.peek(4) == theirs.peek(4) == group(4, by="a thread"))
        await peer.delete_range(prefix="groups/")
        await until(lambda: ours.list() == theirs.list() == [])

"""The types of recipes, on both faces; run once, so that they are true too."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import assert_type

import kvi
from kvi import recipes
from kvi.aio import recipes as awaited


def test_types() -> None:
    """What a type checker believes of a recipe is what programs get."""
    with kvi.open("mem:typing-recipes") as store:
        with recipes.Semaphore(store, "s", 2) as permit:
            assert_type(permit, recipes.Semaphore)
            assert_type(permit.fence, int)
            assert_type(permit.guard, kvi.Compare)
            assert_type(permit.holders(), list[str])
        with recipes.RWLock(store, "rw").write() as writing:
            assert_type(writing, recipes.WriteLock)
        with recipes.Slots(store, "ids", 3).claim() as slot:
            assert_type(slot, recipes.Slot)
            assert_type(slot.index, int)
        with recipes.Election(store, "e", "me") as election:
            assert_type(election.leader(), recipes.Leader | None)
            assert_type(election.contenders(), list[recipes.Leader])
            assert_type(next(election.observe()), recipes.Leader | None)
        group = recipes.Group(store, "g")
        with group.join("me") as member:
            assert_type(member, recipes.Member)
            assert_type(group.members(), list[recipes.MemberInfo])
            assert_type(next(group.watch()), recipes.MemberEvent)
        assert_type(recipes.Barrier(store, "b", 1).wait(), int)
        assert_type(recipes.Counter(store, "c").add(), int)
        assert_type(recipes.Sequence(store, "n").next(), int)
        assert_type(recipes.Once(store, "o").run(lambda held: "done"), bytes)
        assert_type(recipes.Schedule(store, "t", 7).last(), datetime | None)
        queue = recipes.Queue(store, "q")
        assert_type(queue.put("job"), str)
        job = queue.get(0)
        assert_type(job, recipes.Job | None)
        assert job is not None
        job.ack()
        with recipes.Cache(store, "c/") as cache:
            assert_type(cache.get("k"), bytes | None)


def test_types_of_aio() -> None:
    """The same, awaited."""
    asyncio.run(_aio_types())


async def _aio_types() -> None:
    async with kvi.aio.open("mem:typing-aio-recipes") as store:
        async with awaited.Semaphore(store, "s", 2) as permit:
            assert_type(permit, awaited.Semaphore)
            assert_type(await permit.holders(), list[str])
        async with awaited.Slots(store, "ids", 3).claim() as slot:
            assert_type(slot, awaited.Slot)
        async with awaited.Election(store, "e", "me") as election:
            assert_type(await election.leader(), awaited.Leader | None)
            async with election.observe() as leaders:
                async for leader in leaders:
                    assert_type(leader, awaited.Leader | None)
                    break
        group = awaited.Group(store, "g")
        async with group.join("me") as member:
            assert_type(member, awaited.Member)
            assert_type(await group.members(), list[awaited.MemberInfo])
        assert_type(await awaited.Barrier(store, "b", 1).wait(), int)
        assert_type(await awaited.Counter(store, "c").add(), int)
        assert_type(await awaited.Sequence(store, "n").next(), int)
        assert_type(await awaited.Once(store, "o").run(lambda held: "done"), bytes)
        queue = awaited.Queue(store, "q")
        assert_type(await queue.put("job"), str)
        job = await queue.get(0)
        assert_type(job, awaited.Job | None)
        assert job is not None
        await job.ack()
        async with awaited.Cache(store, "c/") as cache:
            assert_type(cache, awaited.Cache)
            assert_type(cache.get("k"), bytes | None)

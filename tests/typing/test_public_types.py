"""The public types as `make types` checks them; run once, so that they are true too."""

from __future__ import annotations

import asyncio
from typing import Any, assert_type

import kvi
from kvi import aio
from kvi.loader import Entry, Handles, TypedView
from kvi.registry import InstalledBackend

from docs.examples.device_agent.device_pb2 import Meter, Profile, ResourceRecord


def test_types() -> None:
    """What a type checker believes of the interface is what programs get."""
    with kvi.open("mem:typing", timeout=3) as store:
        assert_type(store, kvi.Kvi)
        assert_type(store.store("k", "v"), int)
        assert_type(store.get("k"), kvi.KeyValue | None)
        assert_type(store.range(prefix="k"), kvi.RangeResult)
        for entry in store.range():
            assert_type(entry, kvi.KeyValue)
            assert_type(entry.value, bytes | None)
            assert_type(entry.text, str)
        assert_type(store.get("k", revision=1), kvi.KeyValue | None)
        assert_type(store.range(prefix="x", revision=1), kvi.RangeResult)
        assert_type(store.history("k", limit=2), list[kvi.Event])
        assert_type(store.count(), int)
        assert_type(store.delete("x"), bool)
        assert_type(store.delete_range(prefix="x"), int)
        assert_type(store.tas("k", b"v", None), bool)
        assert_type(store.cas("k", 0, b"v"), int | None)
        done = store.txn([kvi.Key("k").exists], [kvi.Put("k", b"w"), kvi.Get("k")])
        assert_type(done, kvi.TxnResult)
        assert_type(done.results, tuple[kvi.KeyValue | int | bool | None, ...])
        assert_type(kvi.Key("k").value == b"v", kvi.Compare)
        assert_type(kvi.Key("k").revision > 3, kvi.Compare)
        assert_type(store.transaction("k", "=", "v", "a", "1", "b", "2"), bool)
        assert_type(store.update("k", lambda old: b"v"), kvi.KeyValue | None)
        assert_type(store.atomically(_work), int)
        assert_type(store.namespace("n"), kvi.Kvi)
        assert_type(store.capabilities, kvi.Capabilities)
        assert_type(store.client, Any)
        store.ping()
    assert_type(kvi.backends(), list[InstalledBackend])


def _work(tx: kvi.Tx) -> int:
    assert_type(tx.get("k"), kvi.KeyValue | None)
    tx.put("k", "v")
    tx.delete("k")
    return 1


async def _awaited_work(tx: aio.AsyncTx) -> int:
    assert_type(await tx.get("k"), kvi.KeyValue | None)
    return 1


def _plain_work(tx: aio.AsyncTx) -> int:
    tx.put("k", "v")
    return 1


def test_types_of_aio() -> None:
    """What is awaited, iterated and entered has its type, as in `kvi`."""
    asyncio.run(_aio_types())


async def _aio_types() -> None:
    async with kvi.aio.open("mem:typing-aio", timeout=3) as store:
        assert_type(store, aio.AsyncKvi)
        assert_type(await store.store("k", "v"), int)
        assert_type(await store.get("k"), kvi.KeyValue | None)
        assert_type(await store.get("k", revision=1), kvi.KeyValue | None)
        assert_type(await store.history("k"), list[kvi.Event])
        async for entry in store.range(prefix="k", revision=1):
            assert_type(entry, kvi.KeyValue)
        rows = await store.range(prefix="k")
        assert_type(rows, aio.AsyncRangeResult)
        assert_type(rows.revision, int | None)
        assert_type([entry async for entry in rows], list[kvi.KeyValue])
        assert_type(await store.tas("k", b"v", b"w"), bool)
        assert_type(await store.cas("k", 0, b"v"), int | None)
        assert_type(await store.txn([kvi.Key("k").exists]), kvi.TxnResult)
        assert_type(await store.update("k", lambda old: b"v"), kvi.KeyValue | None)
        assert_type(await store.atomically(_awaited_work), int)
        assert_type(await store.atomically(_plain_work), int)
        async with store.lease(10) as lease:
            assert_type(lease, aio.AsyncLease)
            assert_type(await lease.renew(), float)
        async with store.temp_key("t") as key:
            assert_type(key, aio.AsyncTempKey)
        async with store.lock("jobs", cancel_on_loss=True) as lock:
            assert_type(lock, aio.AsyncLock)
            assert_type(lock.fence, int)
            assert_type(lock.guard, kvi.Compare)
            assert_type(await lock.lost.wait(0), bool)
        async with store.watch("k", initial=True) as watch:
            assert_type(watch, aio.AsyncWatch)
            assert_type(await watch.next(10), kvi.Event)
            await watch.cancel()
            async for event in watch:
                assert_type(event, kvi.Event)
        assert_type(store.namespace("n"), aio.AsyncKvi)


def test_types_of_entities() -> None:
    """Ids, entities and records keep their types through loaders, handles and views."""
    with kvi.open("mem:typing-entities") as store:
        meters = kvi.Loader(store, "meters", kvi.ProtobufCodec(Meter), lambda meter: meter.id)
        assert_type(meters, kvi.Loader[int, Meter])
        assert_type(meters.load(), tuple[kvi.BadRecord, ...])
        handle, created = meters.lock_or_create(Meter(id=1))
        assert_type(handle, kvi.Handle[Meter])
        assert_type(created, bool)
        assert_type(handle.value, Meter)
        handle.unlock()
        assert_type(meters.lock(1), kvi.Handle[Meter] | None)
        assert_type(meters.list(), list[int])
        assert_type(list(meters), list[Meter])
        assert_type(list(meters.items()), list[tuple[int, Meter]])
        assert_type(meters.peek(1), Meter | None)
        assert_type(meters.past(1, 0), Meter | None)
        assert_type([event.value for event in meters.history(1)], list[Meter | None])

        def pack(profile: Profile) -> ResourceRecord:
            return ResourceRecord(subscriber=profile.subscriber)

        def unpack(record: ResourceRecord) -> Profile:
            return Profile(subscriber=record.subscriber)

        # A lambda would leave the type of ids open.
        def subscriber(profile: Profile) -> int:
            return profile.subscriber

        profiles = kvi.Loader(
            store,
            "profiles",
            kvi.ProtobufCodec(ResourceRecord),
            subscriber,
            pack=pack,
            unpack=unpack,
        )
        assert_type(profiles, kvi.Loader[int, Profile])

    with kvi.open("mem:typing-together") as store:
        meters = kvi.Loader(store, "meters", kvi.ProtobufCodec(Meter), lambda meter: meter.id)
        names = kvi.Loader(store, "names", kvi.TextCodec(), lambda name: name)
        assert_type(names, kvi.Loader[str, str])
        with kvi.lock_many(meters.at(1), names.at("a")) as (meter, name):
            assert_type(meter, kvi.Handle[Meter])
            assert_type(name, kvi.Handle[str])
        with names.lock_many(["a", "b"]) as handles:
            assert_type(handles, Handles[str, str])
            assert_type(handles["a"], kvi.Handle[str])
        view = TypedView(store, kvi.TextCodec())
        assert_type(view, TypedView[str])
        assert_type(view.get("k"), Entry[str] | None)
        assert_type(view.get("k", revision=0), Entry[str] | None)
        assert_type([event.value for event in view.history("k")], list[str | None])
        assert_type([entry.value for entry in view.range()], list[str])
        assert_type(view.put("k", "text"), int)


def test_types_of_entities_of_aio() -> None:
    """Loaders, handles and views of asyncio keep the types as those of `kvi` do."""
    asyncio.run(_entities_of_aio())


async def _entities_of_aio() -> None:
    async with kvi.aio.open("mem:typing-aio-entities") as store:
        meters = aio.Loader(store, "meters", kvi.ProtobufCodec(Meter), lambda meter: meter.id)
        assert_type(meters, aio.Loader[int, Meter])
        assert_type(await meters.load(), tuple[kvi.BadRecord, ...])
        handle, created = await meters.lock_or_create(Meter(id=1))
        assert_type(handle, aio.AsyncHandle[Meter])
        assert_type(created, bool)
        assert_type(handle.value, Meter)
        assert_type(handle.revision, int)
        handle.unlock()
        found = await meters.lock(1)
        assert_type(found, aio.AsyncHandle[Meter] | None)
        assert found is not None
        found.unlock()
        async with meters.lock(1) as locked:
            assert_type(locked, aio.AsyncHandle[Meter])
        assert_type(meters.list(), list[int])
        assert_type(list(meters), list[Meter])
        assert_type(meters.peek(1), Meter | None)
        assert_type(await meters.past(1, 0), Meter | None)
        assert_type([event.value for event in await meters.history(1)], list[Meter | None])
        assert_type(meters.at(1), aio.AsyncRef[Meter])

        def pack(profile: Profile) -> ResourceRecord:
            return ResourceRecord(subscriber=profile.subscriber)

        def unpack(record: ResourceRecord) -> Profile:
            return Profile(subscriber=record.subscriber)

        def subscriber(profile: Profile) -> int:
            return profile.subscriber

        codec = kvi.ProtobufCodec(ResourceRecord)
        profiles = aio.Loader(store, "profiles", codec, subscriber, pack=pack, unpack=unpack)
        assert_type(profiles, aio.Loader[int, Profile])
        names = aio.Loader(store, "names", kvi.TextCodec(), lambda name: name)
        assert_type(names, aio.Loader[str, str])
        async with aio.lock_many(meters.at(1), names.at("a")) as (meter, name):
            assert_type(meter, aio.AsyncHandle[Meter])
            assert_type(name, aio.AsyncHandle[str])
        async with names.lock_many(["a", "b"]) as handles:
            assert_type(handles, aio.AsyncHandles[str, str])
            assert_type(handles["a"], aio.AsyncHandle[str])
        view = aio.TypedView(store, kvi.TextCodec())
        assert_type(view, aio.TypedView[str])
        assert_type(await view.put("k", "text"), int)
        assert_type(await view.get("k"), Entry[str] | None)
        assert_type([event.value for event in await view.history("k")], list[str | None])
        assert_type([entry.value async for entry in view.range(prefix="k")], list[str])
        async with view.watch("k", initial=True) as watch:
            assert_type((await watch.next(20)).value, str | None)

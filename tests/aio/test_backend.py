"""`kvi.aio.Backend`: prefix, retries, liveness, reservations, observers; its store's end."""

from __future__ import annotations

import asyncio

import kvi
import pytest
from kvi import aio, observers
from kvi.hookspecs import ObservedOperation, hookimpl

from tests.support.looping import held, in_loop, until, until_so


@in_loop
async def test_prefix_and_ends(uri: str) -> None:
    """A backend of a URI closes its store; one over a handle leaves it open."""
    backend = aio.Backend(uri, "service/inventory", timeout=20)
    await backend.store("devices/1", "router")
    await backend.store("devices/2", "switch")
    assert [entry.key async for entry in backend.list("devices")] == ["devices/1", "devices/2"]
    async with backend.lock("jobs", timeout=20):
        pass
    await backend.close()
    assert backend._owned is not None
    assert backend._owned.closed
    with pytest.raises(kvi.Closed):
        await backend.get("devices/1")
    async with aio.open(uri, timeout=20) as store:
        async with aio.Backend(store, "service", timeout=20) as other:
            entry = await other.get("inventory/devices/1")
            assert entry is not None
            assert entry.text == "router"
        assert await store.count(prefix="service/") == 2
    with pytest.raises(kvi.InvalidOption):
        aio.Backend("mem:", "/a")


@in_loop
async def test_past_and_changes(uri: str, ttl: float) -> None:
    """What was, and read-modify-write, within the prefix and within a view of that."""
    async with aio.Backend(uri, "service", timeout=20) as backend, backend.namespace("a") as view:
        for store, key in ((backend, "k"), (view, "l")):
            first = await store.store(key, "1", ttl=ttl)
            entry = await store.update(key, lambda old: old + b"2")
            assert entry == await store.get(key)
            assert entry is not None
            assert (entry.value, entry.lease) == (b"12", None)

            async def move(tx: aio.AsyncTx, key: str = key) -> bytes:
                found = await tx.get(key)
                assert found is not None
                tx.put(f"{key}/moved", found.value or b"")
                tx.delete(key)
                return found.value or b""

            assert await store.atomically(move) == b"12"
            if not backend.capabilities.read_at_revision:
                for call in (store.get(key, revision=first), store.history(key)):
                    with pytest.raises(kvi.NotSupported) as raised:
                        await call
                    assert raised.value.key == key
                continue
            was = await store.get(key, revision=first)
            assert was is not None
            assert (was.key, was.value) == (key, b"1")
            found = [one.key async for one in store.range(prefix=key, revision=entry.revision)]
            assert found == [key]
            changes = await store.history(key)
            assert [(one.key, one.value) for one in changes] == [
                (key, None), (key, b"12"), (key, b"1"),
            ]  # fmt: skip
    async with aio.open(uri, timeout=20) as whole:
        keys = [entry.key async for entry in whole.range(keys_only=True)]
    assert keys == ["service/a/l/moved", "service/k/moved"]
    async with aio.Backend(f"{uri}{'&' if '?' in uri else '?'}read_only=yes", "service") as reader:
        assert await reader.get("k/moved")
        for refused in (
            reader.store("k", "v", ttl=ttl), reader.update("k", lambda old: None),
            reader.atomically(lambda tx: None),
        ):  # fmt: skip
            with pytest.raises(kvi.PermissionDenied):
                await refused


@in_loop
async def test_liveness(sqlite_uri: str) -> None:
    """Operations prove it; the channel tells its present state, then changes; the end ends it."""
    async with aio.Backend(sqlite_uri, retry=None) as backend:
        channel = backend.enable_liveness_channel()
        assert not backend.alive
        assert await channel.get() is False
        assert await backend.perform_liveness_check()
        assert await channel.get() is True
        with held(backend, "_get"), pytest.raises(kvi.Timeout):
            await backend.get("k", timeout=0.05)
        assert await channel.get() is False
        assert await backend.get("k") is None
        assert await channel.get() is True
        with pytest.raises(kvi.Timeout):
            await channel.get(0.01)
        waiting = asyncio.create_task(channel.get())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

        async def read() -> list[bool]:
            return [alive async for alive in channel]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.01)
    assert await reading == []


@in_loop
async def test_retries() -> None:
    """What fails in a way that may pass is tried again; observers see how often."""
    seen: list[ObservedOperation] = []

    class Observer:
        @hookimpl
        def kvi_operation(self, operation: ObservedOperation) -> None:
            """Keep it."""
            seen.append(operation)

    observer = Observer()
    observers.register(observer)
    try:
        policy = kvi.RetryPolicy(min_wait=0.01, max_wait=0.01)
        async with aio.Backend("mem:aio-retries", retry=policy) as backend:
            primitives, left = backend._scope.primitives, 2
            real = primitives._get

            def fail(key: str, timeout: float) -> kvi.KeyValue | None:
                nonlocal left
                if left:
                    left -= 1
                    raise kvi.Unavailable("not yet")
                return real(key, timeout)

            primitives._get = fail  # type: ignore[method-assign]
            assert await backend.get("k") is None
        assert [(one.name, one.attempts) for one in seen] == [("get", 3)]
    finally:
        observers.unregister(observer)


@in_loop
async def test_reservations(uri: str, ttl: float) -> None:
    """Who comes first has the key, keeps it by renewing, and what is cancelled is not reserved."""
    async with (
        aio.Backend(uri, timeout=20) as first,
        aio.Backend(uri, timeout=20) as second,
    ):
        assert await first.reserve("k", "one", ttl) == b"one"
        assert await second.reserve("k", "two", ttl) == b"one"
        await first.store("k", "1")
        await first.renew_reservation("k")
        with pytest.raises(kvi.NotHeld):
            await second.renew_reservation("k")
        await first.release_reservation("k")
        assert await second.reserve("k", "two", ttl) == b"two"
        await second.release_all_reservations()
        assert await first.get("k") is None


@in_loop
async def test_cancelled_reservation(sqlite_uri: str) -> None:
    """A reservation that was cancelled is none, and its key goes."""
    async with aio.Backend(sqlite_uri) as backend:
        with held(backend, "_txn") as inside:
            task = asyncio.create_task(backend.reserve("k", "v", 60))
            await until(lambda: inside)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(kvi.NotHeld):
            await backend.renew_reservation("k")

        async def is_gone() -> bool:
            return not await backend.count() and not backend._scope.ledger._members

        await until_so(is_gone)

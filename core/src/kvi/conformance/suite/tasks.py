"""asyncio: what holds for the tasks and the loop of a program, whatever face the suite runs on."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pytest

import kvi
from kvi import aio
from kvi.conformance import cancelling
from kvi.conformance.contract import rule
from kvi.conformance.holding import HELD, least_held
from kvi.conformance.rules import Rules
from kvi.conformance.waiting import side_by_side, untimed
from kvi.registry import redacted

LONGEST = 100.0
"""Seconds after which a test of these has failed."""


class Looped(Protocol):
    """Opens a handle for asyncio."""

    def __call__(self, **options: object) -> AbstractAsyncContextManager[aio.AsyncKvi]:
        """A handle on the namespace of the test, for an ``async with``."""


class TestAsyncio(Rules):
    """What cancelling, and a loop that is blocked, do to handles of `kvi.aio`, and they to it."""

    @rule("asyncio.cancelled")
    @pytest.mark.usefixtures("root")
    def test_cancelled_calls(self, kvi_uri: str) -> None:
        """Every kind of call is cancelled at random awaits, among healthy calls by one handle."""
        seed = random.SystemRandom().randrange(2**32)

        async def bounded() -> None:
            async with asyncio.timeout(LONGEST):
                await cancelling.storm(kvi_uri, seed=seed)

        try:
            asyncio.run(bounded())
        except* AssertionError as errors:
            shown = redacted(str(kvi_uri))
            again = f"python -m kvi.conformance.cancelling {shown} --seed {seed}"
            raise AssertionError(f"{_first(errors)}\nsee it again: {again}") from None

    @rule("asyncio.blocked-loop")
    @side_by_side
    def test_blocked_loop(self, looped: Looped, peer: kvi.Kvi, brief: float) -> None:
        """A loop that stands still for three times the ttl loses no lock, lease or key."""

        async def program() -> None:
            async with (
                looped(timeout=LONGEST) as store,
                store.lock("lock", ttl=brief) as lock,
                store.lease(brief) as lease,
                store.temp_key("temporary", b"", ttl=brief) as key,
            ):
                await store.store("leased", b"", lease=lease)
                time.sleep(3 * max(brief, lease.ttl))
                assert lock.held, "the lock was lost while the loop was blocked"
                assert lease.alive, "the lease was lost while the loop was blocked"
                assert key.alive, "the temporary key was lost while the loop was blocked"
                assert peer.get("leased") is not None, "the key of the lease has vanished"
                assert peer.get("temporary") is not None, "the temporary key has vanished"
                assert not await asyncio.to_thread(peer.lock("lock").acquire, 0), "two holders"
                done = await store.txn([lock.guard], [kvi.Put("guarded", b"")])
                assert done.succeeded, "the lock's guard is not true any more"

        asyncio.run(program())

    @rule("asyncio.free-loop")
    @pytest.mark.usefixtures("root")
    def test_free_loop(self, kvi_uri: str) -> None:
        """No step of a program of all kinds of calls holds the loop for more than 50 ms."""
        best = least_held(lambda: _everything(kvi_uri))
        assert best.seconds <= HELD, f"{best.name} held the loop for {best.seconds * 1000:.0f} ms"


async def _everything(uri: str) -> None:
    """Each kind of call, many of them at once."""
    async with aio.open(untimed(uri), timeout=cancelling.WITHIN) as store:
        ttl = max(60.0, store.capabilities.lease_min_ttl)  # none is lost on a busy machine
        value, keys = b"v" * 10_000, [f"data/{number:04}" for number in range(1000)]
        await cancelling.fill(store, keys)

        async def use(number: int) -> None:
            key = f"used/{number}"
            await store.store(key, value)
            assert await store.get(key) is not None
            assert await store.tas(key, value, b"x")
            await store.txn([kvi.Key(key).value == b"x"], [kvi.Put(key, b"y"), kvi.Get(key)])

        async def hold(number: int) -> None:
            async with store.lock(f"lock-{number % 3}", ttl=ttl, timeout=LONGEST):
                await store.get("used/0")

        async def keep(number: int) -> None:
            async with store.lease(ttl) as lease, store.temp_key(f"member/{number}", ttl=ttl):
                await store.store(f"leased/{number}", b"", lease=lease)
                await lease.renew()

        async def follow() -> None:
            async with store.watch(prefix="data/", initial=True) as watch:
                for _ in keys:
                    await watch.next(cancelling.WITHIN)

        async def read() -> None:
            assert await store.count(prefix="data/") == len(keys)
            assert [entry.key async for entry in store.range(prefix="data/")] == keys

        async with asyncio.timeout(LONGEST), asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(use(number), name="store, get, tas and txn")
            for number in range(6):
                group.create_task(hold(number), name="lock")
                group.create_task(keep(number), name="lease and temp_key")
            group.create_task(follow(), name="watch")
            group.create_task(read(), name="count and range")
        await store.delete_range(prefix="used/")
        await store.ping()


def _first(errors: BaseExceptionGroup[AssertionError]) -> AssertionError:
    """One of them."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error

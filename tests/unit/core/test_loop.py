"""The loop driver: kvi's flows in an asyncio event loop, over the memory store."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kvi.driver.loop import Loop, LoopPort, LoopSignal
from kvi.errors import Closed, KviError, LeaseLost, Timeout, Unavailable
from kvi.flow.contest import StoreLock
from kvi.flow.lease import LeaseFlow
from kvi.flow.lock import LockFlow
from kvi.flow.scope import Scope
from kvi.middleware.retry import Retrying
from kvi.model import KeyValue, Scan, Span
from kvi.ops import GetOp, Op, PutOp
from kvi.policy.retry import RetryPolicy
from kvi.port import Flow, Port
from kvi.primitives import Primitives
from kvi_memory.store import MemoryKvi

TTL = 5.0

_numbers = itertools.count()


class Gate:
    """Between a flow and the store: holds primitives by name until it is opened."""

    def __init__(self, primitives: Primitives) -> None:
        self.primitives = primitives
        self.shut: dict[str, threading.Event] = {}
        self.inside: list[str] = []  # that are held, or were

    def hold(self, name: str) -> threading.Event:
        """Hold calls of this primitive until the event is set."""
        event = self.shut[name] = threading.Event()
        real = getattr(self.primitives, name)

        def held(*arguments: Any) -> Any:
            self.inside.append(name)
            assert event.wait(20), "nobody has opened the gate"
            return real(*arguments)

        setattr(self.primitives, name, held)
        return event


class OnThreads(MemoryKvi):
    """A memory store that is asked on threads, as any other."""

    in_place = frozenset()


class Handle:
    """A store whose flows run in the loop."""

    def __init__(self, uri: str) -> None:
        self.loop = Loop()
        self.primitives = OnThreads(uri, uri, timeout=5.0)
        self.scope = Scope(self.loop, self.primitives)
        self.gate = Gate(self.primitives)

    async def run(self, flow: Callable[[Port], Flow[Any]], *, lasting: bool = False) -> Any:
        """Run a flow."""
        with LoopPort(self.loop, self.scope, lasting=lasting) as port:
            return await flow(port)

    def keys(self) -> list[str]:
        """All keys of the store."""
        return [entry.key for entry in self.primitives._range(Scan(Span()), 1.0)]

    async def close(self) -> None:
        """As the face would."""
        self.scope.shut()
        await self.run(self.scope.settle, lasting=True)
        self.loop.stop()
        self.primitives._close()


@asynccontextmanager
async def opened(uri: str | None = None) -> AsyncIterator[Handle]:
    """A handle, closed at the end."""
    handle = Handle(uri or f"mem:loop-{next(_numbers)}")
    try:
        yield handle
    finally:
        await handle.close()


async def until(condition: Callable[[], object], within: float = 20.0) -> None:
    """Wait in the loop for a condition."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(0.005)


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in a loop of its own."""

    def run() -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test()

        asyncio.run(bounded())

    run.__doc__ = test.__doc__
    run.__name__ = test.__name__
    return run


@in_loop
async def test_lock_is_acquired_and_released() -> None:
    """A lock is had, is held, and leaves nothing behind."""
    async with opened() as handle:
        lock = LockFlow(handle.scope, StoreLock("jobs", handle.scope.capabilities), TTL)
        assert await handle.run(lambda port: lock.acquire(port, 0))
        assert lock.held
        await handle.run(lambda port: lock.release(port, 5.0))
        assert not lock.held
        assert handle.keys() == []


@in_loop
async def test_lock_waits_for_its_holder() -> None:
    """Who waits gets the lock when its holder lets go, and the loop goes on meanwhile."""
    async with opened() as handle:
        first, second = (
            LockFlow(handle.scope, StoreLock("jobs", handle.scope.capabilities), TTL)
            for _ in range(2)
        )
        assert await handle.run(lambda port: first.acquire(port, 0))
        waiting = asyncio.create_task(handle.run(lambda port: second.acquire(port, None)))
        await until(lambda: len(handle.keys()) == 2)
        assert not waiting.done()
        await handle.run(lambda port: first.release(port, 5.0))
        assert await waiting
        assert second.held


@in_loop
async def test_lock_waits_in_vain() -> None:
    """A wait that ends without the lock leaves no claim."""
    async with opened() as handle:
        first, second = (
            LockFlow(handle.scope, StoreLock("jobs", handle.scope.capabilities), TTL)
            for _ in range(2)
        )
        assert await handle.run(lambda port: first.acquire(port, 0))
        assert not await handle.run(lambda port: second.acquire(port, 0.05))
        assert len(handle.keys()) == 1


@in_loop
async def test_cancelled_wait_leaves_no_claim() -> None:
    """A task that is cancelled while it waits for a lock gives up its place."""
    async with opened() as handle:
        first, second = (
            LockFlow(handle.scope, StoreLock("jobs", handle.scope.capabilities), TTL)
            for _ in range(2)
        )
        assert await handle.run(lambda port: first.acquire(port, 0))
        waiting = asyncio.create_task(handle.run(lambda port: second.acquire(port, None)))
        await until(lambda: len(handle.keys()) == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: len(handle.keys()) == 1)
        assert first.held


@pytest.mark.parametrize("name", ["_lease_grant", "_lock_claim", "_watch"])
def test_cancelled_call_leaves_nothing(name: str) -> None:
    """A task that is cancelled while the store does a step of an acquire leaves no claim."""

    async def run() -> None:
        async with opened() as handle:
            first, second = (
                LockFlow(handle.scope, StoreLock("jobs", handle.scope.capabilities), TTL)
                for _ in range(2)
            )
            assert await handle.run(lambda port: first.acquire(port, 0))
            watches = len(handle.primitives._state.watches)
            gate = handle.gate.hold(name)
            acquiring = asyncio.create_task(handle.run(lambda port: second.acquire(port, None)))
            await until(lambda: handle.gate.inside)
            acquiring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await acquiring
            gate.set()
            await until(lambda: len(handle.keys()) == 1)
            await until(lambda: len(handle.primitives._state.watches) == watches)
            assert first.held

    asyncio.run(run())


@in_loop
async def test_lease_lives_while_the_loop_is_blocked() -> None:
    """Renewals do not depend on the loop: one that is blocked for twice the ttl loses none.

    The store says so too.
    """
    async with opened() as handle:
        lease = await handle.run(
            lambda port: LeaseFlow.grant(port, handle.scope, 1.0, 5.0, keep_alive=True)
        )
        time.sleep(2.2)  # the loop stands still
        assert lease.alive
        assert await handle.run(lambda port: lease.renew(port, 5.0)) == 1.0
        await handle.run(lambda port: lease.revoke(port, 5.0))
        assert not lease.alive
        with pytest.raises(LeaseLost):
            await handle.run(lambda port: lease.renew(port, 5.0))


@in_loop
async def test_temporary_key() -> None:
    """A key under a lease is there, and goes with it; a cancelled store leaves none."""
    async with opened() as handle:
        scope = handle.scope
        lease = await handle.run(
            lambda port: LeaseFlow.with_key(port, scope, "key", b"value", TTL, 5.0)
        )
        assert handle.keys() == ["key"]
        lease.abandon()
        await until(lambda: handle.keys() == [])
        gate = handle.gate.hold("_txn")
        storing = asyncio.create_task(
            handle.run(lambda port: LeaseFlow.with_key(port, scope, "late", b"", TTL, 5.0))
        )
        await until(lambda: handle.gate.inside)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        gate.set()
        await until(lambda: handle.keys() == [])


class Failing:
    """An executor that fails a few times."""

    is_short = False

    def __init__(self, scope: Scope, times: int) -> None:
        self._inner = scope.executor
        self.left = times

    async def execute(self, op: Op[Any], call: Any) -> Any:
        """Fail, or do it."""
        if self.left:
            self.left -= 1
            raise Unavailable("not yet")
        return await self._inner.execute(op, call)


@in_loop
async def test_retries() -> None:
    """What fails in a way that may pass is tried again, while other tasks run."""
    async with opened() as handle:
        scope = handle.scope
        failing = Failing(scope, 2)
        policy = RetryPolicy(min_wait=0.02, max_wait=0.02)
        scope.executor = Retrying(failing, policy, scope.uri, lambda: scope.closed)
        await handle.run(lambda port: scope.execute(port, PutOp("key", b"1", None), 5.0))
        assert failing.left == 0
        found = await handle.run(lambda port: scope.execute(port, GetOp("key"), 5.0))
        assert isinstance(found, KeyValue)
        assert found.value == b"1"


@in_loop
async def test_retry_is_cancelled() -> None:
    """A task that is cancelled between two tries ends at once, and asks no more."""
    async with opened() as handle:
        scope = handle.scope
        failing = Failing(scope, 1)
        policy = RetryPolicy(min_wait=4.0)
        scope.executor = Retrying(failing, policy, scope.uri, lambda: scope.closed)
        task = asyncio.create_task(
            handle.run(lambda port: scope.execute(port, PutOp("key", b"1", None), 20.0))
        )
        await until(lambda: not failing.left)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert handle.keys() == []


@in_loop
async def test_one_slow_call_stops_no_other() -> None:
    """A primitive that blocks holds one thread; what waits for a thread counts its own time."""
    async with opened() as handle:
        scope = handle.scope
        gate = handle.gate.hold("_get")
        slow = [
            asyncio.create_task(handle.run(lambda port: scope.execute(port, GetOp("key"), 20.0)))
            for _ in range(6)
        ]
        await until(lambda: handle.gate.inside)
        await handle.run(lambda port: scope.execute(port, PutOp("other", b"1", None), 5.0))
        gate.set()
        await asyncio.gather(*slow)


@in_loop
async def test_call_without_a_thread_ends_in_time() -> None:
    """If every thread is busy for longer than a call has, it ends with `Timeout`."""
    async with opened() as handle:
        scope = handle.scope
        handle.loop.jobs._few = handle.loop.jobs._most = 1
        gate = handle.gate.hold("_get")
        slow = asyncio.create_task(handle.run(lambda port: scope.execute(port, GetOp("key"), 20.0)))
        await until(lambda: handle.gate.inside)
        with pytest.raises(Timeout):
            await handle.run(lambda port: scope.execute(port, PutOp("key", b"1", None), 0.05))
        gate.set()
        await slow
        assert handle.keys() == [], "what has ended with Timeout is never sent"


@in_loop
async def test_close_wakes_who_waits() -> None:
    """Closing wakes a waiting lock and a call that the store has not answered, with `Closed`."""
    handle = Handle(f"mem:loop-{next(_numbers)}")
    first, second = (
        LockFlow(handle.scope, StoreLock("jobs", handle.scope.capabilities), TTL) for _ in range(2)
    )
    assert await handle.run(lambda port: first.acquire(port, 0))
    waiting = asyncio.create_task(handle.run(lambda port: second.acquire(port, None)))
    await until(lambda: len(handle.keys()) == 2)
    gate = handle.gate.hold("_get")
    asking = asyncio.create_task(
        handle.run(lambda port: handle.scope.execute(port, GetOp("key"), 20.0))
    )
    await until(lambda: handle.gate.inside)
    await handle.close()
    for task in (waiting, asking):
        with pytest.raises(KviError) as caught:
            await task
        assert isinstance(caught.value, Closed)
    gate.set()
    await until(lambda: handle.keys() == [])


@in_loop
async def test_close_right_behind_the_answer() -> None:
    """A call that has its answer, but has not taken it yet, is told `Closed`: it is given back."""
    handle = Handle(f"mem:loop-{next(_numbers)}")
    handle.primitives._put("key", b"1", None, 1.0)
    gate = handle.gate.hold("_get")
    asking = asyncio.create_task(
        handle.run(lambda port: handle.scope.execute(port, GetOp("key"), 20.0))
    )
    await until(lambda: handle.gate.inside)
    (port,) = handle.loop.awaited
    job = port._job
    assert job is not None
    gate.set()
    while not job._ended:  # the loop stands still
        time.sleep(0.001)
    job.settle()
    handle.scope.shut()
    port.wake()
    with pytest.raises(Closed):
        await asking
    await handle.close()


@in_loop
async def test_wake_while_calls_come() -> None:
    """A call that begins while another thread wakes all keeps nobody from being woken."""
    async with opened() as handle:
        loop, runtime, scope = asyncio.get_running_loop(), handle.loop, handle.scope
        runtime.awaited.update((LoopPort(runtime, scope), loop) for _ in range(100))
        first, last = next(iter(runtime.awaited)), next(reversed(runtime.awaited))

        def come(phase: str, info: object) -> None:  # as a thread that a finalizer lets run
            runtime.awaited[LoopPort(runtime, scope)] = loop

        before = gc.get_threshold()
        gc.callbacks.append(come)
        gc.set_threshold(1)
        try:
            runtime.wake()
        finally:
            gc.set_threshold(*before)
            gc.callbacks.remove(come)
        await until(lambda: first.woken and last.woken)
        runtime.awaited.clear()


@in_loop
async def test_signal_from_any_thread() -> None:
    """A signal that another thread sets wakes the flow, now or at its next wait."""
    signal = LoopSignal()
    assert not await signal.wait(0.01)
    threading.Timer(0.02, signal.set).start()
    assert await signal.wait(10.0)
    signal.set()
    signal.set()
    assert await signal.wait(0)
    assert not await signal.wait(0)


@in_loop
async def test_wake_before_the_wait() -> None:
    """Closing wakes a flow that is about to wait, too: its next wait ends at once, and no other."""
    async with opened() as handle:
        with LoopPort(handle.loop, handle.scope) as port:
            signal = port.signal()
            handle.loop.wake()
            await until(lambda: port.woken)
            before = time.monotonic()
            await signal.wait(5.0)
            assert time.monotonic() - before < 4
            assert not await signal.wait(0.01)
            waiting = asyncio.ensure_future(signal.wait(5.0))
            await until(lambda: port.waits is signal)
            handle.loop.wake()
            assert await waiting
            assert port.waits is None


@in_loop
async def test_nothing_is_kept_of_a_signal() -> None:
    """A flow that waits again and again, each time for another signal, does not grow."""
    async with opened() as handle:
        with LoopPort(handle.loop, handle.scope) as port:
            for _ in range(100):
                await port.signal().wait(0)
            gc.collect()
            assert sum(isinstance(one, LoopSignal) for one in gc.get_objects()) < 10


def test_signal_of_a_closed_loop() -> None:
    """Setting a signal whose loop has ended does nothing."""
    kept: list[LoopSignal] = []

    async def make() -> None:
        kept.append(LoopSignal())

    asyncio.run(make())
    thread = threading.Thread(target=kept[0].set)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()

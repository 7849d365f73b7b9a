"""Tasks that are cancelled at a random `await` of every kind of call, and what must be true then.

Calls are cancelled one after the other in a few lanes. Around them healthy tasks use the same
handle, and know what each answer must be; another handle holds, writes and looks. What was struck
is chosen by a seed; how the tasks take turns is not.

*Where.* A call is run once to count its awaits. Then its task is cancelled at one of them: as it
begins to wait, some turns of the loop after that, or at the moment that what it waits for is here.
What waits for others is also cancelled after a while.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any
from unittest import mock

import kvi
from kvi import aio
from kvi.aio.face import AsyncFace
from kvi.conformance.waiting import untimed
from kvi.driver import loop

__all__ = ["CALLS", "HITS", "cancelled_at", "fill", "storm"]

HITS = 12
"""How often each kind of call is cancelled in a run of the suite."""

WITHIN = 20.0
"""Seconds within which what must happen happens, on a machine that is busy with something else."""

PROMPT = 5.0
"""Seconds within which a task that is cancelled must have ended."""

MARGIN = 5.0
"""Seconds that a busy machine needs beside a bound."""

_LEAST = 1.0  # seconds of a lease that is renewed on a busy machine
_LANES = 4
_MANY = 700  # entries of a range, more than a page has
_MOMENT = 0.03  # seconds, at the most, after which a wait is cancelled
_AT_ONCE, _LATE = 0, -1  # in place of a number of turns
_TURNS = (_AT_ONCE, _AT_ONCE, 4, 16, 64, 256, _LATE, _LATE)


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine whose task is cancelled once it has suspended so many times; 0: never.

    ``turns`` of the loop later, or together with what it waits for (`_LATE`).
    """

    def __init__(self, inner: Coroutine[Any, Any, Any], number: int, turns: int) -> None:
        self._inner = inner
        self._number = number
        self._turns = turns
        self.awaits = 0
        self.cancelled = False

    def send(self, value: Any) -> Any:
        """As a coroutine's."""
        waited = self._inner.send(value)
        self.awaits += 1
        if self.awaits == self._number:
            task = asyncio.current_task()
            assert task is not None  # it runs in one
            if self._turns != _LATE:
                self._cancel(task, self._turns)
            elif asyncio.isfuture(waited):
                waited.add_done_callback(lambda _: self._cancel(task))
            else:  # it waits for its turn only
                self._cancel(task)
        return waited

    def throw(self, *raised: Any) -> Any:
        """As a coroutine's."""
        return self._inner.throw(*raised)

    def close(self) -> None:
        """As a coroutine's."""
        self._inner.close()

    def __await__(self) -> Any:
        raise AssertionError("this is for a task")

    def _cancel(self, task: asyncio.Task[Any], turns: int = 0) -> None:
        if turns > 0:
            task.get_loop().call_soon(self._cancel, task, turns - 1)
        else:
            self.cancelled = task.cancel() or self.cancelled


async def _struck(
    call: Callable[[], Coroutine[Any, Any, object]], number: int, turns: int, patience: float | None
) -> _Counted:
    """Run a call in a task that is cancelled, and see that nothing but that comes out."""
    counted = _Counted(call(), number, turns)
    task = asyncio.ensure_future(counted)
    if patience is not None:
        await asyncio.wait([task], timeout=patience)
        counted._cancel(task)
    begin = monotonic()
    await asyncio.wait([task])
    if not counted.cancelled:
        task.result()  # raises what it did
        return counted
    took = monotonic() - begin
    assert patience is None or took < PROMPT, f"it ended {took:.1f} s after it was cancelled"
    if not task.cancelled():
        error = task.exception()
        assert error is not None, "its CancelledError was swallowed"
        name = type(error).__name__
        raise AssertionError(f"{name} came out in place of CancelledError: {error}") from error
    return counted


async def cancelled_at(
    call: Callable[[], Coroutine[Any, Any, object]], number: int, *, late: bool
) -> bool:
    """Run a coroutine in a task that is cancelled at its `await` of that number.

    Whether it was; false if it has fewer. `CancelledError` must come out, and nothing else.
    ``late``: not as it begins to wait, but together with what it waited for.
    """
    return (await _struck(call, number, _LATE if late else _AT_ONCE, None)).cancelled


async def fill(store: aio.AsyncKvi, keys: Sequence[str]) -> None:
    """Store what calls read."""
    size = min(100, store.capabilities.max_txn_ops or 100)
    for first in range(0, len(keys), size):
        puts = [kvi.Put(key, f"value of {key}") for key in keys[first : first + size]]
        await store.txn(then=puts)


class Scene:
    """The handles, and what is to be seen at the end.

    Attributes:
        store: the handle whose calls are cancelled.
        other: another handle on the same store.
        ttl: of the leases that calls take.
        names: of the locks that calls took.
        got: the numbers that a watch told.
        filled: the revision at which there was all that calls read.

    """

    watch: aio.AsyncWatch

    def __init__(self, store: aio.AsyncKvi, other: aio.AsyncKvi) -> None:
        self.store = store
        self.other = other
        self.ttl = max(_LEAST, store.capabilities.lease_min_ttl)
        self.keys = [f"data/{number:04}" for number in range(_MANY)]
        self.names: list[str] = []
        self.got: list[int] = []
        self.filled = 0
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """One that was not given before."""
        return next(self._numbers)

    def name(self) -> str:
        """That of a lock of its own."""
        self.names.append(f"locks/{self.number()}")
        return self.names[-1]

    @property
    def bound(self) -> float:
        """Seconds within which what a cancelled call had is free."""
        capabilities = self.store.capabilities
        factor = capabilities.lease_expiry_factor + capabilities.lock_delay_factor
        return factor * self.ttl + 1 + MARGIN


# -- the calls -------------------------------------------------------------------------------------


async def _get(scene: Scene) -> None:
    entry = await scene.store.get("data/0007")
    assert entry is not None, "get does not tell what is there"
    assert entry.text == "value of data/0007", "get tells the value of another key"


async def _count(scene: Scene) -> None:
    assert await scene.store.count(prefix="data/") == _MANY, "the count is wrong"


async def _range(scene: Scene) -> None:
    found = [entry.key async for entry in scene.store.range(prefix="data/")]
    assert found == scene.keys, "the range is not whole"


async def _range_left(scene: Scene) -> None:
    async for entry in scene.store.range(prefix="data/"):
        assert entry.key == scene.keys[0]
        break
    await _get(scene)


async def _past(scene: Scene) -> None:
    store, key = scene.store, "data/0007"
    if store.capabilities.read_at_revision:
        entry = await store.get(key, revision=scene.filled)
        assert entry is not None, "get does not tell what was there"
        assert entry.text == f"value of {key}", "get tells the value of another key"
    if store.capabilities.watch_history:
        (event,) = await store.history(key, limit=1)
        assert event.key == key, "the history is that of another key"


async def _store(scene: Scene) -> None:
    key = f"writes/{scene.number()}"
    revision = await scene.store.store(key, key)
    entry = await scene.store.get(key)
    assert entry is not None, "what was written is not there"
    assert (entry.text, entry.revision) == (key, revision), "an answer is of another call"


async def _tas(scene: Scene) -> None:
    key = f"writes/{scene.number()}"
    assert await scene.store.tas(key, None, "1"), "nobody else writes it, and it is refused"
    assert not await scene.store.tas(key, None, "2"), "what was written is not there"


async def _txn(scene: Scene) -> None:
    number = scene.number()
    first, second = (f"pairs/{number}/{name}" for name in "ab")
    done = await scene.store.txn(then=[kvi.Put(first, "1"), kvi.Put(second, "1"), kvi.Get(first)])
    found = done.results[2]
    assert isinstance(found, kvi.KeyValue)
    assert found.key == first, "an answer is of another call"


async def _lock(scene: Scene) -> None:
    lock = scene.store.lock(scene.name(), ttl=scene.ttl)
    assert await lock.acquire(WITHIN), "nobody holds it, and it cannot be had"
    await lock.release()


async def _lock_block(scene: Scene) -> None:
    async with scene.store.lock(scene.name(), ttl=scene.ttl, timeout=WITHIN) as held:
        await scene.store.txn([held.guard], [kvi.Put("guarded", b"")])


async def _lock_wait(scene: Scene) -> None:
    await scene.store.lock("contended", ttl=scene.ttl).acquire()
    raise AssertionError("a lock has two holders")


async def _lease(scene: Scene) -> None:
    async with scene.store.lease(scene.ttl) as lease:
        await scene.store.store(f"leased/{scene.number()}", b"", lease=lease)


async def _temp_key(scene: Scene) -> None:
    async with scene.store.temp_key(f"leased/{scene.number()}", ttl=scene.ttl):
        await _get(scene)


async def _watch(scene: Scene) -> None:
    async with scene.store.watch(prefix="numbers/", initial=True) as watch:
        event = await watch.next(WITHIN)
        assert event.key == "numbers/k", "a watch tells what is not its own"


async def _watch_left(scene: Scene) -> None:
    async with scene.store.watch("numbers/k") as watch:
        async for event in watch:
            assert event.key == "numbers/k", "a watch tells what is not its own"
            break


async def _next(scene: Scene) -> None:
    event = await scene.watch.next(WITHIN)
    scene.got.append(int(event.value or b"0"))


CALLS: dict[str, Callable[[Scene], Coroutine[Any, Any, None]]] = {
    "get": _get,
    "count": _count,
    "range": _range,
    "a range that is left": _range_left,
    "the past": _past,
    "store": _store,
    "tas": _tas,
    "txn": _txn,
    "acquire and release": _lock,
    "the block of a lock": _lock_block,
    "waiting for a lock": _lock_wait,
    "the block of a lease": _lease,
    "the block of a temporary key": _temp_key,
    "the block of a watch": _watch,
    "a watch that is left": _watch_left,
    "next": _next,
}
"""Every kind of call that is cancelled."""

_WAITING = {"waiting for a lock", "next", "the block of a watch", "a watch that is left"}


# -- the run ---------------------------------------------------------------------------------------


async def storm(uri: str, *, seed: int, hits: int = HITS) -> None:
    """Cancel each kind of call so often; raises `AssertionError` with what it broke.

    Everything in the store is deleted.
    """
    async with aio.open(untimed(uri), timeout=WITHIN) as store:
        await store.ping()  # a library may keep a thread for the process
    threads = _threads()
    with mock.patch.object(loop, "_TURN", 0.0):  # what never waits has an await all the same
        await _run(uri, seed, hits)
    deadline = monotonic() + WITHIN
    while left := _threads() - threads:
        assert monotonic() < deadline, f"threads are left behind: {[one.name for one in left]}"
        await asyncio.sleep(0.01)


def _threads() -> set[threading.Thread]:
    """All but those of the loops' own executors, which grow with their use up to a bound."""
    return {one for one in threading.enumerate() if not one.name.startswith("asyncio_")}


async def _run(uri: str, seed: int, hits: int) -> None:
    async with (
        aio.open(untimed(uri), timeout=WITHIN) as store,
        aio.open(untimed(uri), timeout=WITHIN) as other,
    ):
        await store.delete_range(prefix="")
        scene = Scene(store, other)
        await fill(store, scene.keys)
        scene.filled = await store.store("filled", b"")
        async with (
            _healthy(scene),
            _numbers(scene),
            other.lock("contended", ttl=60, timeout=WITHIN),  # never lost on a busy machine
        ):
            lanes = list(CALLS)
            async with asyncio.TaskGroup() as group:
                for number in range(_LANES):
                    choice = random.Random(f"{seed} {number}")
                    group.create_task(_lane(scene, lanes[number::_LANES], choice, hits))
        await _whole(scene)
        await _clean(scene)


async def _lane(scene: Scene, names: list[str], choice: random.Random, hits: int) -> None:
    awaits = {}
    for name in names:
        waits = name == "waiting for a lock"
        awaits[name] = 4 if waits else (await _strike(scene, name, 0, 0, None)).awaits
    for name in choice.sample(names * hits, len(names) * hits):
        number, turns = choice.randint(1, max(1, awaits[name])), choice.choice(_TURNS)
        patience = choice.random() * _MOMENT if name in _WAITING else None
        await _strike(scene, name, number, turns, patience)


async def _strike(
    scene: Scene, name: str, number: int, turns: int, patience: float | None
) -> _Counted:
    try:
        return await _struck(lambda: CALLS[name](scene), number, turns, patience)
    except AssertionError as error:
        how = "with what it waited for" if turns == _LATE else f"{turns} turns later"
        where = f", cancelled at await {number}, {how}" if number else ""
        raise AssertionError(f"{name}{where}: {error}") from error


@asynccontextmanager
async def _healthy(scene: Scene) -> AsyncIterator[None]:
    """For the block, tasks use the handle whose answers must be their own."""
    over = False

    async def work(number: int) -> None:
        key, store = f"healthy/{number}", scene.store
        for call in itertools.count():
            value = f"{number}.{call}"
            revision = await store.store(key, value)
            entry = await store.get(key)
            assert entry is not None, "a healthy task does not find what it wrote"
            assert (entry.key, entry.text, entry.revision) == (key, value, revision), (
                "a healthy task got the answer of another call"
            )
            assert await store.tas(key, value, "x"), "a healthy task got another's answer"
            assert [e.key async for e in store.range(f"{key}", limit=1)] == [key]
            if over:
                return
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(work(number)) for number in range(3)]
    try:
        yield
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    over = True
    async with asyncio.timeout(WITHIN):
        await asyncio.gather(*tasks)


@asynccontextmanager
async def _numbers(scene: Scene) -> AsyncIterator[None]:
    """For the block, the other handle writes numbers, of which a watch must tell each once."""
    over, last = False, 0

    async def write() -> None:
        nonlocal last
        while not over:
            await scene.other.store("numbers/k", str(last + 1))
            last += 1
            await asyncio.sleep(0.003)

    scene.watch = await scene.store.watch("numbers/k")
    writing = asyncio.create_task(write())
    try:
        yield
    finally:
        over = True
        await writing
    while last not in scene.got:
        try:
            await _next(scene)
        except kvi.Timeout:
            raise AssertionError(f"a watch went quiet before it told {last}") from None
    await scene.watch.cancel()
    assert scene.got == sorted(set(scene.got)), "a watch told an event again, or an older one"
    if scene.store.capabilities.watch_history:
        missing = sorted(set(range(1, last + 1)) - set(scene.got))
        assert not missing, f"a watch lost {missing[:5]}, by a `next` that was cancelled"


async def _whole(scene: Scene) -> None:
    """Transactions are done whole or not at all."""
    found: dict[str, int] = {}
    async for entry in scene.other.range(prefix="pairs/"):
        pair = entry.key.rpartition("/")[0]
        found[pair] = found.get(pair, 0) + 1
    half = [pair for pair, number in found.items() if number != 2]
    assert not half, f"half of a transaction that was cancelled is done: {half[:5]}"


async def _clean(scene: Scene) -> None:
    """Nothing of the calls stays taken."""
    bound = scene.bound
    deadline = monotonic() + bound

    async def free(name: str) -> None:
        lock = scene.other.lock(name, ttl=scene.ttl)
        assert await lock.acquire(max(0.5, deadline - monotonic())), (
            f"the claim of a call that was cancelled keeps {name} taken after {bound:g} s"
        )
        with suppress(kvi.LeaseLost):  # on a machine that stood still for a ttl; it was free
            await lock.release()

    await asyncio.gather(*(free(name) for name in ["contended", *scene.names[-50:]]))
    while left := [entry.key async for entry in scene.other.range(prefix="leased/", limit=3)]:
        assert monotonic() < deadline, f"keys under a lease stay: {left}"
        await asyncio.sleep(0.05)
    await _until(
        lambda: not _members(scene.store),
        "a lease or a watch of a call that was cancelled is kept",
        max(0.5, deadline - monotonic()),
    )


def _members(store: AsyncFace) -> list[object]:
    """What the handle keeps alive, but for idle leases."""
    ledger = store._scope.ledger
    idle = {id(lease) for lease, _, _ in ledger._idle}
    return [one for one in ledger._members if id(one) not in idle]


async def _until(condition: Callable[[], object], what: str, within: float) -> None:
    deadline = monotonic() + within
    while not condition():
        assert monotonic() < deadline, what
        await asyncio.sleep(0.01)


def main() -> None:
    """The run as a command."""
    parser = argparse.ArgumentParser(
        prog="python -m kvi.conformance.cancelling",
        description="Cancel every kind of call of kvi.aio on a store, and delete all in it.",
    )
    parser.add_argument("uri")
    parser.add_argument("--seed", type=int, default=1, help="chooses what is cancelled, and where")
    parser.add_argument("--hits", type=int, default=HITS, help="how often each kind of call is")
    given = parser.parse_args()
    asyncio.run(storm(given.uri, seed=given.seed, hits=given.hits))


if __name__ == "__main__":
    main()

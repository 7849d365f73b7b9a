"""How the cost of a call and the memory of its process grow with what is there.

Of each subject so many are made in one process, in steps of ten; after each step some calls are
made, and their median is told. A call that has to look at everything would cost ten times as much
at each step; aimed at is that none grows faster than the logarithm of the number.

`python -m benchmarks.growing SUBJECT URI` prints a line of JSON for each step. Memory is what the
process holds more than before the first step, where Linux's ``/proc`` tells.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

import kvi
import kvi.aio
from kvi.recipes import Group, Queue

from benchmarks.growth import STATUS, memory

_CALLS = 100  # of each kind after each step
_LONGEST = 2.0  # seconds of them, if that is shorter
_TOGETHER = 50  # keys of a transaction: what every store takes
_TTL = 60.0
_PATIENCE = 60.0
_VALUE = b"v" * 20

Calls = dict[str, Callable[[], object]]


class Subject:
    """Something of which there may be many.

    Attributes:
        sizes: how many there are after each step.

    """

    sizes: tuple[int, ...] = (10, 100, 1_000, 10_000)

    def __init__(self, uri: str) -> None:
        self.stack = ExitStack()
        self.store = self.stack.enter_context(kvi.open(uri, timeout=_PATIENCE))

    def grow(self, first: int, last: int) -> None:
        """Make those with these numbers."""
        raise NotImplementedError

    def calls(self, number: int) -> Calls:
        """What is measured when there are so many."""
        raise NotImplementedError

    def close(self) -> None:
        """End all of them."""
        self.stack.close()


class Keys(Subject):
    """Keys with small values."""

    sizes = (1_000, 10_000, 100_000, 1_000_000)

    def grow(self, first: int, last: int) -> None:
        for at in range(first, last, _TOGETHER):
            part = range(at, min(at + _TOGETHER, last))
            self.store.txn(then=[kvi.Put(f"keys/{number:08}", _VALUE) for number in part])

    def calls(self, number: int) -> Calls:
        dice = random.Random(number)
        store = self.store

        def some() -> str:
            return f"keys/{dice.randrange(number - 100):08}"

        return {
            "get": lambda: store.get(some()),
            "store": lambda: store.store(some(), _VALUE),
            "range of 100": lambda: list(store.range(some(), limit=100)),
        }


class Watches(Subject):
    """Watches of one handle, each on a key of its own."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._seen: SimpleQueue[None] = SimpleQueue()

    def grow(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.store.watch(f"watched/{number}", callback=lambda event, data: self._seen.put(None))

    def calls(self, number: int) -> Calls:
        dice = random.Random(number)

        def put() -> None:
            self.store.store(f"watched/{dice.randrange(number)}", _VALUE)
            self._seen.get(timeout=_PATIENCE)

        return {"put, and its event": put}


class Leases(Subject):
    """Leases that one handle keeps alive."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._leases: list[kvi.Lease] = []

    def grow(self, first: int, last: int) -> None:
        self._leases += [self.store.lease(_TTL) for _ in range(first, last)]

    def calls(self, number: int) -> Calls:
        return {"grant and revoke": lambda: self.store.lease(_TTL).revoke()}


class Members(Subject):
    """Members of one group."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._group = Group(self.store, "growing", ttl=_TTL)
        self._members: list[object] = []

    def grow(self, first: int, last: int) -> None:
        self._members += [self._group.join(str(number)) for number in range(first, last)]

    def calls(self, number: int) -> Calls:
        return {"join and leave": lambda: self._group.join("one").leave()}


class Jobs(Subject):
    """Jobs that wait in one queue."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._queue = Queue(self.store, "growing")

    def grow(self, first: int, last: int) -> None:
        for number in range(first, last):
            self._queue.put(str(number))

    def calls(self, number: int) -> Calls:
        def one() -> None:
            self._queue.put("last")
            job = self._queue.get(_PATIENCE)
            assert job is not None
            job.ack()

        return {"put, get and ack": one}


class Waiting(Subject):
    """Tasks that wait for one lock; the one that has it hands it over."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._runner = self.stack.enter_context(asyncio.Runner())
        self._handle = self._runner.run(self._open(uri))
        self.stack.callback(lambda: self._runner.run(self._end()))
        self._tasks: set[asyncio.Task[None]] = set()
        self._has: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def _open(self, uri: str) -> kvi.aio.AsyncKvi:
        return kvi.aio.open(uri, timeout=_PATIENCE)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._handle.close()

    async def _wait(self, lined_up: asyncio.Event) -> None:
        lock = self._handle.lock("growing", ttl=_TTL)
        lined_up.set()
        await lock.acquire(None)
        goes = asyncio.Event()
        self._has.put_nowait(goes)
        await goes.wait()
        await lock.release()

    async def _line_up(self, number: int) -> None:
        begun = [asyncio.Event() for _ in range(number)]
        for event in begun:
            task = asyncio.create_task(self._wait(event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for event in begun:
            await event.wait()
        want, deadline = len(self._tasks), time.monotonic() + 10 * _PATIENCE
        while (await self._handle.count(prefix="growing/")) < want:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    def grow(self, first: int, last: int) -> None:
        self._runner.run(self._line_up(last - first))

    async def _hand_over(self) -> float:
        goes = await self._has.get()
        start = time.perf_counter()
        goes.set()
        following = await self._has.get()
        took = time.perf_counter() - start
        self._has.put_nowait(following)
        await self._line_up(1)
        return took

    def calls(self, number: int) -> Calls:
        return {"hand over": lambda: self._runner.run(self._hand_over())}


SUBJECTS: dict[str, type[Subject]] = {
    "keys": Keys,
    "watches": Watches,
    "leases": Leases,
    "group members": Members,
    "queued jobs": Jobs,
    "waiting for one lock": Waiting,
}


def measure(subject: Subject, sizes: Iterable[int]) -> Iterable[dict[str, Any]]:
    """A line for each step."""
    known = STATUS.exists()
    gc.collect()
    before = memory("VmRSS") if known else 0
    there = 0
    for size in sizes:
        start = time.perf_counter()
        subject.grow(there, size)
        made = (time.perf_counter() - start) / (size - there)
        there = size
        gc.collect()
        grown = memory("VmRSS") - before if known else None
        seconds = {name: _median(call) for name, call in subject.calls(size).items()}
        yield {"number": size, "made": made, "memory": grown, "seconds": seconds}


def _median(call: Callable[[], object]) -> float:
    call()
    took: list[float] = []
    end = time.perf_counter() + _LONGEST
    while len(took) < 5 or (len(took) < _CALLS and time.perf_counter() < end):
        start = time.perf_counter()
        own = call()
        took.append(own if isinstance(own, float) else time.perf_counter() - start)
    return statistics.median(took)


def growth(lines: list[dict[str, Any]], name: str) -> float:
    """How many times as fast as the logarithm of the number a call has grown; aimed at is 1."""
    first, last = lines[0], lines[-1]
    logarithm = math.log(last["number"]) / math.log(first["number"])
    return float(last["seconds"][name] / first["seconds"][name] / logarithm)


def main(argv: list[str]) -> int:
    """Measure one subject on one store."""
    name, uri, most = argv[0], argv[1], int(argv[2]) if len(argv) > 2 else sys.maxsize
    subject = SUBJECTS[name](uri)
    try:
        for line in measure(subject, [size for size in subject.sizes if size <= most]):
            print(json.dumps(line), flush=True)
    finally:
        subject.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Tests of asyncio: a loop for each, waiting in it, and how long it stood still."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ParamSpec

import kvi
from kvi import aio

P = ParamSpec("P")

_LONGEST = 120.0  # seconds of one test
_TICK = 0.005


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in a loop of its own."""

    @functools.wraps(test)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(_LONGEST):
                await test(*arguments, **options)

        asyncio.run(bounded())

    return run


async def until(condition: Callable[[], object], *, within: float = 20) -> None:
    """Wait in the loop for a condition."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(_TICK)


async def until_so(ask: Callable[[], Coroutine[Any, Any, object]], *, within: float = 20) -> None:
    """Wait in the loop until what is asked for is true."""
    deadline = time.monotonic() + within
    while not await ask():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(_TICK)


class Ticks:
    """How late a task was that only sleeps."""

    longest = 0.0
    """Seconds, at the most."""


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticks]:
    """Watch over the loop for a block."""
    ticks = Ticks()

    async def tick() -> None:
        while True:
            due = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            ticks.longest = max(ticks.longest, time.monotonic() - due)

    task = asyncio.create_task(tick())
    try:
        yield ticks
    finally:
        task.cancel()


@contextmanager
def held(store: aio.AsyncKvi, name: str) -> Iterator[list[object]]:
    """For the block, a primitive of the store does not answer; what is inside of it."""
    primitives, inside, gate = store._scope.primitives, list[object](), threading.Event()
    real = getattr(primitives, name)

    def wait(*arguments: Any) -> object:
        inside.append(arguments)
        if not gate.wait(arguments[-1]):  # its time-out
            raise kvi.Timeout("the gate was not opened")
        return real(*arguments)

    setattr(primitives, name, wait)
    try:
        yield inside
    finally:
        setattr(primitives, name, real)
        gate.set()

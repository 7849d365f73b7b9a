"""How long each step of a loop holds it: what a ticker would see, without the machine's own pauses.

*What counts.* A step is one call that the loop makes: of a task, until its next `await`, or of a
plain function. It holds the loop for as long as it takes, whether it computes or waits. Taken off
is the time that the thread was ready to run and the machine ran something else, where the system
tells (Linux). The collector is off meanwhile. What is left of a busy machine, such as another
thread that is stopped amid its turn with the interpreter, does not come at the same place again:
so whoever judges tries several times, and lets the best count.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from time import perf_counter
from typing import Any, TypeVarTuple

__all__ = ["HELD", "Step", "least_held", "longest_step"]

HELD = 0.05
"""Seconds that a call may hold the loop."""

TRIES = 5
"""How often a program is run of which a step held the loop for longer, before that counts."""

Ts = TypeVarTuple("Ts")

_READY = "/proc/thread-self/schedstat"  # ns on a processor, ns ready and waiting for one, slices


class Step:
    """The step that held the loop for the longest time.

    Attributes:
        seconds: how long.
        name: what it was.

    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.name = "nothing"


class _Measuring(asyncio.SelectorEventLoop):
    """A loop that measures its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = Step()
        self._ready_file: int | None = None
        with suppress(OSError):
            self._ready_file = os.open(_READY, os.O_RDONLY)

    def close(self) -> None:
        """Also what it reads."""
        super().close()
        if self._ready_file is not None:
            os.close(self._ready_file)
            self._ready_file = None

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As a loop's."""
        return super().call_soon(self._step, callback, args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As a loop's."""
        return super().call_soon_threadsafe(self._step, callback, args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As a loop's."""
        return super().call_at(when, self._step, callback, args, context=context)

    def _step(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        ready, begin = self._ready_for(), perf_counter()
        callback(*args)
        took = perf_counter() - begin
        if took > self.longest.seconds:
            took -= self._ready_for() - ready
        if took > self.longest.seconds:
            self.longest.seconds, self.longest.name = took, _name_of(callback)

    def _ready_for(self) -> float:
        """Seconds that this thread was ever ready while others ran."""
        file = self._ready_file
        return 0.0 if file is None else int(os.pread(file, 100, 0).split()[1]) / 1e9


def _name_of(callback: Callable[..., object]) -> str:
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return f"a step of the task {task.get_name()}"
    return f"the call of {getattr(callback, '__qualname__', callback)}"


def least_held(program: Callable[[], Coroutine[Any, Any, object]]) -> Step:
    """The longest step of the best of some runs of a program, the first that is good enough."""
    found = [longest_step(program)]
    while found[-1].seconds > HELD and len(found) < TRIES:
        found.append(longest_step(program))
    return min(found, key=lambda step: step.seconds)


def longest_step(program: Callable[[], Coroutine[Any, Any, object]]) -> Step:
    """Run a program in a loop of its own; the step that held it longest."""
    loop = _Measuring()
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(program())
    finally:
        if enabled:
            gc.enable()
    return loop.longest

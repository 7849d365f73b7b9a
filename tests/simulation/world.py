"""The virtual clock and the one scheduler.

*Theory.* Everything that can happen is a step: a function of a process, or of the world itself. A
step is ready, or waits for its time. The scheduler picks one of the ready steps by the seed; only
when none is ready does the clock move on to the next one that waits, except that now and then
(``stall``) it moves on although some are ready: these are threads that a machine runs late. A step
runs to its end undisturbed. Flows suspend at each look at their port, so that every order in which
real threads could look is some order of steps.

=============  ===========================================  ====================================
process        its steps                                    left by
=============  ===========================================  ====================================
``RUNNING``    run when picked                              `pause`, `crash`
``PAUSED``     pile up, in order; the clock goes on         `resume`: RUNNING; `crash`
``DEAD``       are dropped, whatever they would clean up    final
=============  ===========================================  ====================================

A task waits under a number. Whoever ends the wait names the number, so that a late answer or
time-out of an earlier wait finds nothing. `Task.cancel` ends any wait with `Cancelled`.
"""

from __future__ import annotations

import enum
import heapq
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from random import Random
from typing import Any

from kvi.port import Cancelled

START = 1000.0  # the time at which every world begins

Step = Callable[[], object]


class Violation(AssertionError):
    """What must hold did not."""


class State(enum.Enum):
    """Of a process; see the module's table."""

    RUNNING = enum.auto()
    PAUSED = enum.auto()
    DEAD = enum.auto()


@types.coroutine
def suspend() -> Generator[None, Any, Any]:
    """Wait, as the current task, until `Task.resume` gives an answer."""
    return (yield)


class World:
    """One schedule.

    Attributes:
        time: what all clocks show.
        random: what the seed decides.
        stall: how likely the clock moves on although steps are ready.
        check: called after each step; raises `Violation`.
        current: the task whose step runs.
        story: what happened, if it is told.

    """

    def __init__(self, seed: int, *, telling: bool = False) -> None:
        self.time = START
        self.random = Random(seed)
        self.stall = 0.0
        self.check: Step = _nothing
        self.current: Task | None = None
        self.story: list[str] | None = [] if telling else None
        self.over = False
        self.steps = 0
        self._violation: Violation | None = None  # also where a flow has caught it
        self._ready: list[tuple[Process | None, Step]] = []
        self._timers: list[tuple[float, int, Process | None, Step]] = []
        self._number = 0
        self._tasks: list[Task] = []

    def now(self) -> float:
        """The time."""
        return self.time

    def tell(self, who: str, what: str) -> None:
        """Add a line to the story; ask `story` before, since making a line takes time."""
        if self.story is not None:
            self.story.append(f"{self.time - START:9.3f}  {who:<10} {what}")

    def fail(self, what: str) -> None:
        """Something that must hold does not."""
        self.tell("VIOLATION", what)
        self._violation = Violation(what)
        raise self._violation

    def soon(self, process: Process | None, step: Step) -> None:
        """Let a step be ready."""
        self._ready.append((process, step))

    def at(self, due: float, process: Process | None, step: Step) -> None:
        """Let a step be ready at ``due``."""
        self._number += 1
        heapq.heappush(self._timers, (due, self._number, process, step))

    def spawn(self, process: Process, name: str, flow: Coroutine[Any, Any, Any]) -> Task:
        """Begin a task."""
        task = Task(self, process, name, flow)
        self._tasks.append(task)
        self.soon(process, task.begin)
        return task

    def run(self, over: Callable[[], bool], until: float) -> bool:
        """Go on until ``over()`` or the time ``until``; whether it was over."""
        ready, timers, random = self._ready, self._timers, self.random.random
        while not over():
            if ready and not (self.stall and timers and random() < self.stall):
                position = int(random() * len(ready))
                process, step = ready[position]
                last = ready.pop()
                if position < len(ready):
                    ready[position] = last
                if process is not None and process.state is not State.RUNNING:
                    process.parked.append(step)
                    continue
                step()
                self.steps += 1
                self.check()
                if self._violation is not None:
                    raise self._violation
            elif timers:
                if timers[0][0] > until:
                    self.time = max(self.time, until)
                    return over()
                due, _, process, step = heapq.heappop(timers)
                if due > self.time:
                    self.time = due
                if process is None:
                    step()
                    self.check()
                else:
                    ready.append((process, step))
            else:
                self.time = max(self.time, until)
                return over()
        return True

    def end(self) -> None:
        """Nothing happens any more; what is left is let go. A flow that then waits fails."""
        self.over = True
        self.story = None
        self._ready.clear()
        self._timers.clear()
        for task in self._tasks:
            self.current = task
            task.flow.close()
        self._tasks.clear()


class Process:
    """Tasks that stand still, and die, together."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.state = State.RUNNING
        self.parked: list[Step] = []

    def pause(self, seconds: float) -> None:
        """Stand still for so long."""
        if self.state is State.RUNNING:
            self.world.tell(self.name, f"is paused for {seconds:.3f} s")
            self.state = State.PAUSED
            self.world.at(self.world.time + seconds, None, self.resume)

    def resume(self) -> None:
        """Go on."""
        if self.state is State.PAUSED:
            self.world.tell(self.name, "goes on")
            self.state = State.RUNNING
            for step in self.parked:
                self.world.soon(self, step)
            self.parked.clear()

    def crash(self) -> None:
        """Die without a word."""
        self.world.tell(self.name, "crashes")
        self.state = State.DEAD


class Task:
    """A flow, or a program, of one process."""

    __slots__ = (
        "cancelled", "done", "error", "flow", "interrupted", "name", "on_end", "process", "queued",
        "soft", "value", "wait", "world",
    )  # fmt: skip

    def __init__(
        self, world: World, process: Process, name: str, flow: Coroutine[Any, Any, Any]
    ) -> None:
        self.world = world
        self.process = process
        self.name = name
        self.flow = flow
        self.wait = 0  # the number of the present wait
        self.soft = False  # it may be ended early: a signal's or a pause
        self.done = False
        self.queued = True  # its next step is ready
        self.cancelled = False
        self.interrupted = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.on_end: Step = _nothing

    def begin(self) -> None:
        """Take the first step."""
        self._advance(None, None)

    def resume(self, wait: int, value: Any = None, error: BaseException | None = None) -> None:
        """End the wait with this number."""
        if wait == self.wait and not self.done and not self.queued:
            self.wait += 1
            self.queued = True
            self.soft = False
            self.world.soon(self.process, partial(self._advance, value, error))

    def wake(self) -> None:
        """End a wait that may end early."""
        if self.soft:
            self.resume(self.wait, False)

    def cancel(self) -> None:
        """Nobody waits for it any more: every look of it ends so."""
        self.cancelled = True
        self.resume(self.wait)

    def interrupt(self) -> None:
        """End one wait by an exception, as a signal handler does."""
        if self.wait or not self.queued:  # it has begun
            self.interrupted = True
            self.resume(self.wait)

    def _advance(self, value: Any, error: BaseException | None) -> None:
        if self.done or self.world.over:
            return
        self.world.current = self
        self.queued = False
        if self.cancelled or self.interrupted:
            self.interrupted = False
            error = Cancelled()
        try:
            if error is None:
                self.flow.send(value)
            else:
                self.flow.throw(error)
        except StopIteration as end:
            self.value = end.value
        except Violation:
            raise
        except BaseException as failure:  # noqa: BLE001  (whoever waits gets it)
            self.error = failure
        else:
            return
        self.done = True
        self.on_end()


class Signal:
    """A `kvi.port.Signal`."""

    __slots__ = ("_set", "_task", "_wait", "_world")

    def __init__(self, world: World) -> None:
        self._world = world
        self._set = False
        self._task: Task | None = None
        self._wait = 0

    def set(self) -> None:
        """Wake who waits, now or at the next wait."""
        self._set = True
        task = self._task
        if task is not None:
            task.resume(self._wait, True)

    async def wait(self, timeout: float) -> bool:
        """Wait until it is set."""
        world = self._world
        task = world.current
        assert task is not None  # a flow waits
        self._task, self._wait = task, task.wait
        if self._set:
            task.resume(task.wait, True)
        else:
            task.soft = True
            if timeout < 1e6:
                due = world.time + max(0.0, timeout)
                world.at(due, task.process, partial(task.resume, task.wait, False))
        try:
            await suspend()
        finally:
            self._task = None
        done, self._set = self._set, False
        return done


def _nothing() -> None:
    """Nothing to check, nobody to tell."""

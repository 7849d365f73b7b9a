"""The schedule: each of its times runs once among all processes.

One register (`kvi.flow.recipes.register`), ``.kvi/last``, has the last time that was claimed. Every
process waits for the next one by its own clock; whoever moves the register to it, runs it. A clock
that is behind finds that it is done, one that is ahead does it early: nothing runs twice. No store
tells the time, so nobody notices a clock that is far ahead: whoever mends it deletes the register.

=====================  ===========================================================================
mode                   what a crash leaves
=====================  ===========================================================================
at most once (usual)   a time is claimed *before* it runs. Who crashes in between has claimed it,
                       and it does not run
``at_least_once``      a time runs under a lock (`kvi.flow.recipes.line`), and is recorded *after*
                       that, under the guard, by the transaction that leaves the line. Who crashes
                       in between has not recorded it, and the next one runs it
=====================  ===========================================================================

The register begins at the moment of the first run, so nothing is missed before that. A claim bears
a mark of who made it. So one whose answer is lost, or that arrives late, is found at the next look,
and runs then; unless another has claimed a later time meanwhile: then it does not run, as after a
crash.

Clocks may jump, so nobody sleeps for longer than a second without looking at them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from types import NoneType

from kvi.call import Call
from kvi.errors import Contention, LeaseLost, OutcomeUnknown
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.line import Line
from kvi.flow.recipes.register import Register
from kvi.flow.recipes.state import Owner
from kvi.flow.scope import PASSING, Scope, is_final
from kvi.log import log
from kvi.policy.lease import check_ttl
from kvi.policy.line import Mark, State, check_recipe
from kvi.policy.schedule import Decision, check_missed, decide, times_of
from kvi.port import Port, Signal

_LOOK = 1.0  # seconds between looks at the clock


class TurnLine(Line):
    """One who would run what is due, where it runs at least once."""

    kind = "schedule"

    def verdict(self, state: State, at: int, orphans: list[Mark]) -> str | None:
        """The first runs it."""
        if at:
            return state.line[at - 1].key
        return self.owner.place.root if orphans else None


class ScheduleFlow:
    """One process's part in a schedule. `next` is used by one flow at a time.

    Attributes:
        owner: the right to the name.
        wall: the clock of the machine, in seconds since the epoch.
        new_mark: what no other claim is known by.
        closed: nothing more is to run.

    """

    def __init__(
        self, scope: Scope, name: str, when: object, missed: object, again: object, ttl: float
    ) -> None:
        self._scope = scope
        self._after, stored = times_of(when)
        self._missed = check_missed(missed)
        self._again = bool(again)
        settings = {"when": stored, "missed": self._missed, "at_least_once": self._again}
        self.owner = Owner(TurnLine.kind, check_recipe(name, scope.capabilities), settings)
        self.wall: Callable[[], float] = time.time
        self.new_mark: Callable[[], str] = lambda: secrets.token_hex(8)
        self.closed = False
        self._ttl = check_ttl(ttl, scope.capabilities)
        number = (int, float)
        self._last = Register(
            f"{self.owner.place.root}last", "schedule", time=number, ran=(*number, NoneType)
        )
        self._signals: list[Signal] = []

    def close(self) -> None:
        """Run nothing more; wakes who waits."""
        self.closed = True
        for signal in list(self._signals):
            signal.set()

    async def last(self, scope: Scope, call: Call) -> float | None:
        """The last time that was claimed, or recorded; ``None`` before the first."""
        await self.owner.ensure(scope, call, looks=True)
        ran = (await self._last.read(scope, call)).said.get("ran")
        return None if ran is None else float(ran)

    async def upcoming(self, scope: Scope, call: Call) -> float:
        """The time that comes next; one in the past is due."""
        await self.owner.ensure(scope, call, looks=True)
        said, now = (await self._last.read(scope, call)).said, self.wall()
        decision = self._decide(float(said.get("time", now)), now)
        return decision.time if decision.runs or not decision.due else self._after(now)

    async def next(self, port: Port) -> tuple[float, LockFlow | None] | None:
        """Wait for a time that is this one's to run, and, to be recorded afterwards, its lock.

        ``None`` once it is closed. What may pass is waited for.
        """
        pause, mark = 0.05, self.new_mark()
        while not self.closed:
            try:
                found = await self._try(port, mark)
                pause = 0.05
            except (*PASSING, Contention, LeaseLost) as error:
                self._scope.ensure_open()
                if is_final(error):
                    raise
                log().warning("a schedule on %s waits for the store: %s", self._scope.uri, error)
                await self._sleep(port, pause)
                pause = min(pause * 2, _LOOK)
                continue
            if not isinstance(found, float):
                return found
            await self._sleep(port, max(0.0, min(found, _LOOK)))
        return None

    async def record(self, call: Call, due: float, lock: LockFlow) -> None:
        """It has run: record that, under the guard. Raises `LeaseLost` if that is not true."""
        scope, line, guard, refused = self._scope, TurnLine.of(lock), lock.guard, 0
        leaving = line.leaving(guard.key)
        while True:
            seen = await self._last.read(scope, call)
            if seen.said.get("ran", 0.0) >= due:
                return  # by a try whose answer was lost, or by who came after
            if seen.revision == refused:
                raise LeaseLost("it has run, but its turn was over before that was recorded")
            said = {"time": max(due, seen.said.get("time", 0.0)), "ran": due}
            try:
                if await self._last.change(scope, call, seen, said, when=[guard], also=leaving):
                    return
            except OutcomeUnknown:
                if call.port.now() >= call.deadline:
                    raise
            else:
                refused = seen.revision

    async def _try(self, port: Port, mark: str) -> tuple[float, LockFlow | None] | float:
        """A time to run, or the seconds until it is worth looking again."""
        scope = self._scope
        call = Call(port, port.now() + scope.timeout)
        await self.owner.ensure(scope, call)
        seen = await self._last.read(scope, call)
        if seen.said.get("by") == mark:
            return float(seen.said["ran"]), None
        now = self.wall()
        if not seen.revision:
            await self._last.change(scope, call, seen, {"time": now})
            return 0.0
        decision = self._decide(float(seen.said["time"]), now)
        if not decision.due:
            return decision.time - now
        if not decision.runs:
            await self._last.change(scope, call, seen, {**seen.said, "time": decision.time})
            return 0.0
        if self._again:
            return await self._turn(port, decision)
        said = {"time": decision.time, "ran": decision.time, "by": mark}
        claimed = await self._last.change(scope, call, seen, said)
        return (decision.time, None) if claimed else 0.0

    async def _turn(self, port: Port, decision: Decision) -> tuple[float, LockFlow | None] | float:
        """Be the one who runs it, and look again whether it is still to be done."""
        scope = self._scope
        lock = LockFlow(scope, TurnLine(self.owner), self._ttl)
        if not await lock.acquire(port, _LOOK):
            return 0.0
        try:
            call = Call(port, port.now() + scope.timeout)
            seen = await self._last.read(scope, call)
            again = self._decide(float(seen.said["time"]), self.wall())
        except BaseException:
            lock.let_go()
            raise
        if again.runs and again.due:
            return again.time, lock
        await lock.release(port, scope.timeout)
        return 0.0

    def _decide(self, last: float, now: float) -> Decision:
        return decide(self._after, last, now, self._missed, self._ttl)

    async def _sleep(self, port: Port, seconds: float) -> None:
        signal = port.signal()
        self._signals.append(signal)
        try:
            if not self.closed and seconds > 0:
                await signal.wait(seconds)
        finally:
            self._signals.remove(signal)
        self._scope.ensure_open()

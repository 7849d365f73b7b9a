"""`Schedule`: each time runs once among all processes; see `kvi.flow.recipes.schedule`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from inspect import isawaitable

from kvi.aio.caller import is_cancelled
from kvi.aio.face import AsyncFace
from kvi.aio.recipes.recipe import ask
from kvi.call import Call
from kvi.errors import KviError
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.schedule import ScheduleFlow
from kvi.flow.recipes.state import Named
from kvi.log import log
from kvi.policy.schedule import Missed


class Schedule(Named):
    """Something that runs at its times, once among all processes; as `kvi.recipes.Schedule`."""

    def __init__(
        self,
        store: AsyncFace,
        name: str,
        when: float | str,
        *,
        missed: Missed = "last",
        at_least_once: bool = False,
        ttl: float = 10,
    ) -> None:
        self._store = store
        try:
            self._flow = ScheduleFlow(store._scope, name, when, missed, at_least_once, ttl)
        except KviError as error:
            raise store._placed(error, "schedule", name)
        super().__init__(self._flow.owner, store.uri)

    async def run(self, fn: Callable[[datetime], object]) -> None:
        """Call ``fn(time)`` for each time that is this process's, until `close`.

        ``fn`` may be a coroutine function. See `kvi.recipes.Schedule.run`.
        """
        store, flow = self._store, self._flow
        while not flow.closed:
            try:
                store._enter()
                found = await store._drive(flow.next)
            except KviError as error:
                raise store._placed(error, "run", self.name)
            if found is None:
                return
            time, lock = found
            try:
                await self._call(fn, time)
                if lock is not None:
                    await self._record(time, lock)
            finally:
                if lock is not None:
                    lock.let_go()

    def close(self) -> None:
        """Let `run` come to its end, once what runs now has. Again, it does nothing."""
        self._flow.close()

    async def last(self, *, timeout: float | None = None) -> datetime | None:
        """The last time that was run; ``None`` before the first."""
        found = await ask(self._store, self.name, "last", timeout, self._flow.last)
        return None if found is None else datetime.fromtimestamp(found, UTC)

    async def next_time(self, *, timeout: float | None = None) -> datetime:
        """The time that comes next; one in the past is due, and waits for a process."""
        found = await ask(self._store, self.name, "next_time", timeout, self._flow.upcoming)
        return datetime.fromtimestamp(found, UTC)

    async def _call(self, fn: Callable[[datetime], object], time: float) -> None:
        try:
            result = fn(datetime.fromtimestamp(time, UTC))
            if isawaitable(result):
                await result
        except asyncio.CancelledError:  # perhaps of a task that it waited for
            if is_cancelled():
                raise
            log().exception("a run of the schedule %r failed", self.name)
        except Exception:  # noqa: BLE001  (whatever the program's function raises)
            log().exception("a run of the schedule %r failed", self.name)

    async def _record(self, time: float, lock: LockFlow) -> None:
        async def record(_: object, call: Call) -> None:
            await self._flow.record(call, time, lock)

        try:
            await ask(self._store, self.name, "run", None, record)
        except KviError as error:
            self._store._enter()
            log().warning("a run of the schedule %r was not recorded: %s", self.name, error)

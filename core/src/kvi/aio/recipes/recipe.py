"""What all recipes share: a store, a name, and the way to the driver."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar, TypeVarTuple

from kvi.aio.face import AsyncFace
from kvi.aio.lock import AsyncLock
from kvi.call import Call
from kvi.errors import Closed, KviError
from kvi.flow.recipes.observing import Observing
from kvi.flow.scope import Scope
from kvi.port import Flow

E = TypeVar("E")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def ask(
    store: AsyncFace,
    name: str,
    operation: str,
    timeout: float | None,
    flow: Callable[[Scope, Call, *Ts], Flow[T]],
    *given: *Ts,
) -> T:
    """Run a flow of the recipe ``name`` that is over within the time-out."""
    try:
        store._enter()
        scope, seconds = store._scope, store._seconds(timeout)
        return await store._drive_write(
            lambda port: flow(scope, Call(port, port.now() + seconds), *given), operation, name
        )
    except KviError as error:
        raise store._placed(error, operation, name)


class Acquired(AsyncLock):
    """What was acquired before its block begins."""

    async def __aenter__(self) -> Self:
        return self


class Observation(Generic[E, T]):
    """What somebody observes, each time that it has changed: iterate it, without end.

    It ends with `close`, the end of its ``async with`` block, or the handle, which raises `Closed`.
    Tasks that iterate the same one share what it tells: each event goes to one of them.
    """

    def __init__(self, store: AsyncFace, name: str, flow: Observing[E, T]) -> None:
        self._store = store
        self._name = name
        self._flow = flow
        self._known: list[T] = []  # what was seen last
        self._pending: deque[E] = deque()
        self._turn = asyncio.Lock()  # of who looks

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        store, flow = self._store, self._flow
        async with self._turn:
            while not self._pending:
                try:
                    store._enter()
                    found = await store._drive(flow.next)
                except KviError as error:
                    if isinstance(error, Closed) and flow.watch.ended and not store.closed:
                        raise StopAsyncIteration from None
                    raise store._placed(error, "observe", self._name)
                self._pending.extend(flow.events(self._known, found))
                self._known = [found]
                flow.told(found)
            return self._pending.popleft()

    async def close(self) -> None:
        """End it. Again, it does nothing."""
        if not self._store.closed:
            self._flow.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if not self._store.closed:
            self._store._runtime.post(self._flow.end)

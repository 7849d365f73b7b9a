"""`update` and `atomically` for asyncio: `kvi.flow.update`, awaited by the task that calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable
from typing import Any, TypeVar

from kvi.aio.face import AsyncFace
from kvi.flow.update import Caller, Raised, Writes
from kvi.model import KeyValue
from kvi.ops import Op

T = TypeVar("T")


class AsyncTx(Writes):
    """What a function that runs `AsyncKvi.atomically` reads and writes; see `kvi.Tx`."""

    __slots__ = ()

    async def get(self, key: str) -> KeyValue | None:
        """Read one entry, or what this run has written (its revision is 0)."""
        return await self._draft.get(key)


class TaskCaller(Caller):
    """A handle, as the flows of `kvi.flow.update` see it."""

    __slots__ = ("_store",)

    def __init__(self, store: AsyncFace, operation: str, key: str | None) -> None:
        super().__init__(store._scope, operation, key)
        self._store = store

    async def ask(self, op: Op[T], timeout: float) -> T:
        """Do it."""
        self._store._enter()
        return await self._store._do(op, timeout)

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def call(self, function: Callable[[Any], Any], argument: object) -> Any:
        """Call it here, and await what it gives if it can be."""
        try:
            result = function(argument)
            return await result if isawaitable(result) else result
        except BaseException as error:  # noqa: BLE001  (raised by `given`)
            return Raised(error)

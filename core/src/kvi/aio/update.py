"""`update` and `atomically` for asyncio: `kvi.flow.update`, awaited by the task that calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable
from typing import Any, TypeVar

from kvi.aio.face import AsyncFace
from kvi.errors import KviError
from kvi.flow.update import Draft, Raised
from kvi.model import KeyValue, LeaseRef
from kvi.ops import Op

__all__ = ["AsyncTx", "TaskCaller"]

T = TypeVar("T")


class AsyncTx:
    """What a function that runs `AsyncKvi.atomically` reads and writes; see `kvi.Tx`."""

    __slots__ = ("_draft",)

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    async def get(self, key: str) -> KeyValue | None:
        """Read one entry, or what this run has written (its revision is 0)."""
        return await self._draft.get(key)

    def put(self, key: str, value: bytes | str, *, lease: int | LeaseRef | None = None) -> None:
        """Create or replace an entry at the commit. Of two writes of a key the last one counts."""
        self._draft.put(key, value, lease)

    def delete(self, key: str) -> None:
        """Delete an entry at the commit, if it is there."""
        self._draft.delete(key)


class TaskCaller:
    """A handle, as the flows of `kvi.flow.update` see it."""

    __slots__ = ("_key", "_operation", "_store", "capabilities")

    def __init__(self, store: AsyncFace, operation: str, key: str | None) -> None:
        self._store = store
        self._operation = operation
        self._key = key
        self.capabilities = store.capabilities

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

    def placed(self, error: KviError) -> KviError:
        """The error with its place."""
        return self._store._placed(error, self._operation, self._key)

"""The middleware that lets observers know of every operation; see `kvi.observers`.

Without an observer an operation costs one look at an empty tuple.
"""

from __future__ import annotations

from time import perf_counter, time_ns
from typing import TypeVar

from kvi import observers
from kvi.call import Call
from kvi.errors import KviError
from kvi.hookspecs import ObservedOperation
from kvi.ops import Executor, Op, PageOp

T = TypeVar("T")


class Observed:
    """Tells the observers of this process."""

    __slots__ = ("_inner", "_uri")
    is_short = False

    def __init__(self, inner: Executor, uri: str) -> None:
        self._inner = inner
        self._uri = uri
        observers.load_installed()

    async def execute(self, op: Op[T], call: Call) -> T:
        """Do it, and tell. What is interrupted is told as nothing."""
        if not observers.active or not op.name:
            return await self._inner.execute(op, call)
        began, start = time_ns(), perf_counter()
        try:
            result = await self._inner.execute(op, call)
        except KviError as error:
            self._tell(op, call, began, perf_counter() - start, error)
            raise
        if result is not None or not isinstance(op, PageOp):  # else there was no page
            self._tell(op, call, began, perf_counter() - start, None)
        return result

    def _tell(
        self, op: Op[T], call: Call, began: int, duration: float, error: KviError | None
    ) -> None:
        operation = ObservedOperation(
            name=op.name,
            key=op.key,
            uri=self._uri,
            began=began,
            duration=duration,
            attempts=call.attempts,
            error=error,
        )
        observers.tell(observers.active, operation)

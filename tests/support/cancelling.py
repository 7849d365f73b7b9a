"""Cancelling a coroutine at its every `await`, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine whose task is cancelled once it has suspended so many times.

    ``late``: not as it begins to wait, but together with what it waited for.
    """

    def __init__(self, inner: Coroutine[Any, Any, Any], number: int, *, late: bool) -> None:
        self._inner = inner
        self._left = number
        self._late = late
        self.cancelled = False

    def send(self, value: Any) -> Any:
        """As a coroutine's."""
        waited = self._inner.send(value)
        self._left -= 1
        if self._left == 0:
            task = asyncio.current_task()
            assert task is not None
            self.cancelled = True
            if self._late and asyncio.isfuture(waited):
                waited.add_done_callback(lambda _: task.cancel())
            else:
                task.cancel()
        return waited

    def throw(self, *raised: Any) -> Any:
        """As a coroutine's."""
        return self._inner.throw(*raised)

    def close(self) -> None:
        """As a coroutine's."""
        self._inner.close()

    def __await__(self) -> Any:
        raise AssertionError("this is for a task")


async def cancelled_at(
    call: Callable[[], Coroutine[Any, Any, Any]], number: int, *, late: bool
) -> bool:
    """Run a coroutine in a task that is cancelled at its `await` of that number.

    Whether it was; false if it has fewer. `CancelledError` must come out, and nothing else.
    """
    counted = _Counted(call(), number, late=late)
    task = asyncio.ensure_future(counted)
    try:
        await task
    except asyncio.CancelledError:
        assert counted.cancelled
        return True
    assert not counted.cancelled, f"the cancellation at await {number} was swallowed"
    return False

"""How a flow that never suspends is run: in one step, without an event loop."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


def run(flow: Awaitable[T]) -> T:
    """Bring a flow that never suspends to its end, and return its result."""
    step = flow.__await__()
    try:
        next(step)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    close = getattr(flow, "close", None)
    if close is not None:
        close()
    raise RuntimeError("a flow suspended under the thread driver")

"""The middleware of a handle that was opened with ``read_only``: it writes nothing.

It stands right above the store, so that every wrapper's operations come through it. What counts is
whether an operation could write, not whether it would: a test-and-set that would fail is refused
too, so that a program is told at its first call, on any data.
"""

from __future__ import annotations

from typing import TypeVar

from kvi.call import Call
from kvi.errors import PermissionDenied
from kvi.ops import Executor, Op
from kvi.policy.retry import Effect

T = TypeVar("T")

_HARMLESS = frozenset({Effect.READ, Effect.ASKING})


def refused_write() -> PermissionDenied:
    """The error of what could write."""
    return PermissionDenied("the store was opened with read_only; open it without to write")


class ReadOnly:
    """Refuses whatever could write; nothing of it is sent."""

    __slots__ = ("_inner", "is_short")

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self.is_short = inner.is_short

    async def execute(self, op: Op[T], call: Call) -> T:
        """Do it if it only reads. Raises `PermissionDenied`."""
        if op.effect not in _HARMLESS:
            raise refused_write()
        return await self._inner.execute(op, call)

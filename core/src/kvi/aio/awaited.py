"""What a call gives that may be awaited, or be the head of an ``async with``.

``lease = await store.lease(10)`` and ``async with store.lease(10) as lease:`` are the same call, so
it cannot be a plain coroutine. These are coroutines too, so that a task can be made of one.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

T = TypeVar("T")


class Block(Protocol):
    """What can be held for an ``async with`` block."""

    async def __aenter__(self) -> Self:
        """Begin the block."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the block."""


B = TypeVar("B", bound=Block)


class Awaited(Coroutine[Any, Any, T], Generic[T]):
    """A call that is made once it is awaited; once only."""

    __slots__ = ("_call", "_coroutine")

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._call = call
        self._coroutine: Coroutine[Any, Any, T] | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._begun().__await__()

    def send(self, value: Any) -> Any:
        """As a coroutine's."""
        return self._begun().send(value)

    def throw(self, *raised: Any) -> Any:
        """As a coroutine's."""
        return self._begun().throw(*raised)

    def close(self) -> None:
        """As a coroutine's."""
        if self._coroutine is not None:
            self._coroutine.close()

    def _begun(self) -> Coroutine[Any, Any, T]:
        if self._coroutine is None:
            self._coroutine = self._call()
        return self._coroutine


class Beginning(Awaited[B]):
    """A call that begins something: await it, or hold that for an ``async with`` block."""

    __slots__ = ("_made",)

    async def __aenter__(self) -> B:
        self._made = await self
        return await self._made.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._made.__aexit__(kind, error, trace)

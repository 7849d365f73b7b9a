"""`Living`: objects for as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Living(Generic[T]):
    """Objects that something else keeps alive. Safe for threads, each step is atomic.

    No code runs when one is freed, as it does with `weakref.WeakSet`: it could be in the main
    thread, where a signal handler's exception would be lost in it.
    """

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[T]] = {}

    def __iter__(self) -> Iterator[T]:
        found = (reference() for reference in list(self._references.values()))
        return iter([one for one in found if one is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, one: T) -> bool:
        reference = self._references.get(id(one))
        return reference is not None and reference() is one

    def add(self, one: T) -> None:
        """It is alive."""
        for key, reference in self._references.copy().items():
            if reference() is None:
                self._references.pop(key, None)
        self._references[id(one)] = weakref.ref(one)

    def discard(self, one: T) -> None:
        """It does not count any more."""
        self._references.pop(id(one), None)

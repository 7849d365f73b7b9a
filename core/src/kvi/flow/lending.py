"""`Lending`: what was taken for the main thread, until it has got there.

An exception of a signal handler may end a call after it took an item out of a queue, and before the
caller has it. So an item that is taken for the main thread stays lent. The last step of the call,
behind which nothing can come, is the assignment that ends the loan. What an interrupted call leaves
goes to whoever asks next, on any thread::

    lending.asked = True                    # the main thread alone does these
    try:
        … item = …                          # under the queue's lock: `left`, or else `lend`
        lending.item = None
        return item
    finally:
        lending.asked = False
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Lending(Generic[T]):
    """One queue's.

    Attributes:
        asked: whether the main thread is asking for an item.
        item: what is lent to it; ``None`` if nothing is.

    """

    __slots__ = ("asked", "item")

    def __init__(self) -> None:
        self.asked = False
        self.item: T | None = None

    def left(self, *, main: bool) -> T | None:
        """What an interrupted call left, if this thread may have it. Hold the queue's lock."""
        if main:
            return self.item
        if self.asked:  # its call may still hand it over
            return None
        item, self.item = self.item, None
        return item

"""Where a watch stands in the history, and how often to look for news: decided without I/O.

A `Cursor` knows what its watch has told (everything before ``next``) and what waits for it. Whoever
follows the history *marks* the cursor with each revision that changes a watched key. What was
looked through without a mark is as good as told: such a watch needs nothing of the history, however
far that has gone on, and whatever of it was trimmed.

===========  =============================================  ====================================
state        meaning                                        left by
===========  =============================================  ====================================
``QUIET``    nothing waits                                  `mark`: MARKED, and the watch is woken
``MARKED``   there is a change at ``first``                 `begin`: READING
``READING``  the history is read from there; marks made     `told`: QUIET, or MARKED by what the
             meanwhile are kept                             reading did not reach; `failed`: MARKED
===========  =============================================  ====================================
"""

from __future__ import annotations

SOONEST, LATEST = 0.005, 0.050  # seconds between looks for the commits of other processes
SLOWING = 1.25  # a dozen looks without news, a quarter of a second, and it is at its calmest


def pace(interval: float, changed: bool) -> float:
    """How long to wait before the next look, after a look that waited for ``interval``."""
    return SOONEST if changed else min(interval * SLOWING, LATEST)


class Cursor:
    """The place of one watch; see the module's table. Not safe for threads by itself.

    Attributes:
        next: the first revision that was not told.
        first: the first revision that waits; ``None``: nothing does.

    """

    __slots__ = ("_last", "first", "next")

    def __init__(self, start: int) -> None:
        self.next = start
        self.first: int | None = None
        self._last = 0  # the last mark, never below ``first``

    def mark(self, revision: int) -> bool:
        """There is a change at ``revision``, which never falls; whether that is news."""
        if revision < self.next:
            return False
        self._last = max(self._last, revision)
        if self.first is not None:
            return False
        self.first = revision
        return True

    def miss(self, seen: int, trimmed: int) -> bool:
        """All up to ``trimmed`` is gone and was looked through up to ``seen``; whether it is news.

        Marks what the watch may have missed, so that reading it finds it gone.
        """
        missed = max(self.next, seen + 1)
        return missed <= trimmed and self.mark(missed)

    def begin(self) -> int | None:
        """Where to read from; ``None`` if nothing waits."""
        first, self.first = self.first, None
        return first

    def failed(self, first: int) -> None:
        """What `begin` returned could not be read."""
        self.first = first  # every mark made meanwhile is behind it

    def told(self, revision: int) -> None:
        """Everything up to ``revision`` is told."""
        self.next = max(self.next, revision + 1)
        if self.first is not None and self.first < self.next:
            self.first = self.next if self._last >= self.next else None

"""How many entries to ask for in one page: enough to be fast, few enough to bound memory.

etcd limits a page by entries, not by bytes, and an entry may have 1.5 MiB. So the first page is
small, each next one aims at `TARGET` bytes by what the last entries weighed, and grows at most
fourfold, lest a run of small entries in front of large ones asks for too much. If an answer is
still too large to receive, the page shrinks to a quarter and is asked for again.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 128  # entries
MOST = 3000  # etcd counts the whole rest of the range for each page, so that few large ones win
TARGET = 3_500_000  # bytes
GROWTH = 4


@dataclass(frozen=True, slots=True)
class PageSize:
    """The number of entries to ask for next."""

    entries: int = FIRST

    def after(self, entries: int, size: int) -> PageSize:
        """The next page after one of ``entries`` entries and ``size`` bytes."""
        fitting = TARGET * entries // max(size, 1)
        return PageSize(max(1, min(fitting, self.entries * GROWTH, MOST)))

    def smaller(self) -> PageSize | None:
        """After an answer too large to receive; ``None`` if it had but one entry."""
        return None if self.entries == 1 else PageSize(max(1, self.entries // 4))

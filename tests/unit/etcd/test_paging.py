"""How many entries the next page asks for."""

from __future__ import annotations

import pytest
from kvi_etcd.paging import FIRST, MOST, TARGET, PageSize


@pytest.mark.parametrize(
    ("size", "entries", "weight", "expected"),
    [
        (PageSize(), FIRST, FIRST * 10, FIRST * 4),  # small entries: grow, not at once
        (PageSize(1024), 1024, 1024 * 10, MOST),
        (PageSize(MOST), MOST, MOST * 10_000_000, 1),  # large ones: shrink at once
        (PageSize(MOST), MOST, TARGET * 2, MOST // 2),
        (PageSize(10), 0, 0, 1),
        (PageSize(1), 1, 10 * TARGET, 1),  # never less than one
    ],
)
def test_next_page(size: PageSize, entries: int, weight: int, expected: int) -> None:
    """Pages aim at a weight in bytes, grow at most fourfold, and stay within bounds."""
    assert size.after(entries, weight).entries == expected


def test_shrinking_ends() -> None:
    """An answer too large to receive is asked for in smaller parts, down to one entry."""
    sizes = []
    size: PageSize | None = PageSize(MOST)
    while size is not None:
        sizes.append(size.entries)
        size = size.smaller()
    assert sizes == [3000, 750, 187, 46, 11, 2, 1]

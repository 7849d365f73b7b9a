"""What a batch of a watch takes of the history."""

from __future__ import annotations

import pytest
from kvi.model import Event, EventType, KeyValue
from kvi_sqlite import portions
from kvi_sqlite.portions import Row, portion

NOTHING = (None, 0, 0, None, b"")  # was there before


def rows(*revisions: int, size: int = 0) -> list[Row]:
    return [(revision, b"k", b"v" * size, *NOTHING) for revision in revisions]


def test_portion_takes_all_there_is() -> None:
    """A short history is one batch, complete up to the revision that was read."""
    found = portion([(3, b"a", b"", *NOTHING), (4, b"b", None, 2, 1, 5, 7, b"old")], 9)
    before = KeyValue("b", b"old", 2, 1, 5, 7)
    assert found == (
        [Event(EventType.PUT, "a", b"", 3), Event(EventType.DELETE, "b", None, 4, before)],
        9,
        None,
    )
    assert portion([], 9) == ([], 9, None)


def test_portion_never_splits_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch ends between revisions, also if one of them is larger than a batch may be."""
    monkeypatch.setattr(portions, "MAX_ROWS", 2)
    found = portion(rows(1, 1, 1, 1, 4, 5), 9)
    assert [event.revision for event in found.events] == [1, 1, 1, 1]
    assert (found.revision, found.rest) == (3, 4)
    assert portion(rows(1, 2), 9)[1:] == (9, None)
    assert portion(rows(1, 2, 2), 9)[1:] == (9, None)


def test_portion_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Big values end a batch early."""
    monkeypatch.setattr(portions, "MAX_BYTES", 100)
    found = portion(rows(1, 2, 3, size=60), 9)
    assert [event.revision for event in found.events] == [1, 2]
    assert (found.revision, found.rest) == (2, 3)

"""Decisions of watches: where one stands in the history, and when to look."""

from __future__ import annotations

import pytest
from kvi.policy.cursor import LATEST, SOONEST, Cursor, pace


def test_unmarked_cursor_has_nothing_to_read() -> None:
    """What was looked through without a mark is told without a look into the history."""
    cursor = Cursor(5)
    assert cursor.begin() is None
    cursor.told(900)
    assert cursor.next == 901
    assert cursor.begin() is None


def test_first_mark_is_news_and_the_others_are_not() -> None:
    """A watch is woken once for all that waits, and reads from the first of it."""
    cursor = Cursor(5)
    assert not cursor.mark(4), "told, or from before the watch"
    assert cursor.mark(7)
    assert not cursor.mark(8)
    assert cursor.begin() == 7
    cursor.told(8)
    assert (cursor.first, cursor.next) == (None, 9)


@pytest.mark.parametrize(
    ("marks", "told", "left"),
    [
        ([], 9, None),
        ([6], 9, None),  # the reading reached it
        ([10], 9, 10),  # it did not
        ([6, 10], 9, 10),  # the first was reached, the other not
        ([9, 12], 9, 10),  # where the other is, is not known more closely
        ([6, 9], 9, None),
    ],
)
def test_marks_made_while_reading(marks: list[int], told: int, left: int | None) -> None:
    """A change that the reading did not reach waits; one that it did is not read again."""
    cursor = Cursor(5)
    cursor.mark(5)
    assert cursor.begin() == 5
    for revision in marks:
        cursor.mark(revision)
    cursor.told(told)
    assert cursor.first == left


def test_failed_reading_starts_over() -> None:
    """What could not be read is read again, whatever came meanwhile."""
    cursor = Cursor(1)
    cursor.mark(3)
    assert cursor.begin() == 3
    cursor.mark(7)
    cursor.failed(3)
    assert cursor.begin() == 3


@pytest.mark.parametrize(
    ("start", "seen", "trimmed", "first"),
    [
        (1, 10, 20, 11),  # something between 11 and 20 may have concerned it
        (1, 10, 10, None),  # all that is gone was looked through
        (15, 10, 20, 15),  # what is before its start does not concern it
        (21, 10, 20, None),
    ],
)
def test_trimmed_before_anybody_looked(
    start: int, seen: int, trimmed: int, first: int | None
) -> None:
    """Only a watch that may have missed something is marked, with a revision that is gone."""
    cursor = Cursor(start)
    assert cursor.miss(seen, trimmed) is (first is not None)
    assert cursor.first == first
    assert first is None or first <= trimmed


def test_pace_calms_down() -> None:
    """Looks are frequent after news, and calm within half a second without."""
    interval, passed = pace(LATEST, True), 0.0
    assert interval == SOONEST
    while interval < LATEST:
        passed += interval
        interval = pace(interval, False)
    assert passed < 0.5
    assert pace(interval, False) == LATEST

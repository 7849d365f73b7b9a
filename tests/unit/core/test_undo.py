"""Ranges whose pages are of one revision, over a store that can only be read as it is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice

import kvi
import pytest
from kvi.backend.undo import range_by_undo
from kvi.model import Event, EventType, KeyValue, RangeResult, Scan, Span
from kvi.policy.past import gone

KEYS = [f"{letter}{number}" for letter in "abc" for number in range(6)]


class Store:
    """The present, and its log. After each page it changes by itself.

    Attributes:
        states: the entries at each revision.
        asked: the limits of the pages that were read.
        meanwhile: called after each page.

    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.entries: dict[str, KeyValue] = {}
        self.states: list[dict[str, KeyValue]] = [{}]
        self.log: list[Event] = []
        self.trimmed = 0
        self.asked: list[int | None] = []
        self.meanwhile: Callable[[], object] = lambda: None

    @property
    def revision(self) -> int:
        """The present one."""
        return len(self.states) - 1

    def change(self) -> None:
        """Write or delete one key, or some."""
        revision = len(self.states)
        for key in self.rng.sample(KEYS, self.rng.choice([1, 1, 2, 5])):
            old, value = self.entries.get(key), f"{key}@{revision}".encode()
            if old is not None and self.rng.random() < 0.4:
                del self.entries[key]
                self.log.append(Event(EventType.DELETE, key, None, revision, old))
                continue
            created = revision if old is None else old.create_revision
            self.entries[key] = KeyValue(key, value, revision, created)
            self.log.append(Event(EventType.PUT, key, value, revision, old))
        self.states.append(dict(self.entries))

    def page(self, scan: Scan, timeout: float) -> tuple[int, list[KeyValue]]:
        """As `undo.ReadPage`."""
        assert scan.revision is None
        self.asked.append(scan.limit)
        found = self.revision, listed(self.entries, scan)
        self.meanwhile()
        return found

    def read(self, after: int, limit: int, timeout: float) -> list[Event]:
        """As `tail.Read`: a revision at a time."""
        if after < self.trimmed:
            raise gone(after)
        behind = [event for event in self.log if event.revision > after]
        return [event for event in behind if event.revision == behind[0].revision]

    def range(self, scan: Scan, size: int = 3) -> RangeResult:
        """A range of it."""
        return range_by_undo(scan, self.page, self.read, 5, size=size)


def listed(entries: dict[str, KeyValue], scan: Scan) -> list[KeyValue]:
    """What a range of this state gives."""
    keys = sorted((key for key in entries if key in scan.span), reverse=scan.reverse)
    found = [entries[key] for key in keys[: scan.limit]]
    return [entry._replace(value=None) for entry in found] if scan.keys_only else found


def scans(rng: random.Random) -> Iterator[Scan]:
    """Ranges of all kinds."""
    while True:
        yield Scan(
            rng.choice([Span.of_prefix(""), Span.of_prefix("b"), Span("a3", "c2"), Span("b2")]),
            rng.choice([None, None, 1, 4, 9]),
            rng.random() < 0.5,
            rng.random() < 0.3,
        )


@pytest.mark.parametrize("seed", range(10))
def test_pages_are_of_one_revision(seed: int) -> None:
    """However the store changes between them, in each pass, from either end, with any limit."""
    store = Store(seed)
    for _ in range(30):
        store.change()

    def meanwhile() -> None:
        for _ in range(store.rng.choice([0, 1, 6])):
            store.change()

    store.meanwhile = meanwhile
    for scan in islice(scans(store.rng), 30):
        result = store.range(scan)
        assert result.revision is not None
        wanted = listed(store.states[result.revision], scan)
        assert list(result) == wanted
        assert list(result) == wanted, "another pass"
    assert max(limit or 0 for limit in store.asked) <= 3


@pytest.mark.parametrize("seed", range(10))
def test_the_past(seed: int) -> None:
    """A range at an earlier revision is the state as it was then."""
    store = Store(seed)
    for _ in range(30):
        store.change()
    store.meanwhile = store.change
    for scan in islice(scans(store.rng), 30):
        revision = store.rng.randrange(1, store.revision + 1)
        result = store.range(Scan(scan.span, scan.limit, scan.reverse, scan.keys_only, revision))
        assert result.revision == revision
        assert list(result) == listed(store.states[revision], scan)


def test_bounds_of_the_past() -> None:
    """What is gone and what has not been yet are told at once; the present needs no log."""
    store = Store()
    for _ in range(10):
        store.change()
    store.trimmed = 10
    everything = Span.of_prefix("")
    assert list(store.range(Scan(everything, revision=10))) == listed(
        store.entries, Scan(everything)
    )
    with pytest.raises(kvi.Compacted):
        store.range(Scan(everything, revision=9))
    with pytest.raises(kvi.InvalidArgument, match="not come to revision 11"):
        store.range(Scan(everything, revision=11))


def test_history_that_goes_meanwhile() -> None:
    """The page raises it that would need it; nothing is read from two revisions."""
    store = Store()
    for _ in range(30):
        store.change()
    result = store.range(Scan(Span.of_prefix("")))
    passing = iter(result)
    begun = [next(passing) for _ in range(3)]
    assert begun == listed(store.entries, Scan(Span.of_prefix("")))[:3]
    store.change()
    store.trimmed = store.revision
    with pytest.raises(kvi.Compacted):
        next(passing)

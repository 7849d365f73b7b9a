"""Watches on a store that can only be asked for its present state."""

from __future__ import annotations

import kvi
import pytest
from kvi.backend.polling import PollingFeed, changes_between
from kvi.feed import Wake, WatchSpec
from kvi.model import Event, EventType, KeyValue, RangeResult, Scan, Span

PUT, DELETE = EventType.PUT, EventType.DELETE


def entry(key: str, revision: int, created: int | None = None) -> KeyValue:
    return KeyValue(key, str(revision).encode(), revision, created or revision)


def put(new: KeyValue, old: KeyValue | None = None) -> Event:
    return Event(PUT, new.key, new.value, new.revision, old, created=new.create_revision)


def delete(old: KeyValue, revision: int) -> Event:
    return Event(DELETE, old.key, None, revision, old)


A1, A5, A7 = entry("a", 1), entry("a", 5, 1), entry("a", 7)
B2, B6 = entry("b", 2), entry("b", 6, 2)
C3 = entry("c", 3)


@pytest.mark.parametrize(
    ("before", "after", "events"),
    [
        pytest.param([], [], [], id="nothing"),
        pytest.param([A1, B2], [A1, B2], [], id="no change"),
        pytest.param([], [A1, B2], [put(A1), put(B2)], id="new"),
        pytest.param([A1], [A5], [put(A5, A1)], id="changed"),
        pytest.param([A1], [], [delete(A1, 9)], id="deleted"),
        pytest.param([A1], [A7], [put(A7, A1)], id="deleted and made anew"),
        pytest.param([A1, B2], [A7, B6], [put(B6, B2), put(A7, A1)], id="order of revisions"),
        pytest.param(
            [A1, B2, C3],
            [A5, entry("d", 4)],
            [put(entry("d", 4)), put(A5, A1), delete(B2, 9), delete(C3, 9)],
            id="all at once",
        ),
    ],
)
def test_changes_between(
    before: list[KeyValue], after: list[KeyValue], events: list[Event]
) -> None:
    """What makes the later state out of the earlier one, each key once, in order of revisions."""
    known = {entry.key: entry for entry in before}
    assert changes_between(known, after, 9) == events
    assert list(known.values()) == before, "what was given is left as it was"


class Store:
    """A state that can be listed."""

    def __init__(self, *entries: KeyValue, revision: int | None = None) -> None:
        self.entries = list(entries)
        self.revision = revision
        self.failure: kvi.KviError | None = None
        self.listings = 0

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        if self.failure is not None:
            raise self.failure
        self.listings += 1
        entries = [entry for entry in self.entries if entry.key in scan.span]
        return RangeResult(self.revision, lambda: [entries])

    def feed(
        self, wake: Wake = lambda: None, *, initial: bool = False, interval: float = 0
    ) -> PollingFeed:
        """Begin."""
        spec = WatchSpec(Span(), None, initial)
        return PollingFeed(self, spec, wake, 5, interval=interval)  # type: ignore[arg-type]


def test_from_now_on() -> None:
    """What was there at the beginning is not told; what has changed since is, once."""
    store = Store(A1, B2, revision=4)
    feed = store.feed()
    assert feed.revision == 4
    assert feed.poll(5) is None
    store.entries, store.revision = [A5, B2], 5
    batch = feed.poll(5)
    assert batch is not None
    assert (list(batch.events), batch.revision) == ([put(A5, A1)], 5)
    assert feed.poll(5) is None


def test_initial_state() -> None:
    """The state comes first, as it was at the beginning, then what has changed since."""
    store = Store(A1, B2, revision=4)
    feed = store.feed(initial=True)
    assert feed.revision is None
    store.entries, store.revision = [A5], 6
    first = feed.poll(5)
    assert first is not None
    assert [(event.key, event.revision, event.initial) for event in first.events] == [
        ("a", 1, True),
        ("b", 2, True),
    ]
    assert first.revision == 4
    second = feed.poll(5)
    assert second is not None
    assert list(second.events) == [put(A5, A1), delete(B2, 6)]
    assert second.revision == 6


def test_store_without_revisions_of_ranges() -> None:
    """Without a revision of the listing, the largest one seen counts; it never goes back."""
    store = Store(A5, B2)
    feed = store.feed()
    assert feed.revision == 5
    store.entries = [B2]
    batch = feed.poll(5)
    assert batch is not None
    assert batch.revision == 5
    assert list(batch.events) == [delete(A5, 5)]


def test_failure_loses_nothing() -> None:
    """A listing that fails is tried at the next poll, and the changes are told then."""
    store = Store(A1, revision=4)
    feed = store.feed()
    store.failure = kvi.Unavailable("out of reach")
    store.entries, store.revision = [A5], 5
    for _ in range(2):
        with pytest.raises(kvi.Unavailable):
            feed.poll(5)
    store.failure = None
    batch = feed.poll(5)
    assert batch is not None
    assert list(batch.events) == [put(A5, A1)]


def test_closed() -> None:
    """After close it does not look any more."""
    store = Store(A1, revision=4)
    for initial in (True, False):
        feed = store.feed(initial=initial)
        listings = store.listings
        feed.close()
        feed.close()
        assert feed.poll(5) is None
        assert store.listings == listings

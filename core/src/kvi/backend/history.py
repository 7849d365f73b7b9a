"""Watches on a store that keeps its history: what every such backend shares.

The backend gives a function, `OpenChanges`, that opens a source of the changes from a revision on,
which raises `Compacted` once they are gone. `HistoryFeed` adds the initial state and the resync,
for which the store's ranges must be snapshots (`snapshot_range`). `changes_of` is the history of
one key, as `Primitives` has it where nothing else is given.

::

    initial=True:   LISTING ──last page handed out──► FOLLOWING
    otherwise:      FOLLOWING
    anywhere:       ──Compacted──► GONE ──whole state listed, source opened behind it──► FOLLOWING

The state is listed at one revision R and the source opened at R + 1, so that nothing falls between
and nothing comes twice. Pages are read when they are asked for; what a slow consumer has not asked
for yet is in the store, not in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from kvi.errors import Compacted, Timeout
from kvi.feed import Batch, Feed, WatchSpec
from kvi.model import Event, EventType, KeyValue, RangeResult, Scan, Span
from kvi.mutex import Mutex

if TYPE_CHECKING:
    from kvi.primitives import Primitives

__all__ = ["HistoryFeed", "OpenChanges", "changes_of"]


class OpenChanges(Protocol):
    """Opens a source of a watch's changes; again whenever the watch starts over."""

    def __call__(self, span: Span, start: int | None, timeout: float, /) -> Feed:
        """Return a feed of the changes from revision `start` on (`None`: from now on).

        Its `revision` is `start - 1`, or the present one. `start` may lie in the future. Of the
        feed only `poll`, `revision` and `close` are used; it calls the watch's `wake` itself, as
        `Feed` says, since it is what knows of changes.

        Raises:
            Compacted: the store no longer has these changes. `poll` of the feed may raise it later,
                when they went while nobody read them: the watch is then told the present state.

        """


def changes_of(store: Primitives, key: str, limit: int | None, timeout: float) -> list[Event]:
    """The last changes of ``key``, newest first, by a watch from the earliest revision on.

    What is there up to the present must be told by one poll after the other: the first that finds
    nothing is taken for the end.
    """
    deadline = monotonic() + timeout
    span = Span(key, key + "\0")
    while True:
        present = HistoryFeed._revision_of(store._range(Scan(span, limit=1), _left(deadline)))
        found: deque[Event] = deque(maxlen=limit)
        whole = True
        with suppress(Compacted):  # meanwhile: look anew
            feed = _from_the_first(store, span, present, deadline)
            try:
                told = 0
                while told < present and (batch := feed.poll(_left(deadline))) is not None:
                    found.extend(batch.events)
                    whole = whole and all(e.type is not EventType.RESYNC for e in batch.events)
                    told = batch.revision or told
            finally:
                feed.close()
            if whole:
                return list(reversed(found))


def _from_the_first(store: Primitives, span: Span, present: int, deadline: float) -> Feed:
    """A watch from the first revision on that there still is, found by halves."""

    def watch(start: int) -> Feed:
        return store._watch(WatchSpec(span, start), _nothing, _left(deadline))

    gone, there = 0, present + 1
    with suppress(Compacted):
        return watch(1)  # mostly
    while there - gone > 1:
        start = (gone + there) // 2
        try:
            watch(start).close()
            there = start
        except Compacted:
            gone = start
    return watch(there)


def _nothing() -> None:
    pass


PAGE = 500  # events of the initial state in a batch


class HistoryFeed(Feed):
    """A feed over ``open_changes`` with the initial state and resync, from ``store._range``."""

    def __init__(
        self, store: Primitives, spec: WatchSpec, open_changes: OpenChanges, timeout: float
    ) -> None:
        deadline = monotonic() + timeout
        self._store = store
        self._span = spec.span
        self._open = open_changes
        self._lock = Mutex()  # guards the two below
        self._closed = False
        self._changes: Feed | None = None
        self._listing: RangeResult | None = None
        self._entries: Iterator[KeyValue] | None = None
        self._listed = 0  # entries of the listing that were handed out
        if not spec.initial:
            self.revision = self._follow(spec.start, timeout).revision
            return
        changes: Feed | None = None
        while changes is None:
            self._listing = store._range(Scan(spec.span), _left(deadline))
            with suppress(Compacted):  # between the two calls; a later listing is as good
                changes = self._follow(self._revision_of(self._listing) + 1, _left(deadline))

    def poll(self, timeout: float) -> Batch | None:
        """Return the next events."""
        try:
            listing = self._listing
            if listing is not None:
                return self._page(listing)
            changes = self._changes
            if changes is not None:
                return changes.poll(timeout)
        except Compacted:
            self._drop()
        return self._resync(timeout)

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._closed = True
            self._listing = self._entries = None  # it may keep a snapshot of the store
        self._drop()

    def _page(self, listing: RangeResult) -> Batch:
        entries = self._entries
        if entries is None:  # at first, or again after a page that failed
            entries = islice(iter(listing), self._listed, None)
        # If it fails here, or is interrupted, the page is read again.
        self._entries = None
        put = EventType.PUT
        page = [Event(put, e.key, e.value, e.revision, None, True) for e in islice(entries, PAGE)]
        last = len(page) < PAGE
        with self._lock:
            self._listed += len(page)
            if last:
                self._listing = None
            elif not self._closed:
                self._entries = entries
        return Batch(page, listing.revision if last else None)

    def _resync(self, timeout: float) -> Batch | None:
        while True:
            self._listing = self._entries = None
            with self._lock:
                if self._closed:
                    return None
            listing = self._store._range(Scan(self._span), timeout)
            revision = self._revision_of(listing)
            try:
                entries = list(listing)
                self._follow(revision + 1, timeout)
            except Compacted:
                continue
            event = Event(EventType.RESYNC, "", None, revision, snapshot=entries)
            return Batch((event,), revision)

    def _follow(self, start: int | None, timeout: float) -> Feed:
        changes = self._open(self._span, start, timeout)
        with self._lock:
            if not self._closed:
                self._changes = changes
                return changes
        changes.close()
        return changes

    def _drop(self) -> None:
        with self._lock:
            changes, self._changes = self._changes, None
        if changes is not None:
            changes.close()

    @staticmethod
    def _revision_of(listing: RangeResult) -> int:
        assert listing.revision is not None  # a store with history has snapshots
        return listing.revision


def _left(deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise Timeout("the time was up before the watch had begun")
    return left

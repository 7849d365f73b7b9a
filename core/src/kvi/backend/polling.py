"""Watches on a store that can only be asked for its present state, again and again.

A backend whose store neither keeps history nor tells of changes returns a `PollingFeed` from
``_watch``. It lists the watched keys every `interval` seconds and tells what is different: per key
ever newer states that existed, and always the last, which is what ``watch_history=False`` promises.
Each watch costs a listing of its keys in every interval, so this is a beginning, for small stores;
one that can say *that* something has changed should do better.

A feed looks only when it is polled. What nobody reads is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.model import Event, EventType, KeyValue, Scan

if TYPE_CHECKING:
    from kvi.primitives import Primitives

__all__ = ["PollingFeed", "changes_between"]


def changes_between(
    before: dict[str, KeyValue], after: Iterable[KeyValue], revision: int
) -> list[Event]:
    """What makes one state out of another, in the order of revisions.

    ``revision`` is that of the later state, and so of what was deleted. A key that was deleted and
    created again between the two is told as its newest state, which says when it was created.
    """
    left = dict(before)
    events = []
    for entry in after:
        old = left.pop(entry.key, None)
        if old is None or old.revision != entry.revision:
            put, created = EventType.PUT, entry.create_revision
            event = Event(put, entry.key, entry.value, entry.revision, old, created=created)
            events.append(event)
    events += (Event(EventType.DELETE, old.key, None, revision, old) for old in left.values())
    return sorted(events, key=lambda event: event.revision)


class PollingFeed(Feed):
    """Changes found by listing ``spec.span`` every ``interval`` seconds, with ``store._range``."""

    def __init__(
        self,
        store: Primitives,
        spec: WatchSpec,
        wake: Wake,
        timeout: float,
        *,
        interval: float = 0.1,
    ) -> None:
        self._store = store
        self._scan = Scan(spec.span)
        self.interval = interval
        self._closed = False
        self._reached = 0
        entries, self._reached = self._list(timeout)
        self._known = {entry.key: entry for entry in entries}
        self._initial: list[KeyValue] | None = entries if spec.initial else None
        if not spec.initial:
            self.revision = self._reached

    def poll(self, timeout: float) -> Batch | None:
        """Return what has changed since the last listing."""
        if self._closed:
            return None
        if self._initial is not None:
            entries, self._initial = self._initial, None
            put = EventType.PUT
            events = [Event(put, e.key, e.value, e.revision, initial=True) for e in entries]
            return Batch(events, self._reached)
        entries, revision = self._list(timeout)
        events = changes_between(self._known, entries, revision)
        self._known = {entry.key: entry for entry in entries}
        self._reached = revision
        return Batch(events, revision) if events else None

    def close(self) -> None:
        """End it."""
        self._closed = True
        self._known = {}

    def _list(self, timeout: float) -> tuple[list[KeyValue], int]:
        listing = self._store._range(self._scan, timeout)
        entries = list(listing)
        revision = listing.revision
        if revision is None:
            revision = max((entry.revision for entry in entries), default=0)
        return entries, max(revision, self._reached)

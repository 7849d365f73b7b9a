"""Feeds seen through a namespace: their keys lose its name."""

from __future__ import annotations

from kvi.feed import Batch, Feed
from kvi.model import Event, KeyValue


class Stripped(Feed):
    """A feed whose keys lose their first ``skip`` characters."""

    def __init__(self, inner: Feed, skip: int) -> None:
        self._inner = inner
        self._skip = skip
        self.revision = inner.revision

    def poll(self, timeout: float) -> Batch | None:
        """Return the next events."""
        batch = self._inner.poll(timeout)
        return None if batch is None else Batch([*map(self._out, batch.events)], batch.revision)

    def close(self) -> None:
        """End it."""
        self._inner.close()

    def _out(self, event: Event) -> Event:
        skip = self._skip
        kind, key, value, revision, previous, initial, snapshot = event
        if previous is not None:
            previous = KeyValue(previous.key[skip:], *previous[1:])
        if snapshot is not None:
            snapshot = [KeyValue(entry.key[skip:], *entry[1:]) for entry in snapshot]
        return Event(kind, key[skip:], value, revision, previous, initial, snapshot)

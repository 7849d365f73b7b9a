"""Watches of a memory store: cursors into its history.

A cursor is two numbers. ``_told`` is the revision up to which everything has been handed out.
``_first`` is the first revision after it that may concern the watch, or ``None`` if there is none:
a commit that touches a watched key sets it, and wakes the watch. So a watch that nothing concerns
costs nothing, and cannot fall behind; one that does not read falls behind without any buffer, until
the history no longer has its ``_first``.
"""

from __future__ import annotations

from kvi.errors import Compacted
from kvi.feed import Batch, Feed, Wake
from kvi.model import Event, EventType, Span

from kvi_memory.state import MemoryState

MOST_EVENTS = 500  # in a batch; one revision comes whole whatever its size
MOST_COMMITS = 2000  # looked at while the store's lock is held


class MemoryChanges(Feed):
    """The changes in ``span`` from revision ``start`` on (``None``: from now on)."""

    def __init__(self, state: MemoryState, span: Span, start: int | None, wake: Wake) -> None:
        self._state = state
        self._span = span
        self._wake = wake
        self._first: int | None = None
        with state.lock:
            if start is None:
                start = state.revision + 1
            elif start <= state.revision:
                self._first = start
                self._index()  # raises if it is gone
            self._told = self.revision = start - 1
            state.watches.add(span, self)

    def woken_by(self, revision: int) -> None:
        """A commit concerns the watch. The store's lock is held."""
        if self._first is None and revision > self._told:
            self._first = revision
            self._wake()

    def poll(self, timeout: float) -> Batch | None:
        """The next changes; waits for nothing."""
        span, put, delete = self._span, EventType.PUT, EventType.DELETE
        events: list[Event] = []
        state = self._state
        with state.lock:
            if self._first is None:
                return None
            history = state.history
            index = self._index()
            last = min(index + MOST_COMMITS, len(history))
            while index < last and len(events) < MOST_EVENTS:
                revision, changes = history[index]
                for key, old, new in changes:
                    if key in span:
                        if new is None:
                            events.append(Event(delete, key, None, revision, old))
                        else:
                            events.append(Event(put, key, new.value, revision, old))
                index += 1
            self._told = history[index - 1][0]
            self._first = self._told + 1 if index < len(history) else None
            return Batch(events, self._told)

    def close(self) -> None:
        """End it."""
        with self._state.lock:
            self._state.watches.discard(self._span, self)

    def _index(self) -> int:
        """Where ``_first`` is in the history; raises `Compacted` if it is gone."""
        first, history = self._first, self._state.history
        assert first is not None  # asked only then
        if not history or first < history[0][0]:
            raise Compacted("the history of the memory store no longer goes back to this revision")
        return first - history[0][0]

"""Watches of a memory store: cursors into its history.

A cursor is two numbers. ``told`` is the revision up to which everything has been handed out.
``first`` is the first revision after it that may concern the watch, or ``None`` if there is none:
a commit that touches a watched key wakes the watch, and sets it. So a watch that nothing concerns
costs nothing, and cannot fall behind; one that does not read falls behind without any buffer, until
the history no longer has its ``first``.
"""

from __future__ import annotations

from kvi.errors import Compacted
from kvi.feed import Batch, Feed, Wake
from kvi.model import Event, Span

from kvi_memory.state import MemoryState

MOST_EVENTS = 500  # in a batch; one revision comes whole whatever its size
MOST_COMMITS = 2000  # looked at while the store's lock is held


class MemoryChanges(Feed):
    """The changes in ``span`` from revision ``start`` on (``None``: from now on).

    The store's lock guards ``told`` and ``first``.
    """

    def __init__(self, state: MemoryState, span: Span, start: int | None, wake: Wake) -> None:
        self._state = state
        self._span = span
        self.wake = wake
        self.first: int | None = None
        with state.lock:
            state.finish()
            if start is None:
                start = state.revision + 1
            elif start <= state.revision:
                self.first = start
                self._index()  # raises if it is gone
            self.told = self.revision = start - 1
            state.watched = True
            state.watches.add(span, self)

    def poll(self, timeout: float) -> Batch | None:
        """The next changes; waits for nothing."""
        span = self._span
        events: list[Event] = []
        state = self._state
        with state.lock:
            state.finish()
            if self.first is None:
                return None
            history = state.history
            index = self._index()
            last = min(index + MOST_COMMITS, len(history))
            while index < last and len(events) < MOST_EVENTS:
                revision, changes, _ = history[index]
                events += (change.event(revision) for change in changes if change.key in span)
                index += 1
            told = history[index - 1][0]
            first = told + 1 if index < len(history) else None
            self.told, self.first = told, first
            return Batch(events, told)

    def close(self) -> None:
        """End it."""
        state = self._state
        with state.lock:
            state.finish()
            state.watches.discard(self._span, self)
            state.watched = bool(state.watches)

    def _index(self) -> int:
        """Where ``first`` is in the history; raises `Compacted` if it is gone."""
        first, history = self.first, self._state.history
        assert first is not None  # asked only then
        if not history or first < history[0][0]:
            raise Compacted("the history of the memory store no longer goes back to this revision")
        return first - history[0][0]

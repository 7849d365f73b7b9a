"""The data of one memory store: the readable reference of what a revision is.

*Theory.* The store is a sorted map of the present entries, a counter, and a history. One lock
guards all three and is held only while they are read or changed, never while a caller's code runs.
Entries are immutable, so that handing one out is handing out a snapshot.

Each commit of at least one change raises the counter by one, gives that revision to every entry it
writes, and appends its changes to the history. The history keeps at most the last `HISTORY` commits
and `HISTORY_BYTES` of values; what is older is gone, and a reader who needs it must start over from
the present state.

The data is one per name and process, and outlives every handle. A forked child has a copy of its
own, as of everything in memory; the fork waits for commits under way, so that the copy is whole.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import ExitStack

from kvi.model import KeyValue
from kvi.policy.txn import Change
from sortedcontainers import SortedDict

HISTORY = 10_000  # commits: minutes of a busy store
HISTORY_BYTES = 64 * 1024 * 1024  # a bound on what old values may hold


class MemoryState:
    """The entries, the revision counter and the history of one store.

    Attributes:
        lock: guards everything else.
        entries: the present entries in key order.
        revision: of the last commit; 0 before the first.
        history: the last commits as ``(revision, changes)``, oldest first.

    """

    __slots__ = ("_weight", "entries", "history", "lock", "revision")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: SortedDict = SortedDict()
        self.revision = 0
        self.history: deque[tuple[int, tuple[Change, ...]]] = deque()
        self._weight = 0  # bytes of the values in the history

    def commit(self, changes: tuple[Change, ...]) -> None:
        """Apply the changes of one transaction, made for ``revision + 1``. Hold the lock."""
        for change in changes:
            if change.new is None:
                del self.entries[change.key]
            else:
                self.entries[change.key] = change.new
        self.record(changes)

    def record(self, changes: tuple[Change, ...]) -> None:
        """Count the commit of changes that have been applied. Hold the lock."""
        self.revision += 1
        history = self.history
        history.append((self.revision, changes))
        self._weight += _weight(changes)
        while len(history) > HISTORY or (self._weight > HISTORY_BYTES and len(history) > 1):
            self._weight -= _weight(history.popleft()[1])

    def read(self, key: str) -> KeyValue | None:
        """The present entry of ``key``. Hold the lock."""
        entry: KeyValue | None = self.entries.get(key)
        return entry


def _weight(changes: tuple[Change, ...]) -> int:
    total = 0
    for _, _, new in changes:
        if new is not None and new.value is not None:
            total += len(new.value)
    return total


_states: dict[str, MemoryState] = {}
_states_lock = threading.Lock()


def state_of(name: str) -> MemoryState:
    """The store called ``name``, made at its first use in this process."""
    with _states_lock:
        return _states.setdefault(name, MemoryState())


_fork = ExitStack()


def _before_fork() -> None:
    _fork.enter_context(_states_lock)
    for state in _states.values():
        _fork.enter_context(state.lock)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_fork.close, after_in_child=_fork.close
    )

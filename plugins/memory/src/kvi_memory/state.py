"""The data of one memory store: the readable reference of what a revision is.

*Theory.* The store is a sorted map of the present entries, a counter, a history, and leases. One
lock guards them all and is held only while they are read or changed, never while a caller's code
runs.
Entries are immutable, so that handing one out is handing out a snapshot.

Each commit of at least one change raises the counter by one, gives that revision to every entry it
writes, and appends its changes to the history. The history keeps at most the last `HISTORY` commits
and `HISTORY_BYTES` of values; what is older is gone, and a reader who needs it must start over from
the present state.

*Watches* are cursors into the history (`kvi_memory.changes`). A commit wakes those that span one of
its keys; a watch that was not woken has missed nothing, however far the history has moved on.

*Leases* end by the clock. Whatever names a lease that is past its deadline finds it gone, and the
reaper, a thread that lives as long as there are leases, deletes its keys, in one commit.

The data is one per name and process, and outlives every handle. A forked child has a copy of its
own, as of everything in memory; the fork waits for commits under way, so that the copy is whole.
The parent's watches are not the child's, and its leases end there when their time is up.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kvi.clock import now
from kvi.errors import LeaseLost, Unavailable
from kvi.model import KeyValue
from kvi.policy.interest import Interests
from kvi.policy.txn import Change
from sortedcontainers import SortedDict

if TYPE_CHECKING:
    from kvi_memory.changes import MemoryChanges

HISTORY = 50_000  # commits: a watch may fall seconds behind writers of its own process
HISTORY_BYTES = 64 * 1024 * 1024  # a bound on what old values may hold


class _Lease:
    __slots__ = ("deadline", "keys", "ttl")

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        self.deadline = now() + ttl
        self.keys: set[str] = set()


class MemoryState:
    """The entries, the revision counter and the history of one store.

    Attributes:
        lock: guards everything else.
        entries: the present entries in key order.
        revision: of the last commit; 0 before the first.
        history: the last commits as ``(revision, changes)``, oldest first, without gaps.
        watches: who is to be woken.

    """

    __slots__ = (
        "_leases",
        "_reaper",
        "_weight",
        "entries",
        "history",
        "lock",
        "revision",
        "watches",
    )

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: SortedDict = SortedDict()
        self.revision = 0
        self.history: deque[tuple[int, tuple[Change, ...]]] = deque()
        self._weight = 0  # bytes of the values in the history
        self.watches: Interests[MemoryChanges] = Interests()
        self._leases: dict[int, _Lease] = {}
        self._reaper: threading.Condition | None = None  # on the lock, while the thread runs

    def commit(self, changes: tuple[Change, ...]) -> None:
        """Apply the changes of one transaction, made for ``revision + 1``. Hold the lock."""
        for key, old, new in changes:
            if old is not None and old.lease is not None:
                self._leases[old.lease].keys.discard(key)
            if new is None:
                del self.entries[key]
                continue
            self.entries[key] = new
            if new.lease is not None:
                self._leases[new.lease].keys.add(key)
        self.record(changes)

    def record(self, changes: tuple[Change, ...]) -> None:
        """Count the commit of changes that have been applied. Hold the lock."""
        self.revision += 1
        history = self.history
        history.append((self.revision, changes))
        self._weight += _weight(changes)
        while len(history) > HISTORY or (self._weight > HISTORY_BYTES and len(history) > 1):
            self._weight -= _weight(history.popleft()[1])
        if self.watches:
            for watch in self.watches.matching(change.key for change in changes):
                watch.woken_by(self.revision)

    def read(self, key: str) -> KeyValue | None:
        """The present entry of ``key``. Hold the lock."""
        entry: KeyValue | None = self.entries.get(key)
        return entry

    # -- leases; hold the lock for all of them -----------------------------------------------------

    def grant(self, ttl: float) -> int:
        """Begin a lease; its id."""
        while (lease := int.from_bytes(os.urandom(8)) >> 2) in self._leases or not lease:
            pass
        self._leases[lease] = _Lease(ttl)
        try:
            self.reap()
        except Unavailable:
            del self._leases[lease]
            raise
        return lease

    def alive(self, lease: int) -> _Lease:
        """The lease; raises `LeaseLost` if it has ended."""
        found = self._leases.get(lease)
        if found is not None and found.deadline <= now():
            self.end(lease)
            found = None
        if found is None:
            raise LeaseLost("no lease with this id is alive; grant a new one")
        return found

    def renew(self, lease: int) -> float:
        """Let its time begin anew; its ttl. Raises `LeaseLost`."""
        found = self.alive(lease)
        found.deadline = now() + found.ttl
        return found.ttl

    def end(self, lease: int) -> None:
        """End a lease, if it has not, and delete its keys."""
        found = self._leases.get(lease)
        if found is None:
            return
        changes = tuple(Change(key, self.entries[key], None) for key in sorted(found.keys))
        if changes:
            self.commit(changes)
        del self._leases[lease]
        if self._reaper is not None:
            self._reaper.notify()

    def reap(self) -> None:
        """See to it that leases end in time, if there are any."""
        if not self._leases:
            return
        if self._reaper is not None:
            self._reaper.notify()
            return
        changed = threading.Condition(self.lock)
        thread = threading.Thread(
            target=self._run_reaper, args=(changed,), name="kvi-memory-leases", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise Unavailable(f"no thread can be started to end leases in time: {error}") from error
        self._reaper = changed

    def _run_reaper(self, changed: threading.Condition) -> None:
        with changed:
            while self._leases:
                moment = now()
                for lease in [k for k, v in self._leases.items() if v.deadline <= moment]:
                    self.end(lease)
                if self._leases:
                    soonest = min(found.deadline for found in self._leases.values())
                    changed.wait(min(max(0.0, soonest - now()), 3600))
            self._reaper = None

    def forked(self) -> None:
        """In a child after a fork: forget the parent's threads and those who wait for them."""
        self._reaper = None
        self.watches = Interests()


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


def _after_fork() -> None:
    _fork.pop_all().close()  # apart from the stack, which the next fork may be filling already


def _after_fork_in_child() -> None:
    for state in _states.values():
        state.forked()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )

"""The data of one memory store: the readable reference of what a revision is.

*Theory.* The store is a map of the present entries, their keys in order, a counter, a history, and
leases. One lock guards them all and is held only while they are read or changed, never while a
caller's code runs. Entries are immutable, so that handing one out is handing out a snapshot.

Each commit of at least one change raises the counter by one, gives that revision to every entry it
writes, and appends its changes to the history. The history keeps at most the last `HISTORY` commits
and `HISTORY_BYTES` of what they hold; what is older is gone, and a reader who needs it must start
over from the present state.

*Interrupts.* An exception of a signal handler may end any call between any two steps, and a fork
may copy the store then. A commit is therefore prepared aside, and done by one assignment:

=========  =========================================================  ==========================
pending    guarantee                                                  left by
=========  =========================================================  ==========================
``None``   all parts agree                                            the assignment of `commit`
a commit   it is done, whatever the parts say, and whoever wakes for  `finish`, to its end
           it has been woken
=========  =========================================================  ==========================

Who takes the lock calls `finish` first. Each of its steps gives the same when it is done again, so
it begins from the start wherever it was left. The keys in order cannot be mended in the middle of a
change; whoever changes them takes them out before, and who finds none makes them anew.

A handler may also call the store, amid a call of its own thread that has the lock. The lock knows
its owner, so that such a call is refused: it would wait for ever. The store is ``busy`` from
`finish` on; until then nothing has been read, and what comes in between comes before.

No loop stands in a block that holds the lock: of one with a condition, Python 3.12 and 3.13 forget
the block when an exception comes at its jump backward, and the lock would stay taken.

*Watches* are cursors into the history (`kvi_memory.changes`). A commit wakes those that span one of
its keys; a watch that was not woken has missed nothing, however far the history has moved on.

*Leases* end by the clock. Whatever names a lease that is past its deadline finds it gone, and the
reaper, a thread that lives as long as there are leases, deletes its keys, in one commit. It has
their deadlines in a heap (Williams, 1964), and looks at those that are over: a lease that was
renewed goes back with its new one, and one that has ended is skipped.

*Locks.* Who contends for one stands in its line, by create revision, so that a claim finds who is
right before it without a look at all others.

The data is one per name and process, and outlives every handle. A forked child has a copy of its
own, as of everything in memory, with new locks. The parent's watches are not the child's, and its
leases end there when their time is up.
"""

from __future__ import annotations

import _thread
import os
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from kvi.clock import now
from kvi.errors import LeaseLost, NotSupported, Unavailable
from kvi.model import KeyValue, LeaseInfo, Put, Span, Txn, TxnResult
from kvi.mutex import OwnedMutex
from kvi.policy.interest import Interests
from kvi.policy.lock import contended
from kvi.policy.past import check_past
from kvi.policy.txn import Change, choose, perform
from sortedcontainers import SortedList

if TYPE_CHECKING:
    from kvi_memory.changes import MemoryChanges

HISTORY = 50_000  # commits: a watch may fall seconds behind writers of its own process
HISTORY_BYTES = 64 * 1024 * 1024
_OBJECTS = 512  # bytes of a change beside its key and values: at most seven objects

_made = tuple.__new__
_Commit = tuple[int, tuple[Change, ...], int]  # revision, changes, bytes counted before it


class _Lease:
    __slots__ = ("deadline", "keys", "ttl")

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        self.deadline = now() + ttl
        self.keys: set[str] = set()


class MemoryState:
    """The entries, the revision counter and the history of one store.

    Attributes:
        own: the lock; for the short way, which has looked whether it is ``busy``.
        busy: a call may be under way, or was left, and had begun to read or to change something.
        pending: the commit that is done but not carried through, if there is one. While it is
            ``None``, one entry can be read without the lock: a commit counts from when it is
            ``None`` again, for nobody who read before tells of it until then.
        entries: the present entries.
        revision: of the last commit; 0 before the first.
        history: the last commits, oldest first, without gaps.
        watches: who is to be woken.
        watched: whether there is anybody.

    """

    __slots__ = (
        "_bytes",
        "_due",
        "_keys",
        "_leases",
        "_lines",
        "_nudges",
        "_reaping",
        "busy",
        "entries",
        "history",
        "own",
        "pending",
        "revision",
        "watched",
        "watches",
    )

    def __init__(self) -> None:
        self.pending: tuple[_Commit, int, Sequence[MemoryChanges], int | None] | None = None
        self.entries: dict[str, KeyValue] = {}
        self._keys: SortedList | None = None  # of the entries; None: to be made
        self.revision = 0
        self.history: deque[_Commit] = deque()
        self._bytes = 0  # counted since the beginning, also of what the history no longer has
        self._leases: dict[int, _Lease] = {}
        self._lines: dict[str, list[tuple[int, str]]] = {}  # by lock: created at, and key
        self._due: list[tuple[float, int]] = []  # of each lease a deadline, no later than its own
        self.forked()

    def forked(self) -> None:
        """In a child after a fork: forget the parent's threads, and what they hold or wait for."""
        self.own = OwnedMutex()
        self.busy = False
        self.watches: Interests[MemoryChanges] = Interests()
        self.watched = False
        self._reaping = False
        self._nudges: SimpleQueue[None] = SimpleQueue()

    @property
    def lock(self) -> AbstractContextManager[bool]:
        """Guards everything else. Who has taken it calls `finish` before anything.

        Raises `NotSupported` if this thread has it already.
        """
        if self.busy and self.own._is_owned():
            raise NotSupported(
                "a signal handler cannot call a memory store amid a call of the same thread on it; "
                "let the handler raise, or set a flag, and call the store where that is seen"
            )
        return self.own  # type: ignore[no-any-return]

    # -- hold the lock for all of the following --------------------------------------------------

    def commit(self, changes: tuple[Change, ...], ended: int | None = None) -> None:
        """Apply the changes of one transaction, made for ``revision + 1``, and end a lease."""
        revision, before = self.revision + 1, self._bytes
        after = before + sum(map(_weight, changes))
        told = []
        if self.watched:
            # Before it is done: they find it once they have the lock, whoever carries it through.
            for watch in self.watches.matching(change.key for change in changes):
                if watch.first is None and revision > watch.told:
                    watch.wake()
                    told.append(watch)
        self.pending = ((revision, changes, before), after, told, ended)
        self.finish()

    def transact(self, txn: Txn) -> TxnResult:
        """Run a transaction."""
        succeeded, branch = choose(txn, self.read)
        for op in branch:
            if isinstance(op, Put) and op.lease is not None:
                assert isinstance(op.lease, int)  # check_txn took the id
                self.alive(op.lease)
        effect = perform(branch, self.read, self.revision + 1)
        if effect.changes:
            self.commit(effect.changes)
        return TxnResult(succeeded, self.revision, effect.results)

    def finish(self) -> None:
        """Carry the pending commit through, whether none or some of it has been done."""
        self.busy = True
        if self.pending is None:
            return
        commit, after, told, ended = self.pending
        entries, leases = self.entries, self._leases
        moved = [key for key, _, new in commit[1] if (new is None) is (key in entries)]
        keys = self._keys
        if moved:
            self._keys = None
        for key, old, new in commit[1]:
            if old is not None and old.lease is not None:
                self._leave_line(old)
                if old.lease in leases:
                    leases[old.lease].keys.discard(key)
            if new is None:
                entries.pop(key, None)
                continue
            entries[key] = new
            if new.lease is not None:
                leases[new.lease].keys.add(key)
                self._join_line(new)
        if moved and keys is not None:
            for key in moved:
                (keys.add if key in entries else keys.discard)(key)
            self._keys = keys
        if ended is not None:
            leases.pop(ended, None)
        self.revision, self._bytes = commit[0], after
        history = self.history
        if not history or history[-1][0] < commit[0]:
            history.append(commit)
        self.trim()
        for watch in told:
            if watch.first is None:
                watch.first = commit[0]
        self.pending = None

    def replace(self, key: str, value: bytes) -> int | None:
        """Commit another value of a key in the shortest way, if it is there without a lease."""
        if self.busy:
            self.finish()
        self.busy = True
        old = self.entries.get(key)
        if old is None:
            return None
        _, previous, _, created, version, lease = old
        if lease is not None or previous is None or version is None:
            return None
        revision, before = self.revision + 1, self._bytes
        new = _made(KeyValue, (key, value, revision, created, version + 1, None))
        changes = (_made(Change, (key, old, new)),)
        if self.watched:
            self.commit(changes)
            return revision
        after = before + _OBJECTS + 4 * len(key) + len(previous) + len(value)
        commit = (revision, changes, before)
        self.pending = (commit, after, (), None)
        self.entries[key] = new
        self.revision = revision
        self._bytes = after
        self.history.append(commit)
        oldest = self.history[0]
        if revision - oldest[0] >= HISTORY or after - oldest[2] > HISTORY_BYTES:
            self.trim()
        self.pending = None
        self.busy = False
        return revision

    def trim(self) -> None:
        """Let the history forget what is beyond its bounds."""
        history, total = self.history, self._bytes
        while len(history) > HISTORY or (
            total - history[0][2] > HISTORY_BYTES and len(history) > 1
        ):
            history.popleft()

    def _join_line(self, entry: KeyValue) -> None:
        """Know it as a contender, if it is one; again, it does nothing."""
        name = contended(entry)
        if name is not None:
            line, place = self._lines.setdefault(name, []), (entry.create_revision, entry.key)
            at = bisect_left(line, place)
            if line[at : at + 1] != [place]:
                line.insert(at, place)

    def _leave_line(self, entry: KeyValue) -> None:
        """Forget a contender; again, it does nothing."""
        name = contended(entry)
        line = None if name is None else self._lines.get(name)
        if name is not None and line is not None:
            place = (entry.create_revision, entry.key)
            at = bisect_left(line, place)
            if line[at : at + 1] == [place]:
                del line[at]
            if not line:
                self._lines.pop(name, None)

    def before(self, name: str, created: int) -> tuple[KeyValue, ...]:
        """The last contender for the lock ``name`` from before that revision, if there is one."""
        line = self._lines.get(name, [])
        at = bisect_left(line, (created, ""))
        return (self.entries[line[at - 1][1]],) if at else ()

    def read(self, key: str) -> KeyValue | None:
        """The present entry of ``key``."""
        return self.entries.get(key)

    def oldest(self) -> int:
        """The earliest revision whose state is known."""
        return self.history[0][0] - 1 if self.history else self.revision

    def undone(self, revision: int, span: Span) -> dict[str, KeyValue | None]:
        """What of ``span`` has changed since ``revision``, as it was then.

        Raises `Compacted` or `InvalidArgument` if that was before the history, or is to come.
        """
        check_past(revision, self.oldest(), self.revision)
        found: dict[str, KeyValue | None] = {}
        for at, changes, _ in reversed(self.history):
            if at <= revision:
                break
            found.update((key, old) for key, old, _ in changes if key in span)
        return found

    def changes_of(self, key: str, limit: int | None) -> list[tuple[int, Change]]:
        """The last changes of a key, newest first, each with its revision."""
        changes = (
            (revision, change)
            for revision, changes, _ in reversed(self.history)
            for change in changes
            if change.key == key
        )
        return list(islice(changes, limit))

    def between(self, span: Span, reverse: bool = False) -> Iterator[str]:
        """The keys of ``span`` in order."""
        if self._keys is None:
            self._keys = SortedList(self.entries)
        keys: Iterator[str] = self._keys.irange(span.start, span.end, (True, False), reverse)
        return keys

    def count(self, span: Span) -> int:
        """How many keys ``span`` has."""
        keys, self._keys = self._keys, None  # it makes its positions while it tells them
        if keys is None:
            keys = SortedList(self.entries)
        end = len(keys) if span.end is None else keys.bisect_left(span.end)
        found: int = end - keys.bisect_left(span.start)
        self._keys = keys
        return found

    # -- leases ----------------------------------------------------------------------------------

    def grant(self, ttl: float) -> int:
        """Begin a lease; its id."""
        while (lease := int.from_bytes(os.urandom(8)) >> 2) in self._leases or not lease:
            pass
        granted = _Lease(ttl)
        if len(self._due) > 2 * len(self._leases) + 64:  # most are of leases that have ended
            due = [(found.deadline, id) for id, found in self._leases.items()]
            heapify(due)
            self._due = due
        first = (granted.deadline, lease)
        heappush(self._due, first)
        if self._due[0] is first or not self._reaping:
            self.reap()  # before there is anything to reap: the reaper waits for the lock
        self._leases[lease] = granted
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

    def told(self, ids: Collection[int] | None, span: Span | None) -> list[LeaseInfo]:
        """The leases that have not ended, of ``ids`` or all, and their keys within ``span``."""
        moment = now()
        return [
            LeaseInfo(
                lease,
                found.ttl,
                found.deadline - moment,
                None if span is None else sorted(key for key in found.keys if key in span),
            )
            for lease, found in self._leases.items()
            if found.deadline > moment and (ids is None or lease in ids)
        ]

    def end(self, lease: int) -> None:
        """End a lease, if it has not, and delete its keys."""
        found = self._leases.get(lease)
        if found is None:
            return
        if len(self._leases) == 1:
            self._nudges.put(None)  # the reaper can go
        changes = tuple(Change(key, self.entries[key], None) for key in sorted(found.keys))
        if changes:
            self.commit(changes, lease)
        else:
            del self._leases[lease]

    def resume(self) -> None:
        """See to it that leases end that a fork has copied, which the reaper is not."""
        if self._leases:
            self.reap()

    def reap(self) -> None:
        """See to it that there is a reaper, and that it looks at the leases once it may."""
        if self._reaping:
            self._nudges.put(None)
            return
        try:
            # Not threading.Thread, whose start waits for the thread and can be left in the middle.
            _thread.start_new_thread(self._reap, ())
        except RuntimeError as error:
            raise Unavailable(f"no thread can be started to end leases in time: {error}") from error

    def _reap(self) -> None:
        with self.lock:
            if self._reaping:  # who started the other one was interrupted, or had not seen it yet
                return
            self._reaping = True
        while True:
            with self.lock:
                self.finish()
                soonest = self._end_due()
                if soonest is None:
                    self._reaping = False
                    return
            with suppress(Empty):
                self._nudges.get(timeout=min(max(0.0, soonest - now()), 3600))

    def _end_due(self) -> float | None:
        """End the leases that are due; when the next may be, if there is one. Holds the lock."""
        due, moment = self._due, now()
        while due:
            deadline, lease = due[0]
            found = self._leases.get(lease)
            if found is None:
                heappop(due)
            elif found.deadline > deadline:  # renewed meanwhile
                heapreplace(due, (found.deadline, lease))
            elif deadline > moment:
                return deadline
            else:
                self.end(lease)
        return None


def _weight(change: Change) -> int:
    """The bytes that the history keeps by a change, at most."""
    key, old, new = change
    total = _OBJECTS + 4 * len(key)
    for entry in (old, new):
        if entry is not None and entry.value is not None:
            total += len(entry.value)
    return total


_states: dict[str, MemoryState] = {}


def state_of(name: str) -> MemoryState:
    """The store called ``name``, made at its first use in this process."""
    return _states.get(name) or _states.setdefault(name, MemoryState())


def _after_fork_in_child() -> None:
    for state in list(_states.values()):
        state.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""The tail of a log: one thread that reads what is new for all watches of a handle.

For stores that keep their history and can be asked for all changes behind a revision. The author
gives two functions, `Read` and `Wait`; `Tail.watch` is then what ``_watch`` returns.

*Theory.* What is new the thread reads once, for all watches: `Interests` says whom a change
concerns, and those are marked and woken. It keeps the last changes in a `Window` of bounded size.
Whoever is marked takes what is his from there when his consumer asks, without asking the store. Who
is further behind than the window, or begins in the past, reads for himself. So a commit costs one
reading and not one for each watch, a consumer that never asks costs a `Cursor`, and a watch of
quiet keys is never behind::

    history:   … │ ░░░░░░░░░░░ the window ░░░░░░░░░░░ │ not looked through yet …
                 ▲ Window.after                       ▲ _seen     ▲ the present revision
      marked here: reads for himself   here: from memory

===========================  ==============================  ====================================
what is marked               is told from                    because
===========================  ==============================  ====================================
a change within the window   the window                      all behind it is there, up to _seen
one before the window        `Read`, up to `limit`           the rest stays marked
a start in the past          `Read`, up to the revision      the thread may be behind what was
                             present when the watch began    committed before
===========================  ==============================  ====================================

If the history is gone before the thread has read it, everybody may have missed something, and is
marked with what is gone: reading it raises `Compacted`, and `HistoryFeed` tells the present state.
An error that will not pass, such as `PermissionDenied`, marks everybody too, and comes out of their
own reading. Any other is logged once, reported (`Primitives._report`), and the thread tries again.

*Ownership.* ``_lock`` guards the interests, the cursors, the window and the thread's place; it is
held for decisions, never for I/O. The thread starts with the first watch and ends `LINGER` after
the last, or by `Tail.stop`. It is a daemon; a forked child has none, and its parent's goes on.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import groupby, takewhile
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from kvi.backend.history import HistoryFeed
from kvi.errors import Closed, Compacted, KviError, Timeout, Unavailable
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.log import log
from kvi.model import Event, Scan, Span
from kvi.mutex import Mutex
from kvi.policy.cursor import SOONEST, Cursor, pace
from kvi.policy.interest import Interests

if TYPE_CHECKING:
    from kvi.primitives import Primitives

__all__ = ["Read", "Tail", "Wait"]

LINGER = 1.0  # seconds that the thread outlives the last watch: often the next one comes soon
WAIT = 0.5  # seconds for one `Wait`: whoever closes the handle waits for it
READ = 5.0  # seconds for one `Read` of the thread
LIMIT = 512  # changes that are read at a time
WINDOW, WINDOW_BYTES = 1024, 1024 * 1024  # changes kept, and bytes of their keys and values
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds between attempts while the store is unreachable
EVERYTHING = Span()
END = 2**63 - 1

_revision = attrgetter("revision")


class Read(Protocol):
    """Reads the log."""

    def __call__(self, after: int, limit: int, timeout: float, /) -> Sequence[Event]:
        """Return the committed changes with a revision larger than ``after``, in order.

        The next ``limit`` of them, or nearly so: all changes of a revision or none, and fewer if
        they are large, but at least one revision if there is any. ``after`` may lie in the future:
        then there are none. With `Event.previous`, where the store knows it. ``timeout`` is in
        seconds. Called from several threads at once. What has been committed before the call,
        by whomever, is there.

        Raises:
            Compacted: some of the changes behind ``after`` are gone.
            Unavailable, Timeout: it cannot be read now. Any other `KviError` ends the watches.

        """


class Wait(Protocol):
    """Waits for the log to grow."""

    def __call__(self, after: int, timeout: float, /) -> None:
        """Return when there may be something newer than ``after``, or ``timeout`` seconds later.

        It may return too early, or do nothing at all: the log is looked at some milliseconds
        after the last time, and ever more rarely down to 20 times a second while nothing is found.
        Raises what `Read` raises. Called by one thread at a time, for half a second at the most.
        """


class Window:
    """The last changes, whole revisions, of a bounded number and size. Not safe for threads.

    Attributes:
        after: every change behind this revision that was added is here.

    """

    __slots__ = ("_events", "_size", "after")

    def __init__(self, after: int) -> None:
        self.after = after
        self._events: deque[Event] = deque()
        self._size = 0

    def add(self, events: Sequence[Event]) -> None:
        """Take in the changes that come next; the oldest ones go."""
        held = self._events
        held.extend(events)
        self._size += sum(map(_weight, events))
        while held and (
            len(held) > WINDOW or self._size > WINDOW_BYTES or held[0].revision == self.after
        ):
            gone = held.popleft()
            self._size -= _weight(gone)
            self.after = gone.revision

    def since(self, first: int) -> list[Event]:
        """The changes from revision ``first`` on."""
        found = list(takewhile(lambda event: event.revision >= first, reversed(self._events)))
        found.reverse()
        return found


def _weight(event: Event) -> int:
    before = event.previous
    size = len(event.key) + len(event.value or b"")
    return size if before is None else size + len(before.value or b"")


class _Changes(Feed):
    """The changes of one span of keys from a revision on; made by `Tail`."""

    __slots__ = ("_tail", "begun", "cursor", "revision", "span", "wake")

    def __init__(self, tail: Tail, span: Span, start: int, begun: int, wake: Wake) -> None:
        self._tail = tail
        self.revision: int = start - 1
        self.span = span
        self.begun = begun  # the revision that was present then
        self.cursor = Cursor(start)
        self.wake = wake

    def poll(self, timeout: float) -> Batch | None:
        """Return the next changes; raises `Compacted` if they are gone."""
        return self._tail._poll(self, timeout)

    def close(self) -> None:
        """End it."""
        self._tail._discard(self)


class Tail:
    """The watches of one handle over ``read``, and their thread. Safe for threads.

    ``_watch`` returns `watch`, ``_close`` calls `stop` and `close`, ``_forked`` calls `forked`. The
    store's ranges must be snapshots (``snapshot_range``).
    """

    def __init__(self, store: Primitives, read: Read, wait: Wait) -> None:
        """``store`` is the handle, whose ranges tell the present revision and state."""
        self._store = store
        self._read = read
        self._wait = wait
        self._report = store._reporter()
        self._lock = Mutex()
        self._interests: Interests[_Changes] = Interests()
        self._window = Window(0)
        self._seen = 0  # all up to here was looked through for those interested at the time
        self._news = threading.Event()  # a first watch, or the end: do not pause now
        self._thread: threading.Thread | None = None  # the last one
        self._running = False
        self._stopped = False

    # -- for the handle ---------------------------------------------------------------------------

    def watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        """Begin to watch, as ``Primitives._watch``; ``timeout`` is in seconds.

        Raises:
            Compacted: ``spec.start`` is gone already.
            Unavailable, Timeout: the store cannot be asked.

        """
        return HistoryFeed(self._store, spec, partial(self._open, wake), timeout)

    def stop(self) -> None:
        """Let the thread end, and no watch begin any more; does not wait. Again, it does nothing.

        Call it first, then wake a `Read` or `Wait` that is under way, as by closing connections.
        """
        self._stopped = True
        self._news.set()

    def close(self) -> None:
        """`stop`, and wait up to a second for the thread to end."""
        self.stop()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    def forked(self) -> None:
        """In a forked child: the thread is not here, and it may have held the locks."""
        self._lock = Mutex()
        self._news = threading.Event()
        self._thread = None
        self._running = False
        self._stopped = True

    # -- for the watches --------------------------------------------------------------------------

    def _open(self, wake: Wake, span: Span, start: int | None, timeout: float) -> Feed:
        deadline = monotonic() + timeout
        present = self._present(span, timeout)
        if start is None:
            start = present + 1
        elif start <= present:
            self._read(start - 1, 1, max(0.001, deadline - monotonic()))  # is it still there?
        with self._lock:
            if self._stopped:
                raise Closed("the store is closed")
            if not self._interests and self._seen < present:  # nobody looked meanwhile
                self._window, self._seen = Window(present), present
            changes = _Changes(self, span, start, present, wake)
            if start <= max(present, self._seen):  # it was not interested when that was seen
                changes.cursor.mark(start)
            if not self._running:
                self._start()
            self._interests.add(span, changes)
        self._news.set()  # the thread may be about to end
        return changes

    def _discard(self, changes: _Changes) -> None:
        with self._lock:
            self._interests.discard(changes.span, changes)

    def _poll(self, changes: _Changes, timeout: float) -> Batch | None:
        cursor, span = changes.cursor, changes.span
        with self._lock:
            seen = self._seen
            if self._stopped:
                return None
            first = cursor.begin()
            if first is None:
                if seen < cursor.next:
                    return None
                cursor.told(seen)
                return Batch((), seen)
            if self._window.after < first <= seen and changes.begun <= seen:
                cursor.told(seen)
                mine = [event for event in self._window.since(first) if event.key in span]
                return Batch(mine, seen)
        try:
            events = self._read(first - 1, LIMIT, timeout)
        except BaseException:
            with self._lock:
                cursor.failed(first)
            raise
        reached = events[-1].revision if events else max(first - 1, seen, changes.begun)
        with self._lock:
            cursor.told(reached)
            if reached < max(self._seen, changes.begun):
                cursor.first = cursor.next  # who has been behind may have missed marks
        return Batch([event for event in events if event.key in span], reached)

    # -- the thread -------------------------------------------------------------------------------

    def _present(self, span: Span, timeout: float) -> int:
        """The present revision of the store."""
        revision = self._store._range(Scan(span, limit=1, keys_only=True), timeout).revision
        assert revision is not None  # a store with history has snapshots
        return revision

    def _start(self) -> None:
        """Start the thread. Holds the lock."""
        thread = threading.Thread(target=self._run, name="kvi-tail", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Unavailable(f"no thread can be started for the watch: {error}") from error
        self._thread = thread
        self._running = True

    def _run(self) -> None:
        interval, pause = SOONEST, FIRST_PAUSE
        while (seen := self._place()) is not None:
            began = monotonic()
            try:
                self._wait(seen, WAIT)
                changed = self._look(seen)
            except Exception as error:  # noqa: BLE001  (the watches must not go quiet)
                self._fail(error, again=pause > FIRST_PAUSE)
                self._pause(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause, interval = FIRST_PAUSE, pace(interval, changed)
                self._pause(began + interval - monotonic())

    def _pause(self, seconds: float) -> None:
        """Sleep, until a first watch begins, or the end."""
        self._news.wait(max(seconds, 0.0))
        self._news.clear()

    def _place(self) -> int | None:
        """Wait for a watch; what was looked through, or ``None`` if the thread is to end."""
        lingered = False
        while True:
            with self._lock:
                if self._interests and not self._stopped:
                    return self._seen
                if self._stopped or lingered:
                    self._running = False
                    return None
            self._pause(LINGER)
            lingered = True

    def _look(self, seen: int) -> bool:
        """Read what is new, and tell it; whether there was anything."""
        try:
            events = self._read(seen, LIMIT, READ)
        except Compacted:
            self._lose(self._present(EVERYTHING, READ))
            return True
        if events:
            self._tell(events)
        return bool(events)

    def _tell(self, events: Sequence[Event]) -> None:
        """Mark and wake those whom the changes behind the thread's place concern."""
        woken: list[_Changes] = []
        with self._lock:
            new = events[bisect_right(events, self._seen, key=_revision) :]  # if that has moved on
            for revision, group in groupby(new, _revision):
                matching = self._interests.matching([event.key for event in group])
                woken += [each for each in matching if each.cursor.mark(revision)]
            self._window.add(new)
            self._seen = max(self._seen, events[-1].revision)
        for each in woken:
            each.wake()

    def _lose(self, present: int) -> None:
        """Go on behind ``present``: everybody may have missed what is before."""
        with self._lock:
            woken = [each for each in self._interests if each.cursor.miss(self._seen, present)]
            if self._seen < present:
                self._window, self._seen = Window(present), present
        for each in woken:
            each.wake()

    def _fail(self, error: Exception, *, again: bool) -> None:
        known = isinstance(error, KviError)
        if self._stopped:
            return
        if not again:
            log().warning("watches wait: %s", error, exc_info=not known)
        if isinstance(error, Unavailable | Timeout):
            self._report(error)
        elif known:
            with self._lock:  # it comes out of their own reading
                woken = [each for each in self._interests if each.cursor.miss(self._seen, END)]
            for each in woken:
                each.wake()

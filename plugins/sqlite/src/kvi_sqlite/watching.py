"""Watches: one thread a handle looks for new events, and tells the watches that they concern.

*Theory.* Nothing announces another process's commit, so the thread looks: one statement, on a
connection borrowed from the pool for that moment, asks for the newest event and the nearest
deadline of a lease, each at the end of an index. (``PRAGMA data_version`` costs as much, which is
mostly the waking up, and wants a connection of its own, which would be in the way of a fork.) It
looks `SOONEST` after news and ever more rarely without, down to every `LATEST`. Commits of this
process do not wait for that: they are told through the file's `WriterQueue`, and the thread looks
at once.

What is new, it reads once, by key, for all watches: `Interests` says whom it concerns, and those
are marked and woken. Each reads its own changes later, from the history, when its consumer asks. So
a commit costs one query and not one for each watch; a consumer that never asks costs a `Cursor`;
and a watch of quiet keys in a busy store is never behind.

If the history was trimmed before the thread looked (the process stood still), everybody may have
missed something, and is marked with a revision that is gone. A watch finds `Compacted` only that
way, or if what waits for it is trimmed before its consumer asks.

The thread sweeps expired leases as well, so that their events come in time. Of a lease that ended
with many keys, most events come into the history later, behind the thread's back: their ids are
before that of the one which was written at its end, and which the thread sees. It marks everybody
then; who reads finds what concerns him, among the events or below the tombstone.

*Back.* A backup may be restored into the file while it is open, by SQLite's own interface: then the
newest event falls, and may have risen beyond its former place before the thread looks. But with
each restored backup the file's schema cookie rises, too. (It does with a VACUUM as well, and with a
new layout: that is rare, and as good a time to read anew.) The thread takes the new place then, and
all watches are *lost*: they find `Compacted`, whatever they had read.

*Ownership.* ``_lock`` guards the interests, the cursors and the thread's place in the history; it
is held for decisions, never for I/O. The thread starts with the first watch and ends `LINGER` after
the last, or by `stop`. It is a daemon and has no connection between looks, so that a fork finds
none; the parent's goes on after the fork, the child has none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from contextlib import suppress
from heapq import merge
from itertools import groupby
from operator import itemgetter
from time import monotonic

from kvi.clock import now
from kvi.errors import Compacted, KviError, PermissionDenied, Timeout, Unavailable
from kvi.feed import Batch, Feed, Wake
from kvi.model import Span
from kvi.policy.cursor import SOONEST, Cursor, pace
from kvi.policy.interest import Interests

from kvi_sqlite import schema
from kvi_sqlite.access import Access
from kvi_sqlite.connection import Connection, Pool
from kvi_sqlite.errors import CLOSED
from kvi_sqlite.leases import first_id
from kvi_sqlite.portions import Portion, portion
from kvi_sqlite.snapshot import bounds

LINGER = 1.0  # seconds that the thread outlives the last watch: often the next one comes soon
PATIENCE = 5.0  # seconds for one look
BROOM = 0.1  # seconds for one attempt to sweep: meanwhile nobody is told anything
NEWS = 4096  # events that are looked through at a time
REACH = 16_384  # revisions that a watch reads at a time, whether they concern it or not
END = 2**63 - 1

_log = logging.getLogger("kvi")

New = tuple[int, int, bytes]  # id, revision, key


class Changes(Feed):
    """The changes of one span of keys from a revision on; made by `Watcher.open`."""

    __slots__ = ("_watcher", "cursor", "lost", "revision", "span", "wake")

    def __init__(self, watcher: Watcher, span: Span, start: int, wake: Wake) -> None:
        self._watcher = watcher
        self.revision: int = start - 1
        self.span = span
        self.cursor = Cursor(start)
        self.lost = False  # the store went back
        self.wake = wake

    def poll(self, timeout: float) -> Batch | None:
        """Return the next changes; raises `Compacted` if they are gone."""
        return self._watcher.poll(self, timeout)

    def close(self) -> None:
        """End it."""
        self._watcher.discard(self)


class Watcher:
    """The watches of one handle, and their thread. Safe for threads."""

    def __init__(self, pool: Pool, access: Access) -> None:
        self._pool = pool
        self._access = access
        self._lock = threading.Lock()
        self._interests: Interests[Changes] = Interests()
        self._news = threading.Event()  # look now: a commit of this process, or an end
        self._thread: threading.Thread | None = None  # the last one
        self._running = False
        self._stopped = False
        # The thread's place: all events up to this id, and so all revisions up to ``_seen``, and
        # some of ``_begun``, were looked through for those who were interested at the time.
        self._newest = 0
        self._seen = 0
        self._begun = 0
        self._cookie = 0  # of the file, as of then

    # -- for the handle ---------------------------------------------------------------------------

    def open(self, span: Span, start: int | None, wake: Wake, timeout: float) -> Changes:
        """Begin to follow ``span`` from revision ``start`` on (``None``: from now on).

        Raises `Compacted` if changes from there on are gone.
        """
        cookie, trimmed, revision, newest = self._pool.read(_place, monotonic() + timeout)
        if start is None:
            start = revision + 1
        elif start <= trimmed:
            raise _gone(start, trimmed)
        changes = Changes(self, span, start, wake)
        with self._lock:
            if self._stopped:
                raise Unavailable(CLOSED)
            if not self._watched:
                self._set(cookie, revision, newest)
                self._news.set()  # the thread may be about to end
            elif cookie < self._cookie:  # the thread has seen it go back meanwhile
                changes.lost = True
            if start <= self._begun:  # it was not interested when that was looked through
                changes.cursor.mark(start)
            if not self._running:
                self._start()
            self._interests.add(span, changes)
        if changes.lost:
            wake()
        return changes

    def discard(self, changes: Changes) -> None:
        """Forget a watch; again, it does nothing."""
        with self._lock:
            self._interests.discard(changes.span, changes)

    def stop(self) -> None:
        """The thread ends soon, and no watch begins any more."""
        with self._lock:
            self._stopped = True
        self._news.set()

    def join(self, timeout: float) -> None:
        """After `stop`: wait for the thread."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def abandon(self) -> None:
        """In a forked child: the thread is not here, and it may have held the lock."""
        self._lock = threading.Lock()
        self._thread = None
        self._running = False
        self._stopped = True

    # -- for the watches --------------------------------------------------------------------------

    def poll(self, changes: Changes, timeout: float) -> Batch | None:
        """Read what waits for one watch."""
        cursor = changes.cursor
        with self._lock:
            if changes.lost:
                raise Compacted(
                    "the file went back to a restored backup, and its changes since the last look "
                    "are not known; read the present state"
                )
            first = cursor.begin()
            if first is None:
                if self._seen < cursor.next:
                    return None
                cursor.told(self._seen)
                return Batch((), self._seen)
        try:
            events, revision, rest = self._pool.read(
                lambda connection: _read(connection, changes.span, first), monotonic() + timeout
            )
        except BaseException:
            with self._lock:
                cursor.failed(first)
            raise
        with self._lock:
            cursor.told(revision)
            if rest is not None:
                cursor.first = rest
        return Batch(events, revision)

    # -- the thread -------------------------------------------------------------------------------

    @property
    def _watched(self) -> bool:
        """Whether there is a watch. Holds the lock."""
        return next(iter(self._interests), None) is not None

    def _start(self) -> None:
        """Start the thread. Holds the lock."""
        thread = threading.Thread(target=self._run, name="kvi-sqlite-watch", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Unavailable(f"no thread can be started for the watch: {error}") from error
        self._thread = thread
        self._running = True

    def _run(self) -> None:
        def look_now() -> None:
            self._news.set()

        writers = self._pool.writers
        writers.listen(look_now)
        try:
            interval, due = SOONEST, None
            failing = False
            while self._wait(interval, due):
                changed = False
                due = None
                try:
                    changed, due = self._look()
                    if due is not None and due <= now():
                        due = None  # if the sweep fails, it is tried again after the interval
                        with suppress(PermissionDenied, Timeout):  # who may write, and can, does it
                            self._access.sweep(monotonic() + BROOM)
                    failing = False
                except Exception as error:  # noqa: BLE001  (the watches must not go quiet)
                    if not failing and not self._pool.closing:
                        known = isinstance(error, KviError)
                        _log.warning("watches wait: %s", error, exc_info=not known)
                    failing = True
                interval = pace(interval, changed)
        finally:
            writers.unlisten(look_now)

    def _wait(self, interval: float, due: float | None) -> bool:
        """Wait until it is time to look; false if the thread is to end."""
        while True:
            if due is not None:
                interval = min(interval, max(0.0, due - now()))
            with self._lock:
                watched = self._watched
            self._news.wait(interval if watched else LINGER)
            self._news.clear()
            with self._lock:
                if self._stopped or not (watched or self._watched):
                    self._running = False
                    return False
            if watched:
                return True

    def _look(self) -> tuple[bool, float | None]:
        """Look for news and tell them; whether there were any, and the nearest deadline."""
        changed = False
        while True:
            found = self._pool.read(self._read_news, monotonic() + PATIENCE)
            if found is None:
                self._go_back()
                changed = True
                continue
            trimmed, news, buried, due = found
            if news:
                changed = True
                self._tell(trimmed, news, buried)
            if len(news) < NEWS:
                return changed, due

    def _read_news(
        self, connection: Connection
    ) -> tuple[int, list[New], frozenset[int], float | None] | None:
        """What is behind the thread's place; ``None`` if that is not in the file any more."""
        with self._lock:
            place, cookie = self._newest, self._cookie
        news: list[New] = []
        buried: frozenset[int] = frozenset()
        execute = connection.execute
        execute("BEGIN")
        trimmed, newest, due = execute(schema.LOOK).fetchone()
        if (newest or 0) < place or execute(schema.COOKIE).fetchone() != (cookie,):
            execute("COMMIT")
            return None
        if newest is not None and newest > place:
            news = execute(schema.NEWS, (place, NEWS)).fetchall()
            buried = frozenset(revision for (revision,) in execute(schema.TOMBSTONE_REVISIONS))
        execute("COMMIT")
        return trimmed, news, buried, due

    def _go_back(self) -> None:
        """Take the place anew; whoever watches has lost his."""
        cookie, _, revision, newest = self._pool.read(_place, monotonic() + PATIENCE)
        with self._lock:
            self._set(cookie, revision, newest)
            woken = list(self._interests)
            for each in woken:
                each.lost = True
        for each in woken:
            each.wake()

    def _tell(self, trimmed: int, news: list[New], buried: frozenset[int]) -> None:
        """Mark and wake those whom the events behind the thread's place concern."""
        woken: list[Changes] = []
        with self._lock:
            if trimmed > self._seen:
                woken += [each for each in self._interests if each.cursor.miss(self._seen, trimmed)]
                self._seen = trimmed
            for revision, group in groupby(news, itemgetter(1)):
                if revision in buried:
                    matching: Iterable[Changes] = list(self._interests)
                else:
                    matching = self._interests.matching([str(key, "utf-8") for _, _, key in group])
                woken += [each for each in matching if each.cursor.mark(revision)]
            newest, begun, _ = news[-1]
            seen = begun - 1 if len(news) == NEWS else begun  # there may be more of the last one
            self._move(newest, seen, begun)
        for each in woken:
            each.wake()

    def _move(self, newest: int, seen: int, begun: int) -> None:
        """Move the thread's place on. Holds the lock."""
        self._newest = max(self._newest, newest)
        self._seen = max(self._seen, seen)
        self._begun = max(self._begun, begun)

    def _set(self, cookie: int, revision: int, newest: int) -> None:
        """Take the newest event for the thread's place. Holds the lock."""
        self._cookie, self._newest = cookie, newest
        self._seen = self._begun = revision


def _place(connection: Connection) -> tuple[int, int, int, int]:
    """The file's schema cookie, what was trimmed, the revision and the newest event."""
    execute = connection.execute
    (cookie,) = execute(schema.COOKIE).fetchone()  # first: an older one is noticed
    trimmed, revision, newest = execute(schema.HISTORY).fetchone()
    return cookie, trimmed, revision or 0, newest or 0


def _read(connection: Connection, span: Span, first: int) -> Portion:
    """Read the changes of ``span`` from revision ``first`` on; raises `Compacted`."""
    execute = connection.execute
    execute("BEGIN")
    trimmed, revision, _ = execute(schema.HISTORY).fetchone()
    if first <= trimmed:
        raise _gone(first, trimmed)
    end, beyond = END, None
    if revision - first >= REACH:
        row = execute(schema.NEXT_REVISION, (first_id(first + REACH), first + REACH)).fetchone()
        if row is not None:
            (beyond,) = row
            end = first_id(beyond)
            revision = beyond - 1
    low, high = bounds(span)
    rows = execute(schema.CHANGES, (first_id(first), end, first, low, high))
    deleted = execute(schema.DELETED_BY_TOMBSTONES, (first, revision + 1, low, high)).fetchall()
    found = portion(merge(rows, deleted, key=itemgetter(0)) if deleted else rows, revision)
    rows.close()
    execute("COMMIT")
    return found if found.rest is not None else found._replace(rest=beyond)


def _gone(start: int, trimmed: int) -> Compacted:
    return Compacted(
        f"the changes from revision {start} on are wanted, and the history begins behind "
        f"{trimmed}; read the present state, or keep more history (the option history=)"
    )

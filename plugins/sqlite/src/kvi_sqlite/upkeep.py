"""Upkeep: what the file needs done from time to time, so that no call has to.

*What.* Entries whose lease has ended become events (`kvi_sqlite.leases`). Events that count as gone
are deleted. The write-ahead log is copied into the file (a *checkpoint*), which SQLite would do
within some commit, however long it takes. When nearly all of it has been copied, the rest is, with
the writers held off: then the next of them begins the log anew, over what is there. That takes the
disk half as long as a log that grows, which it does for ever beside a busy writer. The log can
begin anew only at a moment without readers: beside some that take turns it grows as well. So once
it is longer than `schema.WAL_KEPT` it is cut off, and readers are awaited for `CUT_PATIENCE`. (One
that stays, a range half read, cannot be helped: the next try is after `CUT_PAUSE`.)

*When.* A handle's own commits tell that there may be something to do, and so does the file when it
is opened, of what a process left that has died. All that there is to do is written in the file, and
each step looks for it there. So any number of processes may be at it, and none has to be.

*How long.* A portion is one transaction, which takes half as long as there was between the last
portion and this one, within `SHORTEST` and `LONGEST`: where much is written, much is done. It
deletes at most `PORTION` bytes of values, for SQLite may write to the log what it frees
(``secure_delete``), and the log is copied between portions. It goes right behind the head of the
writers of this process, however many wait, and gives the write lock up in between. It is not synced
to the disk: what the loss of power undoes is there to be done again.

*Who.* One thread a handle, which no interrupt and no user's time-out reaches. It starts when there
is something to do and ends with that. `stop`, at the close of a handle, lets it finish its
portion, or begin one if it was told of work and has not come to it: else programs that store one
entry and end would never do any. It has a connection only while it works, as a call does. A fork
does not wait for it: what it does is interrupted, and begun again after the fork.
"""

from __future__ import annotations

import logging
import threading
from math import inf
from time import monotonic

from kvi.errors import KviError

from kvi_sqlite import schema
from kvi_sqlite.connection import Connection, Interruptible, Pool
from kvi_sqlite.leases import bury_part, few, first_id

SHORTEST, LONGEST = 0.005, 0.050  # seconds of a portion
ROWS, BYTES = 128, 1024 * 1024  # of a statement, however large one value is
PORTION = 4 * BYTES
PATIENCE = 0.5  # seconds for getting at the file
PAUSE = 0.25  # seconds until the next try after a failure
CUT_PATIENCE, CUT_PAUSE = 0.050, 1.0
NEARLY = 1000  # pages of the log that are copied, and synced, while writers are held off

_log = logging.getLogger("kvi")


class Upkeep:
    """The upkeep of a file by one handle, and its thread. Safe for threads."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.Lock()  # guards the four below
        self._thread: threading.Thread | None = None  # the last one
        self._running = False
        self._stopped = False
        self._last = False  # the round that is under way is the last one
        self._news = threading.Event()
        self._ended = 0.0  # when the last portion did
        self._next_cut = 0.0
        pool.chores = self.poke

    # -- for the handle ---------------------------------------------------------------------------

    def poke(self) -> None:
        """There may be something to do. Never fails."""
        self._news.set()
        with self._lock:
            if self._running or self._stopped:
                return
            thread = threading.Thread(target=self._run, name="kvi-sqlite-upkeep", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter ends: another commit tells
                return
            self._thread = thread
            self._running = True

    def stop(self, timeout: float) -> None:
        """No more of it, after the portion that is begun or due; waits for that."""
        with self._lock:
            self._stopped = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._news.set()
            thread.join(timeout)

    def abandon(self) -> None:
        """In a forked child: the thread is not here, and it may have held the lock."""
        self._lock = threading.Lock()
        self._thread = None
        self._running = False
        self._stopped = True

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        failing = False
        while self._goes_on(failing):
            try:
                self._work()
                failing = False
            except Exception as error:  # noqa: BLE001  (the thread has to go on)
                if self._stopped or self._pool.closing:
                    continue
                failing = isinstance(error, KviError) and getattr(error, "passing", True)
                if not failing:  # until the next commit tells that it may be worth a try
                    known = isinstance(error, KviError)
                    _log.warning("upkeep waits: %s", error, exc_info=not known)

    def _goes_on(self, failing: bool) -> bool:
        """Whether there may be something to do, else the thread ends; waits after a failure."""
        if failing and not self._last:
            self._news.wait(PAUSE)
        with self._lock:
            if self._last or not (failing or self._news.is_set()):
                self._running = False
                return False
            self._news.clear()
            self._last = self._stopped
            return True

    def _work(self) -> None:
        """Do all that there is to do; a portion, if the handle is being closed."""
        try:
            while self._portion() and not self._stopped:
                self._copy_log()
        finally:
            if not self._stopped:
                self._copy_log()

    def _portion(self) -> bool:
        """Do a part of what is written; whether there may be more."""
        if not self._pool.read(schema.has_chores, monotonic() + PATIENCE):
            return False

        def work(connection: Connection) -> tuple[bool, bool]:
            began = monotonic()
            budget = min(max((began - self._ended) / 2, SHORTEST), LONGEST)
            size = 0
            with Interruptible(connection):
                while monotonic() - began <= budget and size < PORTION:
                    part = bury_part(connection, ROWS, BYTES) or _trim_part(connection)
                    if not part:
                        return False, True
                    size += part
            return True, True

        pool = self._pool
        with pool.writers.place(pool, inf, soon=True):
            more = pool.lead(work, monotonic() + PATIENCE, synced=False)
        self._ended = monotonic()
        return more

    def _copy_log(self) -> None:
        """Copy the log into the file if it has grown, so that it begins anew."""
        pool = self._pool
        if not pool.log_grew():
            return
        pages, copied, before = 0, 0, -1
        while copied > before:  # again for what was written meanwhile; not for what readers keep
            before = copied
            _, pages, copied = pool.read(_copy, monotonic() + PATIENCE)
            if pages < 0:  # another process is at it
                return
            if pages - copied <= NEARLY or self._stopped:
                break
        if pages - copied <= NEARLY and not self._stopped:
            with pool.writers.place(pool, inf, soon=True):
                deadline = monotonic() + PATIENCE
                if pool.log_size() <= schema.WAL_KEPT or monotonic() < self._next_cut:
                    pool.read(_copy, deadline)
                elif pool.read(_cut, deadline):
                    self._next_cut = monotonic() + CUT_PAUSE
        pool.log_copied()


def _copy(connection: Connection) -> tuple[int, int, int]:
    """Copy as much of the log as readers allow: ``(busy, pages of it, pages that are copied)``."""
    with Interruptible(connection):
        found: tuple[int, int, int] = connection.execute(
            "PRAGMA wal_checkpoint(PASSIVE)"
        ).fetchone()
        return found


def _cut(connection: Connection) -> bool:
    """Copy the rest of the log and cut it off; whether somebody was in the way."""
    with Interruptible(connection):
        connection.execute(f"PRAGMA busy_timeout = {int(CUT_PATIENCE * 1000)}")
        try:
            return bool(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        finally:
            connection.execute("PRAGMA busy_timeout = 0")


def _trim_part(connection: Connection) -> int:
    """Delete some events that count as gone; about how many bytes, 0 if none are left."""
    (trimmed,) = connection.execute(schema.TRIMMED_TO).fetchone()
    old = connection.execute(schema.OLD_EVENTS, (first_id(trimmed + 1), ROWS)).fetchall()
    sizes = [size for _, size in old]
    part = few(sizes, BYTES)
    if part:
        connection.execute(schema.TRIM, (old[part - 1][0],))
        connection.execute(schema.TRIM_UNDO, (old[part - 1][0],))
    return 0 if part == len(old) < ROWS else sum(sizes[:part]) + 1

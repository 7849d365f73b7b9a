"""Connections: who owns which one, how waiting ends, and what a fork does to them.

*Ownership.* A connection belongs to one thread at a time. It is **idle** in the pool's stack, or
**borrowed** by a call, or **pinned**: kept beyond a call, by a snapshot (which has a lock of its
own) or as the handle's `client`. ``live`` has all that are not closed. Borrowing and giving back
are one operation each on a deque, which Python makes atomic: no lock is taken, so that a finalizer
may give back at any moment. Who borrowed a connection is also who closes it: closing a handle only
closes what is idle, and waits a moment for what is borrowed, whose `Deadline` has come by that.
Upkeep, which has no deadline, is interrupted (`Interruptible`).

*Waiting.* SQLite's own busy handler sleeps without an ear for `close` (``busy_timeout`` is 0), so
waiting is done here: who finds the file locked gives its connection back and pauses on the pool's
``closed`` event, longer each time, with jitter, until its deadline. A statement that runs long ends
at its `Deadline`, asked by SQLite every so many steps; so does one that nobody waits for any more.
Writers of one process wait in line first, see `kvi_sqlite.writers`.

*Interrupts.* An exception of a signal handler only ever comes into `Pool.glance` and `Pool.stroke`.
These take a connection and give it back in one step each, and hold nothing else: if one ends
between the two, the connection goes with its frame, for ``live`` has weak references, and what it
had begun to write is undone. No Python code runs inside of their statements, where SQLite would
swallow what a handler raises. A stroke does not stand in the writer queue, where nobody would give
its place back; so it goes only if nobody is there, and who comes meanwhile finds the file locked,
as by another process.

*Fork.* SQLite keeps the locks of a process in static memory, by file. A child inherits that
memory, but not the locks. A connection that it opens on a file that the parent had open believes to
hold locks that nobody holds, and the parent, closing, then deletes the WAL file under the child's
feet: acknowledged writes are lost. Therefore:

- Before a fork, connections that are idle are closed, and those borrowed are awaited and closed;
  none is opened until the fork is done. The parent opens new ones when it needs them, the child
  finds a clean library and can open the file by itself.
- Upkeep is interrupted; a call is not.
- What cannot be closed (pinned, or borrowed for longer than `PATIENCE`) is inherited. The child
  never touches it, not even to close it: it takes a reference to it that is never given up, so that
  not even the end of the interpreter does. And the child refuses to open that file, with a text
  that says so; other files are open to it.

What it takes: the module's ``_gate`` is held while a connection begins, and throughout a fork.
``_near`` is held by a fork alone: while it is, no connection is kept. Both are locks that a fork
takes and gives back whatever a signal's handler raises around it (`kvi.late`).

*The log.* No call copies SQLite's log into the file: `kvi_sqlite.upkeep` does, when it is told that
the log has grown by `LOG_STEP`, or that there were `COMMITS`. A log that was left long has to be
read by whoever opens the file first, which nothing can end: a thread of its own opens it then, and
the callers wait for that as long as they like. The last to close the file copies the log as well,
if it is not longer than `LOG_CLOSED`. Two that close it at one moment each take the other for one
who stays, and the log is left to whoever opens the file next. So `Pool.close` closes all that its
handle has itself, one after the other, as they are given back to it.

*Lost files.* A file that is deleted, moved or replaced under an open connection is still written
to, and nobody else ever sees it; so is a ``-wal`` file. With another ``-shm``, whose locks keep
writers apart, there are two writers at once. Therefore each write compares, having the write lock,
what the paths name with what the connection opened. Each opening compares with the first one, and
sees that nothing is made anew while somebody has the former file (`kvi_sqlite.leftovers`). A handle
that has lost its file says so until it is closed: whoever opens anew knows that it may be another
store. (SQLite deletes the ``-wal`` and the ``-shm`` itself only when nobody has the file open.)

The last to close a file copies the log that it has, as the ``-shm`` says. If the two do not belong
together, as another program has made one of them anew, that destroys the store: such a connection
is never closed.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from pathlib import Path
from threading import get_ident
from time import monotonic
from typing import Any, TypeVar

from kvi.errors import KviError, OutcomeUnknown, PermissionDenied, Timeout, Unavailable
from kvi.late import ForkLock
from kvi.living import Living

from kvi_sqlite import leftovers, schema
from kvi_sqlite.errors import CLOSED, SETTLED, Unindexed, is_passing, translate
from kvi_sqlite.readers import Reading, may_change, reading
from kvi_sqlite.writers import Place, WriterQueue

T = TypeVar("T")

KEPT = 8  # idle connections: threads of a busy program that meet in the store at once
PATIENCE = 1.0  # seconds that close() and a fork wait for calls under way
LOG_STEP = 4 * 1024 * 1024  # bytes that the log grows by until it is copied
COMMITS = 256  # until then, too: beyond its first round, a log is written over and does not grow
LOG_CLOSED = 128 * 1024 * 1024  # bytes of the longest log that is copied when the file is closed
STEPS = 50_000  # of SQLite's machine between looks at the budget: about a millisecond
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.020  # seconds; a commit takes 0.1 to 10 ms
TOGETHER = 64  # pieces of others in one commit: some milliseconds
IN_HAND = 0.1  # seconds that a head has left when it does one more of them

Identity = tuple[int, int]


class Beside:
    """What was beside a file when its first connection of this process was opened.

    All connections of a process have the ``-shm`` of the first, whatever its path names since. So
    it is held by connections alone, and forgotten with the last of them.

    Attributes:
        files: device and inode of the ``-wal`` and of the ``-shm``.

    """

    __slots__ = ("__weakref__", "files")

    def __init__(self, files: tuple[Identity | None, Identity | None]) -> None:
        self.files = files


class Deadline:
    """When a connection's statements have to end: at a moment, or when the handle closes.

    Or when its borrower has been left alone. Who says so may come late, when the connection is
    somebody else's; so it says whom it means.
    """

    __slots__ = ("_borrower", "_closed", "left", "moment")

    def __init__(self, closed: threading.Event) -> None:
        self._closed = closed
        self._borrower = 0  # thread
        self.left = -1  # the thread that nobody waits for any more
        self.moment = inf

    def begin(self, moment: float) -> None:
        """The thread that calls has borrowed the connection, until ``moment``."""
        self.left, self._borrower, self.moment = -1, get_ident(), moment

    def end(self) -> None:
        """Nobody has borrowed it."""
        self._borrower, self.moment = 0, inf

    def passed(self) -> bool:
        """SQLite's progress handler: true interrupts the statement."""
        late = monotonic() > self.moment or self.left == self._borrower
        return late or self._closed.is_set()


class Connection(sqlite3.Connection):
    """A connection of a pool.

    Attributes:
        deadline: bounds its statements; infinite while it is idle.
        pinned: kept beyond the call that borrowed it.
        identity: device and inode of its file.
        beside: the files beside it; ``None`` if it reads without these, or is being closed.
        synced: commits wait for the disk. False only while a call has borrowed it.
        reading: how it reads, if it must not write.
        chores: its transaction leaves something to do for upkeep.
        upkeep: what works with it now, and may be interrupted.

    """

    deadline: Deadline
    pinned: bool = False
    synced: bool = True
    reading: Reading | None = None
    chores: bool = False
    upkeep: Interruptible | None = None
    identity: Identity | None = None
    beside: Beside | None = None

    def sync(self, synced: bool) -> None:
        """Let commits from now on wait for the disk, or not; outside of a transaction."""
        # A script is compiled each time; this pragma does its work when it is compiled.
        self.executescript(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
        self.synced = synced


class Interruptible:
    """Work in this block has no deadline; `Pool.close` and a fork interrupt it.

    SQLite keeps an interrupt that comes between two statements. None comes after the block, where
    it would keep the last to close the file from copying the log.
    """

    __slots__ = ("_connection", "_lock")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._connection.deadline.end()
        self._connection.upkeep = self

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._connection.upkeep = None

    def interrupt(self) -> None:
        """End the statement that runs, from another thread."""
        with self._lock:
            if self._connection.upkeep is self:
                self._connection.interrupt()


class Pause:
    """The pauses of one call that finds the file locked."""

    __slots__ = ("_began", "_deadline", "_longest", "_pool")

    def __init__(self, pool: Pool, deadline: float) -> None:
        self._pool = pool
        self._began = monotonic()
        self._deadline = deadline
        self._longest = FIRST_PAUSE

    def wait(self, cause: sqlite3.Error) -> None:
        """Sleep a little; raises what ``cause`` means at the deadline, or if the handle closes."""
        deadline = self._deadline
        if isinstance(cause, Unindexed):
            deadline = min(deadline, self._began + SETTLED)
        left = deadline - monotonic()
        if left <= 0:
            raise translate(cause, self._pool.path) from cause
        # jitter, so that those who met at the lock do not meet again
        if self._pool.closed.wait(min(left, self._longest * random.uniform(0.5, 1.0))):  # noqa: S311
            raise Unavailable(CLOSED) from cause
        self._longest = min(self._longest * 1.7, LONGEST_PAUSE)


class Pool:
    """The connections of one handle.

    Attributes:
        path: the file.
        read_only: it must not be written to; see `kvi_sqlite.readers`.
        closing: true from the first moment of `close`, and in a forked child.
        closed: the event that ends pauses.
        live: all connections that are open.
        chores: called when there may be something to do for upkeep.

    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self.closing = False
        self.closed = threading.Event()
        self.live: Living[Connection] = Living()
        self._running: dict[int, Connection] = {}  # by the thread that has borrowed it
        self._idle: deque[Connection] = deque()
        self._writers: WriterQueue | None = None
        self._client: Connection | None = None
        self._log_path = path  # known, as the two below, once the file has been opened
        self._memory_path = path
        self._identity: Identity | None = None
        self._log_seen = 0  # bytes, at the last write
        self._log_mark = LOG_STEP  # bytes: a log longer than this has grown
        self._commits = 0  # since the log was copied
        self._opening: _Opening | None = None  # the last one
        self._collects = False  # `close` is at it
        self.chores: Callable[[], object] = _nothing
        self._pid = os.getpid()
        _pools.add(self)

    # -- borrowing --------------------------------------------------------------------------------

    def borrow(self, deadline: float) -> Connection:
        """Take an idle connection, or open one; raises kvi's errors."""
        with suppress(IndexError):  # another thread may take the last one at any moment
            while True:
                connection = self._idle.pop()
                if connection.reading is None or connection.reading.is_current():
                    return connection
                self.discard(connection)
        first = self._identity is None
        connection = self._connect(deadline)
        if first and connection.reading is None and self._is_neglected(connection):
            self.chores()
        return connection

    def give_back(self, connection: Connection) -> None:
        """Put a connection without an open transaction on the stack."""
        if not self._keeps():  # first, as a busy thread would have it back at once
            self.discard(connection)
            return
        if not connection.synced:
            try:
                connection.sync(True)
            except sqlite3.Error:
                self.discard(connection)
                return
        self._idle.append(connection)
        if len(self._idle) > KEPT or not self._keeps():  # also if that has changed since
            self._shrink()

    def _keeps(self) -> bool:
        """Whether connections are kept: for `close` that is under way, not once it is over.

        Nor while a fork is near.
        """
        return self._collects or not (self.closing or _near.lock.locked())

    def discard(self, connection: Connection) -> None:
        """Close a connection; what was not committed is undone."""
        with suppress(sqlite3.Error):
            if self._is_torn(connection):
                _keep_for_ever(connection)
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            else:
                connection.beside = None  # first: what is opened behind the last has other files
                if self.log_size() > LOG_CLOSED:
                    connection.interrupt()  # the copying of the log, if it is the last one
                else:
                    _forget_interrupt(connection)  # or the log is left
                connection.close()
        self.live.discard(connection)

    def unpin(self, connection: Connection) -> None:
        """Take a connection back from a snapshot that is gone. For finalizers: takes no lock."""
        if os.getpid() != self._pid or connection not in self.live:
            return
        connection.deadline.end()
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.discard(connection)
        else:
            connection.pinned = False
            self.give_back(connection)

    def _shrink(self, *, ends: bool = False) -> None:
        with suppress(IndexError):
            while len(self._idle) > (KEPT if self._keeps() and not ends else 0):
                self.discard(self._idle.pop())

    def _restore(self, connection: Connection) -> None:
        """Give a connection back after a call that failed; it may be in a transaction."""
        connection.deadline.end()
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.discard(connection)
        else:
            self.give_back(connection)

    # -- running ----------------------------------------------------------------------------------

    def glance(self, statement: str, given: tuple[object, ...]) -> list[Any]:
        """Run a short statement that reads, if that is possible at once; its rows, else none.

        Whole wherever an exception of a signal handler ends it. Rows and their bytes have to be
        few, for nothing ends it earlier.
        """
        connection = self._at_hand()
        if connection is None:
            return []
        try:
            rows = connection.execute(statement, given).fetchall()
        except sqlite3.Error:  # the long way tells
            self.discard(connection)
            return []
        self._lay_down(connection)
        return rows

    def stroke(self, work: Callable[[Connection], tuple[T, bool]]) -> T | None:
        """As `write`, of small ``work``, if it can be done at once and nobody has to be told of it.

        For the main thread, which has another one do what may wait. Whole wherever an exception of
        a signal handler ends it. Raises `OutcomeUnknown`, and what ``work`` raises.
        """
        writers = self._writers
        if writers is None or len(writers) or writers.listeners or self.log_grew():
            return None
        connection = self._at_hand()
        if connection is None:
            return None
        committing = False
        result: T | None = None
        try:
            connection.execute("BEGIN IMMEDIATE")
            if self._lost_file(connection) is None:
                made, wrote = work(connection)
                if wrote and not connection.chores:
                    committing = True
                    self._commit(connection, -inf)
                    result = made
        except sqlite3.Error as error:  # the long way tells, but what is not to be tried again
            told = translate(error, self.path, committing=committing, closing=self.closing)
            try:
                if isinstance(told, OutcomeUnknown):
                    self.discard(connection)
                    raise told from error
            finally:
                del told  # it holds this frame
        except BaseException:
            self._take_back(connection)
            raise
        if result is None:
            self._take_back(connection)
        else:
            self._commits += 1
            self._lay_down(connection)
        return result

    def _at_hand(self) -> Connection | None:
        """Take an idle connection that may write, for statements without Python code in them."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        if connection.reading is not None:
            self._idle.append(connection)
            return None
        connection.set_progress_handler(None, 0)
        return connection

    def _lay_down(self, connection: Connection) -> None:
        """Make idle what was at hand."""
        connection.set_progress_handler(connection.deadline.passed, STEPS)
        self._idle.append(connection)
        if not self._keeps():  # meanwhile
            self._shrink()

    def _take_back(self, connection: Connection) -> None:
        """Make idle what was at hand and may be in a transaction."""
        connection.chores = False
        connection.set_progress_handler(connection.deadline.passed, STEPS)
        self._restore(connection)

    def cancel(self, thread: int) -> None:
        """End the statement that this thread runs, or its wait to write: nobody waits for it."""
        connection = self._running.get(thread)
        if connection is not None:
            connection.deadline.left = thread
        # Not in the main thread: an exception of a signal handler must not come amid of it.
        elif (
            self._writers is not None and threading.current_thread() is not threading.main_thread()
        ):
            self._writers.call_off(self, thread)

    def read(self, work: Callable[[Connection], T], deadline: float) -> T:
        """Run ``work`` on a connection; again if the file was locked. It must not write.

        ``work`` may pin the connection to keep it, in a transaction of its own.
        """
        pause: Pause | None = None
        while True:
            connection = self.borrow(deadline)
            try:
                connection.deadline.begin(deadline)
                self._running[get_ident()] = connection
                if (how := connection.reading) is not None:
                    how.begin()
                result = work(connection)
                if how is not None:
                    how.check()
            except sqlite3.Error as error:
                connection.pinned = False
                if not is_passing(error):
                    self.discard(connection)  # a fresh one may fare better
                    raise translate(error, self.path, closing=self.closing) from error
                self._restore(connection)
                locked = error
            except BaseException:
                connection.pinned = False
                self._restore(connection)
                raise
            else:
                connection.deadline.end()
                if not connection.pinned:
                    self.give_back(connection)
                return result
            finally:
                self._running.pop(get_ident(), None)
            pause = pause or Pause(self, deadline)
            try:
                pause.wait(locked)
            finally:
                del locked  # it holds this frame

    def write(
        self,
        work: Callable[[Connection], tuple[T, bool]],
        deadline: float,
        *,
        synced: bool = True,
        small: bool = False,
    ) -> T:
        """Run ``work`` in a write transaction; it returns its result and whether it wrote.

        If it did not, or raised, what it did is undone. If not ``synced``, the loss of power may
        undo it too. If it is ``small``, and others write, it may share their transaction, and may
        be run more than once.
        """
        shares = small and synced
        place = (self._writers or self.writers).place(self, deadline, work if shares else None)
        with place:
            if not place.done:
                return self.lead(work, deadline, synced=synced, shares=shares)
        error, place.error = place.error, None
        if error is None:
            shared: T = place.result
            return shared
        try:
            raise error
        finally:
            del error  # or it and this frame would hold one another, and with them the group

    def lead(
        self,
        work: Callable[[Connection], tuple[T, bool]],
        deadline: float,
        *,
        synced: bool = True,
        shares: bool = False,
    ) -> T:
        """As `write`, for who has the head of the queue; may do the work of those behind, too."""
        writers, alone = self.writers, not shares
        while True:
            group: list[Place] = []
            connection = self._begin(deadline, synced)
            committing = False
            try:
                connection.deadline.begin(deadline)
                self._running[get_ident()] = connection
                if (lost := self._lost_file(connection)) is not None:
                    raise self._lost(lost)
                result, wrote = work(connection)
                if not wrote:
                    connection.execute("ROLLBACK")
                else:
                    if not alone:
                        self._take_along(connection, writers, group, deadline)
                    committing = True
                    self._commit(connection, deadline)
                    writers.end(group)
            except sqlite3.Error as error:
                if group and not committing:  # not by its own work
                    writers.untake(group)
                    alone = True
                    if isinstance(error, _Spoiled):
                        self._restore(connection)
                    else:
                        self.discard(connection)
                    continue
                self._tell_failure(error, writers, group)
                self.discard(connection)
                raise translate(
                    error, self.path, committing=committing, closing=self.closing
                ) from error
            except BaseException:
                writers.untake(group)
                self._restore(connection)
                raise
            finally:
                self._running.pop(get_ident(), None)
                group.clear()  # the frames of errors that were raised for others still have it
            connection.deadline.end()
            chores = connection.chores
            connection.chores = False
            self.give_back(connection)
            if wrote:
                self._commits += 1
                if chores or self.log_grew():
                    self.chores()
                for tell in writers.listeners:
                    tell()
            return result

    def _take_along(
        self, connection: Connection, writers: WriterQueue, group: list[Place], deadline: float
    ) -> None:
        """Do the work of those behind the head, in its transaction."""
        while len(group) < TOGETHER and monotonic() < deadline - IN_HAND:
            place = writers.take(self, len(group))
            if place is None:
                return
            group.append(place)
            assert place.work is not None  # or it would not have been taken
            changes = connection.total_changes
            try:
                place.result, place.wrote = place.work(connection)
            except sqlite3.Error:
                raise
            except Exception as error:  # noqa: BLE001  (who waits for it gets it)
                place.error = error
            if not place.wrote and connection.total_changes != changes:
                raise _Spoiled  # by what is to be undone

    def _tell_failure(self, error: sqlite3.Error, writers: WriterQueue, group: list[Place]) -> None:
        """A commit failed: so did the writes in it, and the others are to be done anew."""
        wrote = [place for place in group if place.wrote]
        for place in wrote:
            place.error = translate(error, self.path, committing=True, closing=self.closing)
            place.error.__cause__ = error
        writers.end(wrote)
        writers.untake([place for place in group if not place.wrote])

    def _begin(self, deadline: float, synced: bool) -> Connection:
        pause: Pause | None = None
        while True:
            connection = self.borrow(deadline)
            if connection.reading is not None:
                self.discard(connection)  # this user may be allowed to write from now on
                if self.read_only or not may_change(self.path):
                    raise PermissionDenied(
                        f"this user may not write to {self.path} and beside it; let it, and to its "
                        "directory"
                    )
                continue
            try:
                if not synced:
                    connection.sync(False)
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                if not is_passing(error):
                    self.discard(connection)
                    raise translate(error, self.path, closing=self.closing) from error
                self.give_back(connection)  # a fork does not wait for those who only wait
                locked = error
            except BaseException:
                self._restore(connection)
                raise
            else:
                return connection
            pause = pause or Pause(self, deadline)
            try:
                pause.wait(locked)
            finally:
                del locked  # it holds this frame

    def _lost_file(self, connection: Connection) -> Path | None:
        """The file for which others would not see what ``connection`` writes, if there is one."""
        if _identity(self.path) != connection.identity:
            return self.path
        assert connection.beside is not None  # as it writes
        log_known, memory = connection.beside.files
        log = _status(self._log_path)
        if log is None or (log.st_dev, log.st_ino) != log_known:
            return self._log_path
        if _identity(self._memory_path) != memory:
            return self._memory_path
        self._log_seen = log.st_size
        return None

    def _remember_beside(self, connection: Connection) -> None:
        """After opening it: raise `Unavailable` if this process has other files open there."""
        if connection.identity is None:
            raise self._lost(self.path)
        found = _identity(self._log_path), _identity(self._memory_path)
        with _remembering:  # not the gate: a fork that has it waits for this connection
            connection.beside = _besides.setdefault(connection.identity, Beside(found))
        known = connection.beside.files
        if found != known:
            connection.beside = None  # so that it is closed: those who have the others stay
            changed = self._log_path if found[0] != known[0] else self._memory_path
            raise Unavailable(
                f"{changed} was removed or replaced while this process had the store open; put "
                "it back, or close the store and restart the process",
                passing=False,
            )

    def _is_torn(self, connection: Connection) -> bool:
        """Whether another program has made anew what is beside the connection's file."""
        if connection.beside is None:
            return False
        found = _identity(self._log_path), _identity(self._memory_path)
        return any(
            None not in (now, then) and now != then
            for now, then in zip(found, connection.beside.files, strict=True)
        )

    @staticmethod
    def _lost(path: Path) -> Unavailable:
        return Unavailable(
            f"{path} was deleted, moved or replaced while the store was open; put it back, or "
            "close every handle on the store and open it anew",
            passing=False,
        )

    def _is_neglected(self, connection: Connection) -> bool:
        """Whether a process that has died left something to do."""
        self._log_seen = self.log_size()
        try:
            return self.log_grew() or schema.has_chores(connection)
        except sqlite3.Error:  # whoever borrows it will see
            return False

    # -- the log ----------------------------------------------------------------------------------

    def log_size(self) -> int:
        """The length of the log; 0 if there is none."""
        log = _status(self._log_path)
        return 0 if log is None or self._log_path is self.path else log.st_size

    def log_grew(self) -> bool:
        """Whether the log is to be copied; as of the last commit."""
        return self._log_seen > self._log_mark or self._commits >= COMMITS

    def log_copied(self) -> None:
        """It was, as far as readers allow."""
        self._commits = 0
        self._log_seen = self.log_size()
        self._log_mark = self._log_seen + LOG_STEP

    def _commit(self, connection: Connection, deadline: float) -> None:
        while True:
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:  # the transaction stays open if the file was locked
                if not is_passing(error) or self.closing or monotonic() > deadline:
                    raise
                time.sleep(FIRST_PAUSE)
            else:
                return

    @property
    def writers(self) -> WriterQueue:
        """The file's writer queue in this process."""
        if self._writers is not None:
            return self._writers
        try:
            name = str(self.path.resolve())
        except (OSError, RuntimeError):  # a loop of links; opening the file will tell
            name = str(self.path)
        with _gate.lock:
            self._writers = _queues.get(name) or _queues.setdefault(name, WriterQueue())
            return self._writers

    # -- opening and closing ----------------------------------------------------------------------

    def _connect(self, deadline: float) -> Connection:
        log = self._log_path if self._identity else _beside_of(self.path, "wal")
        status = _status(log)
        if status is None or status.st_size <= schema.WAL_KEPT:
            return self._open(deadline)
        with _gate.lock:
            if self._opening is None or self._opening.ended.is_set():
                self._opening = _Opening(self)
            opening = self._opening
        return opening.wait(deadline)

    def _open(self, deadline: float) -> Connection:
        pause = Pause(self, deadline)
        while True:
            if self.closing:
                raise Unavailable(CLOSED)
            try:
                return self._open_now()
            except sqlite3.Error as error:
                if not is_passing(error):
                    raise translate(error, self.path, closing=self.closing) from error
                locked = error
            try:
                pause.wait(locked)
            finally:
                del locked  # it holds this frame

    def _open_now(self) -> Connection:
        with _gate.lock:
            self._refuse_inherited()
            if self._identity is not None and _identity(self.path) != self._identity:
                raise self._lost(self.path)
            how = reading(self.path, read_only=self.read_only)
            if how is None:
                leftovers.remove(self.path)
                leftovers.check_whole(self.path)
            connection = sqlite3.connect(
                self.path if how is None else how.uri,
                uri=how is not None,
                timeout=0,
                isolation_level=None,  # transactions are begun and ended by hand
                check_same_thread=False,  # one thread at a time, not always the same
                factory=Connection,
            )
            self.live.add(connection)
            connection.identity = _identity(self.path)
        connection.reading = how
        try:
            connection.deadline = Deadline(self.closed)
            connection.set_progress_handler(connection.deadline.passed, STEPS)
            if how is None:
                schema.prepare(connection, self.path)
            else:
                how.prepare(connection)
            if self._identity is None:
                self._log_path = _beside_of(self.path, "wal")
                self._memory_path = _beside_of(self.path, "shm")
                self._identity = connection.identity
            if how is None or how.shares:
                self._remember_beside(connection)
        except BaseException:
            self.discard(connection)
            raise
        return connection

    def _refuse_inherited(self) -> None:
        if _inherited and _identity(self.path) in _inherited:
            raise Unavailable(
                f"{self.path} cannot be opened in this process: when it was forked, its parent had "
                "a range half read, a client or a long call on the file; end these before "
                "the fork, or start the process afresh (multiprocessing's 'spawn')",
                passing=False,
            )

    def client(self, timeout: float) -> Connection:
        """The connection that is kept for the caller."""
        if self._client is None:
            connection = self._connect(monotonic() + timeout)
            connection.pinned = True
            connection.execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
            with _gate.lock:
                if self._client is None and not self.closing:
                    self._client = connection
            if self._client is not connection:
                self.discard(connection)
        if self._client is None:
            raise Unavailable(CLOSED)
        return self._client

    def close(self, snapshots: Callable[[float], None]) -> None:
        """Close all connections and wake all waiters; what is borrowed is closed by its borrower.

        ``snapshots(timeout)`` closes the pinned ones that are not in use.
        """
        self._collects = self.closing = True
        self.closed.set()
        if self._opening is not None:
            self._opening.ended.set()
        if self._writers is not None:
            self._writers.call_off(self)
        if self._client is not None:
            self._client.interrupt()
            self.discard(self._client)
        deadline = monotonic() + PATIENCE
        while True:
            self._shrink(ends=True)
            snapshots(0.001)
            if not self.live or monotonic() > deadline:
                break
            self._interrupt()
            time.sleep(0.001)
        self._collects = False
        self._shrink()

    # -- fork -------------------------------------------------------------------------------------

    def retire(self, deadline: float) -> bool:
        """Before a fork, which is near: close what is not pinned; whether nothing is left."""
        while True:
            self._shrink(ends=True)
            if all(connection.pinned for connection in self.live):
                return not self.live
            if monotonic() > deadline:
                return False
            self._interrupt()
            time.sleep(0.0002)

    def _interrupt(self) -> None:
        """Interrupt upkeep; again and again, as it hits only the statement of that moment."""
        for connection in self.live:
            if (upkeep := connection.upkeep) is not None:
                upkeep.interrupt()

    def abandon(self) -> None:
        """In a forked child: never touch the parent's connections again."""
        self.closing = True
        self._idle.clear()
        for connection in self.live:
            _keep_for_ever(connection)
            if connection.identity is not None:
                _inherited.add(connection.identity)


class _Spoiled(sqlite3.Error):
    """Work that is to be undone was done for others, in a transaction that is not to be."""


class _Opening:
    """The opening of a file with a long log, by a thread of its own.

    ``ended`` is set when there is a connection in the pool, or an error for all who wait.
    """

    __slots__ = ("_error", "_pool", "ended")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._error: KviError | None = None
        self.ended = threading.Event()
        try:
            threading.Thread(target=self._run, name="kvi-sqlite-open", daemon=True).start()
        except RuntimeError as error:
            raise Unavailable(f"no thread can be started to open {pool.path}: {error}") from error

    def _run(self) -> None:
        pool = self._pool
        try:
            pool.give_back(pool._open(inf))
        except KviError as error:
            self._error = error
        finally:
            self.ended.set()

    def wait(self, deadline: float) -> Connection:
        """Wait for a connection."""
        pool = self._pool
        if not self.ended.wait(deadline - monotonic()):
            raise Timeout(f"{pool.path} has a long log, which is still being read")
        if self._error is not None:
            raise self._error
        return pool.borrow(deadline)


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116  (twice in each write: Path's own takes longer)
    except OSError:
        return None


def _identity(path: Path) -> Identity | None:
    status = _status(path)
    return None if status is None else (status.st_dev, status.st_ino)


def _beside_of(path: Path, end: str) -> Path:
    return Path(f"{os.path.realpath(path)}-{end}")


def _forget_interrupt(connection: Connection) -> None:
    with suppress(sqlite3.Error):
        connection.execute("SELECT 0 WHERE 0").close()  # what begins while none runs clears it


def _nothing() -> None:
    pass


_pools: Living[Pool] = Living()
_queues: weakref.WeakValueDictionary[str, WriterQueue] = weakref.WeakValueDictionary()
_besides: weakref.WeakValueDictionary[Identity, Beside] = weakref.WeakValueDictionary()
_remembering = threading.Lock()
_inherited: set[Identity] = set()
_kept: list[Connection] = []


def _keep_for_ever(connection: Connection) -> None:
    _kept.append(connection)
    with suppress(ImportError):  # without it, the list keeps it nearly as long
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _before_fork() -> None:
    deadline = monotonic() + PATIENCE
    inherited = [pool for pool in _pools if not pool.retire(deadline)]
    if inherited:
        with suppress(ImportError):  # here, not in the child, where an import may wait for ever
            import ctypes  # noqa: F401


def _after_fork_in_child() -> None:
    global _remembering
    _remembering = threading.Lock()  # threads that do not exist here may hold it, and these
    _queues.clear()
    for pool in _pools:
        pool.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
# A fork takes first what was made last.
_gate = ForkLock(threading.TIMEOUT_MAX)
_near = ForkLock(threading.TIMEOUT_MAX)

"""A pool of connections for clients that block: few of them, given back by whoever took one.

*Theory.* The connection used last is used first, so that a quiet program keeps few of them warm.
Who wants one needs a place first, of which there are ``size``: first come, first served, until a
deadline. Nothing has been sent by then, hence `Timeout`.

=============  ===================================  ===============================================
what           is owned by                          and given back
=============  ===================================  ===============================================
a place        the `Lent` of a `Pool.take`          when its block ends
a connection   that `Lent`, which is known to the   to the idle ones if its block ended without an
               pool, so that `close` and `cancel`   error; else it is closed, for nobody knows
               can wake who waits on it             what would come next on it
an idle one    the pool                             before it is used again it is looked at
                                                    (``usable``), and closed if it is not good
=============  ===================================  ===============================================

*The main thread* may take an idle one without a place (`Pool.at_hand`), for an exchange that a
signal handler's exception may end anywhere: no step of it takes a lock, and what it holds ends with
its frame. For that moment there may be one more than ``size``.

*Closing.* Who waits for a place is let in and finds the pool closed; who waits on a connection is
woken by ``abort``; each closes its own.

*Fork.* A child lets go of its parent's connections and says nothing on them (`Pool.forked`).

``_lock`` guards what is idle and what is busy. It is held for decisions and for ``abort``, never
while a connection is made, looked at or closed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from time import monotonic
from typing import Any, Generic, TypeVar

from kvi.errors import Closed, Timeout

__all__ = ["Lent", "Places", "Pool"]

C = TypeVar("C")

SIZE = 8  # connections at once: threads of a busy program that meet in the store
DRAIN = 1.0  # seconds that closing waits for woken threads to let go of their connections
LONGEST_WAIT = 1e6  # seconds that the system's locks can count

_inherited: list[Any] = []  # of a parent: not even freed, for a client may speak when it is


class Places:
    """A number of places, handed out first come, first served. Safe for threads."""

    def __init__(self, number: int) -> None:
        self._lock = threading.Lock()
        self._free = number
        self._queue: deque[threading.Lock] = deque()  # each held until its owner is handed a place

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._queue)

    def take(self, timeout: float) -> None:
        """Take a place, waiting up to ``timeout`` seconds for one. Raises `Timeout`."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            gate = threading.Lock()
            gate.acquire()
            self._queue.append(gate)
        if gate.acquire(timeout=min(max(timeout, 0.0), LONGEST_WAIT)):
            return
        with self._lock:
            if gate in self._queue:
                self._queue.remove(gate)
                raise Timeout("all connections were in use all the time")
            # Else it was handed over in this very moment.

    def give(self) -> None:
        """Give a place back: to who has waited longest, if anybody does."""
        with self._lock:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._free += 1

    def open(self) -> None:
        """Let everybody in, now and later: who comes in finds the pool closed."""
        with self._lock:
            self._free = 1 << 62
            while self._queue:
                self._queue.popleft().release()


class Lent(Generic[C]):
    """A connection that was taken; the end of its block gives it back. For one thread.

    Attributes:
        connection: what was taken.

    """

    __slots__ = ("_counted", "_pool", "connection")

    def __init__(self, pool: Pool[C], connection: C, counted: bool) -> None:
        self._pool = pool
        self._counted = counted
        self.connection = connection

    def __enter__(self) -> C:
        return self.connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(whole=kind is None)

    def end(self, *, whole: bool) -> None:
        """Give it back, if it was left ``whole``, else close it; once."""
        self._pool._take_back(self, self._counted, whole)


class Pool(Generic[C]):
    """Connections of type ``C``. Safe for any number of threads, but for the main thread.

    There primitives never run (see `kvi.primitives`), and only `at_hand` and `lay_down` are safe.
    """

    def __init__(
        self,
        connect: Callable[[float], C],
        close: Callable[[C], object],
        *,
        size: int = SIZE,
        usable: Callable[[C], bool] = lambda connection: True,
        abort: Callable[[C], object] | None = None,
        let_go: Callable[[C], object] = _inherited.append,
    ) -> None:
        """Make an empty pool.

        Args:
            connect: makes a connection within so many seconds; raises errors of `kvi.errors`.
            close: ends one that nobody uses.
            size: how many there are at once, and at most idle.
            usable: whether one that was idle can be used again. It should not ask the server, but
                see whether it has closed the connection; one that it closes in this very moment is
                not noticed.
            abort: makes the thread that uses the connection fail now (``shutdown`` of its socket);
                called by another thread, must not block. What it raises, as of a connection that
                is gone already, is dropped.
            let_go: in a forked child: give up the child's copy without a word to the server, such
                as ``socket.close``, but never ``shutdown``. Without it, they are never touched.

        """
        self._connect, self._close, self._usable = connect, close, usable
        self._abort, self._let_go = abort, let_go
        self.size = size
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._places = Places(self.size)
        self._lock = threading.Lock()
        self._idle: list[C] = []
        self._busy: dict[Lent[C], int] = {}  # and the thread that each is used by
        self._unused = threading.Event()  # set: closed, and nothing is busy

    # -- taking -----------------------------------------------------------------------------------

    def take(self, timeout: float, *, counted: bool = True) -> Lent[C]:
        """Take a connection, for a ``with`` block; ``timeout`` is in seconds, also for connecting.

        What leaves the block as an error ends the connection. So raise outside of it what the
        server has said in good order, such as `LeaseLost`. One that is not ``counted`` needs no
        place: for what runs as long as the handle, of which the backend bounds the number.

        Raises:
            Timeout: all were in use; surely nothing was sent.
            Closed: the pool was closed.

        """
        deadline = monotonic() + timeout
        if counted:
            self._places.take(timeout)
        try:
            return self._reused(counted) or self._new(counted, deadline)
        except BaseException:
            if counted:
                self._places.give()
            raise

    def _reused(self, counted: bool) -> Lent[C] | None:
        while True:
            with self._lock:
                connection = None if self._closed else self.at_hand()
                if connection is None:
                    return None
                lent = Lent(self, connection, counted)
                self._busy[lent] = get_ident()
            try:
                if self._usable(lent.connection):
                    return lent
            except BaseException:
                self._put_away(lent, whole=False)
                raise
            self._put_away(lent, whole=False)

    def _new(self, counted: bool, deadline: float) -> Lent[C]:
        self._check_closed()
        lent = Lent(self, self._connect(max(0.001, deadline - monotonic())), counted)
        with self._lock:
            if not self._closed:
                self._busy[lent] = get_ident()
                return lent
        self._close(lent.connection)
        raise Closed("the store is closed")

    def _check_closed(self) -> None:
        if self._closed:
            raise Closed("the store is closed")

    def _take_back(self, lent: Lent[C], counted: bool, whole: bool) -> None:
        if self._put_away(lent, whole) and counted:
            self._places.give()

    def _put_away(self, lent: Lent[C], whole: bool) -> bool:
        """Keep a connection or close it; whether it was still out."""
        with self._lock:
            if self._busy.pop(lent, None) is None:
                return False
            kept = whole and not self._closed and len(self._idle) < self.size
            if kept:
                self._idle.append(lent.connection)
            unused = self._closed and not self._busy
        try:
            if not kept:
                self._close(lent.connection)
        finally:
            if unused:
                self._unused.set()
        return True

    # -- for the main thread ----------------------------------------------------------------------

    def at_hand(self) -> C | None:
        """An idle connection, which is nobody's now; look at it before it is used."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def lay_down(self, connection: C) -> None:
        """Make idle one that was at hand and is whole; closes what are too many."""
        self._idle.append(connection)
        while self._closed or len(self._idle) > self.size:
            surplus = self.at_hand()
            if surplus is None:
                return
            self._close(surplus)

    # -- for the handle ---------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """How many are in use."""
        return len(self._busy)

    @property
    def idle(self) -> int:
        """How many wait to be used again."""
        return len(self._idle)

    def drop_idle(self) -> None:
        """Close those that are idle: what ended one of them may have ended the others."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self._close(connection)

    def cancel(self, thread: int) -> None:
        """``abort`` what this thread uses, as ``Primitives._cancel``: nobody waits for it."""
        self._abort_those(lambda user: user == thread)

    def close(self) -> None:
        """Close all, and wake whoever waits for one, or on one; again, it does nothing.

        What is in use is closed by its user. Waits for them, up to a second.
        """
        self._closed = True
        self._places.open()
        self.drop_idle()
        self._abort_those(lambda user: True)
        with self._lock:
            busy = bool(self._busy)
        if busy:
            self._unused.wait(DRAIN)

    def forked(self) -> None:
        """In a forked child: let go of the parent's connections; makes all locks anew."""
        connections = [*self._idle, *(lent.connection for lent in self._busy)]
        self._reset()  # another thread of the parent may have held the old ones
        for connection in connections:
            self._let_go(connection)

    def _abort_those(self, wanted: Callable[[int], bool]) -> None:
        if self._abort is not None:
            with self._lock:  # until then the connection is nobody else's, and open
                for lent, user in self._busy.items():
                    if wanted(user):
                        with suppress(Exception):  # one that is gone by itself; others are not
                            self._abort(lent.connection)

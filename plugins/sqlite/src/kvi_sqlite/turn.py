"""Turns: the writers of this process queue here, before they ask SQLite for the write lock.

SQLite's write lock has no queue: who finds it taken has to ask again later. Between processes there
is nothing better, but threads of one process would poll against one another for nothing. So each
file has one `Turn` in a process, shared by all handles on it, and only its holder asks SQLite.

*Theory.* ``_held`` says whether somebody has the turn, ``_waiting`` are those behind, in order of
arrival. Leaving hands the turn straight to the first in line: it is never free while somebody
waits, so nobody overtakes. A waiter sleeps on a lock of its own. Whoever ends its sleep has
decided, under ``_lock``, what it means: *granted*, or called off because its handle was closed.
Waking by itself, at its deadline or by an interrupt, it looks under the same lock, so that a turn
granted at that very moment is not lost.

The turn is also where this process's commits are made known: those who watch the file *listen*.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from kvi.errors import Timeout, Unavailable

from kvi_sqlite.errors import CLOSED


class _Waiter:
    __slots__ = ("granted", "owner", "sleep", "token")

    def __init__(self, owner: object, token: object) -> None:
        self.owner = owner
        self.token = token
        self.granted = False
        self.sleep = threading.Lock()
        self.sleep.acquire()


class Turn:
    """The right to ask for a file's write lock; one holder in this process, first come first."""

    __slots__ = ("__weakref__", "_held", "_lock", "_waiting", "listeners")

    def __init__(self) -> None:
        self.listeners: tuple[Callable[[], object], ...] = ()  # replaced, never changed
        self._lock = threading.Lock()
        self._held: object = None  # the token of who has the turn
        self._waiting: deque[_Waiter] = deque()

    def take(self, owner: object, token: object, deadline: float) -> None:
        """Wait for the turn; raises `Timeout`, or `Unavailable` after `call_off` of ``owner``.

        Whatever it raises, an interrupt too: `leave` with the same ``token`` undoes it.
        """
        with self._lock:
            if self._held is None:
                self._held = token
                return
            waiter = _Waiter(owner, token)
            self._waiting.append(waiter)
        try:
            woken = waiter.sleep.acquire(timeout=max(0.0, deadline - monotonic()))
        except BaseException:  # a signal handler raised
            self._withdraw(waiter)
            raise
        if not self._withdraw(waiter):
            raise Unavailable(CLOSED) if woken else Timeout("other threads kept writing")

    def leave(self, token: object) -> None:
        """Hand the turn to the next in line, if it was taken with ``token``; else do nothing."""
        with self._lock:
            if self._held is not token:
                return
            if self._waiting:
                waiter = self._waiting.popleft()
                self._held = waiter.token
                waiter.granted = True
                waiter.sleep.release()
            else:
                self._held = None

    def call_off(self, owner: object) -> None:
        """Wake those who wait for ``owner``, without the turn."""
        with self._lock:
            ours = [waiter for waiter in self._waiting if waiter.owner is owner]
            for waiter in ours:
                self._waiting.remove(waiter)
                waiter.sleep.release()

    def listen(self, listener: Callable[[], object]) -> None:
        """Have ``listener`` called after every commit of this process, by the one who made it."""
        with self._lock:
            self.listeners = (*self.listeners, listener)

    def unlisten(self, listener: Callable[[], object]) -> None:
        """Undo `listen`."""
        with self._lock:
            self.listeners = tuple(each for each in self.listeners if each is not listener)

    def _withdraw(self, waiter: _Waiter) -> bool:
        """Whether ``waiter`` has the turn; if not, it no longer waits."""
        with self._lock:
            if not waiter.granted and waiter in self._waiting:
                self._waiting.remove(waiter)
            return waiter.granted

"""The writer queue: the writers of this process line up, before they ask SQLite for the write lock.

SQLite's write lock has no queue: who finds it taken has to ask again later. Between processes there
is nothing better, but threads of one process would poll against one another for nothing. So each
file has one `WriterQueue` in a process, shared by all handles on it, and only its head asks SQLite.

*Theory.* A writer enters with a `Place`, and leaves by the end of its block. ``_places`` are all of
them in order of arrival; the first is the head. It is never free while somebody waits, so nobody
overtakes. A waiter sleeps on a lock of its own. Whoever ends its sleep has decided, under
``_lock``, what it means: it is the head now, or it was called off because its handle was closed.

The queue is also where this process's commits are made known: those who watch the file *listen*.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from kvi.errors import Timeout, Unavailable

from kvi_sqlite.errors import CLOSED


class Place:
    """A writer's place in the queue, which it leaves at the end of the ``with`` block.

    Entering waits until it is the head; raises `Timeout`, or `Unavailable` after `call_off`.
    """

    __slots__ = ("_deadline", "_queue", "called_off", "owner", "sleep", "thread")

    def __init__(self, queue: WriterQueue, owner: object, deadline: float) -> None:
        self._queue = queue
        self._deadline = deadline
        self.owner = owner
        self.thread = threading.get_ident()
        self.called_off = False
        self.sleep = threading.Lock()
        self.sleep.acquire()

    def __enter__(self) -> None:
        queue = self._queue
        if queue.join(self):
            return
        self.sleep.acquire(timeout=max(0.0, self._deadline - monotonic()))
        if not queue.is_head(self):
            queue.leave(self)
            raise Unavailable(CLOSED) if self.called_off else Timeout("other threads kept writing")

    def __exit__(self, *raised: object) -> None:
        self._queue.leave(self)


class WriterQueue:
    """The right to ask for a file's write lock; one head in this process, first come first."""

    __slots__ = ("__weakref__", "_lock", "_places", "listeners")

    def __init__(self) -> None:
        self.listeners: tuple[Callable[[], object], ...] = ()  # replaced, never changed
        self._lock = threading.Lock()
        self._places: deque[Place] = deque()

    def __len__(self) -> int:
        return len(self._places)

    def place(self, owner: object, deadline: float) -> Place:
        """A place for ``owner``, to enter with ``with``."""
        return Place(self, owner, deadline)

    def join(self, place: Place) -> bool:
        """Line up; whether it is the head."""
        with self._lock:
            self._places.append(place)
            return self._places[0] is place

    def is_head(self, place: Place) -> bool:
        """Whether it is the head."""
        with self._lock:
            return bool(self._places) and self._places[0] is place

    def leave(self, place: Place) -> None:
        """Leave the queue, and wake the next if it was the head."""
        with self._lock:
            was_head = bool(self._places) and self._places[0] is place
            if place in self._places:
                self._places.remove(place)
            if was_head and self._places:
                self._places[0].sleep.release()

    def call_off(self, owner: object, thread: int | None = None) -> None:
        """Wake those who wait for ``owner``, or one of them: they are not to write any more."""
        with self._lock:
            for place in list(self._places)[1:]:
                if place.owner is owner and thread in (None, place.thread):
                    self._places.remove(place)
                    place.called_off = True
                    place.sleep.release()

    def listen(self, listener: Callable[[], object]) -> None:
        """Have ``listener`` called after every commit of this process, by the one who made it."""
        with self._lock:
            self.listeners = (*self.listeners, listener)

    def unlisten(self, listener: Callable[[], object]) -> None:
        """Undo `listen`."""
        with self._lock:
            self.listeners = tuple(each for each in self.listeners if each is not listener)

"""The writer queue: the writers of this process line up, before they ask SQLite for the write lock.

SQLite's write lock has no queue: who finds it taken has to ask again later. Between processes there
is nothing better, but threads of one process would poll against one another for nothing. So each
file has one `WriterQueue` in a process, shared by all handles on it, and only its head asks SQLite.

*Theory.* A writer enters with a `Place`, and leaves by the end of its block. ``_places`` are all of
them in order of arrival; the first is the head. It is never free while somebody waits, so nobody
overtakes, but upkeep, which goes *soon*: right behind the head and what that has taken. At the end
of a long line it would never catch up with those before it. A waiter sleeps on a lock of its own.
Whoever ends its sleep has changed its state under ``_lock`` before; who wakes looks there, once,
what it means for it, and may find nothing new.

*Groups.* A commit waits for the disk, and those behind the head would each wait for one of their
own. So a head whose work is small does theirs too, as far as it is small and for the same handle:
each piece with a revision of its own, all in one commit. None is told before that is on the disk.
If SQLite fails amid their work, all is undone, they wait as before, and the head goes on alone.

=========  ============================================  ========================================
state      meaning                                       left by
=========  ============================================  ========================================
waits      somebody is before it                         the head leaves; `take`; `call_off`; its
                                                         deadline
head       it may ask for the write lock                 the end of its block
taken      the head does its work. Its deadline waits    `end`; `untake`, to wait again
           too, as in a commit of its own
done       there is a result, or an error                the end of its block
=========  ============================================  ========================================

The queue is also where this process's commits are made known: those who watch the file *listen*.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

from kvi.errors import Timeout, Unavailable

from kvi_sqlite.errors import CLOSED

if TYPE_CHECKING:
    from kvi_sqlite.connection import Connection

Work = Callable[["Connection"], tuple[Any, bool]]
"""What a write does in its transaction; it returns its result and whether it wrote."""


class Place:
    """A writer's place in the queue, which it leaves at the end of the ``with`` block.

    Entering waits until it is the head or `done`; raises `Timeout`, or `Unavailable` after
    `WriterQueue.call_off`.

    Attributes:
        owner: the handle's pool.
        work: what the head may do for it; ``None``: nothing.
        result: of the work, once it is done.
        wrote: whether the work did.
        error: what the work raised, or the commit.
        soon: it goes right behind the head.
        done: there is a result or an error.

    """

    __slots__ = (
        "_deadline",
        "_queue",
        "_sleep",
        "called_off",
        "done",
        "error",
        "owner",
        "result",
        "soon",
        "taken",
        "thread",
        "work",
        "wrote",
    )

    def __init__(
        self,
        queue: WriterQueue,
        owner: object,
        deadline: float,
        work: Work | None,
        soon: bool,
    ) -> None:
        self._queue = queue
        self._deadline = deadline
        self._sleep = threading.Lock()
        self._sleep.acquire()
        self.owner = owner
        self.thread = threading.get_ident()
        self.work = work
        self.soon = soon
        self.called_off = self.taken = self.done = self.wrote = False
        self.result: Any = None
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        queue = self._queue
        if queue.join(self):
            return
        left = max(0.0, self._deadline - monotonic())
        while True:
            self._sleep.acquire(timeout=min(left, threading.TIMEOUT_MAX))
            left = self._deadline - monotonic()
            if queue.is_through(self, late=left <= 0):
                return
            if left <= 0:  # and it is taken: whoever ends that wakes it
                left = threading.TIMEOUT_MAX

    def __exit__(self, *raised: object) -> None:
        self._queue.leave(self)

    def wake(self) -> None:
        """End its sleep. For the queue, under its lock."""
        if self._sleep.locked():
            self._sleep.release()


class WriterQueue:
    """The right to ask for a file's write lock; one head in this process, first come first."""

    __slots__ = ("__weakref__", "_lock", "_places", "listeners")

    def __init__(self) -> None:
        self.listeners: tuple[Callable[[], object], ...] = ()  # replaced, never changed
        self._lock = threading.Lock()
        self._places: deque[Place] = deque()

    def __len__(self) -> int:
        return len(self._places)

    def place(
        self, owner: object, deadline: float, work: Work | None = None, *, soon: bool = False
    ) -> Place:
        """A place for ``owner``, to enter with ``with``; the head may do its ``work``.

        It is the last of all, or, if ``soon``, the one behind the head.
        """
        return Place(self, owner, deadline, work, soon)

    def join(self, place: Place) -> bool:
        """Line up; whether it is the head."""
        with self._lock:
            at = len(self._places)
            if place.soon:
                behind = enumerate(islice(self._places, 1, None), 1)
                at = next((at for at, other in behind if not other.taken), at)
            self._places.insert(at, place)
            return at == 0

    def is_through(self, place: Place, *, late: bool) -> bool:
        """Whether it is the head, or done. If it is ``late`` and was not taken, it leaves.

        Raises `Timeout` then, and `Unavailable` if it was called off.
        """
        with self._lock:
            if place.called_off:
                raise Unavailable(CLOSED)
            if place.done or self._places[0] is place:
                return True
            if late and not place.taken:
                self._places.remove(place)
                raise Timeout("other threads kept writing")
            return False

    def leave(self, place: Place) -> None:
        """Leave the queue, and wake the next if it was the head."""
        with self._lock:
            was_head = bool(self._places) and self._places[0] is place
            if place in self._places:
                self._places.remove(place)
            if was_head and self._places:
                self._places[0].wake()

    def call_off(self, owner: object, thread: int | None = None) -> None:
        """Wake those who wait for ``owner``, or one of them: they are not to write any more."""
        with self._lock:
            for place in list(self._places)[1:]:
                if place.owner is owner and not place.taken and thread in (None, place.thread):
                    self._places.remove(place)
                    place.called_off = True
                    place.wake()

    # -- for the head -----------------------------------------------------------------------------

    def take(self, owner: object, taken: int) -> Place | None:
        """Take the next of those behind the head and the ``taken``, unless that has to wait."""
        with self._lock:
            if len(self._places) <= taken + 1:
                return None
            place = self._places[taken + 1]
            if place.owner is not owner or place.work is None:
                return None
            place.taken = True
            return place

    def untake(self, places: Sequence[Place]) -> None:
        """Nothing was done for them."""
        with self._lock:
            for place in places:
                place.taken = place.wrote = False
                place.result = place.error = None
                place.wake()  # its deadline counts again

    def end(self, places: Sequence[Place]) -> None:
        """Their work is done."""
        with self._lock:
            for place in places:
                self._places.remove(place)
                place.done, place.work = True, None
                place.wake()

    def listen(self, listener: Callable[[], object]) -> None:
        """Have ``listener`` called after every commit of this process, by the one who made it."""
        with self._lock:
            self.listeners = (*self.listeners, listener)

    def unlisten(self, listener: Callable[[], object]) -> None:
        """Undo `listen`."""
        with self._lock:
            self.listeners = tuple(each for each in self.listeners if each is not listener)

"""The threads that call-backs run on, few of them for any number of watches.

*Theory.* A `Task` runs on one thread at a time, so that the events of one watch keep their order.
Tasks that are ready wait in a queue for one of `WORKERS` threads. A task does a bounded piece of
work at a time and goes to the end of the queue if there is more, so that none starves the others.

=============  ===========================================  ====================================
state          meaning                                      left by
=============  ===========================================  ====================================
``IDLE``       nothing to do                                `submit` → QUEUED
``QUEUED``     in the queue, once                           a worker takes it → RUNNING
``RUNNING``    on a worker's thread                         its end → IDLE (or QUEUED, if there is
                                                            more); `submit` → AGAIN
``AGAIN``      running, and submitted meanwhile             its end → QUEUED
=============  ===========================================  ====================================

A call-back may block for as long as it likes. The timekeeper, a thread that never runs call-backs,
adds a worker if tasks wait and none has been finished for `STALL` seconds, up to `MOST_WORKERS`;
what is more than `WORKERS` ends again after a time without work. So call-backs delay each other
only when `MOST_WORKERS` of them are stuck at once. The timekeeper also submits tasks that asked to
be run later.

All threads are daemons, started at the first use and ended by `stop`. One lock guards everything,
and nothing runs under it.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from time import monotonic

WORKERS = 2
MOST_WORKERS = 32
STALL = 0.02  # seconds without progress after which another worker is added
LINGER = 2.0  # seconds that an additional worker waits for work

_log = logging.getLogger("kvi")


class _State(enum.Enum):
    IDLE = enum.auto()
    QUEUED = enum.auto()
    RUNNING = enum.auto()
    AGAIN = enum.auto()


class Task(ABC):
    """Something that is run whenever it is submitted, never twice at once."""

    __slots__ = ("_due", "_state")

    def __init__(self) -> None:
        self._state = _State.IDLE
        self._due: float | None = None  # when to be run again, as it asked for after its last run

    @abstractmethod
    def run(self) -> float | None:
        """Do a bounded piece of work. Returns when to be run again: seconds from now, or ``None``.

        ``None`` is not before it is submitted.
        """


class _Call(Task):
    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__()
        self._function = function

    def run(self) -> None:
        self._function()


class Dispatcher:
    """Runs tasks; see the module's theory. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # workers wait here
        self._time = threading.Condition(self._lock)  # the timekeeper waits here
        self._queue: deque[Task] = deque()
        self._later: list[tuple[float, int, Task]] = []
        self._numbers = itertools.count()
        self._threads: set[threading.Thread] = set()
        self._workers = 0
        self._idle = 0
        self._done = 0  # pieces of work finished, ever
        self._watching = False  # whether the timekeeper looks if the workers get on
        self._stopped = False

    def submit(self, task: Task) -> None:
        """Run ``task`` soon; after `stop`, never."""
        with self._lock:
            self._submit(task)

    def call(self, function: Callable[[], object]) -> None:
        """Run a function soon, once; what it raises is logged."""
        self.submit(_Call(function))

    def stop(self) -> None:
        """Run nothing more; what runs now is not waited for."""
        with self._lock:
            self._stopped = True
            self._queue.clear()
            self._later.clear()
            self._work.notify_all()
            self._time.notify_all()

    def join(self, timeout: float) -> None:
        """After `stop`: wait for the threads, except the one that calls this."""
        deadline = monotonic() + timeout
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))

    def _submit(self, task: Task) -> None:
        if self._stopped:
            return
        if task._state is _State.RUNNING:
            task._state = _State.AGAIN
        elif task._state is _State.IDLE:
            self._enqueue(task)

    def _enqueue(self, task: Task) -> None:
        task._state = _State.QUEUED
        self._queue.append(task)
        if len(self._queue) <= self._idle:
            self._work.notify()
        elif self._workers < WORKERS:
            self._start_worker()
        elif not self._watching:
            self._watching = True
            self._time.notify()

    def _start_worker(self) -> None:
        try:
            if not self._threads:
                self._start(self._keep_time, "kvi-timekeeper")
            self._start(self._run, "kvi-callbacks")
        except RuntimeError as error:  # too many threads, or the interpreter ends
            _log.warning("call-backs have to wait: %s", error)
        else:
            self._workers += 1

    def _start(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.add(thread)

    def _run(self) -> None:
        with self._lock:
            while task := self._next():
                self._lock.release()
                try:
                    again = _run_safely(task)
                finally:
                    self._lock.acquire()
                self._done += 1
                self._after(task, again)
            self._workers -= 1
            self._threads.discard(threading.current_thread())

    def _next(self) -> Task | None:
        """The next task, or ``None`` if this worker is to end. Holds the lock."""
        while not self._stopped:
            if self._queue:
                task = self._queue.popleft()
                task._state = _State.RUNNING
                return task
            self._idle += 1
            spare = self._workers > WORKERS
            worked = self._work.wait(LINGER if spare else None)
            self._idle -= 1
            if not worked and self._workers > WORKERS and not self._queue:
                return None
        return None

    def _after(self, task: Task, again: float | None) -> None:
        submitted = task._state is _State.AGAIN
        task._state = _State.IDLE
        task._due = None
        if self._stopped:
            return
        if submitted or again == 0:
            self._enqueue(task)
        elif again is not None:
            task._due = monotonic() + again
            heapq.heappush(self._later, (task._due, next(self._numbers), task))
            self._time.notify()

    def _keep_time(self) -> None:
        seen: int | None = None  # what was done when the stall may have begun, at ``since``
        since = 0.0
        with self._lock:
            while not self._stopped:
                now = monotonic()
                while self._later and self._later[0][0] <= now:
                    due, _, task = heapq.heappop(self._later)
                    if task._due == due:  # else it was run meanwhile
                        self._submit(task)
                self._watching = full = len(self._queue) > self._idle
                if not full:
                    seen = None
                elif seen != self._done:
                    seen, since = self._done, now
                elif now - since >= STALL:
                    since = now
                    if self._workers < MOST_WORKERS:
                        self._start_worker()
                wait = self._later[0][0] - now if self._later else None
                if full:
                    wait = STALL if wait is None else min(STALL, wait)
                self._time.wait(wait)
            self._threads.discard(threading.current_thread())


def _run_safely(task: Task) -> float | None:
    try:
        return task.run()
    except BaseException:  # noqa: BLE001  (a caller's function must not end a thread of ours)
        _log.exception("a call-back failed")
        return None

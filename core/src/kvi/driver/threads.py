"""The thread driver: flows run on threads, and the main thread never runs one.

*Why.* Python runs signal handlers in the main thread, between any two of its bytecodes, and a
handler may raise. Whatever the main thread was doing then is left where it was: a lock may stay
taken, a connection be in the middle of an answer. So a call of the main thread hands its flow to a
thread of kvi's, and waits for it on a queue written in C. An exception out of the handler ends the
wait and nothing else; the flow is told, and gives back what it got (`Errand`). Calls of other
threads meet no handlers and run their flows in place; only those that may last go to a thread of
kvi's, too, where the store cannot be told to end a call when the handle is closed. Operations that
their backend declares whole at every bytecode (`Primitives.in_place`) run in place on any thread.

*Who works.*

===========  =========================================================  ========================
threads      run                                                        how many
===========  =========================================================  ========================
flows        errands of the main thread: never wait for one another     as many as there are
                                                                        at once
reads        reading for watches                                        2, to 64 while they stall
work         kvi's own: renewals, revocations                           1, to 8 while they stall
call-backs   functions of the program; may block as long as they like   2, to 1,000 while they stall
scheduler    decides what is due; never asks a store, never waits       1
===========  =========================================================  ========================

All are daemons, started at the first use and gone after a while without work, or by `stop`. A pool
that has made no progress for `STALL` seconds gets one more thread. So kvi's own work never waits
for the program's, and one call-back waits for another only when 1,000 are stuck at once.

*What the main thread may touch.* Only steps in C that nothing can come between: `SimpleQueue.put`
and ``get``, ``list.append`` and ``pop``, one assignment. The first thread is started in C as well,
by a thread that starts the real one, for `threading.Thread.start` waits for a `Condition`.

*Fork.* What the scheduler was told, such as to free what a range holds that was left early, it does
before a fork that comes behind: a child could not do it, and the store may be in its way.
"""

from __future__ import annotations

import _thread
import heapq
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from threading import get_ident
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from kvi.clock import now
from kvi.coroutine import run
from kvi.errors import KviError
from kvi.living import Living
from kvi.log import log
from kvi.mutex import Mutex
from kvi.port import Cancelled, Flow, Kept, Performable, Port

if TYPE_CHECKING:
    from kvi.primitives import Primitives

T = TypeVar("T")

STALL = 0.02  # seconds without progress after which a pool gets another thread
# Seconds that a thread without work waits for some. (Before Python 3.13, a `SimpleQueue.get` whose
# time is up just as another thread takes what woke it forgets its time: it waits for the next.)
LINGER = 2.0
PATIENCE = 1.0  # seconds that the end of threads is waited for
# Seconds after which who waits looks around: a flow whether it was given up, the main thread
# whether a signal came between its last bytecode and the wait, which does not end by it.
_SLICE = 1.0
_AGAIN = 0.05  # seconds until a primitive for which nobody waits is told again to end
_LONGEST = 3600.0  # seconds of one wait, which no platform finds too long

_main = threading.main_thread().ident


class ThreadSignal:
    """A `kvi.port.Signal`. Its queue is in C, so that anybody may set it at any moment."""

    __slots__ = ("_port", "_queue", "_set")

    def __init__(self, port: ThreadPort | None = None) -> None:
        self._port = port
        self._queue: SimpleQueue[None] = SimpleQueue()
        self._set = False

    def set(self) -> None:
        """Wake the flow, now or at its next wait."""
        if not self._set:
            self._set = True
            self._queue.put(None)

    async def wait(self, timeout: float) -> bool:
        """Wait until it is set."""
        port = self._port
        if port is None:
            return self.wait_here(timeout)
        port.waits = self
        port.look()
        if port.woken:
            timeout, port.woken = 0.0, False
        done = self.wait_here(timeout)
        port.waits = None
        port.look()
        return done

    def wait_here(self, timeout: float) -> bool:
        """Wait on this thread, outside of any flow; for a slice of time at most."""
        try:
            if timeout > 0:
                self._queue.get(timeout=min(timeout, _SLICE))
            else:
                self._queue.get_nowait()
        except Empty:
            return False
        self._set = False  # who waited looks after this, so that nothing is missed
        return True


Performed = tuple["Primitives", int, object]
"""A primitive under way: whose, on which thread, and what tells it from the next one."""


class ThreadPort:
    """The world of one flow on a thread."""

    __slots__ = (
        "_lock",
        "_scope",
        "cancelled",
        "ended",
        "lasting",
        "performs",
        "waits",
        "woken",
    )

    def __init__(self, scope: Closing | None = None, *, lasting: bool = False) -> None:
        self._scope = scope  # whose end also ends a primitive under way
        self._lock = Mutex()  # so that only that is ended, and not what the thread does next
        self.lasting = lasting  # it goes on to its end, whoever waits
        self.cancelled = False
        self.ended = False
        self.woken = False  # while it did not wait, perhaps right before it does
        self.waits: ThreadSignal | None = None
        self.performs: Performed | None = None

    now = staticmethod(now)

    @staticmethod
    def chance() -> float:
        """A random number from 0 to 1."""
        return int.from_bytes(os.urandom(4)) / 2**32

    def signal(self) -> ThreadSignal:
        """Something to wait for."""
        return ThreadSignal(self)

    async def sleep(self, seconds: float) -> None:
        """Wait, or less."""
        await ThreadSignal(self).wait(seconds)

    async def perform(self, op: Performable[T], primitives: Primitives, timeout: float) -> T:
        """Block this thread in the primitive."""
        self.look()
        self.performs = primitives, get_ident(), object()
        try:
            return op.run(primitives, timeout)
        except KviError as error:
            if self.cancelled and not self.lasting:  # perhaps by that: it says nothing of the store
                raise Cancelled from error
            scope = self._scope
            if scope is not None and scope.closed:  # perhaps that ended it: not to be tried again
                raise scope.refusal() from error
            raise
        finally:
            with self._lock:
                self.performs = None

    def look(self) -> None:
        """Raise `Cancelled` if nobody waits for the flow any more."""
        if self.cancelled and not self.lasting:
            raise Cancelled

    def wake(self) -> None:
        """Let the flow look around, now or at its next wait."""
        self.woken = True
        waits = self.waits
        if waits is not None:
            waits.set()

    def end_primitive(self, known: Performed | None = None) -> Performed | None:
        """Tell the store to end the primitive under way, if nobody waits for it; which one.

        If it is another one than is ``known`` already, nothing is told.
        """
        closed = self._scope is not None and self._scope.closed
        if not closed and (self.lasting or not self.cancelled):
            return None
        with self._lock:
            performs = self.performs
            if performs is None or (known is not None and known is not performs):
                return None
            primitives, thread, _ = performs
            tell_to_end(primitives, thread)
        return performs


def tell_to_end(primitives: Primitives, thread: int) -> None:
    """`Primitives._cancel`, whatever it raises: who ends a call, or closes, goes on.

    Not for the main thread, where an exception may be a signal handler's.
    """
    try:
        primitives._cancel(thread)
    except Exception as error:  # noqa: BLE001  (a connection may be gone by itself)
        log().debug("a call that nobody waits for goes on: %s", error, exc_info=True)


class Closing(Protocol):
    """What an errand is for: a handle, which may be closed meanwhile."""

    @property
    def closed(self) -> bool:
        """Whether it is."""

    def refusal(self) -> BaseException:
        """What the caller gets then."""


class Errand(Generic[T]):
    """A flow that runs on a thread of kvi's, and the caller who waits for it.

    ===============  ================================================================
    what happened    then
    ===============  ================================================================
    it ended         the caller takes the result, or the error
    the caller left  the flow is cancelled at its next look at the port, unless it
                     is ``lasting``; if it has a result all the same,
                     ``undo(result)`` gives that back
    ===============  ================================================================

    Both may happen at once, so each side first says its own (``port.cancelled``, ``port.ended``)
    and then looks for the other's: whoever sees both undoes.

    Once the caller has the result, it is his alone, and so is what the flow was about: the thread,
    which may be a moment longer at its last step, holds nothing of them. (Who drops a range that
    SQLite keeps a connection for may fork at once.)
    """

    __slots__ = ("_context", "_flow", "_undo", "_word", "error", "port", "scope", "value")

    def __init__(
        self,
        flow: Callable[[Port], Flow[T]],
        undo: Callable[[T], object] | None,
        scope: Closing,
        *,
        lasting: bool = False,
    ) -> None:
        self.port = ThreadPort(lasting=lasting)
        self.scope = scope
        self.value: T
        self.error: BaseException | None = None
        self._flow = [flow]  # popped by whoever runs it
        self._undo = [] if undo is None else [undo]  # popped by whoever undoes
        self._context = copy_context()
        self._word: SimpleQueue[None] = SimpleQueue()

    def __call__(self) -> None:
        """Run the flow."""
        try:
            flow = self._flow.pop()
        except IndexError:
            return
        try:
            self.value = self._context.run(run, flow(self.port))
        except BaseException as error:  # noqa: BLE001  (the caller gets it)
            self.error = error
        del flow
        self.port.ended = True
        self._word.put(None)
        if self.port.cancelled:
            self.give_back()

    def wait(self, flows: _Flows) -> bool:
        """Wait for its end, on the caller's thread; false if the handle was closed before."""
        while True:
            try:
                self._word.get(timeout=_SLICE)
            except Empty:  # a signal that came right before the wait is handled now
                if self._flow:
                    flows.start()
                continue
            if self.port.ended:
                return True
            if self.scope.closed and not self.port.lasting:
                return False

    def wake(self) -> None:
        """Let both sides look around: something was closed."""
        self.port.wake()
        self._word.put(None)

    def end_primitive(self, known: Performed | None = None) -> Performed | None:
        """As its port's."""
        return self.port.end_primitive(known)

    def give_back(self) -> None:
        """Undo what the flow did, once, if the caller has not got it."""
        if self.error is None:
            with suppress(IndexError):
                self._undo.pop()(self.value)


class _Flows:
    """Threads for errands: there is always one free, or one more is started.

    Items of ``_free`` are as many as threads that wait, less the work in the queue. Whose item is
    popped does not matter: who submits takes one, or starts a thread; who goes takes one along. An
    interrupt of who submits may leave an item too few, and a thread that waits for work which never
    comes: it waits for `LINGER`, and goes. Should the work come after that, whoever waits for it
    starts another thread (`Errand.wait`).
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._free: list[None] = []
        self.threads: set[threading.Thread] = set()
        self.stopped = False

    def submit(self, work: Callable[[], object]) -> None:
        """Run ``work`` on a thread. Of the main thread's steps, each is one in C."""
        try:
            self._free.pop()
        except IndexError:
            self.start()
        self._queue.put(work)

    def start(self) -> None:
        """Start one more thread, for work that is coming."""
        _thread.start_new_thread(self._start, ())

    def stop(self) -> None:
        self.stopped = True
        for _ in range(len(self.threads) + 1):
            self._queue.put(None)

    def _start(self) -> None:
        try:
            threading.Thread(target=self._work, name="kvi-flow", daemon=True).start()
        except RuntimeError:  # too many threads: this one will do
            self._work()

    def _work(self) -> None:
        me = threading.current_thread()
        self.threads.add(me)
        fetches = True  # somebody counts on this thread, for work that is in the queue or coming
        while True:
            if not fetches:
                self._free.append(None)
            try:
                work = self._queue.get(timeout=LINGER)
            except Empty:
                work = None
            if work is not None:
                fetches = False
                _run_safely(work)
                del work
                continue
            try:
                self._free.pop()
                break
            except IndexError:
                if fetches:  # for so long already
                    break
                fetches = True
            if self.stopped and self._queue.empty():
                break
        self.threads.discard(me)


class _Pool:
    """Threads for what nobody waits for: ``few``, and up to ``most`` while they stall."""

    def __init__(self, name: str, few: int, most: int, later: Callable[[float, Any], None]) -> None:
        self.threads: set[threading.Thread] = set()
        self._name = name
        self._few = few
        self._most = most
        self._later = later
        self._lock = Mutex()
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._pending = 0  # in the queue, or being run
        self._done = 0
        self._watched = False  # somebody looks whether it stalls
        self._stopped = False

    def submit(self, work: Callable[[], object]) -> bool:
        """Run ``work`` soon; after `stop`, never: then false.

        In a loop of the main thread, a signal's handler may raise after any step. So it is counted
        first, and watched first: one too many is a thread too many for a moment, and no harm.
        """
        with self._lock:
            if self._stopped:
                return False
            self._pending += 1
            self._queue.put(work)
            if self._pending > len(self.threads):
                if len(self.threads) < self._few:
                    self._start()
                elif not self._watched:
                    self._later(now() + STALL, partial(self._look, self._done))
                    self._watched = True
            return True

    def stop(self) -> None:
        """Run nothing more; what runs now is not waited for."""
        with self._lock:
            self._stopped = True
            for _ in self.threads:
                self._queue.put(None)

    def _look(self, done: int) -> None:
        with self._lock:
            self._watched = False
            if self._stopped or self._pending <= len(self.threads):
                return
            if self._done == done and len(self.threads) < self._most:
                self._start()
            self._watched = True
            self._later(now() + STALL, partial(self._look, self._done))

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter ends
            log().warning("%s: no thread can be started, work has to wait: %s", self._name, error)
        else:
            self.threads.add(thread)

    def _work(self) -> None:
        while not self._stopped:
            try:
                work = self._queue.get(timeout=LINGER)
            except Empty:
                with self._lock:
                    if self._queue.empty():
                        self.threads.discard(threading.current_thread())
                        return
                continue
            if work is None:
                break
            _run_safely(work)
            del work
            with self._lock:
                self._pending -= 1
                self._done += 1
        with self._lock:
            self.threads.discard(threading.current_thread())


class Threads:
    """The runtime of a handle and its views; see the module. Safe for threads."""

    def __init__(self) -> None:
        self._flows = _Flows()
        self._reads = _Pool("kvi-reads", 2, 64, self.at)
        self._work = _Pool("kvi-work", 1, 8, self.at)
        self._callbacks = _Pool("kvi-callbacks", 2, 1000, self.at)
        self._ports: set[ThreadPort | Errand[Any]] = set()
        self._inbox: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._asleep: list[None] = [None]  # empty while the scheduler runs
        self._timers: list[tuple[float, int, Callable[[], object] | Kept]] = []
        self._numbers = itertools.count()
        self._forgotten = 0  # of those kept, about
        self._stopped = False
        self._scheduler: threading.Thread | None = None
        _runtimes.add(self)

    now = staticmethod(now)

    # -- for faces --------------------------------------------------------------------------------

    def drive_here(self, flow: Callable[[Port], Flow[T]], scope: Closing | None) -> T:
        """Run a flow on this thread, and return its result. The end of ``scope`` is its end too."""
        port = ThreadPort(scope)
        self._ports.add(port)
        try:
            return run(flow(port))
        finally:
            self._ports.discard(port)

    def drive(self, errand: Errand[T]) -> T:
        """Run a flow on a thread of kvi's, and return its result.

        Closing the handle wakes the caller at once.
        """
        try:
            self._ports.add(errand)
            self._hand_over(errand)
            ended = errand.wait(self._flows)
            self._ports.discard(errand)
            if ended and errand.error is None:
                # It is the caller's alone. Nothing can come between here and there.
                value, errand.value = errand.value, None  # type: ignore[assignment]
                return value
        except BaseException:
            errand.port.cancelled = True  # first, and without a call: nothing can come before it
            self._leave(errand)
            raise
        if not ended:
            self._leave(errand)
            raise errand.scope.refusal()
        failure, errand.error = errand.error, None
        assert failure is not None  # or the value would have been returned
        try:
            raise failure
        finally:
            del failure  # it holds this frame

    def _hand_over(self, errand: Errand[Any]) -> None:
        try:
            self._flows.submit(errand)
        except RuntimeError:  # no thread can be started: this one has to do
            errand()

    def _leave(self, errand: Errand[Any]) -> None:
        errand.port.cancelled = True
        errand.port.wake()
        self.prompt(partial(self._end_primitive, errand))
        self._ports.discard(errand)
        if errand.port.ended:
            self.spawn_call(errand.give_back)

    def apart(self, function: Callable[[], T], undo: Callable[[T], object]) -> T:
        """Call a function as `drive` runs a flow, before there is a handle."""
        if get_ident() != _main or _is_importing():
            return function()

        async def flow(port: Port) -> T:
            return function()

        return self.drive(Errand(flow, undo, _NotYet()))

    # -- kvi.port.Runtime -------------------------------------------------------------------------

    def keep(self, kept: Kept, due: float) -> None:
        """Call ``kept.step`` at ``due``, and whenever it says."""
        self.post(partial(self._add, due, kept))

    def forget(self) -> None:
        """One of those kept has ended. The timers are cleaned once half of them are waste."""
        self.post(self._forget)

    def read(self, flow: Callable[[Port], Flow[Any]]) -> None:
        """Run a flow of a watch soon."""
        self._submit(self._reads, partial(_run_flow, flow))

    def spawn(self, flow: Callable[[Port], Flow[Any]]) -> None:
        """Run a flow of kvi's own soon."""
        self.spawn_call(partial(_run_flow, flow))

    def spawn_call(self, function: Callable[[], object]) -> None:
        """Run a function of kvi's own soon."""
        self._submit(self._work, function)

    def call_back(self, function: Callable[[], object]) -> None:
        """Run a function of the program soon."""
        self._submit(self._callbacks, function)

    def _submit(self, pool: _Pool, function: Callable[[], object]) -> None:
        self.prompt(partial(pool.submit, function))

    def at(self, due: float, function: Callable[[], object]) -> None:
        """Call a short function at the moment ``due``, on the scheduler's thread."""
        self.post(partial(self._add, due, function))

    def post(self, item: Callable[[], object]) -> None:
        """Call ``item`` on the scheduler's thread, now. Any thread, at any moment."""
        self._inbox.put(item)
        try:
            self._asleep.pop()
        except IndexError:
            return
        with suppress(RuntimeError):  # the interpreter ends
            _thread.start_new_thread(self._start, ())

    def mark(self) -> SimpleQueue[None] | None:
        """What has a word once all that was posted is done; ``None`` if it is."""
        if self._asleep and self._inbox.empty():
            return None
        done: SimpleQueue[None] = SimpleQueue()
        self.post(partial(done.put, None))
        return done

    def settle(self, done: SimpleQueue[None], deadline: float) -> None:
        """Wait for that word, at most until then."""
        while not self._stopped and now() < deadline:
            with suppress(Empty):
                done.get(timeout=_AGAIN)
                return

    def prompt(self, function: Callable[[], object]) -> None:
        """As `post`, but at once on any thread but the main one."""
        if get_ident() == _main:
            self.post(function)
        else:
            function()

    def wake(self) -> None:
        """Wake everybody who waits: a handle was closed."""
        for port in list(self._ports):
            port.wake()
            self._end_primitive(port)

    def again(self, function: Callable[[], object]) -> None:
        """Call a short function in a moment, on the scheduler's thread, unless all ends."""
        if not self._stopped:
            self.at(now() + _AGAIN, function)

    def _end_primitive(
        self, port: ThreadPort | Errand[Any], known: Performed | None = None
    ) -> None:
        """See that a primitive ends for which nobody waits, however many requests it makes."""
        told = port.end_primitive(known)
        if told is not None:
            self.again(partial(self._end_primitive, port, told))

    def stop(self) -> None:
        """End all threads, without waiting."""
        self._stopped = True
        self._callbacks.stop()
        self._work.stop()
        self._reads.stop()
        self._flows.stop()
        self._inbox.put(None)

    def join(self) -> None:
        """After `stop`: wait `PATIENCE` for the threads, except the one that calls this."""
        deadline = now() + PATIENCE
        for thread in self._threads():
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - now()))

    def _threads(self) -> Iterable[threading.Thread]:
        scheduler = self._scheduler
        return [
            *list(self._callbacks.threads),
            *list(self._work.threads),
            *list(self._reads.threads),
            *list(self._flows.threads),
            *([] if scheduler is None else [scheduler]),
        ]

    # -- the scheduler's thread -------------------------------------------------------------------

    def _start(self) -> None:
        thread = threading.Thread(target=self._schedule, name="kvi-scheduler", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log().warning("no thread can be started, leases are not kept: %s", error)
            self._asleep.append(None)

    def _schedule(self) -> None:
        self._scheduler = threading.current_thread()
        while not self._stopped:
            wait = LINGER
            if self._timers:
                wait = min(max(0.0, self._timers[0][0] - now()), _LONGEST)
            try:
                item = self._inbox.get(timeout=wait) if wait > 0 else self._inbox.get_nowait()
            except Empty:
                if not self._timers:
                    self._asleep.append(None)
                    if self._inbox.empty():
                        return
                    try:
                        self._asleep.pop()
                    except IndexError:  # somebody has started another
                        return
            else:
                if item is None:
                    return
                _run_safely(item)
                del item
            while self._timers and self._timers[0][0] <= now():
                due = heapq.heappop(self._timers)[2]
                if callable(due):
                    _run_safely(due)
                else:
                    self._work.submit(partial(self._step, due))

    def _add(self, due: float, item: Callable[[], object] | Kept) -> None:
        heapq.heappush(self._timers, (due, next(self._numbers), item))

    def _forget(self) -> None:
        self._forgotten += 1
        if self._forgotten * 2 > len(self._timers):
            self._timers = [
                timer for timer in self._timers if not getattr(timer[2], "ended", False)
            ]
            heapq.heapify(self._timers)
            self._forgotten = 0

    def _step(self, kept: Kept) -> None:
        due = _run_flow(kept.step)
        if due is not None and not self._stopped:
            self.keep(kept, due)


def _run_flow(flow: Callable[[Port], Flow[T]]) -> T:
    return run(flow(ThreadPort()))


class _NotYet:
    """What an errand is for that makes a handle."""

    closed = False

    def refusal(self) -> BaseException:
        raise AssertionError("what is not there cannot be closed")


def _is_importing() -> bool:
    """Whether this thread is at the import of a module, which another thread might wait for."""
    here: FrameType | None = sys._getframe()
    while here is not None:
        if here.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        here = here.f_back
    return False


def is_main() -> bool:
    """Whether this is the thread in which signal handlers run."""
    return get_ident() == _main


def _run_safely(work: Callable[[], object]) -> None:
    try:
        work()
    except Cancelled:
        pass
    except BaseException:  # noqa: BLE001  (whatever a function of the program does)
        log().exception("a call-back failed")


_runtimes: Living[Threads] = Living()


def _before_fork() -> None:
    deadline = now() + PATIENCE
    me = threading.current_thread()
    marks = [(runtime, runtime.mark()) for runtime in _runtimes if runtime._scheduler is not me]
    for runtime, done in marks:
        if done is not None:
            runtime.settle(done, deadline)


def _after_fork_in_child() -> None:
    global _main, _runtimes
    _main = threading.main_thread().ident
    _runtimes = Living()  # their threads are not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)

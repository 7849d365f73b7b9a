"""The loop driver: flows run as they are, awaited by tasks of an asyncio event loop.

=============  ===================================================================================
what           where it runs
=============  ===================================================================================
flows          in the task that awaits them: a cancelled task is a cancelled flow
primitives     awaited in the task, if their backend has a form for that
               (`Primitives._async_form`). Else on a bounded pool of threads; each is a `_Job`.
               Those that their backend names in `Primitives.in_place` cost less than the way to a
               thread, and run in the loop
closing        on a thread, to its end, whoever waits
all else       on the threads of `kvi.driver.threads`: leases are renewed and feeds polled however
               long the loop is blocked
=============  ===================================================================================

*Time* is that of leases (`kvi.clock`), which counts on while the machine sleeps. The loop's own
clock does not, so no wait of it is longer than `SLICE`: flows look again.

*A job whose caller has gone* is not begun, or told to end (`Primitives._cancel`). What it gives all
the same is given back: a feed is closed, a lease revoked, a range whose page it reads ended. What a
cancelled claim stands on is given up by its flow.

*Turns.* What is done in place never suspends, so a task that does nothing else would stop all
others, and could not be cancelled. `Loop.breathe` lets them have a turn now and then.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from kvi.clock import now
from kvi.coroutine import run
from kvi.driver.threads import Closing, ThreadPort, Threads, _Pool, tell_to_end
from kvi.errors import OutcomeUnknown, Timeout, WrongLoop
from kvi.feed import Feed
from kvi.log import log
from kvi.model import Grant
from kvi.mutex import Mutex
from kvi.policy.retry import Effect
from kvi.port import Flow, Performable, Port

if TYPE_CHECKING:
    from kvi.async_primitives import AsyncPrimitives
    from kvi.primitives import Primitives

T = TypeVar("T")

SLICE = 10.0  # seconds after which a waiting flow looks at the clock
THREADS = 32  # for primitives, of one handle
_WRITES = (Effect.WRITE, Effect.DECIDING)
_PATIENCE = 1.0  # seconds for revoking a lease that nobody has got
_TURN = 0.001  # seconds after which who never waits gives the other tasks a turn


class LoopSignal:
    """A `kvi.port.Signal`. It belongs to the running loop; any thread may set it."""

    __slots__ = ("_event", "_loop", "_port", "_thread")

    def __init__(self, port: LoopPort | None = None) -> None:
        self._port = port  # whose wakes end a wait
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()

    def set(self) -> None:
        """Wake the flow, now or at its next wait."""
        if get_ident() == self._thread:
            self._event.set()
        else:
            # A signal may end this call before it has told; then the slice of the wait ends it.
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout: float) -> bool:
        """Wait until it is set."""
        port = self._port
        if port is not None:
            port.waits = self
            if port.woken:
                timeout, port.woken = 0.0, False
        try:
            async with asyncio.timeout(min(timeout, SLICE)):
                await self._event.wait()
        except TimeoutError:
            return False
        finally:
            if port is not None:
                port.waits = None
        self._event.clear()
        return True


class LoopPort:
    """The world of one flow, which runs in a ``with`` block, in the task that calls.

    If it is cancelled at a write that was sent, the exception says so.

    Attributes:
        cancelled: its task was cancelled.
        waits: what it waits for now.
        woken: while it did not wait, perhaps right before it does.

    """

    __slots__ = (
        "_asking",
        "_job",
        "_key",
        "_lasting",
        "_loop",
        "_name",
        "_scope",
        "_sent",
        "_told",
        "cancelled",
        "waits",
        "woken",
    )

    def __init__(
        self,
        loop: Loop,
        scope: Closing,
        name: str = "",
        key: str | None = None,
        *,
        lasting: bool = False,
    ) -> None:
        self._loop = loop
        self._scope = scope
        self._name = name  # of the write that it is about, if it is one
        self._key = key
        self._lasting = lasting  # the end of the handle does not end it
        self.cancelled = self._sent = False
        self._job: _Job[Any] | None = None
        self._asking: asyncio.Task[Any] | None = None  # the task, while the store is asked
        self._told = False  # to end that, because the handle was closed
        self.waits: LoopSignal | None = None
        self.woken = False

    def __enter__(self) -> Self:
        self._loop.awaited[self] = asyncio.get_running_loop()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._loop.awaited[self]
        if kind is asyncio.CancelledError:
            self.cancelled = True
            if self._sent and self._name:
                assert error is not None
                error.add_note(
                    f"kvi: the {self._name} of {self._key!r} had been sent; it may have applied, "
                    "or may still apply"
                )

    now = staticmethod(now)
    chance = staticmethod(random.random)

    def signal(self) -> LoopSignal:
        """Something to wait for."""
        return LoopSignal(self)

    async def sleep(self, seconds: float) -> None:
        """Wait, or less."""
        await LoopSignal(self).wait(seconds)

    def perform(self, op: Performable[T], primitives: Primitives, timeout: float) -> Flow[T]:
        """Await it, or let a thread do it, unless that costs more than the thing itself."""
        if op.called in primitives.in_place:
            return self._do(op, primitives, timeout)
        if op.awaited and (form := self._loop.form_of(primitives)) is not None:
            return self._ask(op, form, timeout)
        return self._have_done(op, primitives, timeout)

    async def _do(self, op: Performable[T], primitives: Primitives, timeout: float) -> T:
        """Do it in place."""
        await self._loop.breathe()
        return op.run(primitives, timeout)

    async def _have_done(self, op: Performable[T], primitives: Primitives, timeout: float) -> T:
        """Let a thread do it."""
        job = self._job = _Job(op, primitives, now() + timeout)
        late = job.loop.call_later(timeout, job.expire)
        if not self._loop.jobs.submit(job):
            job.drop(self._scope.refusal())
        try:
            await job.settled
            return job.take()  # type: ignore[no-any-return]
        except (asyncio.CancelledError, GeneratorExit):
            self._note(op, sent=job.leave(self._loop))
            raise
        except OutcomeUnknown:
            self._note(op)
            raise
        finally:
            self._job = None
            late.cancel()
            job.let_go()

    async def _ask(self, op: Performable[T], form: AsyncPrimitives, timeout: float) -> T:
        """Await it; once the handle is closed it is cancelled, as `asyncio.timeout` would."""
        task = self._asking = asyncio.current_task()
        assert task is not None
        others = task.cancelling()
        try:
            return await op.ask(form, timeout)
        except (asyncio.CancelledError, GeneratorExit) as error:
            if self._told and isinstance(error, asyncio.CancelledError):
                self._told = False
                if task.uncancel() <= others:
                    raise self._scope.refusal() from None
            self._note(op)
            raise
        except OutcomeUnknown:
            self._note(op)
            raise
        finally:
            self._asking = None
            if self._told:
                self._told = False
                task.uncancel()

    def _note(self, op: Performable[Any], *, sent: bool = True) -> None:
        """It may have applied, if it is a write; whatever comes after it."""
        again = op.effect is Effect.REPEATABLE and op.called == "txn"  # else it is about a lease
        self._sent = self._sent or (sent and (again or op.effect in _WRITES))

    def drop(self) -> None:
        """In the loop: no thread comes any more for a call that waits for one."""
        if (job := self._job) is not None:
            job.drop(self._scope.refusal())

    def wake(self) -> None:
        """In the loop: the handle may be closed, look around."""
        job, task = self._job, self._asking
        if self._scope.closed and not self._lasting:
            if job is not None:
                job.leave(self._loop)
                job.settle(self._scope.refusal())
            if task is not None and not self._told:
                self._told = True
                task.cancel()
        if self.waits is None:
            self.woken = True
        else:
            self.waits.set()


class _Job(Generic[T]):
    """One primitive on its way through the pool. ``_lock`` guards who has it, for a few steps.

    Attributes:
        settled: what its caller waits for. It tells nothing: what a future has, the loop holds for
            as long as its task runs on, which may fork behind the end of what it was given.

    """

    def __init__(self, op: Performable[T], primitives: Primitives, deadline: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.settled: asyncio.Future[None] = self.loop.create_future()
        self._op = op
        self._primitives = primitives
        self._deadline = deadline
        self._lock = Mutex()
        self._thread: int | None = None  # that it runs on
        self._begun = False
        self._ended = False
        self._left = False  # nobody waits for it
        self._value: Any = None  # that nobody has got yet, as the next
        self._error: BaseException | None = None
        self._refusal: BaseException | None = None  # for who is not to wait for it

    def __call__(self) -> None:
        """Run it, on a thread of the pool."""
        with self._lock:
            if not self._left:
                self._begun, self._thread = True, get_ident()
        if self._begun:
            try:
                left = self._deadline - now()
                if left <= 0:
                    raise Timeout("the time was up before the store was asked")
                self._value = self._op.run(self._primitives, left)
            except BaseException as failure:  # noqa: BLE001  (the caller gets it)
                self._error = failure
        with self._lock:
            self._thread, self._ended = None, True
            left_alone = self._left
        # In a thread of the pool: no signal's exception and no cancellation comes here.
        if left_alone:
            self._free()
            return
        try:
            self.loop.call_soon_threadsafe(self.settle)
        except RuntimeError:  # the loop is closed
            self._free()

    def settle(self, refusal: BaseException | None = None) -> None:
        """In the loop: it has ended, or its caller is not to have what it gives."""
        self._refusal = self._refusal or refusal
        if not self.settled.done():
            self.settled.set_result(None)

    def take(self) -> T:
        """In the loop, once it is settled: what it gave, or raises; its caller's alone."""
        error, self._error, self._refusal = self._refusal or self._error, None, None
        if error is None:
            value, self._value = self._value, None
            return value  # type: ignore[no-any-return]
        try:
            raise error
        finally:
            del error  # it holds this frame

    def expire(self) -> None:
        """In the loop: its time is up. If all threads are busy, it was never begun."""
        self.drop(Timeout("the time was up before a thread was free to ask the store"))

    def drop(self, error: BaseException) -> None:
        """In the loop: unless it has begun, it never will; its caller gets ``error``."""
        with self._lock:
            if self._begun:
                return
            self._left = True
        self.settle(error)

    def leave(self, threads: Threads) -> bool:
        """In the loop: nobody waits for it any more; whether the store was asked."""
        with self._lock:
            self._left = True
            begun, ended = self._begun, self._ended
        threads.prompt(partial(self._end, threads))
        if ended:  # else its thread sees to it
            threads.spawn_call(self._free)
        return begun

    def let_go(self) -> None:
        """In the loop: what it was about is its caller's alone, unless that has left.

        Its thread may be a moment longer at its last step. Nothing else is done with it.
        """
        if not self._left:
            del self._op

    def _end(self, threads: Threads) -> None:
        """See that it ends, however many requests it makes."""
        with self._lock:
            if self._thread is None:
                return
            tell_to_end(self._primitives, self._thread)
        threads.again(partial(self._end, threads))

    def _free(self) -> None:
        """Give back what nobody takes: a feed, a lease, or the range that this was a page of."""
        value, self._value, self._error = self._value, None, None
        if isinstance(value, Feed):
            value.close()
        elif isinstance(value, Grant):
            with suppress(Exception):  # else it ends by itself
                self._primitives._lease_revoke(value.id, _PATIENCE)
        close = getattr(self._op, "close", None)
        if close is not None:
            close()


class Loop(Threads):
    """The runtime of a handle whose flows run in an event loop.

    Attributes:
        loop: the event loop that the handle belongs to; ``None`` before its first use.
        turn: when a task that never waits gives the others a turn, on `time.monotonic`.
        awaited: the flows that are under way, and the loop of each.

    """

    def __init__(self) -> None:
        super().__init__()
        self.jobs = _Pool("kvi-calls", 4, THREADS, self.at)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.turn = 0.0
        self._binding = Mutex()
        self._form: AsyncPrimitives | None = None
        self._form_asked = False
        self._form_closes: asyncio.Future[None] | None = None
        self.awaited: dict[LoopPort, asyncio.AbstractEventLoop] = {}
        self._tasks: set[asyncio.Future[Any]] = set()

    def bind(self, *, ending: bool = False) -> asyncio.AbstractEventLoop:
        """Belong to the running loop from now on. Raises `WrongLoop` if it is another's.

        What belongs to a loop that is closed may be ended from another.
        """
        running = asyncio.get_running_loop()
        with self._binding:
            if self.loop is None:
                self.loop = running
        if self.loop is not running and not (ending and self.loop.is_closed()):
            raise WrongLoop(
                "this handle belongs to another event loop, that of its first use; "
                "open one for each loop"
            )
        return running

    def form_of(self, primitives: Primitives) -> AsyncPrimitives | None:
        """In the loop: the asyncio form of the handle's store, if it has one."""
        if not self._form_asked:
            self._form_asked = True
            self._form = primitives._async_form()
        return self._form

    async def breathe(self) -> None:
        """Give the other tasks a turn, if it is time for that."""
        if (moment := monotonic()) >= self.turn:
            self.turn = moment + _TURN
            await asyncio.sleep(0)

    async def drive_apart(self, flow: Callable[[Port], Flow[None]]) -> None:
        """Run a flow on a thread of kvi's. It goes on to its end, whoever waits for it."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def tell(error: BaseException | None) -> None:
            if ended.done():
                return
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

        def work() -> None:
            error: BaseException | None = None
            try:
                run(flow(ThreadPort(lasting=True)))
            except BaseException as failure:  # noqa: BLE001  (the caller gets it)
                error = failure
            # On a thread of kvi's, where no signal's exception comes; the flow has ended.
            try:
                loop.call_soon_threadsafe(tell, error)
            except RuntimeError:  # the loop is closed
                pass
            finally:
                del error  # it holds this frame

        try:
            self._flows.submit(work)
        except RuntimeError:  # no thread can be started: this one has to do
            work()
        await ended

    def call_in_loop(self, function: Callable[[], object]) -> None:
        """Call a function of the program in the loop, soon; what it raises is logged. Any thread.

        What it returns is awaited there, if it can be.
        """
        loop = self.loop
        if loop is not None:
            # Kvi's threads call this; nothing is held that an interruption could leave taken.
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._call, function)

    def hold(self, task: asyncio.Future[Any]) -> None:
        """Keep a task until it has ended: the loop itself does not."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def wake(self) -> None:
        """Wake everybody who waits: a handle was closed."""
        super().wake()
        self._tell(LoopPort.wake)

    def stop(self) -> None:
        """End all threads, without waiting."""
        self.jobs.stop()
        self._tell(LoopPort.drop)  # a release, say, that is still under way
        if self._form is not None and self.loop is not None:
            # On the thread that closes, where no handler runs; else dropping the form frees it.
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._close_form)
        super().stop()

    async def form_closed(self) -> None:
        """In the loop, once the handle has ended: wait until its asyncio form has, too."""
        if self._form_closes is not None:
            await asyncio.wait((self._form_closes,))

    def _close_form(self) -> None:
        if (form := self._form) is not None:
            self._form = None
            self._form_closes = asyncio.ensure_future(form._close())
            self.hold(self._form_closes)

    def _tell(self, what: Callable[[LoopPort], None]) -> None:
        # If a signal ends this loop, whoever was not told sees it as its slice or call ends.
        # Copying is one step: calls come and go in the loop meanwhile.
        for port, loop in self.awaited.copy().items():
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(what, port)

    def _threads(self) -> list[threading.Thread]:
        return [*super()._threads(), *list(self.jobs.threads)]

    def _call(self, function: Callable[[], object]) -> None:
        try:
            result = function()
        except Exception:  # noqa: BLE001  (whatever a function of the program does)
            log().exception("a call-back failed")
            return
        if isawaitable(result):
            task = asyncio.ensure_future(result)
            self.hold(task)
            task.add_done_callback(_look_at)


def _look_at(task: asyncio.Future[Any]) -> None:
    """Log what a coroutine of the program raised."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log().error("a call-back failed", exc_info=error)

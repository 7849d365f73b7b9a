"""The loop driver: flows run as they are, awaited by tasks of an asyncio event loop.

=============  ===================================================================================
what           where it runs
=============  ===================================================================================
flows          in the task that awaits them: a cancelled task is a cancelled flow
primitives     on a bounded pool of threads; each is a `_Job`
all else       on the threads of `kvi.driver.threads`: leases are renewed, feeds polled and
               call-backs run however long the loop is blocked
=============  ===================================================================================

*Time* is that of leases (`kvi.clock`), which counts on while the machine sleeps. The loop's own
clock does not, so no wait of it is longer than `SLICE`: flows look again.

*A job whose caller has gone* is not begun, or told to end (`Primitives._cancel`); of what it gives
all the same, a feed is closed. A lease without a holder ends by itself, and what a cancelled claim
stands on is given up by its flow.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kvi.clock import now
from kvi.driver.threads import Closing, Threads, _Pool
from kvi.errors import Timeout
from kvi.feed import Feed
from kvi.mutex import Mutex
from kvi.port import Flow, Performable, Port

if TYPE_CHECKING:
    from kvi.primitives import Primitives

T = TypeVar("T")

SLICE = 10.0  # seconds after which a waiting flow looks at the clock
THREADS = 32  # for primitives, of one handle


class LoopSignal:
    """A `kvi.port.Signal`. It belongs to the running loop; any thread may set it."""

    __slots__ = ("_event", "_loop", "_thread")

    def __init__(self) -> None:
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
        try:
            async with asyncio.timeout(min(timeout, SLICE)):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class LoopPort:
    """The world of one flow in a loop."""

    __slots__ = ("_job", "_lasting", "_loop", "_scope", "_waits", "cancelled")

    def __init__(self, loop: Loop, scope: Closing, *, lasting: bool) -> None:
        self._loop = loop
        self._scope = scope
        self._lasting = lasting  # the end of the handle does not end it
        self.cancelled = False
        self._job: _Job[Any] | None = None
        self._waits: list[LoopSignal] = []

    now = staticmethod(now)
    chance = staticmethod(random.random)

    def signal(self) -> LoopSignal:
        """Something to wait for."""
        signal = LoopSignal()
        self._waits.append(signal)
        return signal

    async def sleep(self, seconds: float) -> None:
        """Wait, or less."""
        signal = self.signal()
        try:
            await signal.wait(seconds)
        finally:
            self._waits.remove(signal)

    async def perform(self, op: Performable[T], primitives: Primitives, timeout: float) -> T:
        """Let a thread do it."""
        job = self._job = _Job(op, primitives, now() + timeout)
        late = job.loop.call_later(timeout, job.expire)
        self._loop.jobs.submit(job)
        try:
            return await job.future  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            job.leave()
            raise
        finally:
            self._job = None
            late.cancel()

    def wake(self) -> None:
        """In the loop: the handle may be closed, look around."""
        job = self._job
        if job is not None and self._scope.closed and not self._lasting:
            job.leave()
            job.settle(self._scope.refusal())
        for signal in self._waits:
            signal.set()


class _Job(Generic[T]):
    """One primitive on its way through the pool. ``_lock`` guards who has it, for a few steps."""

    def __init__(self, op: Performable[T], primitives: Primitives, deadline: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()
        self._op = op
        self._primitives = primitives
        self._deadline = deadline
        self._lock = Mutex()
        self._thread: int | None = None  # that it runs on
        self._begun = False
        self._left = False  # nobody waits for it

    def __call__(self) -> None:
        """Run it, on a thread of the pool."""
        with self._lock:
            if self._left:
                return
            self._begun, self._thread = True, get_ident()
        value: Any = None
        error: BaseException | None = None
        try:
            left = self._deadline - now()
            if left <= 0:
                raise Timeout("the time was up before the store was asked")
            value = self._op.run(self._primitives, left)
        except BaseException as failure:  # noqa: BLE001  (the caller gets it)
            error = failure
        with self._lock:
            self._thread = None
        # In a thread of the pool: no signal's exception and no cancellation comes here.
        try:
            self.loop.call_soon_threadsafe(self.settle, error, value)
        except RuntimeError:  # the loop is closed
            _drop(value)

    def settle(self, error: BaseException | None, value: Any = None) -> None:
        """In the loop: it has ended."""
        if self.future.done():
            _drop(value)
        elif error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)

    def expire(self) -> None:
        """In the loop: its time is up. If all threads are busy, it was never begun."""
        with self._lock:
            if self._begun:
                return
            self._left = True
        self.settle(Timeout("the time was up before a thread was free to ask the store"))

    def leave(self) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._left = True
            if self._thread is not None:
                self._primitives._cancel(self._thread)


class Loop(Threads):
    """The runtime of a handle whose flows run in an event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = _Pool("kvi-calls", 4, THREADS, self.at)
        self._awaited: dict[LoopPort, asyncio.AbstractEventLoop] = {}

    async def drive_in_loop(
        self, flow: Callable[[Port], Flow[T]], scope: Closing, *, lasting: bool = False
    ) -> T:
        """Run a flow in the task that calls, and return its result."""
        port = LoopPort(self, scope, lasting=lasting)
        self._awaited[port] = asyncio.get_running_loop()
        try:
            return await flow(port)
        except asyncio.CancelledError:
            port.cancelled = True
            raise
        finally:
            del self._awaited[port]

    def wake(self) -> None:
        """Wake everybody who waits: a handle was closed."""
        super().wake()
        # If a signal ends this loop, whoever was not told sees it as its slice or call ends.
        for port, loop in list(self._awaited.items()):
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(port.wake)

    def stop(self) -> None:
        """End all threads, without waiting."""
        self.jobs.stop()
        super().stop()


def _drop(value: object) -> None:
    """Close what nobody takes."""
    if isinstance(value, Feed):
        value.close()

"""`AsyncLock`: mutual exclusion among tasks, handles, processes and hosts; see `kvi.flow.lock`."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from types import EllipsisType, TracebackType
from typing import Self

from kvi.aio.face import AsyncFace
from kvi.aio.held import Held
from kvi.aio.loss import AsyncLoss
from kvi.errors import KviError, LeaseLost, LockTimeout
from kvi.flow.lock import LockFace, LockFlow
from kvi.flow.loss import LossState
from kvi.policy.lock import check_wait


class AsyncLock(Held, LockFace):
    """A lock by name; made by `AsyncKvi.lock`.

    As a `kvi.Lock`: one object is held once at a time, and any task may release it. As the head of
    an ``async with`` it is held for the block, or raises `LockTimeout`. An object that is dropped
    while it holds the lock gives it up, with a `ResourceWarning`.
    """

    _failure = "the lock could not be released"

    def __init__(
        self, store: AsyncFace, flow: LockFlow, timeout: float | None, *, cancel_on_loss: bool
    ) -> None:
        self._store = store
        self._flow = flow
        self._wait = timeout
        self._cancels = cancel_on_loss
        self._guarded: _Guarded | None = None

    async def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
        """Wait for the lock, at most ``timeout`` seconds; whether it is now held.

        0 tries once, ``None`` waits without end; left out, it is that of `AsyncKvi.lock`. First
        come, first served where ``capabilities.lock_fair``. An attempt that fails, or is
        cancelled, leaves nothing that could win later.

        Raises `AlreadyHeld` if this object holds the lock or waits for it, `InvalidArgument` for a
        negative time-out, and what a call to the store raises.
        """
        store, flow = self._store, self._flow
        owner = weakref.ref(self)
        try:
            store._enter()
            wait = self._wait if isinstance(timeout, EllipsisType) else check_wait(timeout)
            return await store._drive(lambda port: flow.acquire(port, wait, owner))
        except KviError as error:
            raise store._placed(error, "acquire", flow.name)

    async def release(self, *, timeout: float | None = None) -> None:
        """Let go of the lock. Releasing again, or after `AsyncKvi.close`, does nothing.

        Raises `NotHeld` if this object never held it, `LeaseLost` (a `NotHeld`) if it was lost
        meanwhile; nothing is touched then. After any other error, or when it is cancelled, the
        lock is not held either, and free for others once its lease has ended.
        """
        await self._release("release", timeout)

    async def _release(self, operation: str, timeout: float | None, *, keep: bool = False) -> None:
        store, flow = self._store, self._flow
        if store.closed:
            return  # `close` released it; in a forked child it is not ours
        try:
            store._enter()
            seconds = store._seconds(timeout)
            await store._drive(lambda port: flow.release(port, seconds, keep=keep), lasting=True)
        except KviError as error:
            raise store._placed(error, operation, flow.name)
        except BaseException:
            if keep:
                flow.let_go()
            raise

    @property
    def lost(self) -> AsyncLoss:
        """Set once the lock is lost while it is held; releasing and closing do not set it.

        Each `acquire` that succeeds has one of its own.
        """
        return AsyncLoss(self._store, self._flow.lost)

    async def __aenter__(self) -> Self:
        if not await self.acquire():
            raise self._store._placed(
                LockTimeout(f"others held the lock for {self._wait:g} seconds"), "lock", self.name
            )
        if self._cancels and self._flow.lost is not None:
            self._guarded = _Guarded(self._flow.lost)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        guarded, self._guarded = self._guarded, None
        if guarded is not None and guarded.leave() and isinstance(error, asyncio.CancelledError):
            self._let_go()
            raise self._store._placed(
                LeaseLost("the lock was lost, so its block was cancelled"), "lock", self.name
            ) from error
        await super().__aexit__(kind, error, trace)

    async def _give_back(self) -> None:
        await self.release()

    def _let_go(self) -> None:
        if not self._store.closed:
            self._flow.let_go()

    def __del__(self) -> None:
        flow: LockFlow | None = self.__dict__.get("_flow")
        if flow is None:  # the arguments of a recipe were refused
            return
        store = self._store
        if not flow.held or store.closed:
            return
        store._runtime.post(flow.let_go)  # the locks of this thread may be taken
        warnings.warn(f"{self!r} was dropped while it was held", ResourceWarning, 2, self)


class _Guarded:
    """A block that is cancelled when its lock is lost; counted as `asyncio.timeout` counts."""

    def __init__(self, state: LossState) -> None:
        task = asyncio.current_task()
        assert task is not None  # an ``async with`` runs in one
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._before = task.cancelling()
        self._state = state
        self._left = self._cancelled = False
        state.add(self._tell, own=True)

    def leave(self) -> bool:
        """The block has ended; whether that was this one's doing alone."""
        self._left = True
        self._state.remove(self._tell)
        return self._cancelled and self._task.uncancel() <= self._before

    def _tell(self) -> None:
        """On any thread: look."""
        # Kvi's threads come here, where no handler runs, or the loop's own; nothing is held by it.
        try:
            self._loop.call_soon_threadsafe(self._look)
        except RuntimeError:  # the loop is closed
            return

    def _look(self) -> None:
        if self._state.is_set() and not self._left and not self._cancelled:
            self._cancelled = True
            self._task.cancel("the lock was lost")

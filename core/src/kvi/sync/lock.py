"""`Lock`: mutual exclusion among threads, handles, processes and hosts; see `kvi.flow.lock`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import EllipsisType
from typing import Self

from kvi.errors import KviError, LockTimeout
from kvi.flow.lock import LockFace, LockFlow
from kvi.policy.lock import check_wait
from kvi.sync.block import Held, entered
from kvi.sync.face import Face
from kvi.sync.loss import Loss


class Lock(Held, LockFace):
    """A lock by name; made by `Kvi.lock`.

    One object is held once at a time; make one per use, or share it among threads that check what
    `acquire` says. Not bound to a thread: any may release. As a context manager it is held for the
    block, or raises `LockTimeout`. An object that is dropped while it holds the lock gives it up,
    within the lock's ttl.
    """

    _failure = "the lock could not be released"

    def __init__(self, store: Face, flow: LockFlow, timeout: float | None) -> None:
        self._store = store
        self._flow = flow
        self._wait = timeout

    def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
        """Wait for the lock, at most ``timeout`` seconds; whether it is now held.

        0 tries once, ``None`` waits without end; left out, it is that of `Kvi.lock`. The
        store's own time-out bounds single calls, not the wait. First come, first served where
        ``capabilities.lock_fair``. An attempt that fails, or is interrupted, leaves nothing that
        could win later.

        Raises `AlreadyHeld` if this object holds the lock or waits for it, `InvalidArgument` for a
        negative time-out, and what a call to the store raises.
        """
        return self._acquire(timeout, weakref.ref(self))

    def _acquire(
        self, timeout: float | EllipsisType | None, owner: Callable[[], object | None]
    ) -> bool:
        store, flow = self._store, self._flow
        try:
            store._ensure_open()  # a forked child has none of the threads
            wait = self._wait if isinstance(timeout, EllipsisType) else check_wait(timeout)
            return store._drive(
                lambda port: flow.acquire(port, wait, owner),
                undo=lambda _: flow.give_up(),
                away=True,
            )
        except KviError as error:
            raise store._placed(error, "acquire", flow.name)

    def release(self, *, timeout: float | None = None) -> None:
        """Let go of the lock. Releasing again, or after `Kvi.close`, does nothing.

        Raises `NotHeld` if this object never held it, `LeaseLost` (a `NotHeld`) if it was lost
        meanwhile; nothing is touched then. After any other error the lock is not held either, and
        free for others once its lease has ended.
        """
        self._release("release", timeout)

    def _release(self, operation: str, timeout: float | None, *, keep: bool = False) -> None:
        store, flow = self._store, self._flow
        if store.closed:
            return  # `close` released it; in a forked child it is not ours
        try:
            seconds = store._seconds(timeout)
            store._drive(lambda port: flow.release(port, seconds, keep=keep), lasting=True)
        except KviError as error:
            raise store._placed(error, operation, flow.name)
        except BaseException:
            if keep:
                store._runtime.post(flow.let_go)
            raise

    @property
    def lost(self) -> Loss:
        """Set once the lock is lost while it is held; `release` and `Kvi.close` do not set it.

        Each `acquire` that succeeds has one of its own.
        """
        return Loss(self._flow.lost, self._store._scope)

    def __enter__(self) -> Self:
        if not self._acquire(..., entered(self) or weakref.ref(self)):
            raise self._store._placed(
                LockTimeout(f"others held the lock for {self._wait:g} seconds"), "lock", self.name
            )
        return self

    def _give_back(self) -> None:
        self.release()

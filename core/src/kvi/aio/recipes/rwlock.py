"""`RWLock`: many readers, or one writer; see `kvi.flow.recipes.rwlock`."""

from __future__ import annotations

from types import EllipsisType

from kvi.aio.caller import me
from kvi.aio.face import AsyncFace
from kvi.aio.lock import AsyncLock
from kvi.aio.recipes.recipe import ask
from kvi.errors import KviError
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.rwlock import READ, WRITE, Holders, ReadWriteLine, rwlock
from kvi.flow.recipes.state import Named
from kvi.policy.lease import check_ttl
from kvi.policy.lock import check_wait


class ReadLock(AsyncLock):
    """A lock for reading, made by `RWLock.read`; used as an `AsyncLock`."""

    def __init__(
        self,
        store: AsyncFace,
        flow: LockFlow,
        timeout: float | None,
        holders: Holders[ReadLock],
        *,
        cancel_on_loss: bool,
    ) -> None:
        super().__init__(store, flow, timeout, cancel_on_loss=cancel_on_loss)
        self._holders = holders

    async def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
        """Wait for the lock, as `AsyncLock.acquire`.

        Raises `AlreadyHeld` also if this task holds a lock of the same `RWLock`.
        """
        try:
            self._holders.ensure_free(me())
        except KviError as error:
            raise self._store._placed(error, "acquire", self.name)
        taken = await super().acquire(timeout)
        if taken:
            self._holders.note(me(), self)
        return taken


class WriteLock(ReadLock):
    """A lock for writing, made by `RWLock.write`; used as an `AsyncLock`."""

    async def downgrade(self, *, timeout: float | None = None) -> None:
        """Go on as a reader; see `kvi.recipes.WriteLock.downgrade`."""
        flow = self._flow
        line = ReadWriteLine.of(flow)
        step = lambda _, call: line.downgrade(flow, call)  # noqa: E731
        await ask(self._store, self.name, "downgrade", timeout, step)


class RWLock(Named):
    """A read-write lock among tasks, handles, processes and hosts.

    As a `kvi.recipes.RWLock`; a task that holds a lock of this object gets `AlreadyHeld` for
    another one.
    """

    def __init__(
        self,
        store: AsyncFace,
        name: str,
        *,
        ttl: float = 10,
        timeout: float | None = None,
        cancel_on_loss: bool = False,
    ) -> None:
        self._store = store
        self._holders: Holders[ReadLock] = Holders()
        self._cancels = cancel_on_loss
        try:
            super().__init__(rwlock(store._scope, name), store.uri)
            self._ttl = check_ttl(ttl, store.capabilities)
            self._wait = check_wait(timeout)
        except KviError as error:
            raise store._placed(error, "rwlock", name)

    def read(self) -> ReadLock:
        """A lock for reading; nothing is asked yet."""
        flow, holders = self._flow(READ), self._holders
        return ReadLock(self._store, flow, self._wait, holders, cancel_on_loss=self._cancels)

    def write(self) -> WriteLock:
        """A lock for writing; nothing is asked yet."""
        flow, holders = self._flow(WRITE), self._holders
        return WriteLock(self._store, flow, self._wait, holders, cancel_on_loss=self._cancels)

    def _flow(self, mode: str) -> LockFlow:
        return LockFlow(self._store._scope, ReadWriteLine(self._owner, mode), self._ttl)

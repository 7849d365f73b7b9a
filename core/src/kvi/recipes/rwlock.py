"""`RWLock`: many readers, or one writer; see `kvi.flow.recipes.rwlock`."""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType

from kvi.errors import KviError
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.rwlock import READ, WRITE, Holders, ReadWriteLine, rwlock
from kvi.flow.recipes.state import Named
from kvi.policy.lease import check_ttl
from kvi.policy.lock import check_wait
from kvi.recipes.recipe import ask
from kvi.sync.caller import me
from kvi.sync.face import Face
from kvi.sync.lock import Lock


class ReadLock(Lock):
    """A lock for reading, made by `RWLock.read`; used as a `kvi.Lock`."""

    def __init__(
        self, store: Face, flow: LockFlow, timeout: float | None, holders: Holders[ReadLock]
    ) -> None:
        super().__init__(store, flow, timeout)
        self._holders = holders

    def _acquire(
        self, timeout: float | EllipsisType | None, owner: Callable[[], object | None]
    ) -> bool:
        try:
            self._holders.ensure_free(me())
        except KviError as error:
            raise self._store._placed(error, "acquire", self.name)
        taken = super()._acquire(timeout, owner)
        if taken:
            self._holders.note(me(), self)
        return taken


class WriteLock(ReadLock):
    """A lock for writing, made by `RWLock.write`; used as a `kvi.Lock`."""

    def downgrade(self, *, timeout: float | None = None) -> None:
        """Go on as a reader: no writer comes between, and readers behind this one are let in.

        Raises `NotHeld` if the lock is not held, `LeaseLost` (a `NotHeld`) if it was lost. After
        any other error it is held, for reading or for writing; it can be called again.
        """
        flow = self._flow
        line = ReadWriteLine.of(flow)
        step = lambda _, call: line.downgrade(flow, call)  # noqa: E731
        ask(self._store, self.name, "downgrade", timeout, step)


class RWLock(Named):
    """A read-write lock among threads, handles, processes and hosts.

    `read` and `write` give locks, each to be held once at a time. Everybody is served in the order
    of coming: a reader waits for the writers before it, a writer for all before it, and nobody for
    who came later. There is no way from reading to writing; a thread that holds a lock of this
    object gets `AlreadyHeld` for another one.

    ``name`` is relative to the store, which may be a view or a `kvi.Backend`. ``ttl`` (seconds) is
    how long a lock outlives its holder's process, ``timeout`` (seconds) how long to wait, without
    end if ``None``. Safe for threads. Leaves nothing in the store.

    Raises `InvalidKey` for a bad name, `InvalidArgument` for other values out of range; using it
    raises `InvalidArgument` if the name is another recipe's.
    """

    def __init__(
        self, store: Face, name: str, *, ttl: float = 10, timeout: float | None = None
    ) -> None:
        self._store = store
        self._holders: Holders[ReadLock] = Holders()
        try:
            super().__init__(rwlock(store._scope, name), store.uri)
            self._ttl = check_ttl(ttl, store.capabilities)
            self._wait = check_wait(timeout)
        except KviError as error:
            raise store._placed(error, "rwlock", name)

    def read(self) -> ReadLock:
        """A lock for reading; nothing is asked yet."""
        return ReadLock(self._store, self._flow(READ), self._wait, self._holders)

    def write(self) -> WriteLock:
        """A lock for writing; nothing is asked yet."""
        return WriteLock(self._store, self._flow(WRITE), self._wait, self._holders)

    def _flow(self, mode: str) -> LockFlow:
        return LockFlow(self._store._scope, ReadWriteLine(self._owner, mode), self._ttl)

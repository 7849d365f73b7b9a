"""`AsyncLease` and `AsyncTempKey`: what the store keeps for as long as its holder renews it."""

from __future__ import annotations

import warnings

from kvi.aio.face import AsyncFace
from kvi.aio.held import Held
from kvi.aio.loss import AsyncLoss
from kvi.errors import KviError
from kvi.flow.lease import LeaseFace, LeaseFlow


class AsyncLease(Held, LeaseFace):
    """A lease; made by `AsyncKvi.lease`. Keys stored with ``lease=`` vanish together once it ends.

    As a `kvi.Lease`; it is kept alive however long the loop is blocked. One that is dropped ends,
    with a `ResourceWarning`. Safe for any number of tasks of its loop.

    Attributes:
        lost: set once the lease is lost; `revoke` and `AsyncKvi.close` do not set it.

    """

    __slots__ = ("__weakref__", "_flow", "_store", "lost")

    lost: AsyncLoss

    def __init__(self, store: AsyncFace, flow: LeaseFlow) -> None:
        self._store = store
        self._flow = flow
        self.lost = AsyncLoss(store, flow.lost)

    async def renew(self, *, timeout: float | None = None) -> float:
        """Let its time begin anew; returns the ttl. Leases that are kept alive do not need it.

        Raises `LeaseLost` if it has ended.
        """
        store, flow = self._store, self._flow
        try:
            store._enter()
            seconds = store._seconds(timeout)
            return await store._drive(lambda port: flow.renew(port, seconds))
        except KviError as error:
            raise store._placed(error, "renew", None)

    async def revoke(self, *, timeout: float | None = None) -> None:
        """End it now, and delete its keys. Revoking again, or one that is lost, does nothing.

        It counts as ended from the beginning of the call. If this raises, or is cancelled, the
        store is told as soon as it answers, and keeps the keys for the lease's time at most.
        """
        store, flow = self._store, self._flow
        if store.closed:
            return  # `close` did it; in a forked child it is not ours
        try:
            store._enter()
            seconds = store._seconds(timeout)
            await store._drive(lambda port: flow.revoke(port, seconds), lasting=True)
        except KviError as error:
            raise store._placed(error, "revoke", None)

    async def _give_back(self) -> None:
        await self.revoke()

    def _let_go(self) -> None:
        if not self._store.closed:
            self._flow.abandon()

    def __del__(self) -> None:
        flow, store = self._flow, self._store
        if flow.ended or store.closed:
            return
        store._runtime.post(flow.abandon)  # the locks of this thread may be taken
        warnings.warn(f"{self!r} was dropped without being revoked", ResourceWarning, 2, self)


class AsyncTempKey(Held):
    """A temporary key; made by `AsyncKvi.temp_key`. It has a lease of its own, kept alive.

    As a `kvi.TempKey`; one that is dropped ends, with a `ResourceWarning`.
    """

    __slots__ = ("_key", "_lease")

    def __init__(self, key: str, lease: AsyncLease) -> None:
        self._key = key
        self._lease = lease

    @property
    def key(self) -> str:
        """The key."""
        return self._key

    @property
    def lease(self) -> AsyncLease:
        """Its lease; other keys may be stored with it too."""
        return self._lease

    @property
    def alive(self) -> bool:
        """Whether the store surely keeps its lease, by the clock, at this moment."""
        return self._lease.alive

    @property
    def lost(self) -> AsyncLoss:
        """Set once the lease is lost; `close` and `AsyncKvi.close` do not set it."""
        return self._lease.lost

    async def close(self, *, timeout: float | None = None) -> None:
        """Delete the key, unless somebody has replaced it meanwhile. Again, it does nothing."""
        await self._lease.revoke(timeout=timeout)

    async def _give_back(self) -> None:
        await self.close()

    def _let_go(self) -> None:
        self._lease._let_go()

    def __repr__(self) -> str:
        return f"<AsyncTempKey {self._key!r} {'alive' if self.alive else 'ended'}>"

"""`Lease`: a promise of the store to keep some keys for as long as their holder renews it."""

from __future__ import annotations

import weakref

from kvi.errors import KviError
from kvi.flow.lease import LeaseFace, LeaseFlow
from kvi.sync.block import Block, Held
from kvi.sync.face import Face
from kvi.sync.loss import Loss


class Lease(Held, LeaseFace):
    """A lease; made by `Kvi.lease`. Keys stored with ``lease=`` vanish together once it ends.

    It ends no earlier than ``ttl`` seconds after its last renewal was sent, and no later than
    ``capabilities.lease_expiry_factor`` times that, plus a second. Safe for threads. As a context
    manager it is revoked at the end of the block.

    Attributes:
        lost: set once the lease is lost; `revoke` and `Kvi.close` do not set it.

    """

    __slots__ = ("__weakref__", "_flow", "_store", "lost")

    lost: Loss

    def __init__(self, store: Face, flow: LeaseFlow) -> None:
        self._store = store
        self._flow = flow
        self.lost = Loss(flow.lost, store._scope)

    def renew(self, *, timeout: float | None = None) -> float:
        """Let its time begin anew; returns the ttl. Leases that are kept alive do not need it.

        Raises `LeaseLost` if it has ended.
        """
        store, flow = self._store, self._flow
        try:
            store._ensure_open()
            seconds = store._seconds(timeout)
            return store._drive(lambda port: flow.renew(port, seconds))
        except KviError as error:
            raise store._placed(error, "renew", None)

    def revoke(self, *, timeout: float | None = None) -> None:
        """End it now, and delete its keys. Revoking again, or one that is lost, does nothing.

        It counts as ended from the beginning of the call. If this raises, or is interrupted, the
        store is told as soon as it answers, and keeps the keys for the lease's time at most.
        """
        store, flow = self._store, self._flow
        if store.closed:
            return  # `close` did it; in a forked child it is not ours
        try:
            seconds = store._seconds(timeout)
            store._drive(lambda port: flow.revoke(port, seconds), lasting=True)
        except KviError as error:
            raise store._placed(error, "revoke", None)

    def _abandon(self) -> None:
        """Nobody has got it."""
        self._flow.abandon()

    def _looked_at(self) -> None:
        # An exception may come before the block is entered: then it goes with this object.
        if self._flow.owner is None:
            self._flow.owner = weakref.ref(self)

    def _hold_for(self, block: weakref.ref[Block]) -> None:
        self._flow.owner = block

    def _give_back(self) -> None:
        self.revoke()

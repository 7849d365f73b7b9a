"""`TempKey`: a key that lives as long as the process that made it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from kvi.sync.block import Block, Held
from kvi.sync.lease import Lease

if TYPE_CHECKING:
    from kvi.sync.loss import Loss


class TempKey(Held):
    """A temporary key; made by `Kvi.temp_key`. It has a lease of its own, kept alive.

    Once the lease is lost it is reported, and never made up for: the key is not stored again.
    Safe for threads. As a context manager it is closed at the end of the block.
    """

    __slots__ = ("_key", "_lease")

    def __init__(self, key: str, lease: Lease) -> None:
        self._key = key
        self._lease = lease

    @property
    def key(self) -> str:
        """The key."""
        return self._key

    @property
    def lease(self) -> Lease:
        """Its lease; other keys may be stored with it too."""
        return self._lease

    @property
    def alive(self) -> bool:
        """Whether the store surely keeps its lease, by the clock, at this moment."""
        return self._lease.alive

    @property
    def lost(self) -> Loss:
        """Set once the lease is lost; `close` and `Kvi.close` do not set it."""
        return self._lease.lost

    def close(self, *, timeout: float | None = None) -> None:
        """Delete the key, unless somebody has replaced it meanwhile. Again, it does nothing."""
        self._lease.revoke(timeout=timeout)

    def _looked_at(self) -> None:
        self._lease._looked_at()

    def _hold_for(self, block: weakref.ref[Block]) -> None:
        self._lease._hold_for(block)

    def _give_back(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<TempKey {self._key!r} {'alive' if self.alive else 'ended'}>"

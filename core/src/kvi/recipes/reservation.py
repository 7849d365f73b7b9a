"""Reservations: keys that belong to whoever came first, for as long as they renew them.

A reservation is a key with a lease that nobody renews in the background: the program does, and
proves by it that it still works. What the holder stores under the key meanwhile keeps the lease, so
that no write turns a reservation into a key that stays for ever. The protocol is that of VOLTHA's
etcd client (``Reserve``, ``RenewReservation``, ``ReleaseReservation``).

*Threads.* ``_leases`` changes entry by entry without a lock: each step of a dictionary is atomic,
and what two threads of one program do with the same key at once is theirs to order.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from kvi.errors import KviError, LeaseLost, NotHeld, OutcomeUnknown, Timeout
from kvi.model import Get, Key, KeyValue, Put, Txn
from kvi.recipes.lease import Lease

if TYPE_CHECKING:
    from kvi.interface import Kvi


class Reservations:
    """The reservations that one `kvi.Backend` holds. Arguments have been checked."""

    def __init__(self, store: Kvi) -> None:
        self._store = store
        self._leases: dict[str, Lease] = {}

    def __bool__(self) -> bool:
        return bool(self._leases)

    def lease_of(self, key: str) -> int | None:
        """The lease of a reserved key, which may have ended, or ``None``."""
        lease = self._leases.get(key)
        return None if lease is None else lease.id

    def reserve(self, key: str, value: bytes, ttl: float, timeout: float) -> bytes:
        """See `kvi.Backend.reserve`."""
        store, deadline = self._store, monotonic() + timeout
        lease = Lease._grant(store, ttl, timeout, keep_alive=False)
        kept = False
        try:
            while True:
                left = deadline - monotonic()
                if left <= 0:
                    raise Timeout("the time was up before the key was reserved")
                before = self._leases.get(key)
                mine = Key(key).absent if before is None else Key(key).lease == before.id
                txn = Txn((mine,), (Put(key, value, lease.id),), (Get(key),), "reserve")
                try:
                    done = store._txn(txn, left)
                except OutcomeUnknown:
                    # It goes with the new lease if it applied; what was held before is not known
                    # to be, and ends with its own ttl.
                    if before is not None:
                        self._forget(key, before)
                    raise
                if done.succeeded:
                    kept = True
                    self._leases[key] = lease
                    if before is not None:
                        before._abandon()  # nothing hangs on it any more
                    return value
                found = done.results[0]
                if before is not None:
                    self._forget(key, before)
                if isinstance(found, KeyValue):
                    assert found.value is not None  # a get tells it
                    return found.value
        finally:
            if not kept:
                # A reservation whose fate is unknown goes with its lease.
                lease._abandon()

    def renew(self, key: str, timeout: float) -> None:
        """See `kvi.Backend.renew_reservation`."""
        lease = self._leases.get(key)
        if lease is None:
            raise NotHeld("this backend has not reserved the key; reserve it first")
        try:
            lease.renew(timeout=timeout)
        except LeaseLost:
            self._forget(key, lease)
            raise

    def release(self, key: str, timeout: float) -> None:
        """See `kvi.Backend.release_reservation`."""
        lease = self._leases.pop(key, None)
        if lease is not None:
            lease.revoke(timeout=timeout)

    def release_all(self, timeout: float) -> None:
        """See `kvi.Backend.release_all_reservations`."""
        deadline = monotonic() + timeout
        failure: KviError | None = None
        while self._leases:
            try:
                key = next(iter(self._leases))
            except (StopIteration, RuntimeError):  # another thread is at it
                continue
            try:
                self.release(key, max(0.001, deadline - monotonic()))
            except KviError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def lost(self, key: str) -> None:
        """The store says that the lease of ``key`` has ended."""
        lease = self._leases.get(key)
        if lease is not None:
            self._forget(key, lease)

    def check(self, keys: Iterable[str], timeout: float) -> None:
        """A lease has ended, perhaps one of these keys': ask, and forget those that did."""
        deadline = monotonic() + timeout
        for key in keys:
            with suppress(KviError):
                self.renew(key, max(0.001, deadline - monotonic()))

    def _forget(self, key: str, lease: Lease) -> None:
        if self._leases.get(key) is lease:
            self._leases.pop(key, None)

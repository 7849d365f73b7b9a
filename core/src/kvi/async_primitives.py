"""`AsyncPrimitives`: the asyncio form of a backend's primitives, for one that has a native client.

::

    task ── AsyncKvi.get(key) ──► GetOp ──► middleware ──► await AsyncPrimitives._get(key, timeout)

A backend that gives this form too (`Primitives._async_form`) is asked by the program's tasks
without a thread for each call. One that does not is served by a bounded pool of threads.

*Both forms of one store.* The form with ``await`` serves calls that a task waits for. All that must
go on while the event loop is blocked stays with `kvi.primitives.Primitives`, on threads of kvi's:
leases are kept alive there, watches followed, locks and leases given up.

What a primitive may rely on and must do is said in `kvi.primitives`; here, besides:

* It runs in the event loop in which `Primitives._async_form` was called, and never blocks it.
* Its task may be cancelled at any ``await``. ``CancelledError`` comes out, nothing stays taken, and
  a lease that nobody got is revoked, or ends by itself.
* ``_range`` gives a `RangeResult` whose pages are iterated with ``async for``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from kvi import derived
from kvi.capabilities import Capabilities
from kvi.model import Claim, Grant, KeyValue, RangeResult, Scan, Span, Txn, TxnResult

__all__ = ["AsyncPrimitives"]


class AsyncPrimitives(ABC):
    """A store as its backend gives it to the tasks of one event loop; see the module.

    Each method does what the one of `kvi.primitives.Primitives` of the same name does.

    Attributes:
        capabilities: what the store can do.

    """

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities

    @abstractmethod
    async def _get(self, key: str, timeout: float) -> KeyValue | None:
        """Read one entry, linearizably."""

    @abstractmethod
    async def _range(self, scan: Scan, timeout: float) -> RangeResult:
        """Read the first page of ``scan`` (its span is never empty) and promise the rest."""

    @abstractmethod
    async def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        """Run a transaction."""

    @abstractmethod
    async def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        """Grant a lease."""

    @abstractmethod
    async def _lease_renew(self, lease: int, timeout: float) -> float:
        """Let the time of a lease begin anew; returns its ttl as it was granted, never more."""

    @abstractmethod
    async def _lease_revoke(self, lease: int, timeout: float) -> None:
        """End a lease now, and with it its keys."""

    @abstractmethod
    async def _ping(self, timeout: float) -> None:
        """Return if the store can serve a linearizable read, else raise."""

    @abstractmethod
    async def _close(self) -> None:
        """Free what this form holds; called once, in its loop, after its calls have ended.

        Not called if the loop ended first: then dropping it must free all.
        """

    async def _get_at(self, key: str, revision: int, timeout: float) -> KeyValue | None:
        """Read one entry as it was at ``revision``."""
        return await derived.get_at(self, key, revision, timeout)

    async def _count(self, span: Span, timeout: float) -> int:
        """Count the keys of ``span``."""
        return await derived.count(self, span, timeout)

    async def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        """Write one entry; the new revision."""
        return await derived.put(self, key, value, lease, timeout)

    async def _delete(self, key: str, timeout: float) -> bool:
        """Delete one entry; whether it was there."""
        return await derived.delete(self, key, timeout)

    async def _delete_range(self, span: Span, timeout: float) -> int:
        """Delete the entries of ``span``."""
        return await derived.delete_range(self, span, timeout)

    async def _lock_lease(self, ttl: float, timeout: float) -> Grant:
        """Grant a lease for claims."""
        return await self._lease_grant(ttl, timeout)

    async def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        """Claim the lock ``name`` for ``lease``, or look where an earlier claim stands."""
        return await derived.claim(self, name, lease, timeout)

    async def _lock_release(self, claim: Claim, timeout: float) -> bool:
        """Take back a claim that is held or waits; whether it still stood."""
        return await derived.release(self, claim, timeout)

"""Backends over another one, for what core derives, and for stores with a mistake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import kvi
from kvi.async_primitives import AsyncPrimitives
from kvi.capabilities import Capabilities
from kvi.driver.threads import Threads
from kvi.feed import Feed, Wake, WatchSpec
from kvi.flow.scope import Scope
from kvi.model import Claim, Event, Grant, KeyValue, RangeResult, Scan, Span, Txn, TxnResult
from kvi.primitives import Primitives


def opened(primitives: Primitives) -> kvi.Kvi:
    """A handle of its own on a backend's object."""
    return kvi.Kvi(Scope(Threads(), primitives))


class Smallest(Primitives):
    """The smallest backend there can be: nine primitives, here over those of another store."""

    def __init__(self, store: kvi.Kvi, capabilities: Capabilities | None = None) -> None:
        super().__init__("smallest:", capabilities or store.capabilities, timeout=5)
        self.store = store
        self.inner = store._scope.primitives

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        return self.inner._get(key, timeout)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        return self.inner._range(scan, timeout)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        return self.inner._txn(txn, timeout)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return self.inner._watch(spec, wake, timeout)

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return self.inner._lease_grant(ttl, timeout)

    def _lease_renew(self, lease: int, timeout: float) -> float:
        return self.inner._lease_renew(lease, timeout)

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        self.inner._lease_revoke(lease, timeout)

    def _ping(self, timeout: float) -> None:
        self.inner._ping(timeout)

    def _close(self) -> None:
        self.store.close()


class Awaited(Smallest):
    """The smallest that is asked by tasks: eight primitives are awaited, the rest is derived."""

    def _async_form(self) -> AsyncPrimitives:
        return AwaitedForm(self)


class AwaitedForm(AsyncPrimitives):
    """Each primitive suspends before it asks, and again before it tells."""

    def __init__(self, store: Awaited) -> None:
        super().__init__(store.capabilities)
        self.inner = store.inner
        self.closed = 0

    async def _get(self, key: str, timeout: float) -> KeyValue | None:
        await asyncio.sleep(0)
        found = self.inner._get(key, timeout)
        await asyncio.sleep(0)
        return found

    async def _range(self, scan: Scan, timeout: float) -> RangeResult:
        await asyncio.sleep(0)
        found = self.inner._range(scan, timeout)

        async def pages() -> AsyncIterator[list[KeyValue]]:
            for entry in found:
                await asyncio.sleep(0)
                yield [entry]

        return RangeResult(found.revision, pages)

    async def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        await asyncio.sleep(0)
        done = self.inner._txn(txn, timeout)
        await asyncio.sleep(0)
        return done

    async def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        await asyncio.sleep(0)
        grant = self.inner._lease_grant(ttl, timeout)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.inner._lease_revoke(grant.id, timeout)
            raise
        return grant

    async def _lease_renew(self, lease: int, timeout: float) -> float:
        await asyncio.sleep(0)
        return self.inner._lease_renew(lease, timeout)

    async def _lease_revoke(self, lease: int, timeout: float) -> None:
        await asyncio.sleep(0)
        self.inner._lease_revoke(lease, timeout)

    async def _ping(self, timeout: float) -> None:
        await asyncio.sleep(0)
        self.inner._ping(timeout)

    async def _close(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1


class Over(Smallest):
    """A backend that passes on the derived primitives too, so that a mistake in one is alone."""

    def _count(self, span: Span, timeout: float) -> int:
        return self.inner._count(span, timeout)

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        return self.inner._put(key, value, lease, timeout)

    def _delete(self, key: str, timeout: float) -> bool:
        return self.inner._delete(key, timeout)

    def _delete_range(self, span: Span, timeout: float) -> int:
        return self.inner._delete_range(span, timeout)

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        return self.inner._lock_claim(name, lease, timeout)

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        return self.inner._lock_release(claim, timeout)

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        return self.inner._get_history(key, limit, timeout)

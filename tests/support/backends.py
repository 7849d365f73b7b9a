"""Backends over another one, for what core derives, and for stores with a mistake."""

from __future__ import annotations

import kvi
from kvi.capabilities import Capabilities
from kvi.driver.threads import Threads
from kvi.feed import Feed, Wake, WatchSpec
from kvi.flow.scope import Scope
from kvi.model import Claim, Grant, KeyValue, RangeResult, Scan, Span, Txn, TxnResult
from kvi.primitives import Primitives


def opened(primitives: Primitives) -> kvi.Kvi:
    """A handle of its own on a backend's object."""
    return kvi.Kvi(Scope.of(Threads(), primitives))


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

"""The plain wrapper, which other wrappers start from: every primitive goes to the store inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvi.errors import Closed, KviError
from kvi.interface import Kvi
from kvi.model import Claim, Grant, KeyValue, RangeResult, Scan, Span, Txn, TxnResult

if TYPE_CHECKING:
    from kvi.feed import Feed, Wake, WatchSpec
    from kvi.runtime.runtime import Runtime


class Forwarding(Kvi):
    """A store over ``inner``, without a connection of its own.

    Closing the wrapper leaves ``inner`` open unless ``owns`` is true; closing ``inner`` closes the
    wrapper.
    """

    def __init__(self, inner: Kvi, *, owns: bool = False) -> None:
        super().__init__(inner.uri, inner.capabilities, timeout=inner._timeout)
        self._inner = inner
        self._owns = owns

    @property
    def closed(self) -> bool:
        """Whether this handle or the one inside can no longer be used."""
        return self._shut is not None or self._inner.closed

    def _ensure_open(self) -> None:
        if self._shut is not None:
            raise self._refusal()
        self._inner._ensure_open()

    def _refusal(self) -> Closed:
        return super()._refusal() if self._shut is not None else self._inner._refusal()

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        return self._inner._get(key, timeout)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        return self._inner._range(scan, timeout)

    def _count(self, span: Span, timeout: float) -> int:
        return self._inner._count(span, timeout)

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        return self._inner._put(key, value, lease, timeout)

    def _delete(self, key: str, timeout: float) -> bool:
        return self._inner._delete(key, timeout)

    def _delete_range(self, span: Span, timeout: float) -> int:
        return self._inner._delete_range(span, timeout)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        return self._inner._txn(txn, timeout)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return self._inner._watch(spec, wake, timeout)

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return self._inner._lease_grant(ttl, timeout)

    def _lease_renew(self, lease: int, timeout: float) -> float:
        return self._inner._lease_renew(lease, timeout)

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        self._inner._lease_revoke(lease, timeout)

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        return self._inner._lock_claim(name, lease, timeout)

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        return self._inner._lock_release(claim, timeout)

    def _listen(self, listener: Callable[[KviError], None]) -> None:
        self._inner._listen(listener)

    def _parent_runtime(self) -> Runtime | None:
        return self._inner._running()

    def _ping(self, timeout: float) -> None:
        self._inner._ping(timeout)

    def _native(self) -> Any:
        return self._inner._native()

    def _close(self) -> None:
        if self._owns:
            self._inner.close()

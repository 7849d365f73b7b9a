"""`EtcdKvi`: a handle on an etcd v3 cluster. What it does is in `kvi_etcd.flows`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Sequence
from typing import Any

from kvi.async_primitives import AsyncPrimitives
from kvi.backend.history import HistoryFeed
from kvi.capabilities import Capabilities
from kvi.coroutine import run
from kvi.feed import Feed, Wake, WatchSpec
from kvi.late import imported
from kvi.living import Living
from kvi.model import (
    Claim,
    Event,
    Grant,
    KeyValue,
    LeaseInfo,
    RangeResult,
    Scan,
    Span,
    Txn,
    TxnResult,
)
from kvi.primitives import Primitives

from kvi_etcd import leases
from kvi_etcd.client import Tls
from kvi_etcd.driver import Connection, Credentials
from kvi_etcd.flows import EtcdFlows
from kvi_etcd.forks import begin_awaiting
from kvi_etcd.leases import MAX_TTL, MIN_TTL
from kvi_etcd.watches import Watches

CAPABILITIES = Capabilities(
    shared=True,
    durable=True,
    watch_history=True,
    snapshot_range=True,
    lock_fair=True,
    key_version=True,
    read_at_revision=True,
    atomic_range_delete="any",
    lease_min_ttl=MIN_TTL,
    lease_expiry_factor=1,
    lease_max_ttl=MAX_TTL,
    max_txn_ops=128,
    max_key=65_536,
    max_value=1_440_000,  # a cas names its key twice: 2 × 64 KiB more are still under 1.5 MiB
)

JOIN_TIMEOUT = 5.0  # seconds; the reader of the watches has nothing left to wait for

_abandoned: list[object] = []


class EtcdKvi(Primitives):
    """A handle on the etcd cluster behind ``endpoints``."""

    def __init__(
        self,
        uri: str,
        endpoints: Sequence[tuple[str, int]],
        *,
        tls: Tls | None = None,
        credentials: Credentials | None = None,
        awaits: bool = False,
        timeout: float,
    ) -> None:
        """``awaits``: tasks await their calls over `grpc.aio`; see `kvi_etcd.forks`."""
        super().__init__(uri, CAPABILITIES, timeout=timeout)
        self._connection = Connection(endpoints, tls, credentials)
        self._flows = EtcdFlows(CAPABILITIES, self._connection)
        self._watches = Watches(self._connection, self._reporter())
        self._looking_back: Living[Watches] = Living()
        self._awaits = awaits
        self._in_loop: EtcdFlows | None = None

    def _async_form(self) -> AsyncPrimitives | None:
        if not self._awaits or not begin_awaiting():
            return None
        self._in_loop = EtcdFlows(CAPABILITIES, self._connection.in_loop())
        return self._in_loop

    def _native(self) -> Any:
        """The ``etcd3.Etcd3Client`` of the current endpoint."""
        return self._connection.client

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        return run(self._flows._get(key, timeout))

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = run(self._flows._range(scan, timeout))
        return RangeResult(found.revision, lambda: _blocking(found))

    def _get_at(self, key: str, revision: int, timeout: float) -> KeyValue | None:
        return run(self._flows._get_at(key, revision, timeout))

    def _count(self, span: Span, timeout: float) -> int:
        return run(self._flows._count(span, timeout))

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        return run(self._flows._put(key, value, lease, timeout))

    def _delete(self, key: str, timeout: float) -> bool:
        return run(self._flows._delete(key, timeout))

    def _delete_range(self, span: Span, timeout: float) -> int:
        return run(self._flows._delete_range(span, timeout))

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        return run(self._flows._txn(txn, timeout))

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        def open_changes(span: Span, start: int | None, timeout: float) -> Feed:
            return self._watches.open(span, start, wake, timeout)

        return HistoryFeed(self, spec, open_changes, timeout)

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        watches = Watches(self._connection, self._reporter())
        self._looking_back.add(watches)
        try:
            read = imported("kvi_etcd.history").read_history
            found: list[Event] = read(self._connection, watches, key, limit, timeout)
            return found
        finally:
            watches.close()

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return run(self._flows._lease_grant(ttl, timeout))

    def _lease_renew(self, lease: int, timeout: float) -> float:
        return run(self._flows._lease_renew(lease, timeout))

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        return leases.told(self._connection, ids, span, timeout)

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        run(self._flows._lease_revoke(lease, timeout))

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        return run(self._flows._lock_claim(name, lease, timeout))

    def _ping(self, timeout: float) -> None:
        run(self._flows._ping(timeout))

    def _close(self) -> None:
        all_watches = [self._watches, *self._looking_back]
        for watches in all_watches:
            watches.close()
        run(self._flows._close())
        for watches in all_watches:
            watches.join(JOIN_TIMEOUT)

    def _forked(self) -> None:
        # Freeing a channel would touch threads and sockets that only the parent has.
        left = [watches.abandon() for watches in (self._watches, *self._looking_back)]
        _abandoned.append((left, self._connection.forked(), self._in_loop))


def _blocking(found: RangeResult) -> Iterator[Iterable[KeyValue]]:
    """One pass over pages that do not suspend."""
    pages = found._pages()
    if not isinstance(pages, AsyncGenerator):
        yield from pages  # type: ignore[misc]  # one page, that has been read
        return
    try:
        while (page := run(anext(pages, None))) is not None:
            yield page
    finally:
        run(pages.aclose())

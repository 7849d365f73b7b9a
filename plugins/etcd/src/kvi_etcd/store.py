r"""`EtcdKvi`: a handle on an etcd v3 cluster.

etcd gives what the contract asks for: one revision for the whole store, linearizable reads (the
default, not ``serializable``), compare-and-write transactions. What is bridged here is the range.

*Ranges.* The first page is read at the latest revision, every other one at that revision, so that
all are of one snapshot; if etcd compacts it meanwhile, iteration raises `Compacted`. The next page
starts behind the last key (its smallest successor is the key and ``\0``).

*Reversed ranges.* etcd sorts a descending range by reading all of it, so that paging down through
``n`` keys would cost ``n²``. Only the first page is asked for in descending order. For the rest,
one walk over the keys alone, upwards, finds where blocks of keys begin, and the blocks are read
from the last down, each page sorted within its block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from kvi.backend.history import HistoryFeed
from kvi.capabilities import Capabilities
from kvi.errors import PermissionDenied
from kvi.feed import Feed, Wake, WatchSpec
from kvi.model import Claim, Get, Grant, KeyValue, RangeResult, Scan, Span, Txn, TxnResult
from kvi.primitives import Primitives

from kvi_etcd import leases, wire
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.client import Tls
from kvi_etcd.driver import Connection, Credentials
from kvi_etcd.errors import AnswerTooLarge
from kvi_etcd.leases import MAX_TTL, MIN_TTL
from kvi_etcd.paging import MOST, PageSize
from kvi_etcd.watches import Watches

CAPABILITIES = Capabilities(
    shared=True,
    durable=True,
    watch_history=True,
    snapshot_range=True,
    lock_fair=True,
    key_version=True,
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


class _Page(NamedTuple):
    entries: list[KeyValue]
    more: bool
    revision: int
    next_size: PageSize


class EtcdKvi(Primitives):
    """A handle on the etcd cluster behind ``endpoints``."""

    def __init__(
        self,
        uri: str,
        endpoints: Sequence[tuple[str, int]],
        *,
        tls: Tls | None = None,
        credentials: Credentials | None = None,
        timeout: float,
    ) -> None:
        super().__init__(uri, CAPABILITIES, timeout=timeout)
        self._connection = Connection(endpoints, tls, credentials)
        self._watches = Watches(self._connection, self._reporter())

    def _native(self) -> Any:
        """The ``etcd3.Etcd3Client`` of the current endpoint."""
        return self._connection.client

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        request = pb.RangeRequest(key=key.encode())
        kvs = self._connection.call("range", request, timeout, write=False).kvs
        return wire.entry(kvs[0]) if kvs else None

    def _count(self, span: Span, timeout: float) -> int:
        low, high = wire.key_range(span)
        request = pb.RangeRequest(key=low, range_end=high, count_only=True)
        return int(self._connection.call("range", request, timeout, write=False).count)

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        request = wire.put_request(key, value, lease)
        return int(self._connection.call("put", request, timeout, write=True).header.revision)

    def _delete(self, key: str, timeout: float) -> bool:
        request = pb.DeleteRangeRequest(key=key.encode())
        return bool(self._connection.call("delete", request, timeout, write=True).deleted)

    def _delete_range(self, span: Span, timeout: float) -> int:
        low, high = wire.key_range(span)
        request = pb.DeleteRangeRequest(key=low, range_end=high)
        return int(self._connection.call("delete", request, timeout, write=True).deleted)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        request = wire.txn_request(txn)
        write = any(not isinstance(op, Get) for op in (*txn.then, *txn.otherwise))
        answer = self._connection.call("txn", request, timeout, write=write)
        return wire.txn_result(txn, answer)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        def open_changes(span: Span, start: int | None, timeout: float) -> Feed:
            return self._watches.open(span, start, wake, timeout)

        return HistoryFeed(self, spec, open_changes, timeout)

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return leases.grant(self._connection, ttl, timeout)

    def _lease_renew(self, lease: int, timeout: float) -> float:
        return leases.renew(self._connection, lease, timeout)

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        leases.revoke(self._connection, lease, timeout)

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        request = wire.claim_request(name, lease)
        answer = self._connection.call("txn", request, timeout, write=True)
        return wire.claim(name, lease, answer)

    def _ping(self, timeout: float) -> None:
        request = pb.RangeRequest(key=b"\0", count_only=True)  # linearizable, and reads no value
        with suppress(PermissionDenied):  # it is the answer of a store that serves
            self._connection.call("range", request, timeout, write=False)

    def _close(self) -> None:
        self._watches.close()
        self._connection.close()
        self._watches.join(JOIN_TIMEOUT)

    def _forked(self) -> None:
        # Freeing a channel would touch threads and sockets that only the parent has.
        _abandoned.append((self._watches.abandon(), self._connection.abandon()))

    # -- ranges: see the module's theory ----------------------------------------------------------

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        low, high = wire.key_range(scan.span)
        first = self._page(scan, low, high, PageSize(), scan.limit, 0, timeout)
        if not first.more or len(first.entries) == scan.limit:
            return RangeResult(first.revision, lambda: (first.entries,))
        pages = self._downward if scan.reverse else self._upward
        return RangeResult(first.revision, lambda: pages(scan, low, high, first, timeout))

    def _page(
        self,
        scan: Scan,
        low: bytes,
        high: bytes,
        size: PageSize,
        wanted: int | None,
        revision: int,
        timeout: float,
    ) -> _Page:
        """Read one page of at most ``size``, and of what is still ``wanted``, entries."""
        while True:
            limit = size.entries if wanted is None else min(size.entries, wanted)
            request = wire.range_request(scan, low, high, limit=limit, revision=revision)
            try:
                answer = self._connection.call("range", request, timeout, write=False)
                return _decode(scan, size, answer)
            except AnswerTooLarge:
                smaller = PageSize(limit).smaller()
                if smaller is None:
                    raise
                size = smaller

    def _upward(
        self, scan: Scan, low: bytes, high: bytes, page: _Page, timeout: float
    ) -> Iterator[list[KeyValue]]:
        """Yield ``page`` and those behind it; the next is on its way while one is used."""
        revision, wanted = page.revision, scan.limit
        while True:
            if wanted is not None:
                wanted -= len(page.entries)
            if not page.more or wanted == 0:
                yield page.entries
                return
            size = page.next_size
            limit = size.entries if wanted is None else min(size.entries, wanted)
            low = page.entries[-1].key.encode() + b"\0"
            request = wire.range_request(scan, low, high, limit=limit, revision=revision)
            pending = self._connection.begin("range", request, timeout)
            try:
                yield page.entries
                page = _decode(scan, size, pending.answer())
            except AnswerTooLarge:
                size = PageSize(limit).smaller() or size
                page = self._page(scan, low, high, size, wanted, revision, timeout)
            finally:
                pending.cancel()

    def _downward(
        self, scan: Scan, low: bytes, high: bytes, page: _Page, timeout: float
    ) -> Iterator[list[KeyValue]]:
        """Yield ``page`` and those before it."""
        yield page.entries
        revision, size = page.revision, page.next_size
        wanted = None if scan.limit is None else scan.limit - len(page.entries)
        high = page.entries[-1].key.encode()
        few = wanted is not None and wanted <= MOST  # then sorting again costs less than the walk
        blocks = [low] if few else self._blocks(low, high, revision, timeout)
        for block in reversed(blocks):
            end, more = high, True
            while more:
                page = self._page(scan, block, end, size, wanted, revision, timeout)
                if not page.entries:
                    break
                yield page.entries
                if wanted is not None:
                    wanted -= len(page.entries)
                    if not wanted:
                        return
                end, more, size = page.entries[-1].key.encode(), page.more, page.next_size
            high = block

    def _blocks(self, low: bytes, high: bytes, revision: int, timeout: float) -> list[bytes]:
        """Where blocks of at most `MOST` keys of ``[low, high)`` begin."""
        starts, keys = [low], Scan(Span(), keys_only=True)
        page = self._page(keys, low, high, PageSize(MOST), None, revision, timeout)
        while page.more:
            starts.append(page.entries[-1].key.encode() + b"\0")
            page = self._page(keys, starts[-1], high, PageSize(MOST), None, revision, timeout)
        return starts


def _decode(scan: Scan, size: PageSize, answer: pb.RangeResponse) -> _Page:
    entries = wire.entries(answer.kvs, keys_only=scan.keys_only)
    weight = sum(len(entry.key) + len(entry.value or b"") for entry in entries)
    return _Page(entries, answer.more, answer.header.revision, size.after(len(entries), weight))

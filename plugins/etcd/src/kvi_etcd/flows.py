r"""`EtcdFlows`: what the store does, once for threads and for asyncio, over calls of either kind.

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

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from kvi.async_primitives import AsyncPrimitives
from kvi.capabilities import Capabilities
from kvi.clock import now
from kvi.errors import Compacted, PermissionDenied
from kvi.model import Claim, Get, Grant, KeyValue, RangeResult, Scan, Span, Txn, TxnResult
from kvi.policy.past import future, gone

from kvi_etcd import leases, wire
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.driver import Calls
from kvi_etcd.errors import AnswerTooLarge, FutureRevision
from kvi_etcd.paging import MOST, PageSize


class _Page(NamedTuple):
    entries: list[KeyValue]
    more: bool
    revision: int
    next_size: PageSize


Pages = AsyncGenerator[list[KeyValue], None]


class EtcdFlows(AsyncPrimitives):
    """The primitives. Over calls that block, nothing of them suspends."""

    def __init__(self, capabilities: Capabilities, calls: Calls[Any]) -> None:
        """``calls`` end with this."""
        super().__init__(capabilities)
        self._calls = calls

    async def _get(self, key: str, timeout: float) -> KeyValue | None:
        request = pb.RangeRequest(key=key.encode())
        kvs = (await self._calls.ask("range", request, timeout, write=False)).kvs
        return wire.entry(kvs[0]) if kvs else None

    async def _get_at(self, key: str, revision: int, timeout: float) -> KeyValue | None:
        request = pb.RangeRequest(key=key.encode(), revision=revision)
        with _reading(revision):
            kvs = (await self._calls.ask("range", request, timeout, write=False)).kvs
        return wire.entry(kvs[0]) if kvs else None

    async def _count(self, span: Span, timeout: float) -> int:
        low, high = wire.key_range(span)
        request = pb.RangeRequest(key=low, range_end=high, count_only=True)
        return int((await self._calls.ask("range", request, timeout, write=False)).count)

    async def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        request = wire.put_request(key, value, lease)
        return int((await self._calls.ask("put", request, timeout, write=True)).header.revision)

    async def _delete(self, key: str, timeout: float) -> bool:
        request = pb.DeleteRangeRequest(key=key.encode())
        return bool((await self._calls.ask("delete", request, timeout, write=True)).deleted)

    async def _delete_range(self, span: Span, timeout: float) -> int:
        low, high = wire.key_range(span)
        request = pb.DeleteRangeRequest(key=low, range_end=high)
        return int((await self._calls.ask("delete", request, timeout, write=True)).deleted)

    async def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        request = wire.txn_request(txn)
        write = any(not isinstance(op, Get) for op in (*txn.then, *txn.otherwise))
        answer = await self._calls.ask("txn", request, timeout, write=write)
        return wire.txn_result(txn, answer)

    async def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return await leases.grant(self._calls, ttl, timeout)

    async def _lease_renew(self, lease: int, timeout: float) -> float:
        return await leases.renew(self._calls, lease, timeout)

    async def _lease_revoke(self, lease: int, timeout: float) -> None:
        await leases.revoke(self._calls, lease, timeout)

    async def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        deadline = now() + timeout
        request = wire.claim_request(name, lease)
        answer = await self._calls.ask("txn", request, timeout, write=True)
        claim = wire.claim(name, lease, answer)
        if claim is None and not answer.succeeded:  # it waits: who is before it by now?
            before, left = wire.before_request(name, answer), max(0.0, deadline - now())
            found = await self._calls.ask("range", before, left, write=False)
            claim = wire.claim_behind(name, lease, before.max_create_revision + 1, found)
        if claim is not None:
            return claim
        # Keys of somebody else's stand among them: then the whole queue has to say.
        return await super()._lock_claim(name, lease, max(0.0, deadline - now()))

    async def _ping(self, timeout: float) -> None:
        with suppress(PermissionDenied):  # it is the answer of a store that serves
            await self._calls.ask("range", wire.NOTHING, timeout, write=False)

    async def _close(self) -> None:
        await self._calls.close()

    # -- ranges: see the module's theory ----------------------------------------------------------

    async def _range(self, scan: Scan, timeout: float) -> RangeResult:
        low, high = wire.key_range(scan.span)
        at = scan.revision
        with _reading(at):
            first = await self._page(scan, low, high, PageSize(), scan.limit, at or 0, timeout)
        if at is not None:
            first = first._replace(revision=at)
        if not first.more or len(first.entries) == scan.limit:
            return RangeResult(first.revision, lambda: (first.entries,))
        pages = self._downward if scan.reverse else self._upward
        return RangeResult(first.revision, lambda: pages(scan, low, high, first, timeout))

    async def _page(
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
                answer = await self._calls.ask("range", request, timeout, write=False)
                return _decode(scan, size, answer)
            except AnswerTooLarge:
                smaller = PageSize(limit).smaller()
                if smaller is None:
                    raise
                size = smaller

    async def _upward(
        self, scan: Scan, low: bytes, high: bytes, page: _Page, timeout: float
    ) -> Pages:
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
            pending = self._calls.begin("range", request, timeout)
            try:
                yield page.entries
                page = _decode(scan, size, await pending.answer())
            except AnswerTooLarge:
                size = PageSize(limit).smaller() or size
                page = await self._page(scan, low, high, size, wanted, revision, timeout)
            finally:
                pending.cancel()

    async def _downward(
        self, scan: Scan, low: bytes, high: bytes, page: _Page, timeout: float
    ) -> Pages:
        """Yield ``page`` and those before it."""
        yield page.entries
        revision, size = page.revision, page.next_size
        wanted = None if scan.limit is None else scan.limit - len(page.entries)
        high = page.entries[-1].key.encode()
        few = wanted is not None and wanted <= MOST  # then sorting again costs less than the walk
        blocks = [low] if few else await self._blocks(low, high, revision, timeout)
        for block in reversed(blocks):
            end, more = high, True
            while more:
                page = await self._page(scan, block, end, size, wanted, revision, timeout)
                if not page.entries:
                    break
                yield page.entries
                if wanted is not None:
                    wanted -= len(page.entries)
                    if not wanted:
                        return
                end, more, size = page.entries[-1].key.encode(), page.more, page.next_size
            high = block

    async def _blocks(self, low: bytes, high: bytes, revision: int, timeout: float) -> list[bytes]:
        """Where blocks of at most `MOST` keys of ``[low, high)`` begin."""
        starts, keys = [low], Scan(Span(), keys_only=True)
        page = await self._page(keys, low, high, PageSize(MOST), None, revision, timeout)
        while page.more:
            starts.append(page.entries[-1].key.encode() + b"\0")
            page = await self._page(keys, starts[-1], high, PageSize(MOST), None, revision, timeout)
        return starts


@contextmanager
def _reading(revision: int | None) -> Iterator[None]:
    """A read at ``revision``, if there is one, has errors of its own."""
    try:
        yield
    except (Compacted, FutureRevision) as error:
        if revision is None:
            raise
        raise (gone if isinstance(error, Compacted) else future)(revision) from error


def _decode(scan: Scan, size: PageSize, answer: pb.RangeResponse) -> _Page:
    entries = wire.entries(answer.kvs, keys_only=scan.keys_only)
    weight = sum(len(entry.key) + len(entry.value or b"") for entry in entries)
    return _Page(entries, answer.more, answer.header.revision, size.after(len(entries), weight))

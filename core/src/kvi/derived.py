"""What a store can do by its nine primitives: the only copy, for stores of both forms.

A backend overrides what it can do faster, or in one step. `kvi.primitives` runs these flows over
primitives that block, `kvi.async_primitives` over some that are awaited.
"""

from __future__ import annotations

from typing import Protocol

from kvi.capabilities import Capabilities
from kvi.clock import now
from kvi.errors import KviError, OutcomeUnknown, Timeout
from kvi.model import (
    Claim,
    Delete,
    Get,
    Key,
    KeyValue,
    Pass,
    Put,
    RangeResult,
    Scan,
    Span,
    Txn,
    TxnResult,
)
from kvi.policy.lock import CLAIM, place, queue_key, queue_span, single_key


class Asked(Protocol):
    """The primitives that these flows stand on, as `kvi.primitives.Primitives` has them."""

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do."""

    async def _range(self, scan: Scan, timeout: float) -> RangeResult:
        """Read the first page of ``scan``, and promise the rest."""

    async def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        """Run a transaction."""


async def get_at(store: Asked, key: str, revision: int, timeout: float) -> KeyValue | None:
    """Read one entry as it was at ``revision``."""
    scan = Scan(Span(key, key + "\0"), limit=1, revision=revision)
    page = await Pass(await store._range(scan, timeout)).next()
    return next(iter(page or ()), None)


async def count(store: Asked, span: Span, timeout: float) -> int:
    """Count the keys of ``span``."""
    pages = Pass(await store._range(Scan(span, keys_only=True), timeout))
    counted = 0
    while (page := await pages.next()) is not None:
        counted += sum(1 for _ in page)
    return counted


async def put(store: Asked, key: str, value: bytes, lease: int | None, timeout: float) -> int:
    """Write one entry; the new revision."""
    revision = (await store._txn(Txn(then=(Put(key, value, lease),)), timeout)).revision
    assert revision is not None  # a transaction that puts has one
    return revision


async def delete(store: Asked, key: str, timeout: float) -> bool:
    """Delete one entry; whether it was there."""
    return bool((await store._txn(Txn(then=(Delete(key),)), timeout)).results[0])


async def delete_range(store: Asked, span: Span, timeout: float) -> int:
    """Delete the entries of ``span``, in as few transactions as the store's limit allows."""
    deadline = now() + timeout
    size = (store.capabilities.max_txn_ops or 1000) // store.capabilities.txn_delete_ops
    pages = Pass(await store._range(Scan(span, keys_only=True), timeout))
    waiting: list[Delete] = []
    deleted, more = 0, True
    try:
        while more:
            page = await pages.next()
            more = page is not None
            waiting += [Delete(entry.key) for entry in page or ()]
            while len(waiting) >= size or (waiting and not more):
                left = deadline - now()
                if left <= 0:
                    raise Timeout("the time was up before all of the range was deleted")
                done = await store._txn(Txn(then=tuple(waiting[:size])), left)
                deleted += sum(map(bool, done.results))
                del waiting[:size]
    except OutcomeUnknown:
        raise
    except KviError as error:
        if not deleted:
            raise
        raise OutcomeUnknown(
            f"{deleted} keys of the range were deleted before this: {error.message}"
        ) from error
    return deleted


async def claim(store: Asked, name: str, lease: int, timeout: float) -> Claim:
    """Claim the lock ``name``, or look where an earlier claim stands; see `Primitives`."""
    if not store.capabilities.lock_fair:
        return await _claim_single(store, name, lease, timeout)
    deadline = now() + timeout
    key = queue_key(name, lease)
    mine = Txn((Key(key).absent,), (Put(key, CLAIM, lease),), (Get(key),))
    done = await store._txn(mine, timeout)
    if done.succeeded:
        assert done.revision is not None  # it has written
        created = done.revision
    else:
        (found,) = done.results
        assert isinstance(found, KeyValue)  # it is not absent
        created = found.create_revision
    left = deadline - now()
    if left <= 0:
        raise Timeout("the time was up before the queue of the lock was read")
    listing = await store._range(Scan(queue_span(name), keys_only=True), left)
    assert listing.revision is not None  # stores with a queue have snapshots
    pages, queue = Pass(listing), list[KeyValue]()
    while (page := await pages.next()) is not None:
        queue += page
    return place(name, lease, created, queue, listing.revision)


async def _claim_single(store: Asked, name: str, lease: int, timeout: float) -> Claim:
    key = single_key(name)
    mine = Txn((Key(key).lease == 0,), (Put(key, b"", lease),), (Get(key),))
    done = await store._txn(mine, timeout)
    if done.succeeded:
        revision = done.revision
        assert revision is not None  # it has written
        return Claim(key, revision, Key(key).revision == revision, None, revision)
    (found,) = done.results
    assert isinstance(found, KeyValue)  # a lease holds it
    ahead = None if found.lease == lease else key
    guard = Key(key).revision == found.revision
    return Claim(key, found.revision, guard, ahead, found.revision)


async def release(store: Asked, claim: Claim, timeout: float) -> bool:
    """Take back a claim that is held or waits; whether it still stood."""
    if claim.ahead is not None and not store.capabilities.lock_fair:
        return True  # who waits for a single key leaves nothing behind
    return (await store._txn(Txn((claim.guard,), (Delete(claim.key),)), timeout)).succeeded

"""Claims for locks, made of transactions and ranges: what a backend gets for free.

Two calls claim a place in the queue: the first creates the key, the second looks who else is there.
They need not be atomic. Whoever comes later has a larger create revision, and those before can only
vanish meanwhile: a claim that the list shows to be first is first.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from kvi.errors import Timeout
from kvi.model import Claim, Delete, Get, Key, KeyValue, Put, Scan, Txn
from kvi.policy.lock import place, queue_key, queue_span, single_key

if TYPE_CHECKING:
    from kvi.interface import Kvi


def claim_in_queue(store: Kvi, name: str, lease: int, timeout: float) -> Claim:
    """`Kvi._lock_claim` with a queue."""
    deadline = monotonic() + timeout
    key = queue_key(name, lease)
    done = store._txn(
        Txn(when=(Key(key).absent,), then=(Put(key, b"", lease),), otherwise=(Get(key),)), timeout
    )
    if done.succeeded:
        assert done.revision is not None  # it has written
        created = done.revision
    else:
        (found,) = done.results
        assert isinstance(found, KeyValue)  # it is not absent
        created = found.create_revision
    left = deadline - monotonic()
    if left <= 0:
        raise Timeout("the time was up before the queue of the lock was read")
    listing = store._range(Scan(queue_span(name), keys_only=True), left)
    assert listing.revision is not None  # stores with a queue have snapshots
    return place(name, lease, created, listing, listing.revision)


def claim_single(store: Kvi, name: str, lease: int, timeout: float) -> Claim:
    """`Kvi._lock_claim` with a single key."""
    key = single_key(name)
    done = store._txn(
        Txn(when=(Key(key).lease == 0,), then=(Put(key, b"", lease),), otherwise=(Get(key),)),
        timeout,
    )
    if done.succeeded:
        assert done.revision is not None  # it has written
        return Claim(key, done.revision, Key(key).revision == done.revision, None, done.revision)
    (found,) = done.results
    assert isinstance(found, KeyValue)  # a lease holds it
    ahead = None if found.lease == lease else key
    guard = Key(key).revision == found.revision
    return Claim(key, found.revision, guard, ahead, found.revision)


def release(store: Kvi, claim: Claim, timeout: float) -> bool:
    """`Kvi._lock_release`: delete the key if it is still the one that was claimed."""
    return store._txn(Txn(when=(claim.guard,), then=(Delete(claim.key),)), timeout).succeeded

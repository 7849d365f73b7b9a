"""What a store can do: the one source of truth that code, conformance suite and docs read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Capabilities"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Where a store differs from the others, for programs that want to know.

    What a capability denies raises `kvi.NotSupported` or behaves as described here; the
    conformance suite checks either.

    Attributes:
        shared: several processes can open the same store.
        durable: what was acknowledged survives the end of every process.
        watch_history: watches see every change, in the order of revisions, and can start in the
            past. Elsewhere they see, per key, ever newer states that existed, and the last one.
        snapshot_range: all pages of a range are of one revision.
        read_at_revision: the state as it was at an earlier revision can be read.
        atomic_range: all entries of a range by prefix are of one moment, also where pages have no
            revision. True where `snapshot_range` is.
        lock_fair: locks are granted first come, first served.
        key_version: entries count their writes in ``version``.
        atomic_range_delete: which `Kvi.delete_range` is one atomic step: ``"any"``, only one by
            ``"prefix"``, or ``"no"``. A step by prefix may write a key beside it again, as it was:
            the key ``NAME/`` when the whole namespace ``NAME`` is deleted, and the key before
            the last character of a prefix that ends in NUL.
        lease_min_ttl: the shortest time to live of a lease in seconds; shorter ones are raised
            to it. 0 means any.
        lease_max_ttl: the longest time to live of a lease in seconds; ``None`` for any.
        lease_expiry_factor: a lease ends at the latest this many times its ttl, plus a second,
            after its last renewal.
        lock_delay_factor: where the store may end a lease early, it keeps a lock that was not
            released from all others for this many times the lock's ttl, and the former holder
            notices before. 0 where no lease ends early.
        max_txn_ops: how many compares plus operations of the longer branch a transaction may
            have; ``None`` for any number.
        txn_delete_ops: how many of them a `Delete` counts for whose key is not compared: 2 where
            the store needs a second operation to tell whether the key was there.
        max_key: the longest key in UTF-8 bytes, never under 4,096; ``None`` for any.
        max_value: the largest value in bytes; ``None`` for any.

    """

    shared: bool
    durable: bool
    watch_history: bool
    snapshot_range: bool
    lock_fair: bool
    key_version: bool
    atomic_range_delete: Literal["any", "prefix", "no"]
    lease_min_ttl: float
    lease_expiry_factor: float
    lease_max_ttl: float | None = None
    lock_delay_factor: float = 0.0
    atomic_range: bool = False
    read_at_revision: bool = False
    max_txn_ops: int | None
    txn_delete_ops: int = 1
    max_key: int | None
    max_value: int | None

    def __post_init__(self) -> None:
        if self.snapshot_range:
            object.__setattr__(self, "atomic_range", True)  # it is frozen for everybody else

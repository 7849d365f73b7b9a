"""`MemoryKvi`: a handle on one memory store of this process.

Every operation is one critical section on the store's lock, so that it is atomic and linearizable
by construction; nothing ever waits for longer than another thread's section, so that time-outs
have nothing to bound. An exception that a signal handler raises may end a section anywhere
(`kvi_memory.state` tells why all is whole then).
"""

from __future__ import annotations

from collections.abc import Collection
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

from kvi.capabilities import Capabilities
from kvi.late import imported
from kvi.model import (
    Claim,
    Event,
    Grant,
    KeyValue,
    LeaseInfo,
    Put,
    RangeResult,
    Scan,
    Span,
    Txn,
    TxnResult,
)
from kvi.policy.lock import CLAIM, place, queue_key
from kvi.policy.txn import Change
from kvi.primitives import Primitives

from kvi_memory.state import state_of

if TYPE_CHECKING:
    from kvi.feed import Feed, Wake, WatchSpec

CAPABILITIES = Capabilities(
    shared=False,
    durable=False,
    watch_history=True,
    snapshot_range=True,
    lock_fair=True,
    key_version=True,
    read_at_revision=True,
    atomic_range_delete="any",
    lease_min_ttl=0,
    lease_expiry_factor=1,
    max_txn_ops=None,
    max_key=None,
    max_value=None,
)


class MemoryKvi(Primitives):
    """A handle on the memory store ``name``; the data outlives it."""

    in_place = frozenset(
        (
            *("get", "store", "delete", "txn", "range", "range_page", "count", "delete_range"),
            *("lease_grant", "lease_renew", "lease_revoke", "leases"),
            *("lock_claim", "lock_release", "history", "ping"),
        )
    )

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, CAPABILITIES, timeout=timeout)
        self._state = state_of(name)
        self._state.resume()

    def _check_here(self) -> None:
        _ = self._state.lock

    # A hit costs two look-ups; all that can be wrong with a call makes it a miss, and the long way
    # then says what.
    def _short_get(self, key: str) -> KeyValue | None:
        state = self._state
        try:
            entry = state.entries[key]
        except (KeyError, TypeError):
            return None
        return entry if state.pending is None and not self.forked else None

    def _short_put(self, key: str, value: bytes | str) -> int | None:
        if type(key) is not str or type(value) is not bytes or self.forked:
            return None
        state = self._state
        with state.lock if state.busy else state.own:
            return state.replace(key, value)  # a key that is there is a good one

    def _short_range(self, scan: Scan) -> tuple[int, list[KeyValue]] | None:
        return None if self.forked else self._read_range(scan)

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        state = self._state
        with state.lock:
            state.finish()
            return state.read(key)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        revision, page = self._read_range(scan)
        return RangeResult(revision, lambda: (page,))

    def _read_range(self, scan: Scan) -> tuple[int, list[KeyValue]]:
        state = self._state
        with state.lock:
            state.finish()
            revision = state.revision
            if scan.revision is not None and scan.revision != revision:
                revision, page = scan.revision, self._past(scan, scan.revision)
            else:
                keys = state.between(scan.span, scan.reverse)
                page = list(map(state.entries.__getitem__, islice(keys, scan.limit)))
        if scan.keys_only:
            made = tuple.__new__  # KeyValue's own takes thrice as long
            page = [made(KeyValue, (key, None, *rest)) for key, _, *rest in page]
        return revision, page

    def _past(self, scan: Scan, revision: int) -> list[KeyValue]:
        """The entries of ``scan`` as they were at ``revision``. Holds the lock."""
        state = self._state
        undone = state.undone(revision, scan.span)
        present = (key for key in state.between(scan.span, scan.reverse) if key not in undone)
        changed = sorted((k for k, old in undone.items() if old is not None), reverse=scan.reverse)
        keys = islice(merge(present, changed, reverse=scan.reverse), scan.limit)
        return [undone.get(key) or state.entries[key] for key in keys]

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        with self._state.lock:
            self._state.finish()
            changes = self._state.changes_of(key, limit)
        return [change.event(revision) for revision, change in changes]

    def _count(self, span: Span, timeout: float) -> int:
        state = self._state
        with state.lock:
            state.finish()
            return state.count(span)

    def _delete_range(self, span: Span, timeout: float) -> int:
        state = self._state
        with state.lock:
            state.finish()
            changes = tuple(Change(k, state.entries[k], None) for k in state.between(span))
            if changes:
                state.commit(changes)
        return len(changes)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        state = self._state
        with state.lock:
            state.finish()
            return state.transact(txn)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        history, own = imported("kvi.backend.history"), imported("kvi_memory.changes")
        state = self._state

        def changes(span: Span, start: int | None, timeout: float) -> Feed:
            feed: Feed = own.MemoryChanges(state, span, start, wake)
            return feed

        watch: Feed = history.HistoryFeed(self, spec, changes, timeout)
        return watch

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        with self._state.lock:
            self._state.finish()
            return Grant(self._state.grant(ttl), ttl)

    def _lease_renew(self, lease: int, timeout: float) -> float:
        with self._state.lock:
            self._state.finish()
            return self._state.renew(lease)

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        with self._state.lock:
            self._state.finish()
            return self._state.told(ids, span)

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        with self._state.lock:
            self._state.finish()
            self._state.end(lease)

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        state, key = self._state, queue_key(name, lease)
        with state.lock:
            state.finish()
            if state.read(key) is None:
                state.transact(Txn(then=(Put(key, CLAIM, lease),)))
            created = state.entries[key].create_revision
            return place(name, lease, created, state.before(name, created), state.revision)

    def _ping(self, timeout: float) -> None:
        """A memory store always answers."""

    def _close(self) -> None:
        """The data stays; the handle holds nothing else."""

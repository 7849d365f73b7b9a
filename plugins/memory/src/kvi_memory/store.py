"""`MemoryKvi`: a handle on one memory store of this process.

Every operation is one critical section on the store's lock, so that it is atomic and linearizable
by construction; nothing ever waits for longer than another thread's section, so that time-outs
have nothing to bound. An exception that a signal handler raises may end a section anywhere
(`kvi_memory.state` tells why all is whole then).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from kvi.capabilities import Capabilities
from kvi.interface import BaseKvi
from kvi.model import Grant, KeyValue, LeaseRef, Put, RangeResult, Scan, Span, Txn, TxnResult
from kvi.policy.txn import Change, choose, perform

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
    atomic_range_delete="any",
    lease_min_ttl=0,
    lease_expiry_factor=1,
    max_txn_ops=None,
    max_key=None,
    max_value=None,
)


class MemoryKvi(BaseKvi):
    """A handle on the memory store ``name``; the data outlives it."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, CAPABILITIES, timeout=timeout)
        self._state = state_of(name)
        with self._state.lock:
            self._state.resume()

    # A hit costs two look-ups; all that can be wrong with a call makes it a miss, and the general
    # path then says what.
    def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        """Read one entry; ``None`` if the key is not there. Linearizable."""
        if self._shut is None and timeout is None:
            state = self._state
            try:
                entry = state.entries[key]
            except (KeyError, TypeError):
                pass
            else:
                if state.pending is None:
                    return entry
        return super().get(key, timeout=timeout)

    def store(
        self,
        key: str,
        value: bytes | str,
        *,
        lease: int | LeaseRef | None = None,
        timeout: float | None = None,
    ) -> int:
        """Create or replace an entry; returns the new revision."""
        plain = type(key) is str and lease is None and timeout is None
        if plain and type(value) is bytes and self._shut is None:
            state = self._state
            with state.lock:
                revision = state.replace(key, value)  # a key that is there is a good one
            if revision is not None:
                return revision
        return super().store(key, value, lease=lease, timeout=timeout)

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        state = self._state
        with state.lock:
            state.finish()
            return state.read(key)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        state = self._state
        with state.lock:
            state.finish()
            keys = state.between(scan.span, scan.reverse)
            page = list(map(state.entries.__getitem__, islice(keys, scan.limit)))
            revision = state.revision
        if scan.keys_only:
            page = [entry._replace(value=None) for entry in page]
        return RangeResult(revision, lambda: (page,))

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
            succeeded, branch = choose(txn, state.read)
            for op in branch:
                if isinstance(op, Put) and op.lease is not None:
                    assert isinstance(op.lease, int)  # check_txn took the id
                    state.alive(op.lease)
            effect = perform(branch, state.read, state.revision + 1)
            if effect.changes:
                state.commit(effect.changes)
            return TxnResult(succeeded, state.revision, effect.results)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:

        from kvi.backend.history import HistoryFeed

        from kvi_memory.changes import MemoryChanges

        state = self._state

        def changes(span: Span, start: int | None, timeout: float) -> Feed:
            return MemoryChanges(state, span, start, wake)

        return HistoryFeed(self, spec, changes, timeout)

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        with self._state.lock:
            self._state.finish()
            return Grant(self._state.grant(ttl), ttl)

    def _lease_renew(self, lease: int, timeout: float) -> float:
        with self._state.lock:
            self._state.finish()
            return self._state.renew(lease)

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        with self._state.lock:
            self._state.finish()
            self._state.end(lease)

    def _ping(self, timeout: float) -> None:
        """A memory store always answers."""

    def _close(self) -> None:
        """The data stays; the handle holds nothing else."""

"""The store: nine primitives (`kvi.primitives.Primitives`), and two more for speed, on a journal.

Everything hard is elsewhere: what a transaction does in `kvi.policy.txn`, what the state is in
`kvi_directory.state`, who may look at it and when in `kvi_directory.journal`. Locks and temporary
keys are made by `Primitives` out of these primitives.
"""

from __future__ import annotations

from pathlib import Path

from kvi.backend.tail import Tail
from kvi.backend.undo import range_by_undo
from kvi.capabilities import Capabilities
from kvi.errors import LeaseLost
from kvi.feed import Feed, Wake, WatchSpec
from kvi.model import Event, Grant, KeyValue, Put, RangeResult, Scan, Span, Txn, TxnResult
from kvi.policy.txn import Change, choose, perform
from kvi.primitives import Primitives

from kvi_directory.journal import Journal
from kvi_directory.state import State

CAPABILITIES = Capabilities(
    shared=True,
    durable=True,
    watch_history=True,
    snapshot_range=True,
    lock_fair=True,
    key_version=True,
    read_at_revision=True,
    atomic_range_delete="any",
    lease_min_ttl=0,
    lease_expiry_factor=1,
    max_txn_ops=None,
    max_key=64 * 1024,
    max_value=1024 * 1024,  # a record is written and read in one piece
)


class DirectoryKvi(Primitives):
    """A handle on a directory."""

    def __init__(self, uri: str, folder: Path, *, history: int, timeout: float) -> None:
        super().__init__(uri, CAPABILITIES, timeout=timeout)
        self._journal = Journal(folder, history)
        self._tail = Tail(self, self._since, self._journal.wait)

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        with self._journal.reading(timeout) as state:
            return state.entries.get(key)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        if scan.revision is not None:
            return range_by_undo(scan, self._page, self._since, timeout)
        revision, page = self._page(scan, timeout)
        return RangeResult(revision, lambda: [page])

    def _page(self, scan: Scan, timeout: float) -> tuple[int, list[KeyValue]]:
        with self._journal.reading(timeout) as state:
            return state.revision, state.select(scan)  # entries never change

    def _count(self, span: Span, timeout: float) -> int:
        with self._journal.reading(timeout) as state:
            return state.count(span)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        with self._journal.writing(timeout) as state:
            succeeded, branch = choose(txn, state.entries.get)
            for operation in branch:
                if isinstance(operation, Put) and operation.lease is not None:
                    _ensure_alive(operation.lease, state)
            effect = perform(branch, state.entries.get, state.revision + 1)
            if effect.changes:
                self._journal.commit(state.changed(effect.changes))
            return TxnResult(succeeded, state.revision, effect.results)

    def _delete_range(self, span: Span, timeout: float) -> int:
        with self._journal.writing(timeout) as state:
            gone = [Change(entry.key, entry, None) for entry in state.select(Scan(span))]
            if gone:
                self._journal.commit(state.changed(gone))
            return len(gone)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return self._tail.watch(spec, wake, timeout)

    def _since(self, revision: int, limit: int, timeout: float) -> list[Event]:
        with self._journal.reading(timeout) as state:
            return state.since(revision, limit)

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        with self._journal.writing(timeout) as state:
            lease = state.last_lease + 1
            self._journal.commit(state.renewed(lease, ttl))
            return Grant(lease, ttl)

    def _lease_renew(self, lease: int, timeout: float) -> float:
        with self._journal.writing(timeout) as state:
            _ensure_alive(lease, state)
            ttl = state.leases[lease].ttl
            self._journal.commit(state.renewed(lease, ttl))
            return ttl

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        with self._journal.writing(timeout) as state:
            if lease in state.leases:
                self._journal.commit(state.ended(lease))

    def _ping(self, timeout: float) -> None:
        with self._journal.reading(timeout):
            pass

    def _close(self) -> None:
        self._tail.stop()
        self._journal.close()
        self._tail.close()

    def _forked(self) -> None:
        self._tail.forked()
        self._journal.forked()


def _ensure_alive(lease: object, state: State) -> None:
    if lease not in state.leases:
        raise LeaseLost("no lease with this id is alive")

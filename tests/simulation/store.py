"""`SimStore`: the model as a backend, and its feeds.

The primitives act on the model at once; it is the network that takes time (`network`). What flows
run synchronously, a poll of a feed, asks through ``online``, which raises while nothing gets
through. Where the capabilities say ``watch_history``, the real `HistoryFeed` stands between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kvi.backend.history import HistoryFeed
from kvi.backend.polling import changes_between
from kvi.capabilities import Capabilities
from kvi.errors import Compacted
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.model import Event, EventType, Grant, KeyValue, RangeResult, Scan, Span, Txn, TxnResult
from kvi.policy.txn import Change
from kvi.primitives import Primitives

from tests.simulation.model import Model
from tests.simulation.world import Process

_BATCH = 3  # events: small, so that consumers meet the ends of batches

QUEUE = Capabilities(
    shared=True,
    durable=True,
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
SINGLE = Capabilities(
    shared=True,
    durable=True,
    watch_history=False,
    snapshot_range=False,
    atomic_range=True,
    lock_fair=False,
    key_version=True,
    atomic_range_delete="any",
    lease_min_ttl=0,
    lease_expiry_factor=1,
    max_txn_ops=None,
    max_key=None,
    max_value=None,
)
EARLY = replace(SINGLE, lock_delay_factor=1.0)  # leases may end before their time


class SimStore(Primitives):
    """The model, as one process sees it.

    Attributes:
        online: raises what a call of this process meets now, for what asks synchronously.
        between: may change the model between two steps of a feed.

    """

    def __init__(
        self, model: Model, process: Process, capabilities: Capabilities, timeout: float
    ) -> None:
        super().__init__(f"sim:{process.name}", capabilities, timeout=timeout)
        self.model = model
        self.process = process
        self.closed = False
        self.online: Callable[[], object] = _nothing
        self.between: Callable[[], object] = _nothing

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        return self.model.entries.get(key)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        page = self.model.listing(scan.span)[: scan.limit]
        return RangeResult(self.model.revision, lambda: (page,))

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        return self.model.transact(txn)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        if self.capabilities.watch_history:
            return HistoryFeed(_Asked(self), spec, partial(SimChanges, self, wake), timeout)
        return SimStates(self, spec, wake)

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return Grant(self.model.grant(ttl), ttl)

    def _lease_renew(self, lease: int, timeout: float) -> float:
        return self.model.renew(lease)

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        self.model.revoke(lease)

    def _ping(self, timeout: float) -> None:
        """It is there."""

    def _close(self) -> None:
        self.closed = True


class _Asked(SimStore):
    """What a feed asks of its store, across the network."""

    def __init__(self, store: SimStore) -> None:
        super().__init__(store.model, store.process, store.capabilities, store.timeout)
        self._store = store

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        self._store.online()
        found = super()._range(scan, timeout)
        self._store.between()
        return found


class _Woken(Feed):
    """A feed that the model wakes, a while after a commit that concerns it."""

    def __init__(self, store: SimStore, span: Span, wake: Wake) -> None:
        self._store = store
        self._span = span
        self._wake = wake
        self.process = store.process
        store.model.watchers[self] = None

    def close(self) -> None:
        """End it."""
        self._store.model.watchers.pop(self, None)

    def changed(self, changes: tuple[Change, ...] | None) -> None:
        """Wake the watch, if it is concerned."""
        if changes is None or any(change.key in self._span for change in changes):
            world = self.process.world
            draw = world.random.random
            late = draw() * 0.01 if draw() < 0.9 else draw()
            world.at(world.time + late, self.process, self._wake)


class SimChanges(_Woken):
    """A cursor into the model's history."""

    def __init__(
        self, store: SimStore, wake: Wake, span: Span, start: int | None, timeout: float
    ) -> None:
        store.online()
        model = store.model
        self._epoch = model.epoch
        self._told = model.revision if start is None else start - 1
        self.revision = self._told
        if self._told < model.compacted:
            raise Compacted("the history no longer goes back to this revision")
        super().__init__(store, span, wake)
        if self._told < model.revision:
            wake()

    def poll(self, timeout: float) -> Batch | None:
        """The next changes."""
        self._store.online()
        model = self._store.model
        if self._epoch != model.epoch:
            raise Compacted("an older state was restored")
        if self._told >= model.revision:
            return None
        events, self._told = model.events(self._span, self._told, _BATCH)
        return Batch(events, self._told)


class SimStates(_Woken):
    """Ever newer states, for a store without history."""

    def __init__(self, store: SimStore, spec: WatchSpec, wake: Wake) -> None:
        store.online()
        super().__init__(store, spec.span, wake)
        entries = store.model.listing(spec.span)
        self._known = {entry.key: entry for entry in entries}
        self._initial = entries if spec.initial else None
        if not spec.initial:
            self.revision = store.model.revision

    def poll(self, timeout: float) -> Batch | None:
        """What is different from the last look."""
        self._store.online()
        revision = self._store.model.revision
        if self._initial is not None:
            put, entries = EventType.PUT, self._initial
            self._initial = None
            initial = [Event(put, e.key, e.value, e.revision, initial=True) for e in entries]
            return Batch(initial, revision)
        entries = self._store.model.listing(self._span)
        events = changes_between(self._known, entries, revision)
        self._known = {entry.key: entry for entry in entries}
        return Batch(events, revision) if events else None


def _nothing() -> None:
    """Nothing stands in the way, nothing happens meanwhile."""

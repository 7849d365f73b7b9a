"""The store behind the network: revisions, leases, history; and what an operator does to it.

*Leases.* Their time begins anew with a renewal, and with a change of leader. The store ends one at
the moment that it is over, or up to `SLACK` later: ``capabilities.lease_expiry_factor`` is 1, and
the contract leaves a second.

*Histories.* ``compact`` forgets the changes up to a revision. ``restore`` brings an older state
back: revisions begin to grow from there once more, in another ``epoch``, and leases get their full
time. Whoever follows the changes of another epoch is told that they are gone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from kvi.errors import Compacted, LeaseLost
from kvi.model import Event, EventType, KeyValue, LeaseRef, Put, Span, Txn, TxnResult
from kvi.policy.txn import Change, choose, perform

from tests.simulation.world import Process, World

SLACK = 0.9  # seconds that an end of a lease may be late

Commit = tuple[int, tuple[Change, ...]]


class Watcher(Protocol):
    """What follows the commits."""

    @property
    def process(self) -> Process:
        """Whose it is."""

    def changed(self, changes: tuple[Change, ...] | None) -> None:
        """There may be something to see."""


class ServerLease:
    """A lease as the store has it."""

    __slots__ = ("deadline", "id", "ttl")

    def __init__(self, lease: int, ttl: float, deadline: float) -> None:
        self.id = lease
        self.ttl = ttl
        self.deadline = deadline


class Model:
    """One store.

    Attributes:
        entries: by key.
        revision: of the last commit.
        history: commits from behind ``compacted`` on.
        compacted: changes up to this revision are gone.
        epoch: how often an older state was restored.
        leases: by id.
        watchers: told of the changes of each commit; ``None``: look anew.
        witness: called with each commit, for what must hold.

    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.entries: dict[str, KeyValue] = {}
        self.revision = 0
        self.history: list[Commit] = []
        self.compacted = 0
        self.epoch = 0
        self.leases: dict[int, ServerLease] = {}
        self.watchers: dict[Watcher, None] = {}
        self.witness: Callable[[int, tuple[Change, ...]], object] | None = None
        self.down = False
        self._granted = 0

    # -- keys -------------------------------------------------------------------------------------

    def transact(self, txn: Txn) -> TxnResult:
        """Run a transaction."""
        succeeded, branch = choose(txn, self.entries.get)
        for op in branch:
            if isinstance(op, Put) and op.lease is not None:
                assert not isinstance(op.lease, LeaseRef)  # checked arguments have its id
                self._lease(op.lease)
        effect = perform(branch, self.entries.get, self.revision + 1)
        if effect.changes:
            self.commit(effect.changes)
        return TxnResult(succeeded, self.revision, effect.results)

    def commit(self, changes: tuple[Change, ...]) -> None:
        """Apply changes whose entries have the next revision."""
        self.revision += 1
        for key, _, new in changes:
            if new is None:
                del self.entries[key]
            else:
                self.entries[key] = new
        self.history.append((self.revision, changes))
        if self.witness is not None:
            self.witness(self.revision, changes)
        for watcher in list(self.watchers):
            watcher.changed(changes)

    def put(self, key: str, value: bytes) -> int:
        """Write a key, beside any client."""
        self.transact(Txn(then=(Put(key, value),)))
        return self.revision

    def delete(self, *keys: str) -> None:
        """Delete keys that are there, in one revision."""
        changes = tuple(Change(key, self.entries[key], None) for key in keys)
        if changes:
            self.commit(changes)

    def listing(self, span: Span) -> list[KeyValue]:
        """The entries of a span, in key order."""
        entries = self.entries
        return [entries[key] for key in sorted(entries) if key in span]

    def events(self, span: Span, told: int, most: int) -> tuple[list[Event], int]:
        """Changes after ``told``, in whole revisions, and up to which revision they reach."""
        if told < self.compacted:
            raise Compacted("the history no longer goes back to this revision")
        found: list[Event] = []
        for revision, changes in self.history[told - self.compacted :]:
            told = revision
            for key, old, new in changes:
                if key in span:
                    kind = EventType.DELETE if new is None else EventType.PUT
                    value = None if new is None else new.value
                    found.append(Event(kind, key, value, revision, old))
            if len(found) >= most:
                break
        return found, told

    # -- leases -----------------------------------------------------------------------------------

    def grant(self, ttl: float) -> int:
        """Grant a lease."""
        self._granted += 1
        lease = ServerLease(self._granted, ttl, self.world.time + ttl)
        self.leases[lease.id] = lease
        self._watch_end(lease)
        return lease.id

    def renew(self, lease: int) -> float:
        """Let its time begin anew."""
        found = self._lease(lease)
        found.deadline = self.world.time + found.ttl
        return found.ttl

    def revoke(self, lease: int) -> None:
        """End it, and its keys."""
        if self.leases.pop(lease, None) is not None:
            self.delete(*(key for key in sorted(self.entries) if self.entries[key].lease == lease))

    def _lease(self, lease: int) -> ServerLease:
        found = self.leases.get(lease)
        if found is None:
            raise LeaseLost("the lease has ended")
        return found

    def _watch_end(self, lease: ServerLease) -> None:
        draw = self.world.random.random
        late = SLACK * draw() if draw() < 0.5 else 0.0
        self.world.at(lease.deadline + late, None, partial(self._look, lease))

    def _look(self, lease: ServerLease) -> None:
        if self.leases.get(lease.id) is not lease or self.down:
            return
        if lease.deadline <= self.world.time:
            if self.world.story is not None:
                self.world.tell("store", f"lease {lease.id} ends")
            self.revoke(lease.id)
        else:
            self._watch_end(lease)

    # -- what an operator does --------------------------------------------------------------------

    def begin_anew(self) -> None:
        """A change of leader, or a restart: every lease gets its full time."""
        self.down = False
        for lease in self.leases.values():
            lease.deadline = self.world.time + lease.ttl
            self._watch_end(lease)
        for watcher in list(self.watchers):
            watcher.changed(None)

    def compact(self, revision: int) -> None:
        """Forget the changes up to this revision."""
        forgotten = revision - self.compacted
        if forgotten > 0:
            del self.history[:forgotten]
            self.compacted = revision

    def snapshot(self) -> tuple[dict[str, KeyValue], int]:
        """A state to restore later."""
        return dict(self.entries), self.revision

    def restore(self, state: tuple[dict[str, KeyValue], int]) -> None:
        """Bring an older state back."""
        self.entries, self.revision = dict(state[0]), state[1]
        self.history.clear()
        self.compacted = self.revision
        self.epoch += 1
        self.begin_anew()

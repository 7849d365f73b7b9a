"""Stores whose leases and temporary keys are broken."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import count
from typing import Any

from kvi.clock import now
from kvi.errors import InvalidArgument, LeaseLost
from kvi.feed import Feed, Wake, WatchSpec
from kvi.model import Get, Grant, KeyValue, LeaseInfo, Operation, Put, Span, Txn
from kvi.ops import DeleteOp, PutOp
from kvi.policy.lease import LeaseState
from kvi.policy.txn import Change
from kvi.sync.kvi import Kvi
from kvi.sync.lease import Lease
from kvi.sync.temp_key import TempKey
from kvi_memory.state import MemoryState

from tests.conformance.broken.correct import Correct, Handle, Making, Results, broken


@broken("lease.ttl")
class HalfTheTime(Correct):
    """A lease is granted for half of the time that was asked for."""

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return super()._lease_grant(ttl / 2, timeout)


@broken("lease.ttl")
class LeaseByItsTimeout(Correct):
    """A lease is granted for as long as the call may take."""

    class face(Handle):
        def lease(self, ttl: float, *, timeout: float | None = None, **options: Any) -> Lease:
            return super().lease(timeout or ttl, timeout=timeout, **options)


@broken("lease.ttl")
class WholeSeconds(Correct):
    """The time to live is rounded down."""

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return super()._lease_grant(max(1.0, float(int(ttl))), timeout)


@broken("lease.invalid")
class AnyTtl(Correct):
    """A ttl that is not positive is the shortest one."""

    class face(Handle):
        def lease(self, ttl: float, **options: Any) -> Lease:
            return super().lease(1.0 if isinstance(ttl, int) and ttl <= 0 else ttl, **options)


@broken("lease.invalid", lease_max_ttl=1000)
class LongestIsShorter(Correct):
    """A ttl above the declared maximum is shortened to it."""

    class face(Handle):
        def lease(self, ttl: float, **options: Any) -> Lease:
            return super().lease(1000 if ttl == 1001 else ttl, **options)


class _Revoking(Correct):
    def end(self, keys: set[str]) -> None:
        """End the keys of a lease. The state's lock is held."""

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        with self._state.lock:
            found = self._state._leases.get(lease)
            if found is not None:
                keys, found.keys = found.keys, set()
                for key in keys:
                    self._state.entries[key] = self._state.entries[key]._replace(lease=None)
                self.end(keys)
        super()._lease_revoke(lease, timeout)


@broken("lease.keys", "lease.revoke")
class KeysStay(_Revoking):
    """The keys of a revoked lease stay."""


@broken("lease.keys")
class KeysGoQuietly(_Revoking):
    """The keys of a revoked lease vanish without events."""

    def end(self, keys: set[str]) -> None:
        self._state._keys = None
        for key in keys:
            del self._state.entries[key]


@broken("lease.keys")
class KeysGoOneByOne(_Revoking):
    """Each key of a revoked lease vanishes at a revision of its own."""

    def end(self, keys: set[str]) -> None:
        for key in keys:
            self._state.commit((Change(key, self._state.entries[key], None),))


@broken("lease.keys")
class OthersGoToo(_Revoking):
    """With a lease vanish keys that were stored without one."""

    def end(self, keys: set[str]) -> None:
        old = dict(self._state.entries)
        self._state.commit(tuple(Change(key, entry, None) for key, entry in old.items()))


@broken("lease.last-write")
class HoldsOn(Correct):
    """A key that is written without lease keeps the one that it had."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        return super().apply([self.keeping(op) for op in branch])

    def keeping(self, op: Operation) -> Operation:
        old = self._state.read(op.key)
        if isinstance(op, Put) and op.lease is None and old is not None:
            return Put(op.key, op.value, old.lease)
        return op


@broken("lease.last-write")
class FirstLeaseKeeps(HoldsOn):
    """A key that is written with another lease stays with the first one."""

    def keeping(self, op: Operation) -> Operation:
        old = self._state.read(op.key)
        if isinstance(op, Put) and op.lease is not None and old is not None and old.lease:
            return Put(op.key, op.value, old.lease)
        return op


@broken("lease.last-write")
class SecondWriteFrees(HoldsOn):
    """A key that is written again with its lease is permanent."""

    def keeping(self, op: Operation) -> Operation:
        old = self._state.read(op.key)
        if isinstance(op, Put) and op.lease is not None and old is not None:
            return Put(op.key, op.value)
        return op


@broken("lease.last-write")
class LeaseUntold(Correct):
    """Entries do not tell their lease."""

    def show(self, entry: KeyValue) -> KeyValue:
        return entry._replace(lease=None)


@broken("lease.not-early", "lease.kept-alive")
class EndsEarly(Correct):
    """A lease ends after a third of its time."""

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return Grant(super()._lease_grant(ttl / 3, timeout).id, ttl)


@broken("lease.not-early", "lease.kept-alive")
class RenewsNothing(Correct):
    """A renewal succeeds, and changes nothing."""

    def _lease_renew(self, lease: int, timeout: float) -> float:
        with self._state.lock:
            return self._state.alive(lease).ttl


@broken("lease.not-late")
class EndsLate(Correct):
    """A lease ends long after its time."""

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return Grant(super()._lease_grant(ttl + 3, timeout).id, ttl)


@broken("lease.not-late", "lease.keys", "store.ttl")
class EndsWhenSomebodyLooks(Correct):
    """A lease ends with the next write, or while a watch is open; else its keys can be read on."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self._state.__class__ = Lazy

    def apply(self, branch: Sequence[Operation]) -> Results:
        if not all(isinstance(op, Get) for op in branch):
            self._state._end_due()
        return super().apply(branch)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        with self._state.lock:
            MemoryState.reap(self._state)
        return super()._watch(spec, wake, timeout)


class Lazy(MemoryState):
    """Nobody is there to end what is over, unless there are watches."""

    __slots__ = ()

    def reap(self) -> None:
        if self.watched:
            super().reap()


@broken("lease.keys", "lease.revoke")
class TakesOnePage(_Revoking):
    """Of the keys of a revoked lease a thousand vanish, and the others stay."""

    def end(self, keys: set[str]) -> None:
        page = sorted(keys)[:1000]
        self._state.commit(tuple(Change(key, self._state.entries[key], None) for key in page))


@broken("lease.keys")
class ExpiryTakesOnePage(Correct):
    """Of the keys of a lease that ends by itself a thousand vanish, and the others stay."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self._state.__class__ = PageOfKeys


class PageOfKeys(MemoryState):
    """Of a lease that is over, one page is looked at."""

    __slots__ = ()

    def end(self, lease: int) -> None:
        found = self._leases.get(lease)
        if found is not None and found.deadline <= now():
            for key in sorted(found.keys)[1000:]:
                self.entries[key] = self.entries[key]._replace(lease=None)
                found.keys.discard(key)
        super().end(lease)


@broken("lease.not-late", "temp-key.crash", "lock.crash")
class NeverEnds(Correct):
    """A lease that nobody renews does not end."""

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return Grant(super()._lease_grant(ttl + 1000, timeout).id, ttl)


class _Making(Making):
    makes = "lease"


@broken("lease.alive")
class CountsFromTheAnswer(Correct):
    """A renewal tells its ttl and the time that it took, as if it counted from the answer."""

    def _lease_renew(self, lease: int, timeout: float) -> float:
        sent = now()
        ttl = super()._lease_renew(lease, timeout)
        return ttl + now() - sent


@broken("lease.alive")
class LockCountsOnMore(Correct):
    """A renewal of a lock's lease tells more than was granted."""

    def _lock_lease(self, ttl: float, timeout: float) -> Grant:
        granted = super()._lock_lease(ttl, timeout)
        self.notes[granted.id] = True
        return granted

    def _lease_renew(self, lease: int, timeout: float) -> float:
        return super()._lease_renew(lease, timeout) * (2 if lease in self.notes else 1)


@broken("lease.alive")
class AlwaysAlive(_Making):
    """A lease says that it is alive, whatever the time."""

    class kind(Lease):
        __slots__ = ()

        @property
        def alive(self) -> bool:
            return True


@broken("lease.alive")
class AliveUntilNoticed(_Making):
    """A lease is alive until the store has told that it is not."""

    class kind(Lease):
        __slots__ = ()

        @property
        def alive(self) -> bool:
            return self._flow.term.state is not LeaseState.ENDED


@broken("lease.lost")
class RevokingIsALoss(_Making):
    """One's own revocation is told as a loss."""

    class kind(Lease):
        __slots__ = ()

        def revoke(self, *, timeout: float | None = None) -> None:
            self._flow.lost.set()
            super().revoke(timeout=timeout)


@broken("lease.lost")
class LossUntold(_Making):
    """A loss is not told."""

    kind = Lease

    def made(self, handle: Kvi, made: Lease) -> Lease:
        made._flow.lost.end()
        return made


@broken("lease.gone")
class DeadLeaseIsNone(Correct):
    """A write with a lease that is gone is done without it."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        leases = self._state._leases
        return super().apply(
            [
                Put(op.key, op.value) if isinstance(op, Put) and op.lease not in leases else op
                for op in branch
            ]
        )


@broken("lease.gone")
class DeadLeaseIsAnArgument(Correct):
    """A lease that is gone is told as a bad argument."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        try:
            return super().apply(branch)
        except LeaseLost as error:
            raise InvalidArgument("no such lease") from error


@broken("lease.revoke", "temp-key.lives", "handle.close-frees")
class RevokesNothing(Correct):
    """A revoked lease goes on until its time is up."""

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        pass


@broken("lease.revoke")
class BlockKeepsIt(_Making):
    """The end of a `with` block leaves the lease alone."""

    class kind(Lease):
        __slots__ = ()

        def _leave(self, *error: object) -> None:
            pass


@broken("lease.kept-alive")
class NobodyRenews(_Making):
    """A lease is not kept alive."""

    kind = Lease

    def made(self, handle: Kvi, made: Lease) -> Lease:
        made._flow._kept = False
        return made


@broken("lease.kept-alive", "lease.not-late")
class RenewsWhatItShallNot(Correct):
    """A lease is kept alive, whatever `keep_alive` says."""

    class face(Handle):
        def lease(self, ttl: float, *, keep_alive: bool = True, **options: Any) -> Lease:
            return super().lease(ttl, keep_alive=True, **options)


@broken("lease.keys")
class ExpiresQuietly(Correct):
    """The keys of a lease that has expired vanish without events."""

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        granted = super()._lease_grant(ttl, timeout)
        self._state.__class__ = Quiet
        return granted


class Quiet(MemoryState):
    """Of a lease that ends by itself only the keys tell."""

    __slots__ = ()

    def end(self, lease: int) -> None:
        found = self._leases.get(lease)
        if found is not None and found.deadline <= now():
            self._keys = None
            for key in found.keys:
                del self.entries[key]
            found.keys.clear()
        super().end(lease)


@broken("lease.listed")
class ListsNothing(Correct):
    """No lease is told of."""

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        return []


@broken("lease.listed")
class ListsTheEnded(Correct):
    """Leases that have ended are told of."""

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        granted = super()._lease_grant(ttl, timeout)
        self.notes[granted.id] = ttl
        return granted

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        found = super()._leases(ids, span, timeout)
        ended = self.notes.keys() - {lease.id for lease in found}
        return [*found, *(LeaseInfo(id, self.notes[id], None, []) for id in ended)]


@broken("lease.listed")
class ListsFormerKeys(Correct):
    """A lease is told of with each key that it ever had."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        for op in branch:
            if isinstance(op, Put) and op.lease is not None:
                self.notes.setdefault(op.lease, set()).add(op.key)
        return super().apply(branch)

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        found = super()._leases(ids, span, timeout)
        if span is None:
            return found
        had = {lease.id: self.notes.get(lease.id, ()) for lease in found}
        return [
            lease._replace(keys=sorted(key for key in had[lease.id] if key in span))
            for lease in found
        ]


@broken("lease.listed")
class ListsKeysOfAll(Correct):
    """A lease is told of with keys that nobody has asked for."""

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        return super()._leases(ids, None if span is None else Span(), timeout)


@broken("lease.listed")
class ListsAllLeases(Correct):
    """Whoever asks for some leases is told of all."""

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        return super()._leases(None, span, timeout)


class _MakingKeys(Making):
    makes = "temp_key"
    kind = TempKey


@broken("temp-key.lives")
class NotTemporary(_MakingKeys):
    """A temporary key has no lease."""

    def made(self, handle: Kvi, made: TempKey) -> TempKey:
        handle.store(made.key, "permanent")
        return made


@broken("temp-key.lives")
class GivesWay(Correct):
    """A temporary key leaves what was under its key."""

    class face(Handle):
        def temp_key(self, key: str, *args: Any, **options: Any) -> TempKey:
            before = self.get(key)
            made = super().temp_key(key, *args, **options)
            if before is not None and before.value is not None:
                self.store(key, before.value)
            return made


@broken("temp-key.crash")
class StoredAgain(_MakingKeys):
    """A temporary key whose lease was lost is stored again."""

    class kind(TempKey):
        __slots__ = ()

        @property
        def alive(self) -> bool:
            if self.lost.is_set():
                self._lease._store._do(PutOp(self.key, b"again", None), None)
            return super().alive


@broken("temp-key.own")
class TakesOthersWithIt(_MakingKeys):
    """Closing a temporary key deletes what others have put in its place."""

    class kind(TempKey):
        __slots__ = ()

        def _leave(self, *error: Any) -> None:
            super()._leave(*error)
            self._lease._store._do(DeleteOp(self.key), None)


class _Indexed(Correct):
    """The keys of each lease are noted, and a note goes only when its key is written over."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        written = [op.key for op in branch if isinstance(op, Put) and self._state.read(op.key)]
        results = super().apply(branch)
        for keys in self.notes.values():
            keys.difference_update(written)
        for op in branch:
            if isinstance(op, Put) and op.lease is not None:
                self.notes.setdefault(op.lease, set()).add(op.key)
        return results


@broken("lease.last-write", "lease.keys")
class TakesANewLife(_Indexed):
    """A key that is deleted and created again without a lease goes with the one that it had."""

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        for key in self.notes.pop(lease, ()):
            self._delete(key, timeout)
        super()._lease_revoke(lease, timeout)


@broken("lease.gone")
class OtherwiseIsNotChecked(Correct):
    """In `otherwise` a lease that is gone is none."""

    def choose(self, txn: Txn) -> tuple[bool, tuple[Operation, ...]]:
        succeeded, branch = super().choose(txn)
        return succeeded, branch if succeeded else tuple(map(self.mended, branch))

    def mended(self, op: Operation) -> Operation:
        gone = isinstance(op, Put) and op.lease not in self._state._leases
        return Put(op.key, op.value) if isinstance(op, Put) and gone else op


@broken("lease.gone")
class IdsAgain(Correct):
    """The id of a lease that has ended is given out again."""

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        with self._state.lock:
            self._state.finish()
            leases = self._state._leases
            id = next(number for number in count(1) if number not in leases)
            granted = self._state.grant(ttl)
            leases[id] = leases.pop(granted)
            due = self._state._due
            due[:] = sorted((end, id if one == granted else one) for end, one in due)
        return Grant(id, ttl)


@broken("lease.revoke")
class RevokingTheEndedRaises(Correct):
    """Revoking a lease that has ended is an error."""

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        with self._state.lock:
            self._state.finish()
            self._state.alive(lease)
        super()._lease_revoke(lease, timeout)

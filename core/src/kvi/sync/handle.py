"""`Handle`: the only way to change an entity; and changes of several in one transaction.

*What a handle knows.* ``_seen`` is the entity as it was when the handle was made, or last read or
written through it. Every write is conditional on exactly that revision, so that nobody's change is
ever overwritten unseen, whatever the cache learnt in between.

*What becomes of a write*, for each handle that takes part::

    applied          the cache and the handle have the new state; staged changes are done
    Conflict         nothing applied; both have what the same transaction read; staged changes gone
    OutcomeUnknown   the cache is in doubt: it is read again before it is used; staged changes gone
    BadRecord        nothing applied; as Conflict, but what was read instead is no entity
    any other error  nothing applied; all is as it was, staged changes wait for another commit
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, overload

from kvi.errors import (
    Closed,
    Conflict,
    InvalidArgument,
    KviError,
    NotFound,
    NotHeld,
    OutcomeUnknown,
)
from kvi.loader.cache import Hold, Known, Slot
from kvi.loader.records import Records, Wanted
from kvi.model import Compare, Delete, Get, Key, KeyValue, Operation, Put, Txn
from kvi.ops import TxnOp
from kvi.policy.txn import check_items, check_txn
from kvi.port import Port

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["Handle", "Handles", "Ref", "commit", "lock_many"]

K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")


class _Change(NamedTuple, Generic[V]):
    """What is to become of an entity: an encoded new value, or ``None`` for its end."""

    value: V | None
    data: bytes | None


class Handle(Generic[V]):
    """An entity that is locked for its holder; made by `kvi.Loader` and `lock_many`.

    No other thread of the process gets the entity until `unlock`, `delete` or the end of the
    ``with`` block. Other processes are not held off; what they change is found out at the next
    write, which raises `Conflict`. A handle is for the thread that got it. After `unlock` every use
    raises `NotHeld`, but `unlock` again does nothing.

    Attributes:
        key: where the entity is stored, in the loader's store.

    """

    __slots__ = ("_change", "_hold", "_records", "_seen", "_slot", "key")

    def __init__(
        self, records: Records[Any, V], slot: Slot[Any, V], hold: Hold, seen: Known[V] | None
    ) -> None:
        self.key = records.key_of(slot.name)
        self._records = records
        self._slot = slot
        self._hold: Hold | None = hold  # while it lives, nobody else gets the entity
        self._seen = seen
        self._change: _Change[V] | None = None

    # -- reading ----------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether the entity is there, as far as this handle has seen. Raises as `refresh` does."""
        return self._look() is not None

    @property
    def value(self) -> V:
        """The entity: shared with all readers, and never to be modified; give `update` a new one.

        Raises `NotFound` if it is not there, and what `refresh` does.
        """
        return self._present().value

    @property
    def revision(self) -> int:
        """The revision that ``value`` is of. Raises as ``value`` does."""
        return self._present().revision

    def refresh(self, *, timeout: float | None = None) -> None:
        """Read the entity from the store, for this handle and the cache.

        Happens by itself at the next use after an `OutcomeUnknown`. What is staged is dropped if
        the entity has changed, for it rests on what was. Raises `BadRecord`, and what `kvi.Kvi.get`
        does.
        """
        self._ensure_held()
        store = self._records.store
        try:
            seconds = store._seconds(timeout)
            store._drive(lambda port: self._refresh(port, seconds))
        except KviError as error:
            raise store._placed(error, "get", self.key)

    async def _refresh(self, port: Port, timeout: float) -> None:
        known = await self._records.read(port, self._slot, timeout)
        if (known and known.revision) != (self._seen and self._seen.revision):
            self._change = None
        self._seen = known

    # -- writing at once --------------------------------------------------------------------------

    def update(self, entity: V, *, timeout: float | None = None) -> None:
        """Store a new state of the entity, if it is as this handle has seen it.

        The store is written first, and the cache only then, with this very object; others read
        what the codec makes of it. Replaces what was staged. Raises
        `Conflict` if somebody changed or deleted it meanwhile (``value`` is new then), `NotFound`
        if it is not there, `InvalidArgument` if ``entity`` is another one or cannot be stored, and
        what `kvi.Kvi.store` does.
        """
        self._present()
        self.stage(entity)
        self._write("update", timeout)

    def delete(self, *, timeout: float | None = None) -> None:
        """Delete the entity, if it is as this handle has seen it, and unlock it.

        Those who wait for it find it gone. Raises as `update` does, and is locked still then.
        """
        self.stage_delete()
        self._write("delete", timeout)
        self.unlock()

    # -- writing together -------------------------------------------------------------------------

    def stage(self, entity: V) -> None:
        """Prepare a new state of the entity, or the first one, for `kvi.commit`.

        Nothing is sent. Replaces what was staged; `unlock` drops it. Raises `InvalidArgument` if
        ``entity`` is another one or cannot be stored.
        """
        self._look()
        self._change = _Change(entity, self._records.encode(self._slot.name, entity))

    def stage_delete(self) -> None:
        """Prepare the end of the entity for `kvi.commit`. Raises `NotFound` if it is not there."""
        self._present()
        self._change = _Change(None, None)

    # -- its end ----------------------------------------------------------------------------------

    def unlock(self) -> None:
        """Let others have the entity; what is staged is dropped. Again, it does nothing."""
        hold = self._hold
        if hold is not None:
            records = self._records
            records.cache.release(self._slot, hold)
            self._hold = self._change = None
            if self._slot.known is None and not records.store.closed:
                # elsewhere: this may be a finalizer that runs while this thread has the lock
                records.store._runtime.post(partial(records.cache.tidy, self._slot))

    def __enter__(self) -> Self:
        self._ensure_held()
        return self

    def __exit__(self, *raised: object) -> None:
        self.unlock()

    def __repr__(self) -> str:
        state = (
            "unlocked" if self._hold is None else "locked" if self._seen else "locked, not there"
        )
        return f"<Handle {self.key!r} {state} {self._records.store.uri}>"

    # -- for loaders and commits ------------------------------------------------------------------

    def _ensure_held(self) -> None:
        if self._hold is None:
            raise NotHeld("this handle was unlocked: lock the entity again", key=self.key)

    def _look(self) -> Known[V] | None:
        self._ensure_held()
        if self._slot.doubt:
            self.refresh()
        return self._seen

    def _present(self) -> Known[V]:
        known = self._look()
        if known is None:
            raise NotFound("the entity is not there", key=self.key, uri=self._records.store.uri)
        return known

    def _write(self, operation: str, timeout: float | None) -> None:
        try:
            _run([self], (), timeout, operation)
        except KviError as error:
            raise self._records.store._placed(error, operation, self.key)
        finally:
            self._change = None

    def _unchanged(self) -> Compare:
        seen = self._look()
        return Key(self.key).absent if seen is None else Key(self.key).revision == seen.revision

    def _operation(self) -> Operation | None:
        change = self._change
        if change is None:
            return None
        return Delete(self.key) if change.data is None else Put(self.key, change.data)

    def _applied(self, revision: int | None, told: int) -> None:
        change, self._change = self._change, None
        cache = self._records.cache
        if change is None:
            return
        if change.data is None:
            if self._seen is not None:
                cache.deleted(self._slot, self._seen.revision)
            self._seen = None
        elif revision is None:
            cache.doubted(self._slot)  # a store that does not tell: it is read at the next use
        else:
            self._seen = Known(change.value, revision)  # type: ignore[arg-type]
            cache.wrote(self._slot, self._seen, told)

    def _found(self, entry: KeyValue | None, told: int) -> bool:
        """Take what a refused commit has read instead; whether it is news."""
        before, self._change = self._seen, None
        found = self._records.decoded(entry)
        if not self._records.cache.read(self._slot, found, told):
            self._records.cache.doubted(self._slot)
        self._seen = None if found is None else found[1]
        return (before and before.revision) != (self._seen and self._seen.revision)

    def _lost_sight(self) -> None:
        self._change = None
        self._records.cache.doubted(self._slot)


class Handles(Mapping[K, Handle[V]]):
    """Several entities of one loader that are locked for their holder, by id.

    Made by `kvi.Loader.lock_many`. An id that is not there has a handle whose ``exists`` is false.
    """

    def __init__(self, handles: dict[K, Handle[V]]) -> None:
        self._handles = handles

    def __getitem__(self, id: K) -> Handle[V]:
        return self._handles[id]

    def __iter__(self) -> Iterator[K]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def commit(self, *, when: Iterable[Compare] = (), timeout: float | None = None) -> None:
        """Apply what is staged on these handles, as `kvi.commit` does."""
        commit(*self._handles.values(), when=when, timeout=timeout)

    def unlock(self) -> None:
        """Unlock them all."""
        _unlock(self._handles.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.unlock()


@dataclass(frozen=True, slots=True)
class Ref(Generic[V]):
    """An entity that may be there or not, for `lock_many`; made by `kvi.Loader.at`."""

    records: Records[Any, V]
    id: Any


def commit(
    *handles: Handle[Any], when: Iterable[Compare] = (), timeout: float | None = None
) -> None:
    """Apply what is staged on the handles, of one or several loaders: all of it, or nothing.

    One transaction, if every entity is as its handle has seen it; also those that have nothing
    staged, so that a decision that rests on an entity may name it. ``when`` adds conditions, such
    as the ``guard`` of a lock. The handles stay locked.

    Raises `Conflict` if one was changed meanwhile, or a condition fails: nothing was applied, the
    handles and caches are fresh, and staged changes are dropped, for they rest on what was;
    `BadRecord` likewise, if what one was changed to is no entity.
    `InvalidArgument` for handles of several stores, one given twice, or nothing staged; and what
    `kvi.Kvi.txn` does. After `OutcomeUnknown` the handles read again by themselves.
    """
    for handle in handles:
        handle._ensure_held()
    if all(handle._change is None for handle in handles):
        raise InvalidArgument(
            "commit needs handles with something staged: stage() or stage_delete()"
        )
    store = handles[0]._records.store
    for handle in handles:
        if handle._records.store is not store:
            raise InvalidArgument(
                "one transaction is of one store: give these loaders the same handle of kvi.open",
                key=handle.key,
            )
    if len({handle.key for handle in handles}) < len(handles):
        raise InvalidArgument("commit takes each entity once")
    try:
        _run(handles, tuple(check_items("when", when)), timeout, "commit")
    except KviError as error:
        raise store._placed(error, "commit", None)


def _run(
    handles: Iterable[Handle[Any]],
    when: tuple[Compare, ...],
    timeout: float | None,
    operation: str,
) -> None:
    handles = tuple(handles)
    store = handles[0]._records.store
    store._ensure_open()
    seconds = store._seconds(timeout)
    unchanged = [handle._unchanged() for handle in handles]
    writes = [op for op in (handle._operation() for handle in handles) if op is not None]
    reads = [Get(handle.key) for handle in handles]
    txn = check_txn((*unchanged, *when), writes, reads, store.capabilities, operation)
    try:
        store._drive(lambda port: _apply(port, handles, txn, seconds, conditional=bool(when)))
    except KviError:
        raise
    except BaseException:
        for handle in handles:  # the request may have been sent
            handle._slot.doubt = True
        raise


async def _apply(
    port: Port, handles: tuple[Handle[Any], ...], txn: Txn, timeout: float, *, conditional: bool
) -> None:
    told = [handle._slot.told for handle in handles]
    try:
        done = await handles[0]._records.store._scope.execute(port, TxnOp(txn), timeout)
    except BaseException as error:
        # A cancellation may have come after the request was sent.
        if not isinstance(error, KviError) or isinstance(error, (OutcomeUnknown, Closed)):
            for handle in handles:
                if handle._change is not None:
                    handle._lost_sight()
        raise
    if done.succeeded:
        for handle, number in zip(handles, told, strict=True):
            handle._applied(done.revision, number)
        return
    news: list[str] = []
    spoiled: KviError | None = None
    for handle, entry, number in zip(handles, done.results, told, strict=True):
        assert entry is None or isinstance(entry, KeyValue)  # what a Get gives
        try:
            if handle._found(entry, number):
                news.append(handle.key)
        except KviError as error:
            handle._lost_sight()
            spoiled = error
    if spoiled is not None:
        raise spoiled
    if not news and conditional:
        raise Conflict("a condition of when= does not hold; nothing was applied")
    raise Conflict(
        f"changed by somebody else: {', '.join(map(repr, news[:5]))}; nothing was applied, look at "
        "the new state and try again",
        keys=tuple(news),
        key=news[0] if len(news) == 1 else None,
    )


@overload
def lock_many(
    a: Ref[A], /, *, timeout: float | None = ...
) -> AbstractContextManager[tuple[Handle[A]]]: ...
@overload
def lock_many(
    a: Ref[A], b: Ref[B], /, *, timeout: float | None = ...
) -> AbstractContextManager[tuple[Handle[A], Handle[B]]]: ...
@overload
def lock_many(
    a: Ref[A], b: Ref[B], c: Ref[C], /, *, timeout: float | None = ...
) -> AbstractContextManager[tuple[Handle[A], Handle[B], Handle[C]]]: ...
@overload
def lock_many(
    a: Ref[A], b: Ref[B], c: Ref[C], d: Ref[D], /, *, timeout: float | None = ...
) -> AbstractContextManager[tuple[Handle[A], Handle[B], Handle[C], Handle[D]]]: ...
@overload
def lock_many(
    *refs: Ref[Any], timeout: float | None = ...
) -> AbstractContextManager[tuple[Handle[Any], ...]]: ...
@contextmanager
def lock_many(*refs: Ref[Any], timeout: float | None = None) -> Iterator[Any]:
    """Hold several entities, also of several loaders, over a ``with`` block.

    ``with lock_many(flows.at(7), meters.at(3)) as (flow, meter):`` gives a handle each, whose
    ``exists`` is false for what is not there. All threads lock in one order, whatever the order
    here, so that they cannot wait for each other in a circle; who holds an entity already and locks
    more of them, can. ``timeout`` (seconds) bounds the wait for all of them.

    Raises `LockTimeout` after it, `AlreadyHeld` if this thread holds one, `InvalidArgument` for one
    given twice; then none is held.
    """
    handles = lock_in_order(refs, timeout)
    try:
        yield handles
    finally:
        _unlock(handles)


def lock_in_order(refs: Iterable[Ref[Any]], timeout: float | None) -> tuple[Handle[Any], ...]:
    """Lock these, in the order of all; the handles are in the order given."""
    refs = tuple(refs)
    wanted = {one.place: one for one in (ref.records.want(ref.id, timeout) for ref in refs)}
    if len(wanted) < len(refs):
        raise InvalidArgument("lock_many takes each entity once")
    if not refs:
        return ()

    async def flow(port: Port) -> tuple[Handle[Any], ...]:
        handles: dict[tuple[int, str], Handle[Any]] = {}
        try:
            for place in sorted(wanted):
                handles[place] = await hold(port, wanted[place])
        except BaseException:
            _unlock(handles.values())
            raise
        return tuple(handles[place] for place in wanted)

    return refs[0].records.store._drive(flow, undo=_unlock)


def _unlock(handles: Iterable[Handle[Any]]) -> None:
    for handle in handles:
        handle.unlock()


async def hold(port: Port, wanted: Wanted[Any, V]) -> Handle[V]:
    """A handle on an entity, there or not."""
    records = wanted.records
    slot, held = await records.take(port, wanted)
    try:
        known = slot.known
        if known is None or slot.doubt:
            known = await records.read(port, slot, records.store._scope.timeout)
        return Handle(records, slot, held, known)
    except BaseException:
        records.let_go(slot, held)
        raise

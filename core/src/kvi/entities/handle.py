"""`EntityFlow`: an entity that is held, and what becomes of changes of one or several.

*What a holder knows.* ``seen`` is the entity as it was when it was locked, or last read or written
here. Every write is conditional on exactly that revision, so that nobody's change is ever
overwritten unseen, whatever the cache learnt in between.

*What becomes of a write*, for each entity that takes part::

    applied          the cache and the holder have the new state; staged changes are done
    Conflict         nothing applied; both have what the same transaction read; staged changes gone
    OutcomeUnknown   the cache is in doubt: it is read again before it is used; staged changes gone
    BadRecord        nothing applied; as Conflict, but what was read instead is no entity
    any other error  nothing applied; all is as it was, staged changes wait for another commit

An entity is in doubt from the moment that its write is sent until one of these is known. So
whatever ends a flow amid a write, an interrupt or a cancellation, leaves the doubt.

*Both faces* share what asks no store: `HandleFace` and `HandlesFace`. A face for threads reads an
entity that is in doubt by itself; one for asyncio, where a property cannot wait, says so.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from kvi.entities.cache import Hold, Known, Slot
from kvi.entities.records import Records, Wanted
from kvi.errors import (
    Closed,
    Conflict,
    InvalidArgument,
    KviError,
    NotFound,
    NotHeld,
    OutcomeUnknown,
    shown,
)
from kvi.model import Compare, Delete, Get, Key, KeyValue, Operation, Put
from kvi.ops import TxnOp
from kvi.policy.txn import check_items, check_txn
from kvi.port import Port

K = TypeVar("K")
V = TypeVar("V")


class _Change(NamedTuple, Generic[V]):
    """What is to become of an entity: an encoded new value, or ``None`` for its end."""

    value: V | None
    data: bytes | None

    def operation(self, key: str) -> Operation:
        """What does it."""
        return Delete(key) if self.data is None else Put(key, self.data)


_END: _Change[Any] = _Change(None, None)


class EntityFlow(Generic[V]):
    """An entity that is held, there or not.

    Attributes:
        records: what it is, or may be, one of.
        slot: its place in the cache.
        key: where it is stored.
        seen: what its holder knows of it; ``None``: it is not there.

    """

    __slots__ = ("_change", "_hold", "_own", "key", "records", "seen", "slot")

    def __init__(
        self, records: Records[Any, V], slot: Slot[Any, V], hold: Hold, seen: Known[V] | None
    ) -> None:
        self.records = records
        self.slot = slot
        self.key = records.key_of(slot.name)
        self.seen = seen
        self._hold: weakref.ref[Hold] | None = weakref.ref(hold)  # it is held while that lives
        self._own: Hold | None = hold  # it lives by this, unless somebody else keeps it
        self._change: _Change[V] | None = None

    # -- its state --------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether it was not unlocked."""
        return self._holding() is not None

    @property
    def in_doubt(self) -> bool:
        """Whether it has to be read before it is used."""
        return self.slot.doubt

    def ensure_held(self) -> None:
        """Raise `NotHeld` if it was unlocked."""
        if self._holding() is None:
            raise NotHeld("this handle was unlocked: lock the entity again", key=self.key)

    def present(self) -> Known[V]:
        """What is known of it; raises `NotFound` if it is not there."""
        if self.seen is None:
            raise NotFound("the entity is not there", key=self.key, uri=self.records.scope.uri)
        return self.seen

    def lend(self) -> Hold | None:
        """From now on it is held for as long as whoever asks keeps this."""
        hold = self._holding()
        self._own = None
        return hold

    def _holding(self) -> Hold | None:
        return None if self._hold is None else self._hold()

    def unlock(self) -> None:
        """Let others have it; what is staged is dropped. Never waits; again, it does nothing."""
        hold = self._holding()
        if hold is not None:
            records = self.records
            records.cache.release(self.slot, hold)
            self._hold = self._own = self._change = None
            if self.slot.known is None and not records.scope.closed:
                # elsewhere: this may be a finalizer that runs while this thread has the lock
                records.scope.runtime.post(partial(records.cache.tidy, self.slot))

    # -- reading ----------------------------------------------------------------------------------

    async def look(self, port: Port, timeout: float) -> None:
        """Read it if it is in doubt. Raises as `refresh` does."""
        self.ensure_held()
        if self.in_doubt:
            await self.refresh(port, timeout)

    async def refresh(self, port: Port, timeout: float) -> None:
        """Read it; what is staged is dropped if it has changed, for it rests on what was."""
        self.ensure_held()
        known = await self.records.read(port, self.slot, timeout)
        if (known and known.revision) != (self.seen and self.seen.revision):
            self._change = None
        self.seen = known

    # -- writing ----------------------------------------------------------------------------------

    def stage(self, entity: V) -> None:
        """Prepare a new state, or the first one."""
        self._change = self._changed(entity)

    def stage_delete(self) -> None:
        """Prepare its end."""
        self.present()
        self._change = _END

    async def update(self, port: Port, entity: V, timeout: float) -> None:
        """Store a new state."""
        await self.look(port, timeout)
        self.present()
        await self._write(port, self._changed(entity), timeout, "update")

    async def delete(self, port: Port, timeout: float) -> None:
        """Delete it, and unlock it."""
        await self.look(port, timeout)
        self.present()
        await self._write(port, _END, timeout, "delete")
        self.unlock()

    def _changed(self, entity: V) -> _Change[V]:
        return _Change(entity, self.records.encode(self.slot.name, entity))

    async def _write(self, port: Port, change: _Change[V], timeout: float, operation: str) -> None:
        self._change = None  # what was staged is replaced
        await _commit(port, ((self, change),), (), timeout, operation)

    def _unchanged(self) -> Compare:
        seen = self.seen
        return Key(self.key).absent if seen is None else Key(self.key).revision == seen.revision

    def _doubt(self, doubt: bool) -> None:
        self.records.cache.doubt(self.slot, doubt)

    def _done(self, change: _Change[V] | None) -> None:
        """It is not staged any more, unless it was replaced meanwhile, after an interrupt."""
        if self._change is change:
            self._change = None

    def _applied(self, change: _Change[V] | None, revision: int | None, told: int) -> None:
        cache = self.records.cache
        if change is None:
            return
        self._done(change)
        if change.data is None:
            if self.seen is None:
                self._doubt(False)
            else:
                cache.deleted(self.slot, self.seen.revision)
            self.seen = None
        elif revision is not None:  # else it stays in doubt: a store that does not tell
            self.seen = Known(change.value, revision)  # type: ignore[arg-type]
            cache.wrote(self.slot, self.seen, told)

    def _found(self, change: _Change[V] | None, entry: KeyValue | None, told: int) -> bool:
        """Take what a refused commit has read instead; whether it is news."""
        before = self.seen
        self._done(change)
        try:
            found = self.records.decoded(entry)
        except KviError:
            self._doubt(True)
            raise
        self._doubt(not self.records.cache.read(self.slot, found, told))
        self.seen = None if found is None else found[1]
        return (before and before.revision) != (self.seen and self.seen.revision)


# -- locking --------------------------------------------------------------------------------------


async def hold(port: Port, wanted: Wanted[Any, V]) -> EntityFlow[V]:
    """Hold an entity, there or not."""
    records = wanted.records
    slot, held = await records.take(port, wanted)
    try:
        known = slot.known
        if known is None or slot.doubt:
            known = await records.read(port, slot, records.scope.timeout)
        return EntityFlow(records, slot, held, known)
    except BaseException:
        records.let_go(slot, held)
        raise


async def hold_or_create(
    port: Port, wanted: Wanted[Any, V], entity: V
) -> tuple[EntityFlow[V], bool]:
    """Hold an entity, which is created if there is none; and whether it was."""
    records = wanted.records
    slot, held = await records.take(port, wanted)
    try:
        known, created = slot.known, False
        if known is None or slot.doubt or records.scope.read_only:
            known, created = await records.create(port, slot, entity)
        return EntityFlow(records, slot, held, known), created
    except BaseException:
        records.let_go(slot, held)
        raise


async def hold_many(port: Port, wanted: Iterable[Wanted[Any, Any]]) -> tuple[EntityFlow[Any], ...]:
    """Hold entities; they are locked in the order of all, and are here in the order given."""
    by_place = {one.place: one for one in wanted}
    held: dict[tuple[int, str], EntityFlow[Any]] = {}
    try:
        for place in sorted(by_place):
            held[place] = await hold(port, by_place[place])
    except BaseException:
        for one in held.values():
            one.unlock()
        raise
    return tuple(held[place] for place in by_place)


class _Ref(Protocol):
    """An entity that somebody names."""

    @property
    def records(self) -> Records[Any, Any]:
        """What it is, or may be, one of."""

    @property
    def id(self) -> Any:
        """Its id."""


def want_refs(
    refs: Sequence[_Ref], kind: type[Any], timeout: float | None
) -> list[Wanted[Any, Any]]:
    """What the caller of ``lock_many`` wants; raises `InvalidArgument`."""
    _check_kind("lock_many", refs, kind)
    wanted = [ref.records.want(ref.id, timeout) for ref in refs]
    if len({one.place for one in wanted}) < len(wanted):
        raise InvalidArgument("lock_many takes each entity once")
    return wanted


def _check_kind(call: str, given: Iterable[object], kind: type[Any]) -> None:
    for one in given:
        if not isinstance(one, kind):
            raise InvalidArgument(
                f"this {call} takes {kind.__name__} objects, not {shown(one)}; "
                "kvi and kvi.aio have one each"
            )


# -- several at once ------------------------------------------------------------------------------


def check_commit(
    handles: Sequence[HandleFace[Any]], kind: type[Any], when: Iterable[Compare]
) -> tuple[list[EntityFlow[Any]], tuple[Compare, ...]]:
    """The entities and the conditions of a commit; raises `InvalidArgument` or `NotHeld`."""
    _check_kind("commit", handles, kind)
    held = [handle._flow for handle in handles]
    for one in held:
        one.ensure_held()
    _ensure_staged(held)
    for one in held:
        if one.records.scope is not held[0].records.scope:
            raise InvalidArgument(
                "one transaction is of one store: give these loaders the same handle of the store",
                key=one.key,
            )
    if len({one.key for one in held}) < len(held):
        raise InvalidArgument("commit takes each entity once")
    return held, tuple(check_items("when", when))


def _ensure_staged(held: Iterable[EntityFlow[Any]]) -> None:
    if not any(one._change for one in held):
        raise InvalidArgument(
            "commit needs handles with something staged: stage() or stage_delete()"
        )


async def commit(
    port: Port, held: Sequence[EntityFlow[Any]], when: tuple[Compare, ...], timeout: float
) -> None:
    """Apply what is staged, in one transaction; see the module for what becomes of it."""
    for one in held:
        await one.look(port, timeout)
    _ensure_staged(held)
    changes = tuple((one, one._change) for one in held)
    await _commit(port, changes, when, timeout, "commit")


async def _commit(
    port: Port,
    changes: tuple[tuple[EntityFlow[Any], _Change[Any] | None], ...],
    when: tuple[Compare, ...],
    timeout: float,
    operation: str,
) -> None:
    held = [one for one, _ in changes]
    scope = held[0].records.scope
    scope.ensure_open()
    compares = (*(one._unchanged() for one in held), *when)
    writes = [change.operation(one.key) for one, change in changes if change is not None]
    reads = [Get(one.key) for one in held]
    txn = check_txn(compares, writes, reads, scope.capabilities, operation)
    told = [one.slot.told for one in held]
    changing = [(one, change) for one, change in changes if change is not None]
    for it, _ in changing:
        it._doubt(True)
    try:
        done = await scope.execute(port, TxnOp(txn), timeout)
    except BaseException as error:
        certain = isinstance(error, KviError) and not isinstance(error, (OutcomeUnknown, Closed))
        for it, written in changing:
            if certain:
                it._doubt(False)
            else:
                it._done(written)
        raise
    if done.succeeded:
        for (one, change), number in zip(changes, told, strict=True):
            one._applied(change, done.revision, number)
        await _settle(port, held, timeout)
        return
    news: list[str] = []
    spoiled: KviError | None = None
    for (one, change), entry, number in zip(changes, done.results, told, strict=True):
        assert entry is None or isinstance(entry, KeyValue)  # what a Get gives
        try:
            if one._found(change, entry, number):
                news.append(one.key)
        except KviError as error:
            spoiled = error
    try:
        if spoiled is not None:
            raise spoiled
    finally:
        del spoiled  # it holds this frame
    await _settle(port, held, timeout)
    if not news and when:
        raise Conflict("a condition of when= does not hold; nothing was applied")
    raise Conflict(
        f"changed by somebody else: {', '.join(map(repr, news[:5]))}; nothing was applied, look at "
        "the new state and try again",
        keys=tuple(news),
        key=news[0] if len(news) == 1 else None,
    )


async def _settle(port: Port, held: Iterable[EntityFlow[Any]], timeout: float) -> None:
    """Read those whose fate is known, but not their state; if that fails, the next use does."""
    with suppress(KviError):
        for one in held:
            await one.look(port, timeout)


# -- what both faces share ------------------------------------------------------------------------


class HandleFace(Generic[V]):
    """An entity that is locked for its holder, as far as no store is asked.

    Attributes:
        key: where the entity is stored, in the loader's store.

    """

    __slots__ = ("_flow", "key")

    def __init__(self, flow: EntityFlow[V]) -> None:
        self._flow = flow
        self.key = flow.key

    @property
    def exists(self) -> bool:
        """Whether the entity is there, as far as this handle has seen. Raises as ``value`` does."""
        self._clear()
        return self._flow.seen is not None

    @property
    def value(self) -> V:
        """The entity: shared with all readers, and never to be modified; give `update` a new one.

        Raises `NotFound` if it is not there, `NotHeld` after `unlock`. After an `OutcomeUnknown`
        the entity is in doubt; see `refresh`.
        """
        self._clear()
        return self._flow.present().value

    @property
    def revision(self) -> int:
        """The revision that ``value`` is of. Raises as ``value`` does."""
        self._clear()
        return self._flow.present().revision

    def stage(self, entity: V) -> None:
        """Prepare a new state of the entity, or the first one, for `commit`.

        Nothing is sent. Replaces what was staged; `unlock` drops it. Raises `InvalidArgument` if
        ``entity`` is another one or cannot be stored; else as ``exists`` does.
        """
        self._clear()
        self._flow.stage(entity)

    def stage_delete(self) -> None:
        """Prepare the end of the entity for `commit`. Raises `NotFound` if it is not there."""
        self._clear()
        self._flow.stage_delete()

    def unlock(self) -> None:
        """Let others have the entity; what is staged is dropped. Again, it does nothing."""
        self._flow.unlock()

    def __repr__(self) -> str:
        flow = self._flow
        state = "unlocked" if not flow.held else "locked" if flow.seen else "locked, not there"
        return f"<{type(self).__name__} {self.key!r} {state} {flow.records.scope.uri}>"

    def _clear(self) -> None:
        """See that it is held, and not in doubt."""
        raise NotImplementedError


H = TypeVar("H", bound=HandleFace[Any])


class HandlesFace(Mapping[K, H]):
    """Several entities of one loader that are locked for their holder, by id."""

    def __init__(self, handles: Mapping[K, H]) -> None:
        self._handles = handles

    def __getitem__(self, id: K) -> H:
        return self._handles[id]

    def __iter__(self) -> Iterator[K]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def unlock(self) -> None:
        """Unlock them all."""
        unlock(self._handles.values())


def unlock(handles: Iterable[HandleFace[Any]]) -> None:
    """Unlock them all."""
    for handle in handles:
        handle.unlock()

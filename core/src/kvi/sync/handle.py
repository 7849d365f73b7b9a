"""`Handle`: the only way to change an entity, for threads; and changes of several in one."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from kvi.entities.handle import (
    EntityFlow,
    HandleFace,
    HandlesFace,
    check_commit,
    hold_many,
    unlock,
    want_refs,
)
from kvi.entities.handle import commit as commit_flow
from kvi.entities.records import Records
from kvi.errors import KviError
from kvi.model import Compare
from kvi.port import Port
from kvi.sync.block import Block, Held
from kvi.sync.kvi import Kvi

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")


class Handle(Held, HandleFace[V]):
    """An entity that is locked for its holder; made by `kvi.Loader` and `lock_many`.

    No other thread of the process gets the entity until `unlock`, `delete` or the end of the
    ``with`` block. Other processes are not held off; what they change is found out at the next
    write, which raises `Conflict`. A handle is for the thread that got it. After `unlock` every use
    raises `NotHeld`, but `unlock` again does nothing.
    """

    __slots__ = ("_store",)

    def __init__(self, store: Kvi, flow: EntityFlow[V]) -> None:
        super().__init__(flow)
        self._store = store

    def refresh(self, *, timeout: float | None = None) -> None:
        """Read the entity from the store, for this handle and the cache.

        Happens by itself at the next use after an `OutcomeUnknown`. What is staged is dropped if
        the entity has changed, for it rests on what was. Raises `BadRecord`, and what `kvi.Kvi.get`
        does.
        """
        store, flow = self._store, self._flow
        try:
            flow.ensure_held()
            seconds = store._seconds(timeout)
            store._drive(lambda port: flow.refresh(port, seconds))
        except KviError as error:
            raise store._placed(error, "get", self.key)

    def update(self, entity: V, *, timeout: float | None = None) -> None:
        """Store a new state of the entity, if it is as this handle has seen it.

        The store is written first, and the cache only then, with this very object; others read
        what the codec makes of it. Replaces what was staged. Raises
        `Conflict` if somebody changed or deleted it meanwhile (``value`` is new then), `NotFound`
        if it is not there, `InvalidArgument` if ``entity`` is another one or cannot be stored, and
        what `kvi.Kvi.store` does.
        """
        store, flow = self._store, self._flow
        try:
            flow.ensure_held()
            seconds = store._seconds(timeout)
            store._drive(lambda port: flow.update(port, entity, seconds))
        except KviError as error:
            raise store._placed(error, "update", self.key)

    def delete(self, *, timeout: float | None = None) -> None:
        """Delete the entity, if it is as this handle has seen it, and unlock it.

        Those who wait for it find it gone. Raises as `update` does, and is locked still then.
        """
        store, flow = self._store, self._flow
        try:
            flow.ensure_held()
            seconds = store._seconds(timeout)
            store._drive(lambda port: flow.delete(port, seconds))
        except KviError as error:
            raise store._placed(error, "delete", self.key)

    def __enter__(self) -> Self:
        self._flow.ensure_held()
        return super().__enter__()

    def _hold_for(self, block: weakref.ref[Block]) -> None:
        keep_in(block, self)

    def _give_back(self) -> None:
        self.unlock()

    def _clear(self) -> None:
        self._flow.ensure_held()
        if self._flow.in_doubt:
            self.refresh()


class Handles(Held, HandlesFace[K, Handle[V]], Generic[K, V]):
    """Several entities of one loader that are locked for their holder, by id.

    Made by `kvi.Loader.lock_many`. An id that is not there has a handle whose ``exists`` is false.
    """

    def commit(self, *, when: Iterable[Compare] = (), timeout: float | None = None) -> None:
        """Apply what is staged on these handles, as `kvi.commit` does."""
        commit(*self.values(), when=when, timeout=timeout)

    def _hold_for(self, block: weakref.ref[Block]) -> None:
        keep_in(block, *self.values())

    def _give_back(self) -> None:
        self.unlock()


def keep_in(block: weakref.ref[Block], *handles: Handle[Any]) -> None:
    """From now on the entities are held for as long as this block lives."""
    one = block()
    if one is not None:
        one.keep = [handle._flow.lend() for handle in handles]


@dataclass(frozen=True, slots=True)
class Ref(Generic[V]):
    """An entity that may be there or not, for `lock_many`; made by `kvi.Loader.at`."""

    store: Kvi
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
    held, conditions = check_commit(handles, Handle, when)
    store = handles[0]._store
    try:
        seconds = store._seconds(timeout)
        store._drive(lambda port: commit_flow(port, held, conditions, seconds))
    except KviError as error:
        raise store._placed(error, "commit", None)


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
    wanted = want_refs(refs, Ref, timeout)

    async def flow(port: Port) -> tuple[Handle[Any], ...]:
        held = await hold_many(port, wanted)
        return tuple(Handle(ref.store, one) for ref, one in zip(refs, held, strict=True))

    handles = refs[0].store._drive(flow, undo=unlock) if refs else ()
    try:
        yield handles
    finally:
        unlock(handles)

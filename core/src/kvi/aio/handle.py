"""`AsyncHandle`: the only way to change an entity, for asyncio; and changes of several in one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from kvi.aio.awaited import Awaited
from kvi.aio.kvi import AsyncKvi
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
from kvi.errors import KviError, NotFound, OutcomeUnknown
from kvi.model import Compare

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")


class AsyncHandle(HandleFace[V]):
    """An entity that is locked for its holder; made by `kvi.aio.Loader` and `lock_many`.

    As a `kvi.Handle`: no other task gets the entity until `unlock`, `delete` or the end of the
    ``async with`` block; other processes are not held off. A handle is for the task that got it.
    One that is dropped lets the entity go.

    After an `OutcomeUnknown`, and after a write that was cancelled, the entity is in doubt: until
    `refresh`, or the next write here, ``value`` and its like raise `OutcomeUnknown`.
    """

    __slots__ = ("_store",)

    def __init__(self, store: AsyncKvi, flow: EntityFlow[V]) -> None:
        super().__init__(flow)
        self._store = store

    async def refresh(self, *, timeout: float | None = None) -> None:
        """Read the entity from the store, for this handle and the cache.

        What is staged is dropped if the entity has changed, for it rests on what was. Raises
        `BadRecord`, and what `AsyncKvi.get` does.
        """
        store, flow = self._store, self._flow
        try:
            flow.ensure_held()
            store._enter()
            seconds = store._seconds(timeout)
            await store._drive(lambda port: flow.refresh(port, seconds))
        except KviError as error:
            raise store._placed(error, "get", self.key)

    async def update(self, entity: V, *, timeout: float | None = None) -> None:
        """Store a new state of the entity, if it is as this handle has seen it.

        See `kvi.Handle.update`; an entity in doubt is read before. Cancelling it after it was sent
        leaves the entity in doubt.
        """
        store, flow = self._store, self._flow
        try:
            flow.ensure_held()
            store._enter()
            seconds = store._seconds(timeout)
            await store._drive_write(
                lambda port: flow.update(port, entity, seconds), "update", self.key
            )
        except KviError as error:
            raise store._placed(error, "update", self.key)

    async def delete(self, *, timeout: float | None = None) -> None:
        """Delete the entity, if it is as this handle has seen it, and unlock it.

        Those who wait for it find it gone. Raises as `update` does, and is locked still then.
        """
        store, flow = self._store, self._flow
        try:
            flow.ensure_held()
            store._enter()
            seconds = store._seconds(timeout)
            await store._drive_write(lambda port: flow.delete(port, seconds), "delete", self.key)
        except KviError as error:
            raise store._placed(error, "delete", self.key)

    async def __aenter__(self) -> Self:
        self._flow.ensure_held()
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.unlock()

    def _clear(self) -> None:
        flow = self._flow
        flow.ensure_held()
        if flow.in_doubt:
            raise self._store._placed(
                OutcomeUnknown("a write of unknown fate came before: await refresh() first"),
                "value",
                self.key,
            )


class AsyncHandles(HandlesFace[K, AsyncHandle[V]], Generic[K, V]):
    """Several entities of one loader that are locked for their holder, by id.

    Made by `kvi.aio.Loader.lock_many`. An id that is not there has a handle whose ``exists`` is
    false.
    """

    async def commit(self, *, when: Iterable[Compare] = (), timeout: float | None = None) -> None:
        """Apply what is staged on these handles, as `kvi.aio.commit` does."""
        await commit(*self.values(), when=when, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.unlock()


class AsyncLocking(Awaited[AsyncHandle[V] | None], Generic[V]):
    """An entity that is asked for: await it, or hold it for an ``async with`` block."""

    __slots__ = ("_handle", "_missing")

    def __init__(
        self,
        call: Callable[[], Coroutine[Any, Any, AsyncHandle[V] | None]],
        missing: Callable[[], NotFound],
    ) -> None:
        super().__init__(call)
        self._missing = missing

    async def __aenter__(self) -> AsyncHandle[V]:
        handle = await self
        if handle is None:
            raise self._missing()
        self._handle = handle
        return handle

    async def __aexit__(self, *raised: object) -> None:
        self._handle.unlock()


@dataclass(frozen=True, slots=True)
class AsyncRef(Generic[V]):
    """An entity that may be there or not, for `lock_many`; made by `kvi.aio.Loader.at`."""

    store: AsyncKvi
    records: Records[Any, V]
    id: Any


async def commit(
    *handles: AsyncHandle[Any], when: Iterable[Compare] = (), timeout: float | None = None
) -> None:
    """Apply what is staged on the handles, of one or several loaders: all of it, or nothing.

    See `kvi.commit`. Cancelling it after it was sent leaves the entities in doubt that it would
    have changed; it has applied as a whole, or not at all.
    """
    held, conditions = check_commit(handles, AsyncHandle, when)
    store = handles[0]._store
    try:
        store._enter()
        seconds = store._seconds(timeout)
        await store._drive_write(
            lambda port: commit_flow(port, held, conditions, seconds), "commit", handles[0].key
        )
    except KviError as error:
        raise store._placed(error, "commit", None)


@overload
def lock_many(
    a: AsyncRef[A], /, *, timeout: float | None = ...
) -> AbstractAsyncContextManager[tuple[AsyncHandle[A]]]: ...
@overload
def lock_many(
    a: AsyncRef[A], b: AsyncRef[B], /, *, timeout: float | None = ...
) -> AbstractAsyncContextManager[tuple[AsyncHandle[A], AsyncHandle[B]]]: ...
@overload
def lock_many(
    a: AsyncRef[A], b: AsyncRef[B], c: AsyncRef[C], /, *, timeout: float | None = ...
) -> AbstractAsyncContextManager[tuple[AsyncHandle[A], AsyncHandle[B], AsyncHandle[C]]]: ...
@overload
def lock_many(
    a: AsyncRef[A],
    b: AsyncRef[B],
    c: AsyncRef[C],
    d: AsyncRef[D],
    /,
    *,
    timeout: float | None = ...,
) -> AbstractAsyncContextManager[
    tuple[AsyncHandle[A], AsyncHandle[B], AsyncHandle[C], AsyncHandle[D]]
]: ...
@overload
def lock_many(
    *refs: AsyncRef[Any], timeout: float | None = ...
) -> AbstractAsyncContextManager[tuple[AsyncHandle[Any], ...]]: ...
def lock_many(*refs: AsyncRef[Any], timeout: float | None = None) -> Any:
    """Hold several entities, also of several loaders, over an ``async with`` block.

    See `kvi.lock_many`: all tasks lock in one order, so that they cannot wait for each other in a
    circle. ``timeout`` (seconds) bounds the wait for all of them.
    """
    return _Together(refs, timeout)


class _Together:
    """What `lock_many` gives; not a generator, which would go on to hold them when dropped."""

    __slots__ = ("_handles", "_refs", "_timeout")

    def __init__(self, refs: tuple[AsyncRef[Any], ...], timeout: float | None) -> None:
        self._refs = refs
        self._timeout = timeout
        self._handles: tuple[AsyncHandle[Any], ...] = ()

    async def __aenter__(self) -> tuple[AsyncHandle[Any], ...]:
        refs = self._refs
        wanted = want_refs(refs, AsyncRef, self._timeout)
        if refs:
            store = refs[0].store
            try:
                store._enter()
                held = await store._drive(lambda port: hold_many(port, wanted))
            except KviError as error:
                raise store._placed(error, "lock", None)
            self._handles = tuple(
                AsyncHandle(ref.store, one) for ref, one in zip(refs, held, strict=True)
            )
        return self._handles

    async def __aexit__(self, *raised: object) -> None:
        unlock(self._handles)

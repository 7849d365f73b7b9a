"""`Loader`: the entities under a path, for asyncio; see `kvi.entities`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from inspect import isawaitable
from typing import Generic, Self, TypeVar

from kvi.aio.awaited import Beginning
from kvi.aio.caller import me
from kvi.aio.handle import AsyncHandle, AsyncHandles, AsyncLocking, AsyncRef
from kvi.aio.kvi import AsyncKvi
from kvi.entities.handle import hold, hold_many, hold_or_create
from kvi.entities.loader import LoaderFace, Progress
from kvi.entities.records import Owners
from kvi.entities.typed import TypedEvent
from kvi.errors import BadRecord, KviError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Loader(LoaderFace[AsyncKvi, K, V], Generic[K, V]):
    """The entities under ``path/``, cached, and locked one by one among tasks.

    As a `kvi.Loader`; what talks to the store is awaited. ``codec``, ``key``, ``name``, ``pack``
    and ``unpack`` are plain functions. With ``follow=True`` kvi calls them on threads of its own
    too, so that the cache follows however long the loop is blocked.
    """

    _takes = AsyncKvi, "kvi.aio.open"
    _owners = Owners("task", me)

    # -- loading ----------------------------------------------------------------------------------

    async def load(
        self, progress: Callable[[int], object] | None = None, *, timeout: float | None = None
    ) -> tuple[BadRecord, ...]:
        """Read all entities; returns the records that are none. See `kvi.Loader.load`.

        ``progress(count)`` is called in the loop; it may be a coroutine function. A load that is
        cancelled keeps what it has read.
        """
        store, flow = self._store, self._flow

        async def tell(count: int) -> None:
            assert progress is not None  # else nothing is told
            result = progress(count)
            if isawaitable(result):
                await result

        told: Progress | None = None if progress is None else tell
        try:
            store._enter()
            seconds = store._seconds(timeout)
            return await store._drive(lambda port: flow.load(port, told, seconds))
        except KviError as error:
            raise store._placed(error, "range", flow.records.prefix)

    # -- locking ----------------------------------------------------------------------------------

    def lock(self, id: K, timeout: float | None = None) -> AsyncLocking[V]:
        """Lock an entity; ``None`` if it is not there, also if it was deleted meanwhile.

        Await it; or hold the entity for an ``async with`` block, whose head raises `NotFound` if it
        is not there. ``timeout`` is how long to wait for another task that holds it, see
        `kvi.Loader.lock`; `AlreadyHeld` if this task does. An attempt that is cancelled leaves
        nothing locked.
        """
        store, records = self._store, self._flow.records

        async def begin() -> AsyncHandle[V] | None:
            try:
                store._enter()
                wanted = records.want(id, timeout)
                held = await store._drive(lambda port: hold(port, wanted))
            except KviError as error:
                raise store._placed(error, "lock", None)
            if held.seen is not None:
                return AsyncHandle(store, held)
            held.unlock()
            return None

        return AsyncLocking(begin, lambda: records.missing(id))

    async def lock_or_create(
        self, entity: V, timeout: float | None = None
    ) -> tuple[AsyncHandle[V], bool]:
        """Lock the entity with the id of this one, which is created if there is none.

        Returns the handle and whether ``entity`` was created. See `kvi.Loader.lock_or_create`.
        """
        store, records = self._store, self._flow.records
        key: str | None = None
        try:
            store._enter()
            wanted = records.want(records.id_of(entity), timeout)
            key = records.key_of(wanted.name)
            held, created = await store._drive_write(
                lambda port: hold_or_create(port, wanted, entity), "lock_or_create", key
            )
        except KviError as error:
            raise store._placed(error, "lock_or_create", key)
        return AsyncHandle(store, held), created

    def lock_many(
        self, ids: Iterable[K], timeout: float | None = None
    ) -> Beginning[AsyncHandles[K, V]]:
        """Lock several entities; together they cannot deadlock with others who do the same.

        Await it, or hold them for an ``async with`` block. See `kvi.Loader.lock_many`.
        """
        store, records = self._store, self._flow.records

        async def begin() -> AsyncHandles[K, V]:
            try:
                store._enter()
                wanted = records.want_each(ids, timeout)
                held = await store._drive(lambda port: hold_many(port, wanted))
            except KviError as error:
                raise store._placed(error, "lock", None)
            return AsyncHandles(
                {one.id: AsyncHandle(store, it) for one, it in zip(wanted, held, strict=True)}
            )

        return Beginning(begin)

    def at(self, id: K) -> AsyncRef[V]:
        """Name an entity, there or not, for `kvi.aio.lock_many`."""
        return AsyncRef(self._store, self._flow.records, id)

    # -- what was ---------------------------------------------------------------------------------

    async def past(self, id: K, revision: int, *, timeout: float | None = None) -> V | None:
        """The entity as it was when the store was at this revision. See `kvi.Loader.past`."""
        records = self._flow.records
        key = records.key_of_past(id)
        entry = await self._store.get(key, revision=revision, timeout=timeout)
        return None if entry is None else records.past(entry)

    async def history(
        self, id: K, *, limit: int | None = None, timeout: float | None = None
    ) -> list[TypedEvent[V]]:
        """The changes of an entity, newest first. See `kvi.Loader.history`."""
        records = self._flow.records
        key = records.key_of_past(id)
        events = await self._store.history(key, limit=limit, timeout=timeout)
        return [records.past_event(event) for event in events]

    # -- its end ----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Follow no more, and give out no more entities; the store stays open. Again: nothing.

        Whoever waits for an entity gets `Closed`; handles that are held can be ended in good order.
        """
        self._flow.records.close()
        watch = self._flow.watch
        if watch is not None and not self._store.closed:
            self._store._enter()
            watch.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

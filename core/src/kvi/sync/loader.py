"""`Loader`: the entities under a path, in memory, each behind its own lock; see `kvi.entities`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, Self, TypeVar

from kvi.entities.handle import hold, hold_many, hold_or_create
from kvi.entities.loader import LoaderFace, Progress
from kvi.entities.records import Owners
from kvi.entities.typed import TypedEvent
from kvi.errors import BadRecord, KviError
from kvi.port import Port
from kvi.sync.caller import me
from kvi.sync.handle import Handle, Handles, Ref
from kvi.sync.kvi import Kvi
from kvi.sync.watch import Watch

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Loader(LoaderFace[Kvi, K, V], Generic[K, V]):
    """The entities under ``path/``, cached and locked one by one. Safe for threads.

    ``codec`` turns a record into bytes (`kvi.JsonCodec`, `kvi.ProtobufCodec`, …), ``key`` tells the
    id of an entity, ``name`` how an id stands in the key (a different text for each id). With
    ``pack`` and ``unpack`` the record that is stored is another, smaller object than the entity:
    ``pack(entity)`` makes it, ``unpack(record)`` rebuilds the entity when it is read. kvi calls
    these on any thread.

    With ``follow=True`` the cache follows what other processes write, from `load` on. Without it
    the cache is behind after they wrote; the next write here raises `Conflict` and brings it up to
    date.

    ``store`` stays its owner's to close; loaders whose entities change together need the same one.
    Raises `InvalidOption` for a path that begins or ends with a slash; an empty path takes all of
    the store.
    """

    _takes = Kvi, "kvi.open"
    _owners = Owners("thread", me)

    # -- loading ----------------------------------------------------------------------------------

    def load(
        self, progress: Callable[[int], object] | None = None, *, timeout: float | None = None
    ) -> tuple[BadRecord, ...]:
        """Read all entities, in one pass, page by page; returns the records that are none.

        Each of these tells its key (and is logged); the others are there all the same.
        ``progress(count)`` is called after every thousand entities and at the end; ``timeout``
        (seconds) bounds each page. Loading again brings the cache up to date, and begins a watch
        that has ended anew. Raises what `kvi.Kvi.range` does; what was read until then is kept.
        """
        store, flow = self._store, self._flow

        async def tell(count: int) -> None:
            assert progress is not None  # else nothing is told
            progress(count)

        told: Progress | None = None if progress is None else tell
        try:
            seconds = store._seconds(timeout)
            return store._drive(lambda port: flow.load(port, told, seconds))
        except KviError as error:
            raise store._placed(error, "range", flow.records.prefix)

    # -- locking ----------------------------------------------------------------------------------

    def lock(self, id: K, timeout: float | None = None) -> Handle[V] | None:
        """Lock an entity; ``None`` if it is not there, also if it was deleted meanwhile.

        ``timeout`` is how long to wait for another thread that holds it: seconds, ``None`` without
        end, 0 not at all; who waits longest is next. What the cache does not know is read from the
        store. Raises `LockTimeout` after that time, `AlreadyHeld` if this thread holds it,
        `BadRecord` if what is stored is no entity, and what `kvi.Kvi.get` does.
        """
        store, wanted = self._store, self._flow.records.want(id, timeout)

        async def flow(port: Port) -> Handle[V]:
            return Handle(store, await hold(port, wanted))

        handle = store._drive(flow, undo=Handle.unlock)
        if handle._flow.seen is not None:
            return handle
        handle.unlock()
        return None

    def lock_or_create(self, entity: V, timeout: float | None = None) -> tuple[Handle[V], bool]:
        """Lock the entity with the id of this one, which is created if there is none.

        Returns the handle and whether ``entity`` was created; if not, the handle's ``value`` is
        what was there. An entity that is known costs no call to the store, a new one a single one.
        If creating fails nothing is left of it here; after `OutcomeUnknown` it may be in the store.
        Raises as `lock` does, `InvalidArgument` for what cannot be stored, and what `kvi.Kvi.txn`
        does.
        """
        store, records = self._store, self._flow.records
        wanted = records.want(records.id_of(entity), timeout)

        async def flow(port: Port) -> tuple[Handle[V], bool]:
            held, created = await hold_or_create(port, wanted, entity)
            return Handle(store, held), created

        try:
            return store._drive(flow, undo=lambda result: result[0].unlock())
        except KviError as error:
            raise store._placed(error, "lock_or_create", records.key_of(wanted.name))

    def lock_many(self, ids: Iterable[K], timeout: float | None = None) -> Handles[K, V]:
        """Lock several entities; together they cannot deadlock with others who do the same.

        The handles of ids that are not there say so (``exists``), and may be given a first state by
        ``stage``. An id given twice counts once. `kvi.lock_many` locks entities of several loaders.
        ``timeout`` bounds the wait for all; raises as `lock` does, and then holds none.
        """
        store, wanted = self._store, self._flow.records.want_each(ids, timeout)

        async def flow(port: Port) -> Handles[K, V]:
            held = await hold_many(port, wanted)
            handles = {one.id: Handle(store, it) for one, it in zip(wanted, held, strict=True)}
            return Handles(handles)

        return store._drive(flow, undo=Handles.unlock)

    def at(self, id: K) -> Ref[V]:
        """Name an entity, there or not, for `kvi.lock_many`."""
        return Ref(self._store, self._flow.records, id)

    # -- what was ---------------------------------------------------------------------------------

    def past(self, id: K, revision: int, *, timeout: float | None = None) -> V | None:
        """The entity as it was when the store was at this revision; ``None`` if it was not there.

        It is read from the store, locks nothing, and is the caller's own. Raises `BadRecord` if
        what was stored then is no entity, and what `kvi.Kvi.get` does with ``revision=``.
        """
        records = self._flow.records
        entry = self._store.get(records.key_of_past(id), revision=revision, timeout=timeout)
        return None if entry is None else records.past(entry)

    def history(
        self, id: K, *, limit: int | None = None, timeout: float | None = None
    ) -> list[TypedEvent[V]]:
        """The changes of an entity, newest first, as of `kvi.Kvi.history`, with what it was then.

        Raises `BadRecord` if one of them is no entity.
        """
        records = self._flow.records
        events = self._store.history(records.key_of_past(id), limit=limit, timeout=timeout)
        return [records.past_event(event) for event in events]

    # -- its end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Follow no more, and give out no more entities; the store stays open. Again: nothing.

        Whoever waits for an entity gets `Closed`; handles that are held can be ended in good order.
        """
        self._flow.records.close()
        watch = self._flow.watch
        if watch is not None:
            Watch(self._store, watch).cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

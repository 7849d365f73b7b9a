"""`Loader`: the entities under a path, in memory, each behind its own lock.

*Theory.* An entity has an id, and is stored under the path and that id's name. What the program
holds is the instance; what the store holds is its record, made by ``pack`` (and rebuilt by
``unpack``), encoded by the codec. The cache (`kvi.loader.cache`) keeps instances with the revision
of their records. It is a cache, and no more: whatever is not in it is asked of the store, and every
write names the revision that it is based on, so that a cache that is behind costs a `Conflict` and
never a lost update.

*Threads.* A loader has none of its own. With ``follow=True`` a watch delivers the changes on the
handle's call-back thread, which takes no entity's lock, so that it never waits for a holder.

*Loading.* The watch begins before the first page is read. So every change is either in what is
read, or comes as an event, or both; revisions sort that out.

States: *new* → `load` → *loaded* → `close` → *closed*. Locking works from the start: what is not
known is read from the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from kvi.errors import BadRecord, InvalidArgument, KviError, LockTimeout
from kvi.loader.cache import Known
from kvi.loader.codecs import Codec
from kvi.loader.handle import Handle, Handles, Ref, hold, lock_in_order
from kvi.loader.records import Records
from kvi.middleware.namespace import check_name
from kvi.model import Event, EventType, KeyValue, Scan, Span
from kvi.mutex import Mutex
from kvi.ops import PageOp, RangeOp
from kvi.port import Port
from kvi.sync.kvi import Kvi

if TYPE_CHECKING:
    from kvi.sync.watch import Watch

__all__ = ["Loader"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
R = TypeVar("R")

_log = logging.getLogger("kvi.loader")
_STEP = 1000  # entities between two calls of a progress function
_PAUSE = 0.01  # seconds between looks whether another load is over


class Loader(Generic[K, V]):
    """The entities under ``path/``, cached and locked one by one. Safe for threads.

    ``codec`` turns a record into bytes (`kvi.JsonCodec`, `kvi.ProtobufCodec`, …), ``key`` tells the
    id of an entity, ``name`` how an id stands in the key (a different text for each id). With
    ``pack`` and ``unpack`` the record that is stored is another, smaller object than the entity:
    ``pack(entity)`` makes it, ``unpack(record)`` rebuilds the entity when it is read.

    With ``follow=True`` the cache follows what other processes write, from `load` on. Without it
    the cache is behind after they wrote; the next write here raises `Conflict` and brings it up to
    date.

    ``store`` stays its owner's to close; loaders whose entities change together need the same one.
    Raises `InvalidOption` for a path that begins or ends with a slash; an empty path takes all of
    the store.
    """

    @overload
    def __init__(
        self,
        store: Kvi,
        path: str,
        codec: Codec[V],
        key: Callable[[V], K],
        *,
        name: Callable[[K], str] = ...,
        follow: bool = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        store: Kvi,
        path: str,
        codec: Codec[R],
        key: Callable[[V], K],
        *,
        pack: Callable[[V], R],
        unpack: Callable[[R], V],
        name: Callable[[K], str] = ...,
        follow: bool = ...,
    ) -> None: ...
    def __init__(
        self,
        store: Kvi,
        path: str,
        codec: Codec[Any],
        key: Callable[[V], K],
        *,
        pack: Callable[[V], Any] | None = None,
        unpack: Callable[[Any], V] | None = None,
        name: Callable[[K], str] = str,
        follow: bool = False,
    ) -> None:
        if (pack is None) != (unpack is None):
            raise InvalidArgument("pack= and unpack= undo each other: give both, or none")
        prefix = f"{check_name(path)}/" if path != "" else ""
        self._records: Records[K, V] = Records(
            store, prefix, codec, key, name, pack, unpack, self._gets_events
        )
        self._follow = follow
        self._once = Mutex()  # held while loading
        self._loads: int | None = None  # the thread that does
        self._loaded = False
        self._watch: Watch | None = None
        self._begins = False  # while the watch is begun: its first event may be here already

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
        self._records.ensure_open()
        if self._loads == get_ident():
            raise InvalidArgument("load() is under way in this thread: progress= cannot load")
        store = self._records.store
        try:
            seconds = store._seconds(timeout)
            return store._drive(lambda port: self._load(port, progress, seconds))
        except KviError as error:
            raise store._placed(error, "range", self._records.prefix)

    async def _load(
        self, port: Port, progress: Callable[[int], object] | None, timeout: float
    ) -> tuple[BadRecord, ...]:
        while not self._once.acquire(blocking=False):
            await port.sleep(_PAUSE)
            self._records.ensure_open()
        self._loads = get_ident()
        try:
            if self._follow and not self.following:
                self._begin_to_follow(timeout)
            while (bad := await self._pass(port, progress, timeout)) is None:
                pass
        finally:
            self._loads = None
            self._once.release()
        self._loaded = True
        return tuple(bad)

    async def _pass(
        self, port: Port, progress: Callable[[int], object] | None, timeout: float
    ) -> list[BadRecord] | None:
        """Read all once; ``None`` if it was overtaken by a snapshot."""
        bad: list[BadRecord] = []
        number = 0
        scan = Scan(Span.of_prefix(self._records.prefix))
        scope = self._records.store._scope
        with self._records.cache.loading() as run:
            found = await scope.execute(port, RangeOp(scan), timeout)
            pages = PageOp(found, scan)
            try:
                while (page := await scope.execute(port, pages, timeout)) is not None:
                    self._records.ensure_open()
                    for entry in page:
                        error = self._learn(entry, loading=True)
                        if error is not None:
                            bad.append(error)
                        number += 1
                        if progress is not None and number % _STEP == 0:
                            progress(number)
            finally:
                pages.close()
            if progress is not None and not run.overtaken and (number % _STEP or not number):
                progress(number)
        return None if run.overtaken else bad

    @property
    def bad(self) -> dict[str, BadRecord]:
        """The records that are no entities, by their keys, as of `load` and what came since."""
        self._records.ensure_open()
        return {
            self._records.key_of(name): error for name, error in self._records.cache.bad().items()
        }

    @property
    def following(self) -> bool:
        """Whether changes by others still come in. An error that ended that is logged.

        A store that is away for a while ends nothing: what was missed comes afterwards.
        """
        return self._watch is not None and self._watch.active

    # -- locking ----------------------------------------------------------------------------------

    def lock(self, id: K, timeout: float | None = None) -> Handle[V] | None:
        """Lock an entity; ``None`` if it is not there, also if it was deleted meanwhile.

        ``timeout`` is how long to wait for another thread that holds it: seconds, ``None`` without
        end, 0 not at all. What the cache does not know is read from the store. Raises `LockTimeout`
        after that time, `AlreadyHeld` if this thread holds it, `BadRecord` if what is stored is no
        entity, and what `kvi.Kvi.get` does.
        """
        wanted = self._records.want(id, timeout)
        handle = self._records.store._drive(lambda port: hold(port, wanted), undo=Handle.unlock)
        if handle._seen is not None:
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
        records = self._records
        wanted = records.want(records.id_of(entity), timeout)

        async def flow(port: Port) -> tuple[Handle[V], bool]:
            slot, held = await records.take(port, wanted)
            try:
                known, created = slot.known, False
                if known is None or slot.doubt or records.store._scope.read_only:
                    known, created = await records.create(port, slot, entity)
                return Handle(records, slot, held, known), created
            except BaseException:
                records.let_go(slot, held)
                raise

        try:
            return records.store._drive(flow, undo=lambda result: result[0].unlock())
        except LockTimeout:
            raise
        except KviError as error:
            raise records.store._placed(error, "lock_or_create", records.key_of(wanted.name))

    def lock_many(self, ids: Iterable[K], timeout: float | None = None) -> Handles[K, V]:
        """Lock several entities; together they cannot deadlock with others who do the same.

        The handles of ids that are not there say so (``exists``), and may be given a first state by
        ``stage``. An id given twice counts once. `kvi.lock_many` locks entities of several loaders.
        ``timeout`` bounds the wait for all; raises as `lock` does, and then holds none.
        """
        wanted = {self._records.name_of(id): id for id in ids}.values()
        handles = lock_in_order([self.at(id) for id in wanted], timeout)
        return Handles(dict(zip(wanted, handles, strict=True)))

    def at(self, id: K) -> Ref[V]:
        """Name an entity, there or not, for `kvi.lock_many`."""
        return Ref(self._records, id)

    # -- reading without locks --------------------------------------------------------------------

    def list(self) -> list[K]:
        """A snapshot of the ids of all entities, in no order. Raises before the first `load`."""
        self._ensure_loaded()
        return [slot.id for slot in self._records.cache.present()]

    def items(self) -> Iterator[tuple[K, V]]:
        """Each entity with its id, as it is when its turn comes; those of now, in no order.

        Takes no lock of an entity and waits for no holder. The values are shared, and never to be
        modified.
        """
        self._ensure_loaded()
        for slot in self._records.cache.present():
            known = slot.known
            if known is not None:
                yield slot.id, known.value

    def __iter__(self) -> Iterator[V]:
        """Each entity; see `items`."""
        return (value for _, value in self.items())

    def peek(self, id: K) -> V | None:
        """What the cache knows of an entity, without asking the store; ``None`` if nothing.

        The value is shared, and never to be modified.
        """
        self._records.ensure_open()
        known = self._records.cache.find(self._records.name_of(id))
        return None if known is None else known.value

    def __len__(self) -> int:
        return len(self.list())

    # -- its end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Follow no more, and give out no more entities; the store stays open. Again: nothing.

        Handles that are held can be ended in good order.
        """
        self._records.closed = True
        watch = self._watch
        if watch is not None:
            watch.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._records.closed else "loaded" if self._loaded else "not loaded"
        return f"<Loader {self._records.prefix!r} {state} {self._records.store.uri}>"

    # -- following --------------------------------------------------------------------------------

    def _gets_events(self) -> bool:
        return self._begins or self.following

    def _begin_to_follow(self, timeout: float | None) -> None:
        self._begins = True
        try:
            watch = self._records.store.watch(
                prefix=self._records.prefix, callback=self._on_event, timeout=timeout
            )
            self._watch = watch
        finally:
            self._begins = False
        if self._records.closed:  # meanwhile
            watch.cancel()
            self._records.ensure_open()

    def _on_event(self, event: Event, data: object) -> bool | None:
        if self._records.closed:
            return False
        name = event.key.removeprefix(self._records.prefix)
        if event.type is EventType.RESYNC:
            self._resync(event.snapshot or [])
        elif event.type is EventType.DELETE:
            self._records.cache.forget(name, event.revision)
        else:
            self._learn(KeyValue(event.key, event.value, event.revision, 0))
        watch = self._watch
        revision = None if watch is None else watch.revision
        if revision is not None:
            self._records.cache.passed(revision)
        return None

    def _learn(self, entry: KeyValue, *, loading: bool = False) -> BadRecord | None:
        """Take what an event or a page says of an entity; returns what is wrong with it."""
        name = entry.key.removeprefix(self._records.prefix)
        if loading:
            self._records.cache.seen(name)
        if not self._records.cache.wants(name, entry.revision, loading=loading):
            return None
        try:
            id, known = self._records.decode(entry)
        except BadRecord as error:
            self._records.cache.spoil(name, error, entry.revision)
            _log.warning("a record is left out: %s", error)
            return error
        self._records.cache.learn(name, id, known, loading=loading)
        return None

    def _resync(self, snapshot: Iterable[KeyValue]) -> None:
        entities: dict[str, tuple[K, Known[V]]] = {}
        bad: dict[str, tuple[BadRecord, int]] = {}
        for entry in snapshot:
            name = entry.key.removeprefix(self._records.prefix)
            known = self._records.cache.find(name)
            if known is not None and known.revision == entry.revision:
                entities[name] = (self._records.id_of(known.value), known)
                continue
            try:
                entities[name] = self._records.decode(entry)
            except BadRecord as error:
                bad[name] = (error, entry.revision)
                _log.warning("a record is left out: %s", error)
        self._records.cache.resync(entities, bad)

    def _ensure_loaded(self) -> None:
        self._records.ensure_open()
        if not self._loaded:
            raise InvalidArgument("nothing is loaded yet: call load() first")

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
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from kvi.errors import BadRecord, Closed, InvalidArgument, KviError, LockTimeout, shown
from kvi.loader.cache import Cache, Hold, Known, Slot
from kvi.loader.codecs import Codec
from kvi.loader.handle import Handle, Handles, Ref, lock_in_order, numbers
from kvi.middleware.namespace import check_name
from kvi.model import Event, EventType, Get, Key, KeyValue, Put, Scan, Span
from kvi.ops import GetOp, PageOp, RangeOp, TxnOp
from kvi.policy.lock import check_wait
from kvi.policy.txn import check_txn
from kvi.port import Port
from kvi.sync.kvi import Kvi
from kvi.text import check_bound

if TYPE_CHECKING:
    from types import TracebackType

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
        self._store = store
        self._prefix = f"{check_name(path)}/" if path != "" else ""
        self._codec = codec
        self._id_of = key
        self._written = name
        self._pack = pack
        self._unpack = unpack
        self._follow = follow
        self._number = next(numbers)
        self._cache: Cache[K, V] = Cache(self._gets_events)
        self._once = threading.Lock()  # held while loading
        self._loads: int | None = None  # the thread that does
        self._loaded = False
        self._closed = False
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
        self._ensure_open()
        if self._loads == get_ident():
            raise InvalidArgument("load() is under way in this thread: progress= cannot load")
        store = self._store
        try:
            seconds = store._seconds(timeout)
            return store._drive(lambda port: self._load(port, progress, seconds))
        except KviError as error:
            raise store._placed(error, "range", self._prefix)

    async def _load(
        self, port: Port, progress: Callable[[int], object] | None, timeout: float
    ) -> tuple[BadRecord, ...]:
        while not self._once.acquire(blocking=False):
            await port.sleep(_PAUSE)
            self._ensure_open()
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
        scan = Scan(Span.of_prefix(self._prefix))
        scope = self._store._scope
        with self._cache.loading() as run:
            found = await scope.execute(port, RangeOp(scan), timeout)
            pages = PageOp(found, scan)
            try:
                while (page := await scope.execute(port, pages, timeout)) is not None:
                    self._ensure_open()
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
        self._ensure_open()
        return {self._key_of(name): error for name, error in self._cache.bad().items()}

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
        name, wait, owner = self._name_of(id), check_wait(timeout), get_ident()
        handle = self._store._drive(
            lambda port: self._hold(port, owner, id, name, _deadline(port, wait), wait),
            undo=Handle.unlock,
        )
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
        id = self._id_of(entity)
        name, wait, owner = self._name_of(id), check_wait(timeout), get_ident()

        async def flow(port: Port) -> tuple[Handle[V], bool]:
            deadline = _deadline(port, wait)
            slot, hold = await self._take(port, owner, id, name, deadline, wait)
            try:
                known = slot.known
                if known is not None and not slot.doubt:
                    return Handle(self, slot, hold, known), False
                known, created = await self._create(port, slot, entity)
                return Handle(self, slot, hold, known), created
            except BaseException:
                self._let_go(slot, hold)
                raise

        try:
            return self._store._drive(flow, undo=lambda result: result[0].unlock())
        except LockTimeout:
            raise
        except KviError as error:
            raise self._store._placed(error, "lock_or_create", self._key_of(name))

    def lock_many(self, ids: Iterable[K], timeout: float | None = None) -> Handles[K, V]:
        """Lock several entities; together they cannot deadlock with others who do the same.

        The handles of ids that are not there say so (``exists``), and may be given a first state by
        ``stage``. An id given twice counts once. `kvi.lock_many` locks entities of several loaders.
        ``timeout`` bounds the wait for all; raises as `lock` does, and then holds none.
        """
        wanted = {self._name_of(id): id for id in ids}.values()
        handles = lock_in_order([self.at(id) for id in wanted], timeout)
        return Handles(dict(zip(wanted, handles, strict=True)))

    def at(self, id: K) -> Ref[V]:
        """Name an entity, there or not, for `kvi.lock_many`."""
        return Ref(self, id)

    # -- reading without locks --------------------------------------------------------------------

    def list(self) -> list[K]:
        """A snapshot of the ids of all entities, in no order. Raises before the first `load`."""
        self._ensure_loaded()
        return [slot.id for slot in self._cache.present()]

    def items(self) -> Iterator[tuple[K, V]]:
        """Each entity with its id, as it is when its turn comes; those of now, in no order.

        Takes no lock of an entity and waits for no holder. The values are shared, and never to be
        modified.
        """
        self._ensure_loaded()
        for slot in self._cache.present():
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
        self._ensure_open()
        known = self._cache.find(self._name_of(id))
        return None if known is None else known.value

    def __len__(self) -> int:
        return len(self.list())

    # -- its end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Follow no more, and give out no more entities; the store stays open. Again: nothing.

        Handles that are held can be ended in good order.
        """
        self._closed = True
        watch = self._watch
        if watch is not None:
            watch.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "loaded" if self._loaded else "not loaded"
        return f"<Loader {self._prefix!r} {state} {self._store.uri}>"

    # -- names and records ------------------------------------------------------------------------

    def _name_of(self, id: K) -> str:
        name = self._written(id)
        try:
            check_bound("name", name)
        except InvalidArgument as error:
            raise InvalidArgument(f"the name of an id: {error.message}") from None
        if not name:
            raise InvalidArgument(f"the id {shown(id)} has an empty name; see name= of the loader")
        return name

    def _key_of(self, name: str) -> str:
        return self._prefix + name

    def _encode(self, name: str, entity: V) -> bytes:
        """The record of an entity as bytes, if it belongs under this name."""
        key = self._key_of(name)
        own = self._name_of(self._id_of(entity))
        if own != name:
            raise InvalidArgument(
                f"this entity is stored under {self._key_of(own)!r}: lock that one, or create it",
                key=key,
            )
        record = entity if self._pack is None else self._pack(entity)
        try:
            data = self._codec.encode(record)
        except KviError as error:
            error.located("encode", key, self._store.uri)
            raise
        return data

    def _decode(self, entry: KeyValue) -> tuple[K, Known[V]]:
        """An entry as an entity; raises `BadRecord`."""
        assert entry.value is not None
        try:
            try:
                record = self._codec.decode(entry.value)
                entity: V = record if self._unpack is None else self._unpack(record)
                id = self._id_of(entity)
                own = self._key_of(self._name_of(id))
            except BadRecord:
                raise
            except Exception as error:
                raise BadRecord(f"no entity can be made of it: {error!r}") from error
            if own != entry.key:
                raise BadRecord(f"it says that it belongs under {own!r}")
        except BadRecord as error:
            error.located("decode", entry.key, self._store.uri)
            raise
        return id, Known(entity, entry.revision)

    def _decoded(self, entry: KeyValue | None) -> tuple[K, Known[V]] | None:
        """What its holder has found of an entity; a `BadRecord` is noted, and raised."""
        if entry is None:
            return None
        try:
            return self._decode(entry)
        except BadRecord as error:
            self._cache.spoil(entry.key.removeprefix(self._prefix), error, entry.revision)
            raise

    # -- locks and the store ----------------------------------------------------------------------

    async def _take(
        self, port: Port, owner: object, id: K, name: str, deadline: float, wait: float | None
    ) -> tuple[Slot[K, V], Hold]:
        key = self._key_of(name)
        try:
            self._ensure_open()
            taken = await self._cache.take(port, owner, id, name, deadline)
            if taken is None:
                raise LockTimeout(f"another thread held the entity for {wait:g} seconds")
        except KviError as error:
            error.located("lock", key, self._store.uri)
            raise
        return taken

    async def _hold(
        self, port: Port, owner: object, id: K, name: str, deadline: float, wait: float | None
    ) -> Handle[V]:
        """A handle on an entity, there or not."""
        slot, hold = await self._take(port, owner, id, name, deadline, wait)
        try:
            known = slot.known
            if known is None or slot.doubt:
                known = await self._read(port, slot, self._store._scope.timeout)
            return Handle(self, slot, hold, known)
        except BaseException:
            self._let_go(slot, hold)
            raise

    def _let_go(self, slot: Slot[K, V], hold: Hold) -> None:
        self._cache.release(slot, hold)
        self._cache.tidy(slot)

    async def _read(self, port: Port, slot: Slot[K, V], timeout: float) -> Known[V] | None:
        """Read a slot that is held from the store."""
        scope, key = self._store._scope, self._key_of(slot.name)
        while True:
            told = slot.told
            try:
                scope.ensure_open()
                entry = await scope.execute(port, GetOp(key), timeout)
            except KviError as error:
                raise scope.placed(error, "get", key) from error.__cause__
            found = self._decoded(entry)
            if self._cache.read(slot, found, told):
                # What is known now may be newer, or an object that is shared already.
                return slot.known if found is None else slot.known or found[1]

    async def _create(self, port: Port, slot: Slot[K, V], entity: V) -> tuple[Known[V], bool]:
        """Store an entity that is not there; else read the one that is. What is, and if it is new.

        The answer may be overtaken by news of its end; then the holder has what was true before,
        and the next write finds out.
        """
        scope, key = self._store._scope, self._key_of(slot.name)
        data = self._encode(slot.name, entity)
        txn = check_txn(
            [Key(key).absent], [Put(key, data)], [Get(key)], scope.capabilities, "lock_or_create"
        )
        while True:
            told = slot.told
            scope.ensure_open()
            done = await scope.execute(port, TxnOp(txn), scope.timeout)
            if done.succeeded:
                if done.revision is not None:
                    known = Known(entity, done.revision)
                    self._cache.wrote(slot, known, told)
                    return known, True
                read = await self._read(port, slot, scope.timeout)  # a store that does not tell
                if read is not None:
                    return read, True
                continue
            (entry,) = done.results
            assert isinstance(entry, KeyValue)  # it is there
            found = self._decoded(entry)
            assert found is not None
            if self._cache.read(slot, found, told):
                return slot.known or found[1], False

    # -- following --------------------------------------------------------------------------------

    def _gets_events(self) -> bool:
        return self._begins or self.following

    def _begin_to_follow(self, timeout: float | None) -> None:
        self._begins = True
        try:
            watch = self._store.watch(prefix=self._prefix, callback=self._on_event, timeout=timeout)
            self._watch = watch
        finally:
            self._begins = False
        if self._closed:  # meanwhile
            watch.cancel()
            self._ensure_open()

    def _on_event(self, event: Event, data: object) -> bool | None:
        if self._closed:
            return False
        name = event.key.removeprefix(self._prefix)
        if event.type is EventType.RESYNC:
            self._resync(event.snapshot or [])
        elif event.type is EventType.DELETE:
            self._cache.forget(name, event.revision)
        else:
            self._learn(KeyValue(event.key, event.value, event.revision, 0))
        watch = self._watch
        revision = None if watch is None else watch.revision
        if revision is not None:
            self._cache.passed(revision)
        return None

    def _learn(self, entry: KeyValue, *, loading: bool = False) -> BadRecord | None:
        """Take what an event or a page says of an entity; returns what is wrong with it."""
        name = entry.key.removeprefix(self._prefix)
        if loading:
            self._cache.seen(name)
        if not self._cache.wants(name, entry.revision, loading=loading):
            return None
        try:
            id, known = self._decode(entry)
        except BadRecord as error:
            self._cache.spoil(name, error, entry.revision)
            _log.warning("a record is left out: %s", error)
            return error
        self._cache.learn(name, id, known, loading=loading)
        return None

    def _resync(self, snapshot: Iterable[KeyValue]) -> None:
        entities: dict[str, tuple[K, Known[V]]] = {}
        bad: dict[str, tuple[BadRecord, int]] = {}
        for entry in snapshot:
            name = entry.key.removeprefix(self._prefix)
            known = self._cache.find(name)
            if known is not None and known.revision == entry.revision:
                entities[name] = (self._id_of(known.value), known)
                continue
            try:
                entities[name] = self._decode(entry)
            except BadRecord as error:
                bad[name] = (error, entry.revision)
                _log.warning("a record is left out: %s", error)
        self._cache.resync(entities, bad)

    def _ensure_open(self) -> None:
        self._store._ensure_open()
        if self._closed:
            raise Closed("the loader is closed; make another one")

    def _ensure_loaded(self) -> None:
        self._ensure_open()
        if not self._loaded:
            raise InvalidArgument("nothing is loaded yet: call load() first")


def _deadline(port: Port, wait: float | None) -> float:
    return inf if wait is None else port.now() + wait

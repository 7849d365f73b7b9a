"""`LoaderFlow`: the entities under a path, in memory, each behind its own lock.

*Theory.* An entity has an id, and is stored under the path and that id's name. What the program
holds is the instance; what the store holds is its record, made by ``pack`` (and rebuilt by
``unpack``), encoded by the codec. The cache (`kvi.entities.cache`) keeps instances with the
revision of their records. It is a cache, and no more: whatever is not in it is asked of the store,
and every write names the revision that it is based on, so that a cache that is behind costs a
`Conflict` and never a lost update.

*Following.* A loader has no threads and tasks of its own. With ``follow=True`` a watch delivers the
changes on the threads for call-backs, of both faces: neither a holder nor a blocked event loop
keeps the cache behind. It takes no entity's lock.

*Loading.* The watch begins before the first page is read. So every change is either in what is
read, or comes as an event, or both; revisions sort that out.

States: *new* → `load` → *loaded* → `close` → *closed*. Locking works from the start: what is not
known is read from the store.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from itertools import compress
from typing import Any, ClassVar, Generic, Protocol, TypeVar, overload

from kvi.entities.cache import Known
from kvi.entities.codecs import Codec
from kvi.entities.records import Owners, Records
from kvi.errors import BadRecord, InvalidArgument, KviError, shown
from kvi.feed import WatchSpec
from kvi.flow.scope import Scope
from kvi.flow.watch import WatchFlow
from kvi.middleware.namespace import check_name
from kvi.model import Event, EventType, KeyValue, Scan, Span
from kvi.mutex import Mutex
from kvi.ops import PageOp, RangeOp
from kvi.port import Port

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
R = TypeVar("R")
Progress = Callable[[int], Awaitable[object]]

_log = logging.getLogger("kvi.loader")
_STEP = 1000  # entities between two calls of a progress function
_PAUSE = 0.01  # seconds between looks whether another load is over
_FEW = 8  # entities between two looks at the clock
_TURN = 0.005  # seconds of decoding, after which others have a turn


class LoaderFlow(Generic[K, V]):
    """The entities of one loader, and how they get into memory. Safe for threads.

    Attributes:
        records: the entities.
        loaded: whether all were read once.
        watch: what brings the changes by others.

    """

    def __init__(
        self,
        scope: Scope,
        owners: Owners,
        path: str,
        codec: Codec[Any],
        key: Callable[[V], K],
        name: Callable[[K], str],
        pack: Callable[[V], Any] | None,
        unpack: Callable[[Any], V] | None,
        *,
        follow: bool,
    ) -> None:
        if (pack is None) != (unpack is None):
            raise InvalidArgument("pack= and unpack= undo each other: give both, or none")
        prefix = f"{check_name(path)}/" if path != "" else ""
        self.records: Records[K, V] = Records(
            scope, owners, prefix, codec, key, name, pack, unpack, self._gets_events
        )
        self.loaded = False
        self.watch: WatchFlow | None = None
        self._follow = follow
        self._once = Mutex()  # held while loading
        self._loads: object = None  # who does
        self._begins = False  # while the watch is begun: its first event may be here already

    @property
    def following(self) -> bool:
        """Whether changes by others still come in."""
        return self.watch is not None and not self.watch.ended and not self.records.scope.closed

    def ensure_loaded(self, operation: str) -> None:
        """Raise `InvalidArgument` before the first load, `Closed` after the end."""
        self.ensure_open(operation)
        if not self.loaded:
            raise InvalidArgument("nothing is loaded yet: call load() first").located(
                operation, self.records.prefix, self.records.scope.uri
            )

    def ensure_open(self, operation: str) -> None:
        """Raise `Closed` if the store or the loader is."""
        records = self.records
        try:
            records.ensure_open()
        except KviError as error:
            raise error.located(operation, records.prefix, records.scope.uri)

    # -- loading ----------------------------------------------------------------------------------

    async def load(
        self, port: Port, progress: Progress | None, timeout: float
    ) -> tuple[BadRecord, ...]:
        """Read all entities; the records that are none."""
        self.records.ensure_open()
        me = self.records.owners.me()
        if self._loads == me:
            raise InvalidArgument(
                f"load() is under way in this {self.records.owners.are}: progress= cannot load"
            )
        while not self._once.acquire(blocking=False):
            await port.sleep(_PAUSE)
            self.records.ensure_open()
        self._loads = me
        try:
            if self._follow and not self.following:
                await self._begin_to_follow(port, timeout)
            while (bad := await self._pass(port, progress, timeout)) is None:
                pass
        finally:
            self._loads = None
            self._once.release()
        self.loaded = True
        return tuple(bad)

    async def _pass(
        self, port: Port, progress: Progress | None, timeout: float
    ) -> list[BadRecord] | None:
        """Read all once; ``None`` if it was overtaken by a snapshot."""
        bad: list[BadRecord] = []
        number = told = 0
        now, cache = port.now, self.records.cache
        scan = Scan(Span.of_prefix(self.records.prefix))
        scope = self.records.scope
        with cache.loading() as run:
            found = await scope.execute(port, RangeOp(scan), timeout)
            pages = PageOp(found, scan)
            try:
                while (page := await scope.execute(port, pages, timeout)) is not None:
                    self.records.ensure_open()
                    turn = now() + _TURN
                    for start in range(0, len(page), _STEP):
                        part = page[start : start + _STEP]
                        good: list[tuple[str, K, Known[V]]] = []
                        for nth, (entry, name) in enumerate(self._news(part)):
                            decoded = self._decode(name, entry)
                            if isinstance(decoded, BadRecord):
                                bad.append(decoded)
                            else:
                                good.append((name, *decoded))
                            if nth % _FEW == 0 and now() > turn:
                                await port.sleep(0)
                                turn = now() + _TURN
                        if not run.overtaken:
                            cache.learn_page(good)
                        number += len(part)
                        if progress is not None and number // _STEP > told:
                            told = number // _STEP
                            await progress(told * _STEP)
            finally:
                pages.close()
            if progress is not None and not run.overtaken and (number % _STEP or not number):
                await progress(number)
        return None if run.overtaken else bad

    # -- following --------------------------------------------------------------------------------

    def _gets_events(self) -> bool:
        return self._begins or self.following

    async def _begin_to_follow(self, port: Port, timeout: float) -> None:
        scope, prefix = self.records.scope, self.records.prefix
        watch = WatchFlow(scope, None, self.on_event, None)
        self._begins = True
        try:
            await watch.begin(port, WatchSpec(Span.of_prefix(prefix), None, False), timeout)
            self.watch = watch
        except KviError as error:
            raise scope.placed(error, "watch", prefix) from error.__cause__
        finally:
            self._begins = False
        if self.records.closed:  # meanwhile
            watch.end()
            self.records.ensure_open()

    def on_event(self, event: Event, data: object) -> bool | None:
        """Take what the watch tells; any thread."""
        records = self.records
        if records.closed:
            return False
        name = event.key.removeprefix(records.prefix)
        if event.type is EventType.RESYNC:
            self._resync(event.snapshot or [])
        elif event.type is EventType.DELETE:
            records.cache.forget(name, event.revision)
        else:
            self._learn(KeyValue(event.key, event.value, event.revision, 0))
        watch = self.watch
        revision = None if watch is None else watch.revision
        if revision is not None:
            records.cache.passed(revision)
        return None

    def _learn(self, entry: KeyValue) -> None:
        """Take what an event says of an entity."""
        cache = self.records.cache
        name = entry.key.removeprefix(self.records.prefix)
        if cache.wants(name, entry.revision):
            decoded = self._decode(name, entry)
            if not isinstance(decoded, BadRecord):
                cache.learn(name, *decoded)

    def _news(self, page: list[KeyValue]) -> list[tuple[KeyValue, str]]:
        """The entries of a page that are not known as they are, with the names of the entities."""
        start = len(self.records.prefix)
        names = [entry.key[start:] for entry in page]
        revisions = (entry.revision for entry in page)
        news = self.records.cache.see_page(zip(names, revisions, strict=True))
        return list(compress(zip(page, names, strict=True), news))

    def _decode(self, name: str, entry: KeyValue) -> tuple[K, Known[V]] | BadRecord:
        """The entity, or what is wrong with it."""
        try:
            return self.records.decode(name, entry)
        except BadRecord as error:
            self.records.cache.spoil(name, error, entry.revision)
            _log.warning("a record is left out: %s", error)
            return error

    def _resync(self, snapshot: Iterable[KeyValue]) -> None:
        records = self.records
        entities: dict[str, tuple[K, Known[V]]] = {}
        bad: dict[str, tuple[BadRecord, int]] = {}
        for entry in snapshot:
            name = entry.key.removeprefix(records.prefix)
            try:
                id, found = records.decode(name, entry)
            except BadRecord as error:
                bad[name] = (error, entry.revision)
                _log.warning("a record is left out: %s", error)
                continue
            known = records.cache.find(name)
            # what is the same stays the same object: who has it may compare
            entities[name] = id, known if known is not None and known == found else found
        records.cache.resync(entities, bad)


# -- what both faces share ------------------------------------------------------------------------


class _Store(Protocol):
    """A handle on a store, of either face."""

    _scope: Scope


S = TypeVar("S", bound=_Store)


class LoaderFace(Generic[S, K, V]):
    """The entities under ``path/``, as far as no store is asked."""

    _takes: ClassVar[tuple[type[Any], str]]  # which handles, and how one gets them
    _owners: ClassVar[Owners]

    @overload
    def __init__(
        self,
        store: S,
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
        store: S,
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
        store: S,
        path: str,
        codec: Codec[Any],
        key: Callable[[V], K],
        *,
        pack: Callable[[V], Any] | None = None,
        unpack: Callable[[Any], V] | None = None,
        name: Callable[[K], str] = str,
        follow: bool = False,
    ) -> None:
        kind, source = self._takes
        if not isinstance(store, kind):
            raise InvalidArgument(f"this Loader takes a handle of {source}, not {shown(store)}")
        self._store = store
        self._flow: LoaderFlow[K, V] = LoaderFlow(
            store._scope, self._owners, path, codec, key, name, pack, unpack, follow=follow
        )

    @property
    def bad(self) -> dict[str, BadRecord]:
        """The records that are no entities, by their keys, as of `load` and what came since."""
        records = self._flow.records
        self._flow.ensure_open("bad")
        return {records.key_of(name): error for name, error in records.cache.bad().items()}

    @property
    def following(self) -> bool:
        """Whether changes by others still come in. An error that ended that is logged.

        A store that is away for a while ends nothing: what was missed comes afterwards.
        """
        return self._flow.following

    def list(self) -> list[K]:
        """A snapshot of the ids of all entities, in no order. Raises before the first `load`."""
        self._flow.ensure_loaded("list")
        return [slot.id for slot in self._flow.records.cache.present()]

    def items(self) -> Iterator[tuple[K, V]]:
        """Each entity with its id, as it is when its turn comes; those of now, in no order.

        Takes no lock of an entity and waits for no holder. The values are shared, and never to be
        modified.
        """
        self._flow.ensure_loaded("items")
        for slot in self._flow.records.cache.present():
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
        records = self._flow.records
        self._flow.ensure_open("peek")
        known = records.cache.find(records.name_of(id))
        return None if known is None else known.value

    def __len__(self) -> int:
        return len(self.list())

    def __repr__(self) -> str:
        flow = self._flow
        records = flow.records
        state = "closed" if records.closed else "loaded" if flow.loaded else "not loaded"
        return f"<Loader {records.prefix!r} {state} {records.scope.uri}>"

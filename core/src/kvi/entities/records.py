"""`Records`: the entities under one path, between the store and the cache, as flows use them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import count
from math import inf
from typing import Any, Generic, NamedTuple, TypeVar

from kvi.entities.cache import Cache, Hold, Known, Slot
from kvi.entities.codecs import Codec
from kvi.entities.typed import TypedEvent
from kvi.errors import BadRecord, Closed, InvalidArgument, KviError, LockTimeout, NotFound, shown
from kvi.flow.scope import Scope
from kvi.model import Event, Get, Key, KeyValue, Put
from kvi.ops import GetOp, TxnOp
from kvi.policy.lock import check_wait
from kvi.policy.txn import check_txn
from kvi.port import Port
from kvi.text import check_bound

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_numbers = count()


class Owners(NamedTuple):
    """Who holds entities, on one of the faces.

    Attributes:
        are: what one of them is, for messages.
        me: tells the one that calls.

    """

    are: str
    me: Callable[[], object]


class Wanted(NamedTuple, Generic[K, V]):
    """An entity that somebody wants to hold, and for how long he waits.

    Attributes:
        records: what it is, or may be, one of.
        id: the id of the entity.
        name: the id as it stands in the key.
        owner: who wants it.
        wait: what the caller gave: seconds, or ``None`` for no end.
        deadline: when the time is up, on the runtime's clock.

    """

    records: Records[K, V]
    id: K
    name: str
    owner: object
    wait: float | None
    deadline: float

    @property
    def place(self) -> tuple[int, str]:
        """Its place in the order of all, in which entities are locked."""
        return self.records.number, self.name


class Records(Generic[K, V]):
    """The entities of one loader. Safe for threads.

    Attributes:
        scope: the handle that they are in.
        prefix: what their keys begin with.
        cache: what is known of them.
        owners: who holds them.
        id_of: tells the id of an entity.
        number: the place of the loader in the order of all, in which entities are locked.
        closed: no more entities are given out.

    """

    def __init__(
        self,
        scope: Scope,
        owners: Owners,
        prefix: str,
        codec: Codec[Any],
        key: Callable[[V], K],
        name: Callable[[K], str],
        pack: Callable[[V], Any] | None,
        unpack: Callable[[Any], V] | None,
        following: Callable[[], bool],
    ) -> None:
        self.scope = scope
        self.owners = owners
        self.prefix = prefix
        self.id_of = key
        self.cache: Cache[K, V] = Cache(following, owners.are)
        self.number = next(_numbers)
        self.closed = False
        self._codec = codec
        self._written = name
        self._pack = pack
        self._unpack = unpack

    def ensure_open(self) -> None:
        """Raise `Closed` if the store or the loader is."""
        self.scope.ensure_open()
        if self.closed:
            raise Closed("the loader is closed; make another one")

    def close(self) -> None:
        """Give out no more; wakes who waits for an entity. Any thread, at any moment."""
        self.closed = True
        if not self.scope.closed:  # else they were woken by that
            self.scope.runtime.post(self.cache.wake)

    def name_of(self, id: K) -> str:
        """The id as it stands in the key."""
        name = self._written(id)
        try:
            check_bound("name", name)
        except InvalidArgument as error:
            raise InvalidArgument(f"the name of an id: {error.message}") from None
        if not name:
            raise InvalidArgument(f"the id {shown(id)} has an empty name; see name= of the loader")
        return name

    def key_of(self, name: str) -> str:
        """The whole key."""
        return self.prefix + name

    def encode(self, name: str, entity: V) -> bytes:
        """The record of an entity as bytes, if it belongs under this name."""
        key = self.key_of(name)
        own = self.name_of(self.id_of(entity))
        if own != name:
            raise InvalidArgument(
                f"this entity is stored under {self.key_of(own)!r}: lock that one, or create it",
                key=key,
            )
        record = entity if self._pack is None else self._pack(entity)
        try:
            data = self._codec.encode(record)
        except KviError as error:
            error.located("encode", key, self.scope.uri)
            raise
        return data

    def decode(self, name: str, entry: KeyValue) -> tuple[K, Known[V]]:
        """An entry as the entity of this name; raises `BadRecord`."""
        assert entry.value is not None
        try:
            record = self._codec.decode(entry.value)
            entity: V = record if self._unpack is None else self._unpack(record)
            id = self.id_of(entity)
            if self._written(id) != name or not name:
                own = self.key_of(self.name_of(id))  # if it is one at all
                raise BadRecord(f"it says that it belongs under {own!r}")
        except Exception as error:
            if isinstance(error, BadRecord):
                error.located("decode", entry.key, self.scope.uri)
                raise
            bad = BadRecord(f"no entity can be made of it: {error!r}")
            raise bad.located("decode", entry.key, self.scope.uri) from error
        return id, tuple.__new__(Known, (entity, entry.revision))

    def decoded(self, entry: KeyValue | None) -> tuple[K, Known[V]] | None:
        """What its holder has found of an entity; a `BadRecord` is noted, and raised."""
        if entry is None:
            return None
        name = entry.key.removeprefix(self.prefix)
        try:
            return self.decode(name, entry)
        except BadRecord as error:
            self.cache.spoil(name, error, entry.revision)
            raise

    def key_of_past(self, id: K) -> str:
        """The whole key of an entity whose past is asked for; raises `Closed`."""
        try:
            self.ensure_open()
            return self.key_of(self.name_of(id))
        except KviError as error:
            raise error.located("past", None, self.scope.uri)

    def past(self, entry: KeyValue) -> V:
        """An entity as it was once, of which the cache learns nothing; raises `BadRecord`."""
        return self.decode(entry.key.removeprefix(self.prefix), entry)[1].value

    def past_event(self, event: Event) -> TypedEvent[V]:
        """A change that was once; raises `BadRecord`."""
        value = None
        if event.value is not None:
            value = self.past(KeyValue(event.key, event.value, event.revision, 0))
        return TypedEvent(event.type, event.key, value, event.revision)

    def want(self, id: K, timeout: float | None) -> Wanted[K, V]:
        """What the caller wants to hold, from now on for ``timeout`` seconds."""
        try:
            name, wait = self.name_of(id), check_wait(timeout)
        except KviError as error:
            raise error.located("lock", None, self.scope.uri)
        deadline = inf if wait is None else self.scope.runtime.now() + wait
        return Wanted(self, id, name, self.owners.me(), wait, deadline)

    def want_each(self, ids: Iterable[K], timeout: float | None) -> list[Wanted[K, V]]:
        """What the caller wants to hold together; an id given twice counts once."""
        by_name = {self.name_of(id): id for id in ids}
        return [self.want(id, timeout) for id in by_name.values()]

    def missing(self, id: K) -> NotFound:
        """The error of whoever needs an entity that is not there."""
        error = NotFound("the entity is not there; lock_or_create() makes one")
        return error.located("lock", self.key_of(self.name_of(id)), self.scope.uri)

    async def take(self, port: Port, wanted: Wanted[K, V]) -> tuple[Slot[K, V], Hold]:
        """Hold an entity, there or not."""
        _, id, name, owner, wait, deadline = wanted
        try:
            taken = await self.cache.take(port, owner, id, name, deadline, self.ensure_open)
            if taken is None:
                raise LockTimeout(f"another {self.owners.are} held the entity for {wait:g} seconds")
        except KviError as error:
            error.located("lock", self.key_of(name), self.scope.uri)
            raise
        return taken

    def let_go(self, slot: Slot[K, V], hold: Hold) -> None:
        """End a hold that nobody got."""
        self.cache.release(slot, hold)
        self.cache.tidy(slot)

    async def read(self, port: Port, slot: Slot[K, V], timeout: float) -> Known[V] | None:
        """Read a slot that is held from the store."""
        scope, key = self.scope, self.key_of(slot.name)
        while True:
            told = slot.told
            try:
                scope.ensure_open()
                entry = await scope.execute(port, GetOp(key), timeout)
            except KviError as error:
                raise scope.placed(error, "get", key) from error.__cause__
            found = self.decoded(entry)
            if self.cache.read(slot, found, told):
                # What is known now may be newer, or an object that is shared already.
                return slot.known if found is None else slot.known or found[1]

    async def create(self, port: Port, slot: Slot[K, V], entity: V) -> tuple[Known[V], bool]:
        """Store an entity that is not there; else read the one that is. What is, and if it is new.

        The answer may be overtaken by news of its end; then the holder has what was true before,
        and the next write finds out.
        """
        scope, key = self.scope, self.key_of(slot.name)
        data = self.encode(slot.name, entity)
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
                    self.cache.wrote(slot, known, told)
                    return known, True
                read = await self.read(port, slot, scope.timeout)  # a store that does not tell
                if read is not None:
                    return read, True
                continue
            (entry,) = done.results
            assert isinstance(entry, KeyValue)  # it is there
            found = self.decoded(entry)
            assert found is not None
            if self.cache.read(slot, found, told):
                return slot.known or found[1], False

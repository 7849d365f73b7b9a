"""The entities that a loader knows, each behind a lock of its own; no I/O happens here.

*Theory.* A `Slot` is the place of one entity, from the moment that somebody locks or learns of it
until it is known not to be there and nobody holds it. Slots stand in a map by name, the part of the
key behind the loader's path. ``known`` is what was last read or written, with its revision; it is
replaced as a whole, so that a reader needs no lock.

Two locks, always taken in this order:

=============  ===============================================  ====================================
lock           held                                             guards
=============  ===============================================  ====================================
``Slot.lock``  by the holder of the entity, over its I/O        who may change the entity here
``_mutex``     for a few instructions                           the map, and every change of a slot
=============  ===============================================  ====================================

*Vacant slots.* A slot whose ``known`` is ``None`` is taken off the map when it is let go, and is
``dead`` then: whoever waited for its lock finds that out, under the mutex, and looks again.

*What comes late.* Changes by others are learnt while nobody, or somebody, holds the slot, so that
what was read may be older than what is known. Revisions decide: older never replaces newer. Two
cases need more than that, for a slot that is gone has no revision:

* An entity was deleted, and a page that was read before, or an event from before, comes in after.
  Its name has a *grave* with the revision up to which it stays dead. Graves are kept while entities
  are loaded, and otherwise for own deletions until their events have come.
* An entity is read for its holder, and is deleted before the answer is here. ``Slot.told`` counts
  what was learnt of it, so that the reader notices, and reads again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Generic, NamedTuple, TypeVar

from kvi.errors import AlreadyHeld, BadRecord

K = TypeVar("K")
V = TypeVar("V")

_FEW = 64  # graves that are not worth a look at which of them may go


class Known(NamedTuple, Generic[V]):
    """An entity as it was at one revision. The value is shared, and never to be modified."""

    value: V
    revision: int


class Slot(Generic[K, V]):
    """The place of one entity.

    Attributes:
        id: the id of the entity.
        name: the id as it stands in the key.
        known: what is known of it; ``None`` if it is not there, or nothing is known.
        doubt: a write whose fate is unknown may have changed it: read it before it is used.
        told: how often something was learnt of it.
        dead: it is off the map; whoever gets its lock looks for another.
        holder: the thread that holds the lock.

    """

    __slots__ = ("dead", "doubt", "holder", "id", "known", "lock", "name", "told")

    def __init__(self, id: K, name: str, known: Known[V] | None = None) -> None:
        self.id = id
        self.name = name
        self.known = known
        self.doubt = False
        self.told = 0
        self.dead = False
        self.holder: int | None = None
        self.lock = threading.Lock()


class Cache(Generic[K, V]):
    """What is known of the entities of one loader. Safe for threads."""

    def __init__(self) -> None:
        self.following = False
        """Whether the events of all changes come, also of our own."""
        self._mutex = threading.Lock()
        self._slots: dict[str, Slot[K, V]] = {}
        self._bad: dict[str, BadRecord] = {}
        self._graves: dict[str, int] = {}
        self._few = _FEW
        self._before: dict[str, Known[V]] | None = None  # while loading: known before, not yet seen

    # -- for holders ------------------------------------------------------------------------------

    def take(self, id: K, name: str, deadline: float | None) -> Slot[K, V] | None:
        """Lock a slot, a vacant one if there was none; ``None`` if others held it too long.

        ``deadline`` is a moment of the monotonic clock; what is past tries once.
        """
        me = threading.get_ident()
        while True:
            with self._mutex:
                slot = self._slots.get(name)
                if slot is None:
                    slot = self._slots[name] = Slot(id, name)
            if slot.holder == me:
                raise AlreadyHeld(
                    "this thread holds the entity already: use that handle, or unlock it first"
                )
            if not slot.lock.acquire(timeout=_left(deadline)):
                return None
            with self._mutex:
                if not slot.dead:
                    slot.holder = me
                    return slot
            slot.lock.release()

    def release(self, slot: Slot[K, V]) -> None:
        """Let go of a slot; a vacant one goes off the map."""
        with self._mutex:
            slot.holder = None
            if slot.known is None:
                self._drop(slot)
            slot.lock.release()  # within, so that who finds it locked knows that this comes

    def read(self, slot: Slot[K, V], known: Known[V] | None, told: int) -> bool:
        """Take what its holder has read; false if it was told otherwise since ``told``: again."""
        with self._mutex:
            if slot.told != told:
                newer = slot.known is not None and (
                    known is None or slot.known.revision >= known.revision
                )
                if not newer:
                    return False
            else:
                slot.known = known
            slot.doubt = False
            self._bad.pop(slot.name, None)
            return True

    def wrote(self, slot: Slot[K, V], known: Known[V]) -> None:
        """Take what its holder has written."""
        with self._mutex:
            if slot.known is None or slot.known.revision <= known.revision:
                slot.known = known  # also where its event came first: the value is to be shared
            slot.doubt = False

    def deleted(self, slot: Slot[K, V], revision: int) -> None:
        """Its holder has deleted what was of this revision."""
        with self._mutex:
            if slot.known is not None and slot.known.revision <= revision:
                slot.known = None
            slot.doubt = False
            if self.following or self._before is not None:
                self._graves[slot.name] = revision

    def doubted(self, slot: Slot[K, V]) -> None:
        """Its holder does not know what became of a write."""
        with self._mutex:
            slot.doubt = True

    # -- for loading and following ----------------------------------------------------------------

    def wants(self, name: str, revision: int) -> bool:
        """Whether an entity of this revision is news, so that decoding it is worth while."""
        slot = self._slots.get(name)
        known = None if slot is None else slot.known
        return known is None or known.revision < revision

    def learn(self, name: str, id: K, known: Known[V]) -> None:
        """An entity was there, at this revision."""
        with self._mutex:
            if self._graves.get(name, -1) >= known.revision:
                return
            slot = self._slots.get(name)
            if slot is None:
                slot = self._slots[name] = Slot(id, name)
            if slot.known is None or slot.known.revision < known.revision:
                slot.known = known
                slot.told += 1
                self._bad.pop(name, None)

    def seen(self, name: str) -> None:
        """While loading: the store has it, at whatever revision."""
        before = self._before
        if before is not None:
            before.pop(name, None)

    def forget(self, name: str, revision: int) -> None:
        """An entity was deleted, at this revision."""
        with self._mutex:
            if self._before is not None:
                self._graves[name] = max(revision, self._graves.get(name, -1))
            self._bad.pop(name, None)
            self._vacate(self._slots.get(name), revision)

    def spoil(self, name: str, error: BadRecord, revision: int) -> None:
        """An entity has become a bad record, at this revision."""
        with self._mutex:
            if self._graves.get(name, -1) < revision:
                self._bad[name] = error
                self._vacate(self._slots.get(name), revision)

    def replace(self, names: set[str], revision: int) -> None:
        """At this revision there was nothing but these; they are learnt beside."""
        with self._mutex:
            for name in self._bad.keys() - names:
                del self._bad[name]
            for slot in [one for one in self._slots.values() if one.name not in names]:
                self._vacate(slot, revision)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While all entities are read; what was known and is neither seen nor changed is gone."""
        with self._mutex:
            self._before = {slot.name: slot.known for slot in self._slots.values() if slot.known}
            self._bad.clear()
        try:
            yield
        except BaseException:
            with self._mutex:
                self._before = None
            raise
        with self._mutex:
            before, self._before = self._before, None
            for name, known in before.items():
                slot = self._slots.get(name)
                if slot is not None and slot.known is known:
                    self._vacate(slot, known.revision + 1)
            if not self.following:
                self._graves.clear()

    def passed(self, revision: int) -> None:
        """Every event up to this revision has come: graves up to it are of no more use."""
        if len(self._graves) > self._few:
            with self._mutex:
                if self._before is None:
                    self._graves = {n: r for n, r in self._graves.items() if r > revision}
                    self._few = max(_FEW, 2 * len(self._graves))

    # -- for readers ------------------------------------------------------------------------------

    def present(self) -> list[Slot[K, V]]:
        """The slots of all entities that are there; takes no lock of an entity."""
        with self._mutex:
            slots = list(self._slots.values())
        return [slot for slot in slots if slot.known is not None]

    def find(self, name: str) -> Known[V] | None:
        """What is known of an entity; takes no lock."""
        slot = self._slots.get(name)
        return None if slot is None else slot.known

    def bad(self) -> dict[str, BadRecord]:
        """The bad records, by name."""
        with self._mutex:
            return dict(self._bad)

    # -- under the mutex --------------------------------------------------------------------------

    def _vacate(self, slot: Slot[K, V] | None, revision: int) -> None:
        if slot is None:
            return
        slot.told += 1
        if slot.known is not None and slot.known.revision < revision:
            slot.known = None
            if not slot.lock.locked():  # else whoever holds it, or is about to, sees to that
                self._drop(slot)

    def _drop(self, slot: Slot[K, V]) -> None:
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]
        slot.dead = True


def _left(deadline: float | None) -> float:
    """Seconds to wait for a lock, as `threading.Lock.acquire` takes them."""
    if deadline is None:
        return -1
    return min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX)

"""The entities that a loader knows, each behind a lock of its own; no I/O happens here.

*Theory.* A `Slot` is the place of one entity, from the moment that somebody locks or learns of it
until it is known not to be there and nobody holds it. Slots stand in a map by name, the part of the
key behind the loader's path. ``known`` is what was last read or written, with its revision; it is
replaced as a whole, so that a reader needs no lock.

*Holding* an entity is having a `Hold`. The slot has only a weak reference to it: the hold ends with
`release`, or with the object itself, so that whatever unwinds the frames of its holder lets the
entity go. Those who wait stand in a queue: who never waits, as a task may, would else always be
faster than they. The first is told of a release, and looks by itself for a hold that ended
otherwise; whoever leaves the queue tells the next.

*One lock*, ``_mutex``, guards the map and every change of a slot, for a few instructions. Taking a
hold needs it; giving one back is one assignment, which may happen at any moment, in a finalizer or
in a signal handler's exception too.

*Vacant slots.* A slot whose ``known`` is ``None`` goes off the map once it is free.

*What comes late.* Changes by others are learnt while nobody, or somebody, holds the slot, so that
what was read may be older than what is known. Revisions decide: older never replaces newer. A slot
that is gone has no revision, and so needs more:

* An entity was deleted, and a page that was read before, or an event from before, comes in after.
  Its name has a *tombstone* with the revision up to which it stays dead. Tombstones are kept while
  entities are loaded, and otherwise for own deletions until their events have come.
* An entity is read or written by its holder, and news of its end come before the answer is here.
  ``Slot.told`` counts what was learnt of it: who reads notices, and reads again; who has written
  leaves it to the events, which tell of that write too.

*Snapshots.* A `RESYNC` is the whole truth at its moment, whatever the revisions say: a store that
was restored counts anew. What was written here after it comes as an event after it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from kvi.errors import AlreadyHeld, BadRecord
from kvi.mutex import Mutex
from kvi.port import Port, Signal

K = TypeVar("K")
V = TypeVar("V")
_SLICE = 0.2  # seconds between looks for a hold that ended without a word


class Known(NamedTuple, Generic[V]):
    """An entity as it was at one revision. The value is shared, and never to be modified."""

    value: V
    revision: int


class Hold:
    """The right to change an entity, for as long as the object lives.

    Attributes:
        owner: the thread, or the task, that has it.

    """

    __slots__ = ("__weakref__", "owner")

    def __init__(self, owner: object) -> None:
        self.owner = owner


class Slot(Generic[K, V]):
    """The place of one entity.

    Attributes:
        id: the id of the entity.
        name: the id as it stands in the key.
        known: what is known of it; ``None`` if it is not there, or nothing is known.
        doubt: a write that is under way, or whose fate is unknown, may have changed it: read it
            before it is used.
        told: how often something was learnt of it.
        held: the hold on it; it may have ended.
        waiting: those who want it, the first of them first.

    """

    __slots__ = ("doubt", "held", "id", "known", "name", "told", "waiting")

    def __init__(self, id: K, name: str, known: Known[V] | None = None) -> None:
        self.id = id
        self.name = name
        self.known = known
        self.doubt = False
        self.told = 0
        self.held: weakref.ref[Hold] | None = None
        self.waiting: list[Signal] | tuple[()] = ()  # a list once somebody has waited

    @property
    def hold(self) -> Hold | None:
        """Who holds it now."""
        held = self.held
        return None if held is None else held()


class Cache(Generic[K, V]):
    """What is known of the entities of one loader. Safe for threads.

    ``following`` tells whether the events of all changes come, also of our own; ``among`` is what
    the holders are, for messages.
    """

    def __init__(self, following: Callable[[], bool], among: str) -> None:
        self._following = following
        self._among = among
        self._mutex = Mutex()
        self._slots: dict[str, Slot[K, V]] = {}
        self._bad: dict[str, BadRecord] = {}
        self._tombstones: dict[str, int] = {}
        self._pass: _Pass[V] | None = None  # while loading

    # -- for holders ------------------------------------------------------------------------------

    async def take(
        self,
        port: Port,
        owner: object,
        id: K,
        name: str,
        deadline: float,
        ensure_open: Callable[[], object],
    ) -> tuple[Slot[K, V], Hold] | None:
        """Hold an entity, a vacant slot if there was none; ``None`` if others held it too long.

        ``deadline`` is a moment of the port's clock; what is past tries once. ``ensure_open``
        raises once nothing is given out any more: closing the store, or `wake`, ends a wait.
        """
        signal = port.signal()
        queued: Slot[K, V] | None = None
        try:
            while True:
                ensure_open()
                with self._mutex:
                    slot = self._slots.get(name)
                    if slot is None:
                        slot = self._slots[name] = Slot(id, name)
                    other = slot.hold
                    if other is None and (not slot.waiting or slot.waiting[0] is signal):
                        hold = Hold(owner)
                        slot.held = weakref.ref(hold)
                        return slot, hold
                    if other is not None and other.owner == owner:
                        raise AlreadyHeld(
                            f"this {self._among} holds the entity already: use that handle, "
                            "or unlock it first"
                        )
                    waiting = slot.waiting = slot.waiting or []
                    del other  # else it would live for as long as this waits for its end
                left = deadline - port.now()
                if left <= 0:
                    return None
                if queued is not slot:  # the slot that it waited at may have gone off the map
                    if queued is not None:
                        _leave(queued, signal)
                    queued = slot
                    waiting.append(signal)
                    continue  # it may have been released before
                await signal.wait(min(left, _SLICE) if waiting[0] is signal else left)
        finally:
            if queued is not None:
                _leave(queued, signal)

    def release(self, slot: Slot[K, V], hold: Hold) -> None:
        """End a hold, wherever this is called from; again, it does nothing."""
        if slot.hold is hold:
            slot.held = None
            _tell_first(slot)

    def wake(self) -> None:
        """Let all who wait look around: the loader was closed."""
        with self._mutex:
            slots = list(self._slots.values())
        for slot in slots:
            for signal in list(slot.waiting):
                signal.set()

    def tidy(self, slot: Slot[K, V]) -> None:
        """Take a slot off the map if it is vacant and free."""
        with self._mutex:
            if slot.known is None and slot.hold is None:
                self._drop(slot)

    def read(self, slot: Slot[K, V], found: tuple[K, Known[V]] | None, told: int) -> bool:
        """Take what its holder has read; false if it was told otherwise since ``told``: again."""
        with self._mutex:
            if slot.told != told:
                newer = slot.known is not None and (
                    found is None or slot.known.revision >= found[1].revision
                )
                if not newer:
                    return False
            elif found is None:
                slot.known = None
            else:
                slot.id, slot.known = found
            slot.doubt = False
            self._bad.pop(slot.name, None)
            return True

    def wrote(self, slot: Slot[K, V], known: Known[V], told: int) -> None:
        """Take what its holder has written, and asked for when it had been ``told`` so much."""
        with self._mutex:
            slot.doubt = False
            self._bad.pop(slot.name, None)
            if slot.known is None:
                if slot.told == told or not self._following():
                    slot.known = known
            elif slot.known.revision <= known.revision:
                slot.known = known  # also where its event came first: the value is to be shared

    def deleted(self, slot: Slot[K, V], revision: int) -> None:
        """Its holder has deleted what was of this revision."""
        with self._mutex:
            slot.doubt = False
            self._bad.pop(slot.name, None)
            if slot.known is not None and slot.known.revision <= revision:
                slot.known = None
            if self._pass is not None or self._following():
                self._bury(slot.name, revision)

    def doubt(self, slot: Slot[K, V], doubt: bool) -> None:
        """Whether its holder does not know what becomes, or became, of a write."""
        with self._mutex:
            slot.doubt = doubt

    # -- for loading and following ----------------------------------------------------------------

    def wants(self, name: str, revision: int) -> bool:
        """Whether an entity of this revision is news, so that decoding it is worth while."""
        with self._mutex:
            return self._wants(name, revision, loading=False)

    def learn(self, name: str, id: K, known: Known[V]) -> None:
        """An entity was there, at this revision; so says an event."""
        with self._mutex:
            self._learn(name, id, known, loading=False)

    def see_page(self, page: Iterable[tuple[str, int]]) -> list[bool]:
        """While loading: a page has these names, each at its revision; which of them are news."""
        with self._mutex:
            run = self._pass
            if run is None or not run.before:
                slots, wants = self._slots, self._wants
                return [n not in slots or wants(n, revision, loading=True) for n, revision in page]
            news = []
            for name, revision in page:
                if name in run.before:
                    run.seen.add(name)
                news.append(self._wants(name, revision, loading=True))
            return news

    def learn_page(self, entities: Iterable[tuple[str, K, Known[V]]]) -> None:
        """While loading: these were there, says a page."""
        with self._mutex:
            slots = self._slots
            plain = not (self._tombstones or self._bad)
            for name, id, known in entities:
                if plain and name not in slots:
                    slots[name] = Slot(id, name, known)
                else:
                    self._learn(name, id, known, loading=True)

    def forget(self, name: str, revision: int) -> None:
        """An entity was deleted, at this revision."""
        with self._mutex:
            if self._pass is not None:
                self._bury(name, revision)
            self._bad.pop(name, None)
            slot = self._slots.get(name)
            if slot is not None:
                slot.told += 1
                if slot.known is not None and slot.known.revision < revision:
                    self._vacate(slot)

    def spoil(self, name: str, error: BadRecord, revision: int) -> None:
        """An entity has become a bad record, at this revision."""
        with self._mutex:
            if self._tombstones.get(name, -1) >= revision:
                return
            slot = self._slots.get(name)
            if slot is not None:
                if slot.known is not None and slot.known.revision >= revision:
                    return
                slot.told += 1
                self._vacate(slot)
            self._bad[name] = error
            if self._pass is not None:
                self._pass.bad.add(name)

    def resync(
        self, entities: dict[str, tuple[K, Known[V]]], bad: dict[str, tuple[BadRecord, int]]
    ) -> None:
        """There is this, and nothing else, whatever is known."""
        with self._mutex:
            self._tombstones.clear()
            if self._pass is not None:
                self._pass.overtaken = True
            self._bad = {name: error for name, (error, _) in bad.items()}
            for one in list(self._slots.values()):
                one.told += 1
                if one.name not in entities:
                    self._vacate(one)
            for name, (id, known) in entities.items():
                slot = self._slots.get(name)
                if slot is None:
                    slot = self._slots[name] = Slot(id, name)
                before = slot.known
                if before is known:
                    continue
                if before is not None and before.revision == known.revision:
                    # no comparison of revisions would keep its holder from overwriting it
                    slot.doubt = slot.doubt or slot.hold is not None
                slot.id, slot.known = id, known

    @contextmanager
    def loading(self) -> Iterator[_Pass[V]]:
        """While all entities are read; what was known and is neither seen nor changed is gone."""
        with self._mutex:
            run = self._pass = _Pass()
            for one in list(self._slots.values()):
                if one.known is not None:
                    run.before[one.name] = one.known
            run.bad_before = set(self._bad)
        try:
            yield run
        except BaseException:
            with self._mutex:
                self._pass = None
            raise
        with self._mutex:
            self._pass = None
            for name in run.before.keys() - run.seen:
                slot = self._slots.get(name)
                if slot is not None and slot.known is run.before[name]:
                    slot.told += 1
                    self._vacate(slot)
            for name in run.bad_before - run.bad:
                self._bad.pop(name, None)
            if not self._following():
                self._tombstones.clear()

    def passed(self, revision: int) -> None:
        """Every event up to this revision has come: tombstones up to it are of no more use."""
        if not self._tombstones:
            return
        with self._mutex:
            while self._pass is None and self._tombstones:
                oldest = next(iter(self._tombstones))
                if self._tombstones[oldest] > revision:
                    break
                del self._tombstones[oldest]

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

    def _wants(self, name: str, revision: int, *, loading: bool) -> bool:
        slot = self._slots.get(name)
        known = None if slot is None else slot.known
        if known is None or known.revision < revision:
            return True
        return loading and known.revision > revision and self._is_from_before(name, known)

    def _learn(self, name: str, id: K, known: Known[V], *, loading: bool) -> None:
        if self._tombstones and self._tombstones.get(name, -1) >= known.revision:
            return
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = Slot(id, name)
        if (
            slot.known is None
            or slot.known.revision < known.revision
            or (loading and self._is_from_before(name, slot.known))  # the store counts anew
        ):
            slot.id, slot.known = id, known
            slot.told += 1
            if self._bad:
                self._bad.pop(name, None)

    def _is_from_before(self, name: str, known: Known[V]) -> bool:
        """Whether it was known before the pass, and nothing was learnt since."""
        return self._pass is not None and self._pass.before.get(name) is known

    def _bury(self, name: str, revision: int) -> None:
        revision = max(revision, self._tombstones.pop(name, -1))
        self._tombstones[name] = revision  # at the end: the first are the oldest, more or less

    def _vacate(self, slot: Slot[K, V]) -> None:
        slot.known = None
        if slot.hold is None:  # else whoever holds it sees to that
            self._drop(slot)

    def _drop(self, slot: Slot[K, V]) -> None:
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]


def _tell_first(slot: Slot[K, V]) -> None:
    for signal in slot.waiting[:1]:
        signal.set()


def _leave(slot: Slot[K, V], signal: Signal) -> None:
    assert isinstance(slot.waiting, list)  # it waited there
    slot.waiting.remove(signal)
    _tell_first(slot)  # which looks for a hold that ends without a word from now on


class _Pass(Generic[V]):
    """One pass over all entities.

    Attributes:
        before: what was known when it began.
        seen: the names that were known before, and stand on a page.
        bad_before: the bad records when it began.
        bad: those that were found since.
        overtaken: a snapshot came meanwhile, so that older pages may have brought back the dead.

    """

    def __init__(self) -> None:
        self.before: dict[str, Known[V]] = {}
        self.seen: set[str] = set()
        self.bad_before: set[str] = set()
        self.bad: set[str] = set()
        self.overtaken = False

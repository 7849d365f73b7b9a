"""Semaphore, RWLock, Slots and Election: what is held by who stands in line."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import kvi
import pytest

from tests.recipes.conftest import FaceOf
from tests.support.waiting import until

LONG = 20.0  # seconds: a waiter that was not woken looks again after 30


def waits(recipe: Any, count: int) -> bool:
    """Whether so many wait."""
    return len(recipe.waiters()) == count


class Waiter:
    """Somebody who waits on a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:  # noqa: BLE001  (raised by `ended`)
            self.error = error

    @property
    def waits(self) -> bool:
        """Whether it has not come to its end."""
        return self._thread.is_alive()

    def ended(self) -> Any:
        """What it got; it must come to its end."""
        self._thread.join(LONG)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def keys(store: kvi.Kvi, name: str) -> list[str]:
    """What is left of a recipe."""
    return [entry.key for entry in store.range(prefix=name, keys_only=True)]


# -- Semaphore -----------------------------------------------------------------------------------


def test_no_more_than_the_limit(face: FaceOf, uri: str) -> None:
    """As many as the limit hold it; the next waits, and gets what is given back."""
    store = face.open(uri)
    first, second, third = (face.Semaphore(store, "s", 2) for _ in range(3))
    assert first.acquire(LONG)
    assert second.acquire(LONG)
    assert not third.acquire(0)
    assert not third.acquire(0.3)
    assert len(first.holders()) == 2
    assert first.waiters() == []
    waiter = Waiter(lambda: third.acquire(LONG))
    until(lambda: len(first.waiters()) == 1)
    first.release()
    assert waiter.ended()
    assert third.held
    assert third.fence > second.fence
    assert len(second.holders()) == 2


def test_first_come_first_served(face: FaceOf, uri: str) -> None:
    """Waiters are served in the order of their coming, on every store."""
    store = face.open(uri)
    holder = face.Semaphore(store, "s", 1)
    assert holder.acquire(LONG)
    served: list[int] = []
    waiters = []

    def wait(number: int) -> None:
        with face.Semaphore(store, "s", 1):
            served.append(number)

    for number in range(5):
        waiters.append(Waiter(partial(wait, number)))
        until(partial(waits, holder, number + 1))
    holder.release()
    for waiter in waiters:
        waiter.ended()
    assert served == list(range(5))
    assert keys(store, "s") == ["s/.kvi/settings"]


def test_resizing(face: FaceOf, uri: str) -> None:
    """Growing lets in exactly as many more; shrinking takes nothing, and lets nobody in before."""
    store = face.open(uri)
    holder = face.Semaphore(store, "s", 1)
    assert holder.acquire(LONG)
    others = [face.Semaphore(store, "s", 1) for _ in range(4)]
    waiters = []
    for number, other in enumerate(others):
        waiters.append(Waiter(partial(other.acquire, LONG)))
        until(partial(waits, holder, number + 1))
    holder.resize(3)
    assert waiters[0].ended()
    assert waiters[1].ended()
    assert len(holder.holders()) == 3
    holder.resize(1)
    assert others[0].held
    assert others[1].held
    others[0].release()
    holder.release()
    assert len(others[1].holders()) == 1
    assert waiters[2].waits
    others[1].release()
    assert waiters[2].ended()
    assert waiters[3].waits
    others[2].release()
    assert waiters[3].ended()


def test_who_gives_up_leaves_nothing(face: FaceOf, uri: str) -> None:
    """A waiter whose time is up leaves nothing that could win, or stand in others' way."""
    store = face.open(uri)
    holder, impatient, patient = (face.Semaphore(store, "s", 1) for _ in range(3))
    assert holder.acquire(LONG)
    leaving = Waiter(lambda: impatient.acquire(1.0))
    until(lambda: len(holder.waiters()) == 1)
    waiting = Waiter(lambda: patient.acquire(LONG))
    until(lambda: len(holder.waiters()) == 2)
    assert leaving.ended() is False
    holder.release()
    assert waiting.ended()
    assert not impatient.held
    patient.release()
    assert keys(store, "s") == ["s/.kvi/settings"]


@pytest.mark.parametrize("recipe", ["Semaphore", "Slots"])
def test_settings_are_the_same_for_all(face: FaceOf, uri: str, recipe: str) -> None:
    """A name with other settings is refused, and the message names both."""
    store = face.open(uri)
    make = getattr(face, recipe)

    def use(count: int) -> None:
        made = make(store, "n", count)
        if recipe == "Slots":
            made.claim(LONG).release()
        else:
            with made:
                pass

    use(2)
    with pytest.raises(kvi.InvalidArgument, match="=2, not 3"):
        use(3)


def test_name_in_use(face: FaceOf, uri: str) -> None:
    """A name is one recipe's at a time, and the message names both."""
    store = face.open(uri)
    with face.Semaphore(store, "s", 1), pytest.raises(kvi.InvalidArgument, match=r"semaphore.*rw"):
        face.RWLock(store, "s").read().acquire(LONG)
    with face.RWLock(store, "r").read(), pytest.raises(kvi.InvalidArgument, match=r"rwlock.*elect"):
        face.Election(store, "r").campaign(LONG)
    with face.Election(store, "e", "x"), pytest.raises(kvi.InvalidArgument, match=r"elect.*slots"):
        face.Slots(store, "e", 1).claim(LONG)
    with store.lock("l"), pytest.raises(kvi.InvalidArgument, match=r"lock.*semaphore"):
        face.Semaphore(store, "l", 1).acquire(LONG)
    with store.lock("l"), pytest.raises(kvi.InvalidArgument, match=r"lock.*election"):
        face.Election(store, "l").campaign(LONG)
    with face.Semaphore(store, "l", 1), face.Semaphore(store, "l/a", 2):
        assert store.lock("r").acquire(LONG)  # left by its readers


@pytest.mark.parametrize("name", ["", ".kvi", "a/.kvi/b", 7])
def test_bad_names(face: FaceOf, uri: str, name: Any) -> None:
    """A bad name is refused before anything is sent."""
    store = face.open(uri)
    for recipe, arguments in (
        ("Semaphore", (1,)),
        ("RWLock", ()),
        ("Slots", (1,)),
        ("Election", ()),
    ):
        with pytest.raises(kvi.InvalidKey):
            getattr(face, recipe)(store, name, *arguments)
    assert list(store.range()) == []


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2"])
def test_bad_counts(face: FaceOf, uri: str, count: Any) -> None:
    """So is a bad number of holders."""
    store = face.open(uri)
    with pytest.raises(kvi.InvalidArgument, match="limit"):
        face.Semaphore(store, "s", count)
    with pytest.raises(kvi.InvalidArgument, match="size"):
        face.Slots(store, "s", count)


# -- RWLock --------------------------------------------------------------------------------------


def test_readers_share_and_writers_do_not(face: FaceOf, uri: str) -> None:
    """Readers hold it together; a writer waits for all of them, and keeps later ones out."""
    store = face.open(uri)
    locks = [face.RWLock(store, "rw") for _ in range(4)]
    first, second, late = locks[0].read(), locks[1].read(), locks[3].read()
    writer = locks[2].write()
    assert first.acquire(LONG)
    assert second.acquire(LONG)
    writing = Waiter(lambda: writer.acquire(LONG))
    until(lambda: len(contenders(store, "rw")) == 3)
    assert not late.acquire(0.3)  # it waits for an earlier writer, so that none starves
    reading = Waiter(lambda: late.acquire(LONG))
    until(lambda: len(contenders(store, "rw")) == 4)
    first.release()
    assert writing.waits
    second.release()
    assert writing.ended()
    assert writer.held
    assert reading.waits
    writer.release()
    assert reading.ended()
    late.release()
    assert keys(store, "rw") == []


def contenders(store: kvi.Kvi, name: str) -> list[kvi.KeyValue]:
    """Who stands in a recipe's line."""
    return [one for one in store.range(prefix=f"{name}/.kvi/") if one.lease is not None]


def test_downgrade(face: FaceOf, uri: str) -> None:
    """A writer goes on as a reader: readers behind it come in, a writer does not."""
    store = face.open(uri)
    held = face.RWLock(store, "rw").write()
    reader, writer = face.RWLock(store, "rw").read(), face.RWLock(store, "rw").write()
    assert held.acquire(LONG)
    fence = held.fence
    reading = Waiter(lambda: reader.acquire(LONG))
    until(lambda: len(contenders(store, "rw")) == 2)
    writing = Waiter(lambda: writer.acquire(LONG))
    until(lambda: len(contenders(store, "rw")) == 3)
    held.downgrade()
    assert reading.ended()
    assert held.held
    assert held.fence == fence
    assert store.txn([held.guard], [kvi.Put("x", "1")])
    assert writing.waits
    held.release()
    assert writing.waits
    reader.release()
    assert writing.ended()
    writer.release()
    with pytest.raises(kvi.NotHeld):
        writer.downgrade()


def test_no_upgrade(uri: str) -> None:
    """The thread that holds a lock gets `AlreadyHeld` for another one of the same object."""
    with kvi.open(uri) as store:
        lock = kvi.recipes.RWLock(store, "rw")
        with lock.read():
            with pytest.raises(kvi.AlreadyHeld):
                lock.write().acquire(LONG)
            with pytest.raises(kvi.AlreadyHeld):
                lock.read().acquire(LONG)
            another = Waiter(lambda: lock.read().acquire(LONG))
            assert another.ended()
        with lock.write(), pytest.raises(kvi.AlreadyHeld):
            lock.read().acquire(LONG)


# -- Slots ---------------------------------------------------------------------------------------


def test_slots_are_unique(face: FaceOf, uri: str) -> None:
    """Each index has one holder; what is given back is given out again, the smallest first."""
    store = face.open(uri)
    slots = face.Slots(store, "ids", 3)
    held = [slots.claim(LONG) for _ in range(3)]
    assert [slot.index for slot in held] == [0, 1, 2]
    with pytest.raises(kvi.LockTimeout):
        slots.claim(0)
    held[1].release()
    again = slots.claim(LONG)
    assert again.index == 1
    assert again.held
    assert store.txn([again.guard], [kvi.Put("x", "1")])
    for slot in (held[0], held[2], again):
        slot.release()
    assert keys(store, "ids") == ["ids/.kvi/settings"]


def test_slot_of_a_lost_holder(face: FaceOf, uri: str, ttl: float) -> None:
    """A lost slot is given out again only once its holder has surely noticed."""
    store, other = face.open(uri), face.open(uri)
    lost = face.Slots(store, "ids", 1, ttl=ttl).claim(LONG)
    lease = contenders(other, "ids")[0].lease
    assert lease is not None
    other._do(kvi.ops.RevokeOp(lease), 5.0)  # somebody ends its lease: it does not know yet
    claimed = face.Slots(other, "ids", 1, ttl=ttl).claim(LONG)
    assert not lost.held
    assert claimed.index == 0
    claimed.release()


# -- Election ------------------------------------------------------------------------------------


def test_election(face: FaceOf, uri: str) -> None:
    """One leads, everybody sees it, and the next one follows it."""
    store = face.open(uri)
    first, second = face.Election(store, "boss", "a"), face.Election(store, "boss", b"b")
    assert first.leader() is None
    assert first.campaign(LONG)
    assert first.held
    leader = second.leader()
    assert leader is not None
    assert leader.value == b"a"
    assert leader.fence == first.fence
    assert not second.campaign(0.3)
    waiting = Waiter(lambda: second.campaign(LONG))
    until(lambda: len(first.contenders()) == 2)
    first.proclaim("a2")
    assert second.leader().value == b"a2"
    assert first.contenders()[0].value == b"a2"
    guard = first.guard
    first.resign()
    assert waiting.ended()
    assert second.leader().value == b"b"
    assert second.fence > leader.fence
    assert not store.txn([guard], [kvi.Put("x", "1")])
    assert store.txn([second.guard], [kvi.Put("x", "2")])
    first.resign()
    with pytest.raises(kvi.NotHeld):
        first.proclaim("a3")
    second.resign()
    assert second.leader() is None
    assert keys(store, "boss") == []


def test_election_as_a_block(face: FaceOf, uri: str) -> None:
    """A block leads from its beginning to its end."""
    store = face.open(uri)
    with face.Election(store, "boss", "a") as election:
        assert election.held
    assert election.leader() is None


def test_observing(face: FaceOf, uri: str) -> None:
    """An observer hears of each lasting change, also that nobody leads, and ends at the truth."""
    store, other = face.open(uri), face.open(uri)
    leading, observing = face.Election(store, "boss", "a"), face.Election(other, "boss")
    with observing.observe() as seen:
        assert next(seen) is None
        assert leading.campaign(LONG)
        assert next(seen).value == b"a"
        leading.proclaim("b")
        assert next(seen).value == b"b"
        leading.resign()
        assert next(seen) is None


def test_leader_lost(face: FaceOf, uri: str, ttl: float) -> None:
    """A leader whose lease is gone finds out, and the next one leads."""
    store, other = face.open(uri), face.open(uri)
    first, second = face.Election(store, "boss", "a", ttl=ttl), face.Election(other, "boss", "b")
    assert first.campaign(LONG)
    guard = first.guard
    lease = contenders(other, "boss")[0].lease
    assert lease is not None
    other._do(kvi.ops.RevokeOp(lease), 5.0)
    assert second.campaign(LONG)
    assert not store.txn([guard], [kvi.Put("x", "1")])
    assert first.lost.wait(LONG)
    assert not first.held

"""Recipes that are held by who stands in line: section 14 of the contract."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import kvi
from kvi.conformance.contract import rule
from kvi.conformance.on_loop import OnLoop
from kvi.conformance.recipes import WITHIN, Recipes, Waiter
from kvi.conformance.rules import Rules
from kvi.conformance.trace import plain
from kvi.conformance.waiting import side_by_side, until

SHORT = 0.3  # seconds that a waiter waits in vain

face = Recipes()


def keys(store: kvi.Kvi, name: str) -> list[str]:
    """What is left of a recipe."""
    return [entry.key for entry in store.range(prefix=name, keys_only=True)]


def line(store: kvi.Kvi, name: str) -> list[int]:
    """The leases of those who stand in a recipe's line."""
    found = store.range(prefix=f"{name}/.kvi/")
    return [entry.lease for entry in found if entry.lease is not None]


def waits(recipe: Any, count: int) -> bool:
    """Whether so many wait."""
    return len(recipe.waiters()) == count


def end_lease(store: kvi.Kvi, lease: int) -> None:
    """End a lease that somebody else has."""
    store._scope.primitives._lease_revoke(lease, 5)


class RecipeRules(Rules):
    """The fixtures of recipes."""

    @pytest.fixture(autouse=True)
    def _able(self, kvi_uri: str) -> None:
        """Where ranges are not of one moment, no recipe runs, and each says so."""
        with kvi.open(kvi_uri) as store:
            if not store.capabilities.atomic_range:
                for make in (face.Semaphore, face.Slots):
                    with pytest.raises(kvi.NotSupported):
                        make(store, "s", 1)
                pytest.skip("declared: ranges are not of one moment")


class TestRecipes(RecipeRules):
    """What is contended for, and by whom it is had."""

    @rule("semaphore.limit")
    def test_no_more_than_the_limit(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """As many as the limit hold it; the next waits, and gets what is given back."""
        first, second, third = (face.Semaphore(store, "s", 2) for _ in range(3))
        assert first.acquire(WITHIN)
        assert second.acquire(WITHIN)
        assert not third.acquire(0)
        assert not third.acquire(SHORT)
        assert len(first.holders()) == 2
        assert first.waiters() == []
        waiter = Waiter(lambda: third.acquire(WITHIN))
        until(lambda: len(first.waiters()) == 1)
        first.release()
        assert waiter.ended()
        assert third.held
        assert third.fence > second.fence
        assert len(second.holders()) == 2

    @rule("semaphore.order", "recipe.leaves")
    def test_first_come_first_served(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Waiters are served in the order of their coming, on every store."""
        holder = face.Semaphore(store, "s", 1)
        assert holder.acquire(WITHIN)
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

    @rule("semaphore.resize", "semaphore.limit")
    def test_resizing(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Growing lets in as many more; shrinking takes nothing, and lets nobody in before."""
        holder = face.Semaphore(store, "s", 1)
        assert holder.acquire(WITHIN)
        others = [face.Semaphore(store, "s", 1) for _ in range(4)]
        waiters = []
        for number, other in enumerate(others):
            waiters.append(Waiter(partial(other.acquire, WITHIN)))
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

    @rule("semaphore.no-ghost", "recipe.leaves")
    def test_who_gives_up_leaves_nothing(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A waiter whose time is up leaves nothing that could win, or stand in others' way."""
        holder, impatient, patient = (face.Semaphore(store, "s", 1) for _ in range(3))
        assert holder.acquire(WITHIN)
        leaving = Waiter(lambda: impatient.acquire(1.0))
        until(lambda: len(holder.waiters()) == 1)
        waiting = Waiter(lambda: patient.acquire(WITHIN))
        until(lambda: len(holder.waiters()) == 2)
        assert leaving.ended() is False
        holder.release()
        assert waiting.ended()
        assert not impatient.held
        patient.release()
        assert keys(store, "s") == ["s/.kvi/settings"]

    @rule("recipe.name")
    @pytest.mark.parametrize("recipe", ["Semaphore", "Slots"])
    def test_settings_are_the_same_for_all(
        self, store: kvi.Kvi, peer: kvi.Kvi, recipe: str
    ) -> None:
        """A name with other settings is refused, and the message names both."""
        make = getattr(face, recipe)

        def use(count: int) -> None:
            made = make(store, "n", count)
            if recipe == "Slots":
                made.claim(WITHIN).release()
            else:
                with made:
                    pass

        use(2)
        with pytest.raises(kvi.InvalidArgument, match="=2, not 3"):
            use(3)

    @rule("recipe.name")
    def test_name_in_use(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A name is one recipe's at a time, and the message names both."""
        with (
            face.Semaphore(store, "s", 1),
            pytest.raises(kvi.InvalidArgument, match=r"semaphore.*rw"),
        ):
            face.RWLock(store, "s").read().acquire(WITHIN)
        with (
            face.RWLock(store, "r").read(),
            pytest.raises(kvi.InvalidArgument, match=r"rwlock.*elect"),
        ):
            face.Election(store, "r").campaign(WITHIN)
        with (
            face.Election(store, "e", "x"),
            pytest.raises(kvi.InvalidArgument, match=r"elect.*slots"),
        ):
            face.Slots(store, "e", 1).claim(WITHIN)
        with store.lock("l"), pytest.raises(kvi.InvalidArgument, match=r"lock.*semaphore"):
            face.Semaphore(store, "l", 1).acquire(WITHIN)
        with store.lock("l"), pytest.raises(kvi.InvalidArgument, match=r"lock.*election"):
            face.Election(store, "l").campaign(WITHIN)
        with face.Semaphore(store, "l", 1), face.Semaphore(store, "l/a", 2):
            assert store.lock("r").acquire(WITHIN)  # left by its readers

    @rule("recipe.invalid")
    @pytest.mark.parametrize("name", ["", ".kvi", "a/.kvi/b", 7])
    def test_bad_names(self, store: kvi.Kvi, peer: kvi.Kvi, name: Any) -> None:
        """A bad name is refused before anything is sent."""
        for recipe, arguments in (
            ("Semaphore", (1,)),
            ("RWLock", ()),
            ("Slots", (1,)),
            ("Election", ()),
        ):
            with pytest.raises(kvi.InvalidKey):
                getattr(face, recipe)(store, name, *arguments)
        assert list(store.range()) == []

    @rule("recipe.invalid")
    @pytest.mark.parametrize("count", [0, -1, True, 1.5, "2"])
    def test_bad_counts(self, store: kvi.Kvi, peer: kvi.Kvi, count: Any) -> None:
        """So is a bad number of holders."""
        with pytest.raises(kvi.InvalidArgument, match="limit"):
            face.Semaphore(store, "s", count)
        with pytest.raises(kvi.InvalidArgument, match="size"):
            face.Slots(store, "s", count)

    @rule("rwlock.share", "rwlock.order", "recipe.leaves")
    def test_readers_share_and_writers_do_not(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Readers hold it together; a writer waits for all of them, and keeps later ones out."""
        locks = [face.RWLock(store, "rw") for _ in range(4)]
        first, second, late = locks[0].read(), locks[1].read(), locks[3].read()
        writer = locks[2].write()
        assert first.acquire(WITHIN)
        assert second.acquire(WITHIN)
        writing = Waiter(lambda: writer.acquire(WITHIN))
        until(lambda: len(line(store, "rw")) == 3)
        assert not late.acquire(SHORT)  # it waits for an earlier writer, so that none starves
        reading = Waiter(lambda: late.acquire(WITHIN))
        until(lambda: len(line(store, "rw")) == 4)
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

    @rule("rwlock.downgrade")
    def test_downgrade(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A writer goes on as a reader: readers behind it come in, a writer does not."""
        held = face.RWLock(store, "rw").write()
        reader, writer = face.RWLock(store, "rw").read(), face.RWLock(store, "rw").write()
        assert held.acquire(WITHIN)
        fence = held.fence
        reading = Waiter(lambda: reader.acquire(WITHIN))
        until(lambda: len(line(store, "rw")) == 2)
        writing = Waiter(lambda: writer.acquire(WITHIN))
        until(lambda: len(line(store, "rw")) == 3)
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

    @rule("rwlock.no-upgrade")
    def test_no_upgrade(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The thread that holds a lock gets `AlreadyHeld` for another one of the same object."""
        lock = face.RWLock(store, "rw")
        if isinstance(plain(store), OnLoop):  # each call is a task of its own there
            return
        with lock.read():
            with pytest.raises(kvi.AlreadyHeld):
                lock.write().acquire(WITHIN)
            with pytest.raises(kvi.AlreadyHeld):
                lock.read().acquire(WITHIN)
            another = Waiter(lambda: lock.read().acquire(WITHIN))
            assert another.ended()
        with lock.write(), pytest.raises(kvi.AlreadyHeld):
            lock.read().acquire(WITHIN)

    @rule("slots.unique", "recipe.leaves")
    def test_slots_are_unique(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Each index has one holder; what is given back is given out again, the smallest first."""
        slots = face.Slots(store, "ids", 3)
        held = [slots.claim(WITHIN) for _ in range(3)]
        assert [slot.index for slot in held] == [0, 1, 2]
        with pytest.raises(kvi.LockTimeout):
            slots.claim(0)
        held[1].release()
        again = slots.claim(WITHIN)
        assert again.index == 1
        assert again.held
        assert store.txn([again.guard], [kvi.Put("x", "1")])
        for slot in (held[0], held[2], again):
            slot.release()
        assert keys(store, "ids") == ["ids/.kvi/settings"]

    @rule("slots.lost")
    @side_by_side
    def test_slot_of_a_lost_holder(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A lost slot is given out again only once its holder has surely noticed."""
        lost = face.Slots(store, "ids", 1, ttl=brief).claim(WITHIN)
        (lease,) = line(peer, "ids")
        end_lease(peer, lease)  # it does not know yet
        claimed = face.Slots(peer, "ids", 1, ttl=brief).claim(WITHIN)
        assert not lost.held
        assert claimed.index == 0
        claimed.release()

    @rule("election.one", "election.leader", "recipe.leaves")
    def test_election(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """One leads, everybody sees it, and the next one follows it."""
        first, second = face.Election(store, "boss", "a"), face.Election(store, "boss", b"b")
        assert first.leader() is None
        assert first.campaign(WITHIN)
        assert first.held
        leader = second.leader()
        assert leader is not None
        assert leader.value == b"a"
        assert leader.fence == first.fence
        assert not second.campaign(SHORT)
        waiting = Waiter(lambda: second.campaign(WITHIN))
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

    @rule("election.one")
    def test_election_as_a_block(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A block leads from its beginning to its end."""
        with face.Election(store, "boss", "a") as election:
            assert election.held
        assert election.leader() is None

    @rule("election.observe")
    def test_observing(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """An observer hears of each lasting change, also that nobody leads."""
        leading, observing = face.Election(store, "boss", "a"), face.Election(peer, "boss")
        with observing.observe() as seen:
            assert next(seen) is None
            assert leading.campaign(WITHIN)
            assert next(seen).value == b"a"
            leading.proclaim("b")
            assert next(seen).value == b"b"
            leading.resign()
            assert next(seen) is None

    @rule("election.lost")
    @side_by_side
    def test_leader_lost(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A leader whose lease is gone finds out, and the next one leads."""
        first, second = (
            face.Election(store, "boss", "a", ttl=brief),
            face.Election(peer, "boss", "b"),
        )
        assert first.campaign(WITHIN)
        guard = first.guard
        lease = int(second.leader().id, 16)
        end_lease(peer, lease)
        assert second.campaign(WITHIN)
        assert not store.txn([guard], [kvi.Put("x", "1")])
        assert first.lost.wait(WITHIN)
        assert not first.held

"""Recipes of what is done, counted and known together: section 14 of the contract."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import pytest

import kvi
from kvi.conformance.contract import rule
from kvi.conformance.recipes import WITHIN, Recipes, Waiter
from kvi.conformance.suite.recipes import RecipeRules, end_lease, keys, line
from kvi.conformance.waiting import side_by_side, until

SHORT = 0.3  # seconds that somebody waits in vain

face = Recipes()


def next_of(events: Any, count: int) -> list[tuple[str, bytes]]:
    """So many events of a group: what they tell, and of what value."""
    return [
        (str(event.type), event.member.value)
        for _, event in zip(range(count), events, strict=False)
    ]


class TestMeetings(RecipeRules):
    """Who is there, and who waits for whom."""

    @rule("group.members", "recipe.leaves")
    def test_members(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Members are seen with their values, in the order of their joining, until they leave."""
        group, other = face.Group(store, "g"), face.Group(peer, "g")
        first = group.join("a", id="one")
        second = other.join(b"\n\xff")
        assert [(m.id, m.value) for m in other.members()] == [
            ("one", b"a"),
            (second.id, b"\n\xff"),
        ]
        assert first.alive
        with pytest.raises(kvi.AlreadyHeld, match="one"):
            other.join(id="one")
        first.update("a2")
        assert other.members()[0].value == b"a2"
        first.leave()
        first.leave()
        assert not first.alive
        with pytest.raises(kvi.NotHeld):
            first.update("a3")
        second.leave()
        assert group.members() == []
        assert keys(store, "g") == []

    @rule("group.watch")
    def test_watching(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A watch begins with all members, and tells each lasting change."""
        group = face.Group(store, "g")
        with group.join("a") as first, face.Group(peer, "g").watch() as seen:
            assert next_of(seen, 1) == [("JOINED", b"a")]
            second = group.join("b")
            assert next_of(seen, 1) == [("JOINED", b"b")]
            first.update("a2")
            assert next_of(seen, 1) == [("UPDATED", b"a2")]
            second.leave()
            assert next_of(seen, 1) == [("LEFT", b"b")]

    @rule("group.rejoin")
    @side_by_side
    def test_rejoining(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A member that is lost joins again with its present value; one that has left does not."""
        group = face.Group(store, "g", ttl=brief)
        member, plain = group.join("a", id="m"), group.join("b", rejoin=False)
        member.update("a2")
        joined = group.members()[0].joined
        for entry in peer.range(prefix="g/"):
            assert entry.lease is not None
            end_lease(peer, entry.lease)
        until(lambda: member.alive and member.rejoined == 1)
        until(lambda: not plain.alive)
        (found,) = face.Group(peer, "g").members()
        assert (found.id, found.value, found.joined) == ("m", b"a2", joined)
        member.leave()
        assert group.members() == []

    @rule("barrier.all")
    def test_all_pass(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """All parties pass together, in the order of arrival, generation by generation."""
        for _ in range(3):
            first = Waiter(face.Barrier(store, "b", 3).wait)
            until(lambda: len(line(store, "b")) == 1)
            second = Waiter(face.Barrier(peer, "b", 3).wait)
            until(lambda: len(line(store, "b")) == 2)
            assert face.Barrier(store, "b", 3).wait(WITHIN) == 2
            assert (first.ended(), second.ended()) == (0, 1)
            until(lambda: line(store, "b") == [])
        left = Waiter(partial(face.Barrier(peer, "b", 2 + 1).leave, WITHIN))
        other = Waiter(partial(face.Barrier(peer, "b", 3).leave, WITHIN))
        assert face.Barrier(store, "b", 3).leave(WITHIN) in range(3)
        assert {left.ended(), other.ended()} < set(range(3))

    @rule("barrier.timeout")
    def test_time_is_up(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Who does not wait any longer leaves, and the others wait on."""
        patient = Waiter(face.Barrier(store, "b", 2).wait)
        until(lambda: len(line(store, "b")) == 1)
        waiting, late = face.Barrier(peer, "b3", 3), face.Barrier(peer, "b", 2)
        with pytest.raises(kvi.LockTimeout):
            waiting.wait(SHORT)
        with pytest.raises(kvi.LockTimeout):
            waiting.wait(0)
        assert patient.waits
        assert late.wait(WITHIN) == 1
        assert patient.ended() == 0

    @rule("barrier.broken")
    def test_party_lost(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """If a party is lost, all that wait are told, itself too; the next generation is whole."""
        barrier = face.Barrier(store, "b", 3)
        first, second = Waiter(barrier.wait), Waiter(face.Barrier(peer, "b", 3).wait)
        until(lambda: len(line(store, "b")) == 2)
        end_lease(peer, line(store, "b")[0])
        for waiter in (first, second):
            with pytest.raises(kvi.BrokenBarrier):
                waiter.ended()
        again = [Waiter(partial(barrier.wait, WITHIN)) for _ in range(2)]
        assert sorted([barrier.wait(WITHIN), *(one.ended() for one in again)]) == [0, 1, 2]


class TestNumbers(RecipeRules):
    """What is counted, and copied."""

    @rule("counter.total")
    def test_totals(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """What many add at once is all in the total."""

        def add(handle: kvi.Kvi) -> None:
            counter = face.Counter(handle, "c")
            for _ in range(10):
                counter.add(timeout=WITHIN)

        waiters = [Waiter(partial(add, handle)) for handle in (store, peer, store, peer)]
        for waiter in waiters:
            waiter.ended()
        counter = face.Counter(store, "c")
        assert counter.value() == 40
        assert counter.add(-50) == -10

    @rule("counter.once")
    def test_named_additions(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """An addition with a name is counted once, however often, by whichever handle."""
        counter, other = face.Counter(store, "c"), face.Counter(peer, "c")
        assert counter.add(5, op="a") == 5
        assert other.add(1, op="b") == 6
        assert other.add(5, op="a") == 5
        assert counter.value() == 6
        with pytest.raises(kvi.InvalidArgument, match="op="):
            counter.add(6, op="a")
        for bad in (True, 1.5, "1"):
            with pytest.raises(kvi.InvalidArgument):
                counter.add(bad)
        with pytest.raises(kvi.InvalidKey):
            counter.add(op="")

    @rule("sequence.unique")
    def test_unique_numbers(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """No number is given twice, and each caller's grow."""
        found: list[list[int]] = []

        def take(handle: kvi.Kvi, block: int) -> None:
            sequence = face.Sequence(handle, "n", block=block)
            found.append([sequence.next() for _ in range(20)])

        waiters = [Waiter(partial(take, handle, n)) for n, handle in enumerate((store, peer), 1)]
        for waiter in waiters:
            waiter.ended()
        assert all(numbers == sorted(numbers) for numbers in found)
        whole = [number for numbers in found for number in numbers]
        assert len(set(whole)) == len(whole) == 40
        assert min(whole) == 1

    @rule("cache.live")
    def test_live_copy(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A cache has what is below its prefix, sorted, and follows it; `wait` reads own writes."""
        store.store("c/b", b"1")
        store.store("d", b"beside")
        with face.Cache(peer, "c/") as cache:
            assert dict(cache.items()) == {"b": b"1"}
            told: list[Any] = []
            cache.on_change(told.append)
            assert cache.wait(store.store("c/a", b"2"), WITHIN)
            assert list(cache) == ["a", "b"]
            assert cache["a"] == b"2"
            store.delete("c/b")
            revision = store.store("c/c", b"3")
            assert cache.wait(revision, WITHIN)
            assert list(cache) == ["a", "c"]
            assert cache.revision >= revision
            until(lambda: len(told) == 3)
            assert sorted((c.key, c.before, c.value) for c in told) == [
                ("a", None, b"2"),
                ("b", b"1", None),
                ("c", None, b"3"),
            ]
            if store.capabilities.snapshot_range:
                assert cache.wait(store.store("elsewhere", b""), WITHIN)
            assert not cache.wait(revision + 10**6, SHORT)
            assert cache.get("nothing") is None

    @rule("cache.age")
    def test_age(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """With ``max_age`` a cache looks again by itself, and so stays readable."""
        store.store("c/a", b"1")
        with face.Cache(peer, "c/", max_age=1.5) as cache:
            until(lambda: cache.age > 0.3)
            until(lambda: cache.age < 0.3)  # it has looked
            assert cache["a"] == b"1"
        for bad in (0, -1, True, "1"):
            with pytest.raises(kvi.InvalidArgument, match="max_age"):
                face.Cache(peer, "c/", max_age=bad)


class TestWork(RecipeRules):
    """What is done once, in turn, or at its times."""

    @rule("once.single")
    def test_done_once(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Of many one does it; all get its result, also those that come later."""
        ran: list[bool] = []

        def work(held: Any) -> str:
            ran.append(held.held)
            return "done"

        waiters = [
            Waiter(partial(face.Once(handle, "m").run, work)) for handle in (store, peer) * 3
        ]
        assert [waiter.ended() for waiter in waiters] == [b"done"] * 6
        assert ran == [True]
        once = face.Once(peer, "m")
        assert once.result() == b"done"
        assert once.run(work, 0) == b"done"
        once.reset()
        assert once.result() is None
        assert once.run(work) == b"done"
        assert ran == [True, True]

    @rule("once.error")
    def test_error_lets_the_next_one_try(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """An error comes out of the call that had it, and the next one does it."""
        entered, go_on = threading.Event(), threading.Event()

        def fail(held: Any) -> None:
            entered.set()
            go_on.wait(WITHIN)
            raise ValueError("as the test wants it")

        failing = Waiter(partial(face.Once(store, "m").run, fail))
        assert entered.wait(WITHIN)
        next_one = face.Once(peer, "m")
        with pytest.raises(kvi.LockTimeout):
            next_one.run(fail, SHORT)
        waiting = Waiter(partial(next_one.run, lambda held: b"\x00"))
        go_on.set()
        with pytest.raises(ValueError, match="as the test wants"):
            failing.ended()
        assert waiting.ended() == b"\x00"
        with pytest.raises(kvi.InvalidArgument):
            face.Once(store, "n").run(lambda held: 7)

    @rule("queue.order")
    def test_order(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Larger priority first, then first in; what is acknowledged is gone."""
        queue, other = face.Queue(store, "q"), face.Queue(peer, "q")
        for put, priority in (("a", 0), ("b", 0), ("low", -1), ("high", 9)):
            queue.put(put, priority=priority)
        assert other.count() == 4
        for value in (b"high", b"a", b"b", b"low"):
            job = other.get(0)
            assert (job.value, job.attempt, job.held) == (value, 1, True)
            assert peer.txn([job.guard], [kvi.Put("x", value)])
            guard = job.guard
            job.ack()
            job.ack()
            assert not job.held
            assert not peer.txn([guard], [kvi.Put("x", b"late")])
        assert other.get(0) is None
        assert other.count() == 0

    @rule("queue.again")
    def test_delivered_again(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A job that is given back, or lost, is delivered again, and its attempts are counted."""
        queue, other = face.Queue(store, "q"), face.Queue(peer, "q")
        queue.put("a")
        job = queue.get(0)
        assert other.get(0) is None
        assert other.count() == 1
        job.nack()
        again = other.get(0)
        assert (again.value, again.attempt) == (b"a", 2)
        (lease,) = {entry.lease for entry in store.range(prefix="q/.kvi.by/")}
        assert lease is not None
        end_lease(store, lease)
        third = queue.get(WITHIN)
        assert (third.value, third.attempt) == (b"a", 3)
        with pytest.raises(kvi.NotHeld):
            again.ack()
        third.ack()
        assert queue.count() == 0

    @rule("queue.waits")
    def test_waiting(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Who waits gets what is put; one put is for one of them."""
        queue = face.Queue(store, "q")
        assert queue.get(SHORT) is None
        waiters = [Waiter(partial(face.Queue(peer, "q").get, WITHIN)) for _ in range(3)]
        until(lambda: len(line(store, "q")) == 3)
        for number in range(3):
            queue.put(str(number))
        jobs = [waiter.ended() for waiter in waiters]
        assert sorted(job.value for job in jobs) == [b"0", b"1", b"2"]
        for job in jobs:
            job.ack()

    @rule("queue.dedup")
    def test_dedup(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A job with the same `dedup` is put once, until it is acknowledged."""
        queue = face.Queue(store, "q")
        first = queue.put("a", dedup="x")
        assert face.Queue(peer, "q").put("b", dedup="x") == first
        job = queue.get(0)
        assert queue.put("c", dedup="x") == first
        job.nack()
        assert queue.put("c", dedup="x") == first
        queue.get(0).ack()
        assert queue.put("d", dedup="x") != first
        assert queue.count() == 1
        queue.get(0).ack()

    @rule("queue.dead")
    def test_dead(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A job whose attempts are used up is dead, and nobody gets it."""
        queue = face.Queue(store, "q", max_attempts=2)
        queue.put("a")
        queue.get(0).nack()
        queue.get(0).nack()
        other = face.Queue(peer, "q", max_attempts=2)
        assert other.get(0) is None
        assert [(job.value, job.attempts) for job in other.dead()] == [(b"a", 2)]
        assert other.count() == 0
        with pytest.raises(kvi.InvalidArgument, match="max_attempts"):
            face.Queue(peer, "q", max_attempts=3).count()

    @rule("queue.dead")
    def test_retry_and_discard(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A dead job can be put back, as if it was never tried, or deleted, once."""
        queue, other = (face.Queue(each, "q", max_attempts=1) for each in (store, peer))
        first = queue.put("a", dedup="x")
        second = queue.put("b")
        assert not queue.retry(first), "it is not dead"
        for _ in (first, second):
            queue.get(0).nack()
        assert queue.get(0) is None
        assert other.retry(first)
        assert not queue.retry(first)
        job = queue.get(0)
        assert (job.id, job.value, job.attempt) == (first, b"a", 1)
        job.ack()
        assert other.discard(second)
        assert not queue.discard(second)
        assert queue.dead() == []
        assert queue.count() == 0

    @rule("queue.delay")
    @side_by_side
    def test_delay(self, store: kvi.Kvi, peer: kvi.Kvi, brief: float) -> None:
        """A job that is delayed is there, and nobody gets it before its time."""
        queue = face.Queue(store, "q")
        queue.put("later", delay=60)
        queue.put("now")
        assert queue.count() == 2
        job = queue.get(0)
        assert job.value == b"now"
        begun = time.monotonic()
        job.nack(brief)
        queue.put("soon", delay=brief)
        other = face.Queue(peer, "q")
        found = [other.get(60)]
        assert time.monotonic() - begun >= brief
        found.append(other.get(60))
        assert sorted((job.value, job.attempt) for job in found) == [(b"now", 2), (b"soon", 1)]
        assert queue.get(0) is None
        for job in found:
            job.ack()

    @rule("schedule.once")
    def test_each_time_once(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Each time of a schedule runs once among all that run it."""
        ran: list[float] = []
        schedules = [face.Schedule(handle, "s", 0.1) for handle in (store, peer, peer)]
        waiters = [
            Waiter(partial(schedule.run, lambda time: ran.append(time.timestamp())))
            for schedule in schedules
        ]
        until(lambda: len(ran) >= 5)
        for schedule in schedules:
            schedule.close()
        for waiter in waiters:
            waiter.ended()
        assert len(set(ran)) == len(ran)
        last, following = schedules[0].last(), schedules[0].next_time()
        assert last.timestamp() == max(ran)
        assert following > last
        with pytest.raises(kvi.InvalidArgument, match="when"):
            face.Schedule(store, "s", 7).last()

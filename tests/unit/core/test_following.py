"""Following a prefix: what is told, when, and how often."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import kvi
import pytest
from kvi.flow.recipes.following import FollowFlow, Seen
from kvi.testing import Faults

from tests.support.waiting import until


class Told:
    """Notes what it is told; waits where a test says so."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.errors: list[kvi.KviError] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = 0
        self.inside = 0
        self.most = 0

    def __call__(self, seen: Seen | None, error: kvi.KviError | None) -> None:
        """Be told."""
        self.entered += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.free.wait(20)
        if seen is not None:
            self.seen.append(seen)
        if error is not None:
            self.errors.append(error)
        self.inside -= 1


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Faults that are on."""
    with Faults() as on:
        yield on


@pytest.fixture
def store(faults: Faults, request: pytest.FixtureRequest) -> Iterator[kvi.Kvi]:
    """A store that has them."""
    with kvi.open(f"mem:following-{request.node.name}") as opened:
        yield opened
        faults.clear()


def follow(store: kvi.Kvi, told: Told, interval: float = 60) -> FollowFlow:
    """A flow that has begun."""
    flow = FollowFlow(store._scope, "a/", interval, told)
    seen = store._drive(flow.look)
    assert isinstance(seen, Seen)
    flow.go(at_once=False)
    return flow


def test_whole_states(store: kvi.Kvi) -> None:
    """Each time all entries are told, as of one moment, without the prefix; others are none."""
    told = Told()
    flow = follow(store, told)
    store.store("b", "v")
    revision = store.txn(then=[kvi.Put("a/x", "1"), kvi.Put("a/y", "2")]).revision
    until(lambda: told.seen)
    assert told.seen[-1].entries == {"x": b"1", "y": b"2"}
    assert revision is not None
    assert (told.seen[-1].revision or 0) >= revision
    flow.end()


def test_one_at_a_time(store: kvi.Kvi) -> None:
    """What changes while somebody is told is told together, afterwards."""
    told = Told()
    told.free.clear()
    flow = follow(store, told)
    store.store("a/x", "first")
    until(lambda: told.entered)
    for number in range(100):
        store.store("a/x", str(number))
    until(lambda: flow._stirred)
    told.free.set()
    until(lambda: told.seen and told.seen[-1].entries == {"x": b"99"})
    assert told.most == 1
    assert told.entered <= 10
    flow.end()


def test_ended(store: kvi.Kvi) -> None:
    """Nothing is told after the end, also if something changed before."""
    told = Told()
    told.free.clear()
    flow = follow(store, told)
    store.store("a/x", "1")
    until(lambda: told.entered)
    store.store("a/x", "2")
    flow.end()
    told.free.set()
    until(lambda: told.seen)
    store.store("a/x", "3")
    flow.stir()
    flow.end()
    assert flow.ended
    assert told.entered == 1


def test_before_it_goes(store: kvi.Kvi) -> None:
    """What changes between the first look and `go` is told; a second `go` does nothing."""
    told = Told()
    flow = FollowFlow(store._scope, "a/", 60, told)
    store._drive(flow.look)
    store.store("a/x", "1")
    until(lambda: flow._stirred)
    assert not told.entered
    flow.go(at_once=False)
    flow.go(at_once=True)
    until(lambda: told.seen)
    assert told.seen[-1].entries == {"x": b"1"}
    flow.end()


def test_without_a_watch(store: kvi.Kvi, faults: Faults) -> None:
    """A watch that is refused is tried again; each failure is told, and nothing is missed."""
    told = Told()
    flow = FollowFlow(store._scope, "a/", 60, told)
    refused = faults.fail(kvi.PermissionDenied("not yet"), "watch", times=3)
    with pytest.raises(kvi.PermissionDenied):
        store._drive(flow.look)
    flow.go(at_once=True)
    until(lambda: told.seen)
    assert refused.hits == 3
    assert [type(error) for error in told.errors] == [kvi.PermissionDenied] * 2
    store.store("a/x", "1")
    until(lambda: told.seen[-1].entries == {"x": b"1"})
    flow.end()


def test_interval(store: kvi.Kvi) -> None:
    """All is read now and then, though nothing was told."""
    told = Told()
    flow = follow(store, told, interval=0.05)
    until(lambda: len(told.seen) >= 3)
    moments = [seen.asked for seen in told.seen]
    assert moments == sorted(moments)
    flow.end()


def test_who_is_told_fails(store: kvi.Kvi, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and goes on."""
    count = []

    def fail(seen: Seen | None, error: kvi.KviError | None) -> None:
        count.append(seen)
        raise RuntimeError("oh no")

    flow = FollowFlow(store._scope, "a/", 0.05, fail)
    flow.go(at_once=True)
    until(lambda: len(count) >= 2)
    assert "oh no" in caplog.text
    flow.end()


def test_refused() -> None:
    """A bad prefix is refused at once."""
    with kvi.open("mem:following") as store, pytest.raises(kvi.InvalidKey):
        FollowFlow(store._scope, 7, 60, Told())

"""What recipes leave behind: no more keys than what is in use, however often they were used."""

from __future__ import annotations

from collections.abc import Callable

import kvi
import pytest
from kvi import recipes

from tests.support.waiting import until

FEW, MANY = 30, 10_000
_NAME = "leftovers"


def elect(store: kvi.Kvi, number: int) -> None:
    """A term."""
    election = recipes.Election(store, _NAME, str(number).encode())
    assert election.campaign(timeout=30)
    election.proclaim(b"new")
    election.resign()


def join(store: kvi.Kvi, number: int) -> None:
    """A membership."""
    member = recipes.Group(store, _NAME).join(b"here", id=str(number))
    member.update(b"there")
    member.leave()


def permit(store: kvi.Kvi, number: int) -> None:
    """A permit."""
    with recipes.Semaphore(store, _NAME, 2, timeout=30):
        pass


def read_and_write(store: kvi.Kvi, number: int) -> None:
    """A turn of each kind."""
    lock = recipes.RWLock(store, _NAME, timeout=30)
    with lock.read():
        pass
    with lock.write() as held:
        held.downgrade()


def meet(store: kvi.Kvi, number: int) -> None:
    """A generation of one."""
    barrier = recipes.Barrier(store, _NAME, 1)
    assert barrier.wait(timeout=30) == 0
    barrier.leave(timeout=30)


def claim(store: kvi.Kvi, number: int) -> None:
    """A slot."""
    with recipes.Slots(store, _NAME, 3).claim(timeout=30):
        pass


def count(store: kvi.Kvi, number: int) -> None:
    """An addition that is named, and known for a second."""
    keep = max(1.0, store.capabilities.lease_min_ttl)
    recipes.Counter(store, _NAME).add(op=str(number), keep=keep)


def draw(store: kvi.Kvi, number: int) -> None:
    """A number."""
    recipes.Sequence(store, _NAME).next()


def do_once(store: kvi.Kvi, number: int) -> None:
    """Something that is done, and forgotten."""
    once = recipes.Once(store, _NAME)
    assert once.run(lambda held: b"done", 30) == b"done"
    once.reset()


def work(store: kvi.Kvi, number: int) -> None:
    """A job that is put, given back, and done."""
    queue = recipes.Queue(store, _NAME)
    queue.put(b"job", priority=number % 3, dedup=str(number))
    job = queue.get(timeout=30)
    assert job is not None
    job.nack()
    again = queue.get(timeout=30)
    assert again is not None
    again.ack()


USES: list[Callable[[kvi.Kvi, int], None]] = [
    elect,
    join,
    permit,
    read_and_write,
    meet,
    claim,
    count,
    draw,
    do_once,
    work,
]


@pytest.mark.slow
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_few(uri: str, use: Callable[[kvi.Kvi, int], None]) -> None:
    """After some uses there is what was there after one."""
    check(uri, use, FEW)


@pytest.mark.soak
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_many(uri: str, use: Callable[[kvi.Kvi, int], None]) -> None:
    """After ten thousand too."""
    check(uri, use, MANY)


def check(uri: str, use: Callable[[kvi.Kvi, int], None], times: int) -> None:
    """Use it so often, and compare the keys with those after its first use."""
    with kvi.open(uri, timeout=30) as store:
        use(store, 0)
        until(lambda: store.count(prefix="") <= len(kept(store)), within=60)
        first = kept(store)
        for number in range(1, times):
            use(store, number)
        until(lambda: kept(store) == first, within=60)


def kept(store: kvi.Kvi) -> set[str]:
    """The keys that no lease keeps."""
    return {entry.key for entry in store.range() if entry.lease is None}

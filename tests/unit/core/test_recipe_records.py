"""Keys of recipes: those that another program has written, and those that nobody has."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import kvi
import pytest
from kvi.recipes import (
    Barrier,
    Counter,
    Election,
    Group,
    Once,
    Queue,
    RWLock,
    Schedule,
    Semaphore,
    Sequence,
    Slots,
)

from tests.support.waiting import until

Use = Callable[[kvi.Kvi], Any]

USES: dict[str, tuple[str, Use]] = {
    "counter": ("total", lambda store: Counter(store, "r").add()),
    "counter, by name": ("total", lambda store: Counter(store, "r").add(op="a")),
    "sequence": ("next", lambda store: Sequence(store, "r").next()),
    "schedule": ("last", lambda store: Schedule(store, "r", 10).last()),
    "barrier": ("wait", lambda store: Barrier(store, "r", 1).wait(1)),
    "slots": ("held/0", lambda store: Slots(store, "r", 2).claim(1)),
    "queue": ("next", lambda store: Queue(store, "r").put("a")),
}


@pytest.fixture
def store() -> Iterator[kvi.Kvi]:
    """A store of its own."""
    with kvi.open(f"mem:{secrets.token_hex(8)}") as handle:
        yield handle


@pytest.mark.parametrize("value", [b"7", b"{}", b"no JSON", b"\xff", b""])
@pytest.mark.parametrize("use", USES)
def test_state_that_another_program_has_written(store: kvi.Kvi, use: str, value: bytes) -> None:
    """It is told with its key and stays as it is: no total, and no number, begins anew unseen."""
    key, call = USES[use]
    store.store(f"r/.kvi/{key}", value)
    with pytest.raises(kvi.BadRecord) as caught:
        call(store)
    assert caught.value.key == f"r/.kvi/{key}"
    entry = store.get(f"r/.kvi/{key}")
    assert entry is not None
    assert entry.value == value


@pytest.mark.parametrize("value", [b'{"total":"7"}', b'{"total":null}', b'{"total":[7]}'])
def test_member_of_another_kind(store: kvi.Kvi, value: bytes) -> None:
    """So is a record whose members are not what a recipe writes."""
    store.store("r/.kvi/total", value)
    with pytest.raises(kvi.BadRecord):
        Counter(store, "r").value()


def test_named_addition_that_another_program_has_written(store: kvi.Kvi) -> None:
    """Whether it was counted is not known."""
    counter = Counter(store, "r")
    counter.add(op="a")
    store.store("r/.kvi.op/a", b"1")
    with pytest.raises(kvi.BadRecord) as caught:
        counter.add(op="a")
    assert caught.value.key == "r/.kvi.op/a"
    assert counter.value() == 1


@pytest.mark.parametrize("value", [b"a job", b'{"a":0,"b":0,"d":"x"}\nab', b""])
def test_job_that_another_program_has_put(store: kvi.Kvi, value: bytes) -> None:
    """It is told to who would get it; once it is gone, the others are there."""
    queue = Queue(store, "r")
    queue.put("mine")
    store.store("r/.kvi.items/r/0", value)
    with pytest.raises(kvi.BadRecord) as caught:
        queue.get(0)
    assert caught.value.key == "r/.kvi.items/r/0"
    store.delete("r/.kvi.items/r/0")
    job = queue.get(0)
    assert job is not None
    assert job.value == b"mine"


def test_settings_that_another_program_has_written(store: kvi.Kvi) -> None:
    """An object that has seen the settings says so too, instead of waiting for ever."""
    semaphore = Semaphore(store, "r", 1)
    assert semaphore.acquire(0)
    semaphore.release()
    store.store("r/.kvi/settings", b"nonsense")
    with pytest.raises(kvi.BadRecord):
        semaphore.acquire(1)
    until(lambda: store.count(prefix="r/.kvi/") == 1)


def test_member_that_another_program_has_written(store: kvi.Kvi) -> None:
    """It is one of the members all the same: others are not hidden by it."""
    group = Group(store, "r")
    with group.join("a"), store.lease(10) as lease:
        store.store("r/.kvi/member/other", b'{"joined":"now","rejoined":[]}\nb', lease=lease)
        first, second = group.members()
        assert (first.value, second.value) == (b"a", b"b")
        assert second.joined > first.joined
        assert second.rejoined == 0


LOOKS: dict[str, tuple[Use, object]] = {
    "Counter.value": (lambda store: Counter(store, "r").value(), 0),
    "Once.result": (lambda store: Once(store, "r").result(), None),
    "Queue.count": (lambda store: Queue(store, "r").count(), 0),
    "Queue.dead": (lambda store: Queue(store, "r").dead(), []),
    "Schedule.last": (lambda store: Schedule(store, "r", 10).last(), None),
    "Schedule.next_time": (lambda store: bool(Schedule(store, "r", 10).next_time()), True),
    "Semaphore.holders": (lambda store: Semaphore(store, "r", 1).holders(), []),
    "Semaphore.waiters": (lambda store: Semaphore(store, "r", 1).waiters(), []),
    "Election.leader": (lambda store: Election(store, "r").leader(), None),
    "Group.members": (lambda store: Group(store, "r").members(), []),
}


@pytest.mark.parametrize("name", LOOKS)
def test_looking_writes_nothing(name: str) -> None:
    """Who only looks may have a handle that cannot write, and does not take the name."""
    look, nothing = LOOKS[name]
    uri = f"mem:{secrets.token_hex(8)}"
    with kvi.open(uri) as store, kvi.open(uri, read_only=True) as reader:
        for handle in (reader, store):
            assert look(handle) == nothing
        assert store.count(prefix="") == 0
        with RWLock(store, "r").read(), pytest.raises(kvi.InvalidArgument, match="a rwlock"):
            look(reader)

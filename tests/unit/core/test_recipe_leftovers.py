"""What recipes leave in a store is bounded by what is in use, however often they were used."""

from __future__ import annotations

import secrets
from collections.abc import Callable
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
    Semaphore,
    Sequence,
    Slots,
)

USES = 2000


def _once(once: Once) -> None:
    once.run(lambda held: "done")
    once.reset()


def _job(queue: Queue) -> None:
    queue.put("job", dedup="same", priority=USES)
    with queue.get(0) as job:  # type: ignore[union-attr]
        assert job.attempt == 1


def _held(lock: Any) -> None:
    with lock:
        pass


USED: dict[str, tuple[Callable[[kvi.Kvi], Any], Callable[[Any], Any], set[str]]] = {
    "semaphore": (lambda store: Semaphore(store, "n", 3), _held, {"settings"}),
    "rwlock": (lambda store: RWLock(store, "n"), lambda lock: _held(lock.write()), set()),
    "slots": (
        lambda store: Slots(store, "n", 3),
        lambda slots: _held(slots.claim(0)),
        {"settings"},
    ),
    "election": (lambda store: Election(store, "n", "me"), _held, set()),
    "group": (lambda store: Group(store, "n"), lambda group: _held(group.join("me")), set()),
    "barrier": (
        lambda store: Barrier(store, "n", 1),
        lambda barrier: (barrier.wait(), barrier.leave()),
        {"settings", "wait", "leave"},
    ),
    "counter": (
        lambda store: Counter(store, "n"),
        lambda counter: counter.add(),
        {"settings", "total"},
    ),
    "sequence": (lambda store: Sequence(store, "n"), lambda one: one.next(), {"settings", "next"}),
    "once": (lambda store: Once(store, "n"), _once, {"settings"}),
    "queue": (lambda store: Queue(store, "n"), _job, {"settings", "next"}),
}


@pytest.mark.parametrize("recipe", USED)
def test_no_more_than_what_is_in_use(recipe: str) -> None:
    """After thousands of uses there are no more keys than settings and numbers."""
    make, use, left = USED[recipe]
    with kvi.open(f"mem:{secrets.token_hex(8)}") as store:
        made = make(store)
        for _ in range(USES):
            use(made)
        assert {entry.key for entry in store.range()} == {f"n/.kvi/{key}" for key in left}

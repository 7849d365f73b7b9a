"""What a claim costs does not grow with those who wait for the same lock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

from kvi.model import Put, Txn
from kvi_memory.store import MemoryKvi


def calls_of(function: Callable[[], object]) -> int:
    """How many calls, also of functions in C, it makes."""
    made = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return made


def test_a_claim_does_not_look_at_all_who_wait() -> None:
    """With 1,000 waiting, the last, the first and a new claim make as many calls as with 10."""
    counted: list[list[int]] = []
    for number in (10, 1000):
        store = MemoryKvi("mem:", f"line of {number}", timeout=5)
        leases = [store._lease_grant(60, 5).id for _ in range(number + 1)]
        for lease in leases[:-1]:
            store._lock_claim("lock", lease, 5)
        chosen = (leases[0], leases[-2], leases[-1])
        counted.append([calls_of(partial(store._lock_claim, "lock", one, 5)) for one in chosen])
        for lease in leases:
            store._lease_revoke(lease, 5)
        assert not store._state._lines
    few, many = counted
    assert all(more <= less + 10 for less, more in zip(few, many, strict=True)), counted


def test_who_puts_a_contender_stands_in_line_and_others_do_not() -> None:
    """A contender's key counts, whoever put it; a key that its lease does not keep does not."""
    store = MemoryKvi("mem:", "line of others", timeout=5)
    first, second, third = (store._lease_grant(60, 5).id for _ in range(3))
    own = f"lock/{first:x}"
    store._txn(Txn(then=(Put(own, b"", first), Put("lock/1f", b"", None))), 5)
    store._txn(Txn(then=(Put("lock/2f", b"", first),)), 5)
    assert store._lock_claim("lock", second, 5).ahead == own
    store._txn(Txn(then=(Put(own, b"again", None),)), 5)  # it is nobody's now
    assert store._lock_claim("lock", second, 5).ahead is None
    assert store._lock_claim("lock", third, 5).ahead == f"lock/{second:x}"
    for lease in (first, second, third):
        store._lease_revoke(lease, 5)

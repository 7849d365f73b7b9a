"""Counters and sequences: section 14 of the contract, on every store and both faces."""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Any

import kvi
import pytest

from tests.recipes.conftest import FaceOf, at_once
from tests.support.waiting import until


def test_total(face: FaceOf, uri: str) -> None:
    """A counter begins at 0, tells the total after each addition, and all see the same."""
    first, second = (face.Counter(face.open(uri), "c") for _ in range(2))
    assert first.value() == 0
    assert [first.add(), second.add(5), first.add(-7)] == [1, 6, -1]
    assert first.value() == second.value() == -1
    assert first.add(0) == -1
    assert first.add(2**62) == 2**62 - 1


def test_additions_side_by_side(face: FaceOf, uri: str) -> None:
    """Of additions at once none is lost, named or not."""
    stores = [face.open(uri, timeout=30) for _ in range(2)]

    def add(number: int) -> list[int]:
        counter = face.Counter(stores[number % 2], "c")
        return [counter.add(op=f"{number}-{turn}" if turn % 2 else None) for turn in range(10)]

    given = at_once(partial(add, number) for number in range(4))
    totals = [total for one in given for total in one]
    assert sorted(totals) == list(range(1, 41))
    assert face.Counter(stores[0], "c").value() == 40


def test_named_addition_counts_once(face: FaceOf, uri: str) -> None:
    """However often it is sent, by whom, it is counted once, and tells what it told then."""
    first, second = (face.Counter(face.open(uri), "c") for _ in range(2))
    assert first.add(3, op="a/b c") == 3
    assert second.add(4) == 7
    assert second.add(3, op="a/b c") == 3
    assert first.add(3, op="a/b c", keep=60) == 3
    assert first.value() == 7


def test_named_addition_sent_at_once(face: FaceOf, uri: str) -> None:
    """Of several who send it at the same moment, one counts it, and all are told the same."""
    counters = [face.Counter(face.open(uri, timeout=30), "c") for _ in range(4)]
    given = at_once(partial(counter.add, 2, op="a") for counter in counters)
    assert list(given) == [2, 2, 2, 2]
    assert counters[0].value() == 2


def test_named_addition_with_another_amount(face: FaceOf, uri: str) -> None:
    """The same name with another amount is refused, and tells both."""
    counter = face.Counter(face.open(uri), "c")
    counter.add(3, op="a")
    with pytest.raises(kvi.InvalidArgument, match="'a' was counted with n=3, not 4"):
        counter.add(4, op="a")
    assert counter.value() == 3


def test_names_are_kept_beyond_close(face: FaceOf, uri: str, ttl: float) -> None:
    """An addition is known by its name for as long as was asked, whoever closes; then not."""
    store = face.open(uri)
    began = time.monotonic()
    assert face.Counter(store, "c").add(3, op="a", keep=ttl) == 3
    store.close()
    again = face.open(uri)
    other = face.Counter(again, "c")
    assert other.add(3, op="a", keep=ttl) == 3
    assert again.count(prefix="c/.kvi.op/") == 1

    def forgotten() -> bool:
        return again.count(prefix="c/.kvi.op/") == 0

    factor = again.capabilities.lease_expiry_factor
    until(forgotten, within=2 * ttl * factor + 10)
    assert time.monotonic() - began >= ttl
    assert other.value() == 3
    assert other.add(3, op="a", keep=ttl) == 6, "what is not known any more is another addition"


def test_longest_keep(face: FaceOf, uri: str) -> None:
    """A time above what the store's leases can do is refused, and names the bound."""
    store = face.open(uri)
    counter, most = face.Counter(store, "c"), store.capabilities.lease_max_ttl
    if most is None:
        assert counter.add(op="a", keep=10 * 365 * 86400.0) == 1
        return
    with pytest.raises(kvi.InvalidArgument, match=f"{most:,.0f}"):
        counter.add(op="a", keep=most + 1)
    assert counter.add(op="a", keep=most) == 1


def test_counters_have_names_of_their_own(face: FaceOf, uri: str) -> None:
    """``a`` and ``a/b`` are different, and what a program stores below a name is its own."""
    store = face.open(uri)
    outer, inner = face.Counter(store, "a"), face.Counter(store, "a/b")
    assert (outer.add(op="x"), inner.add(op="x"), inner.add()) == (1, 1, 2)
    store.store("a/key", "1")
    assert (outer.value(), inner.value()) == (1, 2)


@pytest.mark.parametrize("taken", ["Counter", "Sequence", "Once"])
def test_name_in_use(face: FaceOf, uri: str, taken: str) -> None:
    """A name of another recipe is refused, and both are named."""
    store = face.open(uri)
    uses: dict[str, Any] = {
        "Counter": lambda: face.Counter(store, "x").add(),
        "Sequence": lambda: face.Sequence(store, "x").next(),
        "Once": lambda: face.Once(store, "x").run(lambda _: "done"),
        "Schedule": lambda: face.Schedule(store, "x", 60).next_time(),
    }
    uses.pop(taken)()
    before = [entry.key for entry in store.range(prefix="x")]
    for name, use in uses.items():
        with pytest.raises(kvi.InvalidArgument) as caught:
            use()
        assert f"a {taken.lower()}," in str(caught.value).replace("an once", "a once")
        assert f"a {name.lower()} too" in str(caught.value).replace("an once", "a once")
    assert [entry.key for entry in store.range(prefix="x")] == before


def test_numbers_are_given_once(face: FaceOf, uri: str) -> None:
    """Whoever asks, whatever its block: no number comes twice, and each caller's grow."""
    stores = [face.open(uri, timeout=30) for _ in range(2)]

    def take(number: int) -> list[int]:
        sequence = face.Sequence(stores[number % 2], "s", block=1 + 6 * (number // 2))
        return [sequence.next() for _ in range(15)]

    given = at_once(partial(take, number) for number in range(4))
    numbers = [number for one in given for number in one]
    assert len(set(numbers)) == 60
    assert min(numbers) == 1
    assert all(list(one) == sorted(one) for one in given)


def test_sequence_goes_on(face: FaceOf, uri: str) -> None:
    """Numbers go on after all have gone; what was taken and not used is a gap."""
    store = face.open(uri)
    sequence = face.Sequence(store, "s", block=10)
    assert [sequence.next(), sequence.next()] == [1, 2]
    store.close()
    store = face.open(uri)
    assert face.Sequence(store, "s").next() == 11
    assert store.count(prefix="s/") == 2, "the settings and one number are all that is kept"


def test_what_is_left_is_bounded(face: FaceOf, uri: str) -> None:
    """Many additions without a name leave what one does; many with one share their leases."""
    store = face.open(uri)
    counter = face.Counter(store, "c")
    for _ in range(20):
        counter.add()
    assert store.count(prefix="c/") == 2
    for _ in range(20):
        counter.add(op=secrets.token_hex(4))
    assert store.count(prefix="c/") == 22
    assert len({entry.lease for entry in store.range(prefix="c/.kvi.op/")}) == 1

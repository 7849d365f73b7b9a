"""Where the jobs of a queue are: texts that come back as they were, in the order of their turns."""

from __future__ import annotations

from dataclasses import replace

import kvi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvi.errors import InvalidArgument
from kvi.model import KeyValue, Put
from kvi.policy.line import Place
from kvi.policy.queue import Item, Layout, NewJob

PLACE = Place("q")
PRINTABLE = st.characters(exclude_categories=["C", "Z"], include_characters=" ")


def layout(most: int | None = None, **limits: object) -> Layout:
    """Of a queue on a store with some limits."""
    with kvi.open("mem:queue-layout") as store:
        return Layout(PLACE, most, replace(store.capabilities, **limits))  # type: ignore[arg-type]


def entry(key: str, value: bytes | str) -> KeyValue:
    """What a store has."""
    assert isinstance(value, bytes)
    return KeyValue(key, value, 1, 1, 1, None)


@settings(deadline=None)
@given(
    st.binary(max_size=50),
    st.none() | st.text(PRINTABLE, min_size=1, max_size=50),
    st.integers(0, 2**40),
    st.integers(0, 2**62),
)
def test_item_comes_back(value: bytes, dedup: str | None, attempts: int, back: int) -> None:
    """Whatever a job is, it is read as it was written."""
    item = Item("7fffffff-000000000001", value, dedup, attempts, back)
    assert Item.of(entry(f"q/.kvi.items/r/{item.id}", item.dumps())) == item


@settings(deadline=None)
@given(st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=2, max_size=5))
def test_order_of_ids(priorities: list[int]) -> None:
    """Ids are in the order of the turns: larger priority first, then first in."""
    queue = layout()
    ids = [
        (-priority, number, queue.put(NewJob(b"", priority), number, 1, None)[0])
        for number, priority in enumerate(priorities)
    ]
    assert [id for _, _, id in sorted(ids)] == sorted(id for _, _, id in ids)


@pytest.mark.parametrize("dedup", ["\x01" * 512, "ä" * 256, None], ids=["control", "umlauts", "no"])
def test_room_beside_the_value(dedup: str | None) -> None:
    """No step makes a job too large for the store that took it."""
    queue = layout(max_value=2000)
    job = queue.check(b"v" * 976, 0, 0, dedup)
    _, put = queue.put(job, 10**12, 2**62, None)
    (stored,) = [one for one in put.then if isinstance(one, Put) and "items/r" in one.key]
    item = Item.of(entry(stored.key, stored.value))._replace(attempts=2**31, back=2**62)
    assert len(item.dumps()) <= 2000
    with pytest.raises(kvi.ValueTooLarge):
        queue.check(b"v" * 977, 0, 0, dedup)


def test_room_for_a_key() -> None:
    """A ``dedup`` is as long as the key that it makes may be, in bytes of UTF-8."""
    queue = Layout(Place("ä" * 100), None, layout(max_key=300)._limits)
    room = 300 - len(("ä" * 100 + "/.kvi.dedup/").encode())
    queue.check(b"", 0, 0, "d" * room)
    with pytest.raises(kvi.InvalidKey):
        queue.check(b"", 0, 0, "d" * (room + 1))


@pytest.mark.parametrize("priority", [2**31, -(2**31), 1.0, True, "1"])
def test_bad_priority(priority: object) -> None:
    """A priority is a whole number that fits into its part of an id."""
    with pytest.raises(InvalidArgument, match="priority="):
        layout().check(b"", priority, 0, None)

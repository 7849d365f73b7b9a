"""What two looks at a prefix say about the time between, and what a slow consumer is told."""

from __future__ import annotations

from typing import Any

import pytest
from kvi.model import EventType
from kvi_consul import diff
from kvi_consul.diff import Change, Look, Pending, Stamp, missing, stamp_of, value_of

A = Stamp(5, 5, 0)


@pytest.mark.parametrize(
    ("before", "now", "index", "changed", "gone", "rewound"),
    [
        ({}, {}, 10, [], [], False),
        ({"a": A}, {"a": A}, 12, [], [], False),
        ({"a": A}, {"a": A}, 8, [], [], False),  # a deletion was forgotten, of a key seen by nobody
        ({}, {"a": Stamp(11, 11, 0)}, 11, ["a"], [], False),
        ({"a": A}, {"a": Stamp(5, 12, 0)}, 12, ["a"], [], False),
        ({"a": A}, {}, 11, [], ["a"], False),
        # deleted and written again
        ({"a": A}, {"a": Stamp(12, 12, 0)}, 12, ["a"], [], False),
        ({"a": A, "b": A}, {"a": A, "c": Stamp(11, 12, 0)}, 12, ["c"], ["b"], False),
        # another history: an older state, a key out of the past, the same indexes with another
        # content, a key that is gone at no index of its own
        ({"a": A}, {"a": Stamp(4, 4, 0)}, 10, ["a"], [], True),
        ({}, {"a": A}, 10, ["a"], [], True),
        ({"a": A}, {"a": Stamp(5, 5, 1)}, 10, ["a"], [], True),
        ({}, {"a": Stamp(10, 10, 0)}, 12, ["a"], [], True),
        ({"a": A}, {}, 10, [], ["a"], True),
        ({"a": A}, {}, 3, [], ["a"], True),
    ],
)
def test_looks_are_compared(
    before: dict[str, Stamp],
    now: dict[str, Stamp],
    index: int,
    changed: list[str],
    gone: list[str],
    rewound: bool,
) -> None:
    """After a look at index 10: what is new, what is gone, and whether history was replaced."""
    look = Look(before, 10)
    assert [key for key, stamp in now.items() if look.see(key, stamp)] == changed
    assert look.gone(index) == gone
    assert look.rewound is rewound
    assert look.stamps == now
    assert missing(before, now) == gone


def test_without_an_index_nothing_is_out_of_the_past() -> None:
    """A look that widens finds old keys, which says nothing about the history."""
    look = Look({"b": A}, None)
    assert look.see("a", A)
    assert look.gone(5) == ["b"]
    assert not look.rewound


def entry(**changes: Any) -> dict[str, Any]:
    """An entry as Consul tells it."""
    session = "00000000-0000-0000-0000-000000000001"
    plain = {"Key": "k", "Value": "dg==", "Flags": 1, "CreateIndex": 2, "ModifyIndex": 3}
    return {**plain, "Session": session, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"Value": "dw=="},
        {"Value": None},
        {"Flags": 2},
        {"Session": None},
        {"CreateIndex": 1},
        {"ModifyIndex": 4},
    ],
)
def test_a_stamp_tells_states_apart(changes: dict[str, Any]) -> None:
    """Whatever differs in a key's state, its stamp differs."""
    assert stamp_of(entry()) == stamp_of(entry())
    assert stamp_of(entry(**changes)) != stamp_of(entry())


def test_values_are_read() -> None:
    """An empty value comes as null and is a value."""
    assert (value_of(entry()), value_of(entry(Value=None))) == (b"v", b"")


PUT, DELETE = EventType.PUT, EventType.DELETE


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([], []),
        ([Change("a", False, b"1", 3)], [(PUT, "a", b"1", 3)]),
        ([Change("a", False, b"1", 3), Change("a", True, b"2", 4)], [(PUT, "a", b"2", 4)]),
        ([Change("a", True, None, 3)], [(DELETE, "a", None, 3)]),
        # nobody has heard of it
        ([Change("a", False, b"1", 3), Change("a", True, None, 4)], []),
        ([Change("a", False, None, 4)], []),
        # it was there, whatever happened since
        ([Change("a", True, b"1", 3), Change("a", True, None, 4)], [(DELETE, "a", None, 4)]),
        ([Change("a", True, None, 3), Change("a", False, b"1", 4)], [(PUT, "a", b"1", 4)]),
        (
            [
                Change("a", True, None, 3),
                Change("a", False, b"1", 4),
                Change("a", True, None, 5),
            ],
            [(DELETE, "a", None, 5)],
        ),
        (
            [Change("b", False, b"", 6), Change("a", False, b"1", 3), Change("c", True, None, 6)],
            [(PUT, "a", b"1", 3), (PUT, "b", b"", 6), (DELETE, "c", None, 6)],
        ),
    ],
)
def test_pending_changes_become_one_a_key(
    changes: list[Change], told: list[tuple[EventType, str, bytes | None, int]]
) -> None:
    """Only the newest state of a key is told, in the order of revisions, and only once."""
    pending = Pending()
    for change in changes:
        pending.add(change)
    assert bool(pending) is bool(told)
    assert [(e.type, e.key, e.value, e.revision) for e in pending.events()] == told


def test_pending_changes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pending knows its size, also when changes replace each other."""
    monkeypatch.setattr(diff, "MOST_PENDING", 2000)
    pending = Pending()
    for number in range(100):
        pending.add(Change("a", True, bytes(1000), number))
    assert not pending.too_large
    pending.add(Change("b", True, bytes(1000), 100))
    assert pending.too_large
    pending.add(Change("b", True, None, 101))
    assert not pending.too_large
    pending = Pending()
    for number in range(10):
        pending.add(Change(f"k{number}", True, None, number))
    assert pending.too_large

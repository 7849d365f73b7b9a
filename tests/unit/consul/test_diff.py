"""What two snapshots say about the time between, and what a slow consumer is told."""

from __future__ import annotations

from typing import Any

import pytest
from kvi.model import EventType, Span
from kvi_consul import diff
from kvi_consul.diff import Change, Pending, Snapshot, Stamps, stamp_of, within


def entry(**changes: Any) -> dict[str, Any]:
    """An entry as Consul tells it."""
    session = "00000000-0000-0000-0000-000000000001"
    plain = {"Key": "k", "Value": "dg==", "Flags": 1, "CreateIndex": 2, "ModifyIndex": 3}
    return {**plain, "Session": session, **changes}


def at(created: int, modified: int, flags: int = 0) -> dict[str, Any]:
    """An entry of these indexes."""
    return entry(CreateIndex=created, ModifyIndex=modified, Flags=flags)


A = at(5, 5)
Entries = dict[str, dict[str, Any]]


def stamps(entries: Entries) -> Stamps:
    """What is kept of them."""
    return {key: stamp_of(kv) for key, kv in entries.items()}


def shown(
    before: Entries,
    now: Entries,
    index: int,
    high: int | None,
    joining: dict[str, tuple[Span, Stamps | None]] | None = None,
) -> Snapshot[str]:
    """The snapshot of ``now``, after that of ``before``."""
    snapshot = Snapshot(stamps(before), high, joining or {}, lambda _: True)
    for key, kv in now.items():
        snapshot.see({**kv, "Key": key})
    snapshot.finish(index)
    return snapshot


@pytest.mark.parametrize(
    ("before", "now", "index", "changed", "gone", "rewound"),
    [
        ({}, {}, 10, [], [], False),
        ({"a": A}, {"a": A}, 12, [], [], False),
        ({"a": A}, {"a": A}, 8, [], [], False),  # a deletion was forgotten, of a key seen by nobody
        ({}, {"a": at(11, 11)}, 11, ["a"], [], False),
        ({"a": A}, {"a": at(5, 12)}, 12, ["a"], [], False),
        ({"a": A}, {}, 11, [], ["a"], False),
        # deleted and written again
        ({"a": A}, {"a": at(12, 12)}, 12, ["a"], [], False),
        ({"a": A, "b": A}, {"a": A, "c": at(11, 12)}, 12, ["c"], ["b"], False),
        # another history: an older state, a key out of the past, the same indexes with another
        # content, a key that is gone at no index of its own
        ({"a": A}, {"a": at(4, 4)}, 10, ["a"], [], True),
        ({}, {"a": A}, 10, ["a"], [], True),
        ({"a": A}, {"a": at(5, 5, 1)}, 10, ["a"], [], True),
        ({}, {"a": at(10, 10)}, 12, ["a"], [], True),
        ({"a": A}, {}, 10, [], ["a"], True),
        ({"a": A}, {}, 3, [], ["a"], True),
    ],
)
def test_snapshots_are_compared(
    before: Entries,
    now: Entries,
    index: int,
    changed: list[str],
    gone: list[str],
    rewound: bool,
) -> None:
    """After one at index 10: what is new, what is gone, and whether history was replaced."""
    snapshot = shown(before, now, index, 10)
    changes = snapshot.changes
    assert [change.key for change in changes if change.value is not None] == changed
    assert [change.key for change in changes if change.value is None] == gone
    assert all(change.existed is (change.key in before) for change in changes)
    assert snapshot.rewound is rewound
    assert snapshot.stamps == stamps(now)


def test_without_an_index_nothing_is_out_of_the_past() -> None:
    """The first snapshot shows old keys, which says nothing about the history."""
    snapshot = shown({"b": A}, {"a": A}, 5, None)
    assert [(change.key, change.value) for change in snapshot.changes] == [("a", b"v"), ("b", None)]
    assert not snapshot.rewound


def test_who_joins_is_told_what_it_does_not_know() -> None:
    """Of its own keys only, whatever others know; who knows nothing is told all of them."""
    now = {"a": at(5, 5), "b": at(6, 6), "c": at(7, 9)}
    known: Stamps = stamps({"a": at(5, 5), "c": at(7, 7), "d": at(8, 8)})
    joining: dict[str, tuple[Span, Stamps | None]] = {
        "all": (Span.of_prefix(""), known),
        "c": (Span("c", "c\0"), within(Span("c", "c\0"), known)),
        "new": (Span("b", "d"), None),
    }
    snapshot = shown(now, now, 11, 10, joining)
    assert snapshot.changes == []
    told = {
        who: [(change.key, change.existed, change.value, change.revision) for change in changes]
        for who, changes in snapshot.late.items()
    }
    assert told == {
        "all": [("b", False, b"v", 6), ("c", True, b"v", 9), ("d", True, None, 11)],
        "c": [("c", True, b"v", 9)],
    }
    assert {who: [e.key for e in entries] for who, entries in snapshot.whole.items()} == {
        "new": ["b", "c"]
    }


def test_deleted_and_written_again() -> None:
    """It is told as its newest state, which says when the key was created."""
    snapshot = shown({"a": at(5, 5)}, {"a": at(8, 9)}, 9, 7)
    (event,) = (change.event() for change in snapshot.changes)
    assert (event.type, event.revision, event.created) == (PUT, 9, 8)


def test_values_that_nobody_wants_are_not_kept() -> None:
    """A key that nobody follows is compared, and no more; an empty value is a value."""
    snapshot: Snapshot[str] = Snapshot({}, None, {}, lambda key: key == "b")
    for key in "abc":
        snapshot.see({**entry(Value=None), "Key": key})
    snapshot.finish(5)
    assert snapshot.changes == [Change("b", False, b"", 3, 2)]
    assert list(snapshot.stamps) == ["a", "b", "c"]


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

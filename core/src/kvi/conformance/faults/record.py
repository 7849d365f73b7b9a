"""What clients were told of their writes, and how what a store shows is compared with it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import kvi

State = dict[str, tuple[bytes | None, int]]  # key to value and revision

PUT, DELETE, RESYNC = kvi.EventType.PUT, kvi.EventType.DELETE, kvi.EventType.RESYNC


class Fate(enum.Enum):
    """What a client was told of a write."""

    ACKNOWLEDGED = enum.auto()
    DENIED = enum.auto()  # surely not applied
    UNKNOWN = enum.auto()


@dataclass(frozen=True)
class Write:
    """One write of one client. No two have the same value, and each key is put once.

    Attributes:
        changes: the keys and their new values, ``None`` for a deletion.
        fate: what the client was told.
        revision: the revision that it was told, if any.
        after: the newest revision that any client had been told of when this began.

    """

    changes: Mapping[str, bytes | None]
    fate: Fate
    revision: int | None
    after: int


def folded(events: Iterable[kvi.Event], state: State | None = None) -> State:
    """The state that these events lead to; ``state``, if given, is brought there."""
    state = {} if state is None else state
    for event in events:
        if event.type is RESYNC:
            assert event.snapshot is not None
            state.clear()
            state.update((e.key, (e.value, e.revision)) for e in event.snapshot)
        elif event.type is DELETE:
            state.pop(event.key, None)
        else:
            state[event.key] = (event.value, event.revision)
    return state


def check_state(state: State, writes: Sequence[Write], fate: Fate) -> None:
    """What was told of the writes of this fate is what the store has in the end."""
    deletes = {key: w for w in writes for key, value in w.changes.items() if value is None}
    for write in writes:
        if write.fate is not fate:
            continue
        for key, value in write.changes.items():
            present = state.get(key)
            if value is None:
                assert (present is None) is (fate is Fate.ACKNOWLEDGED), (key, present, write)
            elif fate is Fate.DENIED:
                assert present is None, f"{key} was denied, and is there: {present}"
            elif key not in deletes:
                assert present == (value, write.revision), f"{key} was acknowledged: {write}"


def check_told(events: Sequence[kvi.Event], writes: Sequence[Write], *, history: bool) -> None:
    """What a watch told is the log of the writes, as far as its kind of store promises.

    With history: each write that was acknowledged, once, whole, in the order of revisions, and
    beside them at most the unknown ones. Without: per key newer states that were written.
    """
    if not history:
        _check_states(events, writes)
        return
    by_change = {change: write for write in writes for change in write.changes.items()}
    told: list[Write] = []
    newest = 0
    assert not any(event.type is RESYNC for event in events), "told the state, not the changes"
    for revision, group in groupby(events, lambda event: event.revision):
        changes = [(event.key, event.value) for event in group]
        assert revision > newest, f"revision {revision} comes after {newest}"
        newest = revision
        write = by_change.get(changes[0])
        assert write is not None, f"nobody wrote this: {changes}"
        assert sorted(changes, key=str) == sorted(write.changes.items(), key=str), (
            "not one write, whole"
        )
        assert write.fate is not Fate.DENIED, f"a write that was denied is told: {write}"
        assert write.revision in (None, revision), f"told at revision {revision}: {write}"
        told.append(write)
    assert len(set(map(id, told))) == len(told), "a write is told twice"
    missed = {id(write) for write in told}
    lost = [w for w in writes if w.fate is Fate.ACKNOWLEDGED and id(w) not in missed]
    assert not lost, "acknowledged writes are not told"


def _check_states(events: Sequence[kvi.Event], writes: Sequence[Write]) -> None:
    by_change = {change: write for write in writes for change in write.changes.items()}
    newest: dict[str, int] = {}
    for event in events:
        entries: list[tuple[str, bytes | None, int]] = (
            [(entry.key, entry.value, entry.revision) for entry in event.snapshot]
            if event.snapshot is not None
            else [(event.key, event.value, event.revision)]
        )
        for key, value, revision in entries:
            write = by_change.get((key, value))
            assert write is not None, f"nobody wrote this: {event}"
            assert write.fate is not Fate.DENIED, f"a write that was denied is told: {write}"
            if value is not None:
                assert write.revision in (None, revision), f"told at {revision}: {write}"
            if event.type is not RESYNC:
                assert revision > newest.get(key, 0), f"an older state is told: {event}"
            newest[key] = revision

"""Did a watch tell what was written? Its events against the operations of the writers.

What is surely written at a known revision must be told as such. Writes that did not tell their
revision (``delete``, ``tas``) are matched by key and value, as often as they were done; those of
unknown outcome may be told or not. Nothing else may be told.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NoReturn

from kvi import Event, EventType, KeyValue
from kvi.conformance.checking.history import (
    Operation,
    Outcome,
    changes_of,
    keys_of,
    possible_changes,
)
from kvi.errors import shown

__all__ = ["watch_fault"]

_Change = tuple[str, bytes | None]  # the key and its new value, None for a deletion


def watch_fault(
    events: Iterable[Event],
    operations: Iterable[Operation],
    *,
    history: bool,
    keys: Collection[str] | None = None,
    initial: bool = False,
    since: int | None = None,
    last: Mapping[str, KeyValue | None] | None = None,
) -> str | None:
    """Say what is wrong with all that one watch told; ``None`` if nothing is.

    With ``history`` (as `kvi.Capabilities.watch_history`) every change is told once, in the order
    of revisions, all changes of one revision together. Without, each key's events go on to ever
    newer states that were written. A ``RESYNC`` event may stand for what comes before it.

    Args:
        events: in the order in which they were delivered, up to the end of the history.
        operations: all that clients did to the keys, from when they were absent.
        history: whether the store's watches tell every change.
        keys: those that are watched; all by default.
        initial: whether the watch began with the present state.
        since: the revision behind which the watch began, or with ``initial`` one that its state
            is not older than; ``None``: it began before the first write.
        last: what the keys hold after the last write, where the last event has to leave them.

    """
    told = list(events)
    done = list(operations)
    if keys is None:
        keys = {key for operation in done for key in keys_of(operation.call)}
    writes = _Writes(done, frozenset(keys))
    try:
        if history:
            _check_history(told, writes, initial, since)
        else:
            _check_states(told, writes, initial)
        if last is not None:
            _check_last(told, last, since)
    except _FaultError as fault:
        return str(fault)
    return None


class _FaultError(Exception):
    pass


def _fail(what: str, told: Sequence[Event], at: int | None = None) -> NoReturn:
    """Report a fault, with the events around it."""
    if at is None:
        raise _FaultError(what)
    around = range(max(0, at - 3), min(len(told), at + 2))
    lines = [f"{'→' if number == at else ' '} {number}: {_text(told[number])}" for number in around]
    raise _FaultError("\n".join([what, *lines]))


def _text(event: Event) -> str:
    if event.type is EventType.RESYNC:
        return f"RESYNC of {len(event.snapshot or ())} entries at revision {event.revision}"
    value = f" {shown(event.value)}" if event.type is EventType.PUT else ""
    mark = ", initial" if event.initial else ""
    return f"{event.type} {shown(event.key)}{value} at revision {event.revision}{mark}"


class _Writes:
    """What was written to the watched keys, and may have been.

    Attributes:
        known: by revision, then key: the new value.
        sure: how often a change was surely made whose revision is not known.
        maybe: how often it may have been made besides.

    """

    def __init__(self, operations: Iterable[Operation], keys: frozenset[str]) -> None:
        self.keys = keys
        self.known: dict[int, dict[str, bytes | None]] = {}
        self.sure: Counter[_Change] = Counter()
        self.maybe: Counter[_Change] = Counter()
        for operation in operations:
            if operation.outcome is Outcome.UNKNOWN:
                for possible in possible_changes(operation):
                    self.maybe.update(possible.items())
                continue
            revision, changes = changes_of(operation)
            own = {key: value for key, value in changes.items() if key in keys}
            if not own:
                continue
            if revision is None:
                self.sure.update(own.items())
            else:
                self.known.setdefault(revision, {}).update(own)

    def allows(self, change: _Change) -> int:
        """How often the change can have been made at revisions that are not known."""
        return self.sure[change] + self.maybe[change]

    def deletes(self, key: str) -> int:
        """How often the key can have been deleted."""
        at_known = sum(key in changes and changes[key] is None for changes in self.known.values())
        return at_known + self.allows((key, None))

    def count(self, told: Sequence[Event], at: int, hidden: Counter[_Change]) -> None:
        """Fail if the event tells of a change at an unknown revision once more than it was made."""
        event = told[at]
        change = (event.key, event.value)
        if event.revision not in self.known:
            hidden[change] += 1
            if hidden[change] > self.allows(change):
                _fail("this was written fewer times than it was told", told, at)

    def check_put(self, told: Sequence[Event], at: int) -> None:
        """Fail unless what the event shows was written, at its revision if that is known."""
        event = told[at]
        if event.key not in self.keys:
            _fail("an event of a key that is not watched", told, at)
        if event.value is None:
            _fail("an event without the value", told, at)
        self.check_entry(event.key, event.value, event.revision, told, at)

    def check_entry(
        self, key: str, value: bytes | None, revision: int, told: Sequence[Event], at: int
    ) -> None:
        """Fail unless the key was given this value, at this revision if that is known."""
        known = self.known.get(revision)
        if known is not None:
            if key not in known or known[key] != value:
                _fail("something else was written at this revision", told, at)
        elif not self.allows((key, value)):
            _fail("nobody wrote this", told, at)


# -- watches with history --------------------------------------------------------------------------


@dataclass(slots=True)
class _Segment:
    """Events that follow each other without a gap: changes, behind a state if there is one.

    Attributes:
        snapshot: revisions of the entries of the state, by key; ``None``: no state was told.
        earliest: the state is of this revision or a later one; changes are behind it.
        latest: the state is of this revision or an earlier one.
        changes: what was told behind it: revision and key.

    """

    snapshot: dict[str, int] | None
    earliest: float
    latest: float
    changes: list[tuple[int, str]] = field(default_factory=list)

    @property
    def first(self) -> float:
        """The revision of the first change."""
        return self.changes[0][0] if self.changes else inf

    @property
    def end(self) -> float:
        """The revision that it reaches."""
        return self.changes[-1][0] if self.changes else self.earliest


def _check_history(
    told: Sequence[Event], writes: _Writes, initial: bool, since: int | None
) -> None:
    begin = -inf if since is None else since
    segments = [_Segment({} if initial else None, begin, inf if initial else begin)]
    hidden: Counter[_Change] = Counter()
    there: dict[str, bool] = {}  # which keys were told to exist, since they were told of
    for at, event in enumerate(told):
        segment = segments[-1]
        if event.type is EventType.RESYNC:
            if event.revision < segment.end:
                _fail("the state is older than what was told before", told, at)
            _check_snapshot(told, at, writes)
            entries = {entry.key: entry.revision for entry in event.snapshot or ()}
            segments.append(_Segment(entries, event.revision, event.revision))
            there = {key: key in entries for key in writes.keys}
        elif event.initial:
            _check_initial(told, at, writes, initial)
            assert segment.snapshot is not None
            segment.snapshot[event.key] = event.revision
            segment.earliest = max(segment.earliest, event.revision)
            there[event.key] = True
        else:
            _check_change(told, at, writes, segment, hidden)
            if event.type is EventType.DELETE and there.get(event.key) is False:
                _fail("the key was not there", told, at)
            there[event.key] = event.type is EventType.PUT
            segment.changes.append((event.revision, event.key))
    _check_complete(segments, writes, -inf if since is None else since)
    if since is None and not initial and len(segments) == 1:
        for (key, value), count in writes.sure.items():
            if hidden[key, value] < count:
                what = "deletions" if value is None else f"writes of {shown(value)}"
                _fail(f"only {hidden[key, value]} of {count} {what} of {key!r} were told", told)


def _check_initial(told: Sequence[Event], at: int, writes: _Writes, initial: bool) -> None:
    event = told[at]
    if not initial or event.type is not EventType.PUT:
        _fail("this is no event of an initial state", told, at)
    if at and not told[at - 1].initial:
        _fail("the initial state goes on behind a change", told, at)
    if at and told[at - 1].key.encode() >= event.key.encode():
        _fail("the initial state is not in the order of keys", told, at)
    writes.check_put(told, at)


def _check_snapshot(told: Sequence[Event], at: int, writes: _Writes) -> None:
    entries = told[at].snapshot
    if entries is None:
        _fail("a RESYNC without the state", told, at)
    keys = [entry.key.encode() for entry in entries]
    if keys != sorted(set(keys)):
        _fail("the state is not in the order of keys", told, at)
    for entry in entries:
        if entry.key not in writes.keys or entry.revision > told[at].revision:
            _fail(f"{entry!r} has no place in this state", told, at)
        writes.check_entry(entry.key, entry.value, entry.revision, told, at)


def _check_change(
    told: Sequence[Event],
    at: int,
    writes: _Writes,
    segment: _Segment,
    hidden: Counter[_Change],
) -> None:
    event = told[at]
    if event.revision <= segment.earliest:
        _fail("this was told before, or is older than the beginning", told, at)
    if event.revision < segment.end:
        _fail("revisions go back", told, at)
    if (event.revision, event.key) in segment.changes[-len(writes.keys) :]:
        _fail("the same change twice", told, at)
    if event.type is EventType.PUT:
        writes.check_put(told, at)
    else:
        if event.key not in writes.keys:
            _fail("an event of a key that is not watched", told, at)
        if event.value is not None:
            _fail("a deletion with a value", told, at)
        writes.check_entry(event.key, None, event.revision, told, at)
    writes.count(told, at, hidden)


def _check_complete(segments: Sequence[_Segment], writes: _Writes, begin: float) -> None:
    """Fail if a write is neither told as a change nor contained in a state that was told."""
    told = {change for segment in segments for change in segment.changes}
    for revision in sorted(writes.known):
        for key, value in writes.known[revision].items():
            if revision <= begin or (revision, key) in told:
                continue
            before = -inf
            for segment in segments:
                if before < revision < segment.first and _holds(segment, key, revision, writes):
                    break
                before = segment.end
            else:
                what = "the deletion" if value is None else f"the value {shown(value)}"
                follows = [change for change in sorted(told) if change[0] > revision][:1]
                _fail(
                    f"{what} of {key!r} at revision {revision} was not told"
                    + (f", though revision {follows[0][0]} was" if follows else ""),
                    (),
                )


def _holds(segment: _Segment, key: str, revision: int, writes: _Writes) -> bool:
    """Whether the state at the beginning of a segment may contain what was written then."""
    if segment.snapshot is None or revision > segment.latest:
        return False
    if key in segment.snapshot:
        return revision <= segment.snapshot[key]
    # absent: this is its deletion, or it was deleted later and before the first change
    limit = min(segment.latest + 1, segment.first)
    known = sorted(writes.known)
    return any(
        key in writes.known[later] and writes.known[later][key] is None
        for later in known[bisect_right(known, revision - 1) :]
        if later < limit
    ) or bool(writes.allows((key, None)))


# -- watches without -------------------------------------------------------------------------------


def _check_states(told: Sequence[Event], writes: _Writes, initial: bool) -> None:
    reached: dict[str, int] = {}
    there: dict[str, bool] = {}
    hidden: Counter[_Change] = Counter()
    deletions: Counter[str] = Counter()
    for at, event in enumerate(told):
        if event.type is EventType.RESYNC:
            _check_snapshot(told, at, writes)
            entries = {entry.key: entry.revision for entry in event.snapshot or ()}
            for key, revision in entries.items():
                if revision < reached.get(key, revision):
                    _fail(f"the state of {key!r} is older than what was told before", told, at)
            there = {key: key in entries for key in writes.keys}
            reached |= entries
            continue
        if event.initial:
            _check_initial(told, at, writes, initial)
        if event.revision <= reached.get(event.key, event.revision - 1):
            _fail("the state of this key is not newer than what was told before", told, at)
        if event.type is EventType.PUT:
            writes.check_put(told, at)
            writes.count(told, at, hidden)
        else:
            if event.value is not None:
                _fail("a deletion with a value", told, at)
            deletions[event.key] += 1
            if deletions[event.key] > writes.deletes(event.key):
                _fail("this key was deleted fewer times than it was told", told, at)
            if there.get(event.key) is False:
                _fail("the key was not there", told, at)
        reached[event.key] = event.revision
        there[event.key] = event.type is EventType.PUT


def _check_last(
    told: Sequence[Event], last: Mapping[str, KeyValue | None], since: int | None
) -> None:
    states: dict[str, tuple[bytes | None, int] | None] = {}
    for event in told:
        if event.type is EventType.RESYNC:
            states = dict.fromkeys(last)
            states |= {entry.key: (entry.value, entry.revision) for entry in event.snapshot or ()}
        elif event.type is EventType.PUT:
            states[event.key] = (event.value, event.revision)
        else:
            states[event.key] = None
    for key, entry in last.items():
        now = None if entry is None else (entry.value, entry.revision)
        if key not in states and (now is None or (since is not None and now[1] <= since)):
            continue
        if states.get(key) != now:
            _fail(
                f"{key!r} was left at {_state(states.get(key))}, but holds {_state(now)}",
                (),
            )


def _state(state: tuple[bytes | None, int] | None) -> str:
    return "nothing" if state is None else f"{shown(state[0])} of revision {state[1]}"

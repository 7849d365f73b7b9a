"""What changed between two snapshots of a prefix, and what a watch has yet to tell. Pure; no I/O.

*Theory.* Consul keeps no history: a blocking query answers with the whole present state of its
prefix, and what happened since the last answer is the difference. Of each key only a `Stamp` is
kept. Two equal stamps are one state: an index is never given twice, except by a server that lost
its data or had another snapshot restored into it, which is why a mark of the content is part of
it.

=======================================  =======================================================
between two snapshots a key              is told as
=======================================  =======================================================
appeared, or has another stamp           its new state, at its ModifyIndex
was deleted and written again            its new state only: a newer state, as any other, which
                                         says when the key was created
is gone                                  a deletion, at the index of the one that misses it
was written and deleted again            nothing: no snapshot has it
=======================================  =======================================================

A change that happened after a snapshot at index N has a ModifyIndex above N, and a snapshot that
misses a key has an index above N. If not, the server's history was replaced (`Snapshot.rewound`),
or Consul has forgotten the deletion meanwhile (after a quarter of an hour); then no order of events
makes sense, and the watches start over with the whole present state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from kvi.model import Event, EventType, KeyValue, Span
from kvi.policy.interest import Interests, only_key

from kvi_consul import wire

MOST_PENDING = 8 << 20  # bytes kept for a consumer that does not read
_OVERHEAD = 300  # bytes that a pending change takes beside its key and value


class Stamp(NamedTuple):
    """All that is kept of a key's state."""

    created: int
    modified: int
    content: int  # of value, flags and session; equal if they are


Stamps = dict[str, Stamp]
T = TypeVar("T", bound=Hashable)


def stamp_of(kv: Mapping[str, Any]) -> Stamp:
    """The stamp of an entry as Consul tells it."""
    content = hash((kv["Value"], kv["Flags"], kv.get("Session")))
    return Stamp(kv["CreateIndex"], kv["ModifyIndex"], content)


class Change(NamedTuple):
    """The newest state of a key.

    Attributes:
        key: the key.
        existed: whether it was there before.
        value: the new value, or ``None`` if the key is gone.
        revision: see the module's table.
        created: when the key was created, if it is there.

    """

    key: str
    existed: bool
    value: bytes | None
    revision: int
    created: int | None = None

    def event(self) -> Event:
        """The event that tells of it."""
        kind = EventType.DELETE if self.value is None else EventType.PUT
        return Event(kind, self.key, self.value, self.revision, created=self.created)


class Snapshot(Generic[T]):
    """The answer to one query, compared entry by entry with what was known before.

    Attributes:
        stamps: what it shows.
        index: when it was taken.
        rewound: whether the server's history was replaced since what was known.
        changes: what is new to those who knew all that was known.
        late: for each of ``joining``, what is new to it.
        whole: for each of ``joining`` that knows nothing, all of its entries.

    """

    def __init__(
        self,
        known: Stamps,
        high: int | None,
        joining: Mapping[T, tuple[Span, Stamps | None]],
        followed: Callable[[str], bool],
    ) -> None:
        """``known`` is the snapshot before, and ``high`` the highest index so far, if there is one.

        ``joining`` are those who know something else, or nothing (``None``), of their keys.
        ``followed`` tells whether anybody wants to know the value of a key that has changed.
        """
        self._known, self._high, self._followed = known, high, followed
        self._joining: Interests[T] = Interests()
        self._before: dict[T, Stamps] = {}
        self.stamps: Stamps = {}
        self.index = 0
        self.rewound = False
        self.changes: list[Change] = []
        self.late: dict[T, list[Change]] = {}
        self.whole: dict[T, list[KeyValue]] = {}
        for one, (span, before) in joining.items():
            self._joining.add(span, one)
            if before is None:
                self.whole[one] = []
            else:
                self._before[one] = before
                self.late[one] = []

    def see(self, kv: dict[str, Any]) -> None:
        """The next entry. Its value is kept only if somebody is to have it."""
        key, stamp = kv["Key"], stamp_of(kv)
        before = self._known.get(key)
        changed = before != stamp
        self.stamps[key] = stamp if before is None or changed else before
        if changed:
            self._check(stamp.modified)
            if self._followed(key):
                self.changes.append(_change(kv, before is not None))
        for one in self._joining.matching((key,)) if self._joining else ():
            if one in self.whole:
                self.whole[one].append(wire.entry_of(kv))
            elif (told := self._before[one].get(key)) != stamp:
                self.late[one].append(_change(kv, told is not None))

    def finish(self, index: int) -> None:
        """After the last entry: what is gone, as of ``index``."""
        self.index = index
        self.changes += self._gone(self._known)
        if self.changes and self.changes[-1].value is None:
            self._check(index)
        for one, before in self._before.items():
            self.late[one] += self._gone(before)

    def _gone(self, before: Stamps) -> list[Change]:
        return [Change(key, True, None, self.index) for key in before if key not in self.stamps]

    def _check(self, revision: int) -> None:
        """Something has changed, at ``revision`` at the latest."""
        if self._high is not None and revision <= self._high:
            self.rewound = True


def within(span: Span, stamps: Stamps) -> Stamps:
    """Those of ``stamps`` whose keys are in ``span``."""
    key = only_key(span)
    if key is None:
        return {key: stamp for key, stamp in stamps.items() if key in span}
    return {key: stamps[key]} if key in stamps else {}


class Pending:
    """What a watch has yet to tell: for each key the newest state, and no state twice.

    A key that appeared and is gone again before anybody was told is forgotten.
    """

    def __init__(self) -> None:
        self._changes: dict[str, Change] = {}
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._changes)

    @property
    def too_large(self) -> bool:
        """Whether it takes more memory than a consumer that does not read is worth."""
        return self._size > MOST_PENDING

    def add(self, change: Change) -> None:
        """A change that is newer than all before."""
        before = self._changes.pop(change.key, None)
        existed = change.existed
        if before is not None:
            self._size -= _size(before)
            existed = before.existed
        if change.value is None and not existed:
            return
        if before is not None:
            change = change._replace(existed=existed)
        self._changes[change.key] = change
        self._size += _size(change)

    def events(self) -> list[Event]:
        """Everything, in the order of revisions."""
        return [change.event() for change in sorted(self._changes.values(), key=_revision)]


def _size(change: Change) -> int:
    return len(change.key) + len(change.value or b"") + _OVERHEAD


def _revision(change: Change) -> int:
    return change.revision


def _change(kv: dict[str, Any], existed: bool) -> Change:
    entry = wire.entry_of(kv)
    return Change(entry.key, existed, entry.value, entry.revision, entry.create_revision)

"""What changed between two looks at a prefix, and what a watch has yet to tell. Pure; no I/O.

*Theory.* Consul keeps no history: a blocking query answers with the whole present state of its
prefix, and what happened since the last answer is the difference. Of each key only a `Stamp` is
kept. Two equal stamps are one state: an index is never given twice, except by a server that lost
its data or had another snapshot restored into it, which is why a mark of the content is part of
it.

=======================================  =======================================================
between two looks a key                  is told as
=======================================  =======================================================
appeared, or has another stamp           its new state, at its ModifyIndex
was deleted and written again            its new state only: a newer state, as any other
is gone                                  a deletion, at the index of the look that misses it
was written and deleted again            nothing: no look has seen it
=======================================  =======================================================

A change that happened after a look at index N has a ModifyIndex above N, and a look that misses a
key has an index above N. If not, the server's history was replaced (`Look.rewound`), or Consul has
forgotten the deletion meanwhile (after a quarter of an hour); then no order of events makes sense,
and the watches start over with the whole present state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kvi.model import Event, EventType, KeyValue

from kvi_consul import wire

MOST_PENDING = 8 << 20  # bytes kept for a consumer that does not read
_OVERHEAD = 300  # bytes that a pending change takes beside its key and value


class Stamp(NamedTuple):
    """All that is kept of a key's state."""

    created: int
    modified: int
    content: int  # of value, flags and session; equal if they are


Stamps = dict[str, Stamp]


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

    """

    key: str
    existed: bool
    value: bytes | None
    revision: int

    def event(self) -> Event:
        """The event that tells of it."""
        kind = EventType.DELETE if self.value is None else EventType.PUT
        return Event(kind, self.key, self.value, self.revision)


class Look:
    """One look at a prefix, compared entry by entry with what was known before.

    Attributes:
        stamps: what is known after it.
        rewound: whether the server's history was replaced since the last look.

    """

    def __init__(self, known: Mapping[str, Stamp], high: int | None) -> None:
        """``high`` is the highest index of a look before, ``None`` if they were of other keys."""
        self._known = known
        self._high = high
        self.stamps: Stamps = {}
        self.rewound = False

    def see(self, key: str, stamp: Stamp) -> bool:
        """The next entry; whether it is new or has changed."""
        before = self._known.get(key)
        if before == stamp:
            self.stamps[key] = before
            return False
        self.stamps[key] = stamp
        self._check(stamp.modified)
        return True

    def gone(self, index: int) -> list[str]:
        """After the last entry of a look at ``index``: the keys that are no longer there."""
        gone = missing(self._known, self.stamps)
        if gone:
            self._check(index)
        return gone

    def _check(self, revision: int) -> None:
        """Something has changed, at ``revision`` at the latest."""
        if self._high is not None and revision <= self._high:
            self.rewound = True


def missing(before: Mapping[str, Stamp], now: Mapping[str, Stamp]) -> list[str]:
    """The keys of ``before`` that are not in ``now``."""
    return [key for key in before if key not in now]


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


def value_of(kv: dict[str, Any]) -> bytes:
    """The value of an entry as Consul tells it."""
    entry: KeyValue = wire.entry_of(kv)
    assert entry.value is not None  # it was read
    return entry.value

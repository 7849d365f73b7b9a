"""The state of a store in memory, and the records that make it: no files, threads or locks here.

A *record* is one commit. The first record of a journal is a snapshot (``State.snapshot``); each one
behind it changes the state that those before it have made. On disk a record is a line::

    4a17b1c0 {"revision":7,"changes":[["greeting","aGVsbG8=",null]],"leases":[]}
    ╰─crc32─╯╰── JSON, in ASCII; values in base64 ──────────────────────────────╯

The checksum tells a whole record from one whose writer died in the middle.
"""

from __future__ import annotations

import json
import math
import zlib
from base64 import b64decode, b64encode
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, NamedTuple

from kvi.clock import now
from kvi.model import Event, KeyValue, Scan, Span
from kvi.policy.past import gone
from kvi.policy.txn import Change, put

Record = dict[str, Any]
FORMAT = "kvi-directory 1"


def encode(record: Record) -> bytes:
    """``record`` as a line: its only line break is the last byte."""
    text = json.dumps(record, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(line: bytes) -> Record | None:
    """The record of a line, or ``None`` if it is not whole."""
    checksum, _, text = line[:-1].partition(b" ")
    if line[-1:] != b"\n" or checksum != b"%08x" % zlib.crc32(text):
        return None
    record: Record = json.loads(text)
    return record


class Lease(NamedTuple):
    """A lease: its time to live, and when it ends unless it is renewed."""

    ttl: float
    deadline: float


class State:
    """What a journal says up to some record. Entries and events are immutable; the rest is not."""

    def __init__(self) -> None:
        self.revision = 0
        self.entries: dict[str, KeyValue] = {}
        self.leases: dict[int, Lease] = {}
        self.last_lease = 0  # ids are not used again
        self.base = 0  # the revision of the snapshot: what came behind it is in ``events``
        self.events: list[Event] = []  # in the order of revisions
        self.next_deadline = math.inf  # of the leases
        self._keys: list[str] = []  # sorted; code points sort as their UTF-8 bytes do

    # -- reading --------------------------------------------------------------------------------

    def select(self, scan: Scan) -> list[KeyValue]:
        """The entries of a range, in its order."""
        low, high = self._bounds(scan.span)
        keys = self._keys[low:high]
        if scan.reverse:
            keys.reverse()
        found = [self.entries[key] for key in keys[: scan.limit]]
        return [entry._replace(value=None) for entry in found] if scan.keys_only else found

    def count(self, span: Span) -> int:
        """How many keys ``span`` has."""
        low, high = self._bounds(span)
        return high - low

    def since(self, revision: int, limit: int) -> list[Event]:
        """The next ``limit`` changes behind ``revision``, of whole revisions."""
        if revision < self.base:
            raise gone(revision)
        number = attrgetter("revision")
        first = bisect_right(self.events, revision, key=number)
        found = self.events[first : first + limit]
        if found:
            found = self.events[first : bisect_right(self.events, found[-1].revision, key=number)]
        return found

    def expired(self) -> list[int]:
        """The leases whose time is up."""
        time = now()
        if time < self.next_deadline:
            return []
        return [lease for lease, (_, deadline) in self.leases.items() if deadline <= time]

    def _bounds(self, span: Span) -> tuple[int, int]:
        low = bisect_left(self._keys, span.start)
        high = len(self._keys) if span.end is None else bisect_left(self._keys, span.end)
        return low, max(low, high)

    # -- records --------------------------------------------------------------------------------

    def changed(self, changes: Iterable[Change]) -> Record:
        """The record of ``changes``, all at the next revision."""
        written = [
            [change.key, None, None]
            if change.new is None
            else [change.key, _text(change.new.value), change.new.lease]
            for change in changes
        ]
        return {"revision": self.revision + bool(written), "changes": written, "leases": []}

    def renewed(self, lease: int, ttl: float) -> Record:
        """The record of a lease that begins now, for the first time or anew."""
        return self.changed(()) | {"leases": [[lease, ttl, now() + ttl]]}

    def ended(self, lease: int) -> Record:
        """The record of a lease's end: its keys go with it, at one revision."""
        gone = [Change(k, entry, None) for k, entry in self.entries.items() if entry.lease == lease]
        return self.changed(gone) | {"leases": [[lease, None, None]]}

    def snapshot(self) -> Record:
        """The record of the whole present state, without the changes that led to it."""
        entries = [self.entries[key] for key in self._keys]
        return {
            "format": FORMAT,
            "revision": self.revision,
            "last_lease": self.last_lease,
            "entries": [[entry.key, _text(entry.value), *entry[2:]] for entry in entries],
            "leases": [[lease, *times] for lease, times in self.leases.items()],
        }

    def apply(self, record: Record) -> None:
        """Take a record in: a snapshot to begin with, then the changes behind it."""
        self.revision = record["revision"]
        if "format" in record:
            self.base = self.revision
            self.last_lease = record["last_lease"]
            self._keys = [key for key, *_ in record["entries"]]
            for key, value, *rest in record["entries"]:
                self.entries[key] = KeyValue(key, b64decode(value), *rest)
        else:
            for key, value, lease in record["changes"]:
                self._change(key, value, lease)
        for lease, ttl, deadline in record["leases"]:
            if ttl is None:
                del self.leases[lease]
            else:
                self.leases[lease] = Lease(ttl, deadline)
                self.last_lease = max(self.last_lease, lease)
        if record["leases"]:
            deadlines = (deadline for _, deadline in self.leases.values())
            self.next_deadline = min(deadlines, default=math.inf)

    def _change(self, key: str, value: str | None, lease: int | None) -> None:
        old = self.entries.get(key)
        if value is None:
            del self.entries[key], self._keys[bisect_left(self._keys, key)]
            self.events.append(Change(key, old, None).event(self.revision))
            return
        if old is None:
            insort(self._keys, key)
        new = self.entries[key] = put(old, key, b64decode(value), self.revision, lease)
        self.events.append(Change(key, old, new).event(self.revision))


def _text(value: bytes | None) -> str:
    assert value is not None  # entries of the state have their values
    return b64encode(value).decode("ascii")

"""Where a watch is in the history, and what an answer of etcd means for it: pure, without I/O.

*Theory.* A watch knows one number, ``seen``: of all revisions up to it, it has taken every change,
or wants none. Whatever breaks, it goes on from there, and drops what it has seen.

*Where to start anew.* Not at ``seen + 1``: a compaction at exactly the revision that a watch
starts at takes the deletes of that revision away, and etcd says nothing. A watch that starts one
earlier, at ``seen`` itself, is told of that compaction; and what a compaction at ``seen`` takes
away, it has had. The price is that etcd has to look into its history first, for up to a tenth of a
second. So a new watch, which asks for the future, starts at ``seen + 1``, unless the answer shows
that this was the past already: then it starts again, at ``seen``.

*What may move it.* The changes of one revision come in one answer, but etcd cuts a large answer
into fragments anywhere. Changes come in the order of revisions, so that those before the last
revision of a fragment are complete, and those of the last are kept until the rest is there. The
revision in the header of an answer with changes is where the store is, not how far the answer goes
(it ends after a thousand revisions). Only an answer without changes, a progress report, says that
there are none up to its revision.

*A store that went back.* Restored from a backup, etcd counts on from an older revision, and a watch
that waits for a newer one would be quiet for long and then have missed changes. So the cursor
remembers which revision the store has ``proven`` to have reached; a linearizable answer below that
says that this is another history. (Below what a caller asked to wait for, it says nothing.)
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from kvi_etcd import wire_pb2 as pb

MAX_EVENTS = 20_000  # of one watch, kept for its consumer
MAX_BYTES = 8_000_000  # of one watch
MAX_TOTAL = 64_000_000  # bytes of all watches of a handle
EVENT_BYTES = 250  # what an event takes in memory beside its key and values


class Meaning(enum.Enum):
    """What an answer on a stream of watches tells."""

    CREATED = enum.auto()  # the oldest create that is not answered yet has been done
    REFUSED = enum.auto()  # the same has been refused
    COMPACTED = enum.auto()  # the history that the watch needs is gone, and so is the watch
    CANCELLED = enum.auto()  # the watch is gone, for another reason or because we asked for it
    CHANGES = enum.auto()  # or none, as progress


def meaning(answer: pb.WatchResponse) -> Meaning:
    """What ``answer`` tells."""
    if answer.created:
        return Meaning.REFUSED if answer.canceled else Meaning.CREATED
    if answer.compact_revision:
        return Meaning.COMPACTED
    return Meaning.CANCELLED if answer.canceled else Meaning.CHANGES


class Chunk(NamedTuple):
    """Changes that are complete up to a revision: what a watch keeps for its consumer."""

    changes: Sequence[pb.Event]
    revision: int
    weight: int


class Cursor:
    """The place of one watch; see the module's theory. Not safe for threads.

    Attributes:
        seen: everything up to this revision has been taken.
        proven: the store has been at this revision.
    """

    __slots__ = ("_part", "_part_size", "_start", "proven", "seen")

    def __init__(self, seen: int, *, future: bool = False) -> None:
        self.seen = seen
        self.proven = 0 if future else seen
        self._start = 0
        self._part: list[pb.Event] = []
        self._part_size = 0

    def start(self, *, ahead: bool) -> int:
        """The revision to start at; ``ahead``: the store was not beyond ``seen`` just now."""
        self._part, self._part_size = [], 0
        self._start = self.seen + 1 if ahead else max(self.seen, 1)  # 0 would be "from now on"
        return self._start

    def behind(self, revision: int) -> bool:
        """Whether it started too late to be sure, as the store was at ``revision`` already."""
        return self.seen < self._start <= revision

    def take(self, answer: pb.WatchResponse, size: int) -> Chunk | None:
        """Take an answer of ``size`` bytes; returns what it completes, if anything."""
        changes: Sequence[pb.Event] = answer.events
        if not changes:
            if self._part or answer.fragment or answer.header.revision <= self.seen:
                return None
            self.seen = self.proven = answer.header.revision
            return Chunk((), self.seen, 0)
        seen = self.seen
        if changes[0].kv.mod_revision <= seen:
            changes = [change for change in changes if change.kv.mod_revision > seen]
        if self._part:
            changes = [*self._part, *changes]
            size += self._part_size
            self._part, self._part_size = [], 0
        if answer.fragment and changes:
            changes, size = self._keep_last(changes, size)
        if not changes:
            return None
        self.seen = self.proven = changes[-1].kv.mod_revision
        return Chunk(changes, self.seen, size + EVENT_BYTES * len(changes))

    def _keep_last(self, changes: Sequence[pb.Event], size: int) -> tuple[Sequence[pb.Event], int]:
        """Put the changes of the last revision aside, with their share of ``size``."""
        last = changes[-1].kv.mod_revision
        whole = len(changes)
        while whole and changes[whole - 1].kv.mod_revision == last:
            whole -= 1
        share = size * whole // len(changes)
        self._part, self._part_size = list(changes[whole:]), size - share
        return changes[:whole], share


def fits(kept: int, events: int, weight: int, total: int) -> bool:
    """Whether a watch that keeps ``kept`` chunks may take another answer.

    ``events`` and ``weight`` would be kept then, and ``total`` by all watches of the handle. One
    chunk always fits, however large: a revision is told whole.
    """
    return not kept or (events <= MAX_EVENTS and weight <= MAX_BYTES and total <= MAX_TOTAL)

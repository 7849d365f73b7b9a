"""What a watch reads of the history at a time: rows as events, in batches; without I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kvi.model import Event, EventType, KeyValue

MAX_ROWS = 512  # of a batch, and nearly so of bytes; a revision is never split
MAX_BYTES = 1024 * 1024

# revision, key, value (None: deleted); and of the entry before: revision (None: there was none, or
# it is not known), create revision, version, lease, value
Row = tuple[int, bytes, bytes | None, int | None, int, int, int | None, bytes]


_PUT, _DELETE = EventType.PUT, EventType.DELETE


class Portion(NamedTuple):
    """What one reading of the history gave.

    Attributes:
        events: the changes, in order, of whole revisions.
        revision: everything up to here is among them.
        rest: the revision of the first change that is not; ``None`` if no more is known of.

    """

    events: list[Event]
    revision: int
    rest: int | None


def portion(rows: Iterable[Row], revision: int) -> Portion:
    """Take a batch from the changes of a span in order, which are complete up to ``revision``."""
    events: list[Event] = []
    size = newest = 0
    for row in rows:
        at = row[0]
        if at != newest and (len(events) >= MAX_ROWS or size >= MAX_BYTES):
            return Portion(events, at - 1, at)
        newest = at
        events.append(event_of(row))
        size += len(row[1]) + len(row[2] or b"") + len(row[7] or b"")
    return Portion(events, revision, None)


def event_of(row: Row) -> Event:
    """What a row of the history tells."""
    at, name, value, revision, created, version, lease, before = row
    key, previous, new = str(name, "utf-8"), None, tuple.__new__  # Event's own takes twice as long
    if revision is not None:
        previous = new(KeyValue, (key, before, revision, created, version, lease))
    kind = _DELETE if value is None else _PUT
    return new(Event, (kind, key, value, at, previous, False, None, None))

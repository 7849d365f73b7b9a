"""The store as it was: what has changed since then, undone.

Of each change there is what was there before (*undo* in `kvi_sqlite.schema`). An entry that has not
changed since a revision is what it was then; of one that has, the first change since knows. A page
is merged out of both, in key order, so that no page needs more memory than it has entries.

Which keys have changed is found by looking through the history, for the next `AHEAD` of them at a
time, however many pages these are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator
from heapq import merge
from operator import itemgetter
from typing import NamedTuple

from kvi.model import MAX_NUMBER, Event, Scan
from kvi.policy.past import check_past, gone

from kvi_sqlite import schema
from kvi_sqlite.connection import Connection
from kvi_sqlite.leases import first_id
from kvi_sqlite.portions import event_of

AHEAD = 32_768  # keys: a few megabytes

_SQL = {
    (reverse, keys_only): schema.past_sql(reverse=reverse, keys_only=keys_only)
    for reverse in (False, True)
    for keys_only in (False, True)
}

Entry = tuple[bytes, bytes | None, int, int, int, int | None]  # as rows of `schema.range_sql`


def check_revision(connection: Connection, revision: int, present: int) -> None:
    """Raise `Compacted` or `InvalidArgument` unless the history goes back to ``revision``."""
    (trimmed,) = connection.execute(schema.TRIMMED_TO).fetchone()
    check_past(revision, trimmed, present)


class Changed(NamedTuple):
    """Keys that were there, and have changed since, among those of ``[low, high)``.

    Attributes:
        items: each with the id of its first event since; in key order.

    """

    low: bytes
    high: bytes
    items: list[tuple[bytes, int]]


def changed_since(
    connection: Connection, scan: Scan, revision: int, low: bytes, high: bytes
) -> Changed:
    """Those that have changed since ``revision``: all between the bounds, or the next ones."""
    since = (low, high, first_id(revision + 1), revision, AHEAD)
    items: list[tuple[bytes, int]] = [
        (key, event)
        for key, event, _ in connection.execute(schema.CHANGED_SINCE[scan.reverse], since)
    ]
    if scan.reverse:
        items.reverse()
    if len(items) == AHEAD:  # there may be more behind the last one
        return (
            Changed(items[0][0], high, items)
            if scan.reverse
            else Changed(low, items[-1][0] + b"\0", items)
        )
    return Changed(low, high, items)


def rows_at(
    connection: Connection,
    scan: Scan,
    revision: int,
    changed: Changed,
    low: bytes,
    high: bytes,
    limit: int,
) -> Generator[Entry]:
    """The entries of ``[low, high)`` as they were at ``revision``, at most ``limit``; lazily.

    Raises `Compacted` at one that is not known any more.
    """
    execute = connection.execute
    first, last = (bisect_left(changed.items, bound, key=itemgetter(0)) for bound in (low, high))
    places = range(first, last)

    def undone() -> Iterator[Entry]:
        for place in reversed(places) if scan.reverse else places:
            key, event = changed.items[place]
            row = execute(schema.BEFORE, (event,)).fetchone()
            if row is None:
                raise gone(revision)
            value, *rest = row
            yield (key, None if scan.keys_only else value, *rest)

    same = execute(_SQL[scan.reverse, scan.keys_only], (low, high, revision, revision, limit))
    both = merge(same, undone(), key=itemgetter(0), reverse=scan.reverse)
    for _, entry in zip(range(limit), both, strict=False):
        yield entry


def last_changes(connection: Connection, key: str, limit: int | None) -> list[Event]:
    """The last changes of ``key``, newest first. In a transaction."""
    execute = connection.execute
    (trimmed,) = execute(schema.TRIMMED_TO).fetchone()
    name, first = key.encode(), trimmed + 1
    most = -1 if limit is None else limit
    # One whose lease has ended may still be there: that is its last change.
    rows = execute(schema.DELETED_BY_TOMBSTONES, (first, MAX_NUMBER, name, name + b"\0")).fetchall()
    rows += execute(schema.LAST_CHANGES, (first_id(first), first, name, most)).fetchall()
    return [event_of(row) for row in rows[:limit]]

"""Ranges: pages of one revision, read from a transaction that stays open between them.

A range of a few small entries is one statement, in place. Any other is read in pages, each of a
bounded number of rows and, nearly, of bytes. Mostly the first is the whole, and the transaction
ends with it. Otherwise the connection is pinned, with its read transaction, in a `Snapshot`:
whatever others commit, it keeps seeing the state of the first page.
Each pass over the result reads its own pages from it, by key, so that any number of passes can be
under way, and takes the snapshot's lock for each page.

The snapshot belongs to the result and its passes. When the last of them is dropped, a finalizer
ends the transaction and gives the connection back; when the handle is closed, so are its snapshots,
and the next page raises. While it lives the WAL file cannot start over and grows with each commit.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from time import monotonic

from kvi.clock import now
from kvi.errors import Timeout, Unavailable
from kvi.living import Living
from kvi.model import KeyValue, RangeResult, Scan, Span

from kvi_sqlite import schema
from kvi_sqlite.connection import Connection, Pool
from kvi_sqlite.errors import CLOSED, translate
from kvi_sqlite.leases import check_due
from kvi_sqlite.past import Changed, Entry, changed_since, check_revision, rows_at

PAGE_ROWS = 512
PAGE_BYTES = 1024 * 1024  # of keys and values; one row can be bigger
ABOVE_ALL = b"\xff"  # no UTF-8 text begins with this byte

FEW = 128  # entries that are read at once, without a transaction around them

_SQL = {
    (reverse, keys_only): schema.range_sql(reverse=reverse, keys_only=keys_only)
    for reverse in (False, True)
    for keys_only in (False, True)
}

_FEW_SQL = {
    (reverse, keys_only): schema.few_sql(reverse=reverse, keys_only=keys_only)
    for reverse in (False, True)
    for keys_only in (False, True)
}


def bounds(span: Span) -> tuple[bytes, bytes]:
    """``(low, high)`` of the keys of ``span`` as stored, half-open."""
    return span.start.encode(), ABOVE_ALL if span.end is None else span.end.encode()


@dataclass(frozen=True, slots=True)
class Rest:
    """What a pass has not read yet: keys in ``[low, high)``, ``left`` of them (``None``: all).

    ``changed``: of a pass over the past, what is known already of these keys.
    """

    low: bytes
    high: bytes
    left: int | None
    changed: Changed | None = None


def revision_of(connection: Connection) -> int:
    """The revision of what ``connection`` sees."""
    (revision,) = connection.execute(schema.REVISION).fetchone()
    return revision or 0


def begin_read(connection: Connection, moment: float) -> int:
    """Begin a read transaction; its revision. Raises `Expired` for leases that end by ``moment``.

    Leases that expire later are seen to the end of the transaction, as of its revision.
    """
    connection.execute("BEGIN")
    revision, due = connection.execute(schema.SNAPSHOT).fetchone()
    check_due(due, moment)
    return revision or 0


def read_page(connection: Connection, scan: Scan, rest: Rest) -> tuple[list[KeyValue], Rest | None]:
    """Read the next page of ``rest``, and what then remains; ``None`` if that was the last."""
    limit = PAGE_ROWS if rest.left is None else min(PAGE_ROWS, rest.left)
    page: list[KeyValue] = []
    size = 0
    last = b""
    new = tuple.__new__  # KeyValue's own constructor would be a fifth of the time of a range
    changed, low, high = rest.changed, rest.low, rest.high
    rows: sqlite3.Cursor | Generator[Entry]
    if scan.revision is None:
        rows = connection.execute(_SQL[scan.reverse, scan.keys_only], (low, high, limit))
    else:
        if changed is None:
            changed = changed_since(connection, scan, scan.revision, low, high)
        low, high = max(low, changed.low), min(high, changed.high)
        rows = rows_at(connection, scan, scan.revision, changed, low, high, limit)
    for last, value, revision, create_revision, version, lease in rows:
        entry = (str(last, "utf-8"), value, revision, create_revision, version, lease)
        page.append(new(KeyValue, entry))
        size += len(last) + (0 if value is None else len(value))
        if size >= PAGE_BYTES:
            rows.close()
            break
    left = None if rest.left is None else rest.left - len(page)
    if len(page) == limit or size >= PAGE_BYTES:
        behind = last if scan.reverse else last + b"\0"  # the next key in the order of bytes
    elif (low, high) == (rest.low, rest.high):
        return page, None
    else:  # of what lies behind, nobody has looked yet what has changed
        behind, changed = low if scan.reverse else high, None
    if left == 0:
        return page, None
    if scan.reverse:
        return page, Rest(rest.low, behind, left, changed)
    return page, Rest(behind, rest.high, left, changed)


class Snapshot:
    """Owns a pinned connection in a read transaction. Safe for threads."""

    __slots__ = ("__weakref__", "_connection", "_lock", "_pool", "_scan", "_timeout")

    def __init__(self, pool: Pool, connection: Connection, scan: Scan, timeout: float) -> None:
        self._pool = pool
        self._connection = connection
        self._scan = scan
        self._timeout = timeout
        self._lock = threading.Lock()
        weakref.finalize(self, pool.unpin, connection).atexit = False

    def read(self, rest: Rest) -> tuple[list[KeyValue], Rest | None]:
        """Read the next page."""
        pool, connection = self._pool, self._connection
        if pool.closing:
            raise Unavailable(CLOSED)
        if not self._lock.acquire(timeout=self._timeout):
            raise Timeout("other threads kept reading from the same range")
        try:
            if connection not in pool.live:
                raise Unavailable(CLOSED if pool.closing else "an earlier page could not be read")
            connection.deadline.begin(monotonic() + self._timeout)
            try:
                page = read_page(connection, self._scan, rest)
            except sqlite3.Error as error:
                failure = translate(error, pool.path, closing=pool.closing)
                try:
                    if not isinstance(failure, Timeout):  # then the page can be read again
                        pool.discard(connection)
                    raise failure from error
                finally:
                    del failure  # it holds this frame, and with it the snapshot
            finally:
                connection.deadline.end()
            if connection.reading is not None and not connection.reading.is_unchanged():
                pool.discard(connection)
                raise Unavailable("the file was written to meanwhile; read the range again")
            return page
        finally:
            self._lock.release()

    def close(self, timeout: float) -> None:
        """End it, unless another thread is reading from it for longer than ``timeout``."""
        if self._lock.acquire(timeout=timeout):
            try:
                self._pool.discard(self._connection)
            finally:
                self._lock.release()


class Ranges:
    """Makes the range results of one handle, and closes their snapshots with it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._snapshots: Living[Snapshot] = Living()

    def read(self, scan: Scan, moment: float, deadline: float, timeout: float) -> RangeResult:
        """Read the first page of ``scan``; ``timeout`` is for each of the others.

        Raises `Expired` for leases that end by ``moment``.
        """

        def work(connection: Connection) -> tuple[Connection, int, list[KeyValue], Rest | None]:
            revision = begin_read(connection, moment)
            if scan.revision is not None:
                check_revision(connection, scan.revision, revision)
                revision = scan.revision
            page, rest = read_page(connection, scan, Rest(*bounds(scan.span), scan.limit))
            if rest is None:
                connection.execute("COMMIT")
            else:
                connection.pinned = True
            return connection, revision, page, rest

        connection, revision, page, rest = self._pool.read(work, deadline)
        if rest is None:
            return RangeResult(revision, lambda: (page,))
        snapshot = Snapshot(self._pool, connection, scan, timeout)
        self._snapshots.add(snapshot)
        return RangeResult(revision, lambda: chain((page,), _pages(snapshot, rest)))

    def glance(self, scan: Scan) -> tuple[int, list[KeyValue]] | None:
        """Read ``scan`` in one statement: its revision and entries.

        ``None`` if there are no entries, or more than a few, or large ones; if a lease has expired,
        or what it held is still being deleted; or if it is not possible at once.
        """
        asked = FEW + 1 if scan.limit is None else min(scan.limit, FEW + 1)
        low, high = bounds(scan.span)
        keys_only = scan.keys_only
        longest = (PAGE_BYTES // asked,) * (1 if keys_only else 2)
        statement = _FEW_SQL[scan.reverse, keys_only]
        rows = self._pool.glance(statement, (*longest, low, high, asked))
        if not 0 < len(rows) <= FEW:
            return None
        *_, newest, due, buried = rows[0]
        if buried is not None or (due is not None and due <= now()):
            return None
        new, page = tuple.__new__, []
        for key, value, revision, created, version, lease, *_ in rows:
            if key is None or (value is None and not keys_only):
                return None
            entry = (str(key, "utf-8"), value, revision, created, version, lease)
            page.append(new(KeyValue, entry))
        return newest, page

    def close(self, timeout: float) -> None:
        """Close the snapshots that no thread is reading from."""
        for snapshot in self._snapshots:
            snapshot.close(timeout)


def _pages(snapshot: Snapshot, rest: Rest | None) -> Iterator[Iterable[KeyValue]]:
    while rest is not None:
        page, rest = snapshot.read(rest)
        yield page

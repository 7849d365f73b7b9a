"""`SqliteKvi`: a handle on the store in one file.

Every write is one transaction, begun with ``BEGIN IMMEDIATE``, so that nothing it reads can change
before it commits (a transaction that begins as a reader cannot become a writer once somebody else
has written). Reads take no lock and never wait for writers: each sees the last commit before it.
SQLite makes this linearizable, between threads and processes alike: a commit is announced in shared
memory before it is acknowledged, and a read looks there first.

`kvi_sqlite.connection` says who owns connections and what a fork does, `kvi_sqlite.snapshot` how
ranges keep to one revision, `kvi_sqlite.schema` what is stored.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from time import monotonic
from typing import Any

from kvi.capabilities import Capabilities
from kvi.errors import LeaseLost
from kvi.interface import BaseKvi
from kvi.model import Delete, KeyValue, Put, RangeResult, Scan, Span, Txn, TxnResult
from kvi.policy.txn import Change, choose, perform

from kvi_sqlite import schema
from kvi_sqlite.connection import Connection, Pool
from kvi_sqlite.snapshot import Ranges, bounds, revision_of

MAX_KEY = 1024 * 1024
ROW_OVERHEAD = 1024  # the header and the integers of a row take less than 100 bytes


def _max_value() -> int:
    """The longest row of this SQLite library (10**9 bytes by default), less key and overhead."""
    connection = sqlite3.connect(":memory:")
    try:
        longest = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    finally:
        connection.close()
    return longest - MAX_KEY - ROW_OVERHEAD


CAPABILITIES = Capabilities(
    shared=True,
    durable=True,
    watch_history=True,
    snapshot_range=True,
    lock_fair=True,
    key_version=True,
    atomic_range_delete="any",
    lease_min_ttl=0,
    lease_expiry_factor=1,
    max_txn_ops=None,
    max_key=MAX_KEY,
    max_value=_max_value(),
)


class SqliteKvi(BaseKvi):
    """A handle on the store in the file ``path``, which the first operation opens or creates.

    ``history`` is how many of the last commits stay readable as events.
    """

    def __init__(self, uri: str, path: Path, *, timeout: float, history: int) -> None:
        super().__init__(uri, CAPABILITIES, timeout=timeout)
        self._history = history
        self._pool = Pool(path)
        self._ranges = Ranges(self._pool)

    def _native(self) -> sqlite3.Connection:
        """A connection to the file for the caller's own use, the same at each call.

        Opened at the first use, in autocommit mode, waiting up to ``timeout`` for locks; closed
        with the handle. Reading the tables is safe; writing to them goes past the revisions. It
        may be used by one thread at a time, and a forked child cannot open the file while it is
        open.
        """
        return self._pool.client(self._timeout)

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        name = key.encode()

        def work(connection: Connection) -> Any:
            return connection.execute(schema.GET, (name,)).fetchone()

        row = self._pool.read(work, monotonic() + timeout)
        return None if row is None else KeyValue(key, *row)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        return self._ranges.read(scan, timeout)

    def _count(self, span: Span, timeout: float) -> int:
        def work(connection: Connection) -> int:
            row = connection.execute(schema.COUNT, bounds(span)).fetchone()
            return int(row[0])

        return self._pool.read(work, monotonic() + timeout)

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        _check_leases(lease)
        name = key.encode()

        def work(connection: Connection) -> tuple[int, bool]:
            execute = connection.execute
            revision = _next_revision(connection)
            execute(schema.UPSERT, (name, revision, lease, value))
            execute(schema.EVENT_OF_UPSERT, (_first_id(revision), name))
            self._trim(connection, revision)
            return revision, True

        return self._pool.write(work, monotonic() + timeout)

    def _delete(self, key: str, timeout: float) -> bool:
        name = key.encode()

        def work(connection: Connection) -> tuple[bool, bool]:
            execute = connection.execute
            if execute(schema.DELETE, (name,)).rowcount == 0:
                return False, False
            revision = _next_revision(connection)
            execute(schema.EVENT_OF_DELETE, (_first_id(revision), revision, name))
            self._trim(connection, revision)
            return True, True

        return self._pool.write(work, monotonic() + timeout)

    def _delete_range(self, span: Span, timeout: float) -> int:
        low, high = bounds(span)

        def work(connection: Connection) -> tuple[int, bool]:
            execute = connection.execute
            revision = _next_revision(connection)
            execute(schema.EVENTS_OF_DELETE_RANGE, (_first_id(revision), revision, low, high))
            deleted = execute(schema.DELETE_RANGE, (low, high)).rowcount
            if deleted:
                self._trim(connection, revision)
            return deleted, deleted > 0

        return self._pool.write(work, monotonic() + timeout)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        deadline = monotonic() + timeout
        if any(isinstance(op, (Put, Delete)) for op in (*txn.then, *txn.otherwise)):
            return self._pool.write(lambda connection: self._writing(connection, txn), deadline)
        return self._pool.read(lambda connection: _reading(connection, txn), deadline)

    def _writing(self, connection: Connection, txn: Txn) -> tuple[TxnResult, bool]:
        state = _State(connection)
        succeeded, branch = choose(txn, state.read)
        _check_leases(*(op.lease for op in branch if isinstance(op, Put)))
        revision = _next_revision(connection)
        effect = perform(branch, state.read, revision)
        if not effect.changes:
            present = revision_of(connection)
            return TxnResult(succeeded, present, effect.results), False
        _apply(connection, effect.changes, revision)
        self._trim(connection, revision)
        return TxnResult(succeeded, revision, effect.results), True

    def _trim(self, connection: Connection, revision: int) -> None:
        """Delete the events that are too old, every now and then."""
        if revision % schema.TRIM_EVERY == 0 and revision > self._history:
            trimmed = revision - self._history
            connection.execute(schema.TRIM, (_first_id(trimmed + 1),))
            connection.execute(schema.TRIMMED, (trimmed,))

    def _ping(self, timeout: float) -> None:
        self._pool.read(revision_of, monotonic() + timeout)

    def _close(self) -> None:
        self._pool.close(self._ranges.close)


class _State:
    """The entries as a transaction finds them; each is read once."""

    __slots__ = ("_connection", "_seen")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._seen: dict[str, KeyValue | None] = {}

    def read(self, key: str) -> KeyValue | None:
        try:
            return self._seen[key]
        except KeyError:
            row = self._connection.execute(schema.GET, (key.encode(),)).fetchone()
            entry = self._seen[key] = None if row is None else KeyValue(key, *row)
            return entry


def _reading(connection: Connection, txn: Txn) -> TxnResult:
    connection.execute("BEGIN")
    state = _State(connection)
    succeeded, branch = choose(txn, state.read)
    revision = revision_of(connection)
    effect = perform(branch, state.read, revision)
    connection.execute("COMMIT")
    return TxnResult(succeeded, revision, effect.results)


def _apply(connection: Connection, changes: tuple[Change, ...], revision: int) -> None:
    execute = connection.execute
    for position, change in enumerate(changes, _first_id(revision)):
        name = change.key.encode()
        new = change.new
        if new is None:
            execute(schema.DELETE, (name,))
            execute(schema.EVENT_OF_DELETE, (position, revision, name))
        else:
            execute(schema.UPSERT, (name, revision, new.lease, new.value))
            execute(schema.EVENT_OF_UPSERT, (position, name))


def _next_revision(connection: Connection) -> int:
    """The revision that the next commit gets. Hold the write lock."""
    (newest,) = connection.execute(schema.NEWEST).fetchone()
    return 1 if newest is None else (newest >> schema.SEQ_BITS) + 1


def _first_id(revision: int) -> int:
    return revision << schema.SEQ_BITS


def _check_leases(*leases: int | None) -> None:
    if any(lease is not None for lease in leases):
        raise LeaseLost("no lease with this id is alive; grant a new one")

"""`SqliteKvi`: a handle on the store in one file.

Every write is one transaction, begun with ``BEGIN IMMEDIATE``, so that nothing it reads can change
before it commits (a transaction that begins as a reader cannot become a writer once somebody else
has written). Reads take no lock and do not wait for writers: each sees the last commit before it.
(Only a read that comes upon an expired lease has to write, once.)
SQLite makes this linearizable, between threads and processes alike: a commit is announced in shared
memory before it is acknowledged, and a read looks there first.

`kvi_sqlite.connection` says who owns connections and what a fork does, `kvi_sqlite.snapshot` how
ranges keep to one revision, `kvi_sqlite.leases` why nobody sees what has expired,
`kvi_sqlite.watching` how watches hear of changes, `kvi_sqlite.schema` what is stored.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from pathlib import Path
from threading import get_ident, main_thread
from time import monotonic
from typing import Any

from kvi.backend.history import HistoryFeed
from kvi.capabilities import Capabilities
from kvi.errors import LeaseLost, OutcomeUnknown, Unavailable
from kvi.feed import Feed, Wake, WatchSpec
from kvi.model import (
    MAX_NUMBER,
    Claim,
    Delete,
    Event,
    Grant,
    KeyValue,
    LeaseInfo,
    Put,
    RangeResult,
    Scan,
    Span,
    Txn,
    TxnResult,
)
from kvi.policy.lock import CLAIM, place, queue_key
from kvi.policy.txn import Change, choose, perform
from kvi.primitives import Primitives

from kvi_sqlite import leases, schema
from kvi_sqlite.access import Access
from kvi_sqlite.connection import PATIENCE, Connection, Pool
from kvi_sqlite.leases import Expired, begin, bury, check_due, first_id, trim
from kvi_sqlite.past import last_changes
from kvi_sqlite.snapshot import Ranges, begin_read, bounds, revision_of
from kvi_sqlite.upkeep import Upkeep
from kvi_sqlite.watching import Watcher

MAX_KEY = 1024 * 1024
FEW, SMALL = 16, 64 * 1024  # operations, and bytes of values, that others may wait for
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
    read_at_revision=True,
    atomic_range_delete="any",
    lease_min_ttl=0,
    lease_expiry_factor=1,
    max_txn_ops=None,
    max_key=MAX_KEY,
    max_value=_max_value(),
)


class SqliteKvi(Primitives):
    """A handle on the store in the file ``path``, which the first operation opens or creates.

    ``history`` is how many of the last commits stay readable as events. With ``read_only``, the
    file has to be there, and nothing is created or written.
    """

    def __init__(
        self, uri: str, path: Path, *, timeout: float, history: int, read_only: bool = False
    ) -> None:
        super().__init__(uri, CAPABILITIES, timeout=timeout)
        self._history = history
        self._pool = Pool(path, read_only=read_only)
        self._access = Access(self._pool, history)
        self._ranges = Ranges(self._pool)
        self._watcher = Watcher(self._pool, self._access)
        self._upkeep = Upkeep(self._pool)

    def _native(self) -> sqlite3.Connection:
        """A connection to the file for the caller's own use, the same at each call.

        Opened at the first use, in autocommit mode, waiting up to ``timeout`` for locks; closed
        with the handle. Reading the tables is safe; writing to them goes past the revisions. It
        may be used by one thread at a time, and a forked child cannot open the file while it is
        open.
        """
        return self._pool.client(self.timeout)

    def _cancel(self, thread: int) -> None:
        self._pool.cancel(thread)

    # -- entries ----------------------------------------------------------------------------------

    def _short_get(self, key: str) -> KeyValue | None:
        """An entry that is there, without a lease, if it can be had at once."""
        if self.forked or type(key) is not str:
            return None
        try:
            rows = self._pool.glance(schema.GET, (key.encode(),))
        except UnicodeEncodeError:
            return None
        return None if not rows or rows[0][4] is not None else KeyValue(key, *rows[0])

    def _short_put(self, key: str, value: bytes | str) -> int | None:
        """A small value, from the main thread, if nobody is in the way."""
        if self.forked or get_ident() != main_thread().ident or type(key) is not str:
            return None
        try:
            name, data = key.encode(), value.encode() if type(value) is str else value
        except UnicodeEncodeError:
            return None
        if not 0 < len(name) <= MAX_KEY or type(data) is not bytes or len(data) > SMALL:
            return None
        try:
            return self._pool.stroke(self._putting(name, data, None))
        except Expired:
            return None

    def _short_range(self, scan: Scan) -> tuple[int, list[KeyValue]] | None:
        """A range of a few small entries and its revision, if it can be had at once."""
        return self._ranges.glance(scan)

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        name = key.encode()

        def work(connection: Connection) -> Any:
            return connection.execute(schema.GET, (name,)).fetchone()

        deadline = monotonic() + timeout
        row = self._pool.read(work, deadline)
        if row is None:
            return None
        if row[4] is not None:
            return self._get_leased(key, deadline)
        return KeyValue(key, *row)

    def _get_leased(self, key: str, deadline: float) -> KeyValue | None:
        name = key.encode()

        def work(connection: Connection, moment: float) -> KeyValue | None:
            row = connection.execute(schema.GET_LEASED, (name,)).fetchone()
            if row is None:
                return None
            check_due(row[5], moment)
            return KeyValue(key, *row[:5])

        return self._access.read(work, deadline)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        deadline = monotonic() + timeout
        return self._access.unexpired(
            lambda moment: self._ranges.read(scan, moment, deadline, timeout), deadline
        )

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        def work(connection: Connection, moment: float) -> list[Event]:
            begin_read(connection, moment)
            found = last_changes(connection, key, limit)
            connection.execute("COMMIT")
            return found

        return self._access.read(work, monotonic() + timeout)

    def _count(self, span: Span, timeout: float) -> int:
        def work(connection: Connection, moment: float) -> int:
            count, due = connection.execute(schema.COUNT, bounds(span) * 2).fetchone()
            check_due(due, moment)
            return int(count)

        return self._access.read(work, monotonic() + timeout)

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        work = self._putting(key.encode(), value, lease)
        return self._access.write(work, monotonic() + timeout, small=len(value) <= SMALL)

    def _putting(
        self, name: bytes, value: bytes, lease: int | None
    ) -> Callable[[Connection], tuple[int, bool]]:
        def work(connection: Connection) -> tuple[int, bool]:
            revision, _, buried = begin(connection, self._history)
            if lease is not None:
                leases.require(connection, lease)
            if buried:
                bury(connection, name)
            connection.execute(schema.UNDO, (first_id(revision), name))
            _put(connection, first_id(revision), revision, name, lease, value)
            trim(connection, revision, self._history)
            return revision, True

        return work

    def _delete(self, key: str, timeout: float) -> bool:
        name = key.encode()

        def work(connection: Connection) -> tuple[bool, bool]:
            revision, swept, buried = begin(connection, self._history)
            if buried:
                bury(connection, name)
            if not _delete(connection, first_id(revision), revision, name):
                return False, swept
            trim(connection, revision, self._history)
            return True, True

        return self._access.write(work, monotonic() + timeout, small=True)

    def _delete_range(self, span: Span, timeout: float) -> int:
        low, high = bounds(span)

        def work(connection: Connection) -> tuple[int, bool]:
            execute = connection.execute
            revision, swept, _ = begin(connection, self._history)
            event = first_id(revision)
            execute(schema.EVENTS_OF_DELETE_RANGE, (event, revision, low, high))
            execute(schema.UNDO_DELETE_RANGE, (event, low, high))
            deleted = execute(schema.DELETE_RANGE, (low, high)).rowcount
            if deleted:
                trim(connection, revision, self._history, deleted)
            return deleted, deleted > 0 or swept

        return self._access.write(work, monotonic() + timeout)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        deadline = monotonic() + timeout
        if any(isinstance(op, (Put, Delete)) for op in (*txn.then, *txn.otherwise)):
            return self._access.write(
                lambda connection: self._writing(connection, txn), deadline, small=_is_small(txn)
            )
        return self._access.read(
            lambda connection, moment: _reading(connection, txn, moment), deadline
        )

    def _writing(self, connection: Connection, txn: Txn) -> tuple[TxnResult, bool]:
        revision, swept, buried = begin(connection, self._history)
        state = _State(connection)
        succeeded, branch = choose(txn, state.read)
        for op in branch:
            if isinstance(op, Put) and op.lease is not None:
                assert isinstance(op.lease, int)  # check_txn took its id
                leases.require(connection, op.lease)
        effect = perform(branch, state.read, revision)
        if not effect.changes:
            present = revision_of(connection)
            return TxnResult(succeeded, present, effect.results), swept
        if buried:
            for change in effect.changes:
                bury(connection, change.key.encode())
        _apply(connection, effect.changes, revision)
        trim(connection, revision, self._history, len(effect.changes))
        return TxnResult(succeeded, revision, effect.results), True

    # -- leases -----------------------------------------------------------------------------------

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        def work(connection: Connection) -> tuple[int, bool]:
            return leases.grant(connection, ttl), True

        return Grant(self._pool.write(work, monotonic() + timeout, small=True), ttl)

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        low_high = None if span is None else bounds(span)
        return self._pool.read(
            lambda connection: leases.told(connection, ids, low_high), monotonic() + timeout
        )

    def _lease_renew(self, lease: int, timeout: float) -> float:
        def work(connection: Connection) -> tuple[float | None, bool]:
            ttl = leases.renew(connection, lease)
            return ttl, ttl is not None

        try:
            ttl = (
                self._pool.write(work, monotonic() + timeout, synced=False)
                if lease <= MAX_NUMBER
                else None
            )
        except OutcomeUnknown as error:
            raise Unavailable(error.message) from error
        if ttl is None:
            raise LeaseLost("the lease has ended; grant a new one")
        return ttl

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        def work(connection: Connection) -> tuple[None, bool]:
            swept = begin(connection, self._history).swept
            there = leases.exists(connection, lease)
            if there:
                leases.end(connection, lease, self._history)
            return None, there or swept

        self._access.write(work, monotonic() + timeout)

    # -- locks ------------------------------------------------------------------------------------

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        """Claim in one transaction, or look where an earlier claim stands without any lock."""
        deadline = monotonic() + timeout
        key = queue_key(name, lease).encode()

        def look(connection: Connection, moment: float) -> Claim | None:
            revision = begin_read(connection, moment)
            row = connection.execute(schema.GET, (key,)).fetchone()
            claim = None if row is None else _place(connection, name, lease, row[2], revision)
            connection.execute("COMMIT")
            return claim

        def claim(connection: Connection) -> tuple[Claim, bool]:
            revision, swept, buried = begin(connection, self._history)
            row = connection.execute(schema.GET, (key,)).fetchone()
            if row is not None:  # put by this very call, whose commit was of unknown outcome
                return _place(connection, name, lease, row[2], revision - 1), swept
            leases.require(connection, lease)
            if buried:
                bury(connection, key)
            _put(connection, first_id(revision), revision, key, lease, CLAIM)
            trim(connection, revision, self._history)
            return _place(connection, name, lease, revision, revision), True

        return self._access.read(look, deadline) or self._access.write(claim, deadline, small=True)

    # -- watches ----------------------------------------------------------------------------------

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return HistoryFeed(
            self,
            spec,
            lambda span, start, seconds: self._watcher.open(span, start, wake, seconds),
            timeout,
        )

    # -- the handle -------------------------------------------------------------------------------

    def _ping(self, timeout: float) -> None:
        self._pool.read(revision_of, monotonic() + timeout)

    def _close(self) -> None:
        self._watcher.stop()
        self._upkeep.stop(PATIENCE)
        self._pool.close(self._ranges.close)
        self._watcher.join(PATIENCE)

    def _forked(self) -> None:
        self._watcher.abandon()
        self._upkeep.abandon()


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


def _is_small(txn: Txn) -> bool:
    """Whether it takes no longer than a put of one entry may."""
    ops = (*txn.then, *txn.otherwise)
    size = sum(len(op.value) for op in ops if isinstance(op, Put))
    return len(ops) + len(txn.when) <= FEW and size <= SMALL


def _reading(connection: Connection, txn: Txn, moment: float) -> TxnResult:
    revision = begin_read(connection, moment)
    state = _State(connection)
    succeeded, branch = choose(txn, state.read)
    effect = perform(branch, state.read, revision)
    connection.execute("COMMIT")
    return TxnResult(succeeded, revision, effect.results)


def _apply(connection: Connection, changes: tuple[Change, ...], revision: int) -> None:
    """Write the changes of a transaction, which has each key once; so their order is free."""
    undone: list[tuple[object, ...]] = []
    deleted: list[tuple[object, ...]] = []
    written: list[tuple[object, ...]] = []
    events: list[tuple[object, ...]] = []
    for event, (key, old, new) in enumerate(changes, first_id(revision)):
        name = key.encode()
        if old is not None:
            undone.append((event, name))
        if new is None:
            deleted.append((name,))
            events.append((event, revision, name, None, None, None, None))
        else:
            _, value, _, created, version, lease = new
            written.append((name, revision, revision, lease, value))
            events.append((event, revision, name, created, version, lease, value))
    for statement, rows in (
        (schema.UNDO, undone),  # before what it would undo
        (schema.DELETE, deleted),
        (schema.UPSERT, written),
        (schema.EVENT, events),
    ):
        if rows:
            connection.executemany(statement, rows)


def _put(
    connection: Connection, event: int, revision: int, name: bytes, lease: int | None, value: bytes
) -> None:
    """Write an entry; what it was is noted already."""
    execute = connection.execute
    execute(schema.UPSERT, (name, revision, revision, lease, value))
    execute(schema.EVENT_OF_UPSERT, (event, name))


def _delete(connection: Connection, event: int, revision: int, name: bytes) -> bool:
    """Whether it was there."""
    execute = connection.execute
    if execute(schema.UNDO, (event, name)).rowcount == 0:
        return False
    execute(schema.DELETE, (name,))
    execute(schema.EVENT_OF_DELETE, (event, revision, name))
    return True


def _place(connection: Connection, name: str, lease: int, created: int, revision: int) -> Claim:
    """Where the claim stands that was created at ``created``, as of ``revision``."""
    rows = connection.execute(schema.AHEAD, (name.encode(), created))
    entries = (KeyValue(str(key, "utf-8"), *rest) for key, *rest in rows)
    return place(name, lease, created, entries, revision)

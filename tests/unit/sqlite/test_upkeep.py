"""Upkeep: ends of leases, history and log are worked off by nobody's call."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi import Delete, Get, Key, Put
from kvi_sqlite import leases, schema, upkeep

from tests.support.forking import in_child
from tests.support.inside import inmost
from tests.support.waiting import until

KEYS = 1000  # of a lease: more than are deleted on the way


def sql(path: Path, statement: str, *marks: object) -> list[Any]:
    connection = sqlite3.connect(path, isolation_level=None, timeout=20)
    try:
        return connection.execute(statement, marks).fetchall()
    finally:
        connection.close()


def alone(store: kvi.Kvi) -> kvi.Kvi:
    """The same, whose upkeep waits for `upkeep_of`."""
    store.ping()
    inmost(store)._pool.chores = lambda: None
    return store


def upkeep_of(store: kvi.Kvi) -> None:
    """All that there is to do, now."""
    inmost(store)._upkeep._work()


def fill(store: kvi.Kvi, keys: int = KEYS, ttl: float = 60) -> int:
    """A lease with so many keys ``l/…``."""
    lease: int = inmost(store)._lease_grant(ttl, 5).id
    for first in range(0, keys, 10_000):
        part = range(first, min(first + 10_000, keys))
        store.txn(then=[Put(f"l/{n:06d}", "v", lease) for n in part], timeout=60)
    return lease


def pass_time(path: Path) -> None:
    sql(path, "UPDATE leases SET deadline = deadline - 1000")


def buried(path: Path) -> int:
    return int(sql(path, "SELECT count(*) FROM entries JOIN tombstones USING (lease)")[0][0])


def deletes(path: Path) -> list[Any]:
    return sql(path, "SELECT key, revision FROM events WHERE value IS NULL ORDER BY key")


# -- leases with many keys ------------------------------------------------------------------------

CALLS: list[Callable[[kvi.Kvi], object]] = [
    lambda store: store.get("l/000000"),
    lambda store: store.count(prefix="l/"),
    lambda store: list(store.range(prefix="l/", limit=1)),
    lambda store: list(store.range(prefix="l/", reverse=True, keys_only=True)),
    lambda store: store.txn(then=[Get("l/000001")]).results[0],
    lambda store: store.txn([Key("l/000001").exists], [Put("a", "b")]).succeeded,
    lambda store: store.tas("l/000001", "v", "w"),
    lambda store: store.cas("l/000001", 1, "w"),
    lambda store: store.delete("l/000001"),
    lambda store: store.txn(then=[Delete("l/000001")]).results[0],
    lambda store: store.delete_range(prefix="l/"),
]


@pytest.mark.parametrize("call", CALLS)
def test_all_keys_of_a_lease_are_gone_at_once(
    path: Path, store: kvi.Kvi, call: Callable[[kvi.Kvi], object]
) -> None:
    """No call sees a key of a lease that ended, though most of them are still in the file."""
    alone(store)
    fill(store)
    pass_time(path)
    assert not call(store)
    assert buried(path) > KEYS - 5
    assert not call(store)
    upkeep_of(store)
    assert buried(path) == 0
    assert not call(store)
    assert [key for key, _ in deletes(path)] == [f"l/{n:06d}".encode() for n in range(KEYS)]
    assert len({revision for _, revision in deletes(path)}) == 1
    assert sql(path, "SELECT count(*) FROM tombstones") == [(0,)]


def test_lease_of_any_size_is_revoked_at_once(path: Path, store: kvi.Kvi) -> None:
    """A revocation is one small transaction too."""
    alone(store)
    lease = fill(store)
    inmost(store)._lease_revoke(lease, 5)
    assert store.count() == 0
    assert buried(path) == KEYS - 1
    inmost(store)._lease_revoke(lease, 5)
    assert store.range().revision == 2
    with pytest.raises(kvi.LeaseLost):
        store.store("k", "v", lease=lease)


def test_key_of_an_ended_lease_can_be_written(path: Path, store: kvi.Kvi) -> None:
    """It is a new key, its deletion is in the history before, and upkeep leaves it alone."""
    alone(store)
    lease = fill(store)
    inmost(store)._lease_revoke(lease, 5)
    assert store.store("l/000003", "new") == 3
    assert store.txn([Key("l/000004").absent], [Put("l/000004", "new")]).revision == 4
    assert store.cas("l/000005", 0, "new") == 5
    other = inmost(store)._lease_grant(60, 5).id
    assert store.store("l/000006", "new", lease=other) == 6
    upkeep_of(store)
    entries = list(store.range())
    assert [(e.key, e.create_revision, e.version) for e in entries] == [
        (f"l/00000{n}", n, 1) for n in (3, 4, 5, 6)
    ]
    assert len(deletes(path)) == KEYS
    assert {revision for _, revision in deletes(path)} == {2}


def test_watch_sees_all_deletions_in_one_revision(path: Path, store: kvi.Kvi) -> None:
    """Whether upkeep has not begun, is in the middle or is done, a watch is told the same."""
    alone(store)
    lease = fill(store)
    early = store.watch(prefix="l/")
    one = store.watch("l/000500")
    inmost(store)._lease_revoke(lease, 5)
    store.store("l/000003", "new")
    expected = [(f"l/{n:06d}", kvi.EventType.DELETE, 2) for n in range(KEYS)]
    after = [("l/000003", kvi.EventType.PUT, 3)]

    def told(watch: kvi.Watch) -> list[Any]:
        events = [watch.next(10) for _ in range(KEYS + 1)]
        assert watch.revision == 3
        watch.cancel()
        return [(e.key, e.type, e.revision) for e in events if e is not None]

    def is_right(events: list[Any]) -> bool:
        return sorted(events[:KEYS]) == expected and events[KEYS:] == after

    event = one.next(10)
    assert event is not None
    assert (event.key, event.revision) == ("l/000500", 2)
    assert is_right(told(store.watch(prefix="l/", from_revision=2)))
    pool = inmost(store)._pool
    pool.write(
        lambda connection: (leases.bury_part(connection, 400, 2**20), True), time.monotonic() + 5
    )
    assert 0 < buried(path) < KEYS - 400
    assert is_right(told(store.watch(prefix="l/", from_revision=2)))
    upkeep_of(store)
    assert is_right(told(store.watch(prefix="l/", from_revision=2)))
    assert is_right(told(early))
    with pytest.raises(kvi.Timeout):
        one.next(0.05)


def test_more_keys_than_a_revision_has_ids(
    path: Path, store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletions of a lease of any size fit between its revision and the next."""
    monkeypatch.setattr(schema, "SEQ_BITS", 9)
    alone(store)
    lease = fill(store)
    inmost(store)._lease_revoke(lease, 5)
    ended = store.range().revision
    after = store.store("k", "v")
    upkeep_of(store)
    assert {revision for _, revision in deletes(path)} == {ended}
    assert len(deletes(path)) == KEYS
    newest = sql(path, "SELECT revision FROM events ORDER BY id DESC LIMIT 1")
    assert newest == [(after,)]


def test_end_of_a_huge_lease_holds_nobody_up(path: Path, store: kvi.Kvi) -> None:
    """A call that comes upon a lease with 200,000 keys is quick, and so are those behind it."""
    keys = 200_000
    lease = inmost(store)._lease_grant(60, 5).id
    store.store("k", "v")
    sql(
        path,
        "INSERT INTO entries (key, revision, create_revision, version, lease, value) "
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "SELECT CAST(printf('l/%07d', i) AS BLOB), 1, 1, 1, ?, x'00' FROM n",
        keys,
        lease,
    )
    pass_time(path)
    longest = 0.0
    calls = 0
    begun = time.monotonic()
    assert store.get("l/0000001") is None
    while buried(path):
        began = time.monotonic()
        store.store("k", "v")
        longest = max(longest, time.monotonic() - began)
        calls += 1
    assert calls > 3
    assert longest < (time.monotonic() - begun) / 2, "one call waited for most of it"
    assert len(deletes(path)) == keys


def test_many_leases_that_ended_together(path: Path, store: kvi.Kvi) -> None:
    """A backlog of leases with some keys each ends without a long transaction."""
    for _ in range(3 * leases.BATCH):
        lease = inmost(store)._lease_grant(60, 5).id
        store.txn(then=[Put(f"{lease}/{n}", "v", lease) for n in range(5)])
    pass_time(path)
    assert store.count() == 0
    until(lambda: len(deletes(path)) == 15 * leases.BATCH)
    assert sql(path, "SELECT (SELECT count(*) FROM leases), count(*) FROM tombstones") == [(0, 0)]


# -- history --------------------------------------------------------------------------------------


def backlog(store: kvi.Kvi, events: int) -> None:
    """So many events of the first revision, of the right age to go."""
    store.store("k", "v")
    store.client.execute(
        "INSERT INTO events (id, revision, key) "
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "SELECT (1 << 20) + i, 1, x'6b' FROM n",
        (events,),
    )


def test_large_values_are_not_deleted_on_the_way(path: Path, store: kvi.Kvi) -> None:
    """Few keys with large values are left to upkeep as well; all are gone at once."""
    alone(store)
    value = b"v" * 1024 * 1024
    for keys in (1, 8):
        with store.lease(60) as lease:
            store.txn(then=[Put(f"l/{n}", value, lease) for n in range(keys)], timeout=60)
        assert buried(path) == keys - 1
        assert store.count() == 0
        upkeep_of(store)
        assert buried(path) == 0


def old(path: Path) -> int:
    return int(sql(path, "SELECT count(*) FROM events WHERE revision = 1")[0][0])


def test_no_write_trims_the_history(path: Path) -> None:
    """What is to go is gone for watches at once, and is deleted by upkeep, not by the write."""
    every = schema.TRIM_EVERY
    with kvi.open(f"sqlite:{path}?history=10") as store:
        alone(store)
        backlog(store, 50_000)
        for number in range(every):
            store.store("k", str(number))
        assert old(path) == 50_001
        with pytest.raises(kvi.Compacted):
            store.watch("k", from_revision=2)
        upkeep_of(store)
        assert old(path) == 0
        assert store.range().revision == every + 1


def test_backlog_is_worked_off_beside_writers(path: Path) -> None:
    """The calls of a busy writer keep a short time-out while a long history is deleted."""
    with kvi.open(f"sqlite:{path}?history=10") as store:
        backlog(store, 300_000)
        for number in range(schema.TRIM_EVERY):
            store.store("k", str(number))
        deadline = time.monotonic() + 60
        while old(path):
            assert time.monotonic() < deadline
            store.store("k", "w", timeout=0.5)
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_large_values_go_in_small_portions(path: Path) -> None:
    """A portion is bounded in bytes as well: SQLite may write to the log all that it frees."""
    value = b"v" * 512 * 1024
    with kvi.open(f"sqlite:{path}?history=10") as store:
        alone(store)
        with store.lease(60) as lease:
            for first in range(0, 300, 20):  # more keys than are deleted on the way
                store.txn(then=[Put(f"l/{n:03}", value, lease) for n in range(first, first + 20)])
        for number in range(schema.TRIM_EVERY):
            store.store("k", str(number))
        most = upkeep.PORTION + upkeep.BYTES
        entries = "SELECT coalesce(sum(length(value)), 0) FROM entries"
        events = "SELECT coalesce(sum(length(value)), 0) FROM events"
        kept = 4096  # what is still there at the end, at the most
        for left in (entries, events):
            before = sql(path, left)[0][0]
            assert before > 100 * len(value)
            more = True
            while more and before > kept:
                more = inmost(store)._upkeep._portion()
                (after,) = sql(path, left)[0]
                assert before - after <= most
                before = after
            assert before <= kept


def test_next_handle_goes_on_where_another_died(path: Path, uri: str) -> None:
    """What a process left undone is done by the next one that opens the file."""
    with kvi.open(uri) as store:
        alone(store)
        inmost(store)._lease_revoke(fill(store), 5)
    assert buried(path)
    with kvi.open(uri) as store:
        assert store.get("k") is None
        until(lambda: not buried(path))


def test_programs_that_store_one_entry_and_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle that is closed right after its work does its part of the upkeep all the same."""
    monkeypatch.setattr(schema, "TRIM_EVERY", 8)
    for number in range(80):
        with kvi.open(f"sqlite:{path}?history=1") as store:
            store.store("k", str(number))
    assert sql(path, "SELECT count(*) FROM events")[0][0] <= 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_fork_in_the_middle_of_upkeep(path: Path) -> None:
    """A fork does not wait for upkeep, and its child can open the file."""
    uri = f"sqlite:{path}?history=10"
    with kvi.open(uri) as store:
        backlog(store, 300_000)
    with kvi.open(uri) as store:
        for number in range(schema.TRIM_EVERY):
            store.store("k", str(number))

        def child() -> None:
            with kvi.open(uri) as own:
                own.store("child", "v")

        while old(path):
            began = time.monotonic()
            assert in_child(child) == 0
            assert time.monotonic() - began < 5
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_thread_ends_with_its_work(uri: str) -> None:
    """No thread waits for upkeep that is not there, and close ends one that is at it."""

    def threads() -> list[str]:
        return [one.name for one in threading.enumerate() if one.name == "kvi-sqlite-upkeep"]

    with kvi.open(uri) as store:
        store.store("k", "v")
        assert not threads()
        inmost(store)._upkeep.poke()
        until(lambda: not threads())
        inmost(store)._upkeep.poke()
    assert not threads()


# -- the log --------------------------------------------------------------------------------------


def wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def test_no_commit_copies_the_log(path: Path, store: kvi.Kvi) -> None:
    """However long the log is, a commit only adds to it; upkeep copies it and starts it over."""
    alone(store)
    before = path.stat().st_size
    for number in range(20):
        store.store(f"k{number}", b"v" * 1024 * 1024)
    assert path.stat().st_size == before
    assert wal(path).stat().st_size > 2 * schema.WAL_KEPT
    upkeep_of(store)
    assert path.stat().st_size > 2 * schema.WAL_KEPT
    assert wal(path).stat().st_size == 0


def test_log_is_bounded_without_readers(path: Path, store: kvi.Kvi) -> None:
    """A writer by itself keeps the log short, by many small commits and by large ones."""
    for number in range(3 * 256):
        store.store(f"k{number % 7}", "v" * 2000)
    until(lambda: path.stat().st_size > 1024 * 1024)
    longest = 0
    for number in range(60):
        store.store(f"k{number % 7}", b"v" * 1024 * 1024)
        longest = max(longest, wal(path).stat().st_size)
    assert longest < 4 * schema.WAL_KEPT


def test_log_begins_anew_beside_a_busy_writer(path: Path, store: kvi.Kvi) -> None:
    """Long before it has to be cut off: to write over it takes less than to let it grow."""

    def beginnings() -> int:
        return int.from_bytes(wal(path).read_bytes()[12:16])  # of SQLite's own file format

    store.ping()
    first, number = beginnings(), itertools.count()

    def has_begun_anew() -> bool:
        for _ in range(100):
            store.store(f"k{next(number) % 100}", b"v" * 100)
        assert wal(path).stat().st_size < schema.WAL_KEPT // 2
        return beginnings() > first + 2

    until(has_begun_anew)


def test_first_call_on_a_long_log_keeps_its_time_out(
    tmp_path: Path, path: Path, store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening reads a log that was left, however long: no call waits longer than it said.

    Nor does a call on another file. (A log would have to be gigabytes long to take a second.)
    """
    alone(store)
    value = b"v" * schema.WAL_KEPT
    store.store("k", value)
    left = tmp_path / "left.db"
    shutil.copy(path, left)
    shutil.copy(wal(path), wal(left))
    prepare, read = schema.prepare, threading.Event()

    def slowly(connection: sqlite3.Connection, file: Path) -> None:
        if file == left:
            assert read.wait(60)
        prepare(connection, file)

    monkeypatch.setattr(schema, "prepare", slowly)
    with kvi.open(f"sqlite:{left}?retry=off") as late, kvi.open(f"sqlite:{tmp_path}/b.db") as other:
        for _ in range(2):
            with pytest.raises(kvi.Timeout, match="log"):
                late.get("k", timeout=0.05)
        assert other.store("k", "v") == 1
        read.set()
        entry = late.get("k", timeout=60)
        assert entry is not None
        assert entry.value == value


def test_close_ends_the_wait_for_a_long_log(
    tmp_path: Path, path: Path, store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the opening of a file is told that the handle was closed."""
    alone(store)
    store.store("k", b"v" * schema.WAL_KEPT)
    prepare, begun, read = schema.prepare, threading.Event(), threading.Event()

    def slowly(connection: sqlite3.Connection, file: Path) -> None:
        begun.set()
        assert read.wait(60)
        prepare(connection, file)

    monkeypatch.setattr(schema, "prepare", slowly)
    late = kvi.open(f"sqlite:{path}?timeout=60")
    failures: list[kvi.KviError] = []

    def ask() -> None:
        try:
            late.get("k")
        except kvi.KviError as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(20)
    late.close()
    asking.join(20)
    assert [type(error) for error in failures] == [kvi.Closed]
    read.set()
    until(lambda: not inmost(late)._pool.live)


def test_close_does_not_copy_a_huge_log(
    path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last handle leaves a log that is too long to whoever opens the file next."""
    from kvi_sqlite import connection

    monkeypatch.setattr(connection, "LOG_CLOSED", 1024 * 1024)
    with kvi.open(uri) as store:
        alone(store)
        store.store("k", b"v" * 2 * 1024 * 1024)
    assert wal(path).exists()
    assert path.stat().st_size < 1024 * 1024
    monkeypatch.undo()
    with kvi.open(uri) as store:
        entry = store.get("k")
        assert entry is not None
        assert len(entry.value or b"") == 2 * 1024 * 1024
    assert not wal(path).exists()

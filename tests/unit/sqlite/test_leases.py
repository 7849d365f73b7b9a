"""Leases in the file: they end by their deadline, whoever is there to see it."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi import Get, Key, Put, clock
from kvi.feed import WatchSpec
from kvi.model import LeaseInfo, Span
from kvi_sqlite import leases, schema
from kvi_sqlite.boot import boot_id

from tests.support.inside import inmost
from tests.support.waiting import until
from tests.unit.sqlite.workers import finish, hold_lease, keep_reading, pipe, start

TTL = 0.3


def grant(store: kvi.Kvi, ttl: float = TTL, **entries: str) -> int:
    """A lease that nobody renews, with keys."""
    lease: int = inmost(store)._lease_grant(ttl, 5).id
    if entries:
        store.txn(then=[Put(key, value, lease) for key, value in entries.items()])
    return lease


def sql(path: Path, statement: str, *marks: object) -> list[Any]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(statement, marks).fetchall()
    finally:
        connection.close()


def pass_time(path: Path, seconds: float = 1000.0) -> None:
    """Let that time pass for the leases that there are."""
    sql(path, "UPDATE leases SET deadline = deadline - ?", seconds)


def history(path: Path) -> list[Any]:
    return sql(path, "SELECT revision, key, value FROM events ORDER BY id")


# -- ending ---------------------------------------------------------------------------------------


def test_revoked_lease_takes_its_keys_in_one_revision(path: Path, store: kvi.Kvi) -> None:
    """Revoking deletes the lease's keys, and no others, in one commit; again, it does nothing."""
    lease = grant(store, 60, b="1", a="2")
    store.store("c", "3")
    inmost(store)._lease_revoke(lease, 5)
    assert [entry.key for entry in store.range()] == ["c"]
    assert history(path)[-2:] == [(3, b"a", None), (3, b"b", None)]
    inmost(store)._lease_revoke(lease, 5)
    inmost(store)._lease_revoke(2**70, 5)
    assert store.range().revision == 3


def test_lease_without_keys_ends_without_revision(store: kvi.Kvi) -> None:
    """A lease that has no keys, or no more, leaves no trace in the history."""
    store.store("a", "1")
    inmost(store)._lease_revoke(grant(store), 5)
    lease = grant(store, a="2")
    store.store("a", "3")
    inmost(store)._lease_revoke(lease, 5)
    entry = store.get("a")
    assert entry is not None
    assert (entry.lease, entry.revision) == (None, 3)
    assert store.range().revision == 3


READS: list[Callable[[kvi.Kvi], object]] = [
    lambda store: store.get("k"),
    lambda store: list(store.range()),
    lambda store: list(store.range(limit=0)) or list(store.range("k", limit=1, reverse=True)),
    lambda store: store.count(),
    lambda store: store.txn(then=[Get("k")]).results[0],
    lambda store: store.txn([Key("k").exists]).succeeded,
]


@pytest.mark.parametrize("read", READS)
def test_reader_sweeps(path: Path, store: kvi.Kvi, read: Callable[[kvi.Kvi], object]) -> None:
    """Whatever reads an expired key first deletes it for everybody, with its event."""
    grant(store, 60, k="v")
    assert read(store)
    pass_time(path)
    assert not read(store)
    assert history(path)[-1] == (2, b"k", None)
    assert sql(path, "SELECT count(*) FROM entries") == [(0,)]
    assert sql(path, "SELECT count(*) FROM leases") == [(0,)]


WRITES: list[tuple[Callable[[kvi.Kvi], object], object]] = [
    (lambda store: store.store("other", "v"), 3),
    (lambda store: store.store("k", "w"), 3),
    (lambda store: store.delete("k"), False),
    (lambda store: store.delete_range(prefix="k"), 0),
    (lambda store: store.cas("k", 0, "w"), 3),
    (lambda store: store.tas("k", "v", "w"), False),
    (lambda store: store.txn([Key("k").absent], [Put("k", "w")]).revision, 3),
    (lambda store: store.txn([Key("k").exists], [Put("k", "w")]).revision, 2),
    (lambda store: inmost(store)._lease_revoke(77, 5), None),
]


@pytest.mark.parametrize(("write", "result"), WRITES)
def test_writer_sweeps(
    path: Path, store: kvi.Kvi, write: Callable[[kvi.Kvi], object], result: object
) -> None:
    """A write finds expired keys deleted, at a revision of their own, also if it writes nothing."""
    grant(store, 60, k="v")
    pass_time(path)
    assert write(store) == result
    assert (2, b"k", None) in history(path)


def test_leases_end_one_revision_each(path: Path, store: kvi.Kvi) -> None:
    """Leases that are found expired together end in the order of their deadlines."""
    grant(store, 60, b="1", c="1")
    grant(store, 50, a="2")
    pass_time(path)
    assert store.store("d", "v") == 5
    assert [row[:2] for row in history(path)[3:]] == [(3, b"a"), (4, b"b"), (4, b"c"), (5, b"d")]


def test_any_number_of_leases_can_expire_at_once(
    path: Path, store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog is cleared in several commits, by reads and by writes."""
    monkeypatch.setattr(leases, "BATCH", 3)
    calls: list[Callable[[], object]] = [lambda: store.count(), lambda: store.delete("k0")]
    for call in calls:
        for number in range(10):
            grant(store, 60, **{f"k{number}": "v"})
        pass_time(path)
        assert not call()
        assert sql(path, "SELECT count(*) FROM leases") == [(0,)]
    assert store.range().revision == 40


def test_sweeping_trims_the_history(path: Path) -> None:
    """The deletes of leases count as commits for the length of the history."""
    with kvi.open(f"sqlite:{path}?history=10") as store:
        grant(store, 60, k="v")
        for _ in range(schema.TRIM_EVERY - 2):
            store.store("other", "v")
        pass_time(path)
        assert store.get("k") is None
        assert store.range().revision == schema.TRIM_EVERY
        until(lambda: len(history(path)) == 10)


def test_snapshot_keeps_what_it_saw(path: Path, store: kvi.Kvi) -> None:
    """The pages of a range stay at its revision, also when a lease ends between them."""
    lease = grant(store, 60)
    store.txn(then=[Put(f"{n:05d}", "v", lease) for n in range(2000)])
    listing = store.range()
    entries = iter(listing)
    next(entries)
    pass_time(path)
    assert store.count() == 0
    assert sum(1 for _ in entries) == 1999


# -- being alive ----------------------------------------------------------------------------------


def test_lost_lease_writes_nothing(path: Path, store: kvi.Kvi) -> None:
    """A write that names an expired, revoked or unknown lease is LeaseLost, and none of it done."""
    store.store("k", "old")
    expired, revoked, alive = grant(store), grant(store), grant(store, 60)
    pass_time(path, 30)
    inmost(store)._lease_revoke(revoked, 5)
    for lease in (expired, revoked, 4711, 2**63, 2**200):
        with pytest.raises(kvi.LeaseLost):
            store.store("k", "new", lease=lease)
        with pytest.raises(kvi.LeaseLost):
            store.cas("k", 1, "new", lease=lease)
        with pytest.raises(kvi.LeaseLost):
            store.txn(then=[Put("a", "new", alive), Put("k", "new", lease)])
        with pytest.raises(kvi.LeaseLost):
            inmost(store)._lease_renew(lease, 5)
        with pytest.raises(kvi.LeaseLost):
            inmost(store)._lock_claim("lock", lease, 5)
    assert [(entry.key, entry.text) for entry in store.range()] == [("k", "old")]
    assert store.store("k", "new", lease=alive) == 2


def test_expired_lease_cannot_be_renewed(path: Path, store: kvi.Kvi) -> None:
    """Past its deadline a lease is lost, though nobody has deleted its keys yet."""
    lease = grant(store, 60, k="v")
    assert inmost(store)._lease_renew(lease, 5) == 60
    pass_time(path)
    with pytest.raises(kvi.LeaseLost):
        inmost(store)._lease_renew(lease, 5)
    assert store.get("k") is None


def test_lease_ends_between_its_ttl_and_a_second_more(store: kvi.Kvi) -> None:
    """A key is there until ttl after the last renewal, and gone soon after; others stay."""
    store.store("other", "v")
    # A busy machine may stand still for a part of the ttl: then again, with more of it.
    assert any(_ends_in_time(store, TTL * factor) for factor in (1, 4, 16))
    assert store.get("other") is not None


def _ends_in_time(store: kvi.Kvi, ttl: float) -> bool:
    """Whether it was seen to; false if the machine stood still for too long to see it."""
    lease = grant(store, ttl, k="v")
    renewed = clock.now()
    for _ in range(5):
        renewed = clock.now()
        try:
            inmost(store)._lease_renew(lease, 5)
        except kvi.LeaseLost:
            return False  # by then: nothing but time passes between two looks
        while clock.now() <= renewed + ttl / 2:
            if store.get("k") is None:
                assert clock.now() >= renewed + ttl, "the key has vanished too early"
                return False
    until(lambda: store.get("k") is None, within=2 * ttl + 5)
    assert ttl <= clock.now() - renewed < ttl + 1
    return True


def test_renewal_of_every_length(store: kvi.Kvi) -> None:
    """Any ttl above 0 is granted as it is, to the longest that a number can be."""
    for ttl in (1e-9, 0.1, 60, 1e12, 1e308):
        assert inmost(store)._lease_grant(ttl, 5).ttl == ttl
    lease = inmost(store)._lease_grant(1e308, 5).id
    assert inmost(store)._lease_renew(lease, 5) == 1e308
    store.store("k", "v", lease=lease)
    assert store.get("k") is not None


def test_renewals_are_not_synced_and_all_else_is(store: kvi.Kvi) -> None:
    """No connection that has made a renewal commits anything else without waiting for the disk."""
    lease = grant(store, 60)
    seen: list[int] = []

    def level(connection: sqlite3.Connection) -> tuple[None, bool]:
        seen.append(connection.execute("PRAGMA synchronous").fetchone()[0])
        return None, False

    pool = inmost(store)._pool
    for _ in range(3):
        inmost(store)._lease_renew(lease, 5)
        with pytest.raises(kvi.LeaseLost):
            inmost(store)._lease_renew(1, 5)
        assert len(pool.live) == 1
        pool.read(level, 1e12)
        pool.write(level, 1e12, synced=False)
        pool.write(level, 1e12)
    assert seen == [2, 1, 2] * 3


# -- others ---------------------------------------------------------------------------------------


def test_expiry_is_seen_by_another_process(store: kvi.Kvi, uri: str) -> None:
    """Keys of a lease are gone for every process within a second of its end, and not before."""
    ours, theirs = pipe()
    process = start(keep_reading, uri, "k", theirs)
    assert ours.recv() == "ready"
    granted = clock.now()
    grant(store, 1, k="v")
    ours.send("go")
    gone = ours.recv()
    assert 1 <= gone - granted < 2
    finish(process)


def test_owner_killed(store: kvi.Kvi, uri: str, path: Path) -> None:
    """After kill -9 of a lease's owner amid its renewals, its keys are there until the deadline.

    Then they are gone, and the file is whole.
    """
    ours, theirs = pipe()
    process = start(hold_lease, uri, 1.0, theirs)
    assert ours.recv() == "held"
    until(lambda: store.count(prefix="held/") == 100)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    killed = clock.now()
    until(lambda: store.count(prefix="held/") == 0, within=5)
    assert clock.now() - killed < 2
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]
    assert len(sql(path, "SELECT DISTINCT revision FROM events WHERE value IS NULL")) == 1


def test_watching_handle_sweeps_by_itself(store: kvi.Kvi, path: Path, uri: str) -> None:
    """Where somebody watches, the deletes of an expired lease come without anybody's access."""
    news = threading.Event()
    feed = inmost(store)._watch(WatchSpec(Span("k", "k\0")), news.set, 5)
    with kvi.open(uri) as other:
        begun = clock.now()
        grant(other, k="v")
    deletes: list[kvi.Event] = []

    def deleted() -> bool:
        while (batch := feed.poll(5)) is not None:
            deletes.extend(e for e in batch.events if e.type is kvi.EventType.DELETE)
        return bool(deletes)

    until(deleted, within=5)
    assert TTL <= clock.now() - begun < TTL + 1
    assert [e.key for e in deletes] == ["k"]
    feed.close()


# -- looking --------------------------------------------------------------------------------------


def test_looking_ends_nothing(path: Path, store: kvi.Kvi) -> None:
    """Who looks sees no lease whose time is up, and writes nothing."""
    short, long = grant(store, 60, a="1", b="2"), grant(store, 60, c="3")
    sql(path, "UPDATE leases SET deadline = 0 WHERE id = ?", short)
    before = history(path)
    (found,) = inmost(store)._leases(None, Span(), 5)
    assert (found.id, found.ttl, found.keys) == (long, 60, ["c"])
    assert 0 < found.left <= 60
    assert inmost(store)._leases({short}, Span(), 5) == []
    assert history(path) == before
    assert sql(path, "SELECT count(*) FROM leases") == [(2,)]


def test_keys_are_found_by_their_lease(path: Path, store: kvi.Kvi) -> None:
    """However many other keys there are, also between the bounds: the index leads to them."""
    store.store("k", "v")
    plan = sql(path, f"EXPLAIN QUERY PLAN {schema.KEYS_OF_LEASE}", 1, b"", b"\xff")
    assert "entries_by_lease (lease=?)" in str(plan)
    assert "SCAN" not in str(plan)


def test_deadlines_of_another_boot_are_not_told(path: Path, uri: str) -> None:
    """Who can only read cannot let a lease begin anew, and does not know when it ends."""
    with kvi.open(uri) as store:
        lease = grant(store, 60, k="v")
    sql(path, "UPDATE clock SET boot = 'earlier'")
    with kvi.open(uri, read_only=True) as store:
        assert inmost(store)._leases(None, Span(), 5) == [LeaseInfo(lease, 60, None, ["k"])]


# -- the machine ----------------------------------------------------------------------------------


def test_reboot_gives_every_lease_its_time_again(path: Path, uri: str) -> None:
    """Deadlines of another boot mean nothing: the first access lets every lease begin anew."""
    with kvi.open(uri) as store:
        lease = grant(store, 60, k="v")
    assert sql(path, "SELECT boot FROM clock") == [(boot_id(),)]
    # the clock of the earlier boot had come a long way, or not far
    for deadline in (1e9, -1e9):
        sql(path, "UPDATE leases SET deadline = ?", deadline)
        sql(path, "UPDATE clock SET boot = 'earlier'")
        before = clock.now()
        with kvi.open(uri) as store:
            assert store.get("k") is not None
            assert inmost(store)._lease_renew(lease, 5) == 60
        ((found, boot),) = sql(path, "SELECT deadline, boot FROM leases, clock")
        assert before + 60 <= found <= clock.now() + 60
        assert boot == boot_id()


def test_boots_that_take_turns_do_not_renew(
    path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers with boot ids of their own end a dead lease in time, and a live one never."""
    turn = itertools.count()

    def open_in_turn() -> kvi.Kvi:
        boot = "abc"[next(turn) % 3]
        monkeypatch.setattr(schema, "boot_id", lambda: boot)
        return kvi.open(uri)

    with open_in_turn() as store:
        alive = grant(store, 2, alive="v")
        before = clock.now()
        dead = grant(store, 1, dead="v")
    born = clock.now()
    ended = None
    while clock.now() < born + 3:
        with open_in_turn() as store:
            began = clock.now()
            assert inmost(store)._lease_renew(alive, 5) == 2
            gone = store.get("dead") is None
            if gone and ended is None:
                ended = began, clock.now()
            assert store.get("alive") is not None
    assert ended is not None
    assert before + 0.9 < ended[1]
    assert ended[0] < born + 2.1
    assert sql(path, "SELECT count(*) FROM deadlines WHERE lease = ?", dead) == [(0,)]
    assert sql(path, "SELECT count(*) FROM deadlines")[0][0] <= 2


def test_opening_within_a_boot_renews_nothing(path: Path, uri: str) -> None:
    """Opening the store again leaves deadlines as they are."""
    with kvi.open(uri) as store:
        grant(store, 60)
    deadlines = sql(path, "SELECT deadline FROM leases")
    with kvi.open(uri) as store:
        store.ping()
    assert sql(path, "SELECT deadline FROM leases") == deadlines


def test_reboot_is_noticed_without_an_id(
    path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no boot id, a deadline further ahead than its ttl tells of a reboot."""
    monkeypatch.setattr(schema, "boot_id", lambda: None)
    with kvi.open(uri) as store:
        grant(store, 60, k="v")
    (before,) = sql(path, "SELECT deadline FROM leases")
    with kvi.open(uri) as store:
        store.ping()
    assert sql(path, "SELECT deadline FROM leases") == [before]
    sql(path, "UPDATE leases SET deadline = deadline + 1000")
    with kvi.open(uri) as store:
        store.ping()
    ((after,),) = sql(path, "SELECT deadline FROM leases")
    assert before[0] <= after <= clock.now() + 60


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="no boot id here")
def test_boot_id_is_the_kernels() -> None:
    """The id is there, and the same whenever it is asked for."""
    first = boot_id()
    boot_id.cache_clear()
    assert first
    assert boot_id() == first


def test_older_layout_is_brought_up_to_date(path: Path, uri: str) -> None:
    """A store without leases gets what they need when it is opened, and keeps what it has."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in schema._FIRST:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.execute(schema.UPSERT, (b"k", 1, 1, None, b"v"))
    connection.execute(schema.EVENT_OF_UPSERT, (1 << schema.SEQ_BITS, b"k"))
    connection.close()
    with kvi.open(uri) as store:
        assert store.get("k") == kvi.KeyValue("k", b"v", 1, 1, 1, None)
        lease = grant(store, 60, k="w")
        inmost(store)._lease_revoke(lease, 5)
        assert store.get("k") is None
    assert sql(path, "PRAGMA user_version") == [(schema.VERSION,)]


# -- cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement", [schema.DELETE_LEASED, schema.EVENTS_OF_END, schema.EXPIRED, schema.LEASED]
)
def test_leases_are_found_by_indexes(path: Path, store: kvi.Kvi, statement: str) -> None:
    """Ending a lease costs what its keys are, finding it nothing."""
    store.ping()
    marks = [0] * (3 if statement == schema.EVENTS_OF_END else statement.count("?"))
    plan = " ".join(row[3] for row in sql(path, f"EXPLAIN QUERY PLAN {statement}", *marks))
    assert "INDEX" in plan
    assert "SCAN entries" not in plan
    assert "SCAN leases" not in plan


@pytest.mark.parametrize("statement", [schema.STATE, schema.SNAPSHOT, schema.COUNT, schema.LOOK])
def test_next_deadline_is_read_from_an_index(path: Path, store: kvi.Kvi, statement: str) -> None:
    """What nearly every call looks at is found at once, however many leases there are."""
    store.ping()
    marks = [0] * statement.count("?")
    plan = " ".join(row[3] for row in sql(path, f"EXPLAIN QUERY PLAN {statement}", *marks))
    assert "SEARCH leases USING COVERING INDEX" in plan


# -- locks ----------------------------------------------------------------------------------------


def test_claims_stand_in_order(path: Path, store: kvi.Kvi) -> None:
    """Each waits for the one right before it; looking again changes nothing; nobody else counts."""
    one, two, three = (grant(store, 60 + n) for n in range(3))
    first = inmost(store)._lock_claim("jobs", one, 5)
    assert first.ahead is None
    assert first.fence == first.revision == 1
    store.store("jobs/1", "data of somebody")
    grant(store, 60, **{"jobs/2": "named after another lease"})
    second, third = (inmost(store)._lock_claim("jobs", lease, 5) for lease in (two, three))
    assert (second.ahead, third.ahead) == (first.key, second.key)
    revision = store.range().revision
    again = inmost(store)._lock_claim("jobs", three, 5)
    assert again._replace(revision=0) == third._replace(revision=0)
    assert again.revision == revision == store.range().revision
    assert inmost(store)._lock_release(second, 5)
    assert not inmost(store)._lock_release(second, 5)
    assert inmost(store)._lock_claim("jobs", three, 5).ahead == first.key
    sql(path, "UPDATE leases SET deadline = 0 WHERE id = ?", one)
    held = inmost(store)._lock_claim("jobs", three, 5)
    assert held.ahead is None
    assert held.fence > first.fence
    assert store.txn([held.guard]).succeeded
    assert not store.txn([first.guard]).succeeded


def test_looking_at_a_claim_waits_for_no_writer(path: Path, store: kvi.Kvi) -> None:
    """A waiter looks where it stands without the write lock."""
    one, two = grant(store, 60), grant(store, 60)
    inmost(store)._lock_claim("jobs", one, 5)
    inmost(store)._lock_claim("jobs", two, 5)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    before = time.monotonic()
    assert inmost(store)._lock_claim("jobs", two, 5).ahead is not None
    assert time.monotonic() - before < 2
    other.execute("ROLLBACK")
    other.close()


def test_who_is_before_a_claim_is_found_by_an_index(path: Path, store: kvi.Kvi) -> None:
    """One step, however many wait; no sorting."""
    store.ping()
    plan = [row[3] for row in sql(path, f"EXPLAIN QUERY PLAN {schema.AHEAD}", b"jobs", 9)]
    assert plan[0] == (
        "SEARCH entries USING INDEX entries_by_queue (contends=? AND create_revision<?)"
    )
    assert not any("TEMP B-TREE" in step for step in plan)


def test_contenders_of_an_older_layout_stand_in_line(path: Path, uri: str) -> None:
    """A file of version 4 has who waits: their claims count once it is brought up to date."""
    connection = sqlite3.connect(path, isolation_level=None)
    for part in schema._PARTS[:4]:
        for statement in part:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 4")
    for revision, lease in enumerate((0x1F, 2**63 - 1), 1):
        key = b"jobs/%x" % lease
        connection.execute(schema.GRANT, (lease, 60, time.monotonic() + 1e6))
        connection.execute(schema.UPSERT, (key, revision, revision, lease, b"lock"))
        connection.execute(schema.EVENT_OF_UPSERT, (revision << schema.SEQ_BITS, key))
    connection.close()
    with kvi.open(uri) as store:
        mine = inmost(store)._lock_claim("jobs", grant(store, 60), 5)
        assert mine.ahead == "jobs/7fffffffffffffff"
        inmost(store)._lease_revoke(2**63 - 1, 5)
        lease = int(mine.key.rpartition("/")[2], 16)
        assert inmost(store)._lock_claim("jobs", lease, 5).ahead == "jobs/1f"

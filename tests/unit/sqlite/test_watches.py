"""Watches: one thread tells any number of them, and none misses or repeats anything."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi import EventType, Put
from kvi.feed import Feed, WatchSpec
from kvi.model import Span
from kvi.policy import cursor as cursors
from kvi_sqlite import portions, schema, watching
from kvi_sqlite.backup import backup

from tests.support.forking import in_child
from tests.support.inside import inmost
from tests.support.waiting import until
from tests.unit.sqlite.workers import finish, start, write_numbers

EVERYTHING = Span()


def only(key: str) -> Span:
    return Span(key, key + "\0")


class Reader:
    """A consumer of a feed, and all that it was told."""

    def __init__(
        self, store: kvi.Kvi, span: Span, begin: int | None = None, *, initial: bool = False
    ) -> None:
        self.news = threading.Event()
        self.feed: Feed = inmost(store)._watch(WatchSpec(span, begin, initial), self.news.set, 5)
        self.events: list[kvi.Event] = []
        self.revision = self.feed.revision
        self.batches = 0

    def read(self) -> Reader:
        """Poll until there is nothing."""
        while (batch := self.feed.poll(5)) is not None:
            self.events += batch.events
            self.batches += 1
            if batch.revision is not None:
                assert self.revision is None or batch.revision >= self.revision
                assert all(event.revision <= batch.revision for event in batch.events)
                self.revision = batch.revision
        return self

    def wait_for(self, count: int) -> list[kvi.Event]:
        """Read whenever woken, until so many events have come."""
        deadline = time.monotonic() + 60
        while len(self.read().events) < count:
            assert self.news.wait(max(0.0, deadline - time.monotonic())), "no wake for an event"
            self.news.clear()
        assert len(self.events) == count
        return self.events

    @property
    def told(self) -> list[tuple[str, str | None, int]]:
        """The events, short."""
        return [
            (e.key, None if e.value is None else e.value.decode(), e.revision) for e in self.events
        ]


def watch_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "kvi-sqlite-watch"]


def place(store: kvi.Kvi) -> Any:
    """The watcher of a handle."""
    return inmost(store)._watcher


@pytest.fixture
def other(uri: str, store: kvi.Kvi) -> Iterator[kvi.Kvi]:
    """Another handle on the same file."""
    with kvi.open(uri) as handle:
        yield handle


# -- what is told ---------------------------------------------------------------------------------


def test_changes_come_whole_and_in_order(store: kvi.Kvi, other: kvi.Kvi) -> None:
    """Puts and deletes in the span are told once, in order, all of one revision together."""
    store.store("a/1", "before")
    reader = Reader(store, Span.of_prefix("a/"))
    assert reader.revision == 1
    assert reader.feed.poll(5) is None
    store.store("a/1", "v")
    other.store("b", "outside")
    other.txn(then=[Put("a/3", "x"), kvi.Delete("a/1"), Put("a/2", "")])
    store.delete_range(prefix="a/")
    reader.wait_for(6)
    assert reader.told == [
        ("a/1", "v", 2),
        ("a/3", "x", 4),
        ("a/1", None, 4),
        ("a/2", "", 4),
        ("a/2", None, 5),
        ("a/3", None, 5),
    ]
    assert [event.type for event in reader.events[2:4]] == [EventType.DELETE, EventType.PUT]
    assert reader.revision == 5


def test_start_in_the_past_and_in_the_future(store: kvi.Kvi) -> None:
    """A watch from a revision tells it and what follows, or waits until it comes."""
    for number in range(1, 6):
        store.store("k", str(number))
    past, future = Reader(store, only("k"), 3), Reader(store, only("k"), 8)
    assert (past.revision, future.revision) == (2, 7)
    assert [e.revision for e in past.wait_for(3)] == [3, 4, 5]
    assert future.feed.poll(5) is None
    for number in range(6, 10):
        store.store("k", str(number))
    assert [e.revision for e in past.wait_for(7)] == list(range(3, 10))
    assert [e.revision for e in future.wait_for(2)] == [8, 9]


def test_initial_state_and_what_follows(store: kvi.Kvi) -> None:
    """The state comes first, then every later change, with neither gap nor duplicate."""
    store.txn(then=[Put(f"k{number:04d}", "old") for number in range(1200)])
    reader = Reader(store, EVERYTHING, initial=True)
    store.store("k0000", "new")
    reader.wait_for(1201)
    assert [e.initial for e in reader.events].count(True) == 1200
    assert reader.told[-1] == ("k0000", "new", 2)
    assert reader.revision == 2


def test_quiet_watch_knows_how_far_it_was_told(store: kvi.Kvi) -> None:
    """The revision of a watch moves on with the store, though nothing concerned it."""
    reader = Reader(store, only("quiet"))
    for _ in range(10):
        store.store("busy", "v")
    until(lambda: reader.read().revision == 10)
    assert reader.events == []
    assert not reader.news.is_set()


def test_history_is_read_in_portions(
    path: Path, store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch from far back reads bounded portions; a revision beyond the bound comes whole."""
    monkeypatch.setattr(portions, "MAX_ROWS", 20)
    monkeypatch.setattr(watching, "REACH", 64)
    store.store("first", "v")
    for number in range(300):
        store.store("busy", str(number))
    store.txn(then=[Put(f"big/{number:03d}", "v") for number in range(100)])
    store.store("last", "v")
    reader = Reader(store, EVERYTHING, 1)
    sizes = []
    while (batch := reader.feed.poll(5)) is not None:
        sizes.append(len(batch.events))
        reader.events += batch.events
    assert 100 <= max(sizes) < 120
    assert sorted(sizes)[-2] <= 20
    assert [e.revision for e in reader.events] == [*range(1, 302), *[302] * 100, 303]
    sparse = Reader(store, only("last"), 1)
    assert sparse.read().told == [("last", "v", 303)]
    assert sparse.batches >= 300 / 64
    assert sparse.revision == 303


def test_commit_larger_than_its_ids_and_than_a_look(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision whose events run on into the ids behind it is told whole, and once."""
    monkeypatch.setattr(schema, "SEQ_BITS", 2)
    monkeypatch.setattr(watching, "NEWS", 3)
    monkeypatch.setattr(watching, "REACH", 1)
    readers = [Reader(store, EVERYTHING), Reader(store, only("k9")), Reader(store, only("z"))]
    for _ in range(3):
        store.txn(then=[Put(f"k{number}", "v") for number in range(10)])
        store.store("z", "v")
    assert len(readers[0].wait_for(33)) == 33
    assert len(readers[1].wait_for(3)) == 3
    assert len(readers[2].wait_for(3)) == 3
    late = Reader(store, EVERYTHING, 1)
    assert late.wait_for(33) == readers[0].events
    assert len({event.revision for event in late.events}) == 6


def test_two_of_the_same_and_the_end_of_one(store: kvi.Kvi) -> None:
    """Watches of one key are told independently; closing one, twice, leaves the other."""
    one, two = Reader(store, only("k")), Reader(store, only("k"))
    store.store("k", "1")
    one.wait_for(1)
    one.feed.close()
    one.feed.close()
    store.store("k", "2")
    two.wait_for(2)
    assert len(one.events) == 1


# -- who else commits -----------------------------------------------------------------------------


def test_commits_of_other_processes(store: kvi.Kvi, uri: str) -> None:
    """Every commit of other processes is told, soon, and none is missed or told twice."""
    reader = Reader(store, Span.of_prefix("w/"))
    workers = [start(write_numbers, uri, f"w/{n}", 0, 400) for n in range(3)]
    reader.wait_for(1200)
    finish(*workers)
    revisions = [event.revision for event in reader.events]
    assert revisions == sorted(set(revisions))
    for number in range(3):
        values = [e.value for e in reader.events if e.key == f"w/{number}"]
        assert values == [str(n).encode() for n in range(400)]


def test_commits_of_this_process_wake_at_once(
    store: kvi.Kvi, other: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through whichever handle of the process: the thread does not wait for its next look."""
    monkeypatch.setattr(cursors, "SOONEST", 3600.0)
    monkeypatch.setattr(cursors, "LATEST", 3600.0)
    monkeypatch.setattr(watching, "SOONEST", 3600.0)
    reader = Reader(store, only("k"))
    for writer in (store, other) * 5:
        writer.store("k", "v")
    reader.wait_for(10)


def test_commit_outside_of_kvi_is_seen(path: Path, store: kvi.Kvi) -> None:
    """Even what another program writes into the tables is told."""
    reader = Reader(store, only("k"))
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO events (id, revision, key) VALUES (?, 1, x'6b')", (1 << 20,))
    connection.commit()
    connection.close()
    reader.wait_for(1)


# -- history that is gone -------------------------------------------------------------------------


@pytest.fixture
def short(path: Path) -> Iterator[kvi.Kvi]:
    """A store that keeps a history of a few commits."""
    with kvi.open(f"sqlite:{path}?history=5") as store:
        yield store


def write_much(store: kvi.Kvi) -> None:
    for number in range(schema.TRIM_EVERY):
        store.store("busy", str(number))


def test_start_that_is_gone_is_compacted(short: kvi.Kvi) -> None:
    """A start in the past that the history no longer reaches is refused at once."""
    write_much(short)
    trimmed = schema.TRIM_EVERY - 5
    with pytest.raises(kvi.Compacted, match=f"begins behind {trimmed}"):
        inmost(short)._watch(WatchSpec(only("busy"), trimmed), lambda: None, 5)
    assert len(Reader(short, only("busy"), trimmed + 1).wait_for(5)) == 5


def test_slow_consumer_resyncs(short: kvi.Kvi) -> None:
    """What waits for a consumer and is trimmed meanwhile becomes a RESYNC with the whole state."""
    reader = Reader(short, Span.of_prefix("a/"))
    short.store("a/1", "v")
    short.store("a/2", "v")
    short.delete("a/2")
    until(reader.news.is_set)
    write_much(short)
    reader.wait_for(1)
    (event,) = reader.events
    assert event.type is EventType.RESYNC
    assert event.snapshot is not None
    assert [entry.key for entry in event.snapshot] == ["a/1"]
    short.store("a/3", "v")
    assert reader.wait_for(2)[1].key == "a/3"


def test_quiet_watch_in_a_busy_store_never_resyncs(short: kvi.Kvi) -> None:
    """However much is trimmed, a watch that missed nothing is told changes only."""
    reader = Reader(short, only("quiet"))
    for number in range(1, 3 * schema.TRIM_EVERY):
        revision = short.store("busy", str(number))
        if number % 4 == 0:  # the history is shorter than what could happen in one look
            until(lambda newest=revision: place(short)._seen == newest)  # type: ignore[misc]
    short.store("quiet", "v")
    reader.wait_for(1)
    assert reader.told == [("quiet", "v", 3 * schema.TRIM_EVERY)]


def test_trimmed_before_the_thread_looked(
    path: Path, short: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process stood still while the history passed, every watch resyncs: none goes quiet."""
    readers = [Reader(short, only("k")), Reader(short, only("quiet"))]
    watcher = place(short)
    with monkeypatch.context() as patch:
        patch.setattr(watcher, "_look", lambda: (False, None))
        short.store("k", "v")
        write_much(short)
    short.store("z", "v")
    for reader in readers:
        reader.wait_for(1)
        assert reader.events[0].type is EventType.RESYNC
        assert reader.events[0].revision == schema.TRIM_EVERY + 2


# -- the thread -----------------------------------------------------------------------------------


def test_ten_thousand_watches_are_one_thread(store: kvi.Kvi) -> None:
    """Ten thousand watches cost one thread, and a commit one look, not one for each."""
    store.ping()
    readers = [Reader(store, only(f"k{number}")) for number in range(10_000)]
    assert len(watch_threads()) == 1
    pool = inmost(store)._pool
    reads = 0
    read = pool.read

    def counted(*arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        return read(*arguments)

    pool.read = counted
    for number in range(0, 10_000, 1000):
        store.store(f"k{number}", "v")
        until(readers[number].news.is_set)
    assert reads < 1000
    assert sum(reader.news.is_set() for reader in readers) == 10
    assert len(readers[5000].read().events) == 1
    store.close()
    assert not watch_threads()


def test_thread_ends_after_the_last_watch(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is there while there are watches, lingers a little, and serves the next ones."""
    monkeypatch.setattr(watching, "LINGER", 0.2)
    store.store("k", "v")
    assert not watch_threads()
    for _ in range(2):
        reader = Reader(store, only("k"))
        store.store("k", "v")
        reader.wait_for(1)
        reader.feed.close()
        assert len(watch_threads()) == 1
        again = Reader(store, only("k"))
        store.store("k", "w")
        again.wait_for(1)
        again.feed.close()
        until(lambda: not watch_threads())


def test_watches_come_and_go_while_others_write(store: kvi.Kvi, other: kvi.Kvi) -> None:
    """Opened at any moment, a watch tells exactly what comes after: no gap, nothing old."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            other.store("k", "v")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for turn in range(60):
            begin = None if turn % 2 else max(1, store.range().revision or 0)
            reader = Reader(store, only("k"), begin)
            first = (reader.revision or 0) + 1
            while len(reader.read().events) < 5:
                assert reader.news.wait(20)
                reader.news.clear()
            revisions = [event.revision for event in reader.events]
            assert revisions == list(range(first, first + len(revisions)))
            reader.feed.close()
    finally:
        stop.set()
        writer.join()


def test_close_ends_the_thread_and_the_polls(path: Path, uri: str) -> None:
    """After close there is no thread, and a poll raises; closing the feed afterwards is fine."""
    store = kvi.open(uri)
    reader = Reader(store, only("k"), 1)
    before = time.monotonic()
    store.close()
    assert time.monotonic() - before < 1
    assert not watch_threads()
    reader.feed.close()
    assert [file.name for file in path.parent.iterdir()] == ["store.db"]
    with pytest.raises(kvi.KviError):
        inmost(store)._watch(WatchSpec(only("k")), lambda: None, 5)


def test_look_that_fails_is_made_again(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong in the thread is said once and passes; nothing is lost."""
    reader = Reader(store, only("k"))
    failures = iter([kvi.Unavailable("no disk"), kvi.Timeout("locked"), MemoryError("none left")])
    failed = threading.Event()

    def fail() -> None:
        for failure in failures:
            raise failure
        failed.set()
        raise kvi.Unavailable("still no disk")

    with monkeypatch.context() as patch:
        patch.setattr(place(store), "_look", fail)
        store.store("k", "v")
        assert failed.wait(20)
    reader.wait_for(1)
    assert [record.getMessage() for record in caplog.records] == ["watches wait: no disk"]


# -- a backup that is restored into the file ------------------------------------------------------


def restore(copy: Path, path: Path) -> None:
    """Write a backup over a store that is in use, as ``sqlite3 store.db '.restore copy.db'``."""
    source, target = sqlite3.connect(copy), sqlite3.connect(path, timeout=20)
    source.backup(target)
    source.close()
    target.close()


@pytest.fixture
def copy(tmp_path: Path, path: Path, store: kvi.Kvi) -> Path:
    """A copy of the store at revision 3; it is at revision 6 since."""
    for key in "abc":
        store.store(key, "old")
    backup(path, tmp_path / "copy.db")
    for key in "abc":
        store.store(key, "new")
    return tmp_path / "copy.db"


def state_of(reader: Reader) -> dict[str, str]:
    """The state that the next event, a RESYNC, has."""
    (event,) = reader.wait_for(1)
    assert event.type is EventType.RESYNC
    assert event.snapshot is not None
    assert reader.revision == event.revision
    return {entry.key: entry.text for entry in event.snapshot}


def test_restored_backup_is_told(path: Path, store: kvi.Kvi, copy: Path) -> None:
    """Watches get the state, though the revision fell, and then what follows it."""
    readers = [Reader(store, EVERYTHING), Reader(store, only("b")), Reader(store, only("b"), 20)]
    for reader in readers:
        reader.revision = None  # it falls
    restore(copy, path)
    assert [state_of(reader) for reader in readers] == [
        {"a": "old", "b": "old", "c": "old"},
        {"b": "old"},
        {"b": "old"},
    ]
    store.store("b", "newest")
    for reader in readers:
        reader.wait_for(2)
        assert reader.told[1:] == [("b", "newest", 4)]


def test_restored_and_written_to_between_two_looks(
    path: Path, store: kvi.Kvi, other: kvi.Kvi, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the revision is beyond the former one again hides nothing, nor do the same keys."""
    reader = Reader(store, EVERYTHING)
    reader.revision = None
    watcher, look_on, look = place(store), threading.Event(), place(store)._look

    def wait_and_look() -> object:
        assert look_on.wait(60)
        return look()

    monkeypatch.setattr(watcher, "_look", wait_and_look)
    until(lambda: watcher._newest >> schema.SEQ_BITS == 6)
    restore(copy, path)
    for key in "aacacc":
        other.store(key, "new")
    assert other.range().revision == 9
    look_on.set()
    assert state_of(reader) == {"a": "new", "b": "old", "c": "new"}


def test_watch_begins_anew_behind_a_restored_backup(path: Path, store: kvi.Kvi, copy: Path) -> None:
    """Where nobody watched as it was restored, a new watch is at the place that it has now."""
    Reader(store, EVERYTHING).feed.close()
    restore(copy, path)
    reader = Reader(store, only("b"))
    assert reader.revision == 3
    assert reader.feed.poll(5) is None
    store.store("b", "newest")
    reader.wait_for(1)
    assert reader.told == [("b", "newest", 4)]


def test_watch_that_is_opened_while_a_backup_is_restored(
    path: Path, store: kvi.Kvi, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who read his place before it, and began after the thread had seen it, gets the state."""
    before = inmost(store)._pool.read(watching._place, time.monotonic() + 20)
    first = Reader(store, only("b"))
    first.revision = None
    restore(copy, path)
    assert state_of(first) == {"b": "old"}
    with monkeypatch.context() as patch:
        patch.setattr(watching, "_place", lambda _: before)
        second = Reader(store, only("b"))
    second.revision = None
    assert state_of(second) == {"b": "old"}


# -- forks ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_fork_with_watches(store: kvi.Kvi, uri: str) -> None:
    """The parent's watches go on through forks; a child opens the file, and watches it, itself."""
    reader = Reader(store, Span.of_prefix("k/"))

    def child(number: int) -> Callable[[], None]:
        def run() -> None:
            reader.feed.close()
            assert not watch_threads()
            with kvi.open(uri) as own:
                inner = Reader(own, only(f"k/{number}"))
                own.store(f"k/{number}", "child")
                inner.wait_for(1)

        return run

    for number in range(10):
        assert in_child(child(number)) == 0
        store.store("k/parent", str(number))
        reader.wait_for(2 * (number + 1))
    assert len(watch_threads()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_fork_amid_looks(uri: str) -> None:
    """A fork while the thread looks all the time leaves neither a lock nor a connection behind."""
    uri += "?history=1000000"  # however slow the forks are, nothing is trimmed meanwhile
    store = kvi.open(uri)
    readers = [Reader(store, only(f"k{n}")) for n in range(3)]
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            store.store("k0", "v")
            written += 1

    writer = threading.Thread(target=write)
    writer.start()

    def child() -> None:
        for reader in readers:
            reader.feed.close()
        with kvi.open(uri, timeout=30) as own:
            own.store("k1", "v")

    try:
        for _ in range(10):
            assert in_child(child) == 0
    finally:
        stop.set()
        writer.join()
    readers[1].wait_for(10)
    readers[0].wait_for(written)
    assert store.range().revision == written + 10
    store.close()

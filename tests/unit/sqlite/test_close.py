"""Closing: blocked calls end at once, nothing stays open; and waiting in line."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

import kvi
import pytest
from kvi import Put
from kvi_sqlite import connection as connections
from kvi_sqlite.writers import WriterQueue

from tests.support.inside import inmost
from tests.unit.sqlite.workers import until


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock of the file by a connection outside of kvi."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


class Call(threading.Thread):
    """A call in a thread of its own, and what became of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Make the call."""
        try:
            self.call()
        except BaseException as error:  # noqa: BLE001  (the test looks at it)
            self.error = error


def open_files(folder: Path) -> list[str]:
    """The files below ``folder`` that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


def test_close_wakes_blocked_writers(path: Path, uri: str) -> None:
    """Writers that wait for the file's lock, or for one another, raise Closed within a second."""
    store = kvi.open(uri, timeout=60)
    store.ping()
    with locked(path):
        calls = [Call(lambda: store.store("k", "v")) for _ in range(5)]
        writers = inmost(store)._pool.writers
        until(lambda: len(writers) == 5, "one polls and four stand in line")
        before = time.monotonic()
        store.close()
        for call in calls:
            call.join(5)
        assert time.monotonic() - before < 1
    assert [type(call.error) for call in calls] == [kvi.Closed] * 5
    with kvi.open(uri) as again:
        assert again.get("k") is None
        assert again.store("k", "v") == 1


def test_close_of_one_handle_leaves_the_other_in_line(path: Path, uri: str) -> None:
    """Closing a handle calls off its own writers; another handle's still get their turn."""
    one, two = kvi.open(uri, timeout=60), kvi.open(uri, timeout=60)
    one.ping()
    with locked(path):
        first = Call(lambda: one.store("one", "v"))
        writers = inmost(one)._pool.writers
        until(lambda: len(writers) == 1, "the first polls")
        second = Call(lambda: two.store("two", "v"))
        until(lambda: len(writers) == 2, "the second waits for the first")
        one.close()
        first.join(5)
        assert isinstance(first.error, kvi.Closed)
        assert second.is_alive()
    second.join(5)
    assert second.error is None
    assert two.get("two") is not None
    two.close()


def test_close_interrupts_long_calls(uri: str) -> None:
    """A call that SQLite is busy with ends promptly when the handle is closed."""
    store = kvi.open(uri, timeout=60)
    store.ping()
    endless = """
        WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n
    """
    began = threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        began.set()
        connection.execute(endless).fetchone()

    pool = inmost(store)._pool
    call = Call(lambda: pool.read(work, time.monotonic() + 60))
    assert began.wait(5)
    before = time.monotonic()
    store.close()
    call.join(5)
    assert time.monotonic() - before < 1
    assert isinstance(call.error, kvi.Unavailable)  # which the public methods turn into Closed
    assert not pool.live


def test_time_out_bounds_long_calls(uri: str) -> None:
    """A call that SQLite is busy with ends at its time-out, undone, and the handle stays good."""
    with kvi.open(uri) as store:
        store.txn(then=[Put(f"old/{n}", "v") for n in range(30_000)], timeout=60)
        with pytest.raises(kvi.Timeout):
            store.delete_range(prefix="", timeout=0.01)
        with pytest.raises(kvi.Timeout):
            store.txn(then=[Put(f"new/{n}", "v") for n in range(30_000)], timeout=0.01)
        assert store.count(timeout=60) == 30_000


def test_nothing_stays_open(path: Path, uri: str) -> None:
    """After close no file of the store is open, and SQLite's side files are gone."""
    store = kvi.open(uri)
    calls = [Call(lambda: [store.get("k") and store.store("k", "v") for _ in range(50)])] * 8
    for call in calls:
        call.join()
    store.client.execute("SELECT 1")
    assert open_files(path.parent)
    store.close()
    assert open_files(path.parent) == []
    assert [file.name for file in path.parent.iterdir()] == ["store.db"]


def test_idle_connections_are_few(path: Path, uri: str) -> None:
    """A crowd of threads leaves only a handful of connections open."""
    with kvi.open(uri) as store:
        store.ping()
        meet = threading.Barrier(30)
        pool = inmost(store)._pool
        far = time.monotonic() + 30
        calls = [Call(lambda: pool.read(lambda _: meet.wait(20), far)) for _ in range(30)]
        for call in calls:
            call.join(30)
            assert call.error is None
        assert len(pool.live) == connections.KEPT


def test_threads_share_a_handle(uri: str) -> None:
    """Many threads on one handle lose no update and see no other's half-done work."""
    with kvi.open(uri, timeout=30) as store:
        store.store("n", "0")

        def work() -> None:
            for _ in range(50):
                while True:
                    entry = store.get("n")
                    assert entry is not None
                    if store.cas("n", entry.revision, str(int(entry.text) + 1)):
                        break

        calls = [Call(work) for _ in range(8)]
        for call in calls:
            call.join(60)
            assert call.error is None
        entry = store.get("n")
        assert entry is not None
        assert entry.text == "400"


def test_interrupted_client_leaves_no_log(path: Path, uri: str) -> None:
    """The last to close the file copies the log, also if a statement was ended by it."""
    with kvi.open(uri) as store:
        store.client.execute("PRAGMA user_version")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_busy_closes_leave_no_log(path: Path, uri: str) -> None:
    """However a close meets what its threads do at that moment, the file is whole without a log."""
    for _ in range(100):
        with kvi.open(uri) as store:
            store.watch("k")  # its thread looks at once
            store.store("k", "v")
        assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_connections_are_closed_one_after_the_other(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the close itself: two at one moment would each leave the log to the other."""
    store = kvi.open(uri)
    store.store("k", "v")
    pool, closers = inmost(store)._pool, set()
    reading, go = threading.Barrier(5), threading.Event()
    close = connections.Connection.close

    def noted(connection: connections.Connection) -> None:
        closers.add(threading.get_ident())
        close(connection)

    def work(connection: sqlite3.Connection) -> None:
        reading.wait(20)
        go.wait(20)

    monkeypatch.setattr(connections.Connection, "close", noted)
    calls = [Call(lambda: pool.read(work, inf)) for _ in range(4)]
    reading.wait(20)
    closing = Call(store.close)
    until(lambda: pool.closing, "the close")
    go.set()
    for call in (*calls, closing):
        call.join(20)
    assert len(closers) == 1


def test_client_is_the_callers_own(path: Path, uri: str) -> None:
    """`client` is one connection a handle, opened when first asked for and closed with it."""
    store = kvi.open(uri)
    store.store("k", "v")
    client = store.client
    assert store.client is client
    assert client.execute("SELECT value FROM entries").fetchall() == [(b"v",)]
    assert not client.in_transaction
    store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        client.execute("SELECT 1")
    with pytest.raises(kvi.Closed):
        _ = store.client


def test_writers_are_served_in_order() -> None:
    """Threads get to write in the order in which they asked for it."""
    writers = WriterQueue()
    far = time.monotonic() + 30
    order: list[int] = []

    def ask(number: int) -> None:
        with writers.place("me", far):
            order.append(number)

    calls = []
    with writers.place("me", far):
        for number in range(10):
            calls.append(Call(lambda number=number: ask(number)))  # type: ignore[misc]
            until(lambda expected=number + 2: len(writers) == expected, "in line")  # type: ignore[misc]
    for call in calls:
        call.join(10)
    assert order == list(range(10))


def test_writer_whose_time_is_up_leaves_the_line() -> None:
    """A waiter whose time is up leaves nothing behind, and the next one is served."""
    writers = WriterQueue()
    with writers.place("me", 0):
        for seconds in (0.01, 0):
            with (
                pytest.raises(kvi.Timeout),
                writers.place("me", time.monotonic() + seconds),
            ):
                raise AssertionError("it was not its turn")
        assert len(writers) == 1
    with writers.place("me", 0):
        assert len(writers) == 1


def test_dropped_handle(tmp_path: Path) -> None:
    """Its connections are closed with it."""
    store = kvi.open(f"sqlite:{tmp_path}/store.db")
    store.store("k", "v")
    (connection,) = store._scope.primitives._pool.live  # type: ignore[attr-defined]
    gone = weakref.ref(connection)
    del store, connection
    until(lambda: (gc.collect(), gone() is None)[1], "its connection is closed")

"""Writers that wait at once share a commit, and nobody notices anything else of it."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from types import NoneType
from typing import Any

import kvi
import pytest
from kvi import Key, Put
from kvi_sqlite.connection import Connection, Pool
from kvi_sqlite.writers import Place, WriterQueue

from tests.support.inside import inmost
from tests.support.waiting import until

WRITERS = 8


@pytest.fixture
def pool(store: kvi.Kvi) -> Pool:
    store.ping()
    found: Pool = inmost(store)._pool
    found.chores = lambda: None
    return found


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(WRITERS) as executor:
        yield executor


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another connection is writing."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


def at_once(
    path: Path, pool: Pool, threads: ThreadPoolExecutor, calls: Sequence[Callable[[], Any]]
) -> list[Future[Any]]:
    """Make calls that line up in this order before the first can begin."""
    futures = []
    with locked(path):
        for number, call in enumerate(calls, 1):
            futures.append(threads.submit(call))
            until(lambda number=number: len(pool.writers) == number)  # type: ignore[misc]
    return futures


def test_one_commit_for_all_who_wait(
    path: Path, store: kvi.Kvi, pool: Pool, threads: ThreadPoolExecutor
) -> None:
    """Each has a revision and an event of its own, in the order in which they came."""
    before, commits = store.store("k", b""), pool._commits
    with store.watch(prefix="") as watch:
        calls = [partial(store.store, f"k{number}", b"v") for number in range(WRITERS)]
        revisions = [future.result(30) for future in at_once(path, pool, threads, calls)]
        assert revisions == list(range(before + 1, before + 1 + WRITERS))
        assert pool._commits == commits + 1
        events = [watch.next(30) for _ in range(WRITERS)]
    assert [(event.key, event.revision) for event in events] == [
        (f"k{number}", revision) for number, revision in enumerate(revisions)
    ]
    assert [entry.revision for entry in store.range("k0", "l")] == revisions


def test_each_has_an_answer_of_its_own(
    path: Path, store: kvi.Kvi, pool: Pool, threads: ThreadPoolExecutor
) -> None:
    """What one may not, or finds otherwise, is its own affair; and it sees those before it."""
    present, commits = store.store("k", b"1"), pool._commits
    calls: list[Callable[[], Any]] = [
        partial(store.store, "a", b"1"),
        partial(store.store, "b", b"1", lease=12345),
        partial(store.cas, "k", present, b"2"),
        partial(store.cas, "k", present, b"3"),
        partial(store.txn, when=[Key("a").value == b"1"], then=[Put("c", b"1")]),
        partial(store.delete, "nothing"),
        partial(store.delete, "a"),
        partial(store.tas, "d", None, b"1"),
    ]
    found = at_once(path, pool, threads, calls)
    assert found[0].result(30) == present + 1
    with pytest.raises(kvi.LeaseLost):
        found[1].result(30)
    assert found[2].result(30)
    assert not found[3].result(30)
    assert found[4].result(30).succeeded
    assert (found[5].result(30), found[6].result(30)) == (False, True)
    assert found[7].result(30)
    assert {entry.key: entry.value for entry in store.range()} == {
        "c": b"1",
        "d": b"1",
        "k": b"2",
    }
    assert pool._commits == commits + 1


def test_large_work_shares_with_nobody(
    path: Path, store: kvi.Kvi, pool: Pool, threads: ThreadPoolExecutor
) -> None:
    """Nobody waits for the large value of another, and nobody overtakes it."""
    commits = pool._commits
    calls = [partial(store.store, f"k{number}", b"v") for number in range(3)]
    calls[1] = partial(store.store, "k1", b"v" * 1024 * 1024)
    first, large, last = (future.result(30) for future in at_once(path, pool, threads, calls))
    assert first < large < last
    assert pool._commits == commits + 3


def test_handles_share_no_commit(
    path: Path, uri: str, store: kvi.Kvi, pool: Pool, threads: ThreadPoolExecutor
) -> None:
    """Each handle has its options, and may be closed: it commits by itself."""
    with kvi.open(uri) as other:
        other.ping()
        commits = pool._commits
        handles = [store, other, store]
        calls = [partial(each.store, f"k{n}", b"v") for n, each in enumerate(handles)]
        revisions = [future.result(30) for future in at_once(path, pool, threads, calls)]
    assert revisions == sorted(revisions)
    assert pool._commits == commits + 2


def deadline(seconds: float = 30) -> float:
    return time.monotonic() + seconds


def put(store: kvi.Kvi, key: str) -> Callable[[Connection], tuple[int, bool]]:
    """The work of a put, as the store hands it over."""
    works: list[Any] = []
    inner = inmost(store)
    real = inner._access.write
    inner._access.write = lambda work, *given, **options: works.append(work)
    try:
        inner._put(key, b"v", None, 30)
    finally:
        inner._access.write = real
    (work,) = works
    return work  # type: ignore[no-any-return]


def bad(connection: Connection) -> tuple[None, bool]:
    connection.execute("INSERT INTO entries (id, key) VALUES (NULL, NULL)")
    return None, True


def half(connection: Connection) -> tuple[None, bool]:
    connection.execute("DELETE FROM entries")
    raise kvi.LeaseLost("after it wrote")


@pytest.mark.parametrize(
    ("work", "error"), [(bad, kvi.Unavailable), (half, kvi.LeaseLost)], ids=["bad", "half"]
)
def test_failure_is_its_own_alone(
    path: Path,
    store: kvi.Kvi,
    pool: Pool,
    threads: ThreadPoolExecutor,
    work: Any,
    error: type[kvi.KviError],
) -> None:
    """Where work spoils the transaction, the others are done all the same, and it by itself."""
    store.store("there", b"")
    calls = [
        partial(pool.write, each, deadline(), small=True)
        for each in (put(store, "a"), work, put(store, "b"))
    ]
    first, spoiled, last = at_once(path, pool, threads, calls)
    assert first.result(30) < last.result(30)
    with pytest.raises(error):
        spoiled.result(30)
    assert [entry.key for entry in store.range()] == ["a", "b", "there"]
    assert len(pool.writers) == 0


def test_commit_that_fails(
    path: Path,
    store: kvi.Kvi,
    pool: Pool,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is unknown what became of each write in it. Who wrote nothing is sure of that."""

    def fail(self: Pool, connection: Connection, deadline: float) -> None:
        monkeypatch.undo()
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    store.store("k", b"1")
    monkeypatch.setattr(Pool, "_commit", fail)
    calls: list[Callable[[], Any]] = [
        partial(store.store, "a", b"1"),
        partial(store.delete, "nothing"),
        partial(store.store, "b", b"1"),
    ]
    first, nothing, last = at_once(path, pool, threads, calls)
    for future in (first, last):
        with pytest.raises(kvi.OutcomeUnknown, match="the write may come back"):
            future.result(30)
    assert nothing.result(30) is False
    assert [entry.key for entry in store.range()] == ["k"]


def test_time_out_in_the_queue_is_certain(
    path: Path, store: kvi.Kvi, pool: Pool, threads: ThreadPoolExecutor
) -> None:
    """Who is not taken yet leaves at its time-out, and has surely written nothing."""
    with locked(path):
        head = threads.submit(store.store, "a", b"1")
        until(lambda: len(pool.writers) == 1)
        with pytest.raises(kvi.Timeout):
            store.store("b", b"1", timeout=0.05)
    assert head.result(30)
    assert [entry.key for entry in store.range()] == ["a"]


def test_time_out_in_a_commit_waits_for_it(
    path: Path, store: kvi.Kvi, pool: Pool, threads: ThreadPoolExecutor
) -> None:
    """Who is in a commit learns how that ends, as it would of its own."""
    taken, goes_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> tuple[int, bool]:
        taken.set()
        assert goes_on.wait(30)
        return put(store, "b")(connection)

    until_then = deadline(0.2)
    calls = [
        partial(pool.write, put(store, "a"), deadline(), small=True),
        partial(pool.write, slow, until_then, small=True),
    ]
    first, second = at_once(path, pool, threads, calls)
    assert taken.wait(30)
    until(lambda: time.monotonic() > until_then)
    assert not second.done()
    goes_on.set()
    assert first.result(30) < second.result(30)
    assert [entry.key for entry in store.range()] == ["a", "b"]


def test_close_beside_a_group(
    path: Path, store: kvi.Kvi, pool: Pool, threads: ThreadPoolExecutor
) -> None:
    """Each call of a handle that is closed ends, and what was acknowledged is there."""
    calls = [partial(store.store, f"k{number}", b"v") for number in range(WRITERS)]
    with locked(path):
        futures = [threads.submit(call) for call in calls]
        until(lambda: len(pool.writers) == WRITERS)
    store.close()
    acknowledged = set()
    for number, future in enumerate(futures):
        try:
            future.result(30)
        except kvi.KviError:
            continue
        acknowledged.add(f"k{number}")
    with kvi.open(f"sqlite:{path}") as again:
        assert acknowledged <= {entry.key for entry in again.range()}


# -- the queue by itself --------------------------------------------------------------------------


def test_late_as_it_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is late while it is taken, and is given back, leaves its place."""
    queue, seen, goes_on = WriterQueue(), threading.Event(), threading.Event()
    real = WriterQueue.is_through

    def slow(self: WriterQueue, place: Place, *, late: bool) -> bool:
        through = real(self, place, late=late)
        if late:
            seen.set()
            assert goes_on.wait(30)
        return through

    with ThreadPoolExecutor(1) as threads, queue.place("me", inf):
        monkeypatch.setattr(WriterQueue, "is_through", slow)

        def wait() -> None:
            with queue.place("me", deadline(0.05), bad):
                raise AssertionError("it had a turn")

        waiting = threads.submit(wait)
        until(lambda: len(queue) == 2)
        taken = queue.take("me", 0)
        assert taken is not None
        assert seen.wait(30)
        queue.untake([taken])
        goes_on.set()
        with pytest.raises(kvi.Timeout):
            waiting.result(30)
    assert len(queue) == 0


def test_upkeep_goes_right_behind_the_head() -> None:
    """However many wait; only behind those whose work the head does already."""
    queue, order, lock = WriterQueue(), list[str](), threading.Lock()

    def wait(name: str, *, soon: bool = False) -> None:
        with queue.place("me", inf, bad, soon=soon) as _, lock:
            order.append(name)

    with ThreadPoolExecutor(3) as threads, queue.place("me", inf):
        first = threads.submit(wait, "first")
        until(lambda: len(queue) == 2)
        second = threads.submit(wait, "second")
        until(lambda: len(queue) == 3)
        taken = queue.take("me", 0)
        assert taken is not None
        upkeep = threads.submit(wait, "upkeep", soon=True)
        until(lambda: len(queue) == 4)
        queue.end([taken])
        first.result(30)
    for each in (second, upkeep):
        each.result(30)
    assert order == ["first", "upkeep", "second"]


def test_many_failures_in_groups_hold_nothing(
    path: Path, store: kvi.Kvi, pool: Pool, threads: ThreadPoolExecutor
) -> None:
    """Errors of others do not keep a group, and what it was to write, alive."""
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(one, Place) for one in gc.get_objects())
        for _ in range(20):
            calls = [partial(store.store, f"k{n}", b"v", lease=n % 2 * 7 or None) for n in range(8)]
            futures = at_once(path, pool, threads, calls)
            for number, future in enumerate(futures):
                assert isinstance(future.exception(30), kvi.LeaseLost if number % 2 else NoneType)
            del futures, future
        assert sum(isinstance(one, Place) for one in gc.get_objects()) <= before + 8
    finally:
        gc.enable()

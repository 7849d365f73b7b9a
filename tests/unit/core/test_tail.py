"""One thread reads a log for all watches: nothing lost, nothing twice, nobody kept waiting."""

from __future__ import annotations

import logging
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress

import kvi
import pytest
from kvi.backend import history, tail
from kvi.backend.tail import Tail, Window
from kvi.feed import Feed, WatchSpec
from kvi.model import Event, EventType, KeyValue, RangeResult, Scan, Span
from kvi.policy import cursor
from kvi.policy.past import gone

from tests.support.waiting import until

EVERYTHING = Span.of_prefix("")


def only(key: str) -> Span:
    """The span of one key."""
    return Span(key, key + "\0")


class Log:
    """A store that is its history, and a tail of it. Each commit writes its revision to its keys.

    Attributes:
        revision: the present one.
        reads: what was asked for: ``after``, and by which thread.
        failures: raised by the next readings of the tail's thread.
        refused: raised by every reading while it is set.
        reported: what the tail has reported.
        waits: whether `Wait` waits; else it returns at once.
        answering: while it is not set, the tail's thread gets no answer to what it reads.

    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.grown = threading.Event()
        self.events: list[Event] = []
        self.entries: dict[str, KeyValue] = {}
        self.revision = self.trimmed = 0
        self.reads: list[tuple[int, str]] = []
        self.failures: list[Exception] = []
        self.refused: kvi.KviError | None = None
        self.reported: list[kvi.KviError] = []
        self.waits = True
        self.answering = threading.Event()
        self.answering.set()
        self.tail = Tail(self, self.read, self.wait)  # type: ignore[arg-type]

    def commit(self, *keys: str) -> int:
        """Write to the keys."""
        with self.lock:
            self.revision += 1
            value, put = str(self.revision).encode(), EventType.PUT
            for key in keys:
                old = self.entries.get(key)
                new = KeyValue(key, value, self.revision, old.create_revision if old else 0)
                self.entries[key] = new
                self.events.append(Event(put, key, value, self.revision, old))
        self.grown.set()
        return self.revision

    def trim(self, revision: int) -> None:
        """Forget the changes up to this revision."""
        with self.lock:
            self.trimmed = max(self.trimmed, revision)
            del self.events[: bisect_right(self.events, revision, key=lambda e: e.revision)]

    def read(self, after: int, limit: int, timeout: float) -> list[Event]:
        """As `tail.Read`."""
        name = threading.current_thread().name
        if name == "kvi-tail" and self.failures:
            raise self.failures.pop(0)
        if self.refused is not None:
            raise self.refused
        try:
            return self.found(after, limit, name)
        finally:
            if name == "kvi-tail":
                self.answering.wait(20)

    def found(self, after: int, limit: int, name: str) -> list[Event]:
        """What is there to read."""
        with self.lock:
            self.reads.append((after, name))
            if after < self.trimmed:
                raise gone(after)
            first = bisect_right(self.events, after, key=lambda event: event.revision)
            found = self.events[first : first + limit]
            if not found:
                return []
            last = bisect_right(self.events, found[-1].revision, key=lambda event: event.revision)
            return self.events[first:last]

    def wait(self, after: int, timeout: float) -> None:
        """As `tail.Wait`."""
        if not self.waits:
            return
        deadline = time.monotonic() + timeout
        while self.revision <= after and time.monotonic() < deadline:
            self.grown.wait(0.01)
            self.grown.clear()

    def read_by_the_tail(self) -> int:
        """How often its thread has read."""
        return sum(name == "kvi-tail" for _, name in self.reads)

    # -- what the tail asks of a handle

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        with self.lock:
            found = sorted(entry for entry in self.entries.values() if entry.key in scan.span)
            return RangeResult(self.revision, lambda: [found[: scan.limit]])

    def _watch(self, spec: WatchSpec, wake: Callable[[], None], timeout: float) -> Feed:
        return self.tail.watch(spec, wake, timeout)

    def _reporter(self) -> Callable[[kvi.KviError], None]:
        return self.reported.append


class Reader:
    """Somebody who watches."""

    def __init__(self, log: Log, span: Span, start: int | None = None) -> None:
        self.woken = threading.Event()
        self.feed = log.tail.watch(WatchSpec(span, start), self.woken.set, 5)
        self.events: list[Event] = []
        self.revision = self.feed.revision
        self.batches = 0

    def read(self) -> Reader:
        """Take all that there is."""
        while (batch := self.feed.poll(5)) is not None:
            self.events += batch.events
            self.revision = batch.revision
            self.batches += 1
        return self

    def read_up_to(self, revision: int) -> list[Event]:
        """Take what comes, whenever it is woken, until this revision was told."""

        def told() -> bool:
            self.woken.clear()
            self.read()
            return (self.revision or 0) >= revision or (self.woken.wait(0.05) and False)

        until(told)
        return self.events

    @property
    def revisions(self) -> list[int]:
        """Of the events."""
        return [event.revision for event in self.events]


@pytest.fixture
def log() -> Iterator[Log]:
    """An empty one, whose tail is closed afterwards."""
    log = Log()
    yield log
    log.tail.close()


def running() -> bool:
    """Whether there is a thread of a tail."""
    return any(thread.name == "kvi-tail" for thread in threading.enumerate())


# -- the window


def test_window_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the last changes, by number and by size, and never part of a revision."""
    monkeypatch.setattr(tail, "WINDOW", 4)
    monkeypatch.setattr(tail, "WINDOW_BYTES", 100)

    def event(revision: int, size: int = 0) -> Event:
        return Event(EventType.PUT, "k", b"v" * size, revision)

    window = Window(10)
    window.add([event(11), event(11), event(12)])
    assert (window.after, len(window.since(11)), len(window.since(12))) == (10, 3, 1)
    window.add([event(13), event(13)])
    assert (window.after, [e.revision for e in window.since(0)]) == (11, [12, 13, 13])
    window.add([event(14, size=98)])
    assert (window.after, [e.revision for e in window.since(14)]) == (13, [14])
    window.add([event(15, size=200)])
    assert (window.after, window.since(15)) == (15, [])
    window.add([event(16)] * 9)
    assert (window.after, window.since(0)) == (16, [])


# -- one thread for all


def test_a_commit_is_read_once(log: Log) -> None:
    """However many watch, the thread alone reads; only those are woken whom it concerns."""
    readers = [Reader(log, only(f"k{number}")) for number in range(50)]
    everything, quiet = Reader(log, EVERYTHING), Reader(log, only("quiet"))
    for number in range(50):
        log.commit(f"k{number}", "also")
    for number, reader in enumerate(readers):
        reader.read_up_to(50)
        assert reader.revisions == [number + 1]
    assert everything.read_up_to(50) == log.events
    assert quiet.read_up_to(50) == []
    assert not quiet.woken.is_set()
    assert {name for _, name in log.reads} == {"kvi-tail"}
    assert len(log.reads) <= 52


def test_thread_lives_as_long_as_watches(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts with the first watch, ends soon after the last, and reads nothing in between."""
    monkeypatch.setattr(tail, "LINGER", 0.05)
    for present in (0, 11, 22):
        assert not running()
        reads = len(log.reads)
        first, second = Reader(log, EVERYTHING), Reader(log, only("k"))
        first.feed.close()
        first.feed.close()
        log.commit("k")
        second.read_up_to(present + 1)
        assert second.revisions == [present + 1]
        assert running()
        assert min(after for after, _ in log.reads[reads:]) == present
        second.feed.close()
        until(lambda: not running())
        for _ in range(10):
            log.commit("k")


def test_watch_that_begins_while_the_thread_lingers(log: Log) -> None:
    """What was committed while nobody watched is told to those alone who begin there."""
    Reader(log, EVERYTHING).feed.close()
    for _ in range(10):
        log.commit("k")
    late, past = Reader(log, EVERYTHING), Reader(log, EVERYTHING, 5)
    log.commit("k")
    late.read_up_to(11)
    past.read_up_to(11)
    assert late.revisions == [11]
    assert past.revisions == [5, 6, 7, 8, 9, 10, 11]


def test_answer_that_comes_after_the_last_watch(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the thread had asked for then is not taken for what follows when the next one begins."""
    monkeypatch.setattr(tail, "WINDOW", 1)
    first = Reader(log, EVERYTHING)
    until(lambda: log.reads)
    log.answering.clear()
    log.commit("k")
    until(lambda: log.reads[-1][0] == 0 and log.read_by_the_tail() >= 2)
    for _ in range(3):
        log.commit("k")
    first.feed.close()
    second = Reader(log, EVERYTHING)
    log.answering.set()
    log.commit("k")
    second.read_up_to(5)
    assert second.revisions == [5]
    assert Reader(log, EVERYTHING, 3).read().revisions == [3, 4, 5]


def test_wait_that_does_not_wait(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain poll will do, and is paced: looks without news are ever further apart."""
    monkeypatch.setattr(tail, "SOONEST", 0.02)
    monkeypatch.setattr(cursor, "LATEST", 0.02)
    log.waits = False
    began = time.monotonic()
    reader = Reader(log, EVERYTHING)
    until(lambda: log.read_by_the_tail() >= 10)
    assert time.monotonic() - began >= 8 * 0.02
    log.commit("k")
    reader.read_up_to(1)


# -- behind


def test_past_is_read_in_portions(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch from far back reads for itself, bounded portions of whole revisions."""
    monkeypatch.setattr(tail, "LIMIT", 10)
    for _ in range(30):
        log.commit("a", "b", "c")
    reader = Reader(log, only("b"), 1).read()
    assert reader.revisions == list(range(1, 31))
    assert reader.batches >= 30 / 4
    assert reader.revision == 30


def test_slow_watch_reads_for_itself(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the window no longer has when its consumer asks comes from the log; nothing is lost."""
    monkeypatch.setattr(tail, "WINDOW", 5)
    monkeypatch.setattr(tail, "LIMIT", 7)
    slow, quick = Reader(log, EVERYTHING), Reader(log, EVERYTHING)
    for revision in range(1, 41):
        log.commit("k")
        quick.read_up_to(revision)
    assert slow.read_up_to(40) == quick.events == log.events
    assert slow.batches >= 5
    assert [name for _, name in log.reads if name != "kvi-tail"] != []


def test_history_does_not_end_where_the_thread_is(log: Log) -> None:
    """What was committed before a call is in a key's history, also if the thread is behind."""
    reader = Reader(log, EVERYTHING)
    for _ in range(10):
        log.commit("k")
    reader.read_up_to(10)
    log.answering.clear()
    for revision in range(11, 2000):
        log.commit("k")
        if revision % 500 in (20, 21):
            found = history.changes_of(log, "k", None, 5)  # type: ignore[arg-type]
            assert [event.revision for event in found] == list(range(revision, 0, -1))
    log.answering.set()


def test_start_in_the_future(log: Log) -> None:
    """Nothing before it is told, and it is."""
    log.commit("k")
    reader = Reader(log, EVERYTHING, 4)
    for _ in range(5):
        log.commit("k")
    reader.read_up_to(6)
    assert reader.revisions == [4, 5, 6]


# -- gone


def test_start_that_is_gone(log: Log) -> None:
    """It is the caller's error."""
    for _ in range(5):
        log.commit("k")
    log.trim(3)
    with pytest.raises(kvi.Compacted):
        Reader(log, EVERYTHING, 3)
    assert Reader(log, EVERYTHING, 4).read().revisions == [4, 5]


def test_history_that_goes_before_the_thread_has_read_it(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody is told the present state, and then what follows."""
    readers = [Reader(log, EVERYTHING), Reader(log, only("k")), Reader(log, EVERYTHING, 10)]
    with log.lock:
        log.revision = 7  # all of it is committed and gone before anybody looks
        log.trimmed = 7
        log.entries["k"] = KeyValue("k", b"7", 7, 7)
    for reader in readers[:2]:
        event = reader.read_up_to(7)[-1]
        assert (event.type, event.revision, event.snapshot) == (
            EventType.RESYNC,
            7,
            [log.entries["k"]],
        )
    for _ in range(3):
        log.commit("k")
    for reader in readers[:2]:
        reader.read_up_to(10)
        assert reader.revisions == [7, 8, 9, 10]
    readers[2].read_up_to(10)
    assert readers[2].revisions == [10], "what it did not ask for is not missed"


# -- faults


def test_faults_of_the_store_are_bridged(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """They are logged once, and reported; what was committed meanwhile is told afterwards."""
    reader = Reader(log, EVERYTHING)
    failures = [kvi.Unavailable("gone away"), kvi.Timeout("slow"), kvi.Unavailable("gone again")]
    with caplog.at_level(logging.WARNING, "kvi"):
        log.failures += failures
        log.commit("k")
        assert len(reader.read_up_to(1)) == 1
    assert log.reported == failures
    assert [record.getMessage() for record in caplog.records] == ["watches wait: gone away"]


def test_own_reading_that_fails(log: Log) -> None:
    """What a watch could not read for itself it reads when it is asked again, without a wake."""
    for _ in range(3):
        log.commit("k")
    reader = Reader(log, EVERYTHING, 1)
    log.refused = kvi.Unavailable("gone away")
    with pytest.raises(kvi.Unavailable):
        reader.read()
    log.refused = None
    assert reader.read().revisions == [1, 2, 3]


def test_a_bug_of_the_author_is_survived(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """What is no error of kvi's is logged with its traceback; the watches go on."""
    reader = Reader(log, EVERYTHING)
    log.failures += [ZeroDivisionError("oops")]
    log.commit("k")
    assert len(reader.read_up_to(1)) == 1
    (record,) = caplog.records
    assert record.exc_info
    assert log.reported == []


def test_what_does_not_pass_ends_the_watches(log: Log) -> None:
    """It comes out of the poll of each watch, which is woken for it."""
    readers = [Reader(log, EVERYTHING), Reader(log, only("quiet"))]
    log.refused = kvi.PermissionDenied("not any more")
    log.commit("k")
    for reader in readers:
        assert reader.woken.wait(10)
        with pytest.raises(kvi.PermissionDenied):
            reader.read()
    log.refused = None  # if it was given the right again, nothing was missed
    assert readers[0].read_up_to(1) == log.events


# -- the end


@pytest.mark.parametrize("waits", [True, False])
def test_close_is_quick(log: Log, waits: bool) -> None:
    """The thread ends within a second; polls find nothing, and no watch begins any more."""
    log.waits = waits
    reader = Reader(log, EVERYTHING)
    began = time.monotonic()
    log.tail.close()
    assert time.monotonic() - began < 1
    assert not running()
    log.commit("k")
    assert reader.feed.poll(5) is None
    reader.feed.close()
    with pytest.raises(kvi.Closed):
        Reader(log, EVERYTHING)
    log.tail.close()


def test_forked(log: Log) -> None:
    """A child's copy lets go of everything at once, whoever held its lock."""
    reader = Reader(log, EVERYTHING)
    parents = log.tail._thread
    log.tail._lock.acquire()
    lock, log.tail._lock = log.tail._lock, log.tail._lock
    log.tail.forked()
    lock.release()
    assert reader.feed.poll(5) is None
    reader.feed.close()
    log.tail.close()
    assert parents is not None
    until(lambda: not parents.is_alive())


# -- everything at once


@pytest.mark.parametrize("seed", range(4))
def test_many_watches_among_writers(log: Log, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is told each change of its keys once, in order, or a resync and what follows.

    While writers commit, watches begin now, in the past and in the future, read now and then, and
    the history is trimmed.
    """
    monkeypatch.setattr(tail, "WINDOW", 20)
    monkeypatch.setattr(tail, "LIMIT", 8)
    monkeypatch.setattr(tail, "LINGER", 0.01)
    rng = random.Random(seed)
    everything: list[Event] = []
    keys = [f"{letter}{n}" for letter in "ab" for n in range(3)]
    commits, ended = 400, threading.Event()

    def write() -> None:
        for number in range(commits):
            log.commit(*rng.sample(keys, rng.choice([1, 1, 2])))
            with log.lock:
                everything.extend(e for e in log.events if e.revision == log.revision)
            if number % 40 == 39:
                log.trim(log.revision - 30)
            if rng.random() < 0.2:
                time.sleep(0.001)
        ended.set()

    def check(reader: Reader, span: Span, start: int) -> None:
        """Tell the log's story from what was told."""
        told, after = reader.events, start - 1
        for index, event in enumerate(reader.events):
            if event.type is EventType.RESYNC:
                assert event.revision >= after
                told, after = reader.events[index + 1 :], event.revision
        wanted = [e for e in everything if e.revision > after and e.key in span]
        assert [(e.key, e.revision) for e in told] == [(e.key, e.revision) for e in wanted]

    def watch(number: int) -> None:
        own = random.Random(seed * 100 + number)
        for _ in range(6):
            span = own.choice([EVERYTHING, Span.of_prefix("a"), only("b1")])
            start = own.choice([None, log.revision - 10, log.revision + 10])
            try:
                reader = Reader(log, span, None if start is None else max(1, start))
            except kvi.Compacted:
                continue
            begun = (reader.revision or 0) + 1
            while not ended.is_set():
                if (batch := reader.feed.poll(5)) is not None:
                    reader.events += batch.events
                    reader.revision = batch.revision or reader.revision
                elif own.random() < 0.02:
                    break
                if own.random() < 0.1:
                    time.sleep(own.random() * 0.02)
            if ended.is_set():
                reader.read_up_to(commits)
                check(reader, span, begun)
                checked.append(number)
            reader.feed.close()

    checked: list[int] = []
    problems: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as problem:  # noqa: BLE001  (raised below)
            problems.append(problem)
            ended.set()

    threads = [threading.Thread(target=guarded, args=(write,))]
    threads += [threading.Thread(target=guarded, args=(lambda n=n: watch(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with suppress(IndexError):
        raise problems[0]
    assert checked

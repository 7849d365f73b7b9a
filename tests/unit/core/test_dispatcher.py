"""The threads of call-backs: order, progress, number."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from kvi.runtime import dispatcher as module
from kvi.runtime.dispatcher import MOST_WORKERS, WORKERS, Dispatcher, Task

from tests.support.waiting import until


class Work(Task):
    """Calls ``piece``, whose answer is when to be run again, and counts."""

    def __init__(self, piece: Callable[[], float | None]) -> None:
        super().__init__()
        self.piece = piece
        self.runs = 0
        self.running = 0
        self.most_at_once = 0

    def run(self) -> float | None:
        """Do one piece."""
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            return self.piece()
        finally:
            self.runs += 1
            self.running -= 1


@pytest.fixture
def dispatcher() -> Iterator[Dispatcher]:
    """A dispatcher, whose threads have ended at the end."""
    dispatcher = Dispatcher()
    yield dispatcher
    dispatcher.stop()
    dispatcher.join(20)
    assert not dispatcher._threads


def ran(work: Work, times: int = 1) -> None:
    """It has run so many times, soon."""
    until(lambda: work.runs == times)


def test_no_thread_before_its_use() -> None:
    """A dispatcher that nobody uses costs no thread, and can be stopped."""
    dispatcher = Dispatcher()
    assert not dispatcher._threads
    dispatcher.stop()
    dispatcher.join(1)


def test_submitted_is_run(dispatcher: Dispatcher) -> None:
    """A task is run once for a submission, on a thread of the dispatcher."""
    ran: list[str] = []
    dispatcher.call(lambda: ran.append(threading.current_thread().name))
    until(lambda: ran)
    assert ran == ["kvi-callbacks"]


def test_order_and_one_at_a_time(dispatcher: Dispatcher) -> None:
    """However often and from wherever a task is submitted, it runs on one thread at a time.

    Its pieces come in order, and no submission is lost: after the last one it runs once more.
    """
    wanted, done = [0], [0]
    seen: list[int] = []

    def piece() -> None:
        seen.append(wanted[0])
        done[0] = wanted[0]

    work = Work(piece)
    others = [Work(lambda: None) for _ in range(3)]

    def submit() -> None:
        for _ in range(500):
            wanted[0] += 1
            dispatcher.submit(work)
            for other in others:
                dispatcher.submit(other)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = wanted[0]
    until(lambda: done[0] == last)
    assert work.most_at_once == 1
    assert seen == sorted(seen)
    assert all(other.most_at_once == 1 for other in others)


def test_submitted_while_it_runs(dispatcher: Dispatcher) -> None:
    """Submitted once or often while it runs, a task runs once more; else no more."""
    entered, go = threading.Semaphore(0), threading.Semaphore(0)

    def piece() -> None:
        entered.release()
        assert go.acquire(timeout=20)

    work = Work(piece)
    dispatcher.submit(work)
    assert entered.acquire(timeout=20)
    for _ in range(3):
        dispatcher.submit(work)
    go.release()
    assert entered.acquire(timeout=20)
    go.release()
    until(lambda: work.runs == 2)
    after = Work(lambda: None)
    dispatcher.submit(after)
    until(lambda: after.runs)
    assert work.runs == 2
    assert work.most_at_once == 1


def test_submitted_often_before_it_runs(dispatcher: Dispatcher) -> None:
    """A task that waits in the queue waits there once."""
    entered, go = threading.Semaphore(0), threading.Event()

    def block() -> None:
        entered.release()
        assert go.wait(20)

    for _ in range(MOST_WORKERS):
        dispatcher.call(block)
    for _ in range(MOST_WORKERS):
        assert entered.acquire(timeout=20)
    work = Work(lambda: None)
    for _ in range(5):
        dispatcher.submit(work)
    assert len(dispatcher._queue) == 1
    go.set()
    until(lambda: work.runs)
    until(lambda: dispatcher._idle == dispatcher._workers)
    assert work.runs == 1


def test_more_to_do(dispatcher: Dispatcher) -> None:
    """A task with more to do goes to the end of the queue: the others have their turn."""
    order: list[str] = []
    left = [200]

    def endless() -> float | None:
        order.append("long")
        left[0] -= 1
        if left[0] == 190:
            dispatcher.call(lambda: order.append("short"))
        return 0 if left[0] else None

    dispatcher.submit(Work(endless))
    until(lambda: not left[0] and "short" in order)
    assert order.index("short") < 190


def test_later(dispatcher: Dispatcher) -> None:
    """A task that asks for it is run again after that time; those due first come first."""
    order: list[str] = []

    def after(name: str, seconds: float) -> Work:
        def piece() -> float | None:
            order.append(name)
            return seconds if order.count(name) == 1 else None

        return Work(piece)

    slow, quick = after("slow", 0.3), after("quick", 0.01)
    dispatcher.submit(slow)
    dispatcher.submit(quick)
    until(lambda: len(order) == 4)
    assert order[2:] == ["quick", "slow"]


def test_submitted_before_later(dispatcher: Dispatcher) -> None:
    """A task that is submitted meanwhile does not wait; what it asks for then replaces its time."""
    work = Work(lambda: 3600)
    for runs in range(1, 20):
        dispatcher.submit(work)
        ran(work, runs)
        until(lambda: work._due is not None)
    quick = Work(lambda: 0.01 if quick.runs < 19 else None)
    for _ in range(10):
        dispatcher.submit(quick)
    until(lambda: quick.runs >= 20 and quick._due is None)
    assert work.runs == 19


def test_times_do_not_pile_up(dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a task was submitted, only the time that it asked for last runs it again."""
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    work = Work(lambda: 10)
    for runs in range(1, 6):
        dispatcher.submit(work)
        ran(work, runs)
        until(lambda: work._due == now[0] + 10)
        now[0] += 1
    now[0] = 113.9  # all but the last would be due
    probe = Work(lambda: 1)
    dispatcher.submit(probe)  # the timekeeper looks
    until(lambda: probe._due is not None and len(dispatcher._later) == 2)
    assert work.runs == 5
    now[0] = 114
    dispatcher.submit(probe)
    until(lambda: work.runs == 6)


def test_stuck_call_backs_get_company(dispatcher: Dispatcher) -> None:
    """Call-backs that block delay no other's, up to MOST_WORKERS of them; the others end again."""
    entered, go = threading.Semaphore(0), threading.Event()

    def block() -> None:
        entered.release()
        assert go.wait(60)

    for _ in range(MOST_WORKERS - 1):
        dispatcher.call(block)
    for _ in range(MOST_WORKERS - 1):
        assert entered.acquire(timeout=20)
    quick = Work(lambda: None)
    dispatcher.submit(quick)
    until(lambda: quick.runs)
    for _ in range(3):
        dispatcher.call(block)
    assert entered.acquire(timeout=20)
    assert dispatcher._workers == MOST_WORKERS
    go.set()
    until(lambda: dispatcher._workers == WORKERS)
    until(lambda: len(dispatcher._threads) == WORKERS + 1)
    dispatcher.submit(quick)
    until(lambda: quick.runs == 2)


@pytest.mark.parametrize("blocking", range(1, 7))
def test_nobody_is_forgotten(blocking: int) -> None:
    """However many block, from the first moment and between others, the last is run."""
    go = threading.Event()
    dispatcher = Dispatcher()
    try:
        for _ in range(10):
            quick = Work(lambda: None)
            dispatcher.submit(quick)
            ran(quick)
        for _ in range(blocking):
            dispatcher.call(lambda: go.wait(60))
        last = Work(lambda: None)
        dispatcher.submit(last)
        until(lambda: last.runs)
    finally:
        go.set()
        dispatcher.stop()
        dispatcher.join(20)


def test_burst_needs_few_threads(monkeypatch: pytest.MonkeyPatch, dispatcher: Dispatcher) -> None:
    """Ten thousand quick tasks at once are done by WORKERS threads and the timekeeper."""
    monkeypatch.setattr(module, "STALL", 60)  # none of them takes as long, however busy we are
    done: list[int] = []
    most = 0
    for number in range(10_000):
        dispatcher.call(partial(done.append, number))
        most = max(most, len(dispatcher._threads))
    until(lambda: len(done) == 10_000)
    most = max(most, len(dispatcher._threads))
    assert most <= WORKERS + 1
    assert sorted(done) == list(range(10_000))


def test_stall_is_counted_from_its_beginning(
    monkeypatch: pytest.MonkeyPatch, dispatcher: Dispatcher
) -> None:
    """After a quiet time a full queue is no stall yet: no worker is added at once."""
    monkeypatch.setattr(module, "STALL", 60)
    go = threading.Event()
    for _ in range(3):
        for _ in range(10):
            quick = Work(lambda: None)
            dispatcher.submit(quick)
            ran(quick)
        until(lambda: dispatcher._idle == dispatcher._workers)
        for _ in range(WORKERS):
            dispatcher.call(lambda: go.wait(20))
        waiting = Work(lambda: None)
        dispatcher.submit(waiting)
        until(lambda: dispatcher._watching)
        later = Work(lambda: 0)
        dispatcher.submit(later)
        assert dispatcher._workers <= WORKERS
        later.piece = lambda: None
        go.set()
        ran(waiting)
        go.clear()


def test_what_is_raised_is_logged(dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a call-back raises is logged, and ends no thread."""

    def fail(error: BaseException) -> None:
        raise error

    with caplog.at_level(logging.ERROR, "kvi"):
        for error in (ValueError("first"), SystemExit("second"), KeyboardInterrupt("third")):
            dispatcher.call(partial(fail, error))
        until(lambda: len(caplog.records) == 3)
    assert {str(record.exc_info[1]) for record in caplog.records if record.exc_info} == {
        "first",
        "second",
        "third",
    }
    work = Work(lambda: None)
    dispatcher.submit(work)
    until(lambda: work.runs)
    assert all(thread.is_alive() for thread in dispatcher._threads)


def test_stop(dispatcher: Dispatcher) -> None:
    """After stop nothing begins, what was due or asked for later included; the threads end."""
    entered, go = threading.Semaphore(0), threading.Event()
    ran: list[int] = []

    def block() -> float:
        entered.release()
        assert go.wait(20)
        return 0

    blocked = [Work(block) for _ in range(WORKERS)]
    for work in blocked:
        dispatcher.submit(work)
    for _ in blocked:
        assert entered.acquire(timeout=20)
    dispatcher.call(lambda: ran.append(1))
    dispatcher.stop()
    dispatcher.call(lambda: ran.append(2))
    dispatcher.join(0)
    go.set()
    dispatcher.join(20)
    assert not dispatcher._threads
    dispatcher.submit(blocked[0])
    assert not ran
    assert [work.runs for work in blocked] == [1] * WORKERS
    assert not dispatcher._threads


def test_stopped_and_joined_by_a_call_back(dispatcher: Dispatcher) -> None:
    """A call-back may stop the dispatcher that it runs on: it does not wait for itself."""
    ended = threading.Event()

    def end() -> None:
        dispatcher.stop()
        dispatcher.join(20)
        ended.set()

    dispatcher.call(end)
    assert ended.wait(10)


def test_no_thread_can_be_started(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the limit of threads, submitting does not raise, and the task is run later."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    first, second = Work(lambda: None), Work(lambda: None)
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        dispatcher.submit(first)
    assert "can't start new thread" in caplog.text
    assert not dispatcher._threads
    dispatcher.join(1)
    dispatcher.submit(second)
    until(lambda: first.runs and second.runs)

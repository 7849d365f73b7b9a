"""The gate that keeps forks away from channels that are being made."""

from __future__ import annotations

import threading
import time

import pytest
from kvi.coroutine import run
from kvi_etcd import driver, forks

from tests.support.waiting import until


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> forks.ForkGate:
    """A gate that no real fork comes to."""
    monkeypatch.delattr("os.register_at_fork", raising=False)
    return forks.ForkGate()


def begin_fork(gate: forks.ForkGate) -> None:
    """What a fork does before it happens."""
    gate._door.take()
    gate._close()


def end_fork(gate: forks.ForkGate) -> None:
    """What it does afterwards in the parent."""
    gate._tell()
    gate._door._afterwards.pop()()


def in_thread(work: object) -> threading.Thread:
    """Run it, daemonic, so that a deadlock fails the test and no more."""
    thread = threading.Thread(target=work, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_a_fork_waits_for_those_inside(gate: forks.ForkGate) -> None:
    """Until the last one has left; others wait for the fork."""
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with gate:
            inside.set()
            go_on.wait(10)
            order.append("left")

    def fork() -> None:
        begin_fork(gate)
        order.append("fork")
        end_fork(gate)

    def late() -> None:
        with gate:
            order.append("late")

    worker = in_thread(work)
    assert inside.wait(10)
    begin = time.monotonic()
    forker = in_thread(fork)
    until(gate._door.lock.locked)
    other = in_thread(late)
    go_on.set()
    for thread in (worker, forker, other):
        thread.join(10)
    assert order == ["left", "fork", "late"]
    assert time.monotonic() - begin < forks.PATIENCE / 2


def test_a_fork_does_not_wait_for_ever(
    gate: forks.ForkGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who stays inside holds it for a moment only."""
    monkeypatch.setattr(forks, "PATIENCE", 0.05)
    end = threading.Event()
    inside = threading.Event()

    def work() -> None:
        with gate:
            inside.set()
            end.wait(10)

    worker = in_thread(work)
    assert inside.wait(10)
    begin_fork(gate)
    end_fork(gate)
    end.set()
    worker.join(10)


def test_a_fork_inside_or_at_the_door(
    gate: forks.ForkGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that forks there itself waits for a moment, and the gate is whole afterwards."""
    monkeypatch.setattr(forks, "PATIENCE", 0.05)

    def work() -> None:
        with gate:
            begin_fork(gate)
            end_fork(gate)
        with gate._door.lock:
            begin_fork(gate)
            end_fork(gate)

    worker = in_thread(work)
    worker.join(10)
    assert not worker.is_alive()
    with gate:
        assert len(gate._inside) == 1


def test_two_forks(gate: forks.ForkGate, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would not wait for the other any longer does not open its door."""
    monkeypatch.setattr(forks, "PATIENCE", 0.05)
    begin_fork(gate)

    def second() -> None:
        begin_fork(gate)
        end_fork(gate)

    in_thread(second).join(10)
    assert gate._door.lock.locked()
    end_fork(gate)
    assert not gate._door.lock.locked()


def test_a_child_begins_anew(gate: forks.ForkGate) -> None:
    """A fork amid a block leaves a gate that works, also when the child leaves that block."""
    with gate:
        begin_fork(gate)
        gate._reset()
        gate._door.renew()
    with gate:
        pass
    assert not gate._inside


def test_who_is_inside_does_not_wait_for_the_fork(gate: forks.ForkGate) -> None:
    """It may begin a call that another thread will end, and the fork waits for both."""
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()
    key = object()

    def work() -> None:
        with gate:
            inside.set()
            until(gate._door.lock.locked)
            gate.enter(key)
        go_on.wait(10)
        order.append("left")
        gate.leave(key)

    def fork() -> None:
        begin_fork(gate)
        order.append("fork")
        end_fork(gate)

    worker = in_thread(work)
    assert inside.wait(10)
    forker = in_thread(fork)
    until(lambda: gate._inside == {key})
    assert order == []
    go_on.set()
    for thread in (worker, forker):
        thread.join(10)
    assert order == ["left", "fork"]


def test_an_interrupted_block_is_forgotten(gate: forks.ForkGate) -> None:
    """Who could not say that he left has left with the end of his next block."""
    gate.enter(threading.get_ident())
    with gate:
        pass
    assert not gate._inside


class Stream:
    """What a fork ends."""

    def __init__(self, order: list[str]) -> None:
        self.order = order

    def end_for_fork(self) -> None:
        """Note it."""
        self.order.append("ended")

    def gone(self, seconds: float) -> bool:
        """Note it."""
        self.order.append("gone")
        return seconds >= 0


def test_a_fork_ends_the_streams(gate: forks.ForkGate) -> None:
    """All are told first, and then waited for; the child has none."""
    order: list[str] = []
    streams = [Stream(order), Stream(order)]
    for stream in streams:
        with gate:
            gate.keep(stream)
    begin_fork(gate)
    end_fork(gate)
    assert order == ["ended", "ended", "gone", "gone"]
    gate._reset()
    begin_fork(gate)
    end_fork(gate)
    assert len(order) == 4


def test_nobody_waits_for_a_fork_under_the_lock() -> None:
    """Whoever would make an endpoint during a fork waits without the lock of the connection."""
    connection = driver.Connection([("127.0.0.1", 1)], None, None)
    forking, go_on = threading.Event(), threading.Event()
    clients: list[object] = []

    def fork() -> None:
        begin_fork(forks.gate)
        forking.set()
        go_on.wait(10)
        end_fork(forks.gate)

    forker = in_thread(fork)
    assert forking.wait(10)
    caller = in_thread(lambda: clients.append(connection.client))
    time.sleep(0.1)
    assert connection._lock.acquire(timeout=1)
    connection._lock.release()
    assert clients == []
    go_on.set()
    for thread in (forker, caller):
        thread.join(10)
    assert len(clients) == 1
    run(connection.close())

"""The thread that keeps leases alive."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import kvi
import pytest
from kvi.clock import now
from kvi.runtime import keeper as module
from kvi.runtime.keeper import Keeper

from tests.support.waiting import until


class Fake:
    """What is kept: each step calls ``piece``, whose answer is when to come again."""

    def __init__(self, piece: Callable[[], float | None] = lambda: None) -> None:
        self.piece = piece
        self.ended = False
        self.steps = 0

    def step(self) -> float | None:
        """Count, and do it."""
        self.steps += 1
        return self.piece()


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A keeper, whose thread has ended at the end."""
    keeper = Keeper()
    yield keeper
    keeper.stop()
    keeper.join(20)
    assert not keeper._threads


def test_in_the_order_of_time(keeper: Keeper) -> None:
    """Those due first come first, in whatever order they were given; none comes too early."""
    order: list[tuple[str, bool]] = []
    start = now()

    def kept(name: str, seconds: float) -> None:
        def piece() -> None:
            order.append((name, now() >= start + seconds))

        keeper.keep(Fake(piece), start + seconds)

    kept("last", 0.3)
    kept("second", 0.2)
    kept("past", -1)
    kept("first", 0.1)
    until(lambda: len(order) == 4)
    assert [(n, ok) for n, ok in order if n != "past"] == [
        ("first", True),
        ("second", True),
        ("last", True),
    ]


def test_called_again(keeper: Keeper) -> None:
    """A step says when the next one is; without, it was the last."""
    fake = Fake()
    fake.piece = lambda: now() if fake.steps < 5 else None
    keeper.keep(fake, now())
    until(lambda: fake.steps == 5)
    other = Fake()
    keeper.keep(other, now())
    until(lambda: other.steps == 1)
    assert fake.steps == 5


def test_thread_ends_with_the_last(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon after the last lease the thread is gone; the next one starts another."""
    monkeypatch.setattr(module, "LINGER", 0.01)
    assert not keeper._threads
    for _ in range(3):
        fake = Fake()
        keeper.keep(fake, now())
        until(lambda: fake.steps == 1)  # noqa: B023  (it returns before the next)
        until(lambda: not keeper._threads)
    forgotten = Fake()
    keeper.keep(forgotten, now() + 3600)
    assert keeper._threads
    forgotten.ended = True
    keeper.forget()
    until(lambda: not keeper._threads)
    assert not forgotten.steps


def test_forgotten_ones_do_not_pile_up(keeper: Keeper) -> None:
    """Those that ended are let go of before their time; those that did not are called."""
    fakes = [Fake() for _ in range(1000)]
    for fake in fakes:
        keeper.keep(fake, now() + 3600)
    for fake in fakes[1:]:
        fake.ended = True
        keeper.forget()
    assert len(keeper._due) <= 2
    assert any(kept is fakes[0] for _, _, kept in keeper._due)
    (thread,) = keeper._threads
    assert thread is not None
    assert thread.is_alive()


def test_step_that_raises(keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    """A step that raises is logged, and the others are kept."""

    def fail() -> None:
        raise ValueError("a mistake")

    other = Fake()
    with caplog.at_level(logging.ERROR, "kvi"):
        keeper.keep(Fake(fail), now())
        keeper.keep(other, now())
        until(lambda: other.steps)
    assert "a mistake" in caplog.text


def test_stop(keeper: Keeper) -> None:
    """After stop no step begins, not even one that was asked for by one that runs."""
    entered, go = threading.Event(), threading.Event()

    def block() -> float:
        entered.set()
        assert go.wait(20)
        return now()

    running, waiting = Fake(block), Fake()
    keeper.keep(running, now())
    assert entered.wait(20)
    keeper.keep(waiting, now())
    keeper.stop()
    keeper.join(0)
    go.set()
    keeper.join(20)
    assert not keeper._threads
    keeper.keep(waiting, now())
    assert not keeper._threads
    assert (running.steps, waiting.steps) == (1, 0)


def test_joined_by_itself(keeper: Keeper) -> None:
    """A step may stop the keeper: it does not wait for itself."""
    ended = threading.Event()

    def end() -> None:
        keeper.stop()
        keeper.join(20)
        ended.set()

    keeper.keep(Fake(end), now())
    assert ended.wait(10)


def test_no_thread_can_be_started(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of threads the caller is told, and nothing is kept; the next one tries again."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    first, second = Fake(), Fake()
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        with pytest.raises(kvi.Unavailable, match="thread"):
            keeper.keep(first, now())
    keeper.join(1)
    keeper.keep(second, now())
    until(lambda: second.steps)
    assert not first.steps


def test_late_ones_are_served_at_once(keeper: Keeper) -> None:
    """What is late does not wait for one renewal after the other: more threads help, and end."""
    go, together = threading.Event(), threading.Barrier(3)

    def meet() -> None:
        together.wait(20)

    fakes = [Fake(meet) for _ in range(3)]
    first = Fake(lambda: go.wait(20) and None)
    keeper.keep(first, now())
    until(lambda: not keeper._due)
    for fake in fakes:
        keeper.keep(fake, now() - 1)
    go.set()
    until(lambda: all(fake.steps for fake in fakes))
    until(lambda: len(keeper._threads) <= 1)
